"""The things that pass between the harness and a plugin: what a plugin is given and what it gives back.

Order of arguments everywhere: model first, data second, context last. Images are (B, C, H, W) float32 in [0, 1];
a model normalises them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, get_type_hints, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.errors import InvalidValue, did_you_mean

KINDS = ("dataset", "model", "trainer", "augmenter", "explainer", "metric", "noise", "tracker")

Fill = Literal["black", "mean", "blur", "noise"]
"""What stands where pixels are hidden: 0, the model's mean colour (which papers call zero), a blur, or uniform noise."""


class Reference(NamedTuple):
    """Marks a parameter that names another part: `explainer: Annotated[str, Reference("explainer")] = "gradcam"`."""

    kind: str


class ByContent(NamedTuple):
    """Marks a path that enters keys as the hash of the file's content: `weights: Annotated[Path | None, ByContent()]`."""


class LaterAddition(NamedTuple):
    """Marks a parameter that came after results were published: it enters keys only where it differs from this default, so that
    what was published keeps its key: `auxiliary_norm: Annotated[bool, LaterAddition(False)] = False`.
    """

    default: Any


def unset_additions(owner: Any) -> set[str]:
    """The names of a dataclass instance's later additions that are as they were before they came."""
    hints = get_type_hints(type(owner), include_extras=True)
    marks = {name: mark for name, hint in hints.items() for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, LaterAddition)}
    return {name for name, mark in marks.items() if getattr(owner, name) == mark.default}


Explaining = Annotated[str, Reference("explainer")]
WeightsFile = Annotated[Path | None, ByContent()]
Fraction = Annotated[float, Field(ge=0, le=1)]


# Data


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is. `fingerprint` hashes the content in a canonical order, whatever the files looked like."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    image_size: tuple[int, int]
    fingerprint: str
    licence: str
    source: str = ""
    multi_label: bool = False
    redistributable: bool = False  # May its images appear on a published board?
    flippable: bool = True  # Does a mirror image keep its label? Not for digits.
    has_masks: bool = False
    has_boxes: bool = False
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # Of [0, 1] pixels; a model that brings no normalisation of its own takes these.
    std: tuple[float, ...] = (0.25, 0.25, 0.25)


class Sample(NamedTuple):
    """One image. `image` (C, H, W), float in [0, 1] or uint8; `label` an int or (K,) of 0 and 1; `index` is stable.

    `masks` (M, H, W) bool says where the labelled object is. `boxes` (M, 5) float holds x0, y0, x1, y1 in pixels of this
    image and 1 where the object is marked difficult. Multi-label data that know which object is of which class say so: with one
    mask per class, in the order of the classes, or with the class of each box in a sixth column.
    """

    image: Tensor
    label: int | Tensor
    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody calls on a sample.
    masks: Tensor | None = None
    boxes: Tensor | None = None


@runtime_checkable
class ImageData(Protocol):
    """A map-style dataset of `Sample`s that says what it is."""

    info: DatasetInfo

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class ArrayData:
    """A dataset that lies in memory: images (N, C, H, W) uint8, labels (N,) or (N, K), masks (N, M, H, W) bool."""

    def __init__(self, info: DatasetInfo, images: Tensor, labels: Tensor, masks: Tensor | None = None) -> None:
        self.info, self.images, self.labels, self.masks = info, images, labels, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        label = self.labels[index]
        masks = None if self.masks is None else self.masks[index]
        return Sample(self.images[index], label if label.ndim else int(label), index, masks)


