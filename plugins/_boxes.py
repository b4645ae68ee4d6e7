"""Shared by the augmenters that cut and paste: boxes in pixels, one per image or one for all, without a loop over images."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Boxes(NamedTuple):
    """Boxes as whole numbers (n,) each; `bottom` and `right` lie just outside."""

    top: Tensor
    bottom: Tensor
    left: Tensor
    right: Tensor

    @property
    def areas(self) -> Tensor:
        return (self.bottom - self.top) * (self.right - self.left)

    def on(self, device: torch.device) -> Boxes:
        return Boxes(*(edge.to(device) for edge in self))

    def select(self, rows: Tensor) -> Boxes:
        return Boxes(*(edge[rows] for edge in self))

    def cover(self, height: int, width: int) -> Tensor:
        """(n, 1, H, W) True inside the box."""
        rows = between(self.top, self.bottom, height)
        columns = between(self.left, self.right, width)
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


def between(first: Tensor, last: Tensor, size: int) -> Tensor:
    """(n, size) True from `first` up to and without `last`."""
    positions = torch.arange(size, device=first.device)
    return (positions >= first[:, None]) & (positions < last[:, None])


def window_sums(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, H, W) at each pixel the sum over a window of the map; row y of `rows` (H, H) is True on the rows its window has."""
    return rows.to(maps) @ maps @ columns.to(maps).T


def around(rows: Tensor, columns: Tensor, heights: Tensor, widths: Tensor, height: int, width: int) -> Boxes:
    """Boxes that reach half their size to both sides of (row, column), cut off at the border; odd sizes lose a pixel."""
    half_height, half_width = heights // 2, widths // 2
    return Boxes(
        (rows - half_height).clamp(0, height),
        (rows + half_height).clamp(0, height),
        (columns - half_width).clamp(0, width),
        (columns + half_width).clamp(0, width),
    )


def anywhere(heights: Tensor, widths: Tensor, height: int, width: int, generator: torch.Generator) -> Boxes:
    """Boxes of the given sizes around centres drawn uniformly over the pixels, cut off at the border."""
    rows = torch.randint(height, heights.shape, generator=generator)
    columns = torch.randint(width, heights.shape, generator=generator)
    return around(rows, columns, heights, widths, height, width)


def moved(images: Tensor, source: Boxes, target: Boxes, interpolation: Literal["bilinear", "nearest"]) -> Tensor:
    """(B, C, H, W) whose target box shows what the source box of the image shows, resized; of no meaning elsewhere.

    Bilinear puts the corner pixels of the two boxes on one another; nearest rounds down.
    """
    rows = _resizing(source.top, source.bottom, target.top, target.bottom, images.shape[2], interpolation).to(images)
    columns = _resizing(source.left, source.right, target.left, target.right, images.shape[3], interpolation).to(images)
    return (rows.unsqueeze(1) @ images @ columns.unsqueeze(1).mT).clamp(0, 1)  # Rounding may leave [0, 1] by an ulp.


def _resizing(start: Tensor, stop: Tensor, to_start: Tensor, to_stop: Tensor, size: int, interpolation: str) -> Tensor:
    """(n, size, size) row p holds the weights of the source pixels that make target pixel p."""
    positions = torch.arange(size, device=start.device)
    steps = (positions - to_start[:, None]).float()
    length, to_length = (stop - start)[:, None], (to_stop - to_start)[:, None]
    if interpolation == "nearest":
        places = start[:, None] + (steps * length / to_length.clamp(min=1)).floor()
    else:
        places = start[:, None] + steps * (length - 1) / (to_length - 1).clamp(min=1)
    places = torch.minimum(torch.maximum(places, start[:, None]), stop[:, None] - 1)
    return (1 - (places.unsqueeze(2) - positions).abs()).clamp(min=0)
