"""Mixing: each image is mixed with another image of the batch, and the targets in the same proportion.

Paper: mixup, λx + (1-λ)x' for images and targets, λ ~ Beta(α, α). CutMix pastes a box of x' at the same place into x; the
box has the sides √(1-λ)·H and √(1-λ)·W around a centre drawn uniformly over the pixels.

Choices: the partners are one random permutation of the batch. λ of CutMix is measured on the box after it is cut off at the
border (for α = 1 and 32 x 32 pixels its mean is 0.70, not 0.50); the box reaches ⌊side/2⌋ to both sides of its centre, so
odd sides lose a pixel, as in the authors' code. `prob` is 1; the authors' CIFAR-100 command for CutMix mixes half of the
batches. As in timm, `mode="batch"` draws λ once for the whole batch and `mode="elem"` once for each image. The targets of
multi-label data are mixed in the same way.

Checked against: the pixel and target formulas by hand, the moments of Beta, the exact expectation of λ after clipping by
enumeration, and the boxes and mixed targets of timm's implementation.

Cost: no passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fraction, StepContext

Alpha = Annotated[float, Field(gt=0)]
Mode = Literal["batch", "elem"]


@dataclass(frozen=True)
class Mixup:
    """Blends every image with another of the batch."""

    name: ClassVar[str] = "mixup"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Zhang, Cisse, Dauphin, Lopez-Paz; mixup: Beyond Empirical Risk Minimization; ICLR 2018; arXiv:1710.09412"
    claim: ClassVar[str] = "formula verified"

    mixup_alpha: Alpha = 1.0
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        shares = draw_shares(self.mixup_alpha, self.prob, draws(self.mode, batch), context.generator)
        shares = shares.to(batch.inputs).expand(len(batch))
        partners = draw_partners(batch, context.generator)
        # lerp: an image mixed with itself stays itself to the bit, and nothing leaves [0, 1].
        mixed = torch.lerp(batch.inputs[partners], batch.inputs, shares.view(-1, 1, 1, 1))
        return batch.replace(inputs=mixed, targets=mix_targets(batch.targets, partners, shares))


@dataclass(frozen=True)
class CutMix:
    """Pastes a box of another image of the batch into every image."""

    name: ClassVar[str] = "cutmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Yun, Han, Oh, Chun, Choe, Yoo; CutMix: Regularization Strategy to Train Strong Classifiers "
        "with Localizable Features; ICCV 2019; arXiv:1905.04899"
    )
    claim: ClassVar[str] = "formula verified"

    cutmix_alpha: Alpha = 1.0
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        shares = draw_shares(self.cutmix_alpha, self.prob, draws(self.mode, batch), context.generator)
        rows = torch.randint(height, shares.shape, generator=context.generator)
        columns = torch.randint(width, shares.shape, generator=context.generator)
        boxes = box_masks(shares, rows, columns, height, width).to(batch.inputs.device).expand(len(batch), -1, -1, -1)
        partners = draw_partners(batch, context.generator)
        mixed = torch.where(boxes, batch.inputs[partners], batch.inputs)
        kept = 1 - boxes.flatten(1).to(batch.targets.dtype).mean(1)
        return batch.replace(inputs=mixed, targets=mix_targets(batch.targets, partners, kept))


def draws(mode: Mode, batch: Batch) -> int:
    """How many λ a batch needs."""
    return 1 if mode == "batch" else len(batch)


def draw_shares(alpha: float, prob: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) λ ~ Beta(alpha, alpha) in float64; 1, which changes nothing, with probability 1 - prob."""
    # NumPy's Beta takes a generator of its own and is exact for small alpha, where a ratio of gammas becomes 0/0.
    source = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    shares = torch.from_numpy(source.beta(alpha, alpha, count))
    return torch.where(torch.rand(count, generator=generator) < prob, shares, torch.ones_like(shares))


def draw_partners(batch: Batch, generator: torch.Generator) -> Tensor:
    """(B,) the row that each row is mixed with: a random permutation."""
    return torch.randperm(len(batch), generator=generator).to(batch.inputs.device)


def box_masks(shares: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """(n, 1, H, W) True inside the box around (row, column) that takes the share 1 - λ of the image, cut off at the border."""
    sides = (1 - shares).sqrt()
    inside_rows = _spans((height * sides).long(), rows, height)
    inside_columns = _spans((width * sides).long(), columns, width)
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(1)


def _spans(lengths: Tensor, centres: Tensor, size: int) -> Tensor:
    """(n, size) True within half a length of the centre."""
    positions = torch.arange(size)
    halves = (lengths // 2)[:, None]
    centres = centres[:, None]
    return (positions >= centres - halves) & (positions < centres + halves)


def mix_targets(targets: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """(B, K) where `shares` (B,) weighs a row's own target."""
    return torch.lerp(targets[partners], targets, shares.to(targets).unsqueeze(1))


@hookimpl
def register_augmenters(register: Any) -> None:
    register(Mixup)
    register(CutMix)
