"""Policies of image operations: each image passes through torchvision's RandAugment, TrivialAugment or AutoAugment.

Paper: RandAugment applies `num_ops` operations drawn uniformly, all at one magnitude. TrivialAugment applies one operation at a
uniformly drawn magnitude from wide ranges. AutoAugment draws one of 25 pairs of operations that were searched for on a data
set, with the probabilities and magnitudes found there.

Choices: torchvision's implementations, called for each image on 8-bit pixels; images that are not multiples of 1/255 are
rounded to them. All draws come from torch's global stream while it is forked and seeded by the step's own generator. Turning,
shearing and moving leave a border that takes the mean colour by default; torchvision's own default is black. RandAugment's
defaults are torchvision's (2 operations, magnitude 9); the papers tune both for each data set.

Checked against: torchvision itself under the same seed; magnitude 0 changes nothing geometric; the global stream is left alone.

Cost: no passes; the images visit the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torchvision import transforms

from bench import hookimpl
from bench.errors import InvalidValue
from bench.interfaces import Batch, StepContext
from bench_plugins._draws import seed_from

Border = Literal["mean", "black"]
Bins = Annotated[int, Field(ge=2)]


@dataclass(frozen=True)
class RandAugment:
    """A few random operations, all at one magnitude."""

    name: ClassVar[str] = "randaugment"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Cubuk, Zoph, Shlens, Le; RandAugment: Practical Automated Data Augmentation with a Reduced Search Space; 2019; arXiv:1909.13719"
    )
    claim: ClassVar[str] = "formula verified"

    num_ops: Annotated[int, Field(ge=1)] = 2
    magnitude: Annotated[int, Field(ge=0)] = 9
    num_magnitude_bins: Bins = 31
    fill: Border = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        if self.magnitude >= self.num_magnitude_bins:
            raise InvalidValue(
                f"augmenter 'randaugment': magnitude {self.magnitude} is outside 0 … {self.num_magnitude_bins - 1} (num_magnitude_bins - 1)"
            )
        transform = transforms.RandAugment(self.num_ops, self.magnitude, self.num_magnitude_bins, fill=border(self.fill, batch, context))
        return through_pil(batch, transform, context.generator)


@dataclass(frozen=True)
class TrivialAugment:
    """One random operation at a random magnitude."""

    name: ClassVar[str] = "trivialaugment"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Müller, Hutter; TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation; ICCV 2021; arXiv:2103.10158"
    claim: ClassVar[str] = "formula verified"

    num_magnitude_bins: Bins = 31
    fill: Border = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        transform = transforms.TrivialAugmentWide(self.num_magnitude_bins, fill=border(self.fill, batch, context))
        return through_pil(batch, transform, context.generator)


@dataclass(frozen=True)
class AutoAugment:
    """A random pair of operations from a policy that was searched for."""

    name: ClassVar[str] = "autoaugment"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Cubuk, Zoph, Mane, Vasudevan, Le; AutoAugment: Learning Augmentation Policies from Data; CVPR 2019; arXiv:1805.09501"
    claim: ClassVar[str] = "formula verified"

    policy: Literal["imagenet", "cifar10", "svhn"] = "cifar10"
    fill: Border = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        transform = transforms.AutoAugment(transforms.AutoAugmentPolicy(self.policy), fill=border(self.fill, batch, context))
        return through_pil(batch, transform, context.generator)


def border(fill: Border, batch: Batch, context: StepContext) -> list[float]:
    """The fill as one 8-bit value per channel."""
    colour = context.fill(fill, batch.inputs[:1])[0, :, 0, 0]
    return [float(value) for value in (colour * 255).round()]


def through_pil(batch: Batch, transform: Callable[[Image.Image], Image.Image], generator: torch.Generator) -> Batch:
    """Apply a torchvision transform to every image. Raises InvalidValue for images that are neither grey nor RGB."""
    channels = batch.inputs.shape[1]
    if channels not in (1, 3):
        raise InvalidValue(f"policies of image operations take images with 1 or 3 channels, and these have {channels}. Mixing and erasing take any.")
    pixels = (batch.inputs * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_from(generator))  # torch.manual_seed would reach every device.
        changed = [np.asarray(transform(Image.fromarray(image.squeeze(2) if channels == 1 else image))) for image in pixels]
    inputs = torch.from_numpy(np.stack(changed)).view(*pixels.shape).permute(0, 3, 1, 2)
    return batch.replace(inputs=_like(inputs, batch.inputs))


def _like(pixels: Tensor, inputs: Tensor) -> Tensor:
    """8-bit pixels as [0, 1], in the layout and on the device of the inputs."""
    return torch.empty_like(inputs).copy_(pixels).div_(255)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(RandAugment)
    register(TrivialAugment)
    register(AutoAugment)
