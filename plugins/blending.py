"""Blending with other targets: images are mixed as by mixup, but the target is not in the same proportion.

Paper: SamplePairing averages an image with another and keeps the target of the first. It is off for the first 10 % of the
training, then on for 8 epochs and off for 2 in turn, and off again for the last 20 %. Remix draws λ ~ Beta(α, α) for the images
and moves the target to the rarer class: λ_y = 0 where n_i/n_j ≥ κ and λ < τ; λ_y = 1 where n_i/n_j ≤ 1/κ and 1-λ < τ; else λ.

Choices: the partners are one random permutation of the batch. SamplePairing's schedule is in shares of the training (100 and
800 of 1000 epochs), so that it fits any length. Class counts are those of the training labels. Remix is for one label per
image.

Checked against: the pixel and target formulas by hand, the table of λ_y, the schedule written out for 1000 epochs.

Cost: no passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fraction, StepContext
from bench_plugins._draws import single_label
from bench_plugins.mixing import Alpha, Mode, draw_partners, draw_shares, draws, mix_targets


@dataclass(frozen=True)
class SamplePairing:
    """Averages every image with another and keeps its target."""

    name: ClassVar[str] = "samplepairing"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Inoue; Data Augmentation by Pairing Samples for Images Classification; 2018; arXiv:1801.02929"
    claim: ClassVar[str] = "formula verified"

    start: Fraction = 0.1
    stop: Fraction = 0.8
    on: Annotated[int, Field(ge=1)] = 8
    off: Annotated[int, Field(ge=0)] = 2

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        if not self.active(context.epoch, context.epochs):
            return batch
        partners = draw_partners(batch, context.generator)
        return batch.replace(inputs=torch.lerp(batch.inputs, batch.inputs[partners], 0.5))

    def active(self, epoch: int, epochs: int) -> bool:
        """Whether images are paired in this epoch, counted from 0."""
        first, last = math.ceil(self.start * epochs), math.ceil(self.stop * epochs)
        return first <= epoch < last and (epoch - first) % (self.on + self.off) < self.on


@dataclass(frozen=True)
class Remix:
    """Mixes images as mixup does and favours the rarer class in the target."""

    name: ClassVar[str] = "remix"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Chou, Chang, Pan, Wei, Juan; Remix: Rebalanced Mixup; ECCV Workshops 2020; arXiv:2007.03943"
    claim: ClassVar[str] = "formula verified"

    alpha: Alpha = 1.0
    kappa: Annotated[float, Field(ge=1)] = 3.0
    tau: Fraction = 0.5
    prob: Fraction = 1.0
    mode: Mode = "batch"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        single_label(self.name, context)
        shares = draw_shares(self.alpha, self.prob, draws(self.mode, batch), context.generator)
        shares = shares.to(batch.inputs).expand(len(batch))
        partners = draw_partners(batch, context.generator)
        counts = torch.tensor(context.class_counts, device=batch.inputs.device).clamp(min=1)[batch.labels]
        inputs = torch.lerp(batch.inputs[partners], batch.inputs, shares.view(-1, 1, 1, 1))
        own = self.target_shares(shares, counts / counts[partners])
        return batch.replace(inputs=inputs, targets=mix_targets(batch.targets, partners, own))

    def target_shares(self, shares: Tensor, imbalance: Tensor) -> Tensor:
        """(B,) the weight of a row's own target, from its share of the image and n_i/n_j."""
        shares = torch.where((imbalance >= self.kappa) & (shares < self.tau), torch.zeros_like(shares), shares)
        return torch.where((imbalance <= 1 / self.kappa) & (1 - shares < self.tau), torch.ones_like(shares), shares)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(SamplePairing)
    register(Remix)
