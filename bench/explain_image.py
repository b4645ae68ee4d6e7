"""One photograph: the maps of several explainers side by side, for a network whose weights lie in a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench import contexts
from bench import plugins as plugin_loader
from bench import spec as specs
from bench.api import data_folder, prepare_device
from bench.data import Preparation, fetch, labels_of, select
from bench.errors import BenchError, DataError, InvalidValue, StoreError, WeightsError, did_you_mean
from bench.explain import Selection, Subject, explain
from bench.figures import Overlay, side_by_side
from bench.interfaces import ArrayData, DatasetInfo, Layer
from bench.keys import derived_seed
from bench.layers import recording
from bench.plan import PREPARATION_IMAGES, Data
from bench.registry import Registry, ResolvedPart
from bench.store import read_tensors

SHOWN = 3  # Classes whose probability is said.
UNTOLD = 2  # Classes of a network that is built only to hear what is wrong with its weights.
USUAL_SIZE = (224, 224)  # Until the network has said its own.
PHOTOGRAPH = torch.tensor([0])  # Its index: the only one.


class Names(NamedTuple):
    """What each class is called: one name or several, of which the first is shown."""

    of_class: tuple[tuple[str, ...], ...]

    @property
    def shown(self) -> tuple[str, ...]:
        return tuple(names[0] for names in self.of_class)


@dataclass(frozen=True)
class Map:
    """One explainer's map (H, W) of the photograph, and what it cost."""

    explainer: str
    values: Tensor
    seconds: float
    forward: float
    backward: float


@dataclass(frozen=True)
class Explanation:
    """What a network sees in one photograph: its middle (3, h, w) as uint8, probabilities (K,), and maps for the target."""

    photograph: Tensor
    probabilities: Tensor
    names: tuple[str, ...]
    target: int
    maps: Sequence[Map]

    @property
    def likeliest(self) -> list[tuple[str, float]]:
        """The names and probabilities of the likeliest classes."""
        found = self.probabilities.topk(min(SHOWN, len(self.names)))
        return [(self.names[label], share) for share, label in zip(found.values.tolist(), found.indices.tolist(), strict=True)]


def explain_command(image: Path, model: str, explainers: str, out: Path | None, **options: Any) -> None:
    """Draw the maps of one photograph, and print where they are, what the network sees, and what each map cost."""
    console = Console()
    path = _picture_path(image, out)
    loaded = plugin_loader.load(options.pop("plugin_files"), options.pop("without_plugin"))
    for text in loaded.summary.splitlines():
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    network, parts = requested(loaded.registry, model, options.pop("settings"), explainers)
    device = prepare_device(options.pop("device"), options.pop("threads"))
    found = explained(loaded.registry, image, network, parts, device=device, **options)
    title = f"{_called(network)}: what speaks for “{found.names[found.target]}”"
    _draw(found, path, title + (", untrained" if options["untrained"] else ""))
    _print(console, found, path)


def requested(registry: Registry, model: str, settings: Sequence[str], explainers: str) -> tuple[ResolvedPart, list[ResolvedPart]]:
    """The network and the explainers, resolved."""
    asked = _value("--model", model)
    network = {**(asked if isinstance(asked, dict) else {"name": asked}), **specs.merge({}, settings)}
    wanted = _value("--explainers", explainers)
    wanted = [part for part in wanted.split(",") if part] if isinstance(wanted, str) else wanted
    spec = specs.make({"models": network, "explainers": wanted}, "the command")
    return registry.resolve("model", spec.models[0]), [registry.resolve("explainer", request) for request in spec.explainers]


def explained(
    registry: Registry,
    image: Path,
    network: ResolvedPart,
    explainers: Sequence[ResolvedPart],
    *,
    target: str | None = None,
    layer: str | None = None,
    classes: str | None = None,
    dataset: str | None = None,
    data: Path | None = None,
    size: int | None = None,
    untrained: bool = False,
    device: str = "cpu",
) -> Explanation:
    """Explain one photograph. Raises BenchError for an image, a class, a layer or weights that are not to be had."""
    photograph = read_photograph(image)
    source = None if dataset is None else Data(registry.resolve("dataset", _value("--dataset", dataset)), data_folder(data))
    names = _names(classes, source)
    subject = _subject(network, names, source, (size, size) if size else None, untrained, device)
    names = names or _numbered(subject.info.num_classes)
    if layer is not None:
        subject = _at_layer(subject, layer)
    photograph = middle(photograph, subject.image_size)
    seen = ArrayData(subject.info, photograph[None], torch.zeros(1, dtype=torch.long))
    logits = contexts.forward(subject.model, fetch(seen, PHOTOGRAPH, subject.size).inputs.to(device), 2)
    chosen = int(logits.argmax()) if target is None else find_class(target, names)
    seen = ArrayData(subject.info, photograph[None], torch.tensor([chosen]))
    preparation = None if source is None else _preparation(source, subject)
    maps = [_map(subject, explainer, Selection(seen, PHOTOGRAPH, "true"), preparation) for explainer in explainers]
    return Explanation(photograph, contexts.probability_for(subject.info)(logits)[0].cpu(), names.shown, chosen, maps)


