"""The doors of the harness: every dataset, model, method and metric, ours or yours, enters through one of these.

A plugin is a module with one or more functions of these names, each marked with `@bench.hookimpl`. Inside, call
`register(factory)` once for each part. The factory is a frozen dataclass; its fields are the method's parameters with
their defaults; `name`, `version` and `paper` are class attributes. `register(factory, name="other", field=value)`
registers a variant with other defaults under another name.
"""

from __future__ import annotations

from typing import Any, Protocol

import pluggy

GROUP = "bench"  # The entry-point group, and the name of the pluggy project.

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Register(Protocol):
    """`register(factory, *, name=None, **parameters)`: adds a part, or a variant of it with other defaults."""

    def __call__(self, factory: Any, *, name: str | None = None, **parameters: Any) -> None: ...


@hookspec
def register_datasets(register: Register) -> None:
    """Called once at start. Register factories with `load(split, root) -> ImageData`.

    register: adds one dataset. `split` will be "train" or "test"; `root` is the user's data folder or None.
    Items are `Sample(image, label, index, masks, boxes)`; `.info` is a `DatasetInfo` with a fingerprint of the content.
    """


@hookspec
def register_models(register: Register) -> None:
    """Called once at start. Register factories with `build(info) -> nn.Module`, `target_layers(module)`, `stages(module)`.

    register: adds one model. The module takes images (B, C, H, W) in [0, 1] and returns logits (B, K).
    """


@hookspec
def register_trainers(register: Register) -> None:
    """Called once at start. Register factories with `fit(model, data, augmenter, context) -> None`.

    register: adds one way of fitting. The class attribute `fits = False` says that nothing is trained.
    """


@hookspec
def register_augmenters(register: Register) -> None:
    """Called once at start. Register factories that can be called: `(model, batch, context) -> Batch`.

    register: adds one augmenter. The batch may come back with more rows; the model must be left as it was found.
    """


@hookspec
def register_explainers(register: Register) -> None:
    """Called once at start. Register factories that can be called: `(model, inputs, targets, context) -> (B, 1, H, W)`.

    register: adds one explainer. Larger means more evidence for the target; the map is not rescaled.
    """


@hookspec
def register_metrics(register: Register) -> None:
    """Called once at start. Register factories that can be called: `(model, explained, context) -> (B,) or (B, n)`.

    register: adds one metric, with `higher_is_better`, `category`, `unit` and `needs` as class attributes.
    """


@hookspec
def register_noises(register: Register) -> None:
    """Called once at start. Register factories that can be called: `(labels, info, generator) -> labels`.

    register: adds one kind of label noise. Only training labels pass through it.
    """


@hookspec
def register_trackers(register: Register) -> None:
    """Called once at start. Register factories with `started(job)`, `epoch(job, values)`, `finished(job, record)`.

    register: adds one tracker, used when the run names it.
    """
