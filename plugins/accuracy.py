"""How often the network is right on the whole test split, and how well it ranks the images of each class.

Paper: top-k accuracy is the share of images whose label is among the k largest logits. Average precision is the mean, over
the images that show a class, of the precision among all images scored at least as high; its mean over classes is mAP.

Choices: equal logits rank by class number, so that a network that says nothing is right only for the first class. On
multi-label data `accuracy` is the share of classes called right (a logit above 0 says yes). Average precision is not interpolated,
images with equal scores enter together, and a class that no image shows is left out. With five classes or fewer top-5 accuracy is
always 100.

Checked against: counts made by hand, and scikit-learn's `top_k_accuracy_score` and `average_precision_score`.

Cost: none; the logits of the test images are there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Explained, MetricContext
from bench_plugins._scoring import hits


@dataclass(frozen=True)
class Accuracy:
    """The percentage of test images whose label is among the k largest logits."""

    name: ClassVar[str] = "accuracy"
    version: ClassVar[int] = 1
    default: ClassVar[bool] = True
    paper: ClassVar[str] = "Russakovsky et al.; ImageNet Large Scale Visual Recognition Challenge; IJCV 2015; arXiv:1409.0575"
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "prediction"
    unit: ClassVar[str] = "%"
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    all_images: ClassVar[bool] = True

    k: Annotated[int, Field(ge=1)] = 1

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 100 for a hit, 0 for a miss; for multi-label data the percentage of classes called right."""
        return hits(explained.logits, explained.labels, self.k)


@dataclass(frozen=True)
class TopFiveAccuracy(Accuracy):
    """The percentage of test images whose label is among the five largest logits."""

    name: ClassVar[str] = "top5-accuracy"
    needs: ClassVar[tuple[str, ...]] = ("logits", "single_label")

    k: Annotated[int, Field(ge=1)] = 5


@dataclass(frozen=True)
class MeanAveragePrecision:
    """The mean over classes of the average precision with which the images that show a class are ranked."""

    name: ClassVar[str] = "mean-average-precision"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Everingham et al.; The PASCAL Visual Object Classes (VOC) Challenge; IJCV 2010"
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "prediction"
    unit: ClassVar[str] = "%"
    needs: ClassVar[tuple[str, ...]] = ("logits", "multi_label")
    all_images: ClassVar[bool] = True

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, 2K) the logits of an image, then 1 for each class it shows and 0 for the others."""
        return torch.cat([explained.logits, explained.labels.to(explained.logits)], dim=1)

    def values(self, rows: Tensor) -> Tensor:
        """(N,) how well each image ranks its own classes, in percent; not a number for an image that shows none."""
        scores, labels = rows.chunk(2, dim=1)
        return 100 * average_precision(scores, labels > 0)

    def aggregate(self, rows: Tensor) -> float:
        scores, labels = rows.chunk(2, dim=1)
        return float(100 * average_precision(scores.T.contiguous(), labels.T > 0).nanmean())


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """(M,) one average precision for each row of (M, N); not a number where nothing is relevant."""
    at_least = _count_at_least(scores, scores)
    relevant_at_least = _count_at_least(scores.masked_fill(~relevant, -torch.inf), scores)
    precision = (relevant_at_least / at_least).masked_fill(~relevant, 0)
    return precision.sum(1) / relevant.sum(1)


def _count_at_least(values: Tensor, thresholds: Tensor) -> Tensor:
    """(M, N) how many of a row's values are at least as large as each of the row's thresholds."""
    return values.shape[1] - torch.searchsorted(values.sort(1).values, thresholds.contiguous())


@hookimpl
def register_metrics(register: Register) -> None:
    register(Accuracy)
    register(TopFiveAccuracy)
    register(MeanAveragePrecision)
