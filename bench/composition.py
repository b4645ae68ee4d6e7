"""Composition: `a+b`, augmenters of which each is applied to what the one before it returned."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from bench import contexts
from bench.errors import InvalidValue
from bench.fills import fill, mean_colour
from bench.interfaces import ArrayData, Batch, Fill, StepContext
from bench.registry import Entry, Registry, ResolvedPart

SIGN = "+"
OF_THE_LAST = ("forward", "loss")  # About the rows as the part returned them, so nothing may come after it.


def resolve(registry: Registry, request: str | Mapping[str, Any]) -> ResolvedPart:
    """An augmenter, or several joined: `"edda+mixup"`, or `{of = ["edda", {name = "mixup", prob = 0.5}], as = "both"}`.

    Raises InvalidValue, with the reason, for augmenters whose joining has no meaning.
    """
    requests = _joined(request)
    if requests is None:
        return registry.resolve("augmenter", request)
    parts = [registry.resolve("augmenter", each) for each in requests]
    label = str(request["as"]) if isinstance(request, Mapping) and "as" in request else SIGN.join(part.label for part in parts)
    if why := _senseless(parts):
        raise InvalidValue(f"augmenter '{label}' has no meaning: {why}")
    plugins, distributions = (", ".join(dict.fromkeys(getattr(part.entry, name) for part in parts)) for name in ("plugin", "distribution"))
    entry = Entry("augmenter", SIGN.join(part.entry.name for part in parts), Composition, {}, plugins, distributions)
    return ResolvedPart(entry, label, Composition(parts), {}, {str(place): part for place, part in enumerate(parts, 1)})


def _joined(request: str | Mapping[str, Any]) -> Sequence[Any] | None:
    """What is to be joined, or None for a single augmenter."""
    given = {"name": request} if isinstance(request, str) else dict(request)
    if "of" in given:
        requests = given["of"]
        if set(given) - {"of", "as"} or not isinstance(requests, (list, tuple)) or len(requests) < 2:
            raise InvalidValue(f'augmenter {_shown(given)}: write {{of = [two augmenters or more], as = "label"}}; each has its own parameters.')
        nested = [_joined(each) or [each] for each in requests]
        return [each for part in nested for each in part]
    names = str(given.get("name", "")).split(SIGN)
    if len(names) == 1:
        return None
    if set(given) - {"name", "as"}:
        parts = ", ".join(f'{{name = "{name.strip()}", …}}' for name in names)
        raise InvalidValue(f"augmenter {_shown(given)}: a composition has no parameters of its own.\nGive them to its parts: {{of = [{parts}]}}")
    if not all(name.strip() for name in names):
        raise InvalidValue(f"augmenter '{given['name']}' names nothing on one side of a '{SIGN}'.")
    return [name.strip() for name in names]


def _shown(given: Mapping[str, Any]) -> str:
    return json.dumps(given, default=str)


def _senseless(parts: Sequence[ResolvedPart]) -> str | None:
    """Why these cannot follow each other, or None."""
    for part in parts:
        if getattr(part.part, "floor", False):
            return f"'{part.label}' is a floor, which does nothing. Leave it out."
        if trainers := getattr(part.part, "trainers", None):
            return f"'{part.label}' is made for trainer {', '.join(trainers)}, which calls it in a way of its own."
    for part in parts[:-1]:
        for method in OF_THE_LAST:
            if hasattr(part.part, method):
                return f"'{part.label}' brings a {method} of its own, for the rows as it returns them, so none can come after it."
    growing, branching = ([part.label for part in parts if has(part.part)] for has in (_grows, _branches))
    if len(growing) > 1:
        return f"'{growing[0]}' and '{growing[1]}' both add images to the training set, each in place of those added before."
    if len(branching) > 1:
        return f"'{branching[0]}' and '{branching[1]}' both send rows through batch norms of their own, which have one number."
    if branching and hasattr(parts[-1].part, "forward"):
        return f"'{branching[0]}' sends rows through batch norms of their own, and the forward that '{parts[-1].label}' brings knows of none."
    return None


def _grows(augmenter: Any) -> bool:
    return hasattr(augmenter, "end_epoch")


def _branches(augmenter: Any) -> bool:
    return bool(getattr(augmenter, "branches", ()))


class Composition:
    """Applies augmenters one after another, each with a random stream and an explainer of its own.

    It has a `forward` or `loss` where its last part has, and an `end_epoch` or `branches` where one part has.
    """

    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""

    def __init__(self, parts: Sequence[ResolvedPart]) -> None:
        self.parts = tuple(parts)
        self.name = SIGN.join(part.entry.name for part in parts)
        claims = {getattr(part.part, "claim", "unverified") for part in parts}
        self.claim = claims.pop() if len(claims) == 1 else "unverified"
        self.branches = next((part.part.branches for part in parts if _branches(part.part)), ())
        last = parts[-1].part
        if hasattr(last, "forward"):
            self.forward = self._forward
        if hasattr(last, "loss"):
            self.loss = last.loss
        if any(_grows(part.part) for part in parts):
            self.end_epoch = self._end_epoch
        if changes := [part.part.changes_model for part in parts if getattr(part.part, "changes_model", None)]:
            self.changes_model = ", ".join(changes)

    def __repr__(self) -> str:
        return f"Composition({', '.join(repr(part.part) for part in self.parts)})"

    def __call__(self, model: nn.Module, batch: Batch, context: StepContext) -> Batch:
        for place, part in enumerate(self.parts):
            batch = part.part(model, batch, self._own(place, model, context))
        return batch

    def _forward(self, model: nn.Module, batch: Batch, context: StepContext) -> Tensor:
        logits: Tensor = self.parts[-1].part.forward(model, batch, self._own(len(self.parts) - 1, model, context))
        return logits

    def _end_epoch(self, model: nn.Module, data: Any, context: StepContext) -> ArrayData | None:
        place = next(place for place, part in enumerate(self.parts) if _grows(part.part))
        added: ArrayData | None = self.parts[place].part.end_epoch(model, data, self._own(place, model, context))
        return added

    def state_dict(self) -> dict[str, Any]:
        """What the parts want kept at a checkpoint, by their places."""
        return {str(place): part.part.state_dict() for place, part in enumerate(self.parts) if hasattr(part.part, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for place, kept in state.items():
            self.parts[int(place)].part.load_state_dict(kept)

    def _own(self, place: int, model: nn.Module, context: StepContext) -> StepContext:
        """The step as one part sees it. Its draws depend on the step, its place and its name, not on what was drawn before it."""
        part = self.parts[place]
        about = ("composition", place, part.entry.name, context.generator.initial_seed())
        stream = contexts.generator(*about)

        def filled(kind: Fill, inputs: Tensor) -> Tensor:
            return fill(kind, inputs, mean_colour(model, inputs.shape[1]), [stream] * len(inputs))

        own = dataclasses.replace(context, generator=stream, fill=filled)
        explainer = next((reference.part for reference in part.references.values() if reference.kind == "explainer"), None)
        if explainer is not None:

            def explained(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
                return context.explain(model, inputs, targets, _Drawing(explainer, (*about, "explain")))

            own.explain = explained
        return own


class _Drawing:
    """An explainer whose draws are those of its place: two parts' explainers do not draw the same."""

    def __init__(self, explainer: Any, about: tuple[Any, ...]) -> None:
        self.explainer, self.about = explainer, about

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: Any) -> Tensor:
        context.generators = contexts.Streams(len(inputs), *self.about)
        maps: Tensor = self.explainer(model, inputs, targets, context)
        return maps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.explainer, name)
