"""Accuracy on test images with Gaussian noise added, at several strengths.

Paper: each pixel value gets an independent draw of N(0, sigma^2); the score of an image is the share of noisy copies that
are still classified right, and the metric is its mean over images and strengths.

Choices: noise is added to images in [0, 1], before the network's own normalisation, and the result is clipped to [0, 1]. One
draw of the noise serves all strengths, scaled, so that the strengths differ in nothing else; three draws per image.

Checked against: a network whose answer flips at a known noise value, the accuracy at a noise too weak to matter, and the share of
a normal distribution beyond a threshold.

Cost: `draws` x number of strengths forward passes per image (9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Curve, Explained, MetricContext
from bench_plugins._scoring import copies, drawn, hits


@dataclass(frozen=True)
class AccuracyUnderNoise:
    """Accuracy on images with Gaussian noise, averaged over its strengths."""

    name: ClassVar[str] = "accuracy-under-noise"
    version: ClassVar[int] = 1
    default: ClassVar[bool] = True
    paper: ClassVar[str] = "Hendrycks, Dietterich; Benchmarking Neural Network Robustness to Common Corruptions; ICLR 2019; arXiv:1903.12261"
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "robustness"
    unit: ClassVar[str] = "%"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    sigmas: tuple[Annotated[float, Field(gt=0)], ...] = (0.05, 0.1, 0.2)
    draws: Annotated[int, Field(ge=1)] = 3

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, strengths) the percentage of draws that are classified right."""
        generators = copies(context.generators)
        draws = [self._one_draw(explained, context, generators) for _ in range(self.draws)]
        return torch.stack(draws).mean(0)

    def _one_draw(self, explained: Explained, context: MetricContext, generators: list[torch.Generator]) -> Tensor:
        noise = drawn(generators, lambda each: torch.randn(explained.inputs.shape[1:], generator=each), explained.inputs)
        noisy = ((explained.inputs + sigma * noise).clamp(0, 1) for sigma in self.sigmas)
        return torch.stack([hits(context.predict(images), explained.labels) for images in noisy], dim=1)

    def curve(self, rows: Tensor) -> Curve:
        return Curve(list(self.sigmas), rows.mean(0).tolist(), "standard deviation of the noise", "accuracy (%)")


@hookimpl
def register_metrics(register: Register) -> None:
    register(AccuracyUnderNoise)
