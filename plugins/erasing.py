"""Erasing: part of every image is hidden and its target stays, so that the network learns from the rest.

Paper: Cutout hides a square of fixed size around a centre drawn uniformly over the pixels and cuts it off at the border.
Random Erasing hides, with probability 1/2, a rectangle inside the image: its area a share U(0.02, 0.4) of the image, its
aspect ratio between 0.3 and 1/0.3. Hide-and-Seek draws a cell size for each image (one of the choices hides nothing) and hides
each cell of that grid with probability 1/2. GridMask hides the squares of a grid: with a period of d pixels and a ratio r the
hidden squares have the side d - int(r d + 1/2), the offsets are uniform, the grid is turned by U(0, 360) degrees, and the
share of images that are masked grows linearly during the first 80 % of the training up to 0.8.

Choices: every image has a draw of its own. Lengths, cells and periods are shares of the image's side, so that one setting fits
every image size: Cutout's 16 of 32 pixels (CIFAR-10; 8 for CIFAR-100), the cells 16, 32, 44, 56 and the periods 96 to 223 of
224 pixels. A Cutout square reaches ⌊length/2⌋ to both sides of its centre. Random Erasing draws the logarithm of the aspect
ratio uniformly and the first of 100 candidates that fits is taken; rows without one stay whole. `squares=False` hides
GridMask's stripes instead, which leaves the squares; its ratio of 0.6 is from memory of the paper, the authors' code takes 0.5.
The fills are the papers': the mean colour, and noise for Random Erasing (uniform in [0, 1] for each pixel).

Checked against: mean hidden areas by enumeration of all centres, the ranges of area and aspect, whole cells, the share hidden
by a grid that does not turn counted by hand, and torchvision's rectangles in distribution.

Cost: no passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fill, Fraction, StepContext
from bench_plugins._boxes import Boxes, anywhere
from bench_plugins._draws import hide, uniform

Share = Annotated[float, Field(gt=0, le=1)]
CANDIDATES = 100  # Of the authors' code of Random Erasing.


@dataclass(frozen=True)
class Cutout:
    """Hides a square anywhere in the image."""

    name: ClassVar[str] = "cutout"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "DeVries, Taylor; Improved Regularization of Convolutional Neural Networks with Cutout; 2017; arXiv:1708.04552"
    claim: ClassVar[str] = "formula verified"

    length: Share = 0.5
    n_holes: Annotated[int, Field(ge=1)] = 1
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        sides = torch.full((len(batch) * self.n_holes,), round(self.length * min(height, width)))
        holes = anywhere(sides, sides, height, width, context.generator).cover(height, width)
        hidden = holes.view(len(batch), self.n_holes, height, width).any(1, keepdim=True)
        return hide(batch, hidden.to(batch.inputs.device), self.fill, context)


@dataclass(frozen=True)
class RandomErasing:
    """Hides a rectangle of random size and shape."""

    name: ClassVar[str] = "random-erasing"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Zhong, Zheng, Kang, Li, Yang; Random Erasing Data Augmentation; AAAI 2020; arXiv:1708.04896"
    claim: ClassVar[str] = "formula verified"

    probability: Fraction = 0.5
    min_area: Share = 0.02
    max_area: Share = 0.4
    min_aspect: Annotated[float, Field(gt=0)] = 0.3
    max_aspect: Annotated[float, Field(gt=0)] | None = None  # The inverse of `min_aspect` if none.
    fill: Fill = "noise"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        boxes = self.rectangles(len(batch), height, width, context.generator)
        erased = torch.rand(len(batch), generator=context.generator) < self.probability
        hidden = boxes.cover(height, width) & erased.view(-1, 1, 1, 1)
        return hide(batch, hidden.to(batch.inputs.device), self.fill, context)

    def rectangles(self, count: int, height: int, width: int, generator: torch.Generator) -> Boxes:
        """One rectangle per image, strictly smaller than it; empty where no candidate fits."""
        areas = height * width * uniform(self.min_area, self.max_area, (count, CANDIDATES), generator)
        widest = math.log(self.max_aspect or 1 / self.min_aspect)
        aspects = uniform(math.log(self.min_aspect), widest, (count, CANDIDATES), generator).exp()
        heights, widths = (areas * aspects).sqrt().round().long(), (areas / aspects).sqrt().round().long()
        fits = (heights < height) & (widths < width)
        first = fits.int().argmax(1, keepdim=True)
        found = fits.any(1)
        tall, wide = heights.gather(1, first).squeeze(1) * found, widths.gather(1, first).squeeze(1) * found
        top = (torch.rand(count, generator=generator) * (height - tall + 1)).long()
        left = (torch.rand(count, generator=generator) * (width - wide + 1)).long()
        return Boxes(top, top + tall, left, left + wide)


@dataclass(frozen=True)
class HideAndSeek:
    """Hides half of the cells of a grid."""

    name: ClassVar[str] = "hide-and-seek"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Singh, Yu, Sarmasi, Pradeep, Lee; Hide-and-Seek: A Data Augmentation Technique for "
        "Weakly-Supervised Localization and Beyond; 2018; arXiv:1811.02545"
    )
    claim: ClassVar[str] = "formula verified"

    grid_sizes: tuple[Fraction, ...] = (0, 16 / 224, 32 / 224, 44 / 224, 56 / 224)
    hide_prob: Fraction = 0.5
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        side = min(height, width)
        sizes = torch.tensor([max(1, round(share * side)) if share else side for share in self.grid_sizes])
        choice = torch.randint(len(sizes), (len(batch),), generator=context.generator)
        cells = sizes[choice].view(-1, 1, 1)
        most = -(-max(height, width) // int(sizes.min()))  # Cells along the longer side of the finest grid.
        table = torch.rand(len(batch), most, most, generator=context.generator) < self.hide_prob
        rows, columns = torch.arange(height).view(1, -1, 1) // cells, torch.arange(width).view(1, 1, -1) // cells
        hidden = table[torch.arange(len(batch)).view(-1, 1, 1), rows, columns]  # (B, H, W)
        hidden &= torch.tensor([share > 0 for share in self.grid_sizes])[choice].view(-1, 1, 1)
        return hide(batch, hidden.unsqueeze(1).to(batch.inputs.device), self.fill, context)


@dataclass(frozen=True)
class GridMask:
    """Hides the squares of a turned grid."""

    name: ClassVar[str] = "gridmask"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Chen, Liu, Zhao, Jia; GridMask Data Augmentation; 2020; arXiv:2001.04086"
    claim: ClassVar[str] = "formula verified"

    d1: Share = 96 / 224
    d2: Share = 1.0
    ratio: Fraction = 0.6
    rotate: Annotated[int, Field(ge=0, le=360)] = 360
    squares: bool = True
    prob: Fraction = 0.8
    ramp: Fraction = 0.8  # Share of the training until `prob` is reached.
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        prob = self.prob * min(1.0, context.progress / self.ramp) if self.ramp else self.prob
        height, width = batch.inputs.shape[2:]
        hidden = self.hidden(len(batch), height, width, context.generator)
        hidden &= (torch.rand(len(batch), generator=context.generator) < prob).view(-1, 1, 1)
        return hide(batch, hidden.unsqueeze(1).to(batch.inputs.device), self.fill, context)

    def hidden(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """(n, H, W) True where a grid of its own hides each image."""
        side = min(height, width)
        low = max(2, round(self.d1 * side))
        periods = torch.randint(low, max(low + 1, round(self.d2 * side)), (count, 1, 1), generator=generator)
        stripes = (periods * self.ratio + 0.5).long()
        offsets = (torch.rand(2, count, 1, 1, generator=generator) * periods).long()
        angles = torch.randint(max(1, self.rotate), (count, 1, 1), generator=generator) * (math.pi / 180)
        # The grid is unbounded, so turning the pixels about the centre needs no larger canvas.
        y = torch.arange(height).view(1, -1, 1) - (height - 1) / 2
        x = torch.arange(width).view(1, 1, -1) - (width - 1) / 2
        rows = (angles.cos() * y + angles.sin() * x + height / 2).floor().long()
        columns = (angles.cos() * x - angles.sin() * y + width / 2).floor().long()
        striped = ((rows - offsets[0]) % periods < stripes) | ((columns - offsets[1]) % periods < stripes)
        return ~striped if self.squares else striped


@hookimpl
def register_augmenters(register: Any) -> None:
    register(Cutout)
    register(RandomErasing)
    register(HideAndSeek)
    register(GridMask)
