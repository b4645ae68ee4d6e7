"""Shared by the class-activation plugins: a layer's maps, their gradient, and the way back to the image's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contexts import pair_up
from bench.errors import InvalidValue
from bench.interfaces import Layer
from bench.layers import recording


def maps_and_gradients(model: nn.Module, inputs: Tensor, targets: Tensor, layer: Layer, chunk: int) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) twice: the layer's maps, and the gradient of each row's target logit by them.

    The graph begins at the layer: what comes before it runs without one.
    """

    def one(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, output = _through(model, inputs, layer, lambda output: output.detach().requires_grad_())
        # In eval mode no row sees another, so one backward of the sum gives every row its own gradient.
        (gradient,) = torch.autograd.grad(logits.gather(1, targets.view(-1, 1)).sum(), output)
        # `to_map` only rearranges and selects, so a gradient takes the same way as the output it belongs to.
        return feature_map(layer, output.detach()), feature_map(layer, gradient)

    return _by_chunks(one, inputs, targets, chunk)


def logits_and_maps(model: nn.Module, inputs: Tensor, layer: Layer, chunk: int) -> tuple[Tensor, Tensor]:
    """The logits (B, K) and the layer's maps (B, C, h, w), without gradient."""
    logits, outputs = logits_and_outputs(model, inputs, layer, chunk)
    return logits, feature_map(layer, outputs)


def logits_and_outputs(model: nn.Module, inputs: Tensor, layer: Layer, chunk: int) -> tuple[Tensor, Tensor]:
    """The logits (B, K) and what the layer gave, whatever its layout, without gradient."""

    def one(inputs: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return _through(model, inputs, layer, lambda output: output)

    return _by_chunks(one, inputs, inputs, chunk)


def _by_chunks(one: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], inputs: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    if 1 < len(inputs) <= chunk:
        return one(inputs, targets)
    pieces = zip(inputs.split(chunk), targets.split(chunk), strict=True)
    parts = [[rows[: len(piece)] for rows in one(pair_up(piece), pair_up(wanted))] for piece, wanted in pieces]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _through(model: nn.Module, inputs: Tensor, layer: Layer, keep: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The logits, and what `keep` made of the layer's last output."""
    kept: list[Tensor] = []

    def change(_: int, output: Tensor) -> Tensor:
        kept.append(keep(output))
        return kept[-1].clone()  # The network gets a copy: an in-place ReLU after the layer would write into the maps.

    with recording([layer], change):
        logits = model(inputs)
    if not kept:
        raise InvalidValue(f"layer '{layer.name}' takes no part in the network's forward, so it has no maps. Name another one.")
    return logits, kept[-1]


def feature_map(layer: Layer, output: Tensor) -> Tensor:
    """(B, C, h, w) of a layer's raw output. Raises InvalidValue where the layer gives no feature map."""
    maps = layer.to_map(output)
    if maps.ndim != 4:
        raise InvalidValue(f"layer '{layer.name}' gives {tuple(maps.shape)}, and a class-activation map needs (B, C, h, w). Name an earlier layer.")
    return maps


def upsample(maps: Tensor, size: torch.Size) -> Tensor:
    """Bilinear, pixel centres aligned as areas (`align_corners=False`), to the last two sides of `size`."""
    return F.interpolate(maps, size=size[-2:], mode="bilinear", align_corners=False)


def rescaled(maps: Tensor) -> Tensor:
    """Each (B, 1, H, W) map stretched to [0, 1]; a constant one becomes 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low).div_(torch.where(high > low, high - low, 1))


def seen_through(masks: Tensor, inputs: Tensor, hidden: Tensor, rows: Tensor) -> Tensor:
    """(n, C, H, W) the images of these rows where their masks (n, 1, H, W) are 1, what hides them where the masks are 0."""
    behind = hidden[:1] if hidden.stride(0) == 0 else hidden[rows]  # One colour for all images need not be copied.
    images = inputs.index_select(0, rows)
    return torch.lerp(behind, images, masks, out=images)


def chosen_channels(chosen: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The (image, channel) pairs that are true in (B, C), as two indices of at most `chunk` rows at a time."""
    images, channels = chosen.nonzero(as_tuple=True)
    return zip(images.split(chunk), channels.split(chunk), strict=True)
