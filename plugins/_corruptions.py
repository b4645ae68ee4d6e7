"""Shared by the metric of common corruptions: what each one does to a batch of images (B, C, H, W) in [0, 1].

Each takes images, one generator per image and the numbers of its severity; each leaves [0, 1] only until the caller clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from bench_plugins._scoring import drawn

Generators = Sequence[Generator]


def gaussian_noise(images: Tensor, generators: Generators, sigma: float) -> Tensor:
    return images + sigma * drawn(generators, lambda each: torch.randn(images.shape[1:], generator=each), images)


def shot_noise(images: Tensor, generators: Generators, photons: float) -> Tensor:
    counts = [torch.poisson(image * photons, generator=each) for image, each in zip(images.cpu(), generators, strict=True)]
    return torch.stack(counts).to(images) / photons


def impulse_noise(images: Tensor, generators: Generators, amount: float) -> Tensor:
    """Each value of each channel becomes 0 or 1 with equal chance."""
    draws = drawn(generators, lambda each: torch.rand(images.shape[1:], generator=each), images)
    return torch.where(draws < amount / 2, 0, torch.where(draws >= 1 - amount / 2, 1, images))


def defocus_blur(images: Tensor, generators: Generators, radius: float, softness: float) -> Tensor:
    kernel = disk(radius, softness).to(images)
    channels, reach = images.shape[1], kernel.shape[-1] // 2
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def disk(radius: float, softness: float) -> Tensor:
    """(1, 1, n, n) an even disk, its rim softened by a small Gaussian, summing to 1."""
    reach, taps = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    offsets = torch.arange(-reach, reach + 1.0)
    even = (offsets[:, None] ** 2 + offsets**2 <= radius**2).float()[None, None]
    rim = torch.exp(-(torch.arange(taps) - taps // 2.0).square() / (2 * softness**2))
    soft = F.conv2d(even, (rim[:, None] * rim)[None, None], padding=taps // 2)
    return soft / soft.sum()


def glass_blur(images: Tensor, generators: Generators, sigma: float, reach: int, rounds: int) -> Tensor:
    """Every pixel takes the colour of one nearby, between two blurs."""
    images, size = blurred(images, sigma, sigma), (2, *images.shape[2:])
    for _ in range(rounds):
        steps = drawn(generators, lambda each: torch.randint(-reach, reach, size, generator=each), images)
        images = moved(images, steps[:, 0].long(), steps[:, 1].long())
    return blurred(images, sigma, sigma)


def motion_blur(images: Tensor, generators: Generators, radius: int, sigma: float, middle: float = 0.0) -> Tensor:
    """A one-sided Gaussian along a line whose angle is drawn within 45 degrees of `middle`."""
    angles = torch.deg2rad(drawn(generators, lambda each: middle - 45 + 90 * torch.rand((), generator=each), images))
    weights = torch.exp(-torch.arange(2 * radius + 1.0).square() / (2 * sigma**2))
    total = torch.zeros_like(images)
    for distance, weight in enumerate(weights / weights.sum()):
        down, across = ((distance * direction).round().long().view(-1, 1, 1) for direction in (angles.sin(), angles.cos()))
        total += float(weight) * moved(images, down, across)
    return total


def zoom_blur(images: Tensor, generators: Generators, furthest: float, step: float) -> Tensor:
    """The mean of the image and of its zooms from 1 to the furthest."""
    factors = np.arange(1, furthest, step)
    return (images + sum(zoomed(images, float(factor)) for factor in factors)) / (len(factors) + 1)


def snow(
    images: Tensor, generators: Generators, mean: float, spread: float, zoom: float, least: float, radius: int, sigma: float, kept: float
) -> Tensor:
    """Flakes, blurred as they fall, before a whitened image."""
    size = (1, *images.shape[2:])
    flakes = zoomed(mean + spread * drawn(generators, lambda each: torch.randn(size, generator=each), images), zoom)
    flakes = motion_blur(torch.where(flakes < least, 0, flakes).clamp(0, 1), generators, radius, sigma, middle=-90)
    whitened = torch.maximum(images, 1.5 * grey(images) + 0.5)
    return kept * images + (1 - kept) * whitened + flakes + flakes.rot90(2, (2, 3))


def fog(images: Tensor, generators: Generators, amount: float, decay: float) -> Tensor:
    """Even light added in clouds: octaves of drawn grids, each finer one fainter by the square of `decay`."""
    clouds = torch.zeros_like(images[:, :1])
    for octave in range(1, math.ceil(math.log2(max(images.shape[2:]))) + 1):
        grid = drawn(generators, lambda each, side=2**octave: torch.rand((1, side, side), generator=each), images)
        clouds += decay ** (-2 * octave) * F.interpolate(grid, size=images.shape[2:], mode="bilinear", align_corners=True)
    lowest, highest = clouds.amin((1, 2, 3), keepdim=True), clouds.amax((1, 2, 3), keepdim=True)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * (clouds - lowest) / (highest - lowest)) * brightest / (brightest + amount)


def brightness(images: Tensor, generators: Generators, amount: float) -> Tensor:
    """The value of hue-saturation-value raised; hue and saturation stay, so all channels grow by one factor."""
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp_max(1)
    return torch.where(value > 0, images * raised / torch.where(value > 0, value, 1), raised)


def contrast(images: Tensor, generators: Generators, kept: float) -> Tensor:
    return torch.lerp(images.mean((2, 3), keepdim=True), images, kept)


def elastic(images: Tensor, generators: Generators, strength: float, sigma: float, shift: float) -> Tensor:
    """A small affine change and a smooth field of displacements; the three numbers are shares of the side."""
    height, width = images.shape[2:]
    side = min(height, width)
    corners = drawn(generators, lambda each: 2 * torch.rand(3, 2, generator=each) - 1, images) * shift * side
    field = drawn(generators, lambda each: 2 * torch.rand(2, height, width, generator=each) - 1, images)
    field = strength * side * blurred(field, sigma * side, sigma * side, truncate=3, edge="reflect")  # (B, 2, H, W): down, across
    down, across = torch.meshgrid(*(torch.arange(length, device=images.device, dtype=images.dtype) for length in (height, width)), indexing="ij")
    straight = torch.stack([down.expand_as(field[:, 0]), across.expand_as(field[:, 1])], 1) + field
    return sampled(images, affine_positions(straight, corners))


def affine_positions(positions: Tensor, shifts: Tensor) -> Tensor:
    """(B, 2, H, W) where an affine map that moves three points about the centre by `shifts` (B, 3, 2) fetches each position from."""
    height, width = positions.shape[2:]
    centre, reach = torch.tensor([height // 2, width // 2]).to(positions), min(height, width) // 3
    anchors = centre + reach * torch.tensor([[1.0, 1], [1, -1], [-1, -1]]).to(positions)
    ones = torch.ones(len(shifts), 3, 1, device=positions.device, dtype=positions.dtype)
    fetch = torch.linalg.solve(torch.cat([anchors + shifts, ones], 2), anchors.expand_as(shifts))  # (B, 3, 2)
    flat = torch.cat([positions.flatten(2).transpose(1, 2), ones[:, :1].expand(-1, height * width, 1)], 2)
    return (flat @ fetch).transpose(1, 2).view_as(positions)


def pixelate(images: Tensor, generators: Generators, share: float) -> Tensor:
    """Shrunk to a share of the side and enlarged again, with Pillow's box filter."""
    for sizes in ([int(length * share) for length in images.shape[2:]], images.shape[2:]):
        down, across = (box_filter(old, new).to(images) for old, new in zip(images.shape[2:], sizes, strict=True))
        images = down @ images @ across.T
    return images


