"""Shared by the augmenters: seeded draws, and mixing two images by a map of shares."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import InvalidValue
from bench.interfaces import Batch, Fill, StepContext
from bench_plugins.mixing import mix_targets


def uniform(low: float, high: float, shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers drawn uniformly from [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def seed_from(generator: torch.Generator) -> int:
    """A seed for a library that has a random stream of its own."""
    return int(torch.randint(2**63 - 1, (), generator=generator))


def single_label(method: str, context: StepContext) -> None:
    """Raises InvalidValue for data with several labels per image."""
    if context.multi_label:
        raise InvalidValue(
            f"augmenter '{method}' needs one label per image, and data set '{context.info.name}' has several.\n"
            "Those that erase or mix by area take it: cutout, cutmix, fmix, ricap."
        )


def hide(batch: Batch, hidden: Tensor, fill: Fill, context: StepContext) -> Batch:
    """Put the fill where `hidden` (B or 1, 1, H, W) is True; the targets stay."""
    return batch.replace(inputs=torch.where(hidden, context.fill(fill, batch.inputs), batch.inputs))


def mix_by(kept: Tensor, batch: Batch, partners: Tensor) -> Batch:
    """Mix each image with its partner. `kept` (B or 1, 1, H, W) in [0, 1] is the share of the image's own pixels; its mean
    over the pixels weighs the image's own target.
    """
    kept = kept.to(batch.inputs)
    # lerp: an image mixed with itself stays itself to the bit, and nothing leaves [0, 1].
    inputs = torch.lerp(batch.inputs[partners], batch.inputs, kept)
    shares = kept.mean((1, 2, 3), dtype=torch.float64).expand(len(batch))
    return batch.replace(inputs=inputs, targets=mix_targets(batch.targets, partners, shares))
