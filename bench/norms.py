"""Batch norms beside a network's own, for rows that are to be normalised by themselves (auxiliary, or split, batch norm)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class AuxiliaryNorms(nn.Module):
    """A second set of a network's batch norms, with weights and statistics of its own, at first equal to the network's."""

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.names = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        self.norms = nn.ModuleList(copy.deepcopy(model.get_submodule(name)) for name in self.names)

    def forward(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """(B, K) the network's logits with these norms in the place of its own."""
        own: list[Any] = [model.get_submodule(name) for name in self.names]
        tensors = {
            f"{name}.{inner}": tensor
            for name, norm in zip(self.names, self.norms, strict=True)
            for inner, tensor in (*norm.named_parameters(), *norm.named_buffers())
        }
        momenta = [norm.momentum for norm in own]
        for norm in own:
            norm.momentum = self.momentum
        try:
            logits: Tensor = torch.func.functional_call(model, tensors, (inputs,))
            return logits
        finally:
            for norm, momentum in zip(own, momenta, strict=True):
                norm.momentum = momentum


class BranchNorms(nn.Module):
    """A set of batch norms for each branch that a batch may name: 0 is the network's own, 1 the first set here.

    The network's own are what is saved and evaluated.
    """

    def __init__(self, model: nn.Module, momenta: Sequence[float]) -> None:
        super().__init__()
        self.sets = nn.ModuleList(AuxiliaryNorms(model, momentum) for momentum in momenta)

    def forward(self, model: nn.Module, inputs: Tensor, branch: Tensor) -> Tensor:
        """(B, K) logits, the rows of each branch sent through its norms together and apart from all others."""
        logits, places = [], []
        for number in branch.unique().tolist():
            rows = (branch == number).nonzero().squeeze(1)
            logits.append(model(inputs[rows]) if number == 0 else self.sets[number - 1](model, inputs[rows]))
            places.append(rows)
        return torch.cat(logits)[torch.cat(places).argsort()]
