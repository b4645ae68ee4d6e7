"""Gradients of the target's logit by the pixels: at the image, averaged over noisy copies, or on the way from a baseline.

Paper: with g the gradient, `saliency` is the largest |g| over the colours. `input-x-gradient` is (x - b) · g.
`smoothgrad` is the mean of g over n noisy copies of the image, `smoothgrad-squared` the mean of g², `vargrad` the
variance of g; the noise is Gaussian, its standard deviation a share of the image's range. `gradient-shap` is the mean
of (x + e - b) · g at b + a (x + e - b), with a drawn uniformly from [0, 1) and e noise as above.

Choices: pixels are those of the [0, 1] image; noisy ones are not clipped. Of the three means over noisy copies the
largest over the colours is taken (for `smoothgrad` of its size), as in `saliency`; signed attributions are added up
over the colours. `input-x-gradient` counts from a fill, the model's mean colour unless told otherwise, so that a black
pixel is not one without evidence by definition. `gradient-shap` has one baseline per image, a fill, where the paper
draws from training images; noise is off unless asked for.

Differs from captum: its noise comes from the global random stream with a standard deviation of 1.0 unless told
otherwise, which buries a [0, 1] image; its baselines for gradient SHAP are drawn from those of all images of the batch.
Here each row draws from its own generator, and captum gives the gradients. The sums run copy by copy, so that they do
not depend on the size of the chunks.

Checked against: a two-channel network worked out by hand; captum's own classes where nothing is drawn; moments that are
known in closed form; integrated gradients, which `gradient-shap` tends to.

Cost: one forward and one backward; n of each for the noisy ones and `gradient-shap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.interfaces import ExplainContext, Fill
from bench_plugins.captum_explainers._rows import gradient

Share = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Saliency:
    """How much the target's logit changes with each pixel, up or down."""

    name: ClassVar[str] = "saliency"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Simonyan, Vedaldi, Zisserman; Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps; "
        "ICLR Workshop 2014; arXiv:1312.6034"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), zero or above, in logits per unit of a colour."""
        return gradient(model, inputs, targets, context.chunk).abs().amax(1, keepdim=True)


@dataclass(frozen=True)
class InputXGradient:
    """The gradient times the distance of the pixel from a baseline."""

    baseline: Fill = "mean"

    name: ClassVar[str] = "input-x-gradient"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Shrikumar, Greenside, Shcherbina, Kundaje; "
        "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences; arXiv 2016; arXiv:1605.01713"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits."""
        distance = inputs - context.fill(self.baseline, inputs)
        return (distance * gradient(model, inputs, targets, context.chunk)).sum(1, keepdim=True)


class Moments(NamedTuple):
    """Of the gradients of n noisy copies, each (B, C, H, W); the variance divides by n."""

    mean: Tensor
    square: Tensor
    variance: Tensor


@dataclass(frozen=True)
class NoisyGradients:
    """What the three share; each says in `statistic` what it keeps of the gradients."""

    samples: Annotated[int, Field(ge=2)] = 50
    noise: Share = 0.15  # Of the image's own range, from its darkest value to its brightest.

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), zero or above."""
        deviation = self.noise * spread(inputs)
        mean = square = squares_about_mean = torch.zeros_like(inputs)
        for count in range(1, self.samples + 1):
            noisy = inputs + deviation * draw(torch.randn, inputs.shape[1:], context.generators).to(inputs)
            found = gradient(model, noisy, targets, context.chunk)
            step = found - mean
            mean = mean + step / count
            # Welford's sum: the difference of two means would fall below zero by rounding.
            squares_about_mean = squares_about_mean + step * (found - mean)
            square = square + found**2
        return self.statistic(Moments(mean, square / self.samples, squares_about_mean / self.samples)).amax(1, keepdim=True)

    def statistic(self, moments: Moments) -> Tensor:
        """(B, C, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True)
class SmoothGrad(NoisyGradients):
    """Saliency of the gradient's mean over noisy copies of the image."""

    name: ClassVar[str] = "smoothgrad"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Smilkov, Thorat, Kim, Viégas, Wattenberg; SmoothGrad: removing noise by adding noise; ICML Workshop 2017; arXiv:1706.03825"
    )
    claim: ClassVar[str] = "formula verified"

    def statistic(self, moments: Moments) -> Tensor:
        return moments.mean.abs()


@dataclass(frozen=True)
class SmoothGradSquared(NoisyGradients):
    """The mean of the squared gradient over noisy copies of the image."""

    name: ClassVar[str] = "smoothgrad-squared"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Hooker, Erhan, Kindermans, Kim; A Benchmark for Interpretability Methods in Deep Neural Networks; NeurIPS 2019; arXiv:1806.10758"
    )
    claim: ClassVar[str] = "formula verified"

    def statistic(self, moments: Moments) -> Tensor:
        return moments.square


@dataclass(frozen=True)
class VarGrad(NoisyGradients):
    """The variance of the gradient over noisy copies of the image."""

    name: ClassVar[str] = "vargrad"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Adebayo, Gilmer, Goodfellow, Kim; Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values; "
        "ICLR Workshop 2018; arXiv:1810.03307"
    )
    claim: ClassVar[str] = "formula verified"

    def statistic(self, moments: Moments) -> Tensor:
        return moments.variance


@dataclass(frozen=True)
class GradientShap:
    """The gradient at random points between a baseline and the image, times the distance."""

    samples: Annotated[int, Field(ge=1)] = 50
    noise: Share = 0.0
    baseline: Fill = "mean"

    name: ClassVar[str] = "gradient-shap"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Erion, Janizek, Sturmfels, Lundberg, Lee; "
        "Improving performance of deep learning models with axiomatic attribution priors and expected gradients; arXiv:1906.10670"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits."""
        baselines = context.fill(self.baseline, inputs)
        deviation = self.noise * spread(inputs)
        total = torch.zeros_like(inputs)
        for _ in range(self.samples):
            along = draw(torch.rand, (1, 1, 1), context.generators).to(inputs)  # (B, 1, 1, 1)
            noisy = inputs + deviation * draw(torch.randn, inputs.shape[1:], context.generators).to(inputs)
            distance = noisy - baselines
            total = total + distance * gradient(model, baselines + along * distance, targets, context.chunk)
        return (total / self.samples).sum(1, keepdim=True)


def spread(inputs: Tensor) -> Tensor:
    """(B, 1, 1, 1) from the darkest value of each image to its brightest."""
    return inputs.amax((1, 2, 3), keepdim=True) - inputs.amin((1, 2, 3), keepdim=True)


def draw(distribution: Callable[..., Tensor], shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """(B, *shape) on the CPU, each row from its own generator."""
    return torch.stack([distribution(tuple(shape), generator=generator) for generator in generators])
