"""Shared by the data sets: decoding images, naming their content, and a cache on disk that mends itself."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bench.errors import DataError
from bench.keys import key

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # Pillow raises any of these for a damaged file.


# Naming content


def record(*parts: bytes) -> bytes:
    """32 bytes that stand for one image with everything known about it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def label_bytes(label: int | Sequence[int] | Tensor) -> bytes:
    """An int, or the 0 and 1 of multi-label data, as bytes."""
    return np.atleast_1d(np.asarray(label)).astype("<i4").tobytes()


def array_records(images: Tensor, labels: Tensor, masks: Tensor | None = None) -> list[bytes]:
    """One record per image (C, H, W) uint8, with its label and its masks."""
    shape = str(tuple(images.shape[1:])).encode()
    pixels = images.numpy()
    covers = [b""] * len(images) if masks is None else [np.packbits(mask).tobytes() for mask in masks.numpy()]
    return [record(shape, image.tobytes(), label_bytes(label), cover) for image, label, cover in zip(pixels, labels.numpy(), covers, strict=True)]


def canonical_order(records: Sequence[bytes]) -> list[int]:
    """Positions in the order of content: the same whatever the files were called and however they were packed."""
    return sorted(range(len(records)), key=records.__getitem__)


def in_canonical_order(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Images, labels and their records (N, 32), sorted by record."""
    records = array_records(images, labels)
    order = torch.tensor(canonical_order(records))
    digests = torch.frombuffer(bytearray(b"".join(records)), dtype=torch.uint8).view(-1, 32)
    return {"images": images[order], "labels": labels[order], "records": digests[order]}


def fingerprint(records: Iterable[bytes], shown: str = "") -> str:
    """`sha256:…` of a set of records in canonical order; `shown` says how the images are resized, if they are."""
    return "sha256:" + record(shown.encode(), *sorted(records)).hex()


# The cache


def cache_folder() -> Path:
    """`$BENCH_CACHE`, or `~/.cache/bench-xai`."""
    return Path(os.environ.get("BENCH_CACHE") or "~/.cache/bench-xai").expanduser()


def cached(name: str, recipe: Any, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` returns, kept on disk under a name that depends on `recipe`; a damaged file is made again."""
    path = cache_folder() / f"{name}-{key(recipe)[:20]}.safetensors"
    try:
        return _read(path)
    except (OSError, ValueError, SafetensorError):
        tensors = make()
    try:
        _write(path, tensors)
    except OSError as error:  # A read-only home costs time, not the run.
        warnings.warn(f"{path} could not be written ({error}); set BENCH_CACHE to a folder that can.", stacklevel=2)
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    tensors = load(path.read_bytes())
    checksum = tensors.pop("checksum", None)
    if checksum is None or bytes(checksum.tolist()) != _checksum(tensors):
        raise ValueError(f"{path} is damaged")
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = torch.tensor(list(_checksum(tensors)), dtype=torch.uint8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save({**tensors, "checksum": checksum}))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _checksum(tensors: dict[str, Tensor]) -> bytes:
    return record(*(part for name in sorted(tensors) for part in (name.encode(), tensors[name].numpy().tobytes())))


# Files


class Found(NamedTuple):
    """A file below a folder: its path from there, its bytes, and when it was last changed (nanoseconds)."""

    name: str
    size: int
    changed: int


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[Found]:
    """Every image below a folder, at any depth, by name; hidden files and folders are left out."""
    return sorted(_image_files(str(folder), ""))


def _image_files(folder: str, prefix: str) -> Iterator[Found]:
    # Strings and scandir: with Path objects, listing 50,000 files was measured to take longer than reading them.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _image_files(entry.path, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                stat = entry.stat()
                yield Found(prefix + entry.name, stat.st_size, stat.st_mtime_ns)


def listing(folder: Path, files: Sequence[Found]) -> dict[str, Any]:
    """What can be told of files without opening them: enough to see that nothing was touched."""
    return {"folder": str(folder.resolve()), "files": record("\n".join(map(str, files)).encode()).hex()}


def read_image(path: Path) -> Image.Image:
    """An image in RGB. Raises DataError that names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as an image ({error}). Replace or remove it.") from None


def to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def data_folder(name: str, root: Path | None) -> Path:
    """The user's data folder. Raises DataError where none was given or none is there."""
    if root is None:
        raise DataError(f"data set '{name}' lies in a data folder, and none was given.\nType --data FOLDER, the folder that holds it.")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data set '{name}' was looked for in {folder}, and there is no such folder.\nType --data FOLDER, the folder that holds it.")
    return folder


def refuse_split(name: str, split: str) -> None:
    if split not in ("train", "test"):
        raise DataError(f"data set '{name}' has the splits train and test, not {split!r}.")
