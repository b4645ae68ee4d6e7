"""Label noise: training labels flipped at random, to the next class, by what the image looks like, or as people err.

Paper: PES (arXiv:2106.15853) and its code for the first four, with rate n and C classes. `symmetric`: T = (1-n) I + n/(C-1) (1-I), so n
is the share of wrong labels. `symmetric-inclusive`, DivideMix's convention: with probability n a label is drawn anew from all C classes, so
n(1-1/C) are wrong. `pairflip`: class i becomes i+1, the last the first. `instance` (arXiv:2006.07836): image x of class y has a rate q of its
own, from a normal distribution around n with deviation 0.1, cut to [0, 1], and becomes class j other than y with probability
q softmax_j(x W_y), where W_y is drawn once per class. `human`: T is the rows of a confusion matrix, such as CIFAR-100N's (arXiv:2110.12088).

Choices: `instance` takes x standardised by the data set's mean and deviation; images above 32x32 are averaged down to 32x32
first, so that W_y stays small. Its mean rate is n only where the cut takes equal parts off both ends or none: about 0.08 for n = 0. `human` reads
.csv (clean class by noisy class) or .npz (`confusion`, or `clean_label` and `noisy_label`, which are counted, so that they may list other images or
another order) and divides each row by its sum. Multi-label data are refused.

Differs from the paper: PES's code draws from NumPy's generator, this from the generator that it is given.

Checked against: matrices written out by hand, observed flips within four standard errors, and a loop that follows the formula of `instance`.

Cost: no passes; `instance` multiplies each image with a (pixels x C) matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench import hookimpl
from bench.errors import DataError, InvalidValue
from bench.hookspecs import Register
from bench.interfaces import ArrayData, ByContent, DatasetInfo, Fraction, ImageData

PES = "Yingbin Bai and others; Understanding and Improving Early Stopping for Learning with Noisy Labels; NeurIPS 2021; arXiv:2106.15853"
FEATURES_SIDE = 32
RATE_DEVIATION = 0.1
CHUNK = 4096

Table = NDArray[np.float64]


@dataclass(frozen=True)
class Symmetric:
    """A share of the labels becomes another class, each equally likely."""

    rate: Fraction = 0.5
    name: ClassVar[str] = "symmetric"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PES
    claim: ClassVar[str] = "formula verified"
    argument: ClassVar[str] = "rate"

    def __call__(self, labels: Tensor, info: DatasetInfo, generator: torch.Generator) -> Tensor:
        return drawn(self.transition(info), labels, generator)

    def transition(self, info: DatasetInfo) -> Tensor:
        """(C, C): row y holds the chances of what a label y becomes."""
        return uniform_flips(self.rate, single_label(info, self.name))


@dataclass(frozen=True)
class SymmetricInclusive:
    """A share of the labels is drawn anew from all classes, their own among them (DivideMix's convention)."""

    rate: Fraction = 0.5
    name: ClassVar[str] = "symmetric-inclusive"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Junnan Li, Richard Socher, Steven C.H. Hoi; DivideMix: Learning with Noisy Labels as Semi-supervised Learning; ICLR 2020; arXiv:2002.07394"
    )
    claim: ClassVar[str] = "formula verified"
    argument: ClassVar[str] = "rate"

    def __call__(self, labels: Tensor, info: DatasetInfo, generator: torch.Generator) -> Tensor:
        return drawn(self.transition(info), labels, generator)

    def transition(self, info: DatasetInfo) -> Tensor:
        classes = single_label(info, self.name)
        return uniform_flips(self.rate * (1 - 1 / classes), classes)


@dataclass(frozen=True)
class PairFlip:
    """A share of the labels becomes the next class; the last becomes the first."""

    rate: Fraction = 0.45
    name: ClassVar[str] = "pairflip"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Bo Han and others; Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels; NeurIPS 2018; arXiv:1804.06872"
    )
    claim: ClassVar[str] = "formula verified"
    argument: ClassVar[str] = "rate"

    def __call__(self, labels: Tensor, info: DatasetInfo, generator: torch.Generator) -> Tensor:
        return drawn(self.transition(info), labels, generator)

    def transition(self, info: DatasetInfo) -> Tensor:
        stay = torch.eye(single_label(info, self.name), dtype=torch.float64)
        return (1 - self.rate) * stay + self.rate * stay.roll(1, 1)


@dataclass(frozen=True)
class Instance:
    """Labels flip at a rate and towards classes that depend on the image."""

    rate: Fraction = 0.4
    name: ClassVar[str] = "instance"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Xiaobo Xia and others; Part-dependent Label Noise: Towards Instance-dependent Label Noise; NeurIPS 2020; arXiv:2006.07836"
    claim: ClassVar[str] = "formula verified"
    argument: ClassVar[str] = "rate"
    needs_images: ClassVar[bool] = True

    def __call__(self, labels: Tensor, info: DatasetInfo, generator: torch.Generator, *, images: ImageData) -> Tensor:
        """Noisy labels (N,); `images` are the data that the labels belong to, in their order."""
        classes = single_label(info, self.name)
        if len(images) != len(labels):
            raise DataError(f"label noise 'instance' was given {len(images)} images for {len(labels)} labels.")
        rates = truncated_normal(self.rate, RATE_DEVIATION, len(labels), generator)
        choice = torch.rand(len(labels), generator=generator, dtype=torch.float64)
        length = features(images, torch.tensor([0])).shape[1] if len(labels) else 0
        noisy = labels.clone()
        for label in range(classes):
            weights = torch.randn(length, classes, generator=generator)
            for rows in torch.nonzero(labels == label).squeeze(1).split(CHUNK):
                chances = instance_chances(features(images, rows) @ weights, label, rates[rows])
                noisy[rows] = pick(chances, choice[rows])
        return noisy


