"""Conformance: does a part keep the promises of its hook? For plugin authors, from the command (`bench check`) and from pytest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import contexts, testing
from bench.data import Preparation
from bench.errors import BenchError, DataError, UnknownName
from bench.interfaces import KINDS, Batch, DatasetInfo, Explained, StepContext
from bench.registry import Entry, Registry, ResolvedPart

ROWS = 5
DECIDED = 8.0  # How much larger the head's weights are than a new network's.
MEAN = 0.4


@dataclass(frozen=True)
class Finding:
    """One promise of one part, and whether it is kept. `reason` says why not, or why it could not be tried."""

    kind: str
    name: str
    claim: str
    passed: bool
    reason: str = ""


class NotTried(Exception):
    """A promise that cannot be tried here: data that is not there, a parameter that has no default."""


Check = Callable[[ResolvedPart, Registry], None]
CHECKS: dict[str, list[tuple[str, Check]]] = {kind: [] for kind in KINDS}


def promise(kind: str, claim: str) -> Callable[[Check], Check]:
    """Adds a check to those of a kind."""

    def add(check: Check) -> Check:
        CHECKS[kind].append((claim, check))
        return check

    return add


def run(registry: Registry, names: Sequence[str] = ()) -> Iterator[Finding]:
    """The findings for the named parts, or for all. Raises UnknownName for a name that no kind has."""
    entries = [entry for entry in registry.entries() if not names or entry.name in names]
    for name in names:
        if not any(entry.name == name for entry in entries):
            raise UnknownName("part", name, {entry.name for entry in registry.entries()})
    for entry in entries:
        for claim, check in CHECKS[entry.kind]:
            yield _finding(entry, registry, claim, check)


def cases(registry: Registry, kinds: Iterable[str] = KINDS) -> list[tuple[Entry, str, Check]]:
    """(entry, claim, check) of every promise, for `pytest.mark.parametrize`."""
    return [(entry, claim, check) for kind in kinds for entry in registry.entries(kind) for claim, check in CHECKS[kind]]


def _finding(entry: Entry, registry: Registry, claim: str, check: Check) -> Finding:
    try:
        check(resolved(entry, registry), registry)
    except NotTried as reason:
        return Finding(entry.kind, entry.name, claim, True, f"not tried: {reason}")
    except Exception as error:  # A plugin may raise anything; that is what is being looked for.
        return Finding(entry.kind, entry.name, claim, False, f"{type(error).__name__}: {error}")
    return Finding(entry.kind, entry.name, claim, True)


def resolved(entry: Entry, registry: Registry) -> ResolvedPart:
    """The part with its defaults, or with the `quick` parameters it names. Raises NotTried where a parameter has none."""
    try:
        return registry.resolve(entry.kind, {"name": entry.name, **getattr(entry.factory, "quick", {})})
    except BenchError as error:
        raise NotTried(str(error).split("\n")[0]) from None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def network() -> testing.TinyNetwork:
    """A `TinyNetwork` in eval mode that tells tiny images apart, so that hiding pixels matters, and whose mean colour is not black."""
    model, images = testing.TinyNetwork().train(), testing.tiny_data().images.float() / 255
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # What it keeps of the images below is all it knows.
    with torch.no_grad():
        model(images)
        model.fc.weight.mul_(DECIDED)
        model.fc.bias.sub_(model.eval()(images).mean(0))
        model.normalisation.register_buffer("mean", torch.full((1, 3, 1, 1), MEAN))
    return model


# Explainers


def explain(part: ResolvedPart, model: testing.TinyNetwork, inputs: Tensor, targets: Tensor, first: int = 0) -> Tensor:
    """(B, 1, H, W) the explainer's maps; `first` is the number of the first image. Raises NotTried where it does not apply."""
    info = testing.dataset_info(4, (16, 16), 3)
    context = contexts.explain_context(
        model, info, model.layers[-1:], model.layers, [contexts.generator("check", first + row) for row in range(len(inputs))], 4
    )
    if hasattr(part.part, "prepare"):
        data = testing.tiny_data(16)
        with contexts.untouched(model), torch.enable_grad():
            context.state = part.part.prepare(model, Preparation(data, torch.arange(16), None, "cpu"), context)
    try:
        return contexts.explain(model, part.part, inputs, targets, context)
    except BenchError as error:  # A method may say that it does not apply to this network.
        raise NotTried(str(error).split("\n")[0]) from None


def images_to_explain() -> tuple[testing.TinyNetwork, Tensor, Tensor]:
    """The network, images and targets on which explainers are tried."""
    return network(), testing.tiny_images(ROWS), torch.arange(ROWS) % 4


