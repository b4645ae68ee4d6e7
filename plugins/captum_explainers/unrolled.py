"""A network as captum has to see it: every call of an activation goes through a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Arguments, Options = Sequence[Any], Mapping[str, Any]
Takes = Callable[[str, Arguments, Options], bool]
Reroute = Callable[[Callable[..., Tensor], Tensor, Arguments, Options], Tensor]


class Unrolled(nn.Module):
    """Runs a network with each call of an activation that `takes` names handed to a fresh module.

    captum changes the backward of the modules that it finds. It does not see `F.relu`, mixes up the calls of a module that
    is used twice, and changes a skip connection's gradient along with that of an activation with the same input. None of
    that can happen to a module that exists for one call and is fed a copy. `seen` holds the names of the functions on the
    way from the pixels to the logits, `joining` those that take two tensors from there.
    """

    def __init__(self, model: nn.Module, takes: Takes, instead: Mapping[str, Reroute] | None = None) -> None:
        super().__init__()
        self.network = [model]  # In a list, so that captum does not find the network's own modules.
        self.takes, self.instead = takes, instead or {}
        self.seen: set[str] = set()
        self.joining: set[str] = set()
        self.taken = 0
        self.set_hooks: Callable[[nn.Module], None] = lambda module: None

    def apply(self, fn: Callable[[nn.Module], None]) -> Unrolled:
        """captum's way to its hooks. The modules are made during the forward, so it is kept until then."""
        self.set_hooks = fn
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        with Rerouting(self):
            return self.network[0](inputs)

    def call(self, function: Callable[..., Tensor], inputs: Tensor, rest: Arguments, options: Options) -> Tensor:
        """One call of an activation, as a module."""
        self.taken += 1
        # captum goes by the exact type, and its rule for ReLU needs no more than input and output.
        module = nn.ReLU()
        module.forward = lambda tensor: function(tensor, *rest, **options)
        self.set_hooks(module)
        output = module(inputs.clone())
        return inputs.copy_(output) if options.get("inplace") or function.__name__.endswith("_") else output


class Rerouting(TorchFunctionMode):
    """Sees every torch function that a network calls, inside modules and outside."""

    def __init__(self, owner: Unrolled) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = getattr(func, "__name__", "").rstrip("_"), dict(kwargs or {})
        arguments = args if args or "input" not in options else (options.pop("input"),)
        if not (arguments and depends_on_pixels(arguments[0])):
            return func(*arguments, **options)
        self.owner.seen.add(name)
        if any(depends_on_pixels(other) for other in arguments[1:]):
            self.owner.joining.add(name)
        if name in self.owner.instead:
            return self.owner.instead[name](func, arguments[0], arguments[1:], options)
        if self.owner.takes(name, arguments, options):
            return self.owner.call(func, arguments[0], arguments[1:], options)
        return func(*arguments, **options)


def depends_on_pixels(value: Any) -> bool:
    # The harness lets no parameter ask for a gradient while it explains.
    return isinstance(value, Tensor) and value.requires_grad


def is_relu(name: str, arguments: Arguments, options: Options) -> bool:
    """ReLU by its own name, or written as a clamp at zero from below."""
    if name in ("relu", "clamp_min"):
        return name == "relu" or _bound(arguments, options, 1, "min") == 0
    return name in ("clamp", "clip") and _bound(arguments, options, 1, "min") == 0 and _bound(arguments, options, 2, "max") is None


def _bound(arguments: Arguments, options: Options, position: int, name: str) -> Any:
    value = arguments[position] if len(arguments) > position else options.get(name)
    return None if isinstance(value, Tensor) else value
