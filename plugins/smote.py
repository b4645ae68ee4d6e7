"""SMOTE: classes with few images are filled up with points on the lines between neighbouring images of the class.

Paper: for an image of a minority class, one of its k = 5 nearest neighbours of the same class is drawn, and x + u (x' - x) with
u ~ U(0, 1) is added to the class, until the classes are balanced.

Choices: neighbours are nearest in the Euclidean distance of the pixels, before crops and flips. The images to start from are
drawn with replacement. Every class is filled up to the largest. The images are made at the end of the first epoch, which the
first epoch therefore goes without, and stay; they are stored in 8 bits. A class of one image repeats it. One label per image; on
balanced data the method does nothing.

Checked against: balance, labels, every new image on a line between an image and one of its nearest neighbours by brute force.

Cost: no passes; the distances within each class that is filled up, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import ArrayData, Batch, StepContext
from bench_plugins._draws import single_label

ROWS = 256  # Images whose distances to their class are held at once.


@dataclass(frozen=True)
class Smote:
    """Fills up small classes with images between neighbours."""

    name: ClassVar[str] = "smote"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Chawla, Bowyer, Hall, Kegelmeyer; SMOTE: Synthetic Minority Over-sampling Technique; JAIR 2002"
    claim: ClassVar[str] = "formula verified"

    k: Annotated[int, Field(ge=1)] = 5

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        single_label(self.name, context)
        return batch

    def end_epoch(self, model: nn.Module, data: Any, context: StepContext) -> ArrayData | None:
        """The images that balance the classes, after the first epoch."""
        if context.epoch > 0:
            return None
        labels = data.labels[data.indices]
        counts = torch.bincount(labels, minlength=context.info.num_classes)
        missing = {label: int(counts.max() - count) for label, count in enumerate(counts.tolist()) if 0 < count < counts.max()}
        if not missing:
            return None
        made = [self.made(data.inputs(data.indices[labels == label]), number, context.generator) for label, number in missing.items()]
        added = torch.cat([torch.full((number,), label, dtype=labels.dtype) for label, number in missing.items()])
        return ArrayData(data.info, (torch.cat(made) * 255).round().byte(), added)

    def made(self, images: Tensor, number: int, generator: torch.Generator) -> Tensor:
        """(number, C, H, W) on lines between images (n, C, H, W) and their neighbours."""
        chosen = torch.randint(len(images), (number,), generator=generator)
        neighbours = nearest(images.flatten(1), chosen, min(self.k, len(images) - 1))
        if not neighbours.shape[1]:
            return images[chosen]
        drawn = torch.randint(neighbours.shape[1], (number, 1), generator=generator)
        others = images[neighbours.gather(1, drawn).squeeze(1)]
        return torch.lerp(images[chosen], others, torch.rand(number, 1, 1, 1, generator=generator))


def nearest(points: Tensor, chosen: Tensor, k: int) -> Tensor:
    """(n, k) the nearest other points of the chosen ones."""
    found = []
    for rows in chosen.split(ROWS):
        distances = torch.cdist(points[rows], points)
        distances[torch.arange(len(rows)), rows] = torch.inf
        found.append(distances.topk(k, dim=1, largest=False).indices)
    return torch.cat(found)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(Smote)
