"""Accuracy on test images with fourteen common corruptions, at five severities.

Paper: noise (Gaussian, shot, impulse), blur (defocus, glass, motion, zoom), weather (snow, fog, brightness) and digital losses
(contrast, elastic, pixelate, JPEG), with the numbers of the authors' code: CIFAR-10-C's for images up to 64 pixels a side, ImageNet-C's
for larger ones.

Differs from the paper: these images are made anew and are not the published ones. Glass blur fetches neighbours instead of swapping
pixels one after the other, fog is built from octaves of noise instead of a plasma fractal, motion blur and the flakes of snow move
by whole pixels, elastic interpolates once instead of twice and takes its numbers as shares of the image's side: approximations.
The fifteenth corruption, frost, is left out, because it is made from photographs. Images are not rounded to whole grey levels,
except for JPEG.

Choices: plain accuracy, averaged over corruptions and severities, instead of errors relative to AlexNet's. Draws are each image's
own and the same for all severities, which then differ in nothing else. A row holds the severities of the first corruption, then
those of the next. Images need 16 pixels a side.

Checked against: the definitions with NumPy, Pillow and scipy where there is one (noise, defocus, zoom, brightness, contrast,
pixelate, JPEG, the Gaussian); for the approximations, that more severity changes more. Never compared with the published sets.

Cost: one forward pass per corruption and severity (70), and the corrupting; JPEG runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.errors import InvalidValue
from bench.hookspecs import Register
from bench.interfaces import Curve, Explained, MetricContext
from bench_plugins import _corruptions as make
from bench_plugins._scoring import copies, hits

Name = Literal[
    "gaussian-noise", "shot-noise", "impulse-noise", "defocus-blur", "glass-blur", "motion-blur", "zoom-blur",
    "snow", "fog", "brightness", "contrast", "elastic", "pixelate", "jpeg",
]  # fmt: skip

SMALL_SIDE, LEAST_SIDE = 64, 16


class Corruption(NamedTuple):
    """What is done, and its numbers for the severities 1 to 5, of small images and of large ones."""

    apply: Callable[..., Tensor]
    small: list[tuple[float, ...]]
    large: list[tuple[float, ...]]


def singles(*values: float) -> list[tuple[float, ...]]:
    return [(value,) for value in values]


CORRUPTIONS: dict[Name, Corruption] = {
    "gaussian-noise": Corruption(make.gaussian_noise, singles(0.04, 0.06, 0.08, 0.09, 0.10), singles(0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": Corruption(make.shot_noise, singles(500, 250, 100, 75, 50), singles(60, 25, 12, 5, 3)),
    "impulse-noise": Corruption(make.impulse_noise, singles(0.01, 0.02, 0.03, 0.05, 0.07), singles(0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus-blur": Corruption(
        make.defocus_blur,
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    ),
    "glass-blur": Corruption(
        make.glass_blur,
        [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    ),
    "motion-blur": Corruption(
        make.motion_blur,
        [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    ),
    "zoom-blur": Corruption(
        make.zoom_blur,
        [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
        [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    ),
    "snow": Corruption(
        make.snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
        [
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ],
    ),
    "fog": Corruption(
        make.fog,
        [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    ),
    "brightness": Corruption(make.brightness, singles(0.05, 0.1, 0.15, 0.2, 0.3), singles(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption(make.contrast, singles(0.75, 0.5, 0.4, 0.3, 0.15), singles(0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic": Corruption(
        make.elastic,
        [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
        [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)],
    ),
    "pixelate": Corruption(make.pixelate, singles(0.95, 0.9, 0.85, 0.75, 0.65), singles(0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Corruption(make.jpeg, singles(80, 65, 58, 50, 40), singles(25, 18, 15, 10, 7)),
}


@dataclass(frozen=True)
class AccuracyUnderCorruptions:
    """Accuracy on images with common corruptions, averaged over kinds and severities."""

    name: ClassVar[str] = "accuracy-under-corruptions"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Hendrycks, Dietterich; Benchmarking Neural Network Robustness to Common Corruptions and Perturbations; ICLR 2019; arXiv:1903.12261"
    )
    claim: ClassVar[str] = "unverified"
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "robustness"
    unit: ClassVar[str] = "%"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    corruptions: tuple[Name, ...] = get_args(Name)
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 2, 3, 4, 5)

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, corruptions x severities) 100 where the corrupted image is classified right, else 0."""
        corrupted = (
            corrupt(explained.inputs, copies(context.generators), name, severity) for name in self.corruptions for severity in self.severities
        )
        return torch.stack([hits(context.predict(images), explained.labels) for images in corrupted], dim=1)

    def curve(self, rows: Tensor) -> Curve:
        by_severity = rows.view(len(rows), len(self.corruptions), len(self.severities)).mean((0, 1))
        return Curve([float(severity) for severity in self.severities], by_severity.tolist(), "severity", "accuracy (%)")


def corrupt(images: Tensor, generators: make.Generators, name: Name, severity: int) -> Tensor:
    """(B, C, H, W) in [0, 1]. Raises InvalidValue for images too small to be blurred."""
    side = min(images.shape[2:])
    if side < LEAST_SIDE:
        raise InvalidValue(f"the corruptions need images of {LEAST_SIDE} pixels a side or more, and these have {side}.")
    corruption = CORRUPTIONS[name]
    numbers = (corruption.small if side <= SMALL_SIDE else corruption.large)[severity - 1]
    return corruption.apply(images, generators, *numbers).clamp(0, 1)


@hookimpl
def register_metrics(register: Register) -> None:
    register(AccuracyUnderCorruptions)
