"""Whether the map points at the object, where the data say where the object is.

Paper: S is the map, rescaled to [0, 1] per image, and G the object's region. `energy-pointing-game` is the share of S that lies
in G. `pointing-game` is a hit where the largest value lies in G, taken per class and then averaged over classes. `miou` compares
G with the top 20 % of the pixels by intersection over union; `bbox` is the share of G's area that the equally large top of the
map covers (SISE).

Choices: G is the union of the object's masks, or, where the data have none, of its boxes without those marked difficult; an image
that is left with no region is not scored. Of images with several labels G is made of the objects of the explained class, where the
data say which those are (masks by class, or boxes with a class); one without such an object is not scored. Regions and maps are
compared at the size of the network's images. A constant map counts as even: its energy is spread over the whole image.
`pointing-game` forgives nothing; `pointing-game-15` forgives fewer than 15 pixels, as TorchRay does on larger images. Equal values
are taken by position. Of images with one label, a wrong prediction is scored like a right one: what is asked is whether the map lies
on the object.

Checked against: regions whose answers follow by counting: an even map, a map equal to the region, a map beside it.

Cost: none; the maps are there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Explained, MetricContext
from bench_plugins._scoring import places, share_of

SISE = (
    "Sattarzadeh, Sudhakar, Lem, et al.; Explaining Convolutional Neural Networks through Attribution-Based Input Sampling and "
    "Block-Wise Feature Aggregation; AAAI 2021; arXiv:2010.00672"
)


@dataclass(frozen=True)
class _OfTheRegion:
    """What the metrics of this family share."""

    version: ClassVar[int] = 1
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "localisation"
    unit: ClassVar[str] = "share"
    needs: ClassVar[tuple[str, ...]] = ("attributions", "masks", "boxes")  # Either of the last two.


@dataclass(frozen=True)
class EnergyPointingGame(_OfTheRegion):
    """The share of the map's energy that lies on the object."""

    name: ClassVar[str] = "energy-pointing-game"
    paper: ClassVar[str] = (
        "Wang et al.; Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks; CVPRW 2020; arXiv:1910.01279"
    )

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) in [0, 1]."""
        maps, inside = explained.attributions.flatten(1), region(explained)
        energy = maps - maps.amin(1, keepdim=True)
        energy = torch.where(energy.amax(1, keepdim=True) > 0, energy, 1)
        return scored((energy * inside).sum(1) / energy.sum(1), inside)


@dataclass(frozen=True)
class PointingGame(_OfTheRegion):
    """How often the largest value of the map lies on the object, class by class."""

    name: ClassVar[str] = "pointing-game"
    version: ClassVar[int] = 2  # 1 had an interval that was too narrow where classes have few images.
    paper: ClassVar[str] = "Zhang et al.; Top-down Neural Attention by Excitation Backprop; ECCV 2016; arXiv:1608.00507"
    unit: ClassVar[str] = "%"

    tolerance: Annotated[float, Field(ge=0)] = 0.0

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, 2) 100 for a hit or 0, then the explained class."""
        inside = region(explained)
        reached = inside & self._within_reach(explained.attributions)
        hit = scored(100 * reached.any(1).float(), inside)
        return torch.stack([hit, explained.targets.to(hit)], dim=1)

    def _within_reach(self, maps: Tensor) -> Tensor:
        """(B, H*W) the pixels nearer to the map's first largest value than the tolerance, that pixel among them."""
        width, pixels = maps.shape[-1], torch.arange(maps[0].numel(), device=maps.device)
        largest = places(maps).argmin(1, keepdim=True)
        squared = (pixels // width - largest // width) ** 2 + (pixels % width - largest % width) ** 2
        return (squared < self.tolerance**2) | (squared == 0)

    def values(self, rows: Tensor) -> Tensor:
        return rows[:, 0]

    def aggregate(self, rows: Tensor) -> float:
        """The mean over classes of each class's mean."""
        rows = rows[rows[:, 0].isfinite()]
        per_class = [rows[rows[:, 1] == label, 0].mean() for label in rows[:, 1].unique()]
        return float(torch.stack(per_class).mean()) if per_class else float("nan")

    def shares(self, rows: Tensor) -> Tensor:
        """(n,) of the images with an object, so that their mean is the number: classes keep their weight when images are drawn again."""
        rows = rows[rows[:, 0].isfinite()]
        _, own, counts = rows[:, 1].unique(return_inverse=True, return_counts=True)
        return rows[:, 0] * len(rows) / (len(counts) * counts[own])


@dataclass(frozen=True)
class MeanIntersectionOverUnion(_OfTheRegion):
    """The overlap of the object with the map's top 20 %, intersection over union."""

    name: ClassVar[str] = "miou"
    paper: ClassVar[str] = SISE

    keep: Annotated[float, Field(gt=0, le=1)] = 0.2

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) in [0, 1]."""
        inside = region(explained)
        pointed = top(explained.attributions, share_of(inside.shape[1], self.keep))
        return scored((pointed & inside).sum(1) / (pointed | inside).sum(1), inside)


@dataclass(frozen=True)
class Bbox(_OfTheRegion):
    """The share of the object covered by as large a top of the map."""

    name: ClassVar[str] = "bbox"
    paper: ClassVar[str] = SISE

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) in [0, 1]."""
        inside = region(explained)
        area = inside.sum(1, keepdim=True)
        return scored((top(explained.attributions, area) & inside).sum(1) / area.squeeze(1), inside)


def region(explained: Explained) -> Tensor:
    """(B, H*W) bool: where the object is, by its masks or else its boxes."""
    masks = explained.masks
    if masks is not None:
        rows = torch.arange(len(masks), device=masks.device)
        return (masks[rows, explained.targets] if masks.shape[1] > 1 else masks).flatten(1)
    boxes = [of_class(image, int(target)) for image, target in zip(explained.boxes, explained.targets, strict=True)]
    return inside_boxes(boxes, explained.inputs.shape[-2:]).to(explained.inputs.device)


def of_class(boxes: Tensor, target: int) -> Tensor:
    """(M, 5) the boxes of this class, where a sixth column says of which class each is; else all."""
    return boxes[boxes[:, 5] == target, :5] if boxes.shape[1] > 5 else boxes


def inside_boxes(boxes: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """(B, H*W) the pixels whose centres lie in a box that is not marked difficult."""
    rows, columns = (torch.arange(length) + 0.5 for length in size)
    regions = []
    for image in boxes:
        x0, y0, x1, y1, difficult = image.cpu().float().view(-1, 5, 1, 1).unbind(1)  # (M, 1, 1) each
        across, down = (x0 <= columns) & (columns < x1), (y0 <= rows[:, None]) & (rows[:, None] < y1)
        regions.append((across & down & (difficult == 0)).any(0).flatten())
    return torch.stack(regions)


def top(maps: Tensor, count: int | Tensor) -> Tensor:
    """(B, H*W) the `count` largest pixels of each map; a count for all, or one for each image (B, 1)."""
    return places(maps) < count


def scored(values: Tensor, inside: Tensor) -> Tensor:
    """The values, and not a number for an image without a region."""
    return torch.where(inside.any(1), values, torch.nan)


@hookimpl
def register_metrics(register: Register) -> None:
    register(EnergyPointingGame)
    register(PointingGame)
    register(PointingGame, name="pointing-game-15", tolerance=15)
    register(MeanIntersectionOverUnion)
    register(Bbox)
