"""Verify published rows: do their jobs again in a fresh store, and say which numbers hold."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from bench import plan as plans
from bench import plugins as plugin_loader
from bench import spec as specs
from bench.api import data_folder, prepare_device
from bench.compare import made_of
from bench.composition import SIGN
from bench.errors import BenchError, InvalidValue
from bench.lines import result_line
from bench.observers import Observer
from bench.plan import Plan
from bench.registry import Registry
from bench.results import Line, describe, lines_of
from bench.runner import Outcome, Settings, execute
from bench.store import Store

Verdict = Literal["same", "holds", "differs", "failed", "cannot be repeated"]
EXACT = 1e-6
KINDS = ("model", "trainer", "augmenter", "noise")


@dataclass(frozen=True)
class Finding:
    """What came of one published line."""

    line: Line
    verdict: Verdict
    value: float | None = None
    reason: str = ""

    @property
    def good(self) -> bool:
        return self.verdict in ("same", "holds")

    def __str__(self) -> str:
        numbers = f": {self.line['value']} published, {self.value} found" if self.verdict in ("same", "holds", "differs") else ""
        return f"{self.verdict:<8} {self.line['key'][:12]}  {describe(self.line)}{numbers}{f': {self.reason}' if self.reason else ''}"


def verify(
    lines: Sequence[Line],
    registry: Registry,
    store: Store,
    *,
    root: Path | None = None,
    device: str = "cpu",
    tolerance: float | None = None,
    specs_folder: Path | None = None,
    observers: Sequence[Observer] = (),
) -> Iterator[Finding]:
    """Do the jobs of these lines again, network by network, and judge each line. Times are left out: they belong to a machine.

    A number is `same` within 1e-6, and `holds` within the tolerance; without one, within half of its published interval, because
    another machine trains otherwise in the last bits. specs_folder: the specs of published runs; what they do not
    give is put together from the line itself.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line["machine"] is None:
            groups.setdefault((line["run"], line["training"]), []).append(line)
    for (run, _), group in groups.items():
        plan, why = _plan_of(group, run, registry, root, device, specs_folder)
        if plan is None:
            yield from (Finding(line, "cannot be repeated", reason=why) for line in group)
            continue
        wanted = {line["key"] for line in group}
        outcome = execute(_only(plan, wanted), store, Settings(device), observers)
        found = {line["key"]: line for line in outcome.lines}
        missing = {line["key"]: _missing(line, plan) for line in group if line["key"] not in {job.key for job in plan.scorings}}
        yield from (_judged(line, found.get(line["key"]), missing.get(line["key"]), outcome, tolerance) for line in group)


def _plan_of(group: Sequence[Line], run: str, registry: Registry, root: Path | None, device: str, folder: Path | None) -> tuple[Plan | None, str]:
    """A plan that has the training of these lines: of the run's own spec, or put together from the lines."""
    candidates = [specs.read(folder / f"{run}.toml")] if folder is not None and (folder / f"{run}.toml").is_file() else []
    why = ""
    for values in (*candidates, _spec_of(group)):
        try:
            plan = plans.make(specs.make(values, f"the spec of {run}").completed(registry), registry, root, device)
        except BenchError as error:
            why = str(error).split("\n")[0]
            continue
        if any(training.key == group[0]["training"] for training in plan.trainings):
            return plan, ""
        why = _missing(group[0], plan)
    return None, why


def _spec_of(group: Sequence[Line]) -> dict[str, Any]:
    """What to ask for to get these lines: every part with its parameters, floors only where they are wanted."""
    first = group[0]
    images = {name: value for line in group for name, value in line["images"].items()}  # A line names only what its metric looks at.
    counts = [line["images"]["images"] for line in group if isinstance(line["images"].get("images"), int)]
    recipe = first["recipe"] or {name: images[name] for name in ("memory_format",) if name in images}
    values: dict[str, Any] = {"name": "verify", "datasets": first["dataset"]["label"], "recipe": recipe, "target": images.get("target", "predicted")}
    for kind in ("model", "trainer", "augmenter"):
        values[f"{kind}s"] = _request(first[kind]) if first[kind] else ()
    values["label_noise"] = _request(first["noise"]) if first["noise"] else specs.NO_NOISE
    for kind in ("explainer", "metric"):
        unique = {str(part): part for line in group if (part := line[kind])}
        values[f"{kind}s"] = tuple(_request(part) for part in unique.values())
    return {**values, "seeds": (first["seed"] or 0,), **({"images": min(counts)} if counts else {})}


