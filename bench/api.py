"""From Python: `bench.run(spec)` is the command, `bench.evaluate(module, …)` scores one's own network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench import contexts, environment
from bench import plugins as plugin_loader
from bench import spec as specs
from bench.data import Preparation, batches, labels_of, select
from bench.errors import DeviceError, InvalidValue, did_you_mean
from bench.explain import Selection, Subject, explain, prepare
from bench.interfaces import DatasetInfo, ImageData, Layer
from bench.layers import evaluating, find_stages
from bench.observers import Observer, Tracking
from bench.plan import ABOUT_MAPS, PREPARATION_IMAGES, lacks
from bench.plan import make as make_plan
from bench.registry import Registry, ResolvedPart
from bench.reporting import store_folder
from bench.runner import Outcome, Settings, execute
from bench.score import Costs, score
from bench.store import Store

if TYPE_CHECKING:
    import pandas as pd

DATA = "BENCH_DATA"


def data_folder(given: Path | str | None = None) -> Path | None:
    """The data folder: what was given, or `$BENCH_DATA`."""
    chosen = given or os.environ.get(DATA)
    return Path(chosen).expanduser() if chosen else None


def prepare_device(device: str = "cpu", threads: int | None = None) -> str:
    """Pin threads and arithmetic, keep memory at hand, and check that the device is there. Raises DeviceError where it is not."""
    environment.keep_memory()
    if threads:
        torch.set_num_threads(threads)
    if device.startswith("cuda"):  # fp32 is to mean fp32, and the same kernels are to be taken each time.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"--device {device}: there is no GPU that torch {torch.__version__} can use.\nAvailable: cpu")
    if device.startswith("cuda") and ":" in device and int(device.split(":")[1]) >= torch.cuda.device_count():
        raise DeviceError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0.")
    if device != "cpu" and not device.startswith("cuda"):
        raise DeviceError(f"--device {device}: write cpu, cuda or cuda:N.")
    return device


def run(
    spec: specs.Spec | Mapping[str, Any] | str | Path,
    *,
    store: Path | str | None = None,
    data: Path | str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int | None = None,
    plugins: Iterable[Path | str] = (),
    retry_failed: bool = True,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Train, explain and score what the spec asks for; what the store has is not done again.

    spec: a `Spec`, its fields in a dictionary, or the path of a TOML file. Returns the result lines and the failures.
    """
    registry = plugin_loader.load([Path(plugin) for plugin in plugins]).registry
    if isinstance(spec, (str, Path)):
        spec = specs.make(specs.read(specs.find(str(spec))), str(spec))
    elif not isinstance(spec, specs.Spec):
        spec = specs.make(spec)
    device = prepare_device(device, threads)
    plan = make_plan(spec.completed(registry), registry, data_folder(data), device)
    watching = [*observers, *trackers_of(spec, registry)]
    return execute(plan, Store(store_folder(store)), Settings(device, batch_size, retry_failed), watching)


def trackers_of(spec: specs.Spec, registry: Registry, warn: Callable[[str], None] = warnings.warn) -> list[Tracking]:
    """The trackers that a spec names."""
    return [Tracking(registry.resolve("tracker", request).part, warn) for request in spec.trackers]


def evaluate(
    module: nn.Module,
    dataset: str | Mapping[str, Any] | ImageData,
    explainers: str | Sequence[str | Mapping[str, Any]] = (),
    metrics: str | Sequence[str | Mapping[str, Any]] = (),
    *,
    images: int = 500,
    target: str = "predicted",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layer: str | None = None,
    data: Path | str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int | None = None,
    plugins: Iterable[Path | str] = (),
) -> pd.DataFrame:
    """Score one's own trained network with explainers and metrics by name; the floors are scored beside them.

    module: takes (B, C, H, W) and returns logits (B, K); it is left as it was found. Images come in [0, 1]; give `mean` and
    `std` (per channel) where the network wants them normalised. layer: where class-activation maps are taken, by the
    module's name; found by a rule if none. Returns one row per explainer and metric: value, interval low and high, n.
    """
    import pandas as pd

    registry = plugin_loader.load([Path(plugin) for plugin in plugins]).registry
    asked = {"explainers": explainers, "metrics": metrics, "images": images, "target": target}
    chosen = specs.make(asked).completed(registry, kinds=("explainer", "metric"))
    test = _test_images(registry, dataset, data_folder(data))
    resolved = [registry.resolve("metric", request) for request in chosen.metrics]
    usable = [metric for metric in resolved if "training" not in metric.part.needs and lacks(test.info, metric.part.needs) is None]
    selection = Selection(test, select(labels_of(test), images, "test", test.info.fingerprint), chosen.target)
    pinned = torch.get_num_threads()
    try:
        subject = _subject(module, test.info, mean, std, layer, prepare_device(device, threads))
        with evaluating(subject.model):
            _check_classes(subject, selection)
            rows = _rows_alone(subject, usable, selection, batch_size)
            for request in chosen.explainers:
                rows += _rows_explained(subject, registry.resolve("explainer", request), usable, selection, batch_size)
    finally:
        torch.set_num_threads(pinned)
    frame = pd.DataFrame(rows, columns=["explainer", "metric", "value", "low", "high", "n", "unit", "higher_is_better"])
    return frame.assign(explainer=pd.Series([row["explainer"] for row in rows], dtype=object))  # None stays None.


