"""Mixing by saliency: what is pasted into an image is chosen by where the other image is salient.

Paper: SaliencyMix pastes a box of CutMix's size, but around the peak of the other image's saliency, at the same place. The
saliency is a bottom-up one: the grey image is compared with the mean of windows of six sizes around each pixel, brighter and
darker differences are summed over the sizes, each is divided by its maximum, and both are added. Attentive CutMix pastes
the cells of the other image's feature grid that are active most, 6 of 7 x 7, in the mean over the channels.

Differs from the paper: SaliencyMix's authors centre all boxes of a batch on the peak of one image, and hand normalised floating
point images to OpenCV, whose code reads them as bytes (on a hundred 32-pixel crops that map had a correlation of 0.006 with the
map of the same crop in 8 bits). Here each image has a box around its partner's own peak, from [0, 1] pixels. Attentive CutMix
takes its features from a ResNet-50 trained on ImageNet; here they come from the network that is being trained, in eval mode.

Choices: the share 6/49 is kept on every grid, rounded, at least one cell; the cells are enlarged to the image's size by the
nearest. Targets are weighed by the area that was pasted. The authors of SaliencyMix mix half of the batches; `prob` is 1 here.
`mode` is about λ, as in CutMix; the places are always each image's own.

Checked against: the saliency by a loop over pixels (and, outside the tests, OpenCV's map of a hundred 8-bit crops: mean
correlation 0.995), areas by counting pixels, the cells of a feature map that is known.

Cost: SaliencyMix no passes; Attentive CutMix one forward per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fraction, StepContext
from bench_plugins._boxes import between, window_sums
from bench_plugins._draws import mix_by
from bench_plugins.mixing import Alpha, Mode, box_masks, draw_partners, draw_shares, draws

WINDOWS = (12, 24, 48, 28, 56, 112)  # Pixels from the centre, as in OpenCV, whatever the image's size.
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class SaliencyMix:
    """Pastes a box around another image's most salient point."""

    name: ClassVar[str] = "saliencymix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Uddin, Monira, Shin, Chung, Bae; SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization; "
        "ICLR 2021; arXiv:2006.01791"
    )
    claim: ClassVar[str] = "formula verified"

    alpha: Alpha = 1.0
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        height, width = batch.inputs.shape[2:]
        shares = draw_shares(self.alpha, self.prob, draws(self.mode, batch), context.generator).expand(len(batch))
        partners = draw_partners(batch, context.generator)
        peaks = fine_grained_saliency(batch.inputs)[partners].flatten(1).argmax(1).cpu()
        boxes = box_masks(shares, peaks // width, peaks % width, height, width)
        return mix_by(~boxes.to(batch.inputs.device), batch, partners)


def fine_grained_saliency(inputs: Tensor) -> Tensor:
    """(B, H, W) how much each pixel differs from its surroundings, from 0 to at most 2."""
    grey = _smooth(_smooth(_grey(inputs.float())))
    surround = torch.stack([_mean_around(grey, reach) for reach in WINDOWS])
    brighter, darker = (grey - surround).clamp(min=0).sum(0), (surround - grey).clamp(min=0).sum(0)
    return _by_maximum(brighter) + _by_maximum(darker)


def _grey(inputs: Tensor) -> Tensor:
    """(B, H, W)"""
    if inputs.shape[1] != 3:
        return inputs.mean(1)
    return torch.einsum("bchw,c->bhw", inputs, inputs.new_tensor(GREY))


def _smooth(grey: Tensor) -> Tensor:
    """(B, H, W) blurred by (1, 2, 1) / 4 along both axes, mirrored at the border."""
    weights = grey.new_tensor([0.25, 0.5, 0.25])
    padded = F.pad(grey.unsqueeze(1), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (weights[:, None] * weights).view(1, 1, 3, 3)).squeeze(1)


def _mean_around(grey: Tensor, reach: int) -> Tensor:
    """(B, H, W) the mean of a window without its centre, cut off at the border; it reaches one pixel further down and right."""
    places = [torch.arange(size, device=grey.device) for size in grey.shape[1:]]
    rows, columns = (between(place - reach + 1, place + reach + 1, len(place)) for place in places)
    return (window_sums(grey, rows, columns) - grey) / (window_sums(torch.ones_like(grey[:1]), rows, columns) - 1)


def _by_maximum(maps: Tensor) -> Tensor:
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@dataclass(frozen=True)
class AttentiveCutMix:
    """Pastes the cells of another image where the network's features are strongest."""

    name: ClassVar[str] = "attentive-cutmix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Walawalkar, Shen, Liu, Savvides; Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning Based Image Classification; "
        "ICASSP 2020; arXiv:2003.13048"
    )
    claim: ClassVar[str] = "formula verified"

    share: Annotated[float, Field(gt=0, lt=1)] = 6 / 49
    prob: Fraction = 1.0

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        if torch.rand((), generator=context.generator) >= self.prob:
            return batch
        partners = draw_partners(batch, context.generator)
        _, maps = context.features(model, batch.inputs)
        cells = strongest_cells(maps[-1].detach().mean(1), self.share)[partners]
        taken = F.interpolate(cells.unsqueeze(1).float(), size=batch.inputs.shape[2:], mode="nearest")
        return mix_by(1 - taken, batch, partners)


def strongest_cells(activity: Tensor, share: float) -> Tensor:
    """(B, h, w) True on the cells with the highest values, a share of all, at least one."""
    flat = activity.flatten(1)
    top = flat.topk(max(1, round(share * flat.shape[1])), dim=1).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, top, True).view_as(activity)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(SaliencyMix)
    register(AttentiveCutMix)
