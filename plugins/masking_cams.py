"""Class-activation maps without gradients: hide or keep what one feature map shows and see what becomes of the score.

Paper: Score-CAM resizes each feature map A_k to the image, stretches it to [0, 1] and keeps the image where it is bright:
x_k = background + mask_k · (x - background). Weight w_k = p(x_k) - p(background), p the target's probability;
map = ReLU(sum of w_k A_k). Ablation-CAM sets one feature map to zero: w_k = (y - y without A_k) / y with the target's
logit y; map = ReLU(sum of w_k A_k).

Differs from the paper: `scorecam` keeps the model's mean colour as background, which is the zero of a normalised image;
`fill` names another. `scorecam-softmax` takes the logits of the x_k, softmax over the channels, as weights, as
pytorch-grad-cam does. `scorecam-reference` takes p(x_k) alone, as the authors' code does. Channels whose weight or map
cannot but be zero are left out. `ablationcam` with `relative` off leaves the division out: for a negative y, dividing
turns the map upside down, as published.

Checked against: a two-channel network worked out by hand; a loop over images and channels; the head alone against the whole network.
On ResNet-56, EfficientNet-Lite0, ViT-tiny and VGG-16, to 1e-4 of the map's largest value: `scorecam-softmax` against pytorch-grad-cam
(after its rescaling) with its masks resized as ours, and against it and torchcam as they are where the maps are as large as the image.
Elsewhere pytorch-grad-cam keeps the corners when it resizes masks and torchcam stretches masks before it resizes them: on ResNet-56 the
maps were seen to differ from ours by up to .18 and .03. No library has `scorecam` or `scorecam-reference`. `ablationcam` against captum's
feature ablation (the first two networks), and against pytorch-grad-cam where no map is negative; a channel of negative maps it sets to
1e7 below the least value, in the class token too, and lower in each further row of a batch.

Cost: Score-CAM one forward per channel and one for the maps, and one or two per call for the background. Ablation-CAM
one forward for the maps; where the network has a method `head` that takes them, one pass of that per channel, which is
not counted, and two forwards per call to make sure; elsewhere one whole forward per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bench import hookimpl
from bench.contexts import forward, pair_up
from bench.interfaces import ExplainContext, Fill, Layer
from bench.layers import recording
from bench_plugins._maps import chosen_channels, feature_map, logits_and_maps, logits_and_outputs, rescaled, seen_through, upsample


@dataclass(frozen=True)
class ScoreCam:
    """Feature maps weighed by the score of the image seen through each of them."""

    layer: str | None = None
    weights: Literal["increase", "softmax", "probability"] = "increase"
    fill: Fill = "mean"

    name: ClassVar[str] = "scorecam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Wang, Wang, Du, Yang, Zhang, Ding, Mardziel, Hu; "
        "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks; CVPR Workshops 2020; arXiv:1910.01279"
    )
    claim: ClassVar[str] = "formula verified"

    @torch.no_grad()
    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), zero or above."""
        _, maps = logits_and_maps(model, inputs, context.layer(self.layer, model), context.chunk)
        weights = self._weights(model, inputs, targets, maps, context)  # (B, C)
        return weighted_map(weights, maps, inputs.shape)

    def _weights(self, model: nn.Module, inputs: Tensor, targets: Tensor, maps: Tensor, context: ExplainContext) -> Tensor:
        background = context.fill(self.fill, inputs)
        alone = background[:1] if self.fill in ("black", "mean") else background  # These two are alike for all images.
        hidden = self._scores(forward(model, alone, context.chunk).expand(len(inputs), -1), targets, context)  # (B,)
        # A constant map is stretched to 0: nothing is seen but the background, whose score is known.
        shown = maps.amax((2, 3)) > maps.amin((2, 3))  # (B, C)
        scores = hidden[:, None].repeat(1, maps.shape[1])
        for images, channels in chosen_channels(shown, context.chunk):
            masks = rescaled(upsample(maps[images, channels].unsqueeze(1), inputs.shape))  # (n, 1, H, W)
            logits = model(pair_up(seen_through(masks, inputs, background, images)))[: len(images)]
            scores[images, channels] = self._scores(logits, targets[images], context)
        match self.weights:
            case "increase":
                return scores - hidden[:, None]
            case "softmax":
                return scores.softmax(1)
            case "probability":
                return scores * shown

    def _scores(self, logits: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        return of_target(logits if self.weights == "softmax" else context.probability(logits), targets)


@dataclass(frozen=True)
class AblationCam:
    """Feature maps weighed by how far the target's logit falls without each of them."""

    layer: str | None = None
    relative: bool = True

    name: ClassVar[str] = "ablationcam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Desai, Ramaswamy; Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization; WACV 2020"
    )
    claim: ClassVar[str] = "formula verified"

    @torch.no_grad()
    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), zero or above."""
        layer = context.layer(self.layer, model)
        logits, outputs = logits_and_outputs(model, inputs, layer, context.chunk)
        maps = feature_map(layer, outputs)
        scores = of_target(logits, targets)[:, None]  # (B, 1)
        without = scores.repeat(1, maps.shape[1])
        ablated = ablated_logits(model, inputs, layer, outputs, context)
        for images, channels in chosen_channels(maps.ne(0).any(3).any(2), context.chunk):
            rows = ablated(pair_up(images), pair_up(channels))[: len(images)]
            without[images, channels] = of_target(rows, targets[images])
        drops = scores - without
        weights = drops / torch.where(scores == 0, 1, scores) if self.relative else drops  # (B, C)
        return weighted_map(weights, maps, inputs.shape)


def ablated_logits(model: nn.Module, inputs: Tensor, layer: Layer, outputs: Tensor, context: ExplainContext) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of images (n,) and channels (n,): the logits (n, K) of these images, each without one channel of the layer."""

    ablated = Ablated(layer, outputs)

    def head_only(images: Tensor, channels: Tensor) -> Tensor:
        return model.head(ablated(images, channels))

    def whole(images: Tensor, channels: Tensor) -> Tensor:
        with recording([layer], lambda _, output: without_channels(layer, output, channels)):
            return model(inputs[images])

    return head_only if head_takes(model, inputs[:2], outputs[:2], context) else whole


