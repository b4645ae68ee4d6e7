"""Shared by the data sets of image files: decoded when asked for, resized in one named way, their boxes and masks with them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.errors import DataError
from bench.interfaces import DatasetInfo, Sample
from bench_plugins._images import UNREADABLE, Found, cached, canonical_order, fingerprint, label_bytes, listing, read_image, record, to_tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEPT_BYTES = 512 * 2**20

Resize = Literal["crop", "squash"]
ReadMasks = Callable[[NDArray[np.uint8], "int | tuple[int, ...]"], Tensor]
"""(H, W) values of a mask file and the image's label -> (M, H, W) bool."""


class Item(NamedTuple):
    """An image file: its path below the data set's folder, its label, its boxes in pixels of the file, and its mask file.

    A box is x0, y0, x1, y1, 1 if the object is marked difficult, and, where an image has several labels, the object's class.
    """

    file: str
    label: int | tuple[int, ...]
    boxes: tuple[tuple[float, ...], ...] = ()
    mask: str | None = None


@dataclass(frozen=True)
class Shown:
    """How images are brought to one size: not at all, squashed, or the shorter side resized and the middle cut out."""

    size: int | None = None
    how: Resize = "crop"

    def __str__(self) -> str:
        return "" if self.size is None else f"{self.how} {self.size}"

    def image(self, image: Image.Image, filter: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
        """Pillow's bilinear filter is antialiased."""
        if self.size is None:
            return image
        (width, height), left, top = self._geometry(*image.size)
        return image.resize((width, height), filter).crop((left, top, left + self.size, top + self.size))

    def boxes(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """The boxes of a width x height image where they lie in the image shown; those cut away are dropped."""
        if self.size is None or not len(boxes):
            return boxes
        (new_width, new_height), left, top = self._geometry(width, height)
        scale = torch.tensor([new_width / width, new_height / height] * 2)
        corners = (boxes[:, :4] * scale - torch.tensor([left, top] * 2)).clamp(0, self.size)
        visible = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        return torch.cat([corners, boxes[:, 4:]], 1)[visible]

    def _geometry(self, width: int, height: int) -> tuple[tuple[int, int], int, int]:
        """The size to resize to, and the corner of the part to cut out, rounded as torchvision does."""
        assert self.size is not None
        if self.how == "squash":
            return (self.size, self.size), 0, 0
        shorter = min(width, height)
        resized = (int(self.size * width / shorter), int(self.size * height / shorter))
        return resized, round((resized[0] - self.size) / 2), round((resized[1] - self.size) / 2)


class FileData:
    """Images in files, in the order of their content. The first half gigabyte decoded is kept in memory."""

    def __init__(self, info: DatasetInfo, folder: Path, items: Sequence[Item], shown: Shown, read_masks: ReadMasks | None = None) -> None:
        self.info, self.folder, self.items, self.shown, self.read_masks = info, folder, items, shown, read_masks
        self.labels = torch.tensor([item.label for item in items])
        self._decoded: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        image, size = self._image(index)
        boxes = self.shown.boxes(box_tensor(item.boxes), *size) if self.info.has_boxes else None
        masks = None if self.read_masks is None or item.mask is None else self._masks(item, size)
        label = self.labels[index]
        return Sample(image, label if label.ndim else int(label), index, masks, boxes)

    def _image(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        """(3, H, W) uint8 as shown, and the file's own width and height."""
        if index not in self._decoded:
            image = read_image(self.folder / self.items[index].file)
            found = to_tensor(self.shown.image(image)), image.size
            if found[0].numel() > self._room:
                return found
            self._room -= found[0].numel()
            self._decoded[index] = found
        return self._decoded[index]

    def _masks(self, item: Item, size: tuple[int, int]) -> Tensor:
        path = self.folder / str(item.mask)
        values = read_values(path)
        if values.size != size:
            raise DataError(f"{path} is {values.size[0]}x{values.size[1]} pixels, and its image {self.folder / item.file} is {size[0]}x{size[1]}.")
        assert self.read_masks is not None
        return self.read_masks(np.array(self.shown.image(values, Image.Resampling.NEAREST)), item.label)


def file_data(
    name: str,
    folder: Path,
    items: Sequence[Item],
    class_names: Sequence[str],
    shown: Shown,
    *,
    licence: str,
    read_masks: ReadMasks | None = None,
    **facts: Any,
) -> FileData:
    """A data set of these items, sorted by content; `facts` are further fields of its `DatasetInfo`.

    Raises DataError for a file whose header cannot be read, and for images of several sizes that are shown as they are.
    """
    known = measured(folder, [item.file for item in items] + [item.mask for item in items if item.mask])
    records = [_record(item, known) for item in items]
    items = [items[position] for position in canonical_order(records)]
    counts = np.zeros(len(class_names), int)
    for item in items:
        counts += np.bincount([item.label], minlength=len(counts)) if isinstance(item.label, int) else np.array(item.label)
    info = DatasetInfo(
        name=name,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        class_counts=tuple(counts.tolist()),
        image_size=(shown.size, shown.size) if shown.size else one_size(folder, items, known),
        fingerprint=fingerprint(records, str(shown)),
        licence=licence,
        has_masks=read_masks is not None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        **facts,
    )
    return FileData(info, folder, items, shown, read_masks)


class Measured(NamedTuple):
    """What is known of a file from reading it once: the SHA-256 of its bytes, and the image's width and height."""

    digest: bytes
    width: int
    height: int


def measured(folder: Path, names: Sequence[str]) -> dict[str, Measured]:
    """Each image file by its path below the folder; read once, then kept in the cache. Raises DataError for one that is no image."""
    files = [_found(folder, name) for name in names]
    made = cached("files", listing(folder, files), lambda: _measure(folder, names))
    rows = zip(names, made["digests"].numpy(), made["sizes"].tolist(), strict=True)
    return {name: Measured(digest.tobytes(), *size) for name, digest, size in rows}


def box_tensor(boxes: Iterable[Sequence[float]]) -> Tensor:
    """(M, 5), a fifth number that is missing being 0, or (M, 6) with classes; (0, 5) for no box."""
    rows = [[*box, *[0.0] * (5 - len(box))] for box in boxes]
    return torch.tensor(rows) if rows else torch.zeros(0, 5)


def one_size(folder: Path, items: Sequence[Item], known: dict[str, Measured]) -> tuple[int, int]:
    """(H, W) of all the images. Raises DataError where they differ."""
    sizes = {(known[item.file].height, known[item.file].width): item.file for item in items}
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise DataError(
            f"the images of {folder} have {len(sizes)} sizes: {one} is {first[1]}x{first[0]}, {other} is {second[1]}x{second[0]}.\n"
            "Give the data set the parameter size, for example size = 224."
        )
    return next(iter(sizes))


def read_values(path: Path) -> Image.Image:
    """An image of whole numbers, such as a mask, without turning palette entries into colours."""
    try:
        with Image.open(path) as image:
            image.load()
            return image if image.mode in ("L", "P") else image.convert("L")
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a mask ({error}). Replace or remove it.") from None


def _found(folder: Path, name: str) -> Found:
    try:
        stat = (folder / name).stat()
    except OSError as error:
        raise DataError(f"{folder / name} cannot be read ({error.strerror}).") from None
    return Found(name, stat.st_size, stat.st_mtime_ns)


def _measure(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    rows = [_measure_one(folder / name) for name in names]
    digests = torch.tensor([list(row.digest) for row in rows], dtype=torch.uint8)
    return {"digests": digests, "sizes": torch.tensor([[row.width, row.height] for row in rows])}


def _measure_one(path: Path) -> Measured:
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            return Measured(record(content), *image.size)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as an image ({error}). Replace or remove it.") from None


def _record(item: Item, known: dict[str, Measured]) -> bytes:
    mask = known[item.mask].digest if item.mask else b""
    return record(known[item.file].digest, label_bytes(item.label), np.array(box_tensor(item.boxes), "<f8").tobytes(), mask)