# What was asked for


def _value(flag: str, text: str) -> Any:
    """A name as it stands, or a value in TOML."""
    try:
        return specs.merge({}, [f"value={text}"])["value"]
    except InvalidValue:
        raise InvalidValue(f'{flag} {text} is neither a name nor TOML.\nWrite for example {{name = "…", weights = "…"}}') from None


def _called(network: ResolvedPart) -> str:
    """The network's label, and the argument that a name such as timm's needs to say which one it is."""
    argument = getattr(network.part, getattr(network.entry.factory, "argument", ""), None)
    return f"{network.label}:{argument}" if argument is not None and network.label == network.entry.name else network.label


def _picture_path(image: Path, out: Path | None) -> Path:
    path = out or Path(f"{image.stem}-maps.png")
    if path.suffix.lower() != ".png":
        raise InvalidValue(f"--out {path}: the picture is a PNG. Write {path.with_suffix('.png')}")
    if path.resolve() == image.resolve():
        raise InvalidValue(f"--out {path} is the image itself. Name another file.")
    return path


# The photograph


def read_photograph(path: Path) -> Tensor:
    """(3, h, w) uint8, upright. Raises DataError naming the file where there is no image in it."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise DataError(f"there is no image {path}.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image, or is damaged. Give a JPEG, PNG, WebP or another format that Pillow reads.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} cannot be read as an image: {error}.") from None
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def middle(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest part of an image (3, h, w) that has the proportions of `size` and the same middle."""
    height, width = image.shape[1:]
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[:, top : top + rows, left : left + columns]


# Classes


def _names(classes: str | None, source: Data | None) -> Names | None:
    """The names of the classes, or None where only the weights can say how many there are."""
    own = None if source is None else Names(tuple((name,) for name in source.test.info.class_names))
    given = None if classes is None else _numbered(int(classes)) if classes.isdigit() else read_names(Path(classes))
    if given is not None and len(given.of_class) < 2:
        raise InvalidValue(f"--classes {classes}: a network has two classes or more.")
    if given and own and len(given.of_class) != len(own.of_class):
        raise InvalidValue(
            f"--classes {classes} names {len(given.of_class)} classes, and the data set has {len(own.of_class)}. Leave one of them out."
        )
    return given or own


def _numbered(count: int) -> Names:
    return Names(tuple((f"class {label}",) for label in range(count)))


