"""Manifold mixup: what the network makes of two images is mixed at a random depth, and their targets in the same proportion.

Paper: λ ~ Beta(α, α) with α = 2; a layer k is drawn from the input and the first stages; the outputs of layer k are mixed as
λ h(x) + (1-λ) h(x'), and the rest of the network sees only the mixture. The loss is taken against λ y + (1-λ) y'.

Choices: layer 0 is the input, and `stages` says how many of the network's own stages follow it: 2, as in the authors' code for
residual networks. The partners are one random permutation. λ, partners and layer are drawn from a stream that starts where the
step's own stream started, so that the call which mixes the targets and the forward which mixes the features agree.

Checked against: features mixed by hand on the two-channel network, for each layer; the targets; the mixture at the input
equals mixup.

Cost: no passes beside the training's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import contexts, hookimpl
from bench.interfaces import Batch, StepContext
from bench.layers import recording
from bench_plugins.mixing import Alpha, draw_partners, draw_shares, mix_targets


class Plan(NamedTuple):
    """What one step mixes: the share of a row's own features, each row's partner, and the layer (0 is the input)."""

    share: Tensor
    partners: Tensor
    layer: int


@dataclass(frozen=True)
class ManifoldMixup:
    """Mixes features at a random stage of the network."""

    name: ClassVar[str] = "manifold-mixup"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz, Bengio; Manifold Mixup: Better Representations by Interpolating Hidden States; "
        "ICML 2019; arXiv:1806.05236"
    )
    claim: ClassVar[str] = "formula verified"

    mixup_alpha: Alpha = 2.0
    stages: Annotated[int, Field(ge=0)] = 2

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        plan = self.plan(batch, context)
        return batch.replace(targets=mix_targets(batch.targets, plan.partners, plan.share.expand(len(batch))))

    def forward(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        """Logits (B, K) of the mixed features."""
        plan = self.plan(batch, context)
        if plan.layer == 0:
            return model(mixed(batch.inputs, plan))
        layers = context.stages[: self.stages]
        layer = layers[min(plan.layer, len(layers)) - 1]
        with recording([layer], lambda _, output: mixed(output, plan)):
            return model(batch.inputs)

    def plan(self, batch: Batch, context: StepContext) -> Plan:
        """The draws of this step, the same however often they are asked for."""
        stream = contexts.generator(self.name, context.generator.initial_seed())
        share = draw_shares(self.mixup_alpha, 1.0, 1, stream)
        partners = draw_partners(batch, stream)
        return Plan(share, partners, int(torch.randint(self.stages + 1, (), generator=stream)))


def mixed(features: Tensor, plan: Plan) -> Tensor:
    """(B, …) each row mixed with its partner's."""
    return torch.lerp(features[plan.partners], features, float(plan.share))


@hookimpl
def register_augmenters(register: Any) -> None:
    register(ManifoldMixup)