def head_takes(model: nn.Module, inputs: Tensor, outputs: Tensor, context: ExplainContext) -> bool:
    """Has the network methods `features` and `head`, and is what this layer gave what the one hands to the other?"""
    if not (hasattr(type(model), "features") and hasattr(type(model), "head")):  # A submodule called `head` is no such promise.
        return False
    features = model.features(inputs)
    context.passes.add(forward=len(inputs))
    return features.shape == outputs.shape and torch.allclose(features, outputs, rtol=1e-3, atol=1e-3 * outputs.abs().max().item())


class Ablated:
    """Rows of what a layer gave, each with one channel set to zero, in a buffer that is kept from call to call.

    While the images stay the same, only the channel that was missing and the one that is to be are written: copying whole maps
    was measured to take longer than a pooling head does.
    """

    def __init__(self, layer: Layer, outputs: Tensor) -> None:
        self.layer, self.outputs = layer, outputs
        self.written: tuple[Tensor, Tensor, int] | None = None  # Images, channels, and the buffer's version behind them.
        self.rows = outputs[:0]

    def __call__(self, images: Tensor, channels: Tensor) -> Tensor:
        if not is_view(self.layer, self.outputs):
            return without_channels(self.layer, self.outputs.index_select(0, images), channels)
        if self._holds(images):
            self._write(self.written[1], self.layer.to_map(self.outputs)[images, self.written[1]])
        else:
            self.rows = self.outputs.index_select(0, images)
        self._write(channels, 0)
        self.written = images, channels, self.rows._version
        return self.rows

    def _holds(self, images: Tensor) -> bool:
        """Are these images in the buffer, and did nobody, such as a head that works in place, write into it?"""
        return self.written is not None and torch.equal(images, self.written[0]) and self.rows._version == self.written[2]

    def _write(self, channels: Tensor, values: Tensor | int) -> None:
        write_channels(self.layer.to_map(self.rows), channels, values)


def without_channels(layer: Layer, outputs: Tensor, channels: Tensor) -> Tensor:
    """The layer's outputs, in their own layout, with one channel of each row's map set to zero."""
    if is_view(layer, outputs):
        copies = outputs.clone(memory_format=torch.contiguous_format)
        write_channels(layer.to_map(copies), channels, 0)
        return copies
    maps, back = torch.func.vjp(layer.to_map, outputs)
    chosen = torch.zeros_like(maps)
    write_channels(chosen, channels, 1)
    return outputs.masked_fill(back(chosen)[0] != 0, 0)  # Back through `to_map` lies what the channel was taken from.


def write_channels(maps: Tensor, channels: Tensor, values: Tensor | int) -> None:
    """Write into one channel of each of the maps (n, C, h, w)."""
    maps[torch.arange(len(channels), device=channels.device), channels] = values


def is_view(layer: Layer, outputs: Tensor) -> bool:
    """Do the layer's maps lie in the memory of its outputs, so that writing into the one changes the other?"""
    return layer.to_map(outputs).untyped_storage().data_ptr() == outputs.untyped_storage().data_ptr()


def weighted_map(weights: Tensor, maps: Tensor, size: torch.Size) -> Tensor:
    """(B, 1, H, W): the positive part of the sum of maps (B, C, h, w) times weights (B, C), upsampled."""
    return upsample((weights[:, :, None, None] * maps).sum(1, keepdim=True).relu(), size)


def of_target(scores: Tensor, targets: Tensor) -> Tensor:
    """(B,) each row's own target of (B, K)."""
    return scores.gather(1, targets.view(-1, 1)).squeeze(1)


@hookimpl
def register_explainers(register: Any) -> None:
    register(ScoreCam)
    register(ScoreCam, name="scorecam-softmax", weights="softmax")
    register(ScoreCam, name="scorecam-reference", weights="probability")
    register(AblationCam)
