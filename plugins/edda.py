"""EDDA: images masked by their own explanation join the batch while the network still recognises them.

Paper: for images that the network gets right, the map s of the label is brought to [0, 1] (equation 2); the umask keeps
s > tau_u (equation 3), the imask keeps s < tau_i (equation 4). A masked image that is still given the label is added to the
batch with the original target (section 3.2). Multi-label data (section 3.3): one imask for each class that is labelled and
predicted, added with the full target if that class is still predicted; no umask.

Differs from the paper: nothing intended. Its algorithms 2 and 3 print the two inequalities the other way round; the equations
are followed, as the text around them asks. The originals always stay in the batch, as the text says. Both inequalities are
strict, so a pixel exactly at a threshold is hidden in both images.

Choices: maps, predictions and masked predictions are those of eval mode. Each map is scaled by its own minimum and maximum; a
constant map counts as 0 everywhere. A masked image equal to the original is dropped. Hidden pixels take the model's mean
colour, zero in model space. A class of multi-label data is predicted when its probability is above one half. `start` is r, the
share of the training without augmentation. `edda-random` uses independent uniform maps (the paper's RandExp); scaling by
minimum and maximum moves its kept share, on average, by less than one pixel.

Checked against: hand-worked masks and acceptances on the two-channel network with signed and with positive Grad-CAM, and stub
models that accept everything, nothing, or one kind of mask; no reference code is public.

Cost: one forward per image to find the correct ones; for each correct image the explainer's passes (Grad-CAM: one forward, one
backward that ends at the target layer) and two forwards of masked images. Multi-label data: the explainer's passes and one
forward for each image and class explained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Explaining, Fill, Fraction, StepContext


@dataclass(frozen=True)
class Edda:
    """Adds images masked by an explanation that are still recognised."""

    name: ClassVar[str] = "edda"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Li, Zhang, Li, Trabelsi, Sanner, Jang, Jeong, Shim; EDDA: Explanation-driven Data Augmentation to Improve Explanation Faithfulness; 2021"
    )
    claim: ClassVar[str] = "formula verified"

    explainer: Explaining = "gradcam"
    tau_u: Fraction = 0.5
    tau_i: Fraction = 0.5
    start: Fraction = 0.0
    fill: Fill = "mean"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        if context.progress < self.start:
            return batch
        rows, classes = recognised(context.predict(model, batch.inputs), batch, context.multi_label)
        context.log(edda_explained=len(rows) / len(batch))
        if not len(rows):
            return batch
        inputs = batch.inputs[rows]
        shown = self.masks(unit_range(context.explain(model, inputs, classes)), context.multi_label)
        hidden = context.fill(self.fill, inputs)
        images = torch.cat([torch.where(mask, inputs, hidden) for mask in shown.values()])
        rows, classes = rows.repeat(len(shown)), classes.repeat(len(shown))

        # A mask that hides nothing gives the original again, which the network is known to recognise: no forward for that.
        accepted = ~torch.cat(list(shown.values())).flatten(1).all(1)
        accepted[accepted.clone()] = still_recognised(context.predict(model, images[accepted]), classes[accepted], context.multi_label)
        for kind, part in zip(shown, accepted.chunk(len(shown)), strict=True):
            context.log(**{f"edda_{kind}_accepted": part.float().mean()})
        return batch.append(images[accepted], rows[accepted])

    def masks(self, saliency: Tensor, multi_label: bool) -> dict[str, Tensor]:
        """(n, 1, H, W) True where pixels stay visible, for each kind of mask (equations 3 and 4)."""
        imask = {"imask": saliency < self.tau_i}
        return imask if multi_label else {"umask": saliency > self.tau_u, **imask}


def recognised(logits: Tensor, batch: Batch, multi_label: bool) -> tuple[Tensor, Tensor]:
    """(n,) rows and (n,) classes to explain: correct images by their label, or every labelled class that is predicted."""
    if multi_label:
        rows, classes = ((logits > 0) & (batch.targets > 0.5)).nonzero(as_tuple=True)
        return rows, classes
    rows = (logits.argmax(1) == batch.labels).nonzero().squeeze(1)
    return rows, batch.labels[rows]


def still_recognised(logits: Tensor, classes: Tensor, multi_label: bool) -> Tensor:
    """(n,) whether a masked image is still given its class."""
    if multi_label:
        return logits.gather(1, classes.unsqueeze(1)).squeeze(1) > 0
    return logits.argmax(1) == classes


def unit_range(maps: Tensor) -> Tensor:
    """(n, 1, H, W) in [0, 1], each map by its own minimum and maximum; a constant map is 0."""
    lowest = maps.amin((1, 2, 3), keepdim=True)
    spread = maps.amax((1, 2, 3), keepdim=True) - lowest
    return (maps - lowest) / torch.where(spread > 0, spread, torch.ones_like(spread))


@hookimpl
def register_augmenters(register: Any) -> None:
    register(Edda)
    register(Edda, name="edda-random", explainer="random")
