"""Summit's aggregation: which channels a class uses at a convolution, and which of them feed which.

It explains a class, not an image, and says nothing better or worse of a network: so it is neither an explainer nor a metric, and this
module registers no part. Call `attribution_graph(model, layers, images)` with the images of one class.

Paper: nodes. In each image a channel counts with its largest value over space; the channels that together hold the first 3 % of the
sum, from the largest down, are the image's most active ones, and a node is a channel with the number of the class's images in which
it is one. A fixed number of channels per image, `count`, is the paper's other rule. Edges. Channel i adds X_i * K_i^(j) to channel j
of the next layer; its influence is the largest value of that over space, and an edge i → j carries the number of images in which i
is among the five most influential on j. The graph keeps the strongest.

Differs from the paper: layers are convolutions, named one by one, and nodes are the channels that a convolution reads; the authors
join the branches of each Inception block. Channels they left out by hand as meaningless are in.

Checked against: contributions add up to the convolution's output; the authors' rule for the most active channels, step by step; a
network whose classes use known channels.

Cost: 1 forward pass per image, and each named convolution once more, without its sum over channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contexts import pair_up
from bench.errors import InvalidValue, did_you_mean
from bench.layers import evaluating

AT_ONCE = 2**26  # Contributions held at a time before their largest is taken: 256 MB.


class Edge(NamedTuple):
    """In `images` images, the channel `read` is among the most influential on the channel `written`."""

    read: int
    written: int
    images: int


class Level(NamedTuple):
    """One convolution of a class's graph: in how many images each channel it reads is among the most active (C,), and the edges (K, C)."""

    name: str
    channels: Tensor
    edges: Tensor

    def strongest(self, count: int) -> list[Edge]:
        """The edges with the most images; equal ones in the order of the channels written, then read."""
        places = self.edges.flatten().argsort(descending=True, stable=True)[:count].tolist()
        return [Edge(place % self.edges.shape[1], place // self.edges.shape[1], int(self.edges.flatten()[place])) for place in places]


def attribution_graph(
    model: nn.Module, layers: Sequence[str], images: Iterable[Tensor], share: float = 0.03, count: int | None = None, top: int = 5
) -> list[Level]:
    """The levels of one class's graph, one for each named convolution.

    images: batches (B, C, H, W) of the class's images. count: take this many channels per image, instead of those that hold `share`.
    top: how many channels read are counted as influential on a channel written. The model is left as it was. Raises InvalidValue for
    a name that is no plain convolution of the model.
    """
    convolutions = {name: _convolution(model, name) for name in layers}
    channels = {name: torch.zeros(each.in_channels, dtype=torch.long) for name, each in convolutions.items()}
    edges = {name: torch.zeros(each.out_channels, each.in_channels, dtype=torch.long) for name, each in convolutions.items()}
    for batch in images:
        with evaluating(model), torch.no_grad(), _reading(convolutions) as read:
            model(pair_up(batch))
        for name, inputs in read.items():
            maps = inputs[: len(batch)]
            maxima = maps.amax((2, 3))
            channels[name] += (most_active(maxima, share) if count is None else largest(maxima, count)).sum(0).cpu()
            edges[name] += largest(contributions(convolutions[name], maps), top).sum(0).cpu()
    return [Level(name, channels[name], edges[name]) for name in layers]


def most_active(maxima: Tensor, share: float) -> Tensor:
    """(B, C) bool: the fewest channels that hold `share` of the sum of an image's maxima (B, C), those below zero counting nothing."""
    ordered, places = maxima.clamp(min=0).sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered  # Held by the larger ones.
    taken = (before < share * ordered.sum(1, keepdim=True)) & (ordered > 0)
    return torch.zeros_like(taken).scatter(1, places, taken)


def largest(values: Tensor, count: int) -> Tensor:
    """(…, C) bool: the `count` largest of each row of values (…, C)."""
    places = values.topk(min(count, values.shape[-1])).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, places, True)


@torch.no_grad()
def contributions(convolution: nn.Conv2d, inputs: Tensor) -> Tensor:
    """(B, K, C) the largest value over space of what each channel read adds to each channel written, bias aside."""
    return torch.cat([part.flatten(3).amax(3) for part in _contribution_maps(convolution, inputs)], dim=1).transpose(1, 2)


def _contribution_maps(convolution: nn.Conv2d, inputs: Tensor) -> Iterator[Tensor]:
    """(B, c, K, h, w) the convolution without its sum over channels, some of the channels read at a time."""
    written, size = convolution.out_channels, convolution.weight.shape[2:]
    for channels in torch.arange(inputs.shape[1], device=inputs.device).split(max(1, AT_ONCE // (inputs[:, 0].numel() * written))):
        kernels = convolution.weight[:, channels].transpose(0, 1).reshape(-1, 1, *size)  # (c · K, 1, kh, kw)
        maps = F.conv2d(inputs[:, channels], kernels, None, convolution.stride, convolution.padding, convolution.dilation, len(channels))
        yield maps.unflatten(1, (len(channels), written))


@contextmanager
def _reading(convolutions: dict[str, nn.Conv2d]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward leaves what each convolution read."""
    read: dict[str, Tensor] = {}
    handles = [
        each.register_forward_pre_hook(lambda _, arguments, name=name: read.update({name: arguments[0]})) for name, each in convolutions.items()
    ]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _convolution(model: nn.Module, name: str) -> nn.Conv2d:
    modules = {known: module for known, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if name not in modules:
        raise InvalidValue(f"the model has no convolution '{name}'.{did_you_mean(name, modules)}\nIts convolutions: {', '.join(modules)}")
    if modules[name].groups != 1 or modules[name].padding_mode != "zeros":
        raise InvalidValue(f"convolution '{name}' works in groups or pads with something else than zeros; its contributions are not defined here.")
    return modules[name]