def read_names(path: Path) -> Names:
    """The classes of a JSON list, in the order of their labels: names, or tables `{"wnid": "n01440764", "words": "tench, Tinca tinca"}`."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        names = tuple((row,) if isinstance(row, str) else (*row["words"].split(", "), row["wnid"]) for row in rows)
    except FileNotFoundError:
        raise DataError(f"--classes {path}: there is no such file. Give a JSON file, or the number of classes.") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise DataError(
            f'--classes {path} is not a JSON list of names, or of tables {{"wnid": "n01440764", "words": "tench, Tinca tinca"}}, by label.'
        ) from None
    return Names(names)


def find_class(wanted: str, names: Names) -> int:
    """The label of a class from its number or one of its names. Raises InvalidValue where there is none, or more than one."""
    count = len(names.of_class)
    if wanted.lstrip("-").isdigit():
        if not 0 <= int(wanted) < count:
            raise InvalidValue(f"--target {wanted}: the network has {count} classes, 0 to {count - 1}.")
        return int(wanted)
    labels: dict[str, list[int]] = {}
    for label, known in enumerate(names.of_class):
        for name in dict.fromkeys(name.casefold() for name in known):
            labels.setdefault(name, []).append(label)
    found = labels.get(wanted.casefold(), [])
    if len(found) != 1:
        several = f"is the name of classes {' and '.join(map(str, found))}. Give one of the numbers."
        raise InvalidValue(f"--target {wanted} {several if found else f'is no class of this network.{did_you_mean(wanted.casefold(), labels)}'}")
    return found[0]


# The network


def _subject(network: ResolvedPart, names: Names | None, source: Data | None, size: tuple[int, int] | None, untrained: bool, device: str) -> Subject:
    """The network in eval mode, on the device."""
    weights = getattr(network.part, "weights", None)
    if weights is None and not untrained:
        raise InvalidValue(
            f"model '{_called(network)}' is given no weights, and the maps of an untrained network mean nothing.\n"
            "Give them: --set weights=FILE. A finished training keeps its own in the store as weights.safetensors.\n"
            "To see the maps all the same: --untrained"
        )
    shown = size or (source.test.info.image_size if source else None)
    module, info = _built(network, names, source, shown or USUAL_SIZE, weights)
    module = module.to(device, memory_format=torch.channels_last).eval()  # As a run's recipe has it.
    own = getattr(module, "input_size", None)
    if own is not None and size not in (None, own):
        raise InvalidValue(f"--size {size[0]}: model '{_called(network)}' takes images of {own[0]}x{own[1]}. Leave --size out.")
    if own is None and shown is None:
        raise InvalidValue(
            f"model '{_called(network)}' takes images of any size.\n"
            "Say the size that it was trained on: --size 32, or --dataset NAME for that of its data."
        )
    return Subject(module, info, network.part.target_layers(module), network.part.stages(module), device, own or shown)


def _built(network: ResolvedPart, names: Names | None, source: Data | None, size: tuple[int, int], weights: Path | None) -> tuple[Any, DatasetInfo]:
    """The network for the classes that are named, else for the number of classes that its weights fit."""
    sizes = None if names else head_sizes(weights)
    if names is None and weights is None:
        raise InvalidValue("how many classes does the network tell apart? Say --classes N, --classes FILE or --dataset NAME.")
    refusal: WeightsError | None = None
    for count in [len(names.of_class)] if names else sizes or [UNTOLD]:
        info = source.test.info if source else _info(names or _numbered(count), size)
        torch.manual_seed(derived_seed(0, "weights"))
        try:
            return network.part.build(info), info
        except WeightsError as error:
            refusal = refusal or error
    hint = "\nIf it is for another number of classes or size of image: --classes N, --size N" if sizes is not None else ""
    raise WeightsError(f"{refusal}{hint}")


def _info(names: Names, size: tuple[int, int]) -> DatasetInfo:
    shown = names.shown
    return DatasetInfo("photograph", len(shown), shown, (1,) * len(shown), size, "", "not known: the user's own photograph")


def head_sizes(path: Path | None) -> list[int] | None:
    """The numbers of classes that a file of weights may be for: the rows of its matrices, those of the last one first.

    None where the file cannot be read; the model says why when it reads it itself.
    """
    if path is None:
        return None
    try:
        content: Any = read_tensors(path)
    except StoreError:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # A damaged file may raise anything.
            return None
    return list(dict.fromkeys(len(tensor) for tensor in reversed(_tensors(content)) if tensor.ndim == 2 and len(tensor) > 1))


def _tensors(content: Any) -> list[Tensor]:
    if isinstance(content, Mapping):
        return [tensor for inner in content.values() for tensor in _tensors(inner)]
    return [content] if isinstance(content, Tensor) else []


def _at_layer(subject: Subject, name: str) -> Subject:
    """With class-activation maps taken from the named layer. Raises InvalidValue where it gives no feature map."""
    context = contexts.explain_context(subject.model, subject.info, subject.target_layers, subject.stages, [])
    layer = context.layer(name, subject.model)
    with recording([layer]) as outputs, torch.no_grad():
        subject.model(torch.full((2, 3, *subject.image_size), 0.5, device=subject.device))
    if not _is_map(layer, outputs[0]):
        stages = ", ".join(stage.name for stage in subject.stages)
        raise InvalidValue(f"--layer {name} gives no feature map (B, C, h, w). The stages of this network do: {stages}")
    return Subject(subject.model, subject.info, [layer], subject.stages, subject.device, subject.size)


def _is_map(layer: Layer, output: object) -> bool:
    return isinstance(output, Tensor) and output.ndim > 2 and layer.to_map(output).ndim == 4


# The maps


def _preparation(source: Data, subject: Subject) -> Preparation:
    data = source.preparation
    indices = select(labels_of(data), PREPARATION_IMAGES, "preparation", data.info.fingerprint)
    return Preparation(data, indices, subject.size, subject.device)


def _map(subject: Subject, explainer: ResolvedPart, selection: Selection, preparation: Preparation | None) -> Map:
    if preparation is None and hasattr(explainer.part, "prepare"):
        raise InvalidValue(f"explainer '{explainer.label}' looks at other images before it explains one. Name a data set: --dataset NAME")
    try:
        found, cost = explain(subject, explainer.part, selection, preparation)
    except BenchError as error:
        raise BenchError(f"explainer '{explainer.label}': {error}") from error
    return Map(explainer.label, found["attributions"][0, 0], cost["seconds"], cost["forward"], cost["backward"])


# What is shown


def _draw(found: Explanation, path: Path, title: str) -> None:
    overlays = [Overlay(each.explainer, each.values.numpy(), f"{each.seconds:.2g} s · {_passes(each)}") for each in found.maps]
    photograph = (found.photograph.permute(1, 2, 0).float() / 255).numpy()
    try:
        side_by_side(photograph, found.likeliest, overlays, path, title)
    except OSError as error:
        raise InvalidValue(f"{path} cannot be written: {error.strerror}. Name another file with --out.") from None


def _passes(each: Map) -> str:
    total = each.forward + each.backward
    return f"{total:g} pass" if total == 1 else f"{total:g} passes"


def _print(console: Console, found: Explanation, path: Path) -> None:
    seen = ", ".join(f"{name} {share:.1%}" for name, share in found.likeliest)
    for text in (f"Picture: {path}", f"Predicted: {seen}", f"Explained: {found.names[found.target]} (class {found.target})"):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    table = Table("explainer", *(label for label in ("seconds", "forward", "backward")))
    for each in found.maps:
        table.add_row(each.explainer, f"{each.seconds:.2f}", f"{each.forward:g}", f"{each.backward:g}")
    console.print(table)
