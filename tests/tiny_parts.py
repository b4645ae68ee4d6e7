"""A plugin of one file with small parts of every kind: `bench run --plugin tests/tiny_parts.py`.

The parts called `mortal` write down what they are asked to do, in the file that TINY_JOURNAL names, and kill their own process
when they come to what TINY_DEATH says. A probe for the estimate is a call with 4 images, or with the first images of the data for
a batch, and is not written down.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from bench import hookimpl
from bench.interfaces import ArrayData, Batch, ByContent, Curve, Reference
from bench.testing import TinyNetwork, tiny_data


class Broken(RuntimeError):
    """What the broken parts raise."""


@dataclass(frozen=True)
class Data:
    """Quarters of images, one of them bright, with masks."""

    train_images: Annotated[int, Field(ge=4)] = 64
    test_images: Annotated[int, Field(ge=4)] = 24

    name: ClassVar[str] = "tiny"
    version: ClassVar[int] = 1

    def load(self, split: str, root: Path | None) -> ArrayData:
        train = split == "train"
        return tiny_data(self.train_images if train else self.test_images, seed=int(not train))


@dataclass(frozen=True)
class Network:
    """bench.testing's TinyNetwork, its weights drawn from the global stream as the hook asks."""

    name: ClassVar[str] = "tiny-net"
    version: ClassVar[int] = 1

    def build(self, info):
        return TinyNetwork(info.num_classes, seed=int(torch.randint(2**31, ())))

    def target_layers(self, module):
        return module.layers[-1:]

    def stages(self, module):
        return module.layers


@dataclass(frozen=True)
class Shade:
    """Darkens each image by a share of its own."""

    strength: Annotated[float, Field(ge=0, le=1)] = 0.5

    name: ClassVar[str] = "shade"
    version: ClassVar[int] = 1

    def __call__(self, model, batch: Batch, context) -> Batch:
        shares = 1 - self.strength * torch.rand(len(batch), 1, 1, 1, generator=context.generator)
        return batch.replace(inputs=batch.inputs * shares)


@dataclass(frozen=True)
class MortalAugmenter:
    """Changes nothing."""

    name: ClassVar[str] = "mortal"
    version: ClassVar[int] = 1

    def __call__(self, model, batch: Batch, context) -> Batch:
        if batch.indices.max() >= len(batch):
            witness(f"train {context.epoch} {context.step}")
        return batch


@dataclass(frozen=True)
class BreakingAugmenter:
    """Raises in the first step of a training."""

    name: ClassVar[str] = "breaks"
    version: ClassVar[int] = 1

    def __call__(self, model, batch: Batch, context) -> Batch:
        raise Broken("the augmenter broke")


@dataclass(frozen=True)
class Slope:
    """The size of the target's gradient at each pixel."""

    power: float = 1.0
    weights: Annotated[Path | None, ByContent()] = None

    name: ClassVar[str] = "slope"
    version: ClassVar[int] = 1
    argument: ClassVar[str] = "power"

    def __call__(self, model, inputs, targets, context):
        inputs = inputs.clone().requires_grad_()
        score = model(inputs).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(score, inputs)[0].abs().sum(1, keepdim=True) ** self.power


@dataclass(frozen=True)
class FarFromMean:
    """How far each pixel is from the mean of the images it was prepared on."""

    name: ClassVar[str] = "far-from-mean"
    version: ClassVar[int] = 1

    def prepare(self, model, data, context):
        return torch.cat([inputs for inputs, _ in data.batches(16)]).mean(0)

    def __call__(self, model, inputs, targets, context):
        return (inputs - context.state).abs().sum(1, keepdim=True)


@dataclass(frozen=True)
class Inherited:
    """What another explainer gives, twice."""

    explainer: Annotated[str, Reference("explainer")] = "slope"

    name: ClassVar[str] = "inherited"
    version: ClassVar[int] = 1

    def __call__(self, model, inputs, targets, context):
        return 2 * inputs.mean(1, keepdim=True)


@dataclass(frozen=True)
class MortalExplainer:
    """The gradient of the target."""

    name: ClassVar[str] = "mortal"
    version: ClassVar[int] = 1

    def __call__(self, model, inputs, targets, context):
        if len(inputs) != 4:
            witness(f"explain {len(inputs)}")
        return Slope()(model, inputs, targets, context)