def box_filter(old: int, new: int) -> Tensor:
    """(new, old) what each new pixel takes of the old ones: the mean of those whose centres it covers."""
    scale = old / new
    centres, reach = (torch.arange(new, dtype=torch.float64) + 0.5) * scale, 0.5 * max(scale, 1)
    distance = (torch.arange(old) + 0.5 - centres[:, None]) / (2 * reach)
    covered = ((distance > -0.5) & (distance <= 0.5)).double()
    return (covered / covered.sum(1, keepdim=True)).float()


def jpeg(images: Tensor, generators: Generators, quality: int) -> Tensor:
    """Compressed and read again, one image after the other on the CPU: the format is defined by its code."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return torch.stack([_jpeg(image, quality) for image in pixels]).to(images)


def _jpeg(pixels: np.ndarray, quality: int) -> Tensor:
    buffer = BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    read = np.array(Image.open(buffer), dtype=np.float32) / 255
    return torch.from_numpy(read.reshape(pixels.shape)).permute(2, 0, 1)


def grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma of RGB; the mean of any other channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * torch.tensor([0.299, 0.587, 0.114]).to(images).view(1, 3, 1, 1)).sum(1, keepdim=True)


def moved(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Each pixel from `down` rows below and `across` columns to the right, (B, H, W) or (B, 1, 1); the border goes on for ever."""
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device)[:, None] + down).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + across).clamp(0, width - 1)
    flat = (rows * width + columns).view(len(images), 1, -1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, flat).view_as(images)


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The middle of the images enlarged, linearly from corner pixel to corner pixel."""
    height, width = images.shape[2:]
    inner = [math.ceil(length / factor) for length in (height, width)]
    middle = _middle(images, inner)
    larger = [round(length * factor) for length in inner]
    return _middle(F.interpolate(middle, size=larger, mode="bilinear", align_corners=True), [height, width])


def _middle(images: Tensor, size: Sequence[int]) -> Tensor:
    top, left = ((length - part) // 2 for length, part in zip(images.shape[2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def blurred(images: Tensor, down: float, across: float, truncate: float = 4.0, edge: str = "nearest") -> Tensor:
    """A Gaussian of these sigmas in pixels, by one matrix for each side: a kernel may be wider than the image."""
    rows, columns = (smoothing(*pair, truncate, edge).to(images) for pair in zip(images.shape[2:], (down, across), strict=True))
    return rows @ images @ columns.T


def smoothing(length: int, sigma: float, truncate: float, edge: str) -> Tensor:
    """(length, length) the Gaussian cut off at `truncate` sigmas; beyond the edge the border value ("nearest") or the mirror."""
    if sigma == 0:
        return torch.eye(length)
    reach = int(truncate * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.double().square() / (2 * sigma**2))
    sources = torch.arange(length)[:, None] + offsets
    if edge == "nearest":
        sources = sources.clamp(0, length - 1)
    else:
        sources = sources % (2 * length)
        sources = torch.where(sources >= length, 2 * length - 1 - sources, sources)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, (weights / weights.sum()).expand_as(sources)).float()


def sampled(images: Tensor, positions: Tensor) -> Tensor:
    """Each pixel from a position (B, 2, H, W) in rows and columns, bilinearly; the image is mirrored beyond its border pixels."""
    height, width = images.shape[2:]
    down, across = positions.unbind(1)
    grid = torch.stack([2 * across / max(width - 1, 1) - 1, 2 * down / max(height - 1, 1) - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
