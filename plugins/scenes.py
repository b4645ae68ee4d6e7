"""Handwritten digits pasted on pieces of two photographs, with exact masks: real images, ten classes, nothing to download.

Paper: none; the digits (see `digits`) and both photographs come with scikit-learn.

Choices: a digit is 20 to 29 pixels high and three quarters to all of that wide, lies wholly inside the image, and has a random
colour whose luminance is at least 0.45 away from the mean of what it covers. The background is a 32x32 piece of one of the
photographs at a random place, at full size or shrunk to half, perhaps mirrored; it says nothing about the class. The mask marks every
pixel that the digit touches, so outside of it the image is the photograph bit for bit. Test images have other digits, and other
parts of the photographs, than training images have, whatever the `seed`. Every class is equally frequent, to within one image.

Checked against: the photographs themselves outside the masks, scikit-learn's digits inside them, and colours worked out by hand.

Cost: made in about a second, once, then read from the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.random import RandomState
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import ArrayData, DatasetInfo
from bench_plugins._images import array_records, cached, fingerprint, refuse_split
from bench_plugins.digits import LICENCE as DIGITS_LICENCE
from bench_plugins.digits import SIZE, Floats, Glyphs, enlarged, glyphs

SHRINKS = (1, 2)
TILES = (3, 5)  # Rows and columns; every third tile of a photograph is for test images.
HEIGHTS, WIDTHS = (20.0, 29.0), (0.75, 1.0)  # Pixels; share of the height.
CONTRASTS = (0.45, 0.75)
EDGE = (0.25, 0.6)  # Grey of the scan where the ink begins and where it is full: a broad stroke with a thin rim.
CHUNK = 500  # Scenes painted at once; enters the stream of draws, so a change of it is a new version.
LUMINANCE = np.array([0.299, 0.587, 0.114])
LICENCE = (
    f"digits: {DIGITS_LICENCE}; photographs: CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/), cut, shrunk and painted over here: "
    "china.jpg by danielbuechele (https://www.flickr.com/photos/danielbuechele/6061409035), "
    "flower.jpg, for which scikit-learn names danielbuechele and links to vultilion (https://www.flickr.com/photos/vultilion/6056698931)"
)

Pixels = NDArray[np.uint8]


class Painted(NamedTuple):
    """Images (N, 32, 32, 3), labels (N,) and masks (N, 32, 32)."""

    images: Pixels
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def paint(digits: Glyphs, photographs: Sequence[Pixels], count: int, random: RandomState) -> Painted:
    """`count` scenes. Drawn from RandomState, whose stream NumPy has frozen, so that every version makes the same images."""
    labels = random.permutation(np.arange(count) % 10)
    sources = [shrunk(photograph, factor) for photograph in photographs for factor in SHRINKS]
    parts = [_paint(digits, sources, labels[start : start + CHUNK], random) for start in range(0, count, CHUNK)]
    return Painted(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _paint(digits: Glyphs, sources: Sequence[Pixels], labels: NDArray[np.int64], random: RandomState) -> Painted:
    opacity = stamps(pick(digits, labels, random), random)
    ground = pieces(sources, len(labels), random) / 255
    under = (opacity * ground).sum((1, 2)) / opacity.sum((1, 2))
    ink = colours(under, random)
    images = ground + opacity * (ink[:, None, None, :] - ground)
    return Painted(np.rint(images * 255).astype(np.uint8), labels, opacity[..., 0] > 0)


def pick(digits: Glyphs, labels: NDArray[np.int64], random: RandomState) -> Floats:
    """(N, 8, 8) a random digit of each label."""
    order, counts = np.argsort(digits.labels, kind="stable"), np.bincount(digits.labels, minlength=10)
    starts = np.cumsum(counts) - counts
    within = np.floor(random.random_sample(len(labels)) * counts[labels]).astype(np.int64)
    return digits.images[order[starts[labels] + within]]


def stamps(images: Floats, random: RandomState) -> Floats:
    """(N, 32, 32, 1) how much of each pixel the digit covers, at a random size and place."""
    draws = random.random_sample((4, len(images)))
    height = between(HEIGHTS, draws[0])
    width = height * between(WIDTHS, draws[1])
    grey = enlarged(images, (SIZE - width) * draws[2], (SIZE - height) * draws[3], width, height)
    return np.clip((grey - EDGE[0]) / (EDGE[1] - EDGE[0]), 0, 1)[..., None]


def pieces(sources: Sequence[Pixels], count: int, random: RandomState) -> Pixels:
    """(N, 32, 32, 3) random pieces of random sources, half of them mirrored."""
    source = random.randint(len(sources), size=count)
    mirrored = random.randint(2, size=count).astype(bool)
    places = random.random_sample((2, count))
    found = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for number in np.unique(source):
        rows = np.flatnonzero(source == number)
        windows = sliding_window_view(sources[number], (SIZE, SIZE), axis=(0, 1))  # (H - 31, W - 31, 3, 32, 32)
        y, x = (np.floor(places[axis, rows] * windows.shape[axis]).astype(np.int64) for axis in (0, 1))
        found[rows] = windows[y, x].transpose(0, 2, 3, 1)
    found[mirrored] = found[mirrored][:, :, ::-1]
    return found


def shrunk(photograph: Pixels, factor: int) -> Pixels:
    """The mean over blocks of factor x factor pixels, in whole numbers."""
    height, width = (side // factor for side in photograph.shape[:2])
    blocks = photograph[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return ((blocks.sum((1, 3), dtype=np.int64) + factor**2 // 2) // factor**2).astype(np.uint8)


def colours(under: Floats, random: RandomState) -> Floats:
    """(N, 3) random colours whose luminance differs by 0.45 to 0.75 from that of the colours they cover."""
    colour, draws = random.random_sample(under.shape), random.random_sample((2, len(under)))
    below, apart = under @ LUMINANCE, between(CONTRASTS, draws[0])
    up, down = below + apart <= 1, below - apart >= 0  # Whether there is room
    lighter = np.where(up & down, draws[1] < 0.5, np.where(up | down, up, below < 0.5))
    wanted = np.clip(np.where(lighter, below + apart, below - apart), 0, 1)
    return with_luminance(colour, wanted)


def with_luminance(colour: Floats, wanted: Floats) -> Floats:
    """The colours moved towards black or towards white until they have the luminance wanted."""
    wanted = wanted[:, None]
    own = colour @ LUMINANCE[:, None]
    darkened = colour * wanted / np.maximum(own, 1e-9)
    lightened = 1 - (1 - colour) * (1 - wanted) / np.maximum(1 - own, 1e-9)
    return np.clip(np.where(own > wanted, darkened, lightened), 0, 1)


def between(limits: tuple[float, float], draws: Floats) -> Floats:
    return limits[0] + (limits[1] - limits[0]) * draws


def regions(split: str) -> list[Pixels]:
    """The parts of the photographs that are for this split; no pixel is for both."""
    tiles = [
        tile
        for photograph in sample_photographs()
        for rows in np.array_split(photograph, TILES[0])
        for tile in np.array_split(rows, TILES[1], axis=1)
    ]
    return [tile for number, tile in enumerate(tiles) if (number % 3 == 1) == (split == "test")]


@cache
def sample_photographs() -> list[Pixels]:
    from sklearn.datasets import load_sample_images

    return [np.asarray(image) for image in load_sample_images().images]


@dataclass(frozen=True)
class Scenes:
    """Handwritten digits on photographs, 32x32, 10 classes, exact masks; needs no download."""

    train_images: Annotated[int, Field(ge=10)] = 6000
    test_images: Annotated[int, Field(ge=10)] = 2000
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    name: ClassVar[str] = "scenes"
    version: ClassVar[int] = 1
    default: ClassVar[bool] = True
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"

    def load(self, split: str, root: Path | None = None) -> ArrayData:
        refuse_split(self.name, split)
        count = self.train_images if split == "train" else self.test_images
        recipe = {"name": self.name, "version": self.version, "split": split, "count": count, "seed": self.seed}
        made = cached(f"{self.name}-{split}", recipe, lambda: self._make(split, count))
        images, labels, masks = made["images"], made["labels"], made["masks"]
        info = DatasetInfo(
            name=self.name,
            num_classes=10,
            class_names=tuple("0123456789"),
            class_counts=tuple(labels.bincount(minlength=10).tolist()),
            image_size=(SIZE, SIZE),
            fingerprint=fingerprint(array_records(images, labels, masks)),
            licence=LICENCE,
            source="made from scikit-learn's load_digits and load_sample_images",
            redistributable=True,
            flippable=False,
            has_masks=True,
            mean=(0.41, 0.46, 0.43),
            std=(0.36, 0.30, 0.32),
        )
        return ArrayData(info, images, labels, masks)

    def _make(self, split: str, count: int) -> dict[str, Tensor]:
        painted = paint(glyphs(split, seed=0), regions(split), count, RandomState([self.seed, split == "test"]))
        images, labels, masks = (torch.from_numpy(array) for array in painted)
        return {"images": images.permute(0, 3, 1, 2).contiguous(), "labels": labels, "masks": masks[:, None].contiguous()}


@hookimpl
def register_datasets(register: Register) -> None:
    register(Scenes)
