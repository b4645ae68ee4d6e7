"""Integrated Grad-CAM: Grad-CAM's terms gathered along the straight line from a baseline to the image.

Paper: at points b + t (x - b), the mean gradient of the target's logit at each feature map times how far the map has
moved from its value at the baseline, summed over the maps and integrated over t from 0 to 1; then a ReLU, then
bilinear upsampling. The baseline b is a black image.

Differs from the paper: gradients are averaged over the pixels of a map, not added up, as in Grad-CAM; the map is
smaller by that one number. Choices: the integral is a sum at the midpoints of `steps` equal parts.
`integrated-gradcam-reference` is the authors' notebook instead: points i / steps from i = 0, maps not compared with the
baseline, the ReLU at each point, a sum that is not divided by the number of points.

Checked against: a two-channel network worked out by hand for both forms; a network without ReLU crossings, where the
paper's form is half of Grad-CAM and the notebook's (steps - 1) / 2 times it; one point at a time; 400 steps. The equation
was taken from a summary, the notebook's form from its code.

Cost: one forward per step and one backward that ends at the layer; the paper's form one more forward for the
baseline (two per call where it is one colour).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import ExplainContext, Fill, Layer
from bench_plugins._maps import logits_and_maps, maps_and_gradients, upsample


@dataclass(frozen=True)
class IntegratedGradCam:
    """Grad-CAM integrated from a baseline to the image."""

    layer: str | None = None
    form: Literal["paper", "reference"] = "paper"
    steps: Annotated[int, Field(ge=1)] = 50
    fill: Fill = "black"

    name: ClassVar[str] = "integrated-gradcam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Sattarzadeh, Sudhakar, Plataniotis, Jang, Jeong, Kim; Integrated Grad-CAM: Sensitivity-Aware Visual Explanation of "
        "Deep Convolutional Networks via Integrated Gradient-Based Scoring; ICASSP 2021; arXiv:2102.07805"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), zero or above, in Grad-CAM's units."""
        layer = context.layer(self.layer, model)
        baseline = context.fill(self.fill, inputs)
        start = self._start(model, baseline, layer, context.chunk)
        offset = 0.5 if self.form == "paper" else 0.0
        fractions = (torch.arange(self.steps, device=inputs.device) + offset) / self.steps
        points = torch.arange(len(inputs) * self.steps, device=inputs.device)  # The points of an image lie together.
        heats = []
        for part in points.split(context.chunk):
            images = part // self.steps
            path = baseline[images].lerp(inputs[images], fractions[part % self.steps].view(-1, 1, 1, 1))
            maps, gradients = maps_and_gradients(model, path, targets[images], layer, context.chunk)
            heats.append(self._heat(maps, gradients, start[images]))
        total = torch.cat(heats).unflatten(0, (len(inputs), self.steps)).sum(1)  # (B, 1, h, w)
        return upsample(total.relu() / self.steps if self.form == "paper" else total, inputs.shape)

    def _start(self, model: nn.Module, baseline: Tensor, layer: Layer, chunk: int) -> Tensor:
        """(B, C, h, w) what the maps are compared with: their values at the baseline, or zero in the notebook."""
        if self.form == "reference":
            return baseline.new_zeros(len(baseline), 1, 1, 1)
        alone = baseline[:1] if self.fill in ("black", "mean") else baseline  # These two are alike for all images.
        _, maps = logits_and_maps(model, alone, layer, chunk)
        return maps.expand(len(baseline), -1, -1, -1)

    def _heat(self, maps: Tensor, gradients: Tensor, start: Tensor) -> Tensor:
        weights = gradients.mean((2, 3), keepdim=True)  # (n, C, 1, 1)
        heat = (weights * (maps - start)).sum(1, keepdim=True)
        return heat.relu() if self.form == "reference" else heat


@hookimpl
def register_explainers(register: Any) -> None:
    register(IntegratedGradCam)
    register(IntegratedGradCam, name="integrated-gradcam-reference", form="reference")
