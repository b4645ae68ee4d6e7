"""Whether the network's confidence can be believed: calibration error, negative log-likelihood and Brier score.

Paper: ECE sorts the images by the probability of their predicted class into bins of equal width and sums, over bins, the bin's
share of the images times the distance between its accuracy and its mean confidence (Guo et al., equation 3). NLL is the mean of
-log p(label). Brier is the mean of the squared distances between the probabilities and the label, summed over classes.

Choices: `ece` has 15 bins, as Guo et al.; `ece-10` has 10, as ExCon's code. A bin holds its lower edge. On multi-label data each
class of an image is a prediction of its own: the confidence is that of the answer given (yes above .5), NLL and Brier are means over
classes. All test images are scored. An image's own number in ECE is its confidence minus 1 if right, 0 if wrong: the mean tells
over-confidence, the metric itself is computed over all images. Chance alone moves every bin off the diagonal, so ECE is too large
on few images, and resampled images add as much again, which the interval takes off: it reaches further down than up, and may lie below
the number. On 2,000 images it holds a true error of 0, 0.01, 0.03 and 0.1 in 60, 87, 91 and 96 % of cases. `figure` is the
reliability diagram: of each bin the accuracy against the confidence, and below it the share of the images.

Checked against: bins filled by hand, torchmetrics' `multiclass_calibration_error`, and PyTorch's cross-entropy.

Cost: none; the logits of the test images are there already. The figure takes one forward pass per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.contexts import forward
from bench.hookspecs import Register
from bench.interfaces import ExplainContext, Explained, MetricContext
from bench.layers import evaluating


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
    """How far confidence and accuracy lie apart, over bins of equal width: 15, or as many as the name says."""

    name: ClassVar[str] = "ece"
    version: ClassVar[int] = 2  # 1 had an interval that did not take the bias of few images off.
    biased: ClassVar[bool] = True
    paper: ClassVar[str] = "Guo et al.; On Calibration of Modern Neural Networks; ICML 2017; arXiv:1706.04599"
    unit: ClassVar[str] = "probability"

    bins: Annotated[int, Field(ge=1)] = 15

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, 2) confidence, then 1 if right; (B, 2K) for multi-label data, confidences first."""
        return confident_and_right(context.probability(explained.logits), explained.labels)

    def values(self, rows: Tensor) -> Tensor:
        """(N,) over-confidence of each image."""
        confidence, right = rows.chunk(2, dim=1)
        return (confidence - right).mean(1)

    def aggregate(self, rows: Tensor) -> float:
        confidence, right = (part.flatten().double().contiguous() for part in rows.chunk(2, dim=1))
        own_bin = bins_of(confidence, self.bins)
        gaps = torch.zeros(self.bins, dtype=torch.float64).index_add_(0, own_bin, confidence - right)
        return float(gaps.abs().sum() / len(confidence))  # A bin's share times its gap is its summed gap over all images.

    def figure(self, model: nn.Module, data: Any, context: ExplainContext, path: Path) -> None:
        """Draw the reliability diagram of these images into a file."""
        rows = []
        with evaluating(model):
            for inputs, labels in data.batches(context.chunk):
                rows.append(confident_and_right(context.probability(forward(model, inputs, context.chunk)), labels.to(inputs.device)).cpu())
        draw(reliability(torch.cat(rows), self.bins), self.aggregate(torch.cat(rows)), path)


def confident_and_right(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(B, 2) confidence, then 1 if right; (B, 2K) for labels (B, K), confidences first."""
    if labels.ndim == 2:
        confidence = torch.maximum(probabilities, 1 - probabilities)
        right = (probabilities > 0.5) == (labels > 0)
    else:
        confidence, predicted = probabilities.max(1, keepdim=True)
        right = predicted == labels.view(-1, 1)
    return torch.cat([confidence, right.to(confidence)], dim=1)


def bins_of(confidence: Tensor, bins: int) -> Tensor:
    """(N,) the bin of each confidence (N,), one at an edge in the upper of the two."""
    return torch.bucketize(confidence, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1], right=True)


class Reliability(NamedTuple):
    """Of each bin (n,): the share of the images in it, their mean confidence and their accuracy, NaN for an empty one."""

    share: Tensor
    confidence: Tensor
    accuracy: Tensor


def reliability(rows: Tensor, bins: int) -> Reliability:
    """Confidences and right answers by bins of equal width."""
    confidence, right = (part.flatten().double().contiguous() for part in rows.chunk(2, dim=1))
    own_bin = bins_of(confidence, bins)
    count, confident, correct = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, own_bin, each) for each in (torch.ones_like(right), confidence, right)
    )
    return Reliability(count / len(right), confident / count, correct / count)


def draw(bins: Reliability, error: float, path: Path) -> None:
    """Accuracy against confidence above, the share of the images below."""
    from matplotlib.figure import Figure  # Here, so that loading the plugins does not load it; `Figure` leaves pyplot's state alone.

    number = len(bins.share)
    centres = (torch.arange(number) + 0.5) / number
    figure = Figure(figsize=(5, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="as right as confident")
    above.bar(centres, bins.accuracy.nan_to_num(0), width=1 / number, color="tab:blue", alpha=0.35, edgecolor="tab:blue", label="accuracy")
    above.plot(bins.confidence, bins.accuracy, "o", color="tab:red", markersize=4, label="at the mean confidence")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"Expected calibration error {error:.3f} ({number} bins)")
    above.legend(loc="best")
    below.bar(centres, bins.share, width=1 / number, color="0.7", edgecolor="0.5")
    below.set(ylabel="share of images", xlabel="confidence")
    figure.savefig(path, dpi=120)


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
