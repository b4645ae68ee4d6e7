"""Shared by contrastive training: the views of a batch, and the random ones drawn for all images at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

from bench_plugins._draws import uniform

AREA, ASPECT = (0.2, 1.0), (3 / 4, 4 / 3)  # Of the crop, as a share of the image and as width by height.
CANDIDATES = 10  # As many as torchvision draws before it gives up.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.4, 0.1
JITTERED, GREY = 0.8, 0.2  # Shares of the views that change their colours, and that lose them.


class Views(NamedTuple):
    """What a contrastive step sees of a batch. The first B rows are its images; rows after them may be negatives only.

    raw (B, C, H, W) the images as they are; first, second (n, C, H, W) two views of each row; labels (n,); negative (n,) True
    for a row that the others are to stay away from and that attracts nothing itself, whatever its label.
    """

    raw: Tensor
    first: Tensor
    second: Tensor
    labels: Tensor
    negative: Tensor

    @classmethod
    def of(cls, raw: Tensor, first: Tensor, second: Tensor, labels: Tensor) -> Views:
        return cls(raw, first, second, labels, torch.zeros_like(labels, dtype=torch.bool))

    def with_negatives(self, images: Tensor) -> Views:
        """Images added as rows that are negatives only, the same in both views."""
        labels = self.labels.new_zeros(len(images))
        negative = torch.cat([self.negative, torch.ones_like(labels, dtype=torch.bool)])
        return Views(self.raw, torch.cat([self.first, images]), torch.cat([self.second, images]), torch.cat([self.labels, labels]), negative)


def random_view(images: Tensor, mirror: bool, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) each image cropped, resized, mirrored, its colours changed and, one in five, lost."""
    return faded(jittered(resized_crop(images, mirror, generator), generator), generator)


def resized_crop(images: Tensor, mirror: bool, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) a part of each image, of random size and shape, resized bilinearly to the whole; every other one mirrored if `mirror`."""
    crops = crop_boxes(len(images), images.shape[2], images.shape[3], generator)
    mirrored = (torch.rand(len(images), generator=generator) < 0.5) & mirror
    taken = take(images, crops)
    return torch.where(mirrored.view(-1, 1, 1, 1).to(images.device), taken.flip(3), taken)


def crop_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, 4) top, left, height and width: the first candidate that fits into the image, or the whole image."""
    areas = height * width * uniform(*AREA, (count, CANDIDATES), generator)
    aspects = uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), (count, CANDIDATES), generator).exp()
    heights, widths = (areas / aspects).sqrt().round().long(), (areas * aspects).sqrt().round().long()
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first, found = fits.int().argmax(1, keepdim=True), fits.any(1)
    tall = torch.where(found, heights.gather(1, first).squeeze(1), height)
    wide = torch.where(found, widths.gather(1, first).squeeze(1), width)
    top = (torch.rand(count, generator=generator) * (height - tall + 1)).long()
    left = (torch.rand(count, generator=generator) * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=1)


def take(images: Tensor, boxes: Tensor) -> Tensor:
    """(B, C, H, W) the inside of each box (B, 4), resized bilinearly; nothing outside it is seen."""
    height, width = images.shape[2:]
    top, left, tall, wide = boxes.to(images).unsqueeze(2).unbind(1)  # (B, 1) each
    rows, columns = sampled(top, tall, height), sampled(left, wide, width)  # (B, H), (B, W)
    grid = torch.stack(torch.broadcast_tensors(columns.unsqueeze(1), rows.unsqueeze(2)), dim=3)  # (B, H, W, 2)
    # Rounding may leave [0, 1] by a unit in the last place.
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True).clamp(0, 1)


def sampled(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size) where the pixels of a resized part lie in the image, from -1 for its first pixel to 1 for its last."""
    centres = (torch.arange(size, device=start.device) + 0.5) * length / size - 0.5
    return 2 * (start + centres.clamp(min=0).minimum(length - 1)) / max(1, size - 1) - 1


def jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) brightness, contrast, saturation and hue changed for most images, each in an order of its own."""
    count = len(images)
    strengths = [uniform(1 - part, 1 + part, count, generator) for part in (BRIGHTNESS, CONTRAST, SATURATION)]
    strengths.append(uniform(-HUE, HUE, count, generator))
    orders = torch.rand(count, 4, generator=generator).argsort(1)
    chosen = torch.rand(count, generator=generator) < JITTERED
    images = images.clone()
    for place in range(4):
        for kind, change in enumerate((brighten, contrast, saturate, turn_hue)):
            rows = ((orders[:, place] == kind) & chosen).nonzero().squeeze(1)
            amounts = strengths[kind][rows].view(-1, 1, 1, 1).to(images)
            rows = rows.to(images.device)
            images[rows] = change(images[rows], amounts)
    return images


def faded(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) some images in shades of grey."""
    chosen = torch.rand(len(images), generator=generator) < GREY
    return torch.where(chosen.view(-1, 1, 1, 1).to(images.device), grey(images).expand_as(images), images)


def grey(images: Tensor) -> Tensor:
    """(n, 1, H, W) torchvision's brightness of colours; the mean of other channels."""
    return rgb_to_grayscale(images) if images.shape[1] == 3 else images.mean(1, keepdim=True)


def brighten(images: Tensor, factors: Tensor) -> Tensor:
    return (images * factors).clamp(0, 1)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(grey(images).mean((1, 2, 3), keepdim=True).expand_as(images), images, factors).clamp(0, 1)


def saturate(images: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(grey(images).expand_as(images), images, factors).clamp(0, 1)


def turn_hue(images: Tensor, shares: Tensor) -> Tensor:
    """Colours turned by a share of the circle of hues, (n, 1, 1, 1); images that are not RGB have none and stay."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)  # (n, H, W) each
    value, lowest = images.amax(1), images.amin(1)
    spread = value - lowest
    safe = torch.where(spread > 0, spread, torch.ones_like(spread))
    from_red, from_green, from_blue = (green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4
    sixths = torch.where(value == red, from_red, torch.where(value == green, from_green, from_blue)) + 6 * shares.squeeze(1)
    # Each channel is the value less the spread, but for a trapezium around its own hue (red 0, green 2, blue 4 sixths).
    places = torch.stack([(number + sixths) % 6 for number in (5, 3, 1)], dim=1)  # (n, 3, H, W)
    return value.unsqueeze(1) - spread.unsqueeze(1) * torch.minimum(places, 4 - places).clamp(0, 1)
