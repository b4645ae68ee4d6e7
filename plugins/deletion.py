"""How fast the network's confidence falls as the map's top pixels are hidden, and rises as they alone are shown.

Paper: RISE. Pixels are taken in the order of the map, most important first, in equal steps; the score after each step is the
probability of the class predicted on the original image. Deletion hides them in the image, insertion shows them on an empty one; each
number is the area under the scores over the share of pixels taken.

Differs from the paper: 32 steps instead of one per row of the image, and the area is integrated over the true shares where the
steps do not divide the pixels (the reference code counts a short last step as a full one). `insertion` starts from the same mean
colour that `deletion` ends with; the paper's insertion starts from a blurred image, which is `insertion-blur`. The blur is RISE's
(11 x 11, sigma 5) at any image size. Equal values are taken by position. `deletion-accuracy` and `insertion-accuracy` ask another
question of the same images, as EDDA does: the score is 1 where the explained class is still the predicted one (for several labels,
where it is still said to be there), else 0.

Choices: hidden pixels take `fill`: the model's mean colour (`deletion`, `insertion`), a blur (`-blur`) or black (`-black`); numbers
with different fills are not comparable. Both ends of the curve are scored; the fill itself need not score 0. A row holds the area
first, then the scores from no pixel taken to all. Equal logits rank by class number, as in `accuracy`.

Checked against: the two-channel network worked out by hand (.306757 and .868308), constant and linear scores, and torchcam's
`DeletionInsertionMetric` on a small network.

Cost: `steps` forward passes per image and metric; deletion and insertion with one fill share their ends with each other. Those by
accuracy share none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Curve, Explained, Fill, MetricContext
from bench_plugins._scoring import hits, places


@dataclass(frozen=True)
class _AreaUnderScores:
    """What deletion and insertion share: the steps, the fill, and how scores become an area."""

    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Petsiuk, Das, Saenko; RISE: Randomized Input Sampling for Explanation of Black-box Models; BMVC 2018; arXiv:1806.07421"
    claim: ClassVar[str] = "formula verified"
    category: ClassVar[str] = "faithfulness"
    unit: ClassVar[str] = "area"
    needs: ClassVar[tuple[str, ...]] = ("attributions",)
    shows: ClassVar[bool]
    score: ClassVar[str] = "probability of the target"

    steps: Annotated[int, Field(ge=1)] = 32
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, 1 + steps + 1) the area, then the score after each step, the untouched start first."""
        pixels = explained.inputs.shape[-2] * explained.inputs.shape[-1]
        counts = [round(step * pixels / self.steps) for step in range(self.steps + 1)]
        scores = self.scores(explained, context, counts)
        shares = torch.tensor(counts, device=scores.device, dtype=scores.dtype) / pixels
        return torch.cat([torch.trapezoid(scores, shares, dim=1)[:, None], scores], dim=1)

    def scores(self, explained: Explained, context: MetricContext, counts: Sequence[int]) -> Tensor:
        """(B, len(counts)) the target's probability with so many pixels taken."""
        return context.masked_probabilities(counts, self.fill, keep=self.shows)

    def values(self, rows: Tensor) -> Tensor:
        """(N,) the area under each image's scores."""
        return rows[:, 0]

    def curve(self, rows: Tensor) -> Curve:
        shares = [step / self.steps for step in range(self.steps + 1)]
        return Curve(shares, rows[:, 1:].mean(0).tolist(), f"share of pixels {'shown' if self.shows else 'hidden'}", self.score)


@dataclass(frozen=True)
class Deletion(_AreaUnderScores):
    """The area under the target's probability while the map's top pixels are hidden one step after another."""

    name: ClassVar[str] = "deletion"
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    shows: ClassVar[bool] = False


@dataclass(frozen=True)
class Insertion(_AreaUnderScores):
    """The area under the target's probability while the map's top pixels are shown one step after another."""

    name: ClassVar[str] = "insertion"
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True
    shows: ClassVar[bool] = True


@dataclass(frozen=True)
class _ByAccuracy(_AreaUnderScores):
    """What the two share that ask whether the class stays, and not how probable it is."""

    paper: ClassVar[str] = (
        "Li, Zhang, Li, Trabelsi, Sanner, Jang, Jeong, Shim; EDDA: Explanation-driven Data Augmentation to Improve Explanation Faithfulness; 2021"
    )
    score: ClassVar[str] = "share of images that keep the class"

    def scores(self, explained: Explained, context: MetricContext, counts: Sequence[int]) -> Tensor:
        """(B, len(counts)) 1 where the target is the predicted class with so many pixels taken, else 0."""
        order = places(explained.attributions).view_as(explained.attributions)
        background = context.fill(self.fill, explained.inputs)
        images = (torch.where((order < count) == self.shows, explained.inputs, background) for count in counts)
        return torch.stack([kept(context.predict(each), explained.targets, context.info.multi_label) for each in images], dim=1)


@dataclass(frozen=True)
class DeletionAccuracy(_ByAccuracy):
    """How long the explained class stays the predicted one while the map's top pixels are hidden, as an area."""

    name: ClassVar[str] = "deletion-accuracy"
    higher_is_better: ClassVar[bool] = False
    shows: ClassVar[bool] = False


@dataclass(frozen=True)
class InsertionAccuracy(_ByAccuracy):
    """How soon the explained class is the predicted one while the map's top pixels are shown, as an area."""

    name: ClassVar[str] = "insertion-accuracy"
    higher_is_better: ClassVar[bool] = True
    shows: ClassVar[bool] = True


def kept(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """(B,) 1 where the target is predicted, else 0."""
    if multi_label:
        return (logits.gather(1, targets.view(-1, 1)).squeeze(1) > 0).float()
    return hits(logits, targets) / 100


@hookimpl
def register_metrics(register: Register) -> None:
    register(Deletion)
    register(Insertion)
    register(DeletionAccuracy)
    register(InsertionAccuracy)
    for fill in ("blur", "black"):
        register(Deletion, name=f"deletion-{fill}", fill=fill)
        register(Insertion, name=f"insertion-{fill}", fill=fill)
