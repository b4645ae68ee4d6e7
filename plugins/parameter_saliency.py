"""Parameter saliency: which filters are to blame for the loss on one image, and which pixels drive them.

Paper: a filter's saliency is the mean of |∂L/∂w| over its weights, L being the cross-entropy at the label, for one image. Over a
sample of images each filter has a mean μ and a standard deviation σ, and its standardised saliency is s = (saliency - μ) / σ. For the
map, the ten most salient filters are multiplied by 100 in a copy t of s, and the gradient of cos(s(x), t) by the pixels is taken:
what would have to change for these filters to stand out more. `standardise` is `std` as above, `norm` (saliency / μ) or `naive`.

Differs from the paper: the absolute gradient is taken before the largest over the colours, where the authors' code does it the other
way round and hides strong negative ones. Gradients are by [0, 1] pixels. Nothing is clipped, blurred or scaled for display.

Choices: the loss is at the explained class; with the target rule `true` that is the label, as in the paper. Filters are those of all
two-dimensional convolutions that run, in the order of the network. For the map, μ and σ come from training images.

The metric `filter-saliency` takes the saliency at the labels, mean over the filters of a layer, in standard deviations over the scored
images: its value is by how many of these misclassified images lie above correct ones, mean over layers. It is missing where all
images, or none, are classified correctly. `FilterSaliency.figure` draws the profiles filter by filter.

Checked against: gradients of a one-filter network by hand; single images, one backward pass each, and vmap over the whole network;
finite differences of the map's gradient in double precision; the number of filters of known networks.

Cost: 1 forward and 2 backward passes per image, the second through the first; statistics and the metric, 1 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import hookimpl
from bench.contexts import counting, pair_up, untouched
from bench.errors import InvalidValue
from bench.interfaces import Curve, ExplainContext, Explained, MetricContext

AT_ONCE = 2**26  # Weight gradients held at a time while they are reduced to one number per filter: 256 MB.


@dataclass(frozen=True)
class ParameterSaliency:
    """The pixels that drive the filters to blame for the loss."""

    top: Annotated[int, Field(ge=1)] = 10
    boost: Annotated[float, Field(gt=0)] = 100.0
    standardise: Literal["std", "norm", "naive"] = "std"

    name: ClassVar[str] = "parameter-saliency"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Levin, Shu, Borgnia, Huang, Goldblum, Goldstein; Where do Models go Wrong? Parameter-Space Saliency Maps for Explainability; "
        "arXiv:2108.01335"
    )
    claim: ClassVar[str] = "formula verified"

    def prepare(self, model: nn.Module, data: Any, context: ExplainContext) -> dict[str, Tensor]:
        """The mean and standard deviation (K,) of each filter's saliency over `data.batches(size)`, pairs (inputs, labels)."""
        if self.standardise == "naive":
            return {}
        device = next(model.parameters()).device
        moments = Moments()
        for inputs, labels in data.batches(context.chunk):
            with untouched(model):
                moments.add(filter_saliency(model, inputs.to(device), labels.to(device), is_multi_label(context)).filters)
        return {"mean": moments.mean, "std": moments.std}

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """Returns (B, 1, H, W), zero or above: the largest absolute gradient over the colours."""
        parts = math.ceil(len(inputs) / max(2, context.chunk // 4))  # A gradient of gradients keeps about four times a graph.
        pairs = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        return torch.cat([self.maps(model, images, classes, context) for images, classes in pairs])

    def maps(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        inputs = inputs.detach().clone().requires_grad_()
        naive = filter_saliency(model, inputs, targets, is_multi_label(context), differentiable=True)
        profile = self.standardised(naive.filters, context.state)
        agreement = F.cosine_similarity(profile, self.boosted(profile.detach()), eps=torch.finfo(profile.dtype).tiny)
        (gradients,) = torch.autograd.grad(agreement.sum(), inputs)
        return gradients.abs().amax(1, keepdim=True)

    def standardised(self, profile: Tensor, state: dict[str, Tensor] | None) -> Tensor:
        """(B, K) in standard deviations from the mean, or in means. Raises InvalidValue where `prepare` was not called."""
        if self.standardise == "naive":
            return profile
        if not state:
            raise InvalidValue(f"parameter-saliency with standardise='{self.standardise}' needs the statistics that `prepare` returns.")
        mean, std = state["mean"].to(profile), state["std"].to(profile)
        return (profile - mean) / or_one(std) if self.standardise == "std" else profile / or_one(mean)

    def boosted(self, profile: Tensor) -> Tensor:
        """The profile (B, K) with its `top` largest entries multiplied by `boost`."""
        places = profile.topk(min(self.top, profile.shape[1])).indices
        return profile.scatter(1, places, profile.gather(1, places) * self.boost)


# Saliency of filters


class Profile(NamedTuple):
    """The saliency of every filter on each image: for each convolution that runs, (B, its filters); and the logits."""

    logits: Tensor
    layers: list[Tensor]

    @property
    def filters(self) -> Tensor:
        """(B, K) all layers side by side."""
        return torch.cat(self.layers, dim=1)


def filter_saliency(model: nn.Module, inputs: Tensor, labels: Tensor, multi_label: bool = False, differentiable: bool = False) -> Profile:
    """The mean absolute gradient of each image's own loss by the weights of each filter.

    One backward pass serves all images: an image's gradient by a convolution's weights follows from what the convolution read and
    from the gradient of what it wrote, and is reduced to a number per filter at once. The model is to be in eval mode.
    """
    rows = len(inputs)
    inputs, labels = pair_up(inputs), pair_up(labels)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), listening(model) as used:  # Other attention has no second derivative.
        logits = model(inputs)
        loss = losses(logits, labels, multi_label).sum()
        written = [use.written for uses in used.values() for use in uses]
        gradients = iter(torch.autograd.grad(loss, written, create_graph=differentiable, materialize_grads=True))
    with torch.set_grad_enabled(differentiable):
        layers = [FilterMeans.apply(layer, *(use.read for use in uses), *islice(gradients, len(uses)))[:rows] for layer, uses in used.items() if uses]
    return Profile(logits.detach()[:rows], layers)


class Use(NamedTuple):
    """One use of a convolution: what it read (B, C, H, W) and what it wrote (B, K, h, w)."""

    read: Tensor
    written: Tensor


@contextmanager
def listening(model: nn.Module) -> Iterator[dict[nn.Conv2d, list[Use]]]:
    """While open, every use of a convolution is listed, and its output carries a gradient. Raises InvalidValue where there is none."""
    layers: dict[nn.Conv2d, list[Use]] = {module: [] for module in model.modules() if isinstance(module, nn.Conv2d)}
    if not layers:
        raise InvalidValue("parameter saliency looks at the filters of convolutions, and this model has none.")

    def listen(layer: nn.Conv2d, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        layers[layer].append(Use(arguments[0], output if output.requires_grad else output.requires_grad_()))
        return output.clone()  # An activation that works in place must not write over what is listed.

    handles = [layer.register_forward_hook(listen) for layer in layers]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def losses(logits: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    """(B,) cross-entropy at the labels (B,), or binary cross-entropy: of one class (B,), or summed over classes (B, K) of 0 and 1.

    log(1 + odds against) keeps its digits where the network is certain and right, and 1 - p has none left.
    """
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").sum(1)
    columns = labels.view(-1, 1)
    against = -logits.gather(1, columns).squeeze(1)
    return F.softplus(against if multi_label else against + logits.scatter(1, columns, -math.inf).logsumexp(1))


def filter_means(convolution: nn.Conv2d, *tensors: Tensor) -> Tensor:
    """(B, K) for each image the mean over a filter's weights of |∂L/∂w|; a convolution used n times comes with n reads and n gradients."""
    weight, uses = convolution.weight.detach(), len(tensors) // 2

    def of_one(*tensors: Tensor) -> Tensor:
        def run(weight: Tensor) -> list[Tensor]:
            return [functional_call(convolution, {"weight": weight}, (read.unsqueeze(0),)) for read in tensors[:uses]]

        _, back = vjp(run, weight)
        (gradient,) = back([each.unsqueeze(0) for each in tensors[uses:]])
        return gradient.abs().flatten(1).mean(1)

    return vmap(of_one, chunk_size=max(1, AT_ONCE // weight.numel()))(*tensors)


class FilterMeans(torch.autograd.Function):
    """`filter_means` for the graph: backward computes it anew, so that no image's weight gradients are kept in between."""

    @staticmethod
    def forward(ctx: Any, convolution: nn.Conv2d, *tensors: Tensor) -> Tensor:
        ctx.convolution = convolution
        ctx.save_for_backward(*tensors)
        return filter_means(convolution, *tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, back = vjp(lambda *tensors: filter_means(ctx.convolution, *tensors), *ctx.saved_tensors)
        return (None, *back(gradient))


# Statistics


class Moments:
    """Mean and standard deviation (n - 1) of rows that come in parts.

    Sums are of differences from the first row, in double precision on the CPU: a filter that never changes gets exactly zero.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Take in (n, K)."""
        rows = rows.detach().cpu().double()
        if not len(rows):
            return
        if self.count == 0:
            self.first, self.sum, self.squares = rows[0], torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        differences = rows - self.first
        self.count += len(rows)
        self.sum += differences.sum(0)
        self.squares += differences.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return (self.first + self.sum / self.count).float()

    @property
    def std(self) -> Tensor:
        """Raises InvalidValue for fewer than two rows."""
        if self.count < 2:
            raise InvalidValue(f"a standard deviation over images needs two at least; there are {self.count}.")
        return ((self.squares - self.sum.square() / self.count).clamp(min=0) / (self.count - 1)).sqrt().float()


def or_one(scale: Tensor) -> Tensor:
    """The scale, and 1 where it is zero, as in the authors' code."""
    return torch.where(scale > 1e-14, scale, torch.ones_like(scale))


def is_multi_label(context: ExplainContext | MetricContext) -> bool:
    return context.info is not None and context.info.multi_label


# The metric


@dataclass(frozen=True)
class FilterSaliency:
    """By how many standard deviations filters are more salient on misclassified images than on correct ones."""

    name: ClassVar[str] = "filter-saliency"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ParameterSaliency.paper
    claim: ClassVar[str] = "formula verified"
    higher_is_better: ClassVar[bool] = True  # The wider the gap, the better the profile tells mistakes from hits.
    category: ClassVar[str] = "parameters"
    unit: ClassVar[str] = "standard deviations"
    needs: ClassVar[tuple[str, ...]] = ("logits",)

    def __call__(self, model: nn.Module, explained: Explained, context: MetricContext) -> Tensor:
        """Returns (B, 1 + L): 1 for a misclassified image, else 0; then for each layer the mean of its filters' saliency."""
        rows = []
        for part in torch.arange(len(explained)).tensor_split(math.ceil(len(explained) / context.chunk)):
            labels = explained.labels[part]
            with untouched(model), counting(model, context.passes):
                found = filter_saliency(model, explained.inputs[part], labels, is_multi_label(context))
            wrong = ~is_correct(explained.logits[part], labels)
            rows.append(torch.stack([wrong.to(found.logits), *(layer.mean(1) for layer in found.layers)], dim=1))
        return torch.cat(rows)

    def values(self, rows: Tensor) -> Tensor:
        """(N,) the mean saliency of an image over all layers."""
        return rows[:, 1:].mean(1)

    def aggregate(self, rows: Tensor) -> float:
        return float(gaps(rows).mean())

    def curve(self, rows: Tensor) -> Curve:
        """The gap of each layer, from the first to the last; empty where it is missing."""
        y = [gap for gap in gaps(rows).tolist() if math.isfinite(gap)]
        x = [float(number) for number, _ in enumerate(y, start=1)]
        return Curve(x, y, "layer", "saliency of misclassified above correct images (standard deviations)")

    def figure(self, model: nn.Module, data: Any, context: ExplainContext | MetricContext, path: Path) -> None:
        """Draw three profiles into a file: naive and standardised filter by filter, and standardised, sorted within each layer.

        `data.batches(size)` gives pairs (inputs, labels). Raises InvalidValue for fewer than two images.
        """
        draw(profiles(model, data, context), path)


def gaps(rows: Tensor) -> Tensor:
    """(L,) by how many standard deviations over all images (N, 1 + L) the misclassified ones lie above the others; NaN if there are none."""
    wrong, layers = rows[:, 0] > 0, rows[:, 1:]
    return (layers[wrong].mean(0) - layers[~wrong].mean(0)) / or_one(layers.std(0))


# The figure


class Columns(NamedTuple):
    """Of each filter (K,): its layer, μ and σ, and its mean on correctly and on wrongly classified images, NaN if there are none."""

    layer: Tensor
    mean: Tensor
    std: Tensor
    right: Tensor
    wrong: Tensor

    def standardised(self, group: Tensor) -> Tensor:
        return (group - self.mean) / or_one(self.std)


def profiles(model: nn.Module, data: Any, context: ExplainContext | MetricContext) -> Columns:
    """The mean profiles of correctly and wrongly classified images, with the statistics of all of them."""
    device = next(model.parameters()).device
    everything, right, wrong = Moments(), Moments(), Moments()
    for inputs, labels in data.batches(context.chunk):
        labels = labels.to(device)
        with untouched(model):
            found = filter_saliency(model, inputs.to(device), labels, is_multi_label(context))
        correct = is_correct(found.logits, labels)
        for moments, rows in ((everything, found.filters), (right, found.filters[correct]), (wrong, found.filters[~correct])):
            moments.add(rows)
    numbers = torch.cat([torch.full((layer.shape[1],), float(number)) for number, layer in enumerate(found.layers, start=1)])
    missing = torch.full_like(numbers, math.nan)
    return Columns(numbers, everything.mean, everything.std, *(group.mean if group.count else missing for group in (right, wrong)))


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) whether the prediction is the label; for multi-label data (B, K), whether every class is right."""
    return ((logits > 0) == labels.bool()).all(1) if labels.ndim == 2 else logits.argmax(1) == labels


def draw(columns: Columns, path: Path) -> None:
    """Three panels, from the first filter to the last; the dashed lines of the last one are means over a layer."""
    from matplotlib.figure import Figure  # Here, so that loading the plugins does not load it; `Figure` leaves pyplot's state alone.

    groups = {"correctly classified": ("tab:blue", columns.right), "misclassified": ("tab:red", columns.wrong)}
    figure = Figure(figsize=(10, 9), layout="constrained")
    naive, standardised, sorted_in_layers = figure.subplots(3, 1, sharex=True)
    for label, (colour, saliency) in groups.items():
        z = columns.standardised(saliency)
        ordered, means = by_layer(z, columns.layer)
        naive.plot(saliency, color=colour, label=label, linewidth=0.5)
        standardised.plot(z, color=colour, label=label, linewidth=0.5)
        sorted_in_layers.plot(ordered, color=colour, label=label, linewidth=1)
        sorted_in_layers.plot(means, color=colour, linestyle="--", linewidth=1)
    naive.set(yscale="log", ylabel="mean |∂L/∂w|", title="Filter by filter, naive")
    standardised.set(ylabel="standard deviations", title="Filter by filter, standardised")
    sorted_in_layers.set(ylabel="standard deviations", xlabel="filter", title="Standardised, sorted within each layer; dashed: mean of the layer")
    ends = (columns.layer.diff() > 0).nonzero().flatten() + 0.5
    for axes in (naive, standardised, sorted_in_layers):
        axes.vlines(ends, 0, 1, transform=axes.get_xaxis_transform(), color="0.85", linewidth=0.5, zorder=0)
    naive.legend()
    figure.savefig(path, dpi=120)


def by_layer(saliency: Tensor, layer: Tensor) -> tuple[Tensor, Tensor]:
    """(K,) twice: sorted from the largest down within each layer, and every filter's layer mean."""
    parts = saliency.split(layer.unique_consecutive(return_counts=True)[1].tolist())
    return torch.cat([part.sort(descending=True).values for part in parts]), torch.cat([part.mean().expand(len(part)) for part in parts])


@hookimpl
def register_explainers(register) -> None:
    register(ParameterSaliency)
    register(ParameterSaliency, name="parameter-saliency-naive", standardise="naive")


@hookimpl
def register_metrics(register) -> None:
    register(FilterSaliency)