@dataclass(frozen=True)
class Batch:
    """Rows to train on. An augmenter may return more rows than it was given, never images outside [0, 1].

    `inputs` (B, C, H, W); `targets` (B, K) probabilities, or 0 and 1 per class for multi-label data; `weights` (B,) of the
    rows in the loss; `indices` (B,) of the images in the training set; `group` (B,) ties the rows made from one original;
    `branch` (B,) names the batch-norm set a row goes through (0 is the main one).
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    indices: Tensor
    group: Tensor
    branch: Tensor

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, indices: Tensor | None = None) -> Batch:
        """A plain batch: every row weighs 1, is a group of its own and goes through the main branch."""
        rows = torch.arange(len(inputs), device=inputs.device)
        weights = torch.ones(len(inputs), device=inputs.device)
        return cls(inputs, targets, weights, rows if indices is None else indices, rows, torch.zeros_like(rows))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labels(self) -> Tensor:
        """(B,) the class with the largest target."""
        return self.targets.argmax(1)

    def select(self, rows: Tensor) -> Batch:
        """Some of the rows: an index (n,) or a mask (B,)."""
        return Batch(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def replace(self, **changes: Tensor) -> Batch:
        return replace(self, **changes)

    def append(self, inputs: Tensor, rows: Tensor, **changes: Tensor) -> Batch:
        """Add rows made from the given rows of this batch; they inherit targets, weight, group and branch."""
        more = self.select(rows).replace(inputs=inputs, **changes)
        pairs = ((getattr(self, name), getattr(more, name)) for name in self.__dataclass_fields__)
        return Batch(*(torch.cat(pair) for pair in pairs))


# Models


class Layer(NamedTuple):
    """A place in a network: the module, and `to_map`, which turns its output into feature maps (B, C, h, w)."""

    name: str
    module: nn.Module
    to_map: Callable[[Tensor], Tensor] = lambda output: output


# Passes through the network


@dataclass
class Passes:
    """Passes through the network, counted in images: 2.5 forward means that two and a half images' worth went through."""

    forward: float = 0.0
    backward: float = 0.0

    def add(self, forward: float = 0.0, backward: float = 0.0) -> None:
        self.forward += forward
        self.backward += backward


# Training


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; every field is part of the training key."""

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=2)] = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    schedule: Literal["constant", "cosine", "one-cycle", "step"] = "one-cycle"
    milestones: tuple[Fraction, ...] = (0.5, 0.75)  # Of the training, for "step": the rate is divided by ten at each.
    crop_padding: Annotated[int, Field(ge=0)] = 4
    flip: bool = True  # Mirrors every other image, where the data is `flippable`.
    label_smoothing: Fraction = 0.0
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0  # Part of the training images, split off before any noise.
    report: Literal["last", "best"] = "last"  # "best" is by accuracy on the validation part, never on the test images.
    train_images: Annotated[int, Field(ge=2)] | None = None  # A seeded, class-balanced part of the training images; all if none.
    precision: Literal["fp32", "bf16"] = "fp32"
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    # A training ends when it has spent what `epochs` plain ones take: a forward and a backward pass for each image. Its schedule follows the passes.
    equal_passes: Annotated[bool, LaterAddition(False)] = False

    def identity(self) -> dict[str, Any]:
        """What enters keys."""
        unset = unset_additions(self)
        return {name: value for name, value in asdict(self).items() if name not in unset}


Explain = Callable[..., Tensor]


@dataclass
class StepContext:
    """What an augmenter is given in one training step.

    - `epoch`, `step`: counted from 0; there are `epochs` of them. `progress`: share of the training done before this step, in [0, 1).
    - `generator`: the augmenter's own stream for this step, on the CPU; the streams of weights, order, crops and dropout are
      others, so two augmenters that draw differently still see the same images.
    - `info`: the dataset. `class_counts`: how many training images each class has, by the labels that are trained on.
    - `explain(model, inputs, targets)` -> (B, 1, H, W): the augmenter's explainer, run in eval mode, leaving no trace.
    - `predict(model, inputs)` -> (B, K): logits in eval mode without gradient, leaving no trace.
    - `features(model, inputs)` -> (logits (B, K), [maps (B, C, h, w), …]): the outputs of the model's stages, eval mode, with gradient.
    - `fill(kind, inputs)` -> (B, C, H, W): what hidden pixels become. `stages`: the ends of the network's blocks, first to last.
    - `log(name=value, …)`: numbers, or tensors of no dimension, which are not waited for; the log keeps their mean over the epoch.
    """

    epoch: int
    epochs: int
    step: int
    progress: float
    generator: torch.Generator
    info: DatasetInfo
    class_counts: tuple[int, ...]
    explain: Explain
    predict: Callable[[nn.Module, Tensor], Tensor]
    features: Callable[[nn.Module, Tensor], tuple[Tensor, list[Tensor]]]
    fill: Callable[[Fill, Tensor], Tensor]
    stages: Sequence[Layer] = ()
    log: Callable[..., None] = lambda **values: None

    @property
    def multi_label(self) -> bool:
        return self.info.multi_label


# Explaining and scoring


@dataclass
class ExplainContext:
    """What an explainer is given.

    - `target_layers`: where class-activation maps are taken. `stages`: the ends of the network's blocks, first to last.
    - `probability(logits)` -> softmax, or sigmoid for multi-label data. `fill(kind, inputs)` as in `StepContext`.
    - `chunk`: at most this many images per forward.
    - `generators`: one per row of `inputs`, on the CPU, so that no row depends on its neighbours.
    - `state`: what `prepare` returned, None without one.
    - `passes`: whole passes through the model are counted already; add those that go through a part of it.
    - `info`: the dataset.
    """

    target_layers: Sequence[Layer]
    stages: Sequence[Layer]
    probability: Callable[[Tensor], Tensor]
    fill: Callable[[Fill, Tensor], Tensor]
    generators: Sequence[torch.Generator]
    chunk: int = 32
    state: Any = None
    passes: Passes = field(default_factory=Passes)
    info: DatasetInfo | None = None

    def layer(self, name: str | None = None, model: nn.Module | None = None) -> Layer:
        """The target layer: the one named (any module of the model, or the end of its name), or the model's own last choice."""
        if name is None:
            return self.target_layers[-1]
        for known in (*self.target_layers, *self.stages):
            if known.name == name or known.name.endswith(f".{name}"):
                return known
        modules = {} if model is None else dict(model.named_modules())
        for full in (name, f"network.{name}"):  # In-tree models keep their network under this name.
            if full in modules:
                return Layer(full, modules[full])
        names = [known.name for known in (*self.target_layers, *self.stages)]
        more = did_you_mean(name, names + ([] if model is None else [n for n, _ in model.named_modules()]))
        raise InvalidValue(f"the model has no layer '{name}'.{more}\nIts target layers and stages: {', '.join(dict.fromkeys(names))}")


