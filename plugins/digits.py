"""Handwritten digits as they come with scikit-learn, enlarged to 32x32 and grey as RGB: nothing to download.

Paper: E. Alpaydin and C. Kaynak collected them (UCI, 1998): 1797 digits of 13 writers, each 8x8 with values 0 to 16.

Choices: a quarter of every class, drawn with `split_seed`, is the test part, so a writer has digits on both sides. Enlarging is
bilinear, and the digit fills the image.

Checked against: Pillow's own bilinear enlargement, and the counts that scikit-learn states.

Cost: nothing is stored; loading takes a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from bench import hookimpl
from bench.hookspecs import Register
from bench.interfaces import ArrayData, DatasetInfo
from bench_plugins._images import array_records, fingerprint, refuse_split

SIZE = 32
LICENCE = (
    "part of UCI's Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998, prepared with programs of NIST), "
    "as distributed by scikit-learn under BSD-3-Clause"
)

Floats = NDArray[np.float64]


class Glyphs(NamedTuple):
    """Digits (N, 8, 8) in [0, 1] and what they are (N,)."""

    images: Floats
    labels: NDArray[np.int64]


@cache
def all_glyphs() -> Glyphs:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Glyphs(digits.images / 16, digits.target.astype(np.int64))


def glyphs(split: str, seed: int) -> Glyphs:
    """A quarter of every class for test, the rest for train. Drawn with RandomState, whose stream NumPy has frozen."""
    everything, random = all_glyphs(), np.random.RandomState(seed)
    chosen = []
    for label in range(10):
        rows = random.permutation(np.flatnonzero(everything.labels == label))
        cut = len(rows) // 4
        chosen.append(rows[:cut] if split == "test" else rows[cut:])
    rows = np.sort(np.concatenate(chosen))
    return Glyphs(everything.images[rows], everything.labels[rows])


def enlarged(images: Floats, left: Floats, top: Floats, width: Floats, height: Floats) -> Floats:
    """(N, 32, 32): each 8x8 digit stretched bilinearly over its box, and 0 outside of it."""
    return _tents(top, height) @ images @ _tents(left, width).transpose(0, 2, 1)


def _tents(start: Floats, length: Floats) -> Floats:
    """(N, 32, 8) how much each of 8 cells gives to each of 32 pixels when the cells are stretched over [start, start + length)."""
    pixels = np.arange(SIZE) + 0.5
    places = (pixels - start[:, None]) / length[:, None] * 8 - 0.5  # in cells; the middle of cell j is j
    inside = (places >= -0.5) & (places <= 7.5)
    nearness = 1 - np.abs(np.clip(places, 0, 7)[:, :, None] - np.arange(8))
    return np.where(inside[:, :, None], np.maximum(nearness, 0), 0.0)


@dataclass(frozen=True)
class Digits:
    """Handwritten digits from scikit-learn, 32x32, 10 classes."""

    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    name: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "E. Alpaydin, C. Kaynak; Optical Recognition of Handwritten Digits; UCI Machine Learning Repository 1998"
    claim: ClassVar[str] = "formula verified"

    def load(self, split: str, root: Path | None = None) -> ArrayData:
        refuse_split(self.name, split)
        digits = glyphs(split, self.split_seed)
        zero, full = np.zeros(len(digits.labels)), np.full(len(digits.labels), float(SIZE))
        grey = np.rint(255 * enlarged(digits.images, zero, zero, full, full)).astype(np.uint8)
        images = torch.from_numpy(grey)[:, None].repeat(1, 3, 1, 1)
        labels = torch.from_numpy(digits.labels)
        info = DatasetInfo(
            name=self.name,
            num_classes=10,
            class_names=tuple("0123456789"),
            class_counts=tuple(np.bincount(digits.labels, minlength=10).tolist()),
            image_size=(SIZE, SIZE),
            fingerprint=fingerprint(array_records(images, labels)),
            licence=LICENCE,
            source="https://archive.ics.uci.edu/dataset/80",
            redistributable=True,
            flippable=False,
            mean=(0.306,) * 3,
            std=(0.324,) * 3,
        )
        return ArrayData(info, images, labels)


@hookimpl
def register_datasets(register: Register) -> None:
    register(Digits)
