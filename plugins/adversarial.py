"""Accuracy on test images changed, within a small budget, against the network.

Paper: FGSM moves every pixel value by epsilon along the sign of the loss's gradient. PGD takes many smaller such steps from a
random start and after each goes back to the nearest image within epsilon of the original (Madry et al.).

Choices: everything happens on images in [0, 1], to which results are clipped; `epsilon` and `step` are in 255ths. The loss is
cross-entropy with the true label, binary for multi-label data. FGSM has ExCon's epsilon of 4; PGD has PuzzleMix's setting: epsilon 4,
step 2, 20 iterations. The random start is each image's own. Batch norm uses its running statistics.

Differs from the paper: nothing intended.

Checked against: a linear network, whose margin shrinks by epsilon times the absolute difference of its weights; FGSM as torch's own
gradient gives it; the budget and the range on a small network.

Cost: FGSM 2 forward and 1 backward pass per image; PGD `iterations` + 1 forward and `iterations` backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.contexts import counting, pair_up, untouched
from bench.hookspecs import Register
from bench.interfaces import Explained, MetricContext
from bench_plugins._scoring import copies, drawn, hits


@dataclass(frozen=True)
class _UnderAttack:
    """What the attacks share."""

    version: ClassVar[int] = 1
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = True
    category: ClassVar[str] = "robustness"
    unit: ClassVar[str] = "%"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    epsilon: Annotated[float, Field(ge=0)] = 4.0

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 100 where the attacked image is classified right, else 0."""
        return hits(context.predict(self.attacked(model, explained, context)), explained.labels)

    def attacked(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class FGSMAccuracy(_UnderAttack):
    """Accuracy after one step along the sign of the loss's gradient."""

    name: ClassVar[str] = "fgsm-accuracy"
    paper: ClassVar[str] = "Goodfellow, Shlens, Szegedy; Explaining and Harnessing Adversarial Examples; ICLR 2015; arXiv:1412.6572"

    def attacked(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, C, H, W) the images a step of epsilon away."""
        direction = gradient_sign(model, explained.inputs, explained.labels, context)
        return (explained.inputs + self.epsilon / 255 * direction).clamp(0, 1)


@dataclass(frozen=True)
class PGDAccuracy(_UnderAttack):
    """Accuracy after many steps along the sign of the loss's gradient, within epsilon of the image."""

    name: ClassVar[str] = "pgd-accuracy"
    paper: ClassVar[str] = "Madry et al.; Towards Deep Learning Models Resistant to Adversarial Attacks; ICLR 2018; arXiv:1706.06083"

    step: Annotated[float, Field(gt=0)] = 2.0
    iterations: Annotated[int, Field(ge=1)] = 20
    random_start: bool = True

    def attacked(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, C, H, W) the images after the last step."""
        lowest = (explained.inputs - self.epsilon / 255).clamp_min(0)
        highest = (explained.inputs + self.epsilon / 255).clamp_max(1)
        images = self._start(explained, context).clamp(lowest, highest)
        for _ in range(self.iterations):
            direction = gradient_sign(model, images, explained.labels, context)
            images = (images + self.step / 255 * direction).clamp(lowest, highest)
        return images

    def _start(self, explained: Explained, context: MetricContext) -> Tensor:
        if not self.random_start:
            return explained.inputs
        shares = drawn(copies(context.generators), lambda each: torch.rand(explained.inputs.shape[1:], generator=each), explained.inputs)
        return explained.inputs + self.epsilon / 255 * (2 * shares - 1)


def gradient_sign(model: nn.Module, inputs: Tensor, labels: Tensor, context: MetricContext) -> Tensor:
    """(B, C, H, W) of -1, 0 and 1: where the loss of each image rises, in chunks, leaving the model as it was."""
    with untouched(model), torch.enable_grad(), counting(model, context.passes):
        pieces = zip(inputs.split(context.chunk), labels.split(context.chunk), strict=True)
        return torch.cat([_gradient(model, pair_up(images), pair_up(wanted))[: len(images)].sign() for images, wanted in pieces])


def _gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    inputs = inputs.detach().requires_grad_()
    logits = model(inputs)
    # A sum, so that an image's gradient does not depend on how many others there are.
    if labels.ndim == 2:
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum")
    else:
        loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.autograd.grad(loss, inputs)[0]


@hookimpl
def register_metrics(register: Register) -> None:
    register(FGSMAccuracy)
    register(PGDAccuracy)
