"""The data sets of the papers, read from their published layouts below the data folder.

Paper: each part names its own.

Layouts, below the data folder: `tiny-imagenet-200/{train/<wnid>/images, val/images, val/val_annotations.txt, words.txt}`;
`VOCdevkit/VOC2012/{JPEGImages, Annotations, ImageSets, SegmentationClass}` and VOC2007 likewise; `imagenette2-160/{train,val}/<wnid>`;
`stanford_dogs/{Images, Annotation, train_list.mat, test_list.mat}`; `food-101/{images, meta/train.json, meta/test.json}`;
`oxford-iiit-pet/{images, annotations/trimaps, annotations/trainval.txt, annotations/test.txt}`; `plantvillage` and `asl` are image folders, divided
by content where they have no split folders (see `imagefolder`). `download = true` lets torchvision fetch those it knows: VOC, Imagenette,
Food-101 and Oxford-IIIT Pet. Nothing is fetched otherwise.

Choices: where the labels of the test images are not public, the validation images are the test part (Tiny-ImageNet, VOC 2012, Imagenette);
VOC 2007 trains on trainval. VOC has several labels an image: a class is there if an object of it is that is not marked difficult. Its boxes
are those of all objects, each with its class; `segmentation = true` takes the images that have masks, one mask a class in the order of the
classes, borders left out. Pixels counted from 1 to the last one (VOC) and from 0 to the last one (Tiny-ImageNet) become corners; boxes of
Stanford Dogs are corners as they are. A pet's mask is the inner part of its trimap. VOC is squashed to 224x224 as in EDDA; the others are cut
to a square. Normalisation is ImageNet's.

Checked against: small files of the same layouts with known labels, boxes and masks. The real files were not at hand.

Cost: every file is read once for its fingerprint, which the cache keeps; images are decoded when asked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
VOC_CLASSES = tuple(
    """
    aeroplane bicycle bird boat bottle bus car cat chair cow
    diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor
    """.split()  # noqa: SIM905
)
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
        refuse_split(self._called(), split)
        folder = self._folder(split, data_folder(self._called(), root))
        with layout_of(self._called(), folder):
            content = self._read(folder, split)
        if not content.items:
            raise DataError(f"data set '{self._called()}' has no images for {split} in {folder}.")
        facts = {"licence": self.licence, "source": self.source, "has_boxes": self.has_boxes, "multi_label": self.multi_label}
        shown = Shown(self.size, self.resize)
        return file_data(self._called(), folder, content.items, content.class_names, shown, read_masks=self._read_masks(), **facts)

    def identity(self) -> dict[str, Any]:
        """Every parameter but the download, which changes no number."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "download"}

    def _called(self) -> str:
        return self.name

    def _folder(self, split: str, root: Path) -> Path:
        folder = root / self._place()
        if not folder.is_dir() and self.download:
            self._download(split, root)
        if not folder.is_dir():
            there = ", ".join(subfolders(root)[:12]) or "no folders"
            raise DataError(f"data set '{self._called()}' was looked for in {folder}. Found in {root}: {there}.\n{self._advice()}")
        return folder

    def _advice(self) -> str:
        fetchable = type(self)._fetch is not Published._fetch
        fetch = f', or download it: {{ name = "{self._called()}", download = true }} in the spec file' if fetchable else ""
        return f"Type --data FOLDER for the folder that holds {self._place()} (from {self.source}){fetch}."

    def _download(self, split: str, root: Path) -> None:
        try:
            self._fetch(split, root)
        except (OSError, RuntimeError) as error:
            raise DataError(f"data set '{self._called()}' could not be downloaded to {root}: {error}") from None

    def _fetch(self, split: str, root: Path) -> None:
        """Let torchvision download it, where torchvision can."""

    def _place(self) -> str:
        """The folder below the data folder."""
        raise NotImplementedError

    def _read(self, folder: Path, split: str) -> Content:
        raise NotImplementedError

    def _read_masks(self) -> ReadMasks | None:
        return None


