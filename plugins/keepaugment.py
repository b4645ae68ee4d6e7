"""KeepAugment: a hidden square spares what the network looks at, or an augmented image gets its most important square back.

Paper: saliency is the largest absolute value over the channels of the logit's gradient by the image. Selective cut draws a
square whose mean saliency is at most the quantile τ of all squares of its size and hides it. Selective paste draws one that is
at least τ, changes the whole image by a policy, and puts the square's original pixels back.

Differs from the paper: there is no public code of the authors. The quantile is from memory of the paper; an unofficial code asks
for a mean below 0.6 of the largest saliency instead, which nearly every square meets. The score is the highest logit, as there.

Choices: the squares are those around every pixel, cut off at the border, compared by their mean. One of the squares that
qualify is drawn with equal chance, which is what drawing until one qualifies does. The network is in eval mode. The version on
half-size images, which costs a quarter, is left out.

Checked against: mean saliencies of all squares by a loop, the quantile by hand, pixels kept and hidden, a linear network whose
gradient is known.

Cost: one forward and one backward per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fill, Fraction, StepContext
from bench_plugins._boxes import Boxes, around, between, window_sums
from bench_plugins._draws import hide
from bench_plugins._gradients import input_gradients
from bench_plugins.policies import AutoAugment, RandAugment, TrivialAugment

PAPER = "Gong, Wang, Li, Chandra, Liu; KeepAugment: A Simple Information-Preserving Data Augmentation Approach; CVPR 2021; arXiv:2011.11778"
POLICIES = {"autoaugment": AutoAugment, "randaugment": RandAugment, "trivialaugment": TrivialAugment}
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class KeepCutout:
    """Hides a square that matters little to the network."""

    name: ClassVar[str] = "keepaugment"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "unverified"

    length: Share = 0.5
    tau: Fraction = 0.6
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        squares = Squares(saliency(model, batch.inputs), self.length)
        box = squares.draw(squares.means <= squares.quantile(self.tau), context.generator)
        return hide(batch, box.cover(*batch.inputs.shape[2:]), self.fill, context)


@dataclass(frozen=True)
class KeepPolicy:
    """Changes an image by a policy and puts back a square that matters to the network."""

    name: ClassVar[str] = "keepaugment-paste"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "unverified"

    policy: Literal["autoaugment", "randaugment", "trivialaugment"] = "autoaugment"
    length: Share = 0.5
    tau: Fraction = 0.6

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        squares = Squares(saliency(model, batch.inputs), self.length)
        box = squares.draw(squares.means >= squares.quantile(self.tau), context.generator)
        changed = POLICIES[self.policy]()(model, batch, context)
        return changed.replace(inputs=torch.where(box.cover(*batch.inputs.shape[2:]), batch.inputs, changed.inputs))


def saliency(model: nn.Module, inputs: Tensor) -> Tensor:
    """(B, H, W) the largest absolute gradient of the highest logit over the channels."""
    return input_gradients(model, inputs, lambda logits: logits.amax(1)).abs().amax(1)


class Squares:
    """The squares of one size around every pixel of each image; `means` (B, H, W) is the mean saliency inside."""

    def __init__(self, saliency: Tensor, length: float) -> None:
        self.height, self.width = saliency.shape[1:]
        self.side = max(2, round(length * min(self.height, self.width)))
        reach = self.side // 2
        rows, columns = (_near(size, reach, saliency) for size in (self.height, self.width))
        self.means = window_sums(saliency, rows, columns) / window_sums(torch.ones_like(saliency[:1]), rows, columns)

    def quantile(self, tau: float) -> Tensor:
        """(B, 1, 1) the value that a share tau of the squares does not exceed."""
        squares = self.means.flatten(1)
        return squares.kthvalue(1 + int(tau * (squares.shape[1] - 1)), dim=1).values.view(-1, 1, 1)

    def draw(self, allowed: Tensor, generator: torch.Generator) -> Boxes:
        """One of the allowed squares (B, H, W) for each image."""
        allowed = allowed.flatten(1).cpu()
        centres = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1).argmax(1).to(self.means.device)
        sides = torch.full_like(centres, self.side)
        return around(centres // self.width, centres % self.width, sides, sides, self.height, self.width)


def _near(size: int, reach: int, like: Tensor) -> Tensor:
    """(size, size) True within `reach` of the diagonal, as `around` has it."""
    centres = torch.arange(size, device=like.device)
    return between(centres - reach, centres + reach, size)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(KeepCutout)
    register(KeepPolicy)
