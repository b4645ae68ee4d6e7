"""Fills: what stands where pixels are hidden. There is no implicit zero anywhere in the project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.interfaces import Fill

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # RISE's reference code.


def mean_colour(model: nn.Module, channels: int) -> Tensor:
    """(C, 1, 1) the colour that the model's normalisation maps to zero; mid-grey for a model that shows none."""
    normalisation = getattr(model, "normalisation", None)
    if normalisation is None:
        return torch.full((channels, 1, 1), 0.5)
    mean: Tensor = normalisation.mean.detach().reshape(-1, 1, 1)
    return mean


def fill(kind: Fill, inputs: Tensor, mean: Tensor, generators: Sequence[torch.Generator] = ()) -> Tensor:
    """(B, C, H, W) in [0, 1]: `black` is 0, `mean` the model's mean colour (zero in model space), `blur` RISE's Gaussian
    (11 x 11, sigma 5, padded with the mean), `noise` uniform per pixel from each image's generator.
    """
    mean = mean.to(inputs)
    match kind:
        case "black":
            return torch.zeros_like(inputs)
        case "mean":
            return mean.expand_as(inputs)
        case "blur":
            return gaussian_blur(inputs - mean) + mean
        case "noise":
            rows = [torch.rand(image.shape, generator=generator) for image, generator in zip(inputs, generators, strict=True)]
            return torch.stack(rows).to(inputs) if rows else torch.zeros_like(inputs)
    raise ValueError(f"no fill is called {kind!r}; there are black, mean, blur and noise")


def gaussian_blur(inputs: Tensor, kernel: int = BLUR_KERNEL, sigma: float = BLUR_SIGMA) -> Tensor:
    """A separable Gaussian with zeros beyond the border, (B, C, H, W) to the same shape."""
    offsets = torch.arange(kernel, dtype=inputs.dtype, device=inputs.device) - (kernel - 1) / 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    channels = inputs.shape[1]
    rows = F.conv2d(inputs, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(kernel // 2, 0), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, kernel // 2), groups=channels)