@dataclass(frozen=True)
class TinyImageNet(Published):
    """Tiny-ImageNet: 110,000 images of 64x64 with boxes, 200 classes."""

    size: Size = 64
    name: ClassVar[str] = "tiny-imagenet"
    paper: ClassVar[str] = "Ya Le, Xuan Yang; Tiny ImageNet Visual Recognition Challenge; Stanford CS231N 2015"
    source: ClassVar[str] = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    licence: ClassVar[str] = IMAGENET_LICENCE
    has_boxes: ClassVar[bool] = True

    def _place(self) -> str:
        return "tiny-imagenet-200"

    def _read(self, folder: Path, split: str) -> Content:
        wnids = subfolders(folder / "train")
        words = dict(line.split("\t", 1) for line in lines(folder / "words.txt"))
        if split == "test":
            rows = [line.split("\t") for line in lines(folder / "val/val_annotations.txt")]
            items = [Item(f"val/images/{file}", wnids.index(wnid), (whole_pixels(box),)) for file, wnid, *box in rows]
        else:
            items = [item for label, wnid in enumerate(wnids) for item in self._class(folder, wnid, label)]
        return Content([words.get(wnid, wnid) for wnid in wnids], items)

    def _class(self, folder: Path, wnid: str, label: int) -> Iterator[Item]:
        for line in lines(folder / "train" / wnid / f"{wnid}_boxes.txt"):
            file, *box = line.split("\t")
            yield Item(f"train/{wnid}/images/{file}", label, (whole_pixels(box),))


@dataclass(frozen=True)
class Voc(Published):
    """PASCAL VOC: photographs with boxes, 20 classes, several an image; masks with segmentation = true."""

    resize: Resize = "squash"
    year: Literal["2007", "2012"] = "2012"
    segmentation: bool = False
    name: ClassVar[str] = "voc2012"
    version: ClassVar[int] = 2  # Boxes have classes.
    paper: ClassVar[str] = "Mark Everingham and others; The PASCAL Visual Object Classes Challenge: A Retrospective; IJCV 2015"
    source: ClassVar[str] = "http://host.robots.ox.ac.uk/pascal/VOC"
    licence: ClassVar[str] = "photographs of flickr users, each under flickr's terms of use"
    has_boxes: ClassVar[bool] = True
    multi_label: ClassVar[bool] = True
    lists: ClassVar[dict[str, dict[str, str]]] = {"2007": {"train": "trainval", "test": "test"}, "2012": {"train": "train", "test": "val"}}

    def _called(self) -> str:
        return f"voc{self.year}"

    def _place(self) -> str:
        return f"VOCdevkit/VOC{self.year}"

    def _fetch(self, split: str, root: Path) -> None:
        from torchvision.datasets import VOCDetection

        for part in ("trainval", "test")[: 2 if self.year == "2007" else 1]:
            VOCDetection(str(root), year=self.year, image_set=part, download=True)

    def _read(self, folder: Path, split: str) -> Content:
        chosen = folder / "ImageSets" / ("Segmentation" if self.segmentation else "Main") / f"{self.lists[self.year][split]}.txt"
        return Content(VOC_CLASSES, [self._item(folder, name.split()[0]) for name in lines(chosen)])

    def _item(self, folder: Path, name: str) -> Item:
        objects = annotated(folder / "Annotations" / f"{name}.xml")
        there = {each.name for each in objects if not each.difficult}
        boxes = tuple((each.x0 - 1, each.y0 - 1, each.x1, each.y1, each.difficult, VOC_CLASSES.index(each.name)) for each in objects)
        mask = f"SegmentationClass/{name}.png" if self.segmentation else None
        return Item(f"JPEGImages/{name}.jpg", tuple(int(each in there) for each in VOC_CLASSES), boxes, mask)

    def _read_masks(self) -> ReadMasks | None:
        return voc_masks if self.segmentation else None


