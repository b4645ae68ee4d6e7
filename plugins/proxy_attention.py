"""Proxy Attention: at a few moments, mistaken training images come back with what misled the network darkened.

Paper: in a proxy round the images that the network gets wrong are gathered, and of the first ceil(subset · n) of these a map g of the class
that it gives them is made and scaled to [0, 1]. The proxy is (1 - weight · g) · v where g > threshold and v elsewhere, v the image in [0, 1],
and has the image's own label. The final thesis' formula is taken; the draft's, (1 - weight) · g · v, darkens most what was looked at least.

Differs from the paper: in the published code every round splits training and validation images anew, so that accuracy grows with the
number of rounds even without proxies, and by default the proxies are deleted before anything is trained on them. Here the split is
the run's own and never changes. `protocol = "fair"` keeps the proxies of every round to the end. "reference" drops them at the
next round that makes others, as the code clears its folder; the code's new splits, new optimiser for each round, mistakes in training mode and
lossy files have no counterpart on a fixed split and are left out, so its published accuracies cannot come out. The code can also
put one value (the mean, the largest, the smallest) in the place of the pixels; that value is taken from the map by mistake,
nothing published uses it, and it is left out.

Choices: mistakes are those of eval mode on the whole training images, neither cropped nor mirrored, in a random order drawn for
the round; proxies are made of the same, stored in 8 bits, and cropped and mirrored like any image when trained on. Only the
dataset's own images become proxies, and they stay beside them. `rounds` are shares of the training, by default after 5, 15, 25 and
35 of 40 epochs; a round belongs to the end of the epoch that begins there, and one after the last epoch is left out.
`proxy-control` (weight 0) has the same rounds and adds the mistaken images unchanged: what it gains, darkening has no part in.
On a fixed split a round that adds nothing changes nothing, so the arm without proxies is `none`.

Checked against: factors worked out by hand, images that must not change, order and number of the chosen, and that no validation image
is looked at in any round; resuming between rounds gives the same weights to the bit.

Cost: in each round one forward for every training image and the explainer's passes for every proxy (Grad-CAM: one forward, one
backward that ends at the layer; `proxy-control`: none); from then on each proxy is one more image per epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import ArrayData, Batch, Explaining, Fraction, StepContext
from bench_plugins._draws import single_label
from bench_plugins.edda import unit_range

ROWS = 128  # Images that go through the network together.


@dataclass(frozen=True)
class ProxyAttention:
    """Adds mistaken images with the pixels darkened that the network looked at."""

    name: ClassVar[str] = "proxy-attention"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Mukherjee; Proxy Attention: Comparing and Combining Augmentation with Attention; MSc thesis, University of Groningen 2023"
    claim: ClassVar[str] = "formula verified"

    explainer: Explaining = "gradcam"
    protocol: Literal["fair", "reference"] = "fair"
    rounds: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = (5 / 40, 15 / 40, 25 / 40, 35 / 40)
    threshold: Fraction = 0.85
    weight: Fraction = 0.4
    subset: Fraction = 0.2

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        single_label(self.name, context)
        return batch

    def end_epoch(self, model: nn.Module, data: Any, context: StepContext) -> ArrayData | None:
        """At the end of a round's epoch, the proxies to train on from then on."""
        if context.epoch not in self.epochs(context.epochs):
            return None
        order = data.indices[torch.randperm(len(data.indices), generator=context.generator)]
        wrong, given = mistakes(model, data, order, context)
        count = math.ceil(self.subset * len(wrong) - 1e-9)  # 0.07 x 100 is a little more than 7.
        context.log(proxy_mistakes=len(wrong) / len(order), proxies=count)
        if not count:
            return None
        made = [self.made(model, data, *part, context) for part in zip(wrong[:count].split(ROWS), given[:count].split(ROWS), strict=True)]
        if self.protocol == "fair" and data.extra is not None:
            made.insert(0, data.extra)
        return ArrayData(data.info, torch.cat([part.images for part in made]), torch.cat([part.labels for part in made]))

    def epochs(self, total: int) -> set[int]:
        """The epochs, counted from 0, at whose end a round is held."""
        begins = {int(share * total + 1e-9) for share in self.rounds}
        return begins - {total - 1}

    def made(self, model: nn.Module, data: Any, rows: Tensor, classes: Tensor, context: StepContext) -> ArrayData:
        """The proxies of some images, explained by the classes that the network gives them."""
        images = data.inputs(rows)
        if self.weight:  # Else the map would not be looked at.
            maps = context.explain(model, images.to(device_of(model)), classes.to(device_of(model))).cpu()
            images = darkened(images, unit_range(maps), self.threshold, self.weight)
        return ArrayData(data.info, (images * 255).round().byte(), data.labels[rows])


def darkened(images: Tensor, maps: Tensor, threshold: float, weight: float) -> Tensor:
    """(B, C, H, W) with pixels whose map (B, 1, H, W) is above the threshold multiplied by 1 - weight · map."""
    return torch.where(maps > threshold, (1 - weight * maps) * images, images)


def mistakes(model: nn.Module, data: Any, positions: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """(n,) the positions that the network gets wrong, in their order, and (n,) the classes that it gives them."""
    given = torch.cat([context.predict(model, data.inputs(rows).to(device_of(model))).argmax(1).cpu() for rows in positions.split(ROWS)])
    wrong = given != data.labels[positions]
    return positions[wrong], given[wrong]


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@hookimpl
def register_augmenters(register: Any) -> None:
    register(ProxyAttention)
    register(ProxyAttention, name="proxy-control", weight=0.0)
