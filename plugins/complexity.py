"""How much of the image a map needs to say what it says.

Paper: `sparseness` is the Gini index of the map's absolute values: 0 for an even map, near 1 for a single pixel (Chalasani et al.).
`complexity` is the entropy of the absolute values as shares of their sum: log(pixels) for an even map, 0 for a single pixel
(Bhatt et al.).

Choices: entropy in nats, so it grows with the size of the image. A map of zeros is an even one. Both say how concentrated a map
is, not whether it is right: read them beside a measure of faithfulness.

Checked against: maps whose answers follow by hand, scipy's entropy, and the Gini index as the mean difference of pairs.

Cost: none; the maps are there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Explained, MetricContext


@dataclass(frozen=True)
class _OfTheMap:
    """What the metrics of this family share."""

    version: ClassVar[int] = 1
    claim: ClassVar[str] = "formula verified"
    category: ClassVar[str] = "complexity"
    needs: ClassVar[tuple[str, ...]] = ("attributions",)


@dataclass(frozen=True)
class Sparseness(_OfTheMap):
    """The Gini index of the map's absolute values: how unevenly the pixels count."""

    name: ClassVar[str] = "sparseness"
    paper: ClassVar[str] = "Chalasani et al.; Concise Explanations of Neural Networks using Adversarial Training; ICML 2020; arXiv:1810.06583"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "Gini index"

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) in [0, 1)."""
        values = shares(explained.attributions).sort(1).values
        count = values.shape[1]
        weights = 2 * torch.arange(1, count + 1, device=values.device, dtype=values.dtype) - count - 1
        return (values @ weights / count).clamp_min(0)


@dataclass(frozen=True)
class Complexity(_OfTheMap):
    """The entropy of the map's absolute values: over how many pixels it is spread."""

    name: ClassVar[str] = "complexity"
    paper: ClassVar[str] = "Bhatt, Weller, Moura; Evaluating and Aggregating Feature-based Model Explanations; IJCAI 2020; arXiv:2005.00631"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 0 to log(pixels)."""
        return torch.special.entr(shares(explained.attributions)).sum(1)


def shares(maps: Tensor) -> Tensor:
    """(B, H*W) float64: each pixel's part in the sum of the absolute values; even where all are zero."""
    values = maps.flatten(1).double().abs()
    values = torch.where(values.amax(1, keepdim=True) > 0, values, 1)
    return values / values.sum(1, keepdim=True)


@hookimpl
def register_metrics(register: Register) -> None:
    register(Sparseness)
    register(Complexity)
