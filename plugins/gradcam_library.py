"""Class-activation maps that pytorch-grad-cam computes: by principal components, by all biases, by class against class.

Paper: with A the maps of a layer and g their gradient. `eigencam` projects A on its first principal component,
`eigengradcam` g · A on its own; `kpca-cam` does what `eigencam` does with a kernel. `gradcam-elementwise` sums
ReLU(g · A). `fullgrad` sums the size of input times gradient and of bias times gradient over all layers. `finercam` is Grad-CAM
of how far the target's logit is above those of the most similar classes, `shapleycam` Grad-CAM with weights
mean(g - H A / 2), H the Hessian by the maps.

Differs from the papers: the maps come as the library gives them, clamped at zero and stretched to [0, 1] per image,
before and after the bilinear upsampling; a constant map is 0. `eigencam`, `eigengradcam` and `kpca-cam` centre the maps
first, and a component has no sign of its own: here it is turned so that it rises with the sum of A (of g · A), not left
to the linear algebra of the machine. `fullgrad` stretches each channel of each layer to [0, 1] before the sum, so all
weigh alike.

Choices: `fullgrad` counts the input from the model's mean colour. `finercam` compares with the three nearest logits,
weighted by their softmax among themselves. `shapleycam` explains the logit plus the log-probability, the library's
`ClassifierOutputReST`: of the bare logit of a linear classifier H is zero.

Differs from pytorch-grad-cam: a layer followed by an in-place ReLU keeps its own maps, where the library sees them
overwritten; its context manager swallows IndexError, so its hooks are taken off here; the gradients that it clears on
the model's weights are put back. `kpca-cam` draws its start vector from the row's generator, where the library takes it
from the global one. `shapleycam` works for layers of tokens. `fullgrad` is refused where biases would be left out or
taken for another layer's, and small gradients do not fade in it.

Checked against: a two-channel network worked out by hand; the library called directly; principal components by another
decomposition; weights of `shapleycam` and `finercam` by torch.func.

Cost: one forward and one backward that ends at the layer; `eigencam` and `kpca-cam` no backward, `fullgrad` a whole
one, `shapleycam` that and one more from the layer on, `finercam` one more forward. The maps are put together in NumPy,
image by image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.contexts import clone_generator, forward, pair_up
from bench.errors import InvalidValue
from bench.interfaces import ExplainContext, Layer
from bench.layers import recording
from bench_plugins._maps import feature_map

FULLGRAD_ROWS = 4  # The library holds every channel of every layer at the image's size.
# The library adds 1e-7 to a channel's maximum before it divides by it. Gradients by the pixels of large maps are no larger, so
# channels would fade by their size; a power of two changes nothing else.
FULLGRAD_SCALE = 2.0**20


@dataclass(frozen=True)
class LibraryCam:
    """What the methods share; each says in `open` which of the library's classes it is."""

    layer: str | None = None

    claim: ClassVar[str] = "formula verified"
    whole_backward: ClassVar[bool] = False

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) in [0, 1], each map stretched to it."""
        layer = context.layer(self.layer, model)
        maps = []
        for start in range(0, len(inputs), context.chunk):
            rows = slice(start, start + context.chunk)
            images, wanted, generators = inputs[rows], targets[rows], context.generators[rows]
            twins = map(clone_generator, generators if len(images) == 1 else [])
            maps.append(self._rows(model, pair_up(images), pair_up(wanted), layer, [*generators, *twins])[: len(images)])
        return torch.cat(maps)

    def _rows(self, model: nn.Module, inputs: Tensor, targets: Tensor, layer: Layer, generators: Sequence[torch.Generator]) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(gradients_kept(model))
            if not self.whole_backward:
                stack.enter_context(recording([layer], lambda _, output: output.detach().requires_grad_()))
            cam = self.open(model, layer, generators)
            stack.enter_context(hooks_removed(getattr(cam, "base_cam", cam).activations_and_grads))
            # The library keeps the layer's own output, and what follows works on a copy: an in-place ReLU would write into the maps.
            stack.enter_context(recording([layer], lambda _, output: output.clone()))
            return as_tensor(cam(inputs.detach(), self.targets(model, inputs, targets)), inputs)

    def open(self, model: nn.Module, layer: Layer, generators: Sequence[torch.Generator]) -> Any:
        """The library's object for this network and layer."""
        raise NotImplementedError

    def targets(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Callable[[Tensor], Tensor]]:
        """What is explained, for each row: a function of its logits."""
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        return [ClassifierOutputTarget(target) for target in targets.tolist()]


