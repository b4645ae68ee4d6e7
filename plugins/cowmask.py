"""CowMask: blotches of random shape and size, either hidden (CowOut) or filled by another image (CowMix).

Paper: white noise is blurred by a Gaussian whose sigma is drawn log-uniformly; a pixel belongs to the mask where the blurred
noise is at or below mean + std · √2 · erfinv(2p - 1), which a share of about p of the pixels is. CowOut keeps the mask and
replaces the rest, p ~ U(0.25, 1). CowMix takes the mask from the row before in the batch, p ~ U(0.2, 0.8); that image's target
has the weight of the mask's measured area, which is only roughly p (it deviates by 0.05 at 32 pixels).

Differs from the paper: there the masks serve a semi-supervised mean teacher; here they change labelled batches. CowOut's
background is normal noise in the model's units, which would leave [0, 1]; here it is uniform noise per pixel.

Choices: sigma is a share of the image's side, 4 to 16 of 32 pixels. Each image has a mask of its own, as in the authors' code.
A Gaussian's scale cancels in the threshold, so the kernel is neither cut off nor normalised.

Checked against: the threshold and the blur by SciPy, the mean of area - p over many masks, the targets by the pixels that were
changed.

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
from bench_plugins._draws import hide, mix_by, uniform

PAPER = "French, Oliver, Salimans; Milking CowMask for Semi-Supervised Image Classification; 2020; arXiv:2003.12022"
Sigma = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class CowOut:
    """Hides blotches."""

    name: ClassVar[str] = "cowout"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "formula verified"

    min_p: Fraction = 0.25
    max_p: Fraction = 1.0
    min_sigma: Sigma = 4 / 32
    max_sigma: Sigma = 16 / 32
    fill: Fill = "noise"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        kept = masks(self, batch, context.generator)
        return hide(batch, ~kept.to(batch.inputs.device), self.fill, context)


@dataclass(frozen=True)
class CowMix:
    """Fills blotches from another image."""

    name: ClassVar[str] = "cowmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "formula verified"

    min_p: Fraction = 0.2
    max_p: Fraction = 0.8
    min_sigma: Sigma = 4 / 32
    max_sigma: Sigma = 16 / 32

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        taken = masks(self, batch, context.generator)
        partners = torch.arange(len(batch), device=batch.inputs.device).roll(1)
        return mix_by(~taken, batch, partners)


def masks(part: CowOut | CowMix, batch: Batch, generator: torch.Generator) -> Tensor:
    """(B, 1, H, W) True on blotches that take a share of about p, one mask per image."""
    height, width = batch.inputs.shape[2:]
    sigmas = min(height, width) * uniform(math.log(part.min_sigma), math.log(part.max_sigma), len(batch), generator).exp()
    shares = uniform(part.min_p, part.max_p, len(batch), generator)
    return blotches(torch.randn(len(batch), height, width, generator=generator), sigmas, shares).unsqueeze(1)


def blotches(noise: Tensor, sigmas: Tensor, shares: Tensor) -> Tensor:
    """(n, H, W) True where the blurred noise is at or below the quantile of the share under a normal distribution."""
    smooth = _kernels(sigmas, noise.shape[1]) @ noise @ _kernels(sigmas, noise.shape[2])
    deviations, means = torch.std_mean(smooth, (1, 2), keepdim=True, correction=0)
    return smooth <= means + deviations * math.sqrt(2) * torch.erfinv(2 * shares - 1).view(-1, 1, 1)


def _kernels(sigmas: Tensor, size: int) -> Tensor:
    """(n, size, size) a blur along one axis, with zeros beyond the border."""
    positions = torch.arange(size, dtype=torch.float32)
    return (-((positions[:, None] - positions) ** 2) / (2 * sigmas.view(-1, 1, 1) ** 2)).exp()


@hookimpl
def register_augmenters(register: Any) -> None:
    register(CowOut)
    register(CowMix)