@dataclass(frozen=True)
class Explained:
    """Test images with what is known about them: what a metric scores.

    `inputs` (B, C, H, W) at the model's size; `labels` (B,) or (B, K); `indices` (B,); `targets` (B,) the explained classes;
    `logits` (B, K); `attributions` (B, 1, H, W) or None; `masks` (B, 1, H, W) bool or None: where the labelled object is, or
    (B, K, H, W) where the objects of each class are; `boxes`: one (M, 5), or (M, 6) with classes, per image or None.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    targets: Tensor
    logits: Tensor
    attributions: Tensor | None = None
    masks: Tensor | None = None
    boxes: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass
class MetricContext:
    """What a metric is given.

    - `predict(inputs)` -> logits (B, K): chunked, counted, without gradient.
    - `masked_probabilities(counts, fill, keep)` -> (B, len(counts)): the target's probability with the `count` most important
      pixels hidden behind the fill (keep=False: deletion) or with nothing else shown (keep=True: insertion). Stable order,
      ties by position. Metrics of one group share these forwards.
    - `explain(inputs, targets)` -> (B, 1, H, W): the explainer under test, for metrics that need it.
    - `probability`, `fill`, `generators`, `info`, `target_layers`, `stages`, `chunk`, `passes`: as in `ExplainContext`.
    - `training`, `floor_training`: the cost of the training and of the same training with augmenter `none`: a dictionary with images,
      rows, steps, forward, backward, seconds, peak_memory and `epochs`, a list of the same per epoch. `explain_cost`: images,
      forward, backward, seconds and peak_memory of the explaining.
    """

    probability: Callable[[Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    masked_probabilities: Callable[..., Tensor]
    fill: Callable[[Fill, Tensor], Tensor]
    generators: Sequence[torch.Generator]
    info: DatasetInfo
    target_layers: Sequence[Layer] = ()
    stages: Sequence[Layer] = ()
    chunk: int = 32
    passes: Passes = field(default_factory=Passes)
    explain: Callable[[Tensor, Tensor], Tensor] | None = None
    training: Mapping[str, Any] | None = None
    floor_training: Mapping[str, Any] | None = None
    explain_cost: Mapping[str, Any] | None = None


class Curve(NamedTuple):
    """A line to draw: the score against the strength of what was done to the images."""

    x: list[float]
    y: list[float]
    x_label: str
    y_label: str


Need = Literal["logits", "attributions", "masks", "boxes", "explainer", "training", "explain_cost", "single_label", "multi_label"]


# What each kind of part looks like. A part is a frozen dataclass whose fields are the method's parameters; nobody has to
# inherit from these protocols.


class Part(Protocol):
    """Common to all parts. `version` is raised by the author when the numbers change.

    Optional class attributes: `default = True` takes the part where a run names none; `floor = True` adds it to every run;
    `argument` names the field that `"name:value"` fills; `claim` says what has been shown of the method; `quick` holds
    parameters with which its promises can be checked in seconds; `trainers` names the only trainers an augmenter is for.
    Of a trainer: `fits = False` says that nothing is trained; `augmenter_methods` names what it calls of an augmenter that every
    one must have, `optional_methods` what it calls where there is such a method; `keeps_branches = True` says that it sends rows
    through the batch norms of their branch, `equal_passes = True` that it goes by progress alone, so that a recipe may cut it.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    paper: ClassVar[str]


