"""Any folder of images, one sub-folder a class: `imagefolder:photos`.

Paper: none.

Layouts: `<path>/{train,test}/<class>/*` with `val` standing in for a `test` that is not there, or `<path>/<class>/*`, of which a
share of every class, chosen by content and `split_seed`, is the test part. A relative path is looked for where the command runs, then
in the data folder. `boxes.json` beside the split folders gives boxes in pixels of the files:
`{"<class>/<file>": {"boxes": [[x0, y0, x1, y1], …]}}`, with a fifth number 1 for a difficult one.

Choices: in results the data set is called after its folder. `size` resizes the shorter side and cuts out the middle (`resize = "crop"`) or
squashes the whole image (`"squash"`); without it the images must have one size. Resizing is antialiased bilinear, rounded as torchvision does;
orientation tags are not looked at, as in torchvision. `classes = "imagenet"` maps folders named by WordNet ids to the 1000 labels of ImageNet
models, in the order of `classes.json`: `[{"wnid": "n01440764", "words": "tench"}, …]`. Images lie in the order of their content; the fingerprint
hashes the files' bytes, labels, boxes and the size shown, and no names. Normalisation is ImageNet's.

Checked against: torchvision's ImageFolder, Resize and CenterCrop; boxes against rectangles painted into images that are then resized.

Cost: every file is read once for its fingerprint, which the cache keeps; images are decoded when asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from bench import hookimpl
from bench.errors import DataError, did_you_mean
from bench.hookspecs import Register
from bench_plugins._files import FileData, Item, Resize, Shown, file_data, measured
from bench_plugins._images import image_files, refuse_split, subfolders

SPLITS = {"train": ("train",), "test": ("test", "val")}
EXAMPLE = '{"wnid": "n01440764", "words": "tench"}'


class Labels(NamedTuple):
    """The names of all classes, and the label of each class folder."""

    names: tuple[str, ...]
    of_folder: dict[str, int]


@dataclass(frozen=True)
class ImageFolder:
    """Any folder of images with one sub-folder a class: imagefolder:<path>."""

    path: str
    size: Annotated[int, Field(ge=2)] | None = None
    resize: Resize = "crop"
    classes: Literal["folder", "imagenet"] = "folder"
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    split_seed: Annotated[int, Field(ge=0)] = 0
    name: ClassVar[str] = "imagefolder"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"
    argument: ClassVar[str] = "path"

    def load(self, split: str, root: Path | None) -> FileData:
        refuse_split(self.name, split)
        base = find_folder(self.name, self.path, root)
        folder, parted = split_folder(base, split)
        labels = self._labels(base, class_folders(base, folder))
        files = [(file.name, labels.of_folder[file.name.split("/")[0]]) for file in image_files(folder) if "/" in file.name]
        if parted:
            files = self._part(folder, files, split)
        if not files:
            raise DataError(f"{folder} has class folders ({', '.join(list(labels.of_folder)[:5])}) and no images in them.")
        boxes = read_boxes(base, folder)
        items = [Item(name, label, boxes.get(name, ())) for name, label in files]
        return file_data(
            base.resolve().name,
            folder,
            items,
            labels.names,
            Shown(self.size, self.resize),
            licence="not known: the user's own folder",
            has_boxes=(base / "boxes.json").is_file(),
        )

    def identity(self) -> dict[str, Any]:
        """Every parameter but the path: the content, not the place, is what counts."""
        return {name: value for name, value in asdict(self).items() if name != "path"}

    def _labels(self, base: Path, folders: Sequence[str]) -> Labels:
        if self.classes == "imagenet":
            return imagenet_labels(base / "classes.json", folders)
        return Labels(tuple(folders), {name: label for label, name in enumerate(folders)})

    def _part(self, folder: Path, files: list[tuple[str, int]], split: str) -> list[tuple[str, int]]:
        """The files of one split: in each class, those whose content hashed with the seed comes first are for test."""
        known = measured(folder, [name for name, _ in files])
        ranked = sorted(files, key=lambda file: hashlib.sha256(f"{self.split_seed}:".encode() + known[file[0]].digest).digest())
        chosen = []
        for label in dict.fromkeys(label for _, label in files):
            own = [file for file in ranked if file[1] == label]
            cut = max(round(self.test_share * len(own)), len(own) > 1)  # A class of two or more has a test image.
            chosen += own[:cut] if split == "test" else own[cut:]
        return chosen


def find_folder(name: str, path: str, root: Path | None) -> Path:
    """The folder as given, or below the data folder. Raises DataError that says where it was looked for."""
    looked = [Path(path).expanduser(), *([Path(root).expanduser() / path] if root else [])]
    for folder in looked:
        if folder.is_dir():
            return folder
    places = " and ".join(dict.fromkeys(str(folder.absolute()) for folder in looked))
    raise DataError(
        f"the folder '{path}' of data set '{name}' was looked for in {places}, and there is no such folder.\n"
        f"Type {name}:PATH, or --data FOLDER for the folder it is in."
    )


def split_folder(base: Path, split: str) -> tuple[Path, bool]:
    """The folder that holds the class folders of a split, and whether only part of its images are for that split."""
    there = subfolders(base)
    if not there:
        raise DataError(f"{base} holds no folders. One sub-folder a class is needed: {base}/<class>/*, or {base}/{{train,test}}/<class>/*.")
    parts = [name for names in SPLITS.values() for name in names if name in there]
    if not parts:
        return base, True
    for name in SPLITS[split]:
        if name in parts:
            return base / name, False
    raise DataError(f"{base} has no images for {split}: {' or '.join(SPLITS[split])} was looked for, and there is {', '.join(parts)}.")


def class_folders(base: Path, folder: Path) -> list[str]:
    """The classes, by name: those of the training part where there is one, so that a label means the same in every part."""
    own, known = subfolders(folder), subfolders(base / "train") if folder != base and (base / "train").is_dir() else None
    if not own:
        raise DataError(f"{folder} holds no class folders: {folder}/<class>/* is needed.")
    for name in own:
        if known is not None and name not in known:
            raise DataError(f"class folder {folder / name} has no counterpart in {base / 'train'}.{did_you_mean(name, known)}")
    return own if known is None else known


def imagenet_labels(path: Path, folders: Sequence[str]) -> Labels:
    """Labels by place in `classes.json`. Raises DataError for a file that is missing or malformed, and for a folder it does not list."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        wnids, names = [row["wnid"] for row in rows], tuple(str(row["words"]) for row in rows)
    except OSError:
        raise DataError(
            f'classes = "imagenet" needs {path}, and there is no such file. It lists every class in the order of the model: [{EXAMPLE}, …]'
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a list of classes such as [{EXAMPLE}, …]: {error!r}") from None
    place = {wnid: label for label, wnid in enumerate(wnids)}
    for name in folders:
        if name not in place:
            raise DataError(f"class folder '{name}' is not among the {len(place)} classes of {path}.{did_you_mean(name, place)}")
    return Labels(names, {name: place[name] for name in folders})


def read_boxes(base: Path, folder: Path) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Boxes by file, from `boxes.json`, whose keys are `<class>/<file>` or `<split>/<class>/<file>`. Empty where there is none."""
    path = base / "boxes.json"
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = {name: tuple(tuple(float(number) for number in box) for box in row["boxes"]) for name, row in rows.items()}
        if any(len(box) not in (4, 5) for boxes in found.values() for box in boxes):
            raise ValueError("a box has 4 or 5 numbers")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f'{path} is not of the form {{"<class>/<file>": {{"boxes": [[x0, y0, x1, y1], …]}}}}: {error!r}') from None
    prefix = f"{folder.name}/" if folder != base else ""
    return found | {name.removeprefix(prefix): boxes for name, boxes in found.items() if prefix and name.startswith(prefix)}


@hookimpl
def register_datasets(register: Register) -> None:
    register(ImageFolder)