def _request(part: Mapping[str, Any]) -> str | dict[str, Any]:
    """A part of a line as a spec asks for it. One that was asked for as `name:argument` is asked for so again."""
    if SIGN in part["name"] and "1" in part["parameters"]:  # Of a composition, each part stands under its place.
        parts = [each for _, each in sorted(part["parameters"].items(), key=lambda item: int(item[0]))]
        return {"of": [_request({"label": each["name"], **each}) for each in parts], "as": part["label"]}
    if str(part["label"]).startswith(f"{part['name']}:"):
        return str(part["label"])
    parameters = {name: _reference(value) for name, value in part["parameters"].items() if value is not None}
    return {"name": part["name"], **({"as": part["label"]} if part["label"] != part["name"] else {}), **parameters}


def _reference(value: Any) -> Any:
    """Another part that a parameter names, by its name; anything else as it is."""
    return value["name"] if isinstance(value, Mapping) and {"name", "version", "parameters"} <= value.keys() else value


def _only(plan: Plan, wanted: set[str]) -> Plan:
    """The plan with the wanted scores and what they rest on, nothing else."""
    scorings = tuple(job for job in plan.scorings if job.key in wanted)
    explainings = {job.explaining.key for job in scorings if job.explaining}
    floors = {job.training.floor for job in scorings if "training" in job.metric.part.needs}
    trainings = {job.training.key for job in scorings} | floors
    return dataclasses.replace(
        plan,
        scorings=scorings,
        explainings=tuple(job for job in plan.explainings if job.key in explainings),
        trainings=tuple(job for job in plan.trainings if job.key in trainings),
    )


def _missing(line: Line, plan: Plan) -> str:
    """Why no job of the plan has this line's key: what differs from the job that is most like it."""
    nameless = {"weights": "", "seconds": 0.0, "finished": "", "environment": {}, "outcome": {}}
    alike = [differences for job in plan.scorings if (differences := made_of(line, result_line(plan, job, nameless)))]
    if not alike:
        return "no job here is like it"
    return "; ".join(min(alike, key=len)[:4])


def _judged(line: Line, found: Line | None, missing: str | None, outcome: Outcome, tolerance: float | None) -> Finding:
    if missing is not None:
        return Finding(line, "cannot be repeated", reason=missing)
    if found is None:
        reasons = (outcome.failures[key] for key in (line["key"], line["explaining"], line["training"]) if key in outcome.failures)
        return Finding(line, "failed", reason=next(reasons, "its job was not done"))
    published, value = line["value"], found["value"]
    if published is None or value is None:
        return Finding(line, "same" if published is value else "differs", value)
    gap, interval = abs(published - value), line["interval"]
    allowed = tolerance if tolerance is not None else (interval[1] - interval[0]) / 2 if interval else 0.0
    if gap <= EXACT * max(1.0, abs(published)):
        return Finding(line, "same", value)
    return Finding(line, "holds" if gap <= allowed else "differs", value)


def chosen(lines: Iterable[Line], keys: Sequence[str], networks: int | None) -> list[Line]:
    """The lines whose keys begin so, or all; of these the lines of some networks, by their keys, where a number is given."""
    found = [line for line in lines if not keys or line["key"].startswith(tuple(keys))]
    if not found:
        raise InvalidValue(f"no published line has a key that begins with {' or '.join(keys)}.")
    if networks is None:
        return found
    kept = sorted({line["training"] for line in found})[:networks]
    return [line for line in found if line["training"] in kept]


def verify_command(
    source: Path,
    keys: tuple[str, ...],
    networks: int | None,
    tolerance: float | None,
    store: Path | None,
    data: Path | None,
    device: str,
    threads: int | None,
    plugin_files: tuple[Path, ...],
    without_plugin: tuple[str, ...],
) -> int:
    """Print a finding per line as it comes, and return 1 where a number does not hold or could not be repeated."""
    lines = chosen(lines_of(source), keys, networks)
    registry = plugin_loader.load(plugin_files, without_plugin).registry
    device = prepare_device(device, threads)
    folder = next((place / "runs" for place in (source, *source.parents[:2]) if (place / "runs").is_dir()), None)
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as fresh:
        jobs = Store(store or Path(fresh))
        for finding in verify(lines, registry, jobs, root=data_folder(data), device=device, tolerance=tolerance, specs_folder=folder):
            counts[finding.verdict] = counts.get(finding.verdict, 0) + 1
            click.echo(str(finding))
    times = sum(line["machine"] is not None for line in lines)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    click.echo((told or "nothing to verify") + (f"; {times} times left out" if times else ""))
    return 0 if set(counts) <= {"same", "holds"} else 1
