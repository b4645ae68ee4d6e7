"""Shared by the metrics: right answers in percent, the order of a map's pixels, and draws that are each image's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from bench.contexts import clone_generator
from bench.errors import InvalidValue


def hits(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """(B,) 100 where the label is among the k largest logits, else 0; for labels (B, K) the percentage of classes called right.

    Raises InvalidValue for k > 1 with several labels per image.
    """
    if labels.ndim == 2:
        if k > 1:
            raise InvalidValue(f"top-{k} accuracy needs one label per image, and these images have several. Use 'mean-average-precision'.")
        return 100 * ((logits > 0) == (labels > 0)).float().mean(1)
    own = logits.gather(1, labels.view(-1, 1))
    classes = torch.arange(logits.shape[1], device=logits.device)
    # Counting what is not behind makes a logit that is not a number a miss.
    behind = (logits < own) | ((logits == own) & (classes >= labels.view(-1, 1)))
    return 100 * ((~behind).sum(1) < k).float()


def places(maps: Tensor) -> Tensor:
    """(B, H*W) each pixel's place in the order of its map, 0 for the largest value; equal ones by position."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def share_of(pixels: int, share: float) -> int:
    """floor(share x pixels), whatever the rounding of the product: 0.29 of 100 pixels is 29."""
    return int(share * pixels + 1e-6)


def copies(generators: Sequence[Generator]) -> list[Generator]:
    """Each image's generator from its beginning: the metrics of one batch are handed the same ones and must not move them."""
    return [clone_generator(each) for each in generators]


def drawn(generators: Sequence[Generator], draw: Callable[[Generator], Tensor], like: Tensor) -> Tensor:
    """(B, …) one draw from each image's generator, with the device and type of `like`."""
    return torch.stack([draw(generator) for generator in generators]).to(like)