@promise("explainer", "gives one finite map per image, float32")
def _explainer_shape(part: ResolvedPart, registry: Registry) -> None:
    maps = explain(part, *images_to_explain())
    _require(maps.shape == (ROWS, 1, 16, 16) and maps.dtype == torch.float32, f"gave {tuple(maps.shape)} {maps.dtype}")


@promise("explainer", "explains a batch as it explains its parts")
def _explainer_parts(part: ResolvedPart, registry: Registry) -> None:
    model, inputs, targets = images_to_explain()
    whole = explain(part, model, inputs, targets)
    parts = torch.cat([explain(part, model, inputs[:1], targets[:1]), explain(part, model, inputs[1:], targets[1:], first=1)])
    _require(_close(whole, parts), f"a row differs by {float((whole - parts).abs().max()):.2g} when its neighbours change")


@promise("explainer", "leaves the model as it found it")
def _explainer_traceless(part: ResolvedPart, registry: Registry) -> None:
    model, inputs, targets = images_to_explain()
    model.train()
    before = testing.snapshot(model)
    explain(part, model, inputs, targets)
    _require(not (found := testing.changed(before, model)), f"changed {', '.join(found)}")


@promise("explainer", "works inside a training step, and changes nothing about it")
def _explainer_in_training(part: ResolvedPart, registry: Registry) -> None:
    model, inputs, targets = images_to_explain()
    plain, explaining = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    expected, _ = _step(plain, inputs, targets, None)
    found, _ = _step(explaining, inputs, targets, part)
    _require(all(torch.equal(expected[name], found[name]) for name in expected), "the weights after the step are others")


def _step(model: testing.TinyNetwork, inputs: Tensor, targets: Tensor, part: ResolvedPart | None) -> tuple[dict[str, Tensor], float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = torch.nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    if part is not None:
        explain(part, model, inputs, targets)
    optimizer.step()
    return model.state_dict(), float(loss.detach())


@promise("explainer", "is finite on a black image and on a white one")
def _explainer_flat(part: ResolvedPart, registry: Registry) -> None:
    model, _, _ = images_to_explain()
    inputs = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    explain(part, model, inputs, torch.tensor([0, 1]))


def _close(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> bool:
    scale = float(first.abs().max().clamp_min(1e-12))
    return bool(((first - second).abs().max() / scale) <= tolerance)


# Augmenters


def augment(part: ResolvedPart, model: testing.TinyNetwork, batch: Batch) -> Batch:
    """What the augmenter makes of the batch in `training_step`."""
    augmented: Batch = part.part(model, batch, training_step(part, model))
    return augmented


def training_step(part: ResolvedPart, model: testing.TinyNetwork, epoch: int = 8) -> StepContext:
    """The first step of an epoch of ten; late in the training every augmenter is at work."""
    info = testing.dataset_info(4, (16, 16), 3, class_counts=(40, 16, 16, 4))
    return contexts.step_context(
        model, info, model.layers, model.layers, _explainer_of(part), key="check", epoch=epoch, epochs=10, progress=epoch / 10
    )


def _explainer_of(part: ResolvedPart) -> Any:
    """The explainer that an augmenter names, if it does."""
    return next((reference.part for reference in part.references.values() if reference.kind == "explainer"), None)


def batch_to_augment() -> tuple[testing.TinyNetwork, Batch]:
    """The network and the batch on which augmenters are tried."""
    data = testing.tiny_data(8)
    targets = torch.nn.functional.one_hot(data.labels, 4).float()
    return network().train(), Batch.of(data.images.float() / 255, targets)


@promise("augmenter", "returns rows that can be trained on: images in [0, 1], targets and weights for each")
def _augmenter_rows(part: ResolvedPart, registry: Registry) -> None:
    model, batch = batch_to_augment()
    found = augment(part, model, batch)
    rows = len(found)
    _require(rows > 0 and found.inputs.shape[1:] == batch.inputs.shape[1:], f"inputs are {tuple(found.inputs.shape)}")
    lengths = {name: len(getattr(found, name)) for name in Batch.__dataclass_fields__}
    _require(set(lengths.values()) == {rows}, f"lengths differ: {lengths}")
    _require(
        bool(found.inputs.isfinite().all()) and float(found.inputs.min()) >= -1e-5 and float(found.inputs.max()) <= 1 + 1e-5, "images leave [0, 1]"
    )
    _require(bool(((found.targets >= -1e-6) & (found.targets <= 1 + 1e-5)).all()), "targets leave [0, 1]")


@promise("augmenter", "leaves the model and the global random stream as it found them")
def _augmenter_traceless(part: ResolvedPart, registry: Registry) -> None:
    if getattr(part.part, "changes_model", None):
        raise NotTried(f"declares that it changes {part.part.changes_model}")
    model, batch = batch_to_augment()
    before = testing.snapshot(model)
    augment(part, model, batch)
    _require(not (found := testing.changed(before, model)), f"changed {', '.join(found)}")


@promise("augmenter", "leaves a training step that ignores what it returns the same to the bit")
def _augmenter_in_training(part: ResolvedPart, registry: Registry) -> None:
    if getattr(part.part, "changes_model", None):
        raise NotTried(f"declares that it changes {part.part.changes_model}")
    expected, found = trained_beside(lambda model, batch, epoch: None), trained_beside(_everything_of(part))
    _require(all(torch.equal(expected[name], found[name]) for name in expected), "the weights after the step are others")


def trained_beside(work: Callable[[testing.TinyNetwork, Batch, int], object]) -> dict[str, Tensor]:
    """The weights and statistics after three plain steps, when the work was done before each, and once more before its update."""
    model, batch = batch_to_augment()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for epoch in (0, 4, 8):
        work(model, batch, epoch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
        work(model, batch, epoch)
        optimizer.step()
    return model.state_dict()


def _everything_of(part: ResolvedPart) -> Callable[[testing.TinyNetwork, Batch, int], None]:
    """What the loop calls of an augmenter beside the training's own forwards."""
    from bench.interfaces import Recipe
    from bench.train import training_data

    def work(model: testing.TinyNetwork, batch: Batch, epoch: int) -> None:
        step = training_step(part, model, epoch)
        part.part(model, batch, step)
        if hasattr(part.part, "end_epoch"):
            part.part.end_epoch(model, training_data(testing.tiny_data(22), Recipe(), None, None), step)

    return work


@promise("augmenter", "does the same again when asked the same again")
def _augmenter_repeats(part: ResolvedPart, registry: Registry) -> None:
    model, batch = batch_to_augment()
    first, second = augment(part, model, batch), augment(part, model, batch)
    _require(
        len(first) == len(second) and torch.equal(first.inputs, second.inputs) and torch.equal(first.targets, second.targets),
        "two calls with one stream differ",
    )


# Metrics


def score(part: ResolvedPart, rows: slice = slice(None)) -> Tensor:
    """The metric's rows for some of the images. Raises NotTried where it does not apply."""
    data = testing.tiny_data(ROWS)
    model = network()
    inputs, labels = data.images.float() / 255, data.labels
    with torch.no_grad():
        logits = contexts.forward(model, inputs, 32)
    maps = contexts.generator("check maps")
    attributions = torch.rand(ROWS, 1, 16, 16, generator=maps)
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0, 0.0]])] * ROWS
    assert data.masks is not None
    explained = Explained(
        inputs[rows], labels[rows], torch.arange(ROWS)[rows], logits.argmax(1)[rows], logits[rows], attributions[rows], data.masks[rows], boxes[rows]
    )
    streams = [contexts.generator("check", row) for row in range(ROWS)][rows]
    cost = {"images": 8, "rows": 8, "steps": 1, "forward": 8.0, "backward": 8.0, "seconds": 1.0, "peak_memory": 1 << 20}
    training = {**cost, "epochs": [cost]}
    context = contexts.metric_context(
        model,
        explained,
        data.info,
        streams,
        model.layers[-1:],
        model.layers,
        _Gradient(),
        chunk=4,
        training=training,
        floor_training=training,
        explain_cost=cost,
    )
    try:
        return part.part(model, explained, context).detach().double()  # type: ignore[no-any-return]
    except BenchError as error:
        raise NotTried(str(error).split("\n")[0]) from None