@dataclass(frozen=True)
class Imagenette(Published):
    """Imagenette: 13,394 photographs of ten easy classes of ImageNet."""

    size: Size = 160
    edition: Literal["full", "320px", "160px"] = "160px"
    name: ClassVar[str] = "imagenette"
    paper: ClassVar[str] = "Jeremy Howard; Imagenette; github.com/fastai/imagenette 2019"
    source: ClassVar[str] = "https://github.com/fastai/imagenette"
    licence: ClassVar[str] = IMAGENET_LICENCE

    def _place(self) -> str:
        return {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}[self.edition]

    def _fetch(self, split: str, root: Path) -> None:
        from torchvision.datasets import Imagenette as Fetch

        Fetch(str(root), split="train", size=self.edition, download=True)

    def _read(self, folder: Path, split: str) -> Content:
        place = {wnid: label for label, wnid in enumerate(IMAGENETTE_CLASSES)}
        part = "train" if split == "train" else "val"
        files = [f"{part}/{file.name}" for file in image_files(folder / part)]
        return Content(list(IMAGENETTE_CLASSES.values()), [Item(file, place[file.split("/")[1]]) for file in files])


@dataclass(frozen=True)
class StanfordDogs(Published):
    """Stanford Dogs: 20,580 photographs of 120 breeds, with boxes."""

    name: ClassVar[str] = "stanford-dogs"
    paper: ClassVar[str] = "Aditya Khosla and others; Novel Dataset for Fine-Grained Image Categorization: Stanford Dogs; CVPR Workshop FGVC 2011"
    source: ClassVar[str] = "http://vision.stanford.edu/aditya86/ImageNetDogs"
    licence: ClassVar[str] = IMAGENET_LICENCE
    has_boxes: ClassVar[bool] = True

    def _place(self) -> str:
        return "stanford_dogs"

    def _read(self, folder: Path, split: str) -> Content:
        from scipy.io import loadmat

        breeds = subfolders(folder / "Images")
        files = [str(cell[0]) for cell in loadmat(folder / f"{split}_list.mat")["file_list"].ravel()]
        items = [self._item(folder, file, breeds.index(file.split("/")[0])) for file in files]
        return Content([breed.split("-", 1)[1].replace("_", " ") for breed in breeds], items)

    def _item(self, folder: Path, file: str, label: int) -> Item:
        objects = annotated((folder / "Annotation" / file).with_suffix(""))
        return Item(f"Images/{file}", label, tuple((each.x0, each.y0, each.x1, each.y1, each.difficult) for each in objects))


@dataclass(frozen=True)
class Food101(Published):
    """Food-101: 101,000 photographs of dishes, 101 classes; training labels have some noise of their own."""

    name: ClassVar[str] = "food101"
    paper: ClassVar[str] = (
        "Lukas Bossard, Matthieu Guillaumin, Luc Van Gool; Food-101 - Mining Discriminative Components with Random Forests; ECCV 2014"
    )
    source: ClassVar[str] = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101"
    licence: ClassVar[str] = "photographs of Foodspotting users, for scientific fair use"

    def _place(self) -> str:
        return "food-101"

    def _fetch(self, split: str, root: Path) -> None:
        from torchvision.datasets import Food101 as Fetch

        Fetch(str(root), split=split, download=True)

    def _read(self, folder: Path, split: str) -> Content:
        files: dict[str, list[str]] = json.loads((folder / f"meta/{split}.json").read_text(encoding="utf-8"))
        dishes = sorted(files)
        items = [Item(f"images/{file}.jpg", label) for label, dish in enumerate(dishes) for file in files[dish]]
        return Content([dish.replace("_", " ") for dish in dishes], items)


