"""Layer-wise relevance propagation: the logit handed back layer by layer, to each input by its part in the output.

Paper: R_i = sum over j of z_ij / (z_j + e · sign z_j) R_j, with z_ij what input i adds to output j and z_j their sum,
bias included. ReLU hands relevance through. `lrp-gamma` favours, in convolutions and linear layers, what speaks for the
output: where z_j is above zero, gamma times every positive z_ij is added once more, and where it is below, every
negative one.

Choices: one rule for all layers; additions, pooling and batch norm keep the epsilon rule. Relevance passes the model's
normalisation unchanged, so that it counts from the mean colour, as if the network began behind it. Colours are added up.
In networks of ReLUs and max-pooling the epsilon rule with a small epsilon is `input-x-gradient`: choose `lrp-gamma` for
another view of them.

Differs from captum: it has rules for modules alone. An addition, a mean or a ReLU outside modules gets the plain
gradient, which is no relevance, without a word; a module used twice mixes its calls. Here both are errors that name the
place, so residual networks are refused whose additions are no modules (timm's; those of bench-xai are). `nn.Flatten`
and `nn.Identity` are allowed; captum's rules would count an identity behind a ReLU twice. Its gamma rule adds the
positive part of the weights whatever the signs of inputs and outputs: where outputs need not be above zero, before batch
norm or an addition, sums vanish and relevance grows without bound. What captum leaves on the modules is taken away.

Checked against: a two-channel network worked out by hand for both rules; captum's gamma rule where all inputs and
outputs are above zero; `input-x-gradient`, in residual networks as well; the sum.

Cost: two forwards and one backward, and one forward of two images per call for the check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.contexts import pair_up
from bench.errors import InvalidValue
from bench.interfaces import ExplainContext
from bench_plugins._networks import Arithmetic
from bench_plugins.captum_explainers._rows import over_rows

ADVICE = "Choose input-x-gradient, which is the epsilon rule for networks of ReLUs, or deeplift."
REARRANGING = {
    "flatten", "unflatten", "view", "view_as", "reshape", "reshape_as", "squeeze", "unsqueeze", "permute", "transpose", "contiguous",
    "clone", "to", "float", "dropout", "identity",
}  # fmt: skip


@dataclass(frozen=True)
class Lrp:
    """The logit handed back layer by layer, each input getting its part."""

    rule: Literal["epsilon", "gamma"] = "epsilon"
    epsilon: Annotated[float, Field(gt=0)] = 1e-9
    gamma: Annotated[float, Field(ge=0)] = 0.25

    name: ClassVar[str] = "lrp"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = (
        "Bach, Binder, Montavon, Klauschen, Müller, Samek; "
        "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation; PLoS ONE 2015"
    )
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) signed, in logits. Raises InvalidValue for a network with a part that has no rule."""
        check_network(model, pair_up(inputs[:1]))
        return over_rows(partial(self._rows, model), context.chunk, inputs, targets).sum(1, keepdim=True)

    def _rows(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        from captum.attr import LRP

        with left_as_found(model):
            self._set_rules(model)
            return LRP(model).attribute(inputs, targets)

    def _set_rules(self, model: nn.Module) -> None:
        from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule

        for _, module in leaves(model):
            if module is getattr(model, "normalisation", None):
                module.rule = IdentityRule()
            elif isinstance(module, nn.Identity):
                module.rule = unhooked(EpsilonRule)()
            elif self.rule == "gamma" and isinstance(module, (nn.Conv2d, nn.Linear)):
                module.rule = favouring(EpsilonRule, self.gamma)()
            elif has_rule(module):
                module.rule = EpsilonRule(self.epsilon)


def unhooked(library: type) -> type:
    """captum's rule without its hooks, for a module that returns the very tensor it was given: those of input and output would meet on it."""

    class Unhooked(library):
        def forward_hook(self, module: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
            return outputs

    return Unhooked


def favouring(library: type, gamma: float) -> type:
    """captum's rule for outputs to which gamma times all that speaks for their own sign was added once more."""

    class Favouring(library):
        def forward_hook(self, module: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
            above, below = inputs[0].clamp(min=0), inputs[0].clamp(max=0)
            raising, lowering = module.weight.clamp(min=0), module.weight.clamp(max=0)
            speaks_for = weighted(module, above, raising) + weighted(module, below, lowering)
            speaks_against = weighted(module, above, lowering) + weighted(module, below, raising)
            return super().forward_hook(module, inputs, outputs + gamma * torch.where(outputs < 0, speaks_against, speaks_for))

    return Favouring


def weighted(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """What a convolution or a linear layer gives with another weight and no bias, without its hooks."""
    return F.linear(inputs, weight) if isinstance(module, nn.Linear) else module._conv_forward(inputs, weight, None)


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules without children, which is where captum sets its rules."""
    return [(name, module) for name, module in model.named_modules() if name and not list(module.children())]


def has_rule(module: nn.Module) -> bool:
    from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES

    return isinstance(module, Arithmetic) or type(module) in (*SUPPORTED_LAYERS_WITH_RULES, nn.Flatten, nn.Identity)


def check_network(model: nn.Module, inputs: Tensor) -> None:
    """Raises InvalidValue for a module without a rule, one that is used twice, and arithmetic outside modules."""
    from captum.attr._core.lrp import SUPPORTED_NON_LINEAR_LAYERS

    watch = watched(model, inputs)
    for name, module in leaves(model):
        known = has_rule(module) or type(module) in SUPPORTED_NON_LINEAR_LAYERS or module is getattr(model, "normalisation", None)
        if not known:
            raise InvalidValue(f"lrp has no rule for module '{name}', a {type(module).__name__}.\n{ADVICE}")
        if watch.calls[module] > 1:
            raise InvalidValue(f"lrp needs each module to be used once, and this network uses '{name}' {watch.calls[module]} times.\n{ADVICE}")
    if watch.outside:
        raise InvalidValue(f"lrp follows modules, and this network computes {', '.join(watch.outside)} outside them.\n{ADVICE}")


class Watch(TorchFunctionMode):
    """Counts the calls of modules and names the arithmetic done outside those without children."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[nn.Module] = Counter()
        self.inside = 0
        self.outside: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        on_the_way = isinstance(result, Tensor) and result.requires_grad
        if on_the_way and not self.inside and name not in REARRANGING:
            self.outside[name] = None
        return result

    def enter(self, module: nn.Module, arguments: object) -> None:
        self.calls[module] += 1
        self.inside += 1

    def leave(self, module: nn.Module, arguments: object, output: object) -> None:
        self.inside -= 1


def watched(model: nn.Module, inputs: Tensor) -> Watch:
    """One forward under watch."""
    watch, images = Watch(), inputs.detach().clone().requires_grad_()
    modules = [module for _, module in leaves(model)]
    handles = [module.register_forward_pre_hook(watch.enter) for module in modules]
    handles += [module.register_forward_hook(watch.leave) for module in modules]
    try:
        with torch.enable_grad(), watch:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return watch


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Takes away the attributes that captum adds to modules: rules, and the activations it keeps."""
    before = {module: set(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, names in before.items():
            for name in set(vars(module)) - names:
                delattr(module, name)
