"""CIFAR-10 and CIFAR-100, from a folder of images or from the original Python files, whichever is there.

Paper: Krizhevsky's report; 50,000 training and 10,000 test images of 32x32 in 10 or 100 classes (the fine labels).

Choices: images lie in the order of their content, so that image 17 is the same one whether it came from
`<root>/cifar100/train/apple/0001.png` or from `<root>/cifar-100-python`; the fingerprint agrees likewise. A folder may hold part of the
images (the counts say so); it may not hold other classes. Decoded folders are kept in the cache. The original files are checked
by torchvision against their published sums before anything in them is run. `download = true` fetches them.

Checked against: the published class order, torchvision's reading of the original files, and the same images stored both ways.

Cost: a folder of 50,000 images is decoded once (about 20 seconds), then read from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench import hookimpl
from bench.errors import DataError
from bench.hookspecs import Register
from bench.interfaces import ArrayData, DatasetInfo
from bench_plugins._images import (
    Found,
    cached,
    data_folder,
    fingerprint,
    image_files,
    in_canonical_order,
    listing,
    read_image,
    refuse_split,
    subfolders,
    to_tensor,
)

SIZE = 32
PAPER = "Alex Krizhevsky; Learning Multiple Layers of Features from Tiny Images; University of Toronto 2009"
LICENCE = "none stated; the authors ask for a citation of the report"
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle chair
chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10: 60,000 photographs of 32x32, 10 classes."""

    download: bool = False
    name: ClassVar[str] = "cifar10"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = PAPER
    claim: ClassVar[str] = "formula verified"
    classes: ClassVar[tuple[str, ...]] = tuple(CIFAR10_CLASSES.split())
    original: ClassVar[str] = "cifar-10-batches-py"
    loader: ClassVar[str] = "CIFAR10"
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    def load(self, split: str, root: Path | None) -> ArrayData:
        refuse_split(self.name, split)
        found = self._read(split, data_folder(self.name, root))
        labels = found["labels"]
        info = DatasetInfo(
            name=self.name,
            num_classes=len(self.classes),
            class_names=self.classes,
            class_counts=tuple(labels.bincount(minlength=len(self.classes)).tolist()),
            image_size=(SIZE, SIZE),
            fingerprint=fingerprint(record.numpy().tobytes() for record in found["records"]),
            licence=LICENCE,
            source="https://www.cs.toronto.edu/~kriz/cifar.html",
            mean=self.mean,
            std=self.std,
        )
        return ArrayData(info, found["images"], labels)

    def identity(self) -> dict[str, Any]:
        """Nothing: whether the files were downloaded changes no number."""
        return {}

    def _read(self, split: str, root: Path) -> dict[str, Tensor]:
        """Images (N, 3, 32, 32) uint8, labels (N,) and records (N, 32), from the first place that has them."""
        folder, original = root / self.name / split, root / self.original
        if folder.is_dir():
            return read_folder(folder, self.classes)
        if not (original.is_dir() or self.download):
            raise DataError(self._not_found(folder, original))
        return self._read_original(split, root)

    def _read_original(self, split: str, root: Path) -> dict[str, Tensor]:
        import torchvision.datasets

        make: Callable[..., Any] = getattr(torchvision.datasets, self.loader)
        try:
            data = make(str(root), train=split == "train", download=self.download)
        except RuntimeError as error:
            raise DataError(
                f"{root / self.original} is not whole ({error}).\nRemove it, and give '{self.name}' the parameter download = true."
            ) from None
        return in_canonical_order(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))

    def _not_found(self, folder: Path, original: Path) -> str:
        there = ", ".join(sorted(path.name for path in folder.parent.parent.iterdir())[:12]) or "nothing"
        splits = ", ".join(subfolders(folder.parent)) if folder.parent.is_dir() else ""
        return (
            f"data set '{self.name}' was looked for in {folder}/<class>/*.png and in {original} (the original Python files), and neither is there.\n"
            f"Found: {f'in {folder.parent}: {splits}' if splits else f'in {folder.parent.parent}: {there}'}.\n"
            f"Type --data FOLDER for the folder that holds {self.name}/ or {original.name}/, "
            f'or download it: {{ name = "{self.name}", download = true }} in the spec file.'
        )


@dataclass(frozen=True)
class Cifar100(Cifar10):
    """CIFAR-100: 60,000 photographs of 32x32, 100 classes (the fine labels)."""

    name: ClassVar[str] = "cifar100"
    classes: ClassVar[tuple[str, ...]] = tuple(CIFAR100_CLASSES.split())
    original: ClassVar[str] = "cifar-100-python"
    loader: ClassVar[str] = "CIFAR100"
    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4865, 0.4409)
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)


def read_folder(folder: Path, classes: tuple[str, ...]) -> dict[str, Tensor]:
    """The images of <folder>/<class>/*, decoded once and then read from the cache. Raises DataError."""
    found = subfolders(folder)
    if found != sorted(classes):
        missing, unknown = (", ".join(sorted(names)[:5]) for names in (set(classes) - set(found), set(found) - set(classes)))
        raise DataError(
            f"{folder} has {len(found)} class folders where {len(classes)} are asked for"
            f"{f'; missing: {missing}' if missing else ''}{f'; unknown: {unknown}' if unknown else ''}."
        )
    files = image_files(folder)
    if not files:
        raise DataError(f"{folder} has {len(found)} class folders and no images in them.")
    return cached("cifar", listing(folder, files), lambda: _decode(folder, files, classes))


def _decode(folder: Path, files: Sequence[Found], classes: tuple[str, ...]) -> dict[str, Tensor]:
    images = torch.stack([_read_small(folder / file.name) for file in files])
    return in_canonical_order(images, torch.tensor([classes.index(file.name.split("/")[0]) for file in files]))


def _read_small(path: Path) -> Tensor:
    image = to_tensor(read_image(path))
    if image.shape != (3, SIZE, SIZE):
        raise DataError(f"{path} is {image.shape[2]}x{image.shape[1]} pixels; an image of CIFAR is {SIZE}x{SIZE}.")
    return image


@hookimpl
def register_datasets(register: Register) -> None:
    register(Cifar10)
    register(Cifar100)
