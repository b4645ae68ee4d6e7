"""Mixing by class activation: maps of the true class say how much a part is worth, or which part of an image to take.

Paper: SnapMix draws two boxes of CutMix's kind, λ and λ' ~ Beta(5, 5), resizes the second box of x' into the first of x, and
weighs the targets by the maps S, made non-negative and of sum 1: 1 - the sum of S inside the first box for x, the sum of S'
inside the second for x'; the two need not add up to 1. Intra-class Part Swapping takes the box around the map of another image
of the same class, resizes it into the box around the image's own map, and keeps the target. Attribute Mix finds the most
discriminative region of an image, hides it and looks again, several times; one of these attributes of x' is pasted at its place
into x, and the targets are mixed by its area.

Differs from the paper: SnapMix's map is that of eval mode, from any explainer; signed Grad-CAM equals the class activation map of
a network with average pooling and one linear layer, up to a factor that the sum removes. Its authors' code counts a pair of one
class twice; here its weight is the sum of both. A step divides by the sum of the rows' weights, the authors by their number. Part
Swapping and Attribute Mix are from short descriptions, and no code of their authors was read. Attribute Mix trains on a class for
each attribute of each class, which the targets here have no place for.

Choices: targets always add up to 1, so the sum of SnapMix's two weights goes into the weight of the row. The region of an image
is where its map, brought to [0, 1], is at least `threshold`; Part Swapping takes the box around it. A constant map counts as the
area in SnapMix, as the whole image in Part Swapping, and as no attribute in Attribute Mix. Part Swapping's other image is drawn
from the batch, and an image alone in its class stays as it is. Attribute Mix finds 3 attributes, which the short description
leaves open, and draws one of them for the whole batch. One label per image.

Checked against: maps, boxes and weights worked out by hand with stub explainers, torch's `interpolate` for the resizing.

Cost: the explainer's passes, for each image; for Attribute Mix twice on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Explaining, Fill, Fraction, StepContext
from bench_plugins._boxes import Boxes, anywhere, moved
from bench_plugins._draws import mix_by, single_label
from bench_plugins.edda import unit_range
from bench_plugins.mixing import Alpha, Mode, draw_partners, draw_shares, draws, mix_targets


@dataclass(frozen=True)
class SnapMix:
    """Pastes a resized box and weighs the targets by what the boxes mean to the network."""

    name: ClassVar[str] = "snapmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Huang, Wang, Tao; SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data; AAAI 2021; arXiv:2012.04846"
    claim: ClassVar[str] = "formula verified"

    explainer: Explaining = "gradcam-signed"
    alpha: Alpha = 5.0
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        single_label(self.name, context)
        height, width = batch.inputs.shape[2:]
        count, device = draws(self.mode, batch), batch.inputs.device
        target = boxes_of(draw_shares(self.alpha, self.prob, count, context.generator), height, width, context).on(device)
        source = boxes_of(draw_shares(self.alpha, 1.0, count, context.generator), height, width, context).on(device)
        used = (target.areas > 0) & (source.areas > 0)  # (n,)
        if not used.any():
            return batch
        partners = draw_partners(batch, context.generator)
        maps = shares_of_sum(context.explain(model, batch.inputs, batch.labels))
        covered = target.cover(height, width) & used.view(-1, 1, 1, 1)
        inputs = torch.where(covered, moved(batch.inputs[partners], source, target, "bilinear"), batch.inputs)
        own = 1 - (maps * covered).sum((1, 2, 3))
        other = (maps[partners] * (source.cover(height, width) & used.view(-1, 1, 1, 1))).sum((1, 2, 3))
        # An ulp below 0 is a box that covers the whole map.
        own, total = own.clamp(min=0), (own.clamp(min=0) + other).clamp(min=torch.finfo(own.dtype).eps)
        targets = mix_targets(batch.targets, partners, own / total)
        return batch.replace(inputs=inputs, targets=targets, weights=batch.weights * total)


def boxes_of(shares: Tensor, height: int, width: int, context: StepContext) -> Boxes:
    """CutMix's boxes, at places of their own."""
    sides = (1 - shares).sqrt()
    return anywhere((height * sides).long(), (width * sides).long(), height, width, context.generator)


