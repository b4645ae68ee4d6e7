"""Integrated gradients and conductance: what the straight line from a baseline to the image adds to the target's logit.

Paper: with b the baseline, `integrated-gradients` is (x - b) times the integral of the gradient over b + t (x - b), t
from 0 to 1. `conductance` follows the maps of a layer along the same line: the sum over small steps of gradient times
change of the map. Both add up to the change of the logit from the baseline to the image, over the pixels or over the
layer.

Choices: the baseline is a fill, the model's mean colour unless told otherwise. Integrated gradients take the
Gauss-Legendre points; conductance takes even steps that contain both ends, because captum's Gauss-Legendre steps leave
a piece out at either end. Colours, or a layer's maps, are added up; conductance is then upsampled bilinearly.

Differs from captum: integrated gradients whose sum misses the change of the logit by more than `tolerance` of the sum
of the attributions' sizes are an error, not a number that nobody asked for. One point per forward, so that the order of
the sums does not depend on the size of the chunks.

Checked against: a two-channel network worked out by hand; captum called directly; the sums.

Cost: integrated gradients n forwards and backwards, and two forwards for the check. Conductance 2 n of each, since
captum takes both ends of every step; its backward ends at the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from bench.interfaces import ExplainContext, Fill, Fraction, Layer
from bench_plugins._maps import feature_map, upsample
from bench_plugins.captum_explainers._rows import check_sum, over_rows


@dataclass(frozen=True)
class IntegratedGradients:
    """The gradient integrated from a baseline to the image, times the distance."""

    steps: Annotated[int, Field(ge=1)] = 50
    baseline: Fill = "mean"
    tolerance: Fraction = 0.05

    name: ClassVar[str] = "integrated-gradients"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Sundararajan, Taly, Yan; Axiomatic Attribution for Deep Networks; ICML 2017; arXiv:1703.01365"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits; an image's values add up to the change of its logit from the baseline.

        Raises InvalidValue where they do not.
        """
        baselines = context.fill(self.baseline, inputs)
        return over_rows(partial(self._rows, model), context.chunk, inputs, targets, baselines).sum(1, keepdim=True)

    def _rows(self, model: nn.Module, inputs: Tensor, targets: Tensor, baselines: Tensor) -> Tensor:
        from captum import attr

        found = attr.IntegratedGradients(model).attribute(inputs, baselines, targets, n_steps=self.steps, internal_batch_size=len(inputs))
        advice = f"{self.steps} steps are too few for this network. Set more `steps`, or allow more with `tolerance`."
        check_sum(self.name, model, found, inputs, baselines, targets, self.tolerance, advice)
        return found


@dataclass(frozen=True)
class Conductance:
    """What the change of each feature map from a baseline to the image adds to the logit."""

    layer: str | None = None
    steps: Annotated[int, Field(ge=1)] = 50
    points: Literal["even", "gauss-legendre"] = "even"
    baseline: Fill = "mean"

    name: ClassVar[str] = "conductance"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Dhamdhere, Sundararajan, Yan; How Important Is a Neuron?; ICLR 2019; arXiv:1805.12233"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits per feature-map pixel."""
        layer = context.layer(self.layer, model)
        baselines = context.fill(self.baseline, inputs)
        maps = over_rows(partial(self._rows, model, layer), context.chunk // 2, inputs, targets, baselines)
        return upsample(maps.sum(1, keepdim=True), inputs.shape)

    def _rows(self, model: nn.Module, layer: Layer, inputs: Tensor, targets: Tensor, baselines: Tensor) -> Tensor:
        from captum.attr import LayerConductance

        found = LayerConductance(model, layer.module).attribute(
            inputs,
            baselines,
            targets,
            n_steps=self.steps,
            method="riemann_trapezoid" if self.points == "even" else "gausslegendre",
            internal_batch_size=2 * len(inputs),
        )
        return feature_map(layer, found)
