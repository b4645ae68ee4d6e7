"""Shared by the model plugins: networks that normalise their images themselves, and weights read from files."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bench.errors import WeightsError
from bench.interfaces import DatasetInfo, Layer
from bench.layers import identity_map, recording

SHOWN = 3  # Tensors that an error names of each kind.
COUNTER = "num_batches_tracked"  # Old files lack it, and it decides nothing.


class Colours(NamedTuple):
    """Mean and standard deviation of the training images' channels, in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, info: DatasetInfo) -> Colours:
        return cls(info.mean, info.std)


IMAGENET = Colours((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Normalisation(nn.Module):
    """From [0, 1] to model space, where the mean colour is zero."""

    def __init__(self, colours: Colours) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(colours.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(colours.std).view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


class Classifier(nn.Module):
    """A network behind its normalisation: [0, 1] images (B, C, H, W) to logits (B, K).

    `stage_names` are submodules of the network, first to last, and maps are taken from the last; here they are called
    `network.layer4`. `input_size` is (H, W) where the network has one.
    """

    def __init__(
        self,
        network: nn.Module,
        colours: Colours,
        stage_names: Sequence[str],
        to_map: Callable[[Tensor], Tensor] = identity_map,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.normalisation = Normalisation(colours)
        self.network = network
        self.stage_names, self.to_map, self.input_size = tuple(stage_names), to_map, input_size

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.normalisation(inputs))

    @property
    def stages(self) -> list[Layer]:
        return [self.layer(name) for name in self.stage_names]

    def layer(self, name: str) -> Layer:
        """A place in the network by its name there, `layer4`."""
        return Layer(f"network.{name}", self.network.get_submodule(name), self.to_map)


class SplitClassifier(Classifier):
    """A classifier of which the part behind the last stage can be run by itself.

    In eval mode `head(features(images))` equals `model(images)`, and `features` is the last stage's output. Explainers that
    change the last maps many times (Ablation-CAM) look for these two methods. `tail(network, maps)` is what the head does.
    """

    def __init__(
        self,
        network: nn.Module,
        colours: Colours,
        stage_names: Sequence[str],
        tail: Callable[[nn.Module, Tensor], Tensor],
        to_map: Callable[[Tensor], Tensor] = identity_map,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(network, colours, stage_names, to_map, input_size)
        self.tail = tail  # Given the network when it is called: a copied model runs its own head.

    def features(self, inputs: Tensor) -> Tensor:
        """The last stage's output: (B, C, h, w), or (B, h, w, C) for a network that keeps its channels last."""
        with recording(self.stages[-1:]) as outputs:
            self.network(self.normalisation(inputs))
        assert outputs[0] is not None
        return outputs[0]

    def head(self, features: Tensor) -> Tensor:
        return self.tail(self.network, features)


class NetworkPart:
    """What every model part here says about its layers."""

    def target_layers(self, module: Classifier) -> list[Layer]:
        """The last stage."""
        return module.stages[-1:]

    def stages(self, module: Classifier) -> list[Layer]:
        return module.stages


class Arithmetic(nn.Module):
    """Sums and rearrangements without weights, as a module of its own: explainers that follow modules see nothing else."""


class Addition(Arithmetic):
    """Where the branches of a block meet."""

    def forward(self, residual: Tensor, carried: Tensor) -> Tensor:
        return residual + carried


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried, with a rectifier of its own after each."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.add = Addition()
        self.relu2 = nn.ReLU()
        self.downsample = shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(inputs)))))
        return self.relu2(self.add(residual, inputs if self.downsample is None else self.downsample(inputs)))


def averaged(network: nn.Module, maps: Tensor) -> Tensor:
    """Logits (B, K) of a residual network's last maps (B, C, h, w): their means through the linear layer."""
    return network.fc(network.avgpool(maps).flatten(1))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a block that changes the shape of its maps: a 1x1 convolution."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def without_in_place(network: nn.Module) -> nn.Module:
    """The network with activations that leave their inputs as they were: explainers read those."""
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return network


# Weights from files


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of one written by `torch.save`, without a `module.` before their names.

    Nothing in the file is run. Raises WeightsError for a file that is not there, holds code, or holds no weights.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    content = _safetensors(path) if _is_safetensors(path) else _unpickled(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{path} holds {_described(content)}, and not tensors by name. Save the weights as `torch.save(model.state_dict(), file)`."
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_weights(model: Classifier, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors read from `path` into the model. Raises WeightsError where they do not fit it.

    A file written by bench brings its normalisation too. One whose tensors have other names fits if it has as many, in the
    same order, of the same shapes, whose names end alike (`bn1.weight`, `_bn0.weight`), and the names in both stand in the same places.
    """
    owner = model if from_bench(tensors) else model.network
    wanted = _without_counters(owner.state_dict())
    given = _without_counters(tensors)
    if given.keys() != wanted.keys() and _same_in_order(given, wanted):
        given = dict(zip(wanted, given.values(), strict=True))
    if problems := _problems(given, wanted):
        raise WeightsError(
            f"{path} does not fit the model.\n" + "\n".join(problems) + "\nGive weights of this architecture, made for this number of classes."
        )
    owner.load_state_dict(given, strict=False)  # Everything but the counters is there.


def from_bench(tensors: Mapping[str, Tensor]) -> bool:
    """Is this the state of a `Classifier`, with its normalisation?"""
    return "normalisation.mean" in tensors


def _is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then a JSON table."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} looks like a safetensors file and cannot be read: {error}.") from None


def _unpickled(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL:? ([\w.]+)", str(error)):
            raise WeightsError(
                f"{path} was refused: to load it, `{code[1]}` would have to be run, and weights are data, never a program.\n"
                "Save the weights alone, as `torch.save(model.state_dict(), file)`, where the file comes from."
            ) from None
        raise _not_weights(path, error) from None
    except Exception as error:  # What is no such file may raise anything.
        raise _not_weights(path, error) from None


def _not_weights(path: Path, error: Exception) -> WeightsError:
    return WeightsError(f"{path} is no file of weights, or is damaged ({type(error).__name__}). Give a safetensors file or a PyTorch state_dict.")


def _described(content: object) -> str:
    if isinstance(content, Mapping) and content:
        return f"a dictionary of {_few(map(str, content))}"
    return f"a {type(content).__name__}"


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}


def _same_in_order(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    def alike(old: str, new: str) -> bool:
        same = given[old].shape == wanted[new].shape and old.split(".")[-1] == new.split(".")[-1]
        return same and (old == new or (old not in wanted and new not in given))

    return len(given) == len(wanted) and all(alike(old, new) for old, new in zip(given, wanted, strict=True))


def _problems(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} is {tuple(given[name].shape)} and should be {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    found = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "other shapes": shapes,
    }
    return [f"  {kind}: {_few(names)}" for kind, names in found.items() if names]


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