def shares_of_sum(maps: Tensor) -> Tensor:
    """(B, 1, H, W) non-negative and of sum 1 for each image; the same everywhere where the map is constant."""
    maps = maps - maps.amin((1, 2, 3), keepdim=True)
    sums = maps.sum((1, 2, 3), keepdim=True)
    return torch.where(sums > 0, maps / sums.where(sums > 0, 1), 1 / maps[0].numel())


@dataclass(frozen=True)
class IntraClassPartSwapping:
    """Pastes the important part of another image of the same class over the important part of this one."""

    name: ClassVar[str] = "intrapart"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Zhang, Huang, Liu; Intra-class Part Swapping for Fine-Grained Image Classification; WACV 2021"
    claim: ClassVar[str] = "unverified"

    explainer: Explaining = "gradcam"
    threshold: Fraction = 0.5

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        single_label(self.name, context)
        height, width = batch.inputs.shape[2:]
        partners = partners_of_class(batch.labels, context.generator)
        boxes = bounding_boxes(unit_range(context.explain(model, batch.inputs, batch.labels)) >= self.threshold)
        pasted = moved(batch.inputs[partners], boxes.select(partners), boxes, "bilinear")
        alone = (partners == torch.arange(len(batch), device=partners.device)).view(-1, 1, 1, 1)
        return batch.replace(inputs=torch.where(boxes.cover(height, width) & ~alone, pasted, batch.inputs))


def partners_of_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) another row of the same class for each row; the row itself where there is none."""
    same = (labels[:, None] == labels).cpu()
    ranks = torch.rand(same.shape, generator=generator).masked_fill(~same, -1).fill_diagonal_(-0.5)
    return ranks.argmax(1).to(labels.device)


def bounding_boxes(regions: Tensor) -> Boxes:
    """The smallest box around the True pixels of each (B, 1, H, W); the whole image where there are none."""
    rows, columns = regions.any(3).squeeze(1).int(), regions.any(2).squeeze(1).int()
    return Boxes(*_extent(rows), *_extent(columns))


def _extent(filled: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) twice: the first filled position, and one after the last."""
    return filled.argmax(1), filled.shape[1] - filled.flip(1).argmax(1)


@dataclass(frozen=True)
class AttributeMix:
    """Pastes one attribute of another image: its first, second or third most discriminative region."""

    name: ClassVar[str] = "attributemix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Li, Zhang, Xiong, Tian; Attribute Mix: Semantic Data Augmentation for Fine Grained Recognition; VCIP 2020; arXiv:2004.02684"
    )
    claim: ClassVar[str] = "unverified"

    explainer: Explaining = "gradcam"
    attributes: Annotated[int, Field(ge=1)] = 3
    threshold: Fraction = 0.5
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        single_label(self.name, context)
        partners = draw_partners(batch, context.generator)
        number = int(torch.randint(self.attributes, (), generator=context.generator))
        attribute = self.attribute(number, model, batch, context)
        return mix_by(~attribute[partners], batch, partners)

    def attribute(self, number: int, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """(B, 1, H, W) True on the region that is found after `number` earlier ones have been hidden."""
        inputs, hidden = batch.inputs, context.fill(self.fill, batch.inputs)
        found = torch.zeros_like(inputs[:, :1], dtype=torch.bool)
        for _ in range(number + 1):
            inputs = torch.where(found, hidden, inputs)
            found = unit_range(context.explain(model, inputs, batch.labels)) >= self.threshold
        return found


@hookimpl
def register_augmenters(register: Any) -> None:
    register(SnapMix)
    register(IntraClassPartSwapping)
    register(AttributeMix)
