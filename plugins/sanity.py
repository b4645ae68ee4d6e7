"""Whether a map depends on what the network has learnt: it is explained again with its weights shuffled.

Paper: the rank correlation of an image's map with the map of the same network with random weights (Adebayo et al.). An explainer
that shows what the network has learnt has a low one; an edge detector has a high one.

Differs from the paper: every weight tensor is replaced by its own values in a random order, which keeps the scale of each layer,
instead of by fresh draws. `model-randomisation-cascade` does it in five groups from the last tensors to the first, each keeping the
ones before, and its number is the mean over the groups; `model-randomisation` does it once, for all.

Choices: the shuffle depends on `seed` alone, so all images meet the same shuffled network. Equal values share their mean rank, and a
constant map counts as uncorrelated with anything. An explainer that draws has the same draws for both networks, so that what chance
alone puts into its map counts as correlation. Signed maps are compared as they are; `absolute = true` compares their absolute
values. The statistics of batch norm and what an explainer has prepared stay. The weights are shuffled in place and put back, bit
for bit, whatever happens.

Checked against: scipy's `spearmanr`; an explainer that ignores the network (1) and one whose map is a row of weights; the network
is left as it was found, after an error too.

Cost: one explanation per image for the original and one for each group (2; the cascade 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from bench import hookimpl
from bench.contexts import generator
from bench.hookspecs import Register
from bench.interfaces import Curve, Explained, MetricContext


@dataclass(frozen=True)
class ModelRandomisation:
    """The rank correlation of a map with that of the same network with its weights shuffled."""

    name: ClassVar[str] = "model-randomisation"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Adebayo et al.; Sanity Checks for Saliency Maps; NeurIPS 2018; arXiv:1810.03292"
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = False
    category: ClassVar[str] = "sanity"
    unit: ClassVar[str] = "rank correlation"
    needs: ClassVar[tuple[str, ...]] = ("explainer",)

    groups: Annotated[int, Field(ge=1)] = 1
    absolute: bool = False
    seed: int = 0

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B, groups) in [-1, 1]: after shuffling the last group, the last two, …, all."""
        before, stream, columns = self._ranks(explained, context), generator("model-randomisation", self.seed), []
        with restored(model):
            for group in from_the_top(model, self.groups):
                shuffle(group, stream)
                columns.append(correlation(before, self._ranks(explained, context)))
        return torch.stack(columns, dim=1)

    def _ranks(self, explained: Explained, context: MetricContext) -> Tensor:
        maps = context.explain(explained.inputs, explained.targets).flatten(1)
        return ranks(maps.abs() if self.absolute else maps)

    def curve(self, rows: Tensor) -> Curve:
        shares = [(group + 1) / self.groups for group in range(self.groups)]
        return Curve(shares, rows.mean(0).tolist(), "share of the weight tensors shuffled, from the last", "rank correlation")


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """After the block the model's parameters hold the values they had."""
    kept = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in kept:
                parameter.copy_(values)


def from_the_top(model: nn.Module, count: int) -> list[list[Tensor]]:
    """The model's parameters in at most `count` groups of about equal number, the last defined first."""
    parameters = list(model.parameters())[::-1]
    edges = [round(group * len(parameters) / count) for group in range(count + 1)]
    return [parameters[start:stop] for start, stop in pairwise(edges)]


def shuffle(parameters: list[Tensor], generator: Generator) -> None:
    """Give each tensor its own values in a random order."""
    with torch.no_grad():
        for parameter in parameters:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view(parameter.shape))


def ranks(values: Tensor) -> Tensor:
    """(B, N) float64 ranks from 1; equal values share their mean rank."""
    in_order = values.sort(1).values
    below, not_above = (torch.searchsorted(in_order, values.contiguous(), right=right) for right in (False, True))
    return (below + not_above + 1).double() / 2


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """(B,) Pearson's correlation of the rows; 0 where a row is constant."""
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (one, other))
    scale = one.norm(dim=1) * other.norm(dim=1)
    return (one * other).sum(1) / torch.where(scale > 0, scale, 1)


@hookimpl
def register_metrics(register: Register) -> None:
    register(ModelRandomisation)
    register(ModelRandomisation, name="model-randomisation-cascade", groups=5)
