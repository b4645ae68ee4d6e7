"""RISE: show the network random parts of an image, thousands of times, and see which parts keep its confidence up.

Paper: a mask starts as a small grid of cells, each 1 with probability p and 0 otherwise. The grid is enlarged bilinearly to one cell
more than the image and cropped at a random shift, so that edges fall everywhere. With N masks m and the target's probability f,
S = Σ f(x ⊙ m) · m / (N p). `rise` has the sizes of the authors' notebook (N 6000, 8 × 8 cells, p 0.1), `rise-8000` those of the
comparison in the SISE paper (N 8000, 7 × 7 cells, p 0.5).

Choices: hidden pixels take the model's mean colour, which is the zero of the authors' code; `fill` changes that. Every image has
masks of its own, from its own generator, where the authors' code uses one set for all images: so the chance in the masks is
independent from image to image and an interval over images covers it. `rise-per-pixel` divides by Σ m at each pixel instead of by
its expectation N p, which takes away the chance in how often a pixel was shown. Grids are enlarged as torch does it (half-pixel
centres, edges repeated).

Checked against: all sixteen masks of a 2 × 2 image, worked out one by one; a linear score, whose map is known in closed form; a
constant score; masks enlarged and cropped by torch one at a time; sums over masks held in full.

Cost: N forward passes per image. Beside the current chunk of masked images only the grids of one image are held, one byte a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.contexts import forward
from bench.interfaces import ExplainContext, Fill


@dataclass(frozen=True)
class Rise:
    """Random masks weighted by the confidence that is left when only they are shown."""

    masks: Annotated[int, Field(ge=1)] = 6000
    cells: Annotated[int, Field(ge=1)] = 8
    probability: Annotated[float, Field(gt=0, le=1)] = 0.1
    normalise: Literal["expected", "per-pixel"] = "expected"
    fill: Fill = "mean"

    name: ClassVar[str] = "rise"
    quick: ClassVar[dict[str, int]] = {"masks": 40}
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Petsiuk, Das, Saenko; RISE: Randomized Input Sampling for Explanation of Black-box Models; BMVC 2018; arXiv:1806.07421"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """Returns (B, 1, H, W), zero or above: the target's mean probability over the masks that show a pixel.

        One image at a time: its thousands of masks fill the chunks by themselves, and no neighbour enters its batches.
        """
        hidden = context.fill(self.fill, inputs)
        enlarge = [enlargement(self.cells, length).to(inputs) for length in inputs.shape[2:]]
        maps = []
        for image, behind, target, generator in zip(inputs, hidden, targets, context.generators, strict=True):
            masks = Masks(*self.draw(inputs.shape[2:], generator), *enlarge)
            scores = self.scores(model, image, behind, target, masks, context)
            maps.append(self.weigh(masks, scores))
        return torch.stack(maps)

    def draw(self, size: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Grids (N, s, s) of True and False, and by how much each is shifted down and across (N, 2), less than a cell."""
        grids = torch.rand(self.masks, self.cells, self.cells, generator=generator) < self.probability
        shifts = [torch.randint(cell_length(self.cells, length), (self.masks,), generator=generator) for length in size]
        return grids, torch.stack(shifts, dim=1)

    def scores(self, model: nn.Module, image: Tensor, behind: Tensor, target: Tensor, masks: Masks, context: ExplainContext) -> Tensor:
        """(N,) the target's probability with only each mask's part of the image shown."""
        scores = []
        for part in torch.arange(len(masks.grids)).tensor_split(math.ceil(len(masks.grids) / context.chunk)):
            shown = torch.lerp(behind, image, masks.drawn(part))  # (n, C, H, W)
            scores.append(context.probability(forward(model, shown, context.chunk))[:, target])
        return torch.cat(scores)

    def weigh(self, masks: Masks, scores: Tensor) -> Tensor:
        """(1, H, W) Σ score · mask, divided by N p or by Σ mask."""
        weighted = masks.weighted_sum(scores)
        if self.normalise == "expected":
            return weighted / (len(scores) * self.probability)
        return weighted / masks.weighted_sum(torch.ones_like(scores)).clamp_min(torch.finfo(weighted.dtype).tiny)


class Masks(NamedTuple):
    """The masks of one image before they are drawn out to its size.

    grids (N, s, s) bool and shifts (N, 2) stay on the CPU; rows (shifts, s, H) and columns (shifts, s, W) say how much of each
    cell each pixel takes, for every shift.
    """

    grids: Tensor
    shifts: Tensor
    rows: Tensor
    columns: Tensor

    def drawn(self, part: Tensor) -> Tensor:
        """(n, 1, H, W) some of the masks, in [0, 1]: grid · rows · columns, which is the bilinear enlargement, cropped."""
        down, across = self.shifts[part].to(self.rows.device).unbind(1)
        grids = self.grids[part].to(self.rows)
        return torch.einsum("nih,nij,njw->nhw", self.rows[down], grids, self.columns[across]).unsqueeze(1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """(1, H, W) Σ weight · mask.

        A mask is linear in its grid, so grids of the same shift are added before they are enlarged: the masks need not be drawn
        again, and the sum cannot depend on how they were chunked.
        """
        shape = (len(self.rows), len(self.columns), *self.grids.shape[1:])
        sums = torch.zeros(shape, dtype=torch.float64).flatten(0, 1)
        places = self.shifts[:, 0] * len(self.columns) + self.shifts[:, 1]
        sums.index_add_(0, places, weights.cpu().double().view(-1, 1, 1) * self.grids)
        return torch.einsum("yih,yxij,xjw->hw", self.rows, sums.view(shape).to(self.rows), self.columns).unsqueeze(0)


def enlargement(cells: int, length: int) -> Tensor:
    """(shifts, cells, length): how much of each cell each pixel takes, for each shift of the enlarged grid along one axis."""
    cell = cell_length(cells, length)
    whole = F.interpolate(torch.eye(cells).unsqueeze(0), size=(cells + 1) * cell, mode="linear", align_corners=False)[0]
    return whole.unfold(1, length, 1)[:, :cell].transpose(0, 1).contiguous()


def cell_length(cells: int, length: int) -> int:
    """Pixels of a cell, so that the cells cover the axis."""
    return math.ceil(length / cells)


@hookimpl
def register_explainers(register) -> None:
    register(Rise)
    register(Rise, name="rise-8000", masks=8000, cells=7, probability=0.5)
    register(Rise, name="rise-per-pixel", normalise="per-pixel")