class _Gradient:
    """An explainer for metrics that call one."""

    def __call__(self, model: Any, inputs: Tensor, targets: Tensor, context: Any) -> Tensor:
        inputs = inputs.clone().requires_grad_()
        score = model(inputs).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(score, inputs)[0].abs().sum(1, keepdim=True)


def _about_images(part: ResolvedPart) -> None:
    if not getattr(part.part, "per_image", True):
        raise NotTried("its rows are not images")
    if "multi_label" in part.part.needs:
        raise NotTried("it is for images with several labels")


@promise("metric", "says what it is: direction, category, unit and needs")
def _metric_traits(part: ResolvedPart, registry: Registry) -> None:
    missing = [name for name in ("higher_is_better", "category", "unit", "needs") if not hasattr(part.part, name)]
    _require(not missing, f"lacks {', '.join(missing)}")


@promise("metric", "gives one row per image")
def _metric_rows(part: ResolvedPart, registry: Registry) -> None:
    _about_images(part)
    rows = score(part)
    _require(len(rows) == ROWS and rows.ndim in (1, 2), f"gave {tuple(rows.shape)} for {ROWS} images")


@promise("metric", "scores a batch as it scores its parts")
def _metric_parts(part: ResolvedPart, registry: Registry) -> None:
    _about_images(part)
    whole, parts = score(part), torch.cat([score(part, slice(0, 1)), score(part, slice(1, None))])
    _require(bool(torch.allclose(whole, parts, atol=1e-6, rtol=1e-5, equal_nan=True)), f"rows differ by {float((whole - parts).abs().max()):.2g}")