def _check_classes(subject: Subject, selection: Selection) -> None:
    """Raises InvalidValue where the network has another number of outputs than the data has classes."""
    images = next(batches(selection.data, selection.indices[:2], 2, subject.size, subject.device))
    outputs = contexts.forward(subject.model, images.inputs, 2).shape[1]
    if outputs != subject.info.num_classes:
        raise InvalidValue(f"the network has {outputs} outputs, and {subject.info.name} has {subject.info.num_classes} classes.")


def _rows_alone(subject: Subject, metrics: Sequence[ResolvedPart], selection: Selection, batch_size: int | None) -> list[dict[str, Any]]:
    alone = {metric.label: metric for metric in metrics if not ABOUT_MAPS & set(metric.part.needs)}
    everything = replace(selection, indices=torch.arange(len(selection.data)))
    rows = []
    for wide, images in ((True, everything), (False, selection)):
        parts = {label: metric.part for label, metric in alone.items() if bool(getattr(metric.part, "all_images", False)) is wide}
        found = score(subject, parts, images, batch_size=batch_size) if parts else {}
        rows += [_row(None, alone[label], outcome) for label, outcome in found.items()]
    return rows


def _rows_explained(
    subject: Subject, explainer: ResolvedPart, metrics: Sequence[ResolvedPart], selection: Selection, batch_size: int | None
) -> list[dict[str, Any]]:
    about = {metric.label: metric for metric in metrics if ABOUT_MAPS & set(metric.part.needs)}
    preparation = Preparation(selection.data, _others(selection), subject.size, subject.device)
    maps, cost = explain(subject, explainer.part, selection, preparation, batch_size=batch_size)
    parts = {label: metric.part for label, metric in about.items()}
    state = prepare(subject, explainer.part, preparation, {}) if any("explainer" in part.needs for part in parts.values()) else None
    found = score(subject, parts, selection, maps, explainer.part, state, Costs(explaining=cost), batch_size=batch_size)
    return [_row(explainer, about[label], outcome) for label, outcome in found.items()]


def _others(selection: Selection) -> Tensor:
    """Images to prepare an explainer on: some that are not explained, where there are any."""
    free = torch.ones(len(selection.data), dtype=torch.bool)
    free[selection.indices] = False
    others = free.nonzero().flatten()
    return (others if len(others) >= 2 else selection.indices)[:PREPARATION_IMAGES]


def _row(explainer: ResolvedPart | None, metric: ResolvedPart, outcome: Any) -> dict[str, Any]:
    low, high = outcome.interval or (None, None)
    part = metric.part
    return {
        "explainer": explainer.label if explainer else None,
        "metric": metric.label,
        "value": outcome.value,
        "low": low,
        "high": high,
        "n": int(outcome.values.isfinite().sum()),
        "unit": part.unit,
        "higher_is_better": part.higher_is_better,
    }


def _test_images(registry: Registry, dataset: Any, root: Path | None) -> ImageData:
    if isinstance(dataset, (str, Mapping)):
        return registry.resolve("dataset", dataset).part.load("test", root)  # type: ignore[no-any-return]
    if not isinstance(dataset, ImageData):
        raise InvalidValue(
            f"dataset is {type(dataset).__name__}. Give a dataset's name, or an object with `info`, a length and `Sample` items, "
            "such as bench.interfaces.ArrayData."
        )
    return dataset


def _subject(
    module: nn.Module, info: DatasetInfo, mean: Sequence[float] | None, std: Sequence[float] | None, layer: str | None, device: str
) -> Subject:
    channels = len(info.mean)
    own = hasattr(module, "normalisation") and not (mean or std)
    network = module if own else _Normalised(module, mean or (0.0,) * channels, std or (1.0,) * channels)
    network = network.to(device)
    size = getattr(module, "input_size", None)
    stages = find_stages(network, size or info.image_size, channels)
    if layer is None:
        return Subject(network, info, stages[-1:], stages, device, size)
    modules = dict(module.named_modules())
    if layer not in modules:
        raise InvalidValue(
            f"the network has no layer '{layer}'.{did_you_mean(layer, modules)}\nStages found: {', '.join(stage.name for stage in stages)}"
        )
    return Subject(network, info, [Layer(layer, modules[layer])], stages, device, size)


@dataclass
class _Scale:
    mean: Tensor
    std: Tensor


class _Normalised(nn.Module):
    """One's own network behind the normalisation it was trained with."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.normalisation = _Scale(torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        scale = self.normalisation
        logits: Tensor = self.network((inputs - scale.mean.to(inputs)) / scale.std.to(inputs))
        return logits
