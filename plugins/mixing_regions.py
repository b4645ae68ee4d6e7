"""Mixing by regions: images are put together from whole rectangles, and the targets are weighed by the rectangles' areas.

Paper: RICAP draws a point (w, h) with w/W and h/H from Beta(β, β), which splits the image into four parts; each is filled by a
crop of that size from a random place of an image of its own, and the target is the sum of the four targets weighed by area.
ResizeMix shrinks the whole partner to a side of τ ~ U(0.1, 0.8) and pastes it around a centre drawn uniformly.

Choices: each part of RICAP takes its images by a permutation of its own, the first included. ResizeMix pastes into a box cut
off at the border and resizes to what is left of it, as public code does, so the shape may change; resizing takes the nearest
pixel. `mode="batch"` draws sizes and places once for the batch, as the authors do, `mode="elem"` for each image.

Checked against: areas of the pixels that each image holds in the result; RICAP's chance that one image fills everything, by
integration; ResizeMix against torch's `interpolate`.

Cost: no passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fraction, StepContext
from bench_plugins._boxes import anywhere, moved
from bench_plugins._draws import uniform
from bench_plugins.mixing import Alpha, Mode, draw_partners, draw_shares, draws, mix_targets

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Ricap:
    """Puts an image together from crops of four."""

    name: ClassVar[str] = "ricap"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Takahashi, Matsubara, Uehara; Data Augmentation using Random Image Cropping and Patching for Deep CNNs; 2018; arXiv:1811.09030"
    )
    claim: ClassVar[str] = "formula verified"

    beta: Alpha = 0.3
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        count, generator = draws(self.mode, batch), context.generator
        down = (height * draw_shares(self.beta, 1.0, count, generator)).round().long()
        across = (width * draw_shares(self.beta, 1.0, count, generator)).round().long()
        images = torch.stack([draw_partners(batch, generator) for _ in range(4)]).to(batch.inputs.device)  # (4, B)
        rows = _places(down, height, generator)  # (n, 4, H): upper left, upper right, lower left, lower right
        columns = _places(across, width, generator)
        lower, right = torch.arange(height) >= down[:, None], torch.arange(width) >= across[:, None]
        part = (2 * lower.long()[:, :, None] + right.long()[:, None, :]).to(batch.inputs.device)  # (n, H, W) in 0 … 3
        return batch.replace(inputs=_patched(batch.inputs, images, part, rows, columns), targets=_weighed(batch.targets, images, part))


def _places(splits: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(n, 2, 2, size) where along one axis the crop of (first or second part, copy) reads what it shows at each position."""
    lengths = torch.stack([splits, size - splits], 1)[:, :, None]  # (n, 2, 1)
    starts = (torch.rand(len(splits), 2, 2, generator=generator) * (size - lengths + 1)).long()
    begins = torch.stack([torch.zeros_like(splits), splits], 1)[:, :, None]
    return (torch.arange(size) + (starts - begins)[..., None]).clamp(0, size - 1)


def _patched(inputs: Tensor, images: Tensor, part: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) each pixel read from the image and the place of its part."""
    height, width = inputs.shape[2:]
    part = part.expand(len(inputs), -1, -1)
    lower, right = part // 2, part % 2
    own = torch.arange(len(inputs), device=inputs.device).view(-1, 1, 1)
    down = torch.arange(height, device=inputs.device).view(1, -1, 1)
    across = torch.arange(width, device=inputs.device).view(1, 1, -1)
    rows = rows.to(inputs.device).expand(len(inputs), -1, -1, -1)[own, lower, right, down]
    columns = columns.to(inputs.device).expand(len(inputs), -1, -1, -1)[own, right, lower, across]
    return inputs.permute(0, 2, 3, 1)[images[part, own], rows, columns].permute(0, 3, 1, 2)


def _weighed(targets: Tensor, images: Tensor, part: Tensor) -> Tensor:
    """(B, K) the targets of the four images, weighed by the area of their part."""
    areas = torch.stack([(part == number).to(targets.dtype).mean((1, 2)) for number in range(4)])  # (4, n)
    return (areas.unsqueeze(2) * targets[images]).sum(0)


@dataclass(frozen=True)
class ResizeMix:
    """Pastes the whole of another image, made smaller."""

    name: ClassVar[str] = "resizemix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Qin, Fang, Zhang, Liu, Wang, Wang; ResizeMix: Mixing Data with Preserved Object Information and True Labels; 2020; arXiv:2012.11101"
    )
    claim: ClassVar[str] = "formula verified"

    min_scale: Share = 0.1
    max_scale: Share = 0.8
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        count, generator = draws(self.mode, batch), context.generator
        scales = uniform(self.min_scale, self.max_scale, count, generator)
        scales = scales * (torch.rand(count, generator=generator) < self.prob)
        target = anywhere((scales * height).long(), (scales * width).long(), height, width, generator).on(batch.inputs.device)
        partners = draw_partners(batch, generator)
        zeros = torch.zeros_like(target.top)
        whole = target._replace(top=zeros, bottom=zeros + height, left=zeros, right=zeros + width)
        pasted = moved(batch.inputs[partners], whole, target, "nearest")
        inputs = torch.where(target.cover(height, width), pasted, batch.inputs)
        kept = (1 - target.areas / (height * width)).expand(len(batch))
        return batch.replace(inputs=inputs, targets=mix_targets(batch.targets, partners, kept))


@hookimpl
def register_augmenters(register: Any) -> None:
    register(Ricap)
    register(ResizeMix)
