"""Contexts: what the harness hands to explainers, augmenters and metrics, made in one place and leaving no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.fills import fill, mean_colour
from bench.interfaces import DatasetInfo, ExplainContext, Explained, Fill, Layer, MetricContext, Passes, StepContext
from bench.keys import derived_seed
from bench.layers import evaluating, recording


def generator(*parts: Any) -> torch.Generator:
    """A CPU generator whose stream depends on the parts alone."""
    return torch.Generator().manual_seed(derived_seed(*parts))


class Streams(Sequence[torch.Generator]):
    """One generator per row, each made when it is first asked for: most explainers draw nothing."""

    def __init__(self, rows: int, *parts: Any) -> None:
        self.rows, self.parts = rows, parts
        self.made: dict[int, torch.Generator] = {}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(self.rows))]
        if not -self.rows <= row < self.rows:
            raise IndexError(row)
        row %= self.rows
        if row not in self.made:
            self.made[row] = generator(*self.parts, row)
        return self.made[row]


def probability_for(info: DatasetInfo) -> Callable[[Tensor], Tensor]:
    """Softmax over classes, or a sigmoid per class for multi-label data."""
    return torch.sigmoid if info.multi_label else lambda logits: logits.softmax(1)


@contextmanager
def counting(model: nn.Module, passes: Passes) -> Iterator[Passes]:
    """While open, every image through the whole model, forward or backward, is counted."""

    def seen(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        passes.forward += len(output)
        if output.requires_grad:
            rows = len(output)
            output.register_hook(lambda gradient: passes.add(backward=rows))

    handle = model.register_forward_hook(seen)
    try:
        yield passes
    finally:
        handle.remove()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode, parameters that ask for no gradient, and everything as it was afterwards.

    Gradients still flow to inputs and activations; `.grad` of the parameters cannot be written.
    """
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with evaluating(model):
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, required in asked:
                parameter.requires_grad_(required)


def forward(model: nn.Module, inputs: Tensor, chunk: int) -> Tensor:
    """Logits (B, K) without gradient, at most `chunk` images at a time; a chunk of one goes through as two.

    One image alone takes other kernels and was measured to move a map by 7e-7, which re-orders pixels.
    """
    with torch.no_grad():
        return torch.cat([model(pair_up(part))[: len(part)] for part in inputs.split(chunk)])


def pair_up(rows: Tensor) -> Tensor:
    """A lone row twice; anything else unchanged."""
    return rows.repeat(2, *[1] * (rows.ndim - 1)) if len(rows) == 1 else rows


def explain_context(
    model: nn.Module,
    info: DatasetInfo,
    target_layers: Sequence[Layer],
    stages: Sequence[Layer],
    generators: Sequence[torch.Generator],
    chunk: int = 32,
    state: Any = None,
) -> ExplainContext:
    """The context of one call of an explainer; `generators` holds one per row."""
    passes = Passes()

    def filled(kind: Fill, inputs: Tensor) -> Tensor:
        return fill(kind, inputs, mean_colour(model, inputs.shape[1]), context.generators)  # `explain` may have doubled them.

    context = ExplainContext(target_layers, stages, probability_for(info), filled, generators, chunk, state, passes, info)
    return context


