"""TensorBoard and MLflow: the log of every training as it goes, and every score when it is done.

One entry per trained network, named by its data, network, augmenter and seed: its setting, the log of each epoch, then its scores,
`metric` for the network itself and `explainer/metric` for the maps of an explainer.

Choices: a network that is stored already gets an entry as soon as something of it is scored. A number that is missing is left out, never
written as zero. MLflow's entry carries the training's key as a tag, so that a run that goes on finds it again.

Checked against: what TensorBoard's own reader, and MLflow's client, read back.

Cost: no pass through any network. Needs `pip install bench-xai[tensorboard]` or `bench-xai[mlflow]`; neither is loaded before a run
names it: `bench run --set 'trackers=["tensorboard"]'`.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from bench import hookimpl
from bench.errors import PluginError
from bench.hookspecs import Register

PARTS = ("model", "trainer", "augmenter", "noise")


@dataclass(frozen=True)
class TensorBoard:
    """Writes an event file per network, for `tensorboard --logdir`."""

    folder: Path = Path("bench-runs/tensorboard")

    name: ClassVar[str] = "tensorboard"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""

    @cached_property
    def _writers(self) -> dict[str, Any]:
        return {}

    def _writer(self, training: Any) -> Any:
        if training.key not in self._writers:
            module = needed("torch.utils.tensorboard", "tensorboard")
            writer = module.SummaryWriter(str(self.folder / f"{plain(title(training))}-{training.key[:8]}"))
            writer.add_text("setting", f"```json\n{json.dumps(setting(training), indent=1, default=str)}\n```")
            self._writers[training.key] = writer
        return self._writers[training.key]

    def started(self, job: Any) -> None:
        self._writer(network(job))

    def epoch(self, job: Any, values: Mapping[str, Any]) -> None:
        writer = self._writer(network(job))
        for name, value in numbers(values):
            writer.add_scalar(f"training/{name}", value, values["epoch"])
        writer.flush()

    def finished(self, job: Any, record: Mapping[str, Any]) -> None:
        writer = self._writer(network(job))
        for name, value in scores(job, record):
            writer.add_scalar(name, value, 0)
        writer.flush()


@dataclass(frozen=True)
class MLflow:
    """Writes an MLflow run per network, to the server that `uri` or MLFLOW_TRACKING_URI names."""

    uri: str | None = None
    experiment: str = "bench-xai"

    name: ClassVar[str] = "mlflow"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""

    TAG: ClassVar[str] = "bench_training"

    @cached_property
    def _client(self) -> Any:
        return needed("mlflow.tracking", "mlflow").MlflowClient(tracking_uri=self.uri)

    @cached_property
    def _experiment(self) -> str:
        known = self._client.get_experiment_by_name(self.experiment)
        return str(known.experiment_id if known else self._client.create_experiment(self.experiment))

    @cached_property
    def _runs(self) -> dict[str, str]:
        return {}

    def _run(self, training: Any) -> str:
        if training.key not in self._runs:
            found = self._client.search_runs([self._experiment], f"tags.{self.TAG} = '{training.key}'", max_results=1)
            self._runs[training.key] = found[0].info.run_id if found else self._new_run(training)
        return self._runs[training.key]

    def _new_run(self, training: Any) -> str:
        run = self._client.create_run(self._experiment, run_name=title(training), tags={self.TAG: training.key})
        for name, value in setting(training).items():
            self._client.log_param(run.info.run_id, name, str(value)[:500])
        return str(run.info.run_id)

    def started(self, job: Any) -> None:
        self._run(network(job))

    def epoch(self, job: Any, values: Mapping[str, Any]) -> None:
        for name, value in numbers(values):
            self._client.log_metric(self._run(network(job)), f"training/{plain(name)}", value, step=values["epoch"])

    def finished(self, job: Any, record: Mapping[str, Any]) -> None:
        run = self._run(network(job))
        for name, value in scores(job, record):
            self._client.log_metric(run, "/".join(map(plain, name.split("/"))), value)
        if job is network(job):
            self._client.set_terminated(run)


def needed(module: str, extra: str) -> Any:
    """A library that only this tracker wants. Raises PluginError saying how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        told = f"the tracker '{extra}' needs a library that is not installed ({error})."
        raise PluginError(f"{told}\nInstall it: pip install 'bench-xai[{extra}]'") from None


def network(job: Any) -> Any:
    """The training that a job is, or rests on."""
    return getattr(job, "training", job)


def title(training: Any) -> str:
    """`scenes resnet-mini edda seed 0`."""
    labels = [training.data.part.label, *(part.label for name in PARTS if (part := getattr(training, name)) is not None)]
    return " ".join([*labels, *([f"seed {training.seed}"] if training.fits else [])])


def setting(training: Any) -> dict[str, Any]:
    """What the training's key is made of, one level deep: `augmenter.tau_u`, `recipe.epochs`."""
    found: dict[str, Any] = {"dataset": training.data.part.label, "key": training.key}
    for name in PARTS:
        part = getattr(training, name)
        if part is not None:
            parameters = {f"{name}.{field}": value for field, value in part.parameters.items()}
            found |= {name: part.label, f"{name}.version": part.entry.version, **parameters}
    recipe = training.identity.get("recipe") or {}
    return {**found, **{f"recipe.{field}": value for field, value in recipe.items()}, **({"seed": training.seed} if training.fits else {})}


def numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What of an epoch's log is a finite number, its own number aside."""
    for name, value in values.items():
        if name != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value)


def scores(job: Any, record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The number of a score job with its interval, under the explainer's name where the metric is about maps."""
    outcome = record.get("outcome")
    if outcome is None or outcome["value"] is None:
        return
    explaining = job.explaining
    name = f"{explaining.explainer.label}/{job.metric.label}" if explaining is not None else job.metric.label
    yield name, float(outcome["value"])
    if outcome["interval"]:
        low, high = outcome["interval"]
        yield f"{name}.low", float(low)
        yield f"{name}.high", float(high)


def plain(text: str) -> str:
    """Letters, digits, dots, dashes and underscores only, as file names and MLflow's metric names want it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


@hookimpl
def register_trackers(register: Register) -> None:
    register(TensorBoard)
    register(MLflow)