@dataclass(frozen=True)
class BreakingExplainer:
    """Raises."""

    name: ClassVar[str] = "breaks"
    version: ClassVar[int] = 1

    def __call__(self, model, inputs, targets, context):
        raise Broken("the explainer broke")


@dataclass(frozen=True)
class Inside:
    """The mean of the map on the object."""

    name: ClassVar[str] = "inside"
    version: ClassVar[int] = 1
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "localisation"
    unit: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ("attributions", "masks")

    def __call__(self, model, explained, context):
        return (explained.attributions * explained.masks).sum((1, 2, 3)) / explained.masks.sum((1, 2, 3))


@dataclass(frozen=True)
class MortalMetric(Inside):
    """The mean of the map on the object."""

    name: ClassVar[str] = "mortal"
    version: ClassVar[int] = 1

    def __call__(self, model, explained, context):
        if len(explained) != 4:
            witness(f"score {len(explained)}")
        return super().__call__(model, explained, context)


@dataclass(frozen=True)
class BreakingMetric(Inside):
    """Raises."""

    name: ClassVar[str] = "breaks"
    version: ClassVar[int] = 1

    def __call__(self, model, explained, context):
        raise Broken("the metric broke")


@dataclass(frozen=True)
class LogitSum:
    """The sum of the logits: scored without any map."""

    name: ClassVar[str] = "logit-sum"
    version: ClassVar[int] = 1
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "prediction"
    unit: ClassVar[str] = "logits"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def __call__(self, model, explained, context):
        return explained.logits.sum(1)

    def curve(self, rows):
        return Curve([0.0, 1.0], [0.0, float(rows.mean())], "x", "y")


@dataclass(frozen=True)
class Again(LogitSum):
    """How far the explainer's maps are from the same maps made again."""

    name: ClassVar[str] = "again"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("attributions", "explainer")

    def __call__(self, model, explained, context):
        return (context.explain(explained.inputs, explained.targets) - explained.attributions).abs().amax((1, 2, 3))


@dataclass(frozen=True)
class PassesOverFloor(LogitSum):
    """Passes of the training over those of the training with the floor augmenter."""

    name: ClassVar[str] = "passes-over-floor"
    version: ClassVar[int] = 1
    category: ClassVar[str] = "cost"
    needs: ClassVar[tuple[str, ...]] = ("training",)
    per_image: ClassVar[bool] = False

    def __call__(self, model, explained, context):
        floor = context.floor_training
        return torch.tensor([float("nan") if floor is None else context.training["forward"] / floor["forward"]])


@dataclass(frozen=True)
class Portrait(LogitSum):
    """The sum of the logits, and a figure that says what it was given to draw."""

    broken: bool = False

    name: ClassVar[str] = "portrait"

    def figure(self, model, data, context, path):
        if self.broken:
            raise Broken("no brush")
        shapes = [inputs.shape for inputs, _ in data.batches(context.chunk)]
        path.write_text(f"{sum(shape[0] for shape in shapes)} images of {shapes[0][1]} channels")


@dataclass(frozen=True)
class Flip:
    """The label of the next class for a share of the images."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5

    name: ClassVar[str] = "flip"
    version: ClassVar[int] = 1
    argument: ClassVar[str] = "share"

    def __call__(self, labels, info, generator):
        flipped = torch.rand(len(labels), generator=generator) < self.share
        return torch.where(flipped, (labels + 1) % info.num_classes, labels)


def witness(what: str) -> None:
    """Write down what is about to be done, or die before doing it."""
    if os.environ.get("TINY_DEATH") == what:
        os.kill(os.getpid(), signal.SIGKILL)
    if journal := os.environ.get("TINY_JOURNAL"):
        with Path(journal).open("a") as file:
            file.write(what + "\n")


@hookimpl
def register_datasets(register: Any) -> None:
    register(Data)


@hookimpl
def register_models(register: Any) -> None:
    register(Network)


@hookimpl
def register_augmenters(register: Any) -> None:
    for augmenter in (Shade, MortalAugmenter, BreakingAugmenter):
        register(augmenter)


@hookimpl
def register_explainers(register: Any) -> None:
    for explainer in (Slope, FarFromMean, Inherited, MortalExplainer, BreakingExplainer):
        register(explainer)


@hookimpl
def register_metrics(register: Any) -> None:
    for metric in (Inside, MortalMetric, BreakingMetric, LogitSum, Again, PassesOverFloor, Portrait):
        register(metric)


@hookimpl
def register_noises(register: Any) -> None:
    register(Flip)