class Dataset(Part, Protocol):
    def load(self, split: str, root: Path | None) -> ImageData:
        """`split` is "train" or "test". `root` is the user's data folder (`--data`), for datasets that need one."""


class Model(Part, Protocol):
    def build(self, info: DatasetInfo) -> nn.Module:
        """A network that takes [0, 1] images and returns logits (B, K), with `normalisation.mean` and `.std` to be read.

        Initial weights come from torch's global generator, which the harness seeds.
        """

    def target_layers(self, module: nn.Module) -> Sequence[Layer]: ...

    def stages(self, module: nn.Module) -> Sequence[Layer]: ...


class Augmenter(Part, Protocol):
    """Changes a batch before the network is trained on it.

    Optional, each looked up by name: `forward(model, batch, context) -> logits` for methods that mix inside the network;
    `loss(logits, batch) -> (B,)` one loss per row instead of cross-entropy (AugMix's divergence, by `batch.group`);
    `end_epoch(model, data, context) -> ArrayData | None` images to add to the training set from the next epoch on;
    `branches`, the momentum of each set of batch norms, beside the network's own, that `Batch.branch` names (1 for the first).
    """

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch: ...


class Explainer(Part, Protocol):
    """Says which pixels speak for a class. It is called in eval mode, with parameters that ask for no gradient.

    Optional: `prepare(model, data, context) -> state`, called once per network before the first image, for methods that look at
    training images first: `data.batches(size)` gives a seeded part of them as pairs (inputs, labels), and `context.state` holds
    what it returned.
    """

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) for images (B, C, H, W) and the class (B,) to explain of each, finite."""


class Metric(Part, Protocol):
    """Scores images. What it `needs` decides where it applies: without attributions it is scored once per trained model.

    Optional class attributes: `all_images = True` scores the whole test split, not the run's selection; `per_image = False`
    says that the rows are not images (repeats of a timing, epochs), and it is called once; `timed = True` says that the
    value belongs to a machine. Optional methods: `values(rows) -> (N,)` the number each image stands with (default: the row,
    or its mean); `aggregate(rows) -> float` (default: the mean of the values; ECE and the like bring their own, and `biased = True`
    where it is too high on few images, see `bench.intervals`); `shares(rows) -> (n,)` values whose mean the aggregate is, where its
    weights are to stay when images are drawn again;
    `curve(rows) -> Curve`; `figure(model, data, context, path)` draws the network into a PNG, of the scored images, which
    `data.batches(size)` gives as pairs (inputs, labels), with an ExplainContext.
    """

    higher_is_better: ClassVar[bool]
    category: ClassVar[str]
    unit: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]]

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """(B,) one number per image, or (B, n) several, higher or lower being better as the class says."""


class Noise(Part, Protocol):
    def __call__(self, labels: Tensor, info: DatasetInfo, generator: torch.Generator) -> Tensor:
        """Noisy labels (N,) for clean labels (N,)."""
