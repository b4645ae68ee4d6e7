"""Remove and debias: pixels are hidden behind what their neighbours suggest, so that the hole's shape gives nothing away.

Paper: noisy linear imputation sets each hidden pixel to the weighted mean of its eight neighbours, hidden ones included, 1/6 for
those beside it and 1/12 for those at its corners, and adds Gaussian noise: a sparse linear system per image. `road-morf` hides the
map's top first, `road-lerf` its bottom first.

Differs from the paper: the score is the probability of the explained class, as in pytorch-grad-cam, not the accuracy. `road` is half
the difference of the two orders, averaged over the shares, which is that library's combined form.

Choices: five shares instead of nine. The noise (.01) is in units of [0, 1] pixels and is each image's own; results are clipped to
[0, 1]. At the border the weights of the neighbours that exist count. All images are solved at once on their device by conjugate
gradients, each channel stopping by itself when its residual has fallen by 1e-5; at 224 x 224 the values were measured to lie within
3e-4 of the direct solution.

Checked against: the direct solver of pytorch-grad-cam, image for image, and its `ROADCombined` end to end; an image that is a plane
is filled in exactly.

Cost: 1 forward pass per share and order for each image (5; `road` 10), and the solving, some 20 to 650 sweeps over the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Curve, Explained, MetricContext
from bench_plugins._scoring import copies, drawn, places, share_of

TOLERANCE = 1e-5  # Of the residual. 1e-4 was measured to leave errors of a third of a grey level at 224 x 224.
CHECK_EVERY = 8  # Sweeps between two looks at the residual: each look makes the device wait.


@dataclass(frozen=True)
class _Imputed:
    """What the orders share: the shares to hide, the noise, and the scores of what is left."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Rong et al.; A Consistent and Efficient Evaluation Strategy for Attribution Methods; ICML 2022; arXiv:2202.00449"
    claim: ClassVar[str] = "formula verified"
    category: ClassVar[str] = "faithfulness"
    unit: ClassVar[str] = "probability"
    needs: ClassVar[tuple[str, ...]] = ("attributions",)

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    noise: Annotated[float, Field(ge=0)] = 0.01

    def scores(self, explained: Explained, context: MetricContext, top_first: bool) -> Tensor:
        """(B, shares) the probability of the target with each share hidden."""
        order = places(explained.attributions).view_as(explained.attributions)
        last = order[0].numel() - 1
        order, generators = order if top_first else last - order, copies(context.generators)
        targets, scores = explained.targets.view(-1, 1), []
        for share in self.shares:
            images = self._without(order < share_of(last + 1, share), explained.inputs, generators, context.chunk)
            scores.append(context.probability(context.predict(images)).gather(1, targets))
        return torch.cat(scores, 1)

    def _without(self, hidden: Tensor, inputs: Tensor, generators: Sequence[Generator], chunk: int) -> Tensor:
        pieces = zip(inputs.split(chunk), hidden.split(chunk), strict=True)
        filled = torch.cat([impute(*piece) for piece in pieces])
        noise = drawn(generators, lambda each: torch.randn(inputs.shape[1:], generator=each), inputs)
        return torch.where(hidden, filled + self.noise * noise, inputs).clamp(0, 1)

    def curve(self, rows: Tensor) -> Curve:
        return Curve(list(self.shares), rows.mean(0).tolist(), "share of pixels hidden", "probability of the target")


@dataclass(frozen=True)
class RoadMostRelevantFirst(_Imputed):
    """The target's probability with the map's top hidden behind its surroundings."""

    name: ClassVar[str] = "road-morf"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, shares) in [0, 1]."""
        return self.scores(explained, context, top_first=True)


@dataclass(frozen=True)
class RoadLeastRelevantFirst(_Imputed):
    """The target's probability with the map's bottom hidden behind its surroundings."""

    name: ClassVar[str] = "road-lerf"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, shares) in [0, 1]."""
        return self.scores(explained, context, top_first=False)


@dataclass(frozen=True)
class Road(_Imputed):
    """How much more hiding the map's top costs than hiding its bottom."""

    name: ClassVar[str] = "road"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, shares) half the difference of the two orders, in [-1/2, 1/2]."""
        least, most = (self.scores(explained, context, top_first) for top_first in (False, True))
        return (least - most) / 2

    def curve(self, rows: Tensor) -> Curve:
        return Curve(list(self.shares), rows.mean(0).tolist(), "share of pixels hidden", "half the difference of the orders")


def impute(images: Tensor, hidden: Tensor) -> Tensor:
    """(B, C, H, W) with each hidden pixel at the weighted mean of its neighbours. `hidden` (B, 1, H, W) leaves some pixel of each image.

    Conjugate gradients on the weighted graph Laplacian of the hidden pixels; (B, C, 1, 1) are sums over one channel of one image.
    """
    mask, degrees = hidden.to(images.dtype), neighbours(torch.ones_like(images[:1, :1]))
    known_mean = images.masked_fill(hidden, 0).sum((2, 3), keepdim=True) / (~hidden).sum((2, 3), keepdim=True)
    solution = torch.where(hidden, known_mean, images)
    residual = (neighbours(solution) - degrees * solution) * mask
    direction, energy = residual.clone(), _dot(residual, residual)
    goal = TOLERANCE**2 * energy
    for sweep in range(8 * (images.shape[-2] + images.shape[-1])):  # Some five times what the widest holes were seen to need.
        if sweep % CHECK_EVERY == 0 and not bool((energy > goal).any()):
            break
        active = energy > goal  # A channel that is done stays as it is, however long the others take.
        change = torch.addcmul(neighbours(direction).neg_(), degrees, direction).mul_(mask)
        length = torch.where(active, energy / _dot(direction, change), 0)
        solution.addcmul_(length, direction)
        residual.addcmul_(length, change, value=-1)
        previous, energy = energy, torch.where(active, _dot(residual, residual), energy)
        direction.mul_(torch.where(active, energy / previous, 0)).add_(residual)
    return solution


def neighbours(images: Tensor) -> Tensor:
    """Twelve times the weighted sum of each pixel's neighbours, nothing beyond the border: 1, 2, 1 both ways less the middle's 4."""
    padded = F.pad(images, (1, 1, 1, 1))  # Sums of shifted images: measured 8 to 40 times as fast as a depthwise convolution on a CPU.
    across = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    return (across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2).sub_(images, alpha=4)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.linalg.vecdot(one.flatten(2), other.flatten(2))[..., None, None]


@hookimpl
def register_metrics(register: Register) -> None:
    register(Road)
    register(RoadMostRelevantFirst)
    register(RoadLeastRelevantFirst)
