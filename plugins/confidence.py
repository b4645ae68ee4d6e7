"""What happens to the network's confidence when only the top of the map is shown, or when only the top is hidden.

Paper: p is the probability of the explained class on the image, p' on the image of which only the top share of the map's pixels
is shown. Drop is 100 max(0, p - p') / p and Increase 100 max(0, p' - p) / p (EDDA, equation 5, top 15 %). Sufficiency is
p' - p (EDDA, equation 1); comprehensiveness is p minus the probability with the top hidden (ERASER). `increase-count` is the
older count: 100 where p' > p, else 0. `drop-soft` and `increase-soft` are Grad-CAM++'s: the image is multiplied by the map,
rescaled to [0, 1] per image, and the increase is counted.

Choices: hidden pixels take `fill`, the model's mean colour unless told otherwise, which is zero in the network's own units. The
top is floor(keep x pixels), equal values by position. Increase may exceed 100 for one image, because it divides by the original
confidence, and its mean has a heavy tail. Multiplying by the map is done in the network's own units: value m of the map shows m
of the image and 1 - m of the fill; a constant map shows the fill alone. `drop` is not comparable with numbers from libraries
that weight the image by the map; those are `drop-soft`.

Checked against: the values of EDDA's formula on given probabilities, the two-channel network worked out by hand, and, for the soft form, torchcam's
`ClassificationMetric`. Per image, sufficiency equals p (Increase - Drop) / 100.

Cost: one forward pass per image; metrics with equal `keep` and `fill` share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Explained, Fill, MetricContext
from bench_plugins._maps import rescaled
from bench_plugins._scoring import share_of

EDDA = "Li, Zhang, Li, Trabelsi, Sanner, Jang, Jeong, Shim; EDDA: Explanation-driven Data Augmentation to Improve Explanation Faithfulness; 2021"
GRADCAM_PLUS_PLUS = (
    "Chattopadhyay, Sarkar, Howlader, Balasubramanian; "
    "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional Networks; WACV 2018; arXiv:1710.11063"
)
ERASER = "DeYoung et al.; ERASER: A Benchmark to Evaluate Rationalized NLP Models; ACL 2020; arXiv:1911.03429"


class Confidence(NamedTuple):
    """The probability of the explained class, (B,) each, on the image and on what is left of it."""

    before: Tensor
    after: Tensor

    @property
    def drop(self) -> Tensor:
        return 100 * (self.before - self.after).relu() / self._divisor

    @property
    def increase(self) -> Tensor:
        return 100 * (self.after - self.before).relu() / self._divisor

    @property
    def increased(self) -> Tensor:
        return 100 * (self.after > self.before).float()

    @property
    def _divisor(self) -> Tensor:
        return self.before.clamp_min(torch.finfo(self.before.dtype).tiny)  # A probability may underflow to 0.


def top_shown(explained: Explained, context: MetricContext, keep: float, fill: Fill) -> Confidence:
    """With the top share of the pixels shown and the others hidden."""
    before = context.masked_probabilities([0], fill, keep=False)[:, 0]
    return Confidence(before, context.masked_probabilities([share_of(pixels(explained), keep)], fill, keep=True)[:, 0])


def top_hidden(explained: Explained, context: MetricContext, hide: float, fill: Fill) -> Confidence:
    """With the top share of the pixels hidden."""
    return Confidence(*context.masked_probabilities([0, share_of(pixels(explained), hide)], fill, keep=False).unbind(1))


def pixels(explained: Explained) -> int:
    return explained.inputs.shape[-2] * explained.inputs.shape[-1]


def map_weighted(explained: Explained, context: MetricContext, fill: Fill) -> Confidence:
    """With each pixel shown to the degree that the map, rescaled to [0, 1], says."""
    shown = rescaled(explained.attributions).to(explained.inputs)
    background = context.fill(fill, explained.inputs)
    logits = context.predict(background + shown * (explained.inputs - background))
    targets = explained.targets.view(-1, 1)
    before, after = (context.probability(each).gather(1, targets).squeeze(1) for each in (explained.logits, logits))
    return Confidence(before, after)


@dataclass(frozen=True)
class _OfTheTop:
    """What the metrics of this family share: how much is the top, and what stands where pixels are hidden."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = EDDA
    claim: ClassVar[str] = "formula verified"
    category: ClassVar[str] = "faithfulness"
    unit: ClassVar[str] = "%"
    needs: ClassVar[tuple[str, ...]] = ("attributions",)

    keep: Annotated[float, Field(gt=0, le=1)] = 0.15
    fill: Fill = "mean"


