"""The data sets of the papers, read from their published layouts below the data folder.

Paper: each part names its own.

Layouts, below the data folder: `tiny-imagenet-200/{train/<wnid>/images, val/images, val/val_annotations.txt, words.txt}`;
`VOCdevkit/VOC2012/{JPEGImages, Annotations, ImageSets, SegmentationClass}` and VOC2007 likewise; `imagenette2-160/{train,val}/<wnid>`;
`stanford_dogs/{Images, Annotation, train_list.mat, test_list.mat}`; `food-101/{images, meta/train.json, meta/test.json}`;
`oxford-iiit-pet/{images, annotations/trimaps, annotations/trainval.txt, annotations/test.txt}`; `plantvillage` and `asl` are image folders, divided
by content where they have no split folders (see `imagefolder`). `download = true` lets torchvision fetch those it knows: VOC, Imagenette,
Food-101 and Oxford-IIIT Pet. Nothing is fetched otherwise.

Choices: where the labels of the test images are not public, the validation images are the test part (Tiny-ImageNet, VOC 2012, Imagenette);
VOC 2007 trains on trainval. VOC has several labels an image: a class is there if an object of it is that is not marked difficult. Its boxes have the
class as a sixth number, and `segmentation = true` takes the images that have masks, one mask a class in the order of the classes, borders left
out. Pixels counted from 1 to the last one (VOC) and from 0 to the last one (Tiny-ImageNet) become corners; boxes of Stanford Dogs are corners as they
are. A pet's mask is the inner part of its trimap. VOC is squashed to 224x224 as in EDDA; the others are cut to a square. Normalisation is ImageNet's.

Checked against: small files of the same layouts with known labels, boxes and masks. The real files were not at hand.

Cost: every file is read once for its fingerprint, which the cache keeps; images are decoded when asked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from bench import hookimpl
from bench.errors import DataError
from bench.hookspecs import Register
from bench_plugins._files import FileData, Item, ReadMasks, Resize, Shown, file_data
from bench_plugins._images import data_folder, image_files, refuse_split, subfolders
from bench_plugins.imagefolder import ImageFolder

IMAGENET_LICENCE = "images of ImageNet: non-commercial research and education"
VOC_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
).split()
IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

Size = Annotated[int, Field(ge=2)]


class Content(NamedTuple):
    """The classes in the order of their labels, and the images of one split."""

    class_names: Sequence[str]
    items: list[Item]


@dataclass(frozen=True)
class Published:
    """What the data sets of this file have in common: a folder of a known layout, and one size to show."""

    size: Size = 224
    resize: Resize = "crop"
    download: bool = False
    name: ClassVar[str]
    version: ClassVar[int] = 1
    paper: ClassVar[str]
    claim: ClassVar[str] = "unverified"
    source: ClassVar[str]
    licence: ClassVar[str]
    has_boxes: ClassVar[bool] = False
    multi_label: ClassVar[bool] = False

    def load(self, split: str, root: Path | None) -> FileData:
        refuse_split(self.name, split)
        folder = self._folder(split, data_folder(self.name, root))
        with layout_of(self.name, folder):
            content = self._read(folder, split)
        if not content.items:
            raise DataError(f"data set '{self.name}' has no images for {split} in {folder}.")
        facts = {"licence": self.licence, "source": self.source, "has_boxes": self.has_boxes, "multi_label": self.multi_label}
        shown = Shown(self.size, self.resize)
        return file_data(self.name, folder, content.items, content.class_names, shown, read_masks=self._read_masks(), **facts)

    def identity(self) -> dict[str, Any]:
        """Every parameter but the download, which changes no number."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "download"}

    def _folder(self, split: str, root: Path) -> Path:
        folder = root / self._place()
        if not folder.is_dir() and self.download:
            self._download(split, root)
        if not folder.is_dir():
            there = ", ".join(subfolders(root)[:12]) or "no folders"
            raise DataError(f"data set '{self.name}' was looked for in {folder}. Found in {root}: {there}.\n{self._advice()}")
        return folder

    def _advice(self) -> str:
        fetch = "" if type(self)._fetch is Published._fetch else f', or download it: {{ name = "{self.name}", download = true }} in the spec file'
        return f"Type --data FOLDER for the folder that holds {self._place()} (from {self.source}){fetch}."

    def _download(self, split: str, root: Path) -> None:
        try:
            self._fetch(split, root)
        except (OSError, RuntimeError) as error:
            raise DataError(f"data set '{self.name}' could not be downloaded to {root}: {error}") from None

    def _fetch(self, split: str, root: Path) -> None:
        """Let torchvision download it, where torchvision can."""

    def _place(self) -> str:
        """The folder below the data folder."""
        raise NotImplementedError

    def _read(self, folder: Path, split: str) -> Content:
        raise NotImplementedError

    def _read_masks(self) -> ReadMasks | None:
        return None
