"""The change guard's digests: `python -m tests.golden_write` adds those of new parts and of raised versions to tests/golden/.

A digest is a few numbers about what a part makes of the tiny fixture. It is a change guard, not a known answer: it says that the
numbers are those of the last time, never that they are right. The writer refuses a changed output under an unchanged version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import checks, plugins, testing
from bench.contexts import generator
from bench.interfaces import Recipe
from bench.registry import Entry, Registry, ResolvedPart
from bench.score import summarise
from bench.train import training_data
from bench_plugins._views import Views

FOLDER = Path(__file__).parent / "golden"
KINDS = ("explainer", "augmenter", "metric", "noise")
COMMAND = "python -m tests.golden_write"
EPOCHS = (0, 4, 8)  # Of ten: some augmenters only work after the first, some only in it, and some pause.
PROJECTIONS = 8
DIGITS = 5
TOLERANCE = 1e-3  # Of the largest number: other processors and libraries round otherwise.
TOLERANCES = {"lrp-gamma": 0.05}  # Its denominators come near zero; the kernels of two processors were seen to differ by 1 %.

Digest = dict[str, list[float]]
Known = dict[str, dict[str, Any]]


def installed() -> Registry:
    """The parts that come with bench-xai; other people's plugins are theirs to guard."""
    return plugins.load().registry


def guarded(registry: Registry, kind: str) -> Iterator[Entry]:
    return (entry for entry in registry.entries(kind) if entry.distribution.startswith("bench-xai "))


def path(kind: str) -> Path:
    return FOLDER / f"{kind}s.json"


def read(kind: str) -> Known:
    return json.loads(path(kind).read_text()) if path(kind).exists() else {}


def digest(entry: Entry, registry: Registry) -> Digest:
    """The digest of each of a part's outputs. Raises NotTried, with the reason, for a part that is not guarded."""
    outputs = OUTPUTS[entry.kind](checks.resolved(entry, registry))
    return {name: summary(tensor) for name, tensor in outputs.items()}


def verdict(kind: str, name: str, version: int, found: Digest, known: Mapping[str, Any] | None) -> str | None:
    """What is wrong and what to do about it, or None where the output is what its version gave before."""
    what = f"{kind} '{name}'"
    if known is None:
        return f"{what} has no entry in tests/golden. Type: {COMMAND}"
    if known["version"] != version:
        return f"{what} is version {version}, and its entry is of version {known['version']}. Type: {COMMAND}"
    if not same(found, known["digest"], TOLERANCES.get(name, TOLERANCE)):
        return (
            f"the output of {what} is not what version {version} gave before.\n"
            "If that is not meant, it is a bug. If it is, stored results of it are no longer what it gives:\n"
            f"raise `version` in its class to {version + 1}, then type: {COMMAND}"
        )
    return None


def same(found: Digest, known: Digest, tolerance: float = TOLERANCE) -> bool:
    return found.keys() == known.keys() and all(_near(found[name], known[name], tolerance) for name in found)


def _near(found: list[float], known: list[float], tolerance: float) -> bool:
    scale = max(map(abs, known), default=0.0)
    return len(found) == len(known) and all(abs(new - old) <= tolerance * scale + 1e-9 for new, old in zip(found, known, strict=True))


def summary(tensor: Tensor) -> list[float]:
    """A few values as they are; of many, the products with fixed vectors of +1 and -1 over the root of their number.

    "Not a number" counts as -1.
    """
    values = tensor.detach().double().flatten().nan_to_num(nan=-1.0)
    if len(values) > PROJECTIONS:
        signs = torch.randint(0, 2, (len(values), PROJECTIONS), generator=generator("golden")).double() * 2 - 1
        values = values @ signs / len(values) ** 0.5
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


# What each kind gives


def _of_explainer(part: ResolvedPart) -> dict[str, Tensor]:
    return {"maps": checks.explain(part, *checks.images_to_explain())}


def _of_augmenter(part: ResolvedPart) -> dict[str, Tensor]:
    """What the augmenter does early and late in a training."""
    return {f"{name} {epoch}": output for epoch in EPOCHS for name, output in _of_epoch(part, epoch).items()}


def _of_epoch(part: ResolvedPart, epoch: int) -> dict[str, Tensor]:
    """A batch, and what the augmenter's own forward, loss, end of an epoch and views make of it, where it has them."""
    model, batch = checks.batch_to_augment()
    step = checks.training_step(part, model, epoch)
    augmented = part.part(model, batch, step)
    outputs = {name: getattr(augmented, name) for name in ("inputs", "targets", "weights")}
    if hasattr(part.part, "forward"):
        outputs["logits"] = part.part.forward(model, augmented, step)
    if hasattr(part.part, "loss"):
        outputs["loss"] = part.part.loss(model(augmented.inputs), augmented)
    if hasattr(part.part, "end_epoch"):
        data = training_data(testing.tiny_data(22), Recipe(), None, None)  # 22 images: the four classes are not of one size.
        added = part.part.end_epoch(model, data, step)
        outputs |= {"added images": added.images / 255, "added labels": added.labels} if added is not None else {}
    if hasattr(part.part, "views"):
        seen = Views.of(batch.inputs, batch.inputs.flip(3), batch.inputs.flip(2), batch.labels)
        found = part.part.views(model, seen, step)
        outputs |= {name: getattr(found, name) for name in ("first", "second", "negative")}
    return outputs


def _of_metric(part: ResolvedPart) -> dict[str, Tensor]:
    if getattr(part.part, "timed", False) or part.part.category == "cost":
        raise checks.NotTried("it measures or counts what something cost")
    if "multi_label" in part.part.needs:
        raise checks.NotTried("it is for images with several labels")
    rows = checks.score(part)
    return {"rows": rows, "value": torch.tensor([summarise(part.part, rows).value])}


def _of_noise(part: ResolvedPart) -> dict[str, Tensor]:
    return {"labels": checks.relabel(part)[1]}


OUTPUTS = {"explainer": _of_explainer, "augmenter": _of_augmenter, "metric": _of_metric, "noise": _of_noise}


# Writing


def renewed(registry: Registry, kind: str, known: Known) -> tuple[Known, list[str]]:
    """The entries as they should be, and what stands in the way: outputs that changed under an unchanged version."""
    entries, refused = {}, []
    for entry in guarded(registry, kind):
        try:
            found = digest(entry, registry)
        except checks.NotTried as reason:
            print(f"{kind} {entry.name} is left out: {reason}")
            continue
        old = known.get(entry.name)
        problem = verdict(kind, entry.name, entry.version, found, old)
        if old is not None and old["version"] == entry.version:
            entries[entry.name] = old  # Rounding is no reason for a line in a diff.
            refused += [problem] if problem else []
        else:
            entries[entry.name] = {"version": entry.version, "digest": found}
    return entries, refused


def main() -> int:
    torch.set_num_threads(1)
    registry, refused = installed(), []
    FOLDER.mkdir(exist_ok=True)
    for kind in KINDS:
        entries, problems = renewed(registry, kind, read(kind))
        refused += problems
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items()))
        path(kind).write_text(f"{{\n{lines}\n}}\n")
    print("\n".join(refused) or f"{FOLDER} is up to date")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