@dataclass(frozen=True)
class Drop(_OfTheTop):
    """How much confidence is lost, relative to the original, when only the top of the map is shown."""

    name: ClassVar[str] = "drop"
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) percent, 0 to 100."""
        return top_shown(explained, context, self.keep, self.fill).drop


@dataclass(frozen=True)
class Increase(_OfTheTop):
    """How much confidence is won, relative to the original, when only the top of the map is shown."""

    name: ClassVar[str] = "increase"
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) percent, 0 or above, without a limit."""
        return top_shown(explained, context, self.keep, self.fill).increase


@dataclass(frozen=True)
class IncreaseCount(_OfTheTop):
    """How often the network is more confident when only the top of the map is shown."""

    name: ClassVar[str] = "increase-count"
    paper: ClassVar[str] = GRADCAM_PLUS_PLUS
    higher_is_better: ClassVar[bool] = True

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 100 where the confidence rises, else 0."""
        return top_shown(explained, context, self.keep, self.fill).increased


@dataclass(frozen=True)
class Sufficiency(_OfTheTop):
    """The change of confidence when only the top of the map is shown."""

    name: ClassVar[str] = "sufficiency"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "probability"

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) in [-1, 1]."""
        confidence = top_shown(explained, context, self.keep, self.fill)
        return confidence.after - confidence.before


@dataclass(frozen=True)
class Comprehensiveness:
    """The confidence lost when the top of the map is hidden."""

    name: ClassVar[str] = "comprehensiveness"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ERASER
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "faithfulness"
    unit: ClassVar[str] = "probability"
    needs: ClassVar[tuple[str, ...]] = ("attributions",)

    hide: Annotated[float, Field(gt=0, le=1)] = 0.15
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) in [-1, 1]."""
        confidence = top_hidden(explained, context, self.hide, self.fill)
        return confidence.before - confidence.after


@dataclass(frozen=True)
class _MapWeighted:
    """What the two metrics share that multiply the image by the map."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = GRADCAM_PLUS_PLUS
    claim: ClassVar[str] = "formula verified"
    category: ClassVar[str] = "faithfulness"
    unit: ClassVar[str] = "%"
    needs: ClassVar[tuple[str, ...]] = ("attributions",)

    fill: Fill = "mean"


@dataclass(frozen=True)
class DropSoft(_MapWeighted):
    """How much confidence is lost, relative to the original, when the image is multiplied by the map."""

    name: ClassVar[str] = "drop-soft"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) percent, 0 to 100."""
        return map_weighted(explained, context, self.fill).drop


@dataclass(frozen=True)
class IncreaseSoft(_MapWeighted):
    """How often the network is more confident when the image is multiplied by the map."""

    name: ClassVar[str] = "increase-soft"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 100 where the confidence rises, else 0."""
        return map_weighted(explained, context, self.fill).increased


@hookimpl
def register_metrics(register: Register) -> None:
    for metric in (Drop, Increase, IncreaseCount, Sufficiency, Comprehensiveness, DropSoft, IncreaseSoft):
        register(metric)
    for percent in (30, 50):
        register(Drop, name=f"drop-{percent}", keep=percent / 100)
        register(Increase, name=f"increase-{percent}", keep=percent / 100)