@dataclass(frozen=True)
class EigenCam(LibraryCam):
    """The first principal component of the layer's maps; the same for every target."""

    name: ClassVar[str] = "eigencam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Muhammad, Yeasin; Eigen-CAM: Class Activation Map using Principal Components; IJCNN 2020; arXiv:2008.00299"

    def open(self, model: nn.Module, layer: Layer, generators: Sequence[torch.Generator]) -> Any:
        from pytorch_grad_cam import EigenCAM

        return turned(EigenCAM)(model, [layer.module], partial(feature_map, layer))


@dataclass(frozen=True)
class EigenGradCam(LibraryCam):
    """The first principal component of gradient times activation."""

    name: ClassVar[str] = "eigengradcam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Gildenblat and contributors; PyTorch library for CAM methods; 2021"

    def open(self, model: nn.Module, layer: Layer, generators: Sequence[torch.Generator]) -> Any:
        from pytorch_grad_cam import EigenGradCAM

        return turned(EigenGradCAM)(model, [layer.module], partial(feature_map, layer))


@dataclass(frozen=True)
class KpcaCam(LibraryCam):
    """The first kernel principal component of the layer's maps; the same for every target."""

    kernel: Literal["sigmoid", "rbf", "poly", "cosine", "linear"] = "sigmoid"
    gamma: Annotated[float, Field(gt=0)] | None = None  # One over the number of maps if none.

    name: ClassVar[str] = "kpca-cam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Karmani, Sivakaran, Prasad, Ali, Yang, Tang; KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA; "
        "2024; arXiv:2410.00267"
    )

    def open(self, model: nn.Module, layer: Layer, generators: Sequence[torch.Generator]) -> Any:
        from pytorch_grad_cam import KPCA_CAM

        return turned(seeded(KPCA_CAM, generators))(model, [layer.module], partial(feature_map, layer), self.kernel, self.gamma)


@dataclass(frozen=True)
class GradCamElementWise(LibraryCam):
    """The positive part of gradient times activation, element by element, added up over the maps."""

    name: ClassVar[str] = "gradcam-elementwise"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Gildenblat and contributors; PyTorch library for CAM methods; 2021"

    def open(self, model: nn.Module, layer: Layer, generators: Sequence[torch.Generator]) -> Any:
        from pytorch_grad_cam import GradCAMElementWise

        return GradCAMElementWise(model, [layer.module], partial(feature_map, layer))


@dataclass(frozen=True)
class FinerCam(LibraryCam):
    """Grad-CAM of what sets the target apart from the classes most similar to it."""

    comparisons: Annotated[int, Field(ge=1)] = 3
    strength: Annotated[float, Field(ge=0)] = 1.0

    name: ClassVar[str] = "finercam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = (
        "Zhang, Gu, Chowdhury, Mai, Carlyn, Berger-Wolf, Su, Chao; "
        "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation; CVPR 2025; arXiv:2501.11309"
    )

    def open(self, model: nn.Module, layer: Layer, generators: Sequence[torch.Generator]) -> Any:
        from pytorch_grad_cam import FinerCAM

        return FinerCAM(model, [layer.module], partial(feature_map, layer))

    def targets(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Callable[[Tensor], Tensor]]:
        logits = forward(model, inputs, len(inputs))
        distance = (logits - logits.gather(1, targets.view(-1, 1))).abs().scatter(1, targets.view(-1, 1), -1)
        similar = distance.argsort(dim=1, stable=True)[:, 1 : 1 + self.comparisons]  # The target itself comes first.
        return [self._above(target, others) for target, others in zip(targets.tolist(), similar, strict=True)]

    def _above(self, target: int, others: Tensor) -> Callable[[Tensor], Tensor]:
        def difference(logits: Tensor) -> Tensor:
            # Among themselves: the library's shares of the full softmax round to zero beside a confident target.
            weights = logits[others].softmax(0)
            return (weights * (logits[target] - self.strength * logits[others])).sum()

        return difference


