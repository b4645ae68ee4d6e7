"""Mixing by a random mask: each pixel is a blend of an image and another of the batch, in the shares a mask gives.

Paper: all three return M x + (1 - M) x' and weigh the image's own target by the mean of M. FMix draws complex normal noise,
weighs each frequency f by 1 / max(f, 1/side)^δ, transforms it back and gives the highest λ of the pixels to x, λ ~ Beta(α, α).
SmoothMix takes M = exp(-d² / 2σ²), d the distance to a pixel drawn uniformly, σ ~ U(0.25, 0.5) of the side. GridMix lays a
grid over a box and takes a hole in each cell, of side √(1-λ) of the cell's, from x'.

Differs from the paper: SmoothMix follows the formula; OpenMixup's code returns the image mixed the other way round, so that its
targets are swapped. FMix transforms the whole spectrum; both versions of the authors' code arrange real and imaginary parts
along the wrong axis. GridMix is the grid of holes that public code has under this name; the paper of the name adds a loss for
each patch, which is left out.

Choices: the partners are one random permutation. λ of FMix is rounded up or down to whole pixels with equal chance and
measured afterwards. A hole of GridMix is at least one pixel and at most one less than its cell, and the box never leaves the
image. `mode="batch"` draws one mask for the batch, as the authors do, `mode="elem"` one per image.

Checked against: FMix's mean within one pixel of λ and its ranking of the smoothed noise, NumPy's inverse transform; SmoothMix's
weights pixel by pixel (the target of x is the mean weight of x); GridMix's holes drawn by a loop over cells.

Cost: no passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fraction, StepContext
from bench_plugins._draws import mix_by, uniform
from bench_plugins.mixing import Alpha, Mode, draw_partners, draw_shares, draws

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class FMix:
    """Mixes by the level set of smooth noise."""

    name: ClassVar[str] = "fmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Harris, Marcu, Painter, Niranjan, Prügel-Bennett, Hare; FMix: Enhancing Mixed Sample Data Augmentation; 2020; arXiv:2002.12047"
    )
    claim: ClassVar[str] = "formula verified"

    alpha: Alpha = 1.0
    decay_power: Positive = 3.0
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        shares = draw_shares(self.alpha, self.prob, draws(self.mode, batch), context.generator)
        noise = low_frequencies(len(shares), *batch.inputs.shape[2:], self.decay_power, context.generator)
        kept = highest(noise, shares, context.generator)
        return mix_by(kept.unsqueeze(1), batch, draw_partners(batch, context.generator))


def low_frequencies(count: int, height: int, width: int, decay_power: float, generator: torch.Generator) -> Tensor:
    """(n, H, W) noise in which a frequency f has the weight 1 / f^decay_power."""
    frequencies = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])  # (H, W // 2 + 1)
    spectrum = torch.randn(count, *frequencies.shape, dtype=torch.complex64, generator=generator)
    return torch.fft.irfft2(spectrum / frequencies.clamp(min=1 / max(height, width)) ** decay_power, s=(height, width))


def highest(noise: Tensor, shares: Tensor, generator: torch.Generator) -> Tensor:
    """(n, H, W) True on the highest pixels: a share of them, rounded up or down with equal chance."""
    pixels = noise[0].numel() * shares
    rounded = torch.where(torch.rand(len(shares), generator=generator) < 0.5, pixels.floor(), pixels.ceil())
    order = noise.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return (ranks < rounded.unsqueeze(1)).view_as(noise)


@dataclass(frozen=True)
class SmoothMix:
    """Mixes by a Gaussian around a random pixel."""

    name: ClassVar[str] = "smoothmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Lee, Zaheer, Astrid, Lee; SmoothMix: a Simple Yet Effective Data Augmentation to Train Robust Classifiers; CVPR Workshops 2020"
    )
    claim: ClassVar[str] = "formula verified"

    min_sigma: Positive = 0.25
    max_sigma: Positive = 0.5
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        count, generator = draws(self.mode, batch), context.generator
        sigmas = min(height, width) * uniform(self.min_sigma, self.max_sigma, count, generator)
        rows, columns = torch.randint(height, (count,), generator=generator), torch.randint(width, (count,), generator=generator)
        kept = bumps(rows, columns, sigmas, height, width)
        mixed = (torch.rand(count, generator=generator) < self.prob).view(-1, 1, 1)
        kept = torch.where(mixed, kept, torch.ones_like(kept))
        return mix_by(kept.unsqueeze(1), batch, draw_partners(batch, generator))


def bumps(rows: Tensor, columns: Tensor, sigmas: Tensor, height: int, width: int) -> Tensor:
    """(n, H, W) a Gaussian with the value 1 at (row, column)."""
    down = (torch.arange(height) - rows[:, None]) ** 2  # (n, H)
    across = (torch.arange(width) - columns[:, None]) ** 2
    return (-(down[:, :, None] + across[:, None, :]) / (2 * sigmas.view(-1, 1, 1) ** 2)).exp()


@dataclass(frozen=True)
class GridMix:
    """Mixes by a grid of holes."""

    name: ClassVar[str] = "gridmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Baek, Bang, Shim; GridMix: Strong Regularization through Local Context Mapping; Pattern Recognition 2021"
    claim: ClassVar[str] = "unverified"

    alpha: Alpha = 1.0
    n_holes: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (2, 6)
    cut_area: tuple[Fraction, Fraction] = (0.5, 1.0)
    cut_aspect: tuple[Positive, Positive] = (0.5, 2.0)
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        count, generator = draws(self.mode, batch), context.generator
        shares = draw_shares(self.alpha, self.prob, count, generator)
        holes = self.holes(shares, *batch.inputs.shape[2:], generator)
        holes &= (shares < 1).view(-1, 1, 1)  # A hole has at least one pixel, so λ = 1 would not leave the image alone.
        return mix_by(~holes.unsqueeze(1), batch, draw_partners(batch, generator))

    def holes(self, shares: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
        """(n, H, W) True in the holes of a grid laid over a box."""
        count = len(shares)
        areas = height * width * uniform(*self.cut_area, count, generator)
        aspects = uniform(*self.cut_aspect, count, generator)
        wide = (areas / aspects).sqrt().long().clamp(1, width)
        tall = (areas * aspects).sqrt().long().clamp(1, height)
        left = (torch.rand(count, generator=generator) * (width - wide + 1)).long()
        top = (torch.rand(count, generator=generator) * (height - tall + 1)).long()
        number = torch.randint(self.n_holes[0], self.n_holes[1] + 1, (count,), generator=generator)
        cells = (wide / number).ceil().long()
        sides = (cells * (1 - shares).sqrt()).long().clamp(min=1)
        sides = torch.minimum(sides, (cells - 1).clamp(min=1))
        return _holes_along(top, tall, cells, sides, height)[:, :, None] & _holes_along(left, wide, cells, sides, width)[:, None, :]


def _holes_along(start: Tensor, length: Tensor, cells: Tensor, sides: Tensor, size: int) -> Tensor:
    """(n, size) True at the beginning of each cell, within `length` from `start`."""
    places = torch.arange(size) - start[:, None]
    return (places >= 0) & (places < length[:, None]) & (places % cells[:, None] < sides[:, None])


@hookimpl
def register_augmenters(register: Any) -> None:
    register(FMix)
    register(SmoothMix)
    register(GridMix)
