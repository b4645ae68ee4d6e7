"""How well a map predicts what hiding does to the network, and how much the map changes when the image hardly does.

Paper: infidelity is the mean, over random changes of the image, of the squared difference between the change's inner product with
the map and the change of the network's output. Max-sensitivity is the largest relative change of the map, |S(x') - S(x)| / |S(x)|,
over images x' within a small distance (Yeh et al.).

Choices: infidelity hides one random square per draw behind the model's mean colour; the map predicts the sum of its values inside.
The output is the explained class's probability, which is comparable between networks; `score = "logit"` takes the logit. Maps of
most explainers have no unit, so each is first scaled by the factor that suits it best, as the authors' code does; `normalise = false`
leaves it. Sensitivity draws each pixel value evenly within `radius` of the image in [0, 1], clips, and explains the image itself
again with the same random draws, so that an explainer that samples is not blamed for sampling.

Checked against: captum's `infidelity` and `sensitivity_max` on the same changes; a linear network and its exact map, whose infidelity is 0.

Cost: infidelity `samples` forward passes per image (32); sensitivity-max `samples` + 1 explanations per image (11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import Explained, Fill, MetricContext
from bench_plugins._scoring import copies, drawn

YEH = "Yeh et al.; On the (In)fidelity and Sensitivity of Explanations; NeurIPS 2019; arXiv:1901.09392"


@dataclass(frozen=True)
class Infidelity:
    """The squared error with which the map predicts the effect of hiding a square."""

    name: ClassVar[str] = "infidelity"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = YEH
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = False
    category: ClassVar[str] = "faithfulness"
    unit: ClassVar[str] = "squared score"
    needs: ClassVar[tuple[str, ...]] = ("attributions",)

    samples: Annotated[int, Field(ge=1)] = 32
    side: Annotated[float, Field(gt=0, le=1)] = 0.25  # Of the square, as a share of the image's.
    fill: Fill = "mean"
    score: Literal["probability", "logit"] = "probability"
    normalise: bool = True

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 0 or above."""
        generators, fill = copies(context.generators), context.fill(self.fill, explained.inputs)
        original = self._scores(explained.logits, explained, context)
        predicted, observed = [], []
        for _ in range(self.samples):
            hidden = drawn(generators, lambda each: self.square(explained.inputs.shape[-2:], each), explained.inputs)
            logits = context.predict(torch.where(hidden > 0, fill, explained.inputs))
            predicted.append((hidden * explained.attributions).sum((1, 2, 3)))
            observed.append(original - self._scores(logits, explained, context))
        return infidelity(torch.stack(predicted, 1).double(), torch.stack(observed, 1).double(), self.normalise)

    def square(self, size: torch.Size, generator: Generator) -> Tensor:
        """(1, H, W) ones in a square at a random place, zeros elsewhere."""
        height, width = (max(1, round(self.side * length)) for length in size)
        mask = torch.zeros(1, *size)
        top, left = (int(torch.randint(length - part + 1, (), generator=generator)) for length, part in zip(size, (height, width), strict=True))
        mask[:, top : top + height, left : left + width] = 1
        return mask

    def _scores(self, logits: Tensor, explained: Explained, context: MetricContext) -> Tensor:
        scores = context.probability(logits) if self.score == "probability" else logits
        return scores.gather(1, explained.targets.view(-1, 1)).squeeze(1)


def infidelity(predicted: Tensor, observed: Tensor, normalise: bool) -> Tensor:
    """(B,) mean squared error of what the map predicts (B, samples), first scaled to suit if `normalise`."""
    if normalise:
        energy = predicted.square().sum(1, keepdim=True)
        predicted = predicted * (predicted * observed).sum(1, keepdim=True) / torch.where(energy > 0, energy, 1)
    return (predicted - observed).square().mean(1)


@dataclass(frozen=True)
class SensitivityMax:
    """The largest relative change of the map under changes of the image that nobody would see."""

    name: ClassVar[str] = "sensitivity-max"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = YEH
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = False
    category: ClassVar[str] = "stability"
    unit: ClassVar[str] = "relative change"
    needs: ClassVar[tuple[str, ...]] = ("explainer",)

    radius: Annotated[float, Field(gt=0)] = 0.02
    samples: Annotated[int, Field(ge=1)] = 10

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) 0 or above; for a map of zeros the change itself."""
        generators = copies(context.generators)
        maps = context.explain(explained.inputs, explained.targets).flatten(1)
        largest = torch.zeros_like(maps[:, 0])
        for _ in range(self.samples):
            changed = context.explain(self._changed(explained.inputs, generators), explained.targets).flatten(1)
            largest = torch.maximum(largest, (changed - maps).norm(dim=1))
        norms = maps.norm(dim=1)
        return largest / torch.where(norms > 0, norms, 1)

    def _changed(self, inputs: Tensor, generators: list[Generator]) -> Tensor:
        shares = drawn(generators, lambda each: torch.rand(inputs.shape[1:], generator=each), inputs)
        return (inputs + self.radius * (2 * shares - 1)).clamp(0, 1)


@hookimpl
def register_metrics(register: Register) -> None:
    register(Infidelity)
    register(SensitivityMax)