@dataclass(frozen=True)
class Human:
    """Labels become what people took each class for, by a confusion matrix or by a file of their labels."""

    file: Annotated[Path, ByContent()]
    name: ClassVar[str] = "human"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Jiaheng Wei and others; Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations; ICLR 2022; arXiv:2110.12088"
    )
    claim: ClassVar[str] = "formula verified"
    argument: ClassVar[str] = "file"

    def __call__(self, labels: Tensor, info: DatasetInfo, generator: torch.Generator) -> Tensor:
        return drawn(self.transition(info), labels, generator)

    def transition(self, info: DatasetInfo) -> Tensor:
        return read_confusion(self.file, single_label(info, self.name))


def single_label(info: DatasetInfo, name: str) -> int:
    """The number of classes. Raises InvalidValue for multi-label data and for a single class."""
    if info.multi_label:
        raise InvalidValue(f"label noise '{name}' flips one class to another, and the images of '{info.name}' have several labels at once.")
    if info.num_classes < 2:
        raise InvalidValue(f"label noise '{name}' needs two classes or more; '{info.name}' has {info.num_classes}.")
    return info.num_classes


def uniform_flips(rate: float, classes: int) -> Tensor:
    """(C, C): `rate` shared by the other classes."""
    stay = torch.eye(classes, dtype=torch.float64)
    return (1 - rate) * stay + rate / (classes - 1) * (1 - stay)


def drawn(transition: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Each label drawn from its row of the matrix, one number of the stream per label."""
    choice = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    parts = [pick(transition[labels[rows]], choice[rows]) for rows in torch.arange(len(labels)).split(CHUNK)]
    return torch.cat(parts).to(labels.dtype) if parts else labels.clone()


def pick(chances: Tensor, choice: Tensor) -> Tensor:
    """(B,) the class in whose stretch of [0, 1) each choice falls; chances (B, C) sum to 1."""
    limits = chances.cumsum(1)
    limits = limits / limits[:, -1:]
    return torch.searchsorted(limits, choice[:, None], right=True).squeeze(1)


def truncated_normal(mean: float, deviation: float, count: int, generator: torch.Generator) -> Tensor:
    """(N,) from the normal distribution, cut to [0, 1]: the inverse of its distribution function at uniform points."""
    low, high = (torch.special.ndtr(torch.tensor((end - mean) / deviation, dtype=torch.float64)) for end in (0, 1))
    uniform = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    return (mean + deviation * torch.special.ndtri(uniform)).clamp(0, 1)


def features(images: ImageData, rows: Tensor) -> Tensor:
    """(B, D) standardised pixels of some images."""
    stored = images.images[rows] if isinstance(images, ArrayData) else torch.stack([images[int(row)].image for row in rows])
    pixels = stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()
    if max(pixels.shape[2:]) > FEATURES_SIDE:
        pixels = F.adaptive_avg_pool2d(pixels, FEATURES_SIDE)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (images.info.mean, images.info.std))
    return ((pixels - mean) / std).flatten(1)


def instance_chances(scores: Tensor, label: int, rates: Tensor) -> Tensor:
    """(B, C): the label with 1 - rate, the others sharing the rate by the softmax of their scores."""
    others = scores.double().clone()
    others[:, label] = -torch.inf
    chances = rates[:, None] * others.softmax(1)
    chances[:, label] = 1 - rates
    return chances


def read_confusion(path: Path, classes: int) -> Tensor:
    """(C, C), clean class by noisy class, rows summing to 1, from a .csv or .npz file. Raises DataError for anything else."""
    table = read_csv(path) if path.suffix.lower() == ".csv" else read_npz(path, classes)
    if table.shape != (classes, classes):
        found = " x ".join(map(str, table.shape))
        raise DataError(f"{path} holds a table of {found}; the data have {classes} classes, so {classes} x {classes} is needed.")
    if not np.isfinite(table).all() or (table < 0).any():
        raise DataError(f"{path} holds negative or missing numbers; a confusion matrix has counts or shares, zero or above.")
    if empty := np.flatnonzero(table.sum(1) == 0).tolist():
        raise DataError(f"{path} has nothing in row {empty[0]}: it does not say what becomes of that class.")
    return torch.from_numpy(table / table.sum(1, keepdims=True))


def read_csv(path: Path) -> Table:
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as numbers separated by commas: {error}") from None


def read_npz(path: Path, classes: int) -> Table:
    """The array `confusion`, or `clean_label` and `noisy_label` counted into one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in ("confusion", "clean_label", "noisy_label")}
    except (OSError, ValueError, AttributeError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz or .csv: {error}") from None
    if "confusion" in arrays:
        return arrays["confusion"].astype(np.float64)
    if len(arrays) < 2:
        raise DataError(f"{path} needs an array called confusion, or two called clean_label and noisy_label.")
    return counted(path, arrays["clean_label"], arrays["noisy_label"], classes)


def counted(path: Path, clean: NDArray[Any], noisy: NDArray[Any], classes: int) -> Table:
    """(C, C) how often each clean label was given each noisy one."""
    if clean.shape != noisy.shape or clean.ndim != 1:
        raise DataError(f"{path}: clean_label has the shape {clean.shape} and noisy_label {noisy.shape}; both list the same images.")
    for labels in (clean, noisy):
        if not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0 or labels.max(initial=0) >= classes:
            raise DataError(f"{path} holds labels that are not whole numbers from 0 to {classes - 1}.")
    return np.bincount(clean.astype(np.int64) * classes + noisy, minlength=classes**2).reshape(classes, classes).astype(np.float64)


@hookimpl
def register_noises(register: Register) -> None:
    for noise in (Symmetric, SymmetricInclusive, PairFlip, Instance, Human):
        register(noise)
