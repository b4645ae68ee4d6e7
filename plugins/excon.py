"""ExCon: in contrastive training an image is paired with what its own explanation shows, if that is enough to recognise it.

Paper: the first of the two views of an image becomes the image itself with every pixel hidden whose explanation, scaled to
[0, 1], is not above tau. Where the network does not give the masked image its label, the random view stays. `exconb` adds
each masked image that was not recognised as a background: a row that is a negative for all others and nothing else.

Differs from the paper: the published code explains and judges masked images with the encoder in training mode, so that batch
norm follows the masked images too; here both happen in eval mode and leave no trace. An option of the code that none of its
commands uses, backgrounds as a class of their own, is left out.

Choices: the code explains the image's own label with Grad-CAM without the last ReLU, on the whole image, neither cropped nor
mirrored. Its layer for CIFAR-100 and ResNet-50 is the last convolution of the second of four blocks; here it is the
explainer's. Whether the whole image is recognised decides nothing, so it is not asked. A constant map hides everything. Hidden
pixels take the mean colour. `start` is the share of the training with random views only: 49 of 200 epochs for CIFAR-100 (the
code counts from 1 and explains from the 50th on), none for Tiny ImageNet. `plain-views` leaves both views as the trainer drew
them: the arm to compare with, under the same draws.

Checked against: the mask of the two-channel network by hand, stub networks for each outcome of masking, and a training in which
the explanations never start, which equals `plain-views` to the bit.

Cost: for each image, once started, the explainer's passes (Grad-CAM: one forward, one backward that ends at the layer) and one
forward of the masked image; each background two forwards and backwards in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from bench import hookimpl
from bench.interfaces import Batch, Explaining, Fill, Fraction, StepContext
from bench_plugins._views import Views
from bench_plugins.edda import unit_range

TRAINERS = ("supcon",)


@dataclass(frozen=True)
class PlainViews:
    """Leaves the two random views as they are."""

    name: ClassVar[str] = "plain-views"
    floor: ClassVar[bool] = True
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"
    trainers: ClassVar[tuple[str, ...]] = TRAINERS

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        return batch

    def views(self, model: nn.Module, views: Views, context: StepContext) -> Views:
        return views


@dataclass(frozen=True)
class ExCon:
    """Pairs each image with the part of it that its explanation shows."""

    name: ClassVar[str] = "excon"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Zhang, Jang, Trabelsi, Li, Sanner, Jeong, Shim; ExCon: Explanation-driven Supervised Contrastive Learning for Image Classification; "
        "2021; arXiv:2111.14271"
    )
    claim: ClassVar[str] = "formula verified"
    trainers: ClassVar[tuple[str, ...]] = TRAINERS

    explainer: Explaining = "gradcam-signed"
    tau: Fraction = 0.5
    start: Fraction = 49 / 200
    backgrounds: bool = False
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        """Batches stay as they are; only views change."""
        return batch

    def views(self, model: nn.Module, views: Views, context: StepContext) -> Views:
        if context.progress < self.start:
            return views
        labels = views.labels[: len(views.raw)]
        shown = unit_range(context.explain(model, views.raw, labels)) > self.tau
        masked = torch.where(shown, views.raw, context.fill(self.fill, views.raw))
        recognised = context.predict(model, masked).argmax(1) == labels
        context.log(excon_recognised=recognised.float().mean())
        views = views._replace(first=torch.where(recognised.view(-1, 1, 1, 1), masked, views.first))
        return views.with_negatives(masked[~recognised]) if self.backgrounds else views


@hookimpl
def register_augmenters(register: Any) -> None:
    register(PlainViews)
    register(ExCon)
    register(ExCon, name="exconb", backgrounds=True)
