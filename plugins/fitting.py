"""The plain ways to a trained network: a loop over epochs and batches, or a network that is trained already.

Choices: the loop is stochastic gradient descent as a recipe describes it; rows of an augmented batch are weighed as the
augmenter says and averaged. Rows of a further branch go through batch norms of their own, which start as the network's and are
not part of the trained network. `pretrained` fits nothing: it scores the weights that the model plugin loaded.

Checked against: a training written out by hand, step for step, also with a further branch; resuming gives the same weights to
the bit.

Cost: one forward and one backward per row, besides what the augmenter does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from bench import hookimpl
from bench.train import FitContext, TrainingData


@dataclass(frozen=True)
class Standard:
    """A plain training loop: augment, forward, backward, step."""

    name: ClassVar[str] = "standard"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    default: ClassVar[bool] = True
    keeps_branches: ClassVar[bool] = True
    equal_passes: ClassVar[bool] = True

    def fit(self, model: nn.Module, data: TrainingData, augmenter: Any, context: FitContext) -> None:
        norms = context.branch_norms(model, augmenter)
        optimizer = context.optimizer([*model.parameters(), *(norms.parameters() if norms is not None else ())])
        for epoch in context.epochs(model, data, optimizer=optimizer, augmenter=augmenter, norms=norms):
            for batch, step in context.batches(model, data, epoch):
                augmented = augmenter(model, batch, step)
                loss = context.loss(model, augmenter, augmented, step, norms)
                context.set_rate(optimizer, step.progress)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            data = context.extended(augmenter, model, data, epoch)


@dataclass(frozen=True)
class Pretrained:
    """Fits nothing: the model's own weights are explained and scored."""

    name: ClassVar[str] = "pretrained"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    fits: ClassVar[bool] = False

    def fit(self, model: nn.Module, data: TrainingData, augmenter: Any, context: FitContext) -> None:
        """Leaves the model as it was built."""


@hookimpl
def register_trainers(register: Any) -> None:
    register(Standard)
    register(Pretrained)
