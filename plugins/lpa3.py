"""LP-A3: each image gets a twin whose inner features lie far away while the network's own label for it is held.

Paper: the twin x + δ maximises the distance of the features from those of x under the condition that the likelihood of the
label stays the same. The published code, which this file follows, allows a loss of `bound` nats: in every one of T steps the
gradient of

    -‖φ(x + δ) - φ(x)‖ + λ_t · max(0, log p(x) - log p(x + δ) - bound),    λ_t = lam · 0.1^(1 - t/T),

is scaled to length 1; a probe of length 0.1 against it measures how fast log p changes, and the step along it has the length
bound · 0.1^(t/T) / (that slope + 1e-4). φ is the outputs of the network's stages, each location scaled to length 1 over the
channels and each stage divided by the root of its locations: behind a ReLU no two are further apart than √(2L), with L stages.
δ starts uniform in ±0.01 and is clamped so that pixels stay valid. `bound` is a slack in nats and the length of a step in
nats, not a radius.

Differs from the paper: the condition is the code's one-sided one, with slack. The code attacks in training mode through a
second set of batch norms and changes its statistics; here the network is in eval mode and nothing in it changes, so images do
not influence each other. For the same reason the objective is summed over the batch and not averaged, which only the 1e-8
beside the gradient's length can tell. Where the code trains on twins through second batch norms, `auxiliary_norm` does so (with the
code's momentum of 0.01; the attack still looks through the first); by default they go through the one set.

Choices: δ, its start, the gradient's length and the probe are in model space (pixels divided by the network's standard
deviation), where the published numbers belong. The label held is the network's own; for multi-label data it is the set of
predicted classes, and log p sums over the classes. Twins carry the targets of their originals and weigh the same. A location
whose features are all zero has no direction and passes no gradient. `fraction` attacks a random part of the batch; `start` is
the share of training without attack. `strict` is our own variant: δ is shortened by bisection until no more than `bound` nats
are lost. The label is not kept in general: on confident networks the steps become long. The logged agreement, change of
log p (both before the last step, where a forward is made anyway) and length of δ show how far it goes.

Checked against: an independent derivation, one image at a time in float64; schedules, feature norms and limits of the
constant classifier by hand; passes by counting. Published accuracies were not reproduced.

Cost: for each attacked image 1 + 2T forwards and T backwards (11 and 5), and 9 forwards more if strict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import Batch, Fraction, LaterAddition, StepContext

Positive = Annotated[float, Field(gt=0)]

AUXILIARY_MOMENTUM = 0.01
INITIAL = 0.01  # Half-width of δ's start, in model space.
HALVINGS = 8  # Of the strict variant: the share of δ that is kept is found to 1/256.


@dataclass(frozen=True)
class LPA3:
    """Adds a twin of each image with distant features and, if it can be held, the same label."""

    name: ClassVar[str] = "lpa3"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Yang et al.; Label-Preserving Adversarial Auto-Augment; NeurIPS 2022; arXiv:2211.00824"
    claim: ClassVar[str] = "formula verified"

    bound: Positive = 0.02
    iterations: Annotated[int, Field(ge=1)] = 5
    lam: Annotated[float, Field(ge=0)] = 1.0
    probe: Positive = 0.1
    start: Fraction = 0.0
    fraction: Fraction = 1.0
    strict: bool = False
    auxiliary_norm: Annotated[bool, LaterAddition(False)] = False

    @property
    def branches(self) -> tuple[float, ...]:
        """The momentum of the twins' own batch norms, where they have some."""
        return (AUXILIARY_MOMENTUM,) if self.auxiliary_norm else ()

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        rows = self.chosen(len(batch), context.generator).to(batch.inputs.device)
        if context.progress < self.start or not len(rows):
            return batch
        twins = batch.append(self.attack(model, batch.inputs[rows], context), rows)
        if not self.auxiliary_norm:
            return twins
        return twins.replace(branch=torch.cat([batch.branch, torch.ones_like(rows)]))

    def chosen(self, count: int, generator: torch.Generator) -> Tensor:
        """(n,) the rows to attack, in order."""
        if self.fraction == 1:
            return torch.arange(count)
        return torch.randperm(count, generator=generator)[: round(self.fraction * count)].sort().values

    def schedule(self, step: int) -> tuple[float, float]:
        """The length of a step in nats and the weight of the condition."""
        done = step / self.iterations
        return self.bound * 0.1**done, self.lam * 0.1 ** (1 - done)

    def attack(self, model: nn.Module, inputs: Tensor, context: StepContext) -> Tensor:
        """(n, C, H, W) twins of the inputs, in [0, 1]."""
        originals = Originals.seen_by(model, inputs, context)
        noise = torch.rand(inputs.shape, generator=context.generator).to(inputs)
        delta = originals.valid((2 * noise - 1) * INITIAL)
        for step in range(self.iterations):
            length, weight = self.schedule(step)
            direction, logits = self.direction(model, originals, delta, weight, context)
            current = originals.log_likelihood_by(logits)
            probed = originals.log_likelihood_by(context.predict(model, originals.pixels(delta - self.probe * direction)))
            slope = (current - probed).abs() / self.probe
            delta = originals.valid(delta - direction * (length / (slope + 1e-4)).view(-1, 1, 1, 1))
        if self.strict:
            delta = self.shortened(model, originals, delta, context)
        context.log(
            lpa3_agreement=originals.agreement_by(logits),
            lpa3_log_change=(current - originals.log_likelihood).mean(),
            lpa3_length=lengths(delta).mean(),
        )
        return originals.pixels(delta).clamp(0, 1)  # Multiplying by the deviation may round past the border.

    @torch.enable_grad()
    def direction(self, model: nn.Module, originals: Originals, delta: Tensor, weight: float, context: StepContext) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) the objective's gradient, each image's scaled to length 1, and the logits (n, K) at delta."""
        delta = delta.detach().requires_grad_()
        logits, maps = context.features(model, originals.pixels(delta))
        distance = torch.linalg.vector_norm(embed(maps) - originals.embedding, dim=1)
        lost = originals.log_likelihood - originals.log_likelihood_by(logits)
        objective = weight * F.relu(lost - self.bound) - distance  # (n,)
        (gradient,) = torch.autograd.grad(objective.sum(), delta)
        return gradient / (lengths(gradient) + 1e-8), logits.detach()

    def shortened(self, model: nn.Module, originals: Originals, delta: Tensor, context: StepContext) -> Tensor:
        """The longest part of each delta, to 1/256, found to lose no more than `bound` nats."""
        kept, broken = torch.zeros_like(delta[:, :1, :1, :1]), torch.ones_like(delta[:, :1, :1, :1])
        tried = broken
        for _ in range(1 + HALVINGS):
            twins = originals.pixels(delta * tried).clamp(0, 1)
            lost = originals.log_likelihood - originals.log_likelihood_by(context.predict(model, twins))
            holds = (lost <= self.bound).view(-1, 1, 1, 1)
            kept, broken = torch.where(holds, tried, kept), torch.where(holds, broken, tried)
            tried = (kept + broken) / 2
        return delta * kept


class Originals(NamedTuple):
    """The attacked images and what the network makes of them."""

    inputs: Tensor  # (n, C, H, W)
    std: Tensor  # (1, C, 1, 1): how many pixel values one unit of model space is
    label: Tensor  # (n,) the predicted class, or (n, K) of 0 and 1 for multi-label data
    log_likelihood: Tensor  # (n,) of that label
    embedding: Tensor  # (n, D)

    @classmethod
    def seen_by(cls, model: nn.Module, inputs: Tensor, context: StepContext) -> Originals:
        logits, maps = context.features(model, inputs)
        label = own_label(logits, context.multi_label)
        return cls(inputs, deviation(model, inputs), label, log_likelihood(logits, label), embed(maps))

    def pixels(self, delta: Tensor) -> Tensor:
        return self.inputs + self.std * delta

    def valid(self, delta: Tensor) -> Tensor:
        """Delta where pixels stay in [0, 1]."""
        return delta.clamp(-self.inputs / self.std, (1 - self.inputs) / self.std)

    def log_likelihood_by(self, logits: Tensor) -> Tensor:
        return log_likelihood(logits, self.label)

    def agreement_by(self, logits: Tensor) -> Tensor:
        """The share of images that are still given their label."""
        same = own_label(logits, multi_label=self.label.ndim == 2) == self.label
        return same.view(len(same), -1).all(1).float().mean()


def own_label(logits: Tensor, multi_label: bool) -> Tensor:
    """(n,) the predicted class, or (n, K) 1 for every predicted class."""
    return (logits > 0).to(logits.dtype) if multi_label else logits.argmax(1)


def log_likelihood(logits: Tensor, label: Tensor) -> Tensor:
    """(n,) log p of a class, or of a set of classes."""
    if label.ndim == 2:
        return -F.binary_cross_entropy_with_logits(logits, label, reduction="none").sum(1)
    return -F.cross_entropy(logits, label, reduction="none")


def embed(maps: Sequence[Tensor]) -> Tensor:
    """(n, D) the features of all stages, each stage a block of length 1."""
    return torch.cat([(unit_locations(stage) / (stage.shape[2] * stage.shape[3]) ** 0.5).flatten(1) for stage in maps], dim=1)


def unit_locations(maps: Tensor) -> Tensor:
    """Every location scaled to length 1 over the channels."""
    # vector_norm has gradient 0 where all channels are 0; a root of squares has none.
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + 1e-10)


def lengths(images: Tensor) -> Tensor:
    """(n, 1, 1, 1) the Euclidean length of each image."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)


def deviation(model: nn.Module, inputs: Tensor) -> Tensor:
    """(1, C, 1, 1) the network's standard deviation; 1 for a network that shows none."""
    normalisation = getattr(model, "normalisation", None)
    if normalisation is None:
        return inputs.new_ones(1, inputs.shape[1], 1, 1)
    return normalisation.std.detach().to(inputs).reshape(1, -1, 1, 1)


@hookimpl
def register_augmenters(register: Any) -> None:
    register(LPA3)