def explain(model: nn.Module, explainer: Any, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
    """Run an explainer so that it leaves no trace: (B, 1, H, W) float32, detached.

    Raises ValueError where the explainer returns another shape or something that is not finite.
    """
    rows = len(inputs)
    context.chunk = max(2, context.chunk)  # Two rows made of one are not to be parted again.
    if rows == 1:  # See `forward`.
        inputs, targets = pair_up(inputs), pair_up(targets)
        context.generators = [context.generators[0], clone_generator(context.generators[0])]
    with untouched(model), torch.enable_grad(), counting(model, context.passes):
        attributions: Tensor = explainer(model, inputs.detach(), targets, context).detach().float()[:rows]
    if attributions.shape != (rows, 1, *inputs.shape[2:]):
        raise ValueError(f"the explainer returned {tuple(attributions.shape)}; (B, 1, H, W) = {(rows, 1, *inputs.shape[2:])} is asked for")
    if not attributions.isfinite().all():
        raise ValueError("the explainer returned values that are not finite")
    return attributions


def clone_generator(source: torch.Generator) -> torch.Generator:
    twin = torch.Generator()
    twin.set_state(source.get_state())
    return twin


def step_context(
    model: nn.Module,
    info: DatasetInfo,
    target_layers: Sequence[Layer],
    stages: Sequence[Layer],
    explainer: Any = None,
    *,
    key: str = "",
    epoch: int = 0,
    epochs: int = 1,
    step: int = 0,
    progress: float = 0.0,
    class_counts: Sequence[int] | None = None,
    chunk: int = 1024,
    log: Callable[..., None] = lambda **values: None,
) -> StepContext:
    """The context of one augmenter call; its random stream depends on key, epoch and step alone."""
    own = generator(key, "augmenter", epoch, step)

    def explained(model: nn.Module, inputs: Tensor, targets: Tensor, with_explainer: Any = explainer) -> Tensor:
        streams = Streams(len(inputs), key, "explain", epoch, step)
        context = explain_context(model, info, target_layers, stages, streams, chunk)
        return explain(model, with_explainer, inputs, targets, context) if len(inputs) else inputs.new_zeros(0, 1, *inputs.shape[2:])

    def predict(model: nn.Module, inputs: Tensor) -> Tensor:
        with evaluating(model):
            return forward(model, inputs, chunk) if len(inputs) else inputs.new_zeros(0, info.num_classes)

    def features(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        with untouched(model), torch.enable_grad(), recording(stages) as outputs:
            logits = model(inputs)  # Not paired: what is handed out is what the logits depend on.
        return logits, [stage.to_map(output) for stage, output in zip(stages, outputs, strict=True) if output is not None]

    def filled(kind: Fill, inputs: Tensor) -> Tensor:
        return fill(kind, inputs, mean_colour(model, inputs.shape[1]), [own] * len(inputs))

    counts = tuple(class_counts or info.class_counts)
    return StepContext(epoch, epochs, step, progress, own, info, counts, explained, predict, features, filled, stages, log)


class SharedForwards:
    """Masked images of one batch, forwarded once for all metrics that ask for them.

    A state is (count, fill, keep): the `count` most important pixels kept (or hidden) and the others hidden (or kept).
    Hiding nothing is the original, whose probability is known; keeping nothing is hiding everything.
    """

    def __init__(
        self,
        explained: Explained,
        probability: Callable[[Tensor], Tensor],
        predict: Callable[[Tensor], Tensor],
        filled: Callable[[Fill, Tensor], Tensor],
        chunk: int,
    ) -> None:
        self.explained, self.probability, self.predict, self.filled, self.chunk = explained, probability, predict, filled, chunk
        self.known: dict[tuple[int, Fill | None], Tensor] = {}
        self.pixels = explained.inputs.shape[-1] * explained.inputs.shape[-2]
        self._ranks: Tensor | None = None
        self._fills: dict[Fill, Tensor] = {}

    def __call__(self, counts: Sequence[int], fill: Fill, keep: bool) -> Tensor:
        """(B, len(counts)) probabilities of the targets. Raises ValueError for a count outside 0 … H·W."""
        states = [self._state(int(count), fill, keep) for count in counts]
        self._forward(dict.fromkeys(state for state in states if state not in self.known))
        return torch.stack([self.known[state] for state in states], dim=1)

    def _state(self, count: int, fill: Fill, keep: bool) -> tuple[int, Fill | None]:
        """One name per image state: a positive number of pixels hidden from the top, a negative one kept from the top."""
        if not 0 <= count <= self.pixels:
            raise ValueError(f"{count} pixels of {self.pixels} cannot be {'kept' if keep else 'hidden'}")
        if count == (self.pixels if keep else 0):
            return (0, None)
        if keep:
            return (-count, fill) if count else (self.pixels, fill)
        return (count, fill)

    def _forward(self, states: Mapping[tuple[int, Fill | None], None]) -> None:
        if (0, None) in states:
            self.known[0, None] = self._of_target(self.explained.logits, torch.arange(len(self.explained)))
        todo = [state for state in states if state[1] is not None]
        jobs = [(row, state) for row in range(len(self.explained)) for state in todo]  # An image's states lie together.
        scores: list[Tensor] = []
        for start in range(0, len(jobs), self.chunk):
            part = jobs[start : start + self.chunk]
            rows = torch.tensor([row for row, _ in part])
            scores.append(self._of_target(self.predict(self._images(part, rows)), rows))
        if todo:
            table = torch.cat(scores).view(len(self.explained), len(todo))
            self.known.update({state: table[:, column] for column, state in enumerate(todo)})

    def _images(self, part: Sequence[tuple[int, tuple[int, Fill | None]]], rows: Tensor) -> Tensor:
        inputs = self.explained.inputs
        rows = rows.to(inputs.device)
        (fill,) = {state[1] for _, state in part}  # One call asks for one fill.
        limits = torch.tensor([state[0] for _, state in part], dtype=torch.int32, device=inputs.device).view(-1, 1, 1, 1)
        shown = (self.ranks.index_select(0, rows) >= limits.abs()).logical_xor_(limits < 0)  # (n, 1, H, W): all but the top ones, or those alone.
        hidden = self._fill(fill)
        hidden = hidden[:1] if hidden.stride(0) == 0 else hidden[rows]  # One colour for all images need not be copied.
        images = inputs[rows]
        return torch.where(shown, images, hidden, out=images)

    @property
    def ranks(self) -> Tensor:
        """(B, 1, H, W) each pixel's place in the order of importance; equal ones by position."""
        if self._ranks is None:
            if self.explained.attributions is None:
                raise ValueError("this metric ranks pixels and there are no attributions")
            flat = self.explained.attributions.flatten(1)
            order = flat.argsort(dim=1, descending=True, stable=True)
            places = torch.arange(self.pixels, dtype=torch.int32, device=flat.device).expand_as(order)
            self._ranks = torch.empty_like(order, dtype=torch.int32).scatter_(1, order, places).view_as(self.explained.attributions)
        return self._ranks

    def _fill(self, fill: Fill | None) -> Tensor:
        assert fill is not None
        if fill not in self._fills:
            self._fills[fill] = self.filled(fill, self.explained.inputs)
        return self._fills[fill]

    def _of_target(self, logits: Tensor, rows: Tensor) -> Tensor:
        targets = self.explained.targets[rows.to(self.explained.targets.device)]
        return self.probability(logits).gather(1, targets.view(-1, 1)).squeeze(1)


def metric_context(
    model: nn.Module,
    explained: Explained,
    info: DatasetInfo,
    generators: Sequence[torch.Generator],
    target_layers: Sequence[Layer] = (),
    stages: Sequence[Layer] = (),
    explainer: Any = None,
    *,
    chunk: int = 32,
    state: Any = None,
    training: Mapping[str, Any] | None = None,
    floor_training: Mapping[str, Any] | None = None,
    explain_cost: Mapping[str, Any] | None = None,
) -> MetricContext:
    """The context of the metrics scored on one batch. The model is to be in eval mode."""
    passes = Passes()
    probability = probability_for(info)

    def predict(inputs: Tensor) -> Tensor:
        with counting(model, passes):
            return forward(model, inputs, chunk)

    def filled(kind: Fill, inputs: Tensor) -> Tensor:
        return fill(kind, inputs, mean_colour(model, inputs.shape[1]), [clone_generator(each) for each in generators])

    def explain_again(inputs: Tensor, targets: Tensor) -> Tensor:
        context = explain_context(model, info, target_layers, stages, [clone_generator(each) for each in generators][: len(inputs)], chunk, state)
        return explain(model, explainer, inputs, targets, context)

    return MetricContext(
        probability=probability,
        predict=predict,
        masked_probabilities=SharedForwards(explained, probability, predict, filled, chunk),
        fill=filled,
        generators=generators,
        info=info,
        target_layers=target_layers,
        stages=stages,
        chunk=chunk,
        passes=passes,
        explain=None if explainer is None else explain_again,
        training=training,
        floor_training=floor_training,
        explain_cost=explain_cost,
    )
