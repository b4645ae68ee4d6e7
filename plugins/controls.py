"""Maps that know nothing of the model, or nothing of the image: what every explainer has to beat.

Paper: `random` draws each pixel from U[0, 1]. `centre` is a Gaussian around the middle of the image,
exp(-((x - cx)² / W² + (y - cy)² / H²) / (2 · width²)), the same for every image. `edges` is the Sobel magnitude
sqrt(gx² + gy²) of the luminance; Adebayo et al. use an edge detector to show how much a map that never saw the
model can look like an explanation.

Choices: the border of `edges` repeats the outermost pixels, so that the frame is no edge; colours are weighed
0.299, 0.587, 0.114, other channel counts alike. `random` draws from each image's own generator.

Checked against: kernels and Gaussians worked out by hand.

Cost: no pass through the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.interfaces import ExplainContext

LUMINANCE = (0.299, 0.587, 0.114)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


@dataclass(frozen=True)
class Random:
    """Independent uniform noise: a floor for every score."""

    name: ClassVar[str] = "random"
    version: ClassVar[int] = 1
    floor: ClassVar[bool] = True
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) in [0, 1)."""
        size = (1, *inputs.shape[2:])
        return torch.stack([torch.rand(size, generator=generator) for generator in context.generators]).to(inputs.device)


@dataclass(frozen=True)
class Centre:
    """The same Gaussian around the middle for every image: scores well where objects are photographed in the middle.

    `width` is the standard deviation as a share of each side.
    """

    width: Annotated[float, Field(gt=0)] = 0.25

    name: ClassVar[str] = "centre"
    version: ClassVar[int] = 1
    floor: ClassVar[bool] = True
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), above 0 and at most 1, largest in the middle."""
        rows, columns = (self._profile(side, inputs.device) for side in inputs.shape[2:])
        return torch.outer(rows, columns).repeat(len(inputs), 1, 1, 1)

    def _profile(self, side: int, device: torch.device) -> Tensor:
        offsets = (torch.arange(side, device=device) - (side - 1) / 2) / (side * self.width)
        return torch.exp(-(offsets**2) / 2)


@dataclass(frozen=True)
class Edges:
    """Sobel magnitude of the luminance: looks at the image alone."""

    name: ClassVar[str] = "edges"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim; Sanity Checks for Saliency Maps; NeurIPS 2018; arXiv:1810.03292"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W), zero or above; a step of height 1 along an axis gives 4."""
        across = inputs.new_tensor(SOBEL)
        kernels = torch.stack([across, across.T]).unsqueeze(1)  # (2, 1, 3, 3)
        padded = F.pad(luminance(inputs), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, kernels).square().sum(1, keepdim=True).sqrt()


def luminance(inputs: Tensor) -> Tensor:
    """(B, 1, H, W) brightness of (B, C, H, W)."""
    if inputs.shape[1] != len(LUMINANCE):
        return inputs.mean(1, keepdim=True)
    return (inputs * inputs.new_tensor(LUMINANCE).view(1, -1, 1, 1)).sum(1, keepdim=True)


@hookimpl
def register_explainers(register: Any) -> None:
    register(Random)
    register(Centre)
    register(Edges)