# Models, datasets, trainers and label noise


def _info() -> DatasetInfo:
    return testing.dataset_info(10, (32, 32), 3, class_counts=(10,) * 10, mean=(0.5,) * 3, std=(0.25,) * 3)


@promise("model", "takes [0, 1] images, gives logits, and shows its normalisation")
def _model_logits(part: ResolvedPart, registry: Registry) -> None:
    module = _built(part)
    size = getattr(module, "input_size", None) or (32, 32)
    with torch.no_grad():
        logits = module(torch.rand(2, 3, *size, generator=contexts.generator("check")))
    _require(logits.shape == (2, 10), f"gave {tuple(logits.shape)} for 2 images of 10 classes")
    _require(hasattr(module, "normalisation") and module.normalisation.mean.numel() == 3, "has no `normalisation.mean` with a number per channel")


@promise("model", "has target layers and stages that give feature maps (B, C, h, w)")
def _model_layers(part: ResolvedPart, registry: Registry) -> None:
    from bench.layers import recording

    module = _built(part)
    size = getattr(module, "input_size", None) or (32, 32)
    layers = [*part.part.target_layers(module), *part.part.stages(module)]
    with recording(layers) as outputs, torch.no_grad():
        module(torch.rand(2, 3, *size, generator=contexts.generator("check")))
    for layer, output in zip(layers, outputs, strict=True):
        _require(output is not None and layer.to_map(output).ndim == 4 and len(layer.to_map(output)) == 2, f"layer {layer.name} gives no map")


@promise("model", "saves and loads its weights")
def _model_round_trip(part: ResolvedPart, registry: Registry) -> None:
    module = _built(part)
    module.load_state_dict({name: tensor.clone() for name, tensor in module.state_dict().items()})


def _built(part: ResolvedPart) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return part.part.build(_info()).eval()
        except BenchError as error:
            raise NotTried(str(error).split("\n")[0]) from None


@promise("dataset", "has items of the agreed form, and a fingerprint that is the same twice")
def _dataset_items(part: ResolvedPart, registry: Registry) -> None:
    try:
        first, second = part.part.load("test", None), part.part.load("test", None)
    except DataError as error:
        raise NotTried(str(error).split("\n")[0]) from None
    sample, info = first[0], first.info
    _require(first.info.fingerprint == second.info.fingerprint, "two fingerprints of the same content")
    _require(sample.image.ndim == 3 and tuple(sample.image.shape[1:]) == tuple(info.image_size), f"an image is {tuple(sample.image.shape)}")
    _require(len(info.class_names) == info.num_classes == len(info.class_counts), "class names and counts are not one per class")
    _require(bool(info.licence), "no licence is named")


@promise("trainer", "trains a small network on a few images, or says that it fits nothing")
def _trainer_fits(part: ResolvedPart, registry: Registry) -> None:
    from bench.interfaces import Recipe
    from bench.train import FitContext, fit, training_data

    if not getattr(part.part, "fits", True):
        raise NotTried("it fits nothing")
    data, model = testing.tiny_data(32), testing.TinyNetwork()
    recipe = Recipe(epochs=2, batch_size=8, crop_padding=2)
    floors = [
        entry for entry in registry.entries("augmenter") if all(hasattr(entry.factory, name) for name in getattr(part.part, "augmenter_methods", ()))
    ]
    if not floors:
        raise NotTried("no installed augmenter has the methods it calls")
    floors.sort(key=lambda entry: not getattr(entry.factory, "floor", False))
    augmenter = registry.resolve("augmenter", floors[0].name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    context = FitContext(recipe, data.info, 0, "check", "cpu", model.layers[-1:], model.layers, _explainer_of(augmenter))
    cost = fit(part.part, model, training_data(data, recipe, None, None), augmenter.part, context)
    _require(any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "the weights are as they were")
    _require(cost["images"] > 0 and cost["forward"] > 0 and cost["backward"] > 0, "no images or passes were counted")


def relabel(part: ResolvedPart) -> tuple[Tensor, Tensor]:
    """Labels of ten classes, and what the noise makes of them."""
    data = testing.tiny_data(200, num_classes=10)
    images = {"images": data} if getattr(part.part, "needs_images", False) else {}
    return data.labels, part.part(data.labels, data.info, contexts.generator("check"), **images)


@promise("noise", "gives labels of the same classes, and the same ones again")
def _noise_labels(part: ResolvedPart, registry: Registry) -> None:
    (labels, first), (_, second) = relabel(part), relabel(part)
    _require(first.shape == labels.shape and bool(((first >= 0) & (first < 10)).all()), "labels leave the classes")
    _require(torch.equal(first, second), "two calls with one stream differ")
