"""Whether the network's confidence can be believed: calibration error, negative log-likelihood and Brier score.

Paper: ECE sorts the images by the probability of their predicted class into bins of equal width and sums, over bins, the bin's
share of the images times the distance between its accuracy and its mean confidence (Guo et al., equation 3). NLL is the mean of
-log p(label). Brier is the mean of the squared distances between the probabilities and the label, summed over classes.

Choices: `ece` has 15 bins, as Guo et al.; `ece-10` has 10, as ExCon's code. A bin holds its lower edge. On multi-label data each
class of an image is a prediction of its own: the confidence is that of the answer given (yes above .5), NLL and Brier are means over
classes. All test images are scored. An image's own number in ECE is its confidence minus 1 if right, 0 if wrong: the mean tells
over-confidence, the metric itself is computed over all images.

Checked against: bins filled by hand, torchmetrics' `multiclass_calibration_error`, and PyTorch's cross-entropy.

Cost: none; the logits of the test images are there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Explained, MetricContext


@dataclass(frozen=True)
class _OfProbabilities:
    """What the metrics of this family share."""

    version: ClassVar[int] = 1
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = False
    category: ClassVar[str] = "calibration"
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    all_images: ClassVar[bool] = True


@dataclass(frozen=True)
class ExpectedCalibrationError(_OfProbabilities):
    """How far confidence and accuracy lie apart, over bins of equal confidence (15)."""

    name: ClassVar[str] = "ece"
    paper: ClassVar[str] = "Guo et al.; On Calibration of Modern Neural Networks; ICML 2017; arXiv:1706.04599"
    unit: ClassVar[str] = "probability"

    bins: Annotated[int, Field(ge=1)] = 15

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, 2) confidence, then 1 if right; (B, 2K) for multi-label data, confidences first."""
        probabilities = context.probability(explained.logits)
        if explained.labels.ndim == 2:
            confidence = torch.maximum(probabilities, 1 - probabilities)
            right = (probabilities > 0.5) == (explained.labels > 0)
        else:
            confidence, predicted = probabilities.max(1, keepdim=True)
            right = predicted == explained.labels.view(-1, 1)
        return torch.cat([confidence, right.to(confidence)], dim=1)

    def values(self, rows: Tensor) -> Tensor:
        """(N,) over-confidence of each image."""
        confidence, right = rows.chunk(2, dim=1)
        return (confidence - right).mean(1)

    def aggregate(self, rows: Tensor) -> float:
        confidence, right = (part.flatten().double().contiguous() for part in rows.chunk(2, dim=1))
        inner_edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)[1:-1]
        own_bin = torch.bucketize(confidence, inner_edges, right=True)
        gaps = torch.zeros(self.bins, dtype=torch.float64).index_add_(0, own_bin, confidence - right)
        return float(gaps.abs().sum() / len(confidence))  # A bin's share times its gap is its summed gap over all images.


@dataclass(frozen=True)
class NegativeLogLikelihood(_OfProbabilities):
    """The mean of minus the logarithm of the label's probability."""

    name: ClassVar[str] = "nll"
    paper: ClassVar[str] = "Guo et al.; On Calibration of Modern Neural Networks; ICML 2017; arXiv:1706.04599"
    unit: ClassVar[str] = "nats"

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 0 or above."""
        if explained.labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(explained.logits, explained.labels.to(explained.logits), reduction="none").mean(1)
        return F.cross_entropy(explained.logits, explained.labels, reduction="none")


@dataclass(frozen=True)
class Brier(_OfProbabilities):
    """The squared distance between the probabilities and the label."""

    name: ClassVar[str] = "brier"
    paper: ClassVar[str] = "Brier; Verification of Forecasts Expressed in Terms of Probability; Monthly Weather Review 1950"
    unit: ClassVar[str] = "squared distance"

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 0 to 2, or 0 to 1 for multi-label data."""
        probabilities = context.probability(explained.logits)
        if explained.labels.ndim == 2:
            return (probabilities - explained.labels.to(probabilities)).square().mean(1)
        return (probabilities - F.one_hot(explained.labels, probabilities.shape[1])).square().sum(1)


@hookimpl
def register_metrics(register: Register) -> None:
    register(ExpectedCalibrationError)
    register(ExpectedCalibrationError, name="ece-10", bins=10)
    register(NegativeLogLikelihood)
    register(Brier)
