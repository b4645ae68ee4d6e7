"""Grad-CAM: weigh each feature map by the mean gradient of the target's logit, add them up, keep the positive part.

Paper: alpha_k = mean over i, j of dy/dA_k[i, j] (equation 1); map = ReLU(sum over k of alpha_k A_k) (equation 2),
upsampled bilinearly to the image. y is the target's logit, A the maps of the last convolutional layer.

Choices: pixel centres align as areas (`align_corners=False`); the map is not rescaled. `gradcam-signed` leaves the ReLU
out, so that evidence against the target stays visible and pixels without evidence keep an order.

Checked against: a two-channel network worked out by hand; on ResNet-56, EfficientNet-Lite0, ViT-tiny and VGG-16, to 1e-4 of the map's
largest value, pytorch-grad-cam (after its rescaling), torchcam and, for `gradcam-signed`, captum (not for the transformer's tokens).

Cost: one forward; one backward that ends at the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import ExplainContext
from bench_plugins._maps import maps_and_gradients, upsample


@dataclass(frozen=True)
class GradCam:
    """Feature maps weighed by their mean gradient."""

    layer: str | None = None
    relu: bool = True

    name: ClassVar[str] = "gradcam"
    version: ClassVar[int] = 1
    default: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra; "
        "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization; ICCV 2017; arXiv:1610.02391"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) in units of the target's logit per feature-map pixel; zero or above with the ReLU."""
        maps, gradients = maps_and_gradients(model, inputs, targets, context.layer(self.layer, model), context.chunk)
        weights = gradients.mean((2, 3), keepdim=True)  # (B, C, 1, 1), equation 1
        heat = (weights * maps).sum(1, keepdim=True)  # (B, 1, h, w), equation 2
        return upsample(heat.relu() if self.relu else heat, inputs.shape)


@hookimpl
def register_explainers(register: Any) -> None:
    register(GradCam)
    register(GradCam, name="gradcam-signed", relu=False)