@dataclass(frozen=True)
class ShapleyCam(LibraryCam):
    """Grad-CAM with the second-order term of the Shapley value in its weights."""

    name: ClassVar[str] = "shapleycam"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Cai; CAMs as Shapley Value-based Explainers; 2025; arXiv:2501.06261"
    whole_backward: ClassVar[bool] = True  # The library asks for the gradient by the pixels, with a graph of its own.

    def open(self, model: nn.Module, layer: Layer, generators: Sequence[torch.Generator]) -> Any:
        from pytorch_grad_cam import ShapleyCAM

        return mapped(ShapleyCAM)(model, [layer.module], partial(feature_map, layer))

    def targets(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Callable[[Tensor], Tensor]]:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST

        return [ClassifierOutputReST(target) for target in targets.tolist()]


@dataclass(frozen=True)
class FullGrad:
    """Input times gradient and bias times gradient, their sizes added up over all layers."""

    name: ClassVar[str] = "fullgrad"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Srinivas, Fleuret; Full-Gradient Representation for Neural Network Visualization; NeurIPS 2019; arXiv:1905.00780"
    claim: ClassVar[str] = "formula verified"

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor, context: ExplainContext) -> Tensor:
        """(B, 1, H, W) in [0, 1]. Raises InvalidValue for a network whose biases the library would not count right."""
        network = FromColour(model, context.fill("mean", inputs)[:1])
        rows = min(context.chunk, FULLGRAD_ROWS)
        parts = zip(inputs.split(rows), targets.split(rows), strict=True)
        return torch.cat([self._rows(network, pair_up(images), pair_up(wanted))[: len(images)] for images, wanted in parts])

    def _rows(self, network: FromColour, inputs: Tensor, targets: Tensor) -> Tensor:
        import pytorch_grad_cam

        logits = [partial(scaled_logit, target) for target in targets.tolist()]
        with gradients_kept(network), biases_checked(network):
            cam = pytorch_grad_cam.FullGrad(network, [])
            with hooks_removed(cam.activations_and_grads):
                return as_tensor(cam(inputs - network.colour, logits), inputs)


def scaled_logit(target: int, logits: Tensor) -> Tensor:
    return FULLGRAD_SCALE * logits[target]


class FromColour(nn.Module):
    """A network as a function of the distance from a colour (1, C, H, W)."""

    def __init__(self, model: nn.Module, colour: Tensor) -> None:
        super().__init__()
        self.model, self.colour = model, colour

    def forward(self, distance: Tensor) -> Tensor:
        return self.model(distance + self.colour)


@contextmanager
def biases_checked(network: nn.Module) -> Iterator[None]:
    """While open, a forward raises InvalidValue where the library would leave biases out or take them for another layer's.

    It counts `Conv2d` and `BatchNorm2d` alone, and pairs them in the order of definition with gradients in the order of execution.
    """
    counted = [module for module in network.modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d) and module.bias is not None]
    called: list[nn.Module] = []

    def note(module: nn.Module, arguments: object, output: Tensor) -> None:
        if output.ndim > 2:  # What comes after the pooling has no place in the image.
            called.append(module)

    def compare(*_: object) -> None:
        for module, expected in zip_longest(called, counted):
            if module is not expected:
                odd = module or expected
                name = next(name for name, other in network.named_modules() if other is odd).removeprefix("model.")
                raise InvalidValue(
                    "fullgrad counts the biases of Conv2d and BatchNorm2d, each used once and in the order of definition. "
                    f"'{name}', a {type(odd).__name__}, breaks that.\nChoose eigengradcam or gradcam."
                )

    handles = [module.register_forward_hook(note) for module in network.modules() if has_bias(module)]
    handles.append(network.register_forward_hook(compare))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def has_bias(module: nn.Module) -> bool:
    """A batch norm without a `bias` shifts by its mean all the same."""
    return isinstance(getattr(module, "bias", None), Tensor) or isinstance(module, nn.modules.batchnorm._BatchNorm)


