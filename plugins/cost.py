"""What a method costs: seconds and memory on this machine, and passes through the network, which are the same on every machine.

Paper: none; these are measurements.

Choices: times come with warm-up calls that are not counted, wait for the device before and after, and are summed up by their
median. They belong to the machine they were taken on. Passes count images: one forward pass is one image through the whole
network. `latency` explains one image at a time, which the harness sends as two (a lone image takes other kernels). The costs of
training look at the last epochs, past any start-up and with a scheduled augmenter at work. `training-slowdown` sets the seconds
per training image against those of the same training with augmenter `none`; `training-passes` counts every forward and backward
pass of the whole training per training image (2 for plain training). A cost that was not recorded is no row at all.

Checked against: an explainer that sleeps for a known time, and cost records with known quotients.

Cost: throughput and latency run the explainer `warm_up` + `repeats` times; the others only read records.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Explained, MetricContext


@dataclass(frozen=True)
class _OfAMachine:
    """What measured times share: they belong to a machine, their rows are repeats, and the median sums them up."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"
    category: ClassVar[str] = "cost"
    per_image: ClassVar[bool] = False
    timed: ClassVar[bool] = True

    def aggregate(self, rows: Tensor) -> float:
        return float(rows.double().quantile(0.5)) if len(rows) else float("nan")


@dataclass(frozen=True)
class Throughput(_OfAMachine):
    """How many images the explainer explains in a second, in batches."""

    name: ClassVar[str] = "throughput"
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "images/s"
    needs: ClassVar[tuple[str, ...]] = ("explainer",)

    batch: Annotated[int, Field(ge=1)] = 64
    warm_up: Annotated[int, Field(ge=0)] = 1
    repeats: Annotated[int, Field(ge=1)] = 7

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(repeats,) images per second."""
        images = min(self.batch, len(explained))
        return images / seconds_to_explain(explained, context, images, self.warm_up, self.repeats)


@dataclass(frozen=True)
class Latency(_OfAMachine):
    """How many milliseconds the explainer needs for one image."""

    name: ClassVar[str] = "latency"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "ms"
    needs: ClassVar[tuple[str, ...]] = ("explainer",)

    warm_up: Annotated[int, Field(ge=0)] = 2
    repeats: Annotated[int, Field(ge=1)] = 7

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(repeats,) milliseconds."""
        return 1000 * seconds_to_explain(explained, context, 1, self.warm_up, self.repeats)


def seconds_to_explain(explained: Explained, context: MetricContext, images: int, warm_up: int, repeats: int) -> Tensor:
    """(repeats,) seconds that one explanation of the first images takes."""
    inputs, targets = explained.inputs[:images], explained.targets[:images]
    seconds = []
    for _ in range(warm_up + repeats):
        wait_for(inputs.device)
        start = time.perf_counter()
        context.explain(inputs, targets)
        wait_for(inputs.device)
        seconds.append(time.perf_counter() - start)
    return torch.tensor(seconds[warm_up:], dtype=torch.float64)


def wait_for(device: torch.device) -> None:
    """Until an accelerator has done what it was given; its calls return before the work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@dataclass(frozen=True)
class _OfExplaining:
    """What the counts of the explaining stage share: one number per image explained."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = False
    category: ClassVar[str] = "cost"
    unit: ClassVar[str] = "passes/image"
    needs: ClassVar[tuple[str, ...]] = ("explain_cost",)
    per_image: ClassVar[bool] = False
    counted: ClassVar[str]

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(1,) passes per image."""
        return row(per_image(context.explain_cost, self.counted))


@dataclass(frozen=True)
class PassesForward(_OfExplaining):
    """How many forward passes the explainer needs for an image."""

    name: ClassVar[str] = "passes-forward"
    counted: ClassVar[str] = "forward"


@dataclass(frozen=True)
class PassesBackward(_OfExplaining):
    """How many backward passes the explainer needs for an image."""

    name: ClassVar[str] = "passes-backward"
    counted: ClassVar[str] = "backward"


@dataclass(frozen=True)
class PeakMemory(_OfAMachine):
    """The most memory in use while explaining."""

    name: ClassVar[str] = "peak-memory"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "MiB"
    needs: ClassVar[tuple[str, ...]] = ("explain_cost",)

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(1,) mebibytes."""
        peak = (context.explain_cost or {}).get("peak_memory")
        return row(None if peak is None else peak / 2**20)


@dataclass(frozen=True)
class TrainingThroughput(_OfAMachine):
    """How many training images go through a second of training, over its last epochs."""

    name: ClassVar[str] = "training-throughput"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "images/s"
    needs: ClassVar[tuple[str, ...]] = ("training",)

    last_epochs: Annotated[int, Field(ge=1)] = 3

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(epochs,) images per second, one for each of the last epochs."""
        return 1 / seconds_per_image(context.training, self.last_epochs)


@dataclass(frozen=True)
class TrainingSlowdown(_OfAMachine):
    """How many times longer a training image takes than under augmenter `none`."""

    name: ClassVar[str] = "training-slowdown"
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "times none"
    needs: ClassVar[tuple[str, ...]] = ("training",)

    last_epochs: Annotated[int, Field(ge=1)] = 3

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(epochs,) seconds per image of the last epochs over the floor's median."""
        floor = seconds_per_image(context.floor_training, self.last_epochs)
        return seconds_per_image(context.training, self.last_epochs) / floor.quantile(0.5) if len(floor) else floor


@dataclass(frozen=True)
class TrainingPasses:
    """How many passes, forward and backward together, the training makes for an image."""

    name: ClassVar[str] = "training-passes"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = False
    category: ClassVar[str] = "cost"
    unit: ClassVar[str] = "passes/image"
    needs: ClassVar[tuple[str, ...]] = ("training",)
    per_image: ClassVar[bool] = False

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(1,) passes per training image, over the whole training."""
        forward, backward = (per_image(context.training, counted) for counted in ("forward", "backward"))
        return row(None if forward is None or backward is None else forward + backward)


def seconds_per_image(cost: Mapping[str, Any] | None, last: int) -> Tensor:
    """(epochs,) seconds for a training image in each of the last epochs; none where nothing was recorded."""
    epochs: Sequence[Mapping[str, Any]] = (cost or {}).get("epochs") or ()
    return torch.tensor([epoch["seconds"] / epoch["images"] for epoch in epochs[-last:] if epoch["images"]], dtype=torch.float64)


def per_image(cost: Mapping[str, Any] | None, counted: str) -> float | None:
    """A cost divided by the images it was spent on."""
    return cost[counted] / cost["images"] if cost and cost.get("images") else None


def row(value: float | None) -> Tensor:
    """(1,) the value, or no row at all."""
    return torch.tensor([] if value is None else [value], dtype=torch.float64)


@hookimpl
def register_metrics(register: Register) -> None:
    register(Throughput)
    register(Latency)
    register(PassesForward)
    register(PassesBackward)
    register(PeakMemory)
    register(TrainingThroughput)
    register(TrainingSlowdown)
    register(TrainingPasses)