@dataclass(frozen=True)
class OxfordPet(Published):
    """Oxford-IIIT Pet: 7,349 photographs of 37 breeds of cats and dogs, with masks."""

    name: ClassVar[str] = "oxford-pet"
    paper: ClassVar[str] = "Omkar M. Parkhi, Andrea Vedaldi, Andrew Zisserman, C. V. Jawahar; Cats and Dogs; CVPR 2012"
    source: ClassVar[str] = "https://www.robots.ox.ac.uk/~vgg/data/pets"
    licence: ClassVar[str] = "CC BY-SA 4.0; the photographs' copyright stays with their owners"

    def _place(self) -> str:
        return "oxford-iiit-pet"

    def _fetch(self, split: str, root: Path) -> None:
        from torchvision.datasets import OxfordIIITPet

        OxfordIIITPet(str(root), split="trainval", download=True)

    def _read(self, folder: Path, split: str) -> Content:
        parts = {part: [line.split()[:2] for line in lines(folder / f"annotations/{part}.txt")] for part in ("trainval", "test")}
        breeds = {int(number): name.rsplit("_", 1)[0] for rows in parts.values() for name, number in rows}
        items = [
            Item(f"images/{name}.jpg", int(number) - 1, mask=f"annotations/trimaps/{name}.png")
            for name, number in parts["trainval" if split == "train" else "test"]
        ]
        return Content([breeds.get(number, f"breed {number}").replace("_", " ") for number in range(1, max(breeds, default=0) + 1)], items)

    def _read_masks(self) -> ReadMasks:
        return pet_masks


@dataclass(frozen=True)
class PlantVillage(ImageFolder):
    """PlantVillage: photographs of healthy and sick leaves, as an image folder."""

    path: str = "plantvillage"
    size: Size | None = 224
    name: ClassVar[str] = "plantvillage"
    paper: ClassVar[str] = (
        "David P. Hughes, Marcel Salathe; An open access repository of images on plant health to enable the development of mobile disease "
        "diagnostics; arXiv:1511.08060"
    )
    claim: ClassVar[str] = "unverified"

    def load(self, split: str, root: Path | None) -> FileData:
        return renamed(super().load(split, root), self.name)


@dataclass(frozen=True)
class Asl(ImageFolder):
    """ASL Alphabet: photographs of hands spelling American Sign Language, as an image folder."""

    path: str = "asl"
    size: Size | None = 200
    name: ClassVar[str] = "asl"
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "unverified"

    def load(self, split: str, root: Path | None) -> FileData:
        return renamed(super().load(split, root), self.name)


class Object(NamedTuple):
    """An object of an annotation file: what it is, its box as written, and 1 if it is marked difficult."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float
    difficult: float


def annotated(path: Path) -> list[Object]:
    """The objects of an annotation file in the XML form of PASCAL VOC."""
    return [_object(node) for node in ElementTree.parse(path).iter("object")]


def _object(node: ElementTree.Element) -> Object:
    corners = (float(node.findtext(f"bndbox/{edge}", "missing")) for edge in ("xmin", "ymin", "xmax", "ymax"))
    return Object(node.findtext("name", ""), *corners, float(node.findtext("difficult", "0")))


def lines(path: Path) -> list[str]:
    """The lines of a text file that are neither empty nor comments."""
    text = path.read_text(encoding="utf-8").splitlines()
    return [line for line in text if line.strip() and not line.startswith("#")]


def whole_pixels(box: Sequence[str]) -> tuple[float, ...]:
    """Corners, from the first and the last pixel counted from 0."""
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1 + 1, y1 + 1


def voc_masks(values: NDArray[np.uint8], label: Any) -> Tensor:
    """(20, H, W): class k has the value k + 1; borders are 255."""
    return torch.from_numpy(values == np.arange(1, len(VOC_CLASSES) + 1)[:, None, None])


def pet_masks(values: NDArray[np.uint8], label: Any) -> Tensor:
    """(1, H, W): 1 is the animal, 2 what surrounds it, 3 the border between them."""
    return torch.from_numpy(values == 1)[None]


def renamed(data: FileData, name: str) -> FileData:
    """An image folder that has a name of its own."""
    data.info = dataclasses.replace(data.info, name=name, licence="that of the copy in use")
    return data


@contextmanager
def layout_of(name: str, folder: Path) -> Iterator[None]:
    """Whatever a file that is missing or of another form raises becomes a DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, ElementTree.ParseError) as error:
        raise DataError(f"{folder} does not have the layout of data set '{name}': {type(error).__name__}: {error}\nUnpack it again.") from error


@hookimpl
def register_datasets(register: Register) -> None:
    for dataset in (TinyImageNet, Voc, Imagenette, StanfordDogs, Food101, OxfordPet, PlantVillage, Asl):
        register(dataset)
    register(Voc, name="voc2007", year="2007")