@contextmanager
def hooks_removed(saver: Any) -> Iterator[None]:
    """Takes the library's hooks off, whatever happened."""
    # Not by its own context manager: that one swallows IndexError, and stops before the hooks where an activation is a view.
    try:
        yield
    finally:
        saver.activations.clear()
        saver.gradients.clear()
        for handle in saver.handles:
            handle.remove()
        saver.handles.clear()


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Puts back the `.grad` of the weights, which the library sets to None."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def numpy_stream(generator: torch.Generator) -> Iterator[None]:
    """NumPy's global stream starts from a draw of the generator, and is as it was afterwards."""
    state = np.random.get_state()
    np.random.seed(int(torch.randint(2**32, (), generator=generator)))
    try:
        yield
    finally:
        np.random.set_state(state)


def turned(library: type) -> type:
    """The library's class with each component turned to rise with the sum of what it is a component of."""

    class Turned(library):
        def get_cam_image(self, inputs: Any, layer: Any, targets: Any, maps: np.ndarray, gradients: np.ndarray | None, smooth: bool) -> np.ndarray:
            component = super().get_cam_image(inputs, layer, targets, maps, gradients, smooth)  # (B, h, w)
            total = (maps if gradients is None else gradients * maps).sum(1)
            agreement = (component * (total - total.mean((1, 2), keepdims=True))).sum((1, 2), keepdims=True)
            return np.where(agreement < 0, -component, component)

    return Turned


def mapped(library: type) -> type:
    """The library's class with the layer's maps brought into their shape before they are weighted, which it forgets."""

    class Mapped(library):
        def get_cam_image(self, inputs: Any, layer: Any, targets: Any, maps: Tensor, gradients: Tensor, smooth: bool) -> np.ndarray:
            weights = self.get_cam_weights(inputs, layer, targets, maps, gradients)  # (B, C)
            return (weights[:, :, None, None] * self.activations_and_grads.reshape_transform(maps).detach().cpu().numpy()).sum(1)

    return Mapped


def seeded(library: type, generators: Sequence[torch.Generator]) -> type:
    """The library's class, row by row with a random stream of its own."""

    class Seeded(library):
        def get_cam_image(self, inputs: Any, layer: Any, targets: Any, maps: np.ndarray, gradients: np.ndarray | None, smooth: bool) -> np.ndarray:
            rows = []
            for row, generator in zip(np.split(maps, len(maps)), generators, strict=True):
                with numpy_stream(generator):
                    # Of maps that are the same at every pixel there is no component, and the solver fails.
                    even = (np.ptp(row, axis=(2, 3)) == 0).all()
                    rows.append(np.zeros_like(row[:, 0]) if even else super().get_cam_image(inputs, layer, targets, row, gradients, smooth))
            return np.concatenate(rows)

    return Seeded


def as_tensor(maps: np.ndarray, like: Tensor) -> Tensor:
    """(B, 1, H, W) of (B, H, W)."""
    return torch.from_numpy(maps)[:, None].to(like)


@hookimpl
def register_explainers(register: Any) -> None:
    for factory in (EigenCam, EigenGradCam, KpcaCam, GradCamElementWise, FinerCam, ShapleyCam, FullGrad):
        register(factory)
