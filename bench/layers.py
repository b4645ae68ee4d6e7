"""Layers: where maps are taken in a network, found by a rule when a model does not say, and how outputs are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.interfaces import Layer

RULE = "the last module at each spatial resolution whose output is a feature map (B, C, h, w); the target layer is the last of them"


def identity_map(output: Tensor) -> Tensor:
    return output


@contextmanager
def recording(layers: Sequence[Layer], change: Callable[[int, Tensor], Tensor] | None = None) -> Iterator[list[Tensor | None]]:
    """While open, every forward leaves each layer's raw output in the list; `change(i, output)` may replace it on its way.

    The hooks are gone when the block ends, whatever happened in it.
    """
    outputs: list[Tensor | None] = [None] * len(layers)

    def hook(position: int) -> Callable[..., Tensor | None]:
        def keep(module: nn.Module, arguments: object, output: Tensor) -> Tensor | None:
            changed = output if change is None else change(position, output)
            outputs[position] = changed
            return None if change is None else changed

        return keep

    handles = [layer.module.register_forward_hook(hook(position)) for position, layer in enumerate(layers)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every submodule is in the mode it had."""
    modes = [(module, module.training) for root in modules for module in root.modules()]
    for root in modules:
        root.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def find_stages(module: nn.Module, image_size: tuple[int, int], channels: int = 3) -> list[Layer]:
    """The ends of a network's blocks by the rule `RULE`, found by one forward of a grey image in eval mode.

    Raises BenchError where no module gives a feature map larger than 1 x 1.
    """
    seen: list[tuple[str, nn.Module, tuple[int, int]]] = []
    handles = []
    for name, inner in module.named_modules():

        def hook(owner: nn.Module, arguments: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1 and output.shape[1] > channels:
                seen.append((name, owner, (output.shape[-2], output.shape[-1])))

        if name:
            handles.append(inner.register_forward_hook(hook))
    weight = next(module.parameters())
    try:
        with evaluating(module), torch.no_grad():
            module(torch.full((2, channels, *image_size), 0.5, device=weight.device, dtype=weight.dtype))
    finally:
        for handle in handles:
            handle.remove()
    last = {size: Layer(name, owner) for name, owner, size in seen}  # Later modules of one resolution replace earlier ones.
    if not last:
        raise BenchError("no module of this model gives a feature map (B, C, h, w). Let the model's plugin say `target_layers` and `stages`.")
    return list(last.values())
