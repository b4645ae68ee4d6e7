"""Any network of timm by its name, with its own input size and normalisation: `timm:convnext_tiny`, `timm:vit_tiny_patch16_224`.

Paper: none of its own; timm's page of each architecture names it.

Choices: networks start untrained, for nothing is downloaded; `weights` loads a file. `normalisation = "auto"` and the input size
are those of timm's configuration for the name, tag included; `input_size` asks for another size. Activations are not in place;
timm's residual networks have a rectifier for each use. Layers are found by one forward of the untaught network. Of the modules that
timm lists as feature stages, and the one whose output the classifier's head receives, the last at each resolution is a stage, and
the last stage is the target layer: `layer4` of a ResNet, `bn2` of an EfficientNet, `stages.3` of a ConvNeXt, `norm` of a Swin. A
vision transformer has four stages, the first normalisations (`norm1`) in the blocks at the ends of its quarters: after the last of
them attention still carries the patches to the class token, after the block nothing does. Class and register tokens are dropped and
the patches laid out as a map; channels are moved first where a network keeps them last. `layer` names another target layer.
Networks whose tokens lie in no grid that timm states (XCiT, LeViT, PiT, Hiera) are refused, unless `layer` names one of their maps.

Checked against: tokens laid out by hand, the layers named above, and, for networks with maps, the head run alone. A published
EfficientNet-Lite0, whose file has other names for the same tensors, reaches its accuracy.

Cost: the network's own. Building takes two forwards of one image more than timm does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from bench import hookimpl
from bench.errors import InvalidValue, did_you_mean
from bench.hookspecs import Register
from bench.interfaces import DatasetInfo, Layer, WeightsFile
from bench.keys import file_digest
from bench.layers import evaluating
from bench_plugins._networks import (
    IMAGENET,
    Classifier,
    Colours,
    NetworkPart,
    SplitClassifier,
    load_weights,
    read_weights,
    without_in_place,
)

QUARTERS = 4


@dataclass(frozen=True)
class ToMap:
    """Feature maps (B, C, h, w) of tokens (B, N, C), of which the last h x w are patches, or of maps with the channels last."""

    grid: tuple[int, int] | None  # Patches down and across; None where the network has no one grid of them.
    other_tokens: int  # Class and register tokens: they come first in the layers that have them.
    channels_last: bool

    def __call__(self, output: Tensor) -> Tensor:
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self.channels_last else output
        assert self.grid is not None
        patches = output[:, output.shape[1] - math.prod(self.grid) :]  # (B, h * w, C)
        return patches.transpose(1, 2).unflatten(2, self.grid)

    def takes(self, output: object) -> bool:
        """Is this, for one image, the output of a layer with a map larger than 1 x 1?"""
        if not isinstance(output, Tensor) or len(output) != 1:  # More rows are windows of the image.
            return False
        if output.ndim == 3:
            return self.grid is not None and output.shape[1] - math.prod(self.grid) in (0, self.other_tokens)
        return output.ndim == 4 and min(self(output).shape[2:]) > 1


class Found(NamedTuple):
    """What one forward of an untaught network showed: the stages, and whether the head takes what the last of them gives."""

    stages: list[str]
    split: bool


@dataclass(frozen=True)
class Timm(NetworkPart):
    """A network of timm, named after the colon: `timm:resnet26`."""

    architecture: str
    input_size: Annotated[int, Field(ge=8)] | None = None
    normalisation: Literal["auto", "dataset", "imagenet"] = "auto"
    layer: str | None = None
    weights: WeightsFile = None

    name: ClassVar[str] = "timm"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = ""
    claim: ClassVar[str] = "formula verified"
    argument: ClassVar[str] = "architecture"

    def build(self, info: DatasetInfo) -> Classifier:
        import timm

        config = configuration(self.architecture)
        size = self._size(config)
        options: dict[str, Any] = {"img_size": size} if self.input_size and config["fixed_input_size"] else {}
        with errors_of_timm(self.architecture, size):
            network = without_in_place(timm.create_model(self.architecture, pretrained=False, num_classes=info.num_classes, **options))
            outputs, behind = looked_through(network, size)
        to_map = to_map_of(network)
        stages, split = self._found(network, to_map, outputs, behind)
        colours = self._colours(config) or Colours.of(info)
        if split:
            model: Classifier = SplitClassifier(network, colours, stages, timm_head, to_map, size)
        else:
            model = Classifier(network, colours, stages, to_map, size)
        if self.weights is not None:
            load_weights(model, read_weights(self.weights), self.weights)
        return model

    def target_layers(self, module: Classifier) -> list[Layer]:
        return super().target_layers(module) if self.layer is None else [module.layer(self.layer)]

    def identity(self) -> dict[str, Any]:
        """The architecture with all that its name and "auto" stand for, and the content of the weights."""
        config = configuration(self.architecture)
        colours = self._colours(config)
        return {
            "architecture": self.architecture,
            "input_size": list(self._size(config)),
            "normalisation": "dataset" if colours is None else {"mean": list(colours.mean), "std": list(colours.std)},
            "layer": self.layer,
            "weights": None if self.weights is None else file_digest(self.weights),
        }

    def _size(self, config: Mapping[str, Any]) -> tuple[int, int]:
        height, width = config["input_size"][1:]
        return (self.input_size, self.input_size) if self.input_size else (height, width)

    def _colours(self, config: Mapping[str, Any]) -> Colours | None:
        """None for the dataset's."""
        if self.normalisation == "dataset":
            return None
        return IMAGENET if self.normalisation == "imagenet" else Colours(tuple(config["mean"]), tuple(config["std"]))

    def _found(self, network: nn.Module, to_map: ToMap, outputs: Mapping[str, object], behind: Tensor | None) -> Found:
        if self.layer is not None and not to_map.takes(outputs.get(self.layer)):
            raise InvalidValue(
                f"timm:{self.architecture} has no feature map at layer '{self.layer}'.{did_you_mean(self.layer, outputs)}\n"
                f"Its last layers with one: {', '.join([name for name in outputs if to_map.takes(outputs[name])][-4:])}"
            )
        stages = token_stages(network, outputs, to_map) or map_stages(network, outputs, behind, to_map)
        if not stages and self.layer is None:
            raise InvalidValue(
                f"no layer of timm:{self.architecture} is known to give a feature map.\n"
                "If one does, name it: `layer`. Otherwise choose another architecture."
            )
        stages = stages or [str(self.layer)]
        return Found(stages, behind is not None and outputs[stages[-1]] is behind)


def configuration(architecture: str) -> dict[str, Any]:
    """timm's input size, mean and standard deviation for a name, and whether another size must be said when building.

    Raises InvalidValue for a name that timm does not have.
    """
    import timm  # Not at the top: it takes half a second, and most runs have no need of it.

    base = architecture.split(".")[0]
    if not timm.is_model(base):
        raise InvalidValue(f"timm has no model '{architecture}'.{did_you_mean(base, timm.list_models())}\nAll names: `timm.list_models()`.")
    try:
        given = timm.get_pretrained_cfg(architecture)
    except RuntimeError:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
        raise InvalidValue(f"timm's '{base}' has no configuration '{architecture}'. There are: {', '.join(tags) or 'none'}") from None
    values = {} if given is None else given.to_dict()
    return {**timm.data.resolve_data_config({}, pretrained_cfg=values), "fixed_input_size": bool(values.get("fixed_input_size"))}


@contextmanager
def errors_of_timm(architecture: str, size: tuple[int, int]) -> Iterator[None]:
    """What timm says of a size that an architecture cannot have, as an error in what was asked for."""
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidValue(f"timm:{architecture} cannot be built for images of {size[0]}x{size[1]}: {error}") from error


def to_map_of(network: nn.Module) -> ToMap:
    embedding = getattr(network, "patch_embed", None) or getattr(network, "stem", None)
    grid = getattr(embedding, "grid_size", None)
    return ToMap(grid, getattr(network, "num_prefix_tokens", 0) or 0, getattr(network, "output_fmt", "NCHW") == "NHWC")


@torch.no_grad()
def looked_through(network: nn.Module, size: tuple[int, int]) -> tuple[dict[str, object], Tensor | None]:
    """Every submodule's output for one image, by name in the order of their ends, and what the classifier head receives.

    The second is None where the head does not make the logits of it.
    """
    image = torch.linspace(-1, 1, 3 * size[0] * size[1]).view(1, 3, *size)
    outputs: dict[str, object] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda module, arguments, output: outputs.update({name: output})

    with evaluating(network):
        handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name]
        try:
            features = network.forward_features(image)
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(features, Tensor):
            return outputs, None
        same = torch.allclose(timm_head(network, features), network(image), rtol=1e-3, atol=1e-4)
        return outputs, features if same else None


def token_stages(network: nn.Module, outputs: Mapping[str, object], to_map: ToMap) -> list[str]:
    """The first normalisations of the blocks at the ends of a transformer's quarters; none for another kind of network."""
    blocks = len(getattr(network, "blocks", None) or ())
    names = [f"blocks.{number}.norm1" for number in range(blocks)]
    if not all(isinstance(output := outputs.get(name), Tensor) and output.ndim == 3 and to_map.takes(output) for name in names):
        return []
    return list(dict.fromkeys(names[max(0, blocks * quarter // QUARTERS - 1)] for quarter in range(1, QUARTERS + 1))) if names else []


def map_stages(network: nn.Module, outputs: Mapping[str, object], behind: Tensor | None, to_map: ToMap) -> list[str]:
    """The last at each resolution of timm's feature stages and the module whose output the head receives."""
    listed = [stage["module"] for stage in getattr(network, "feature_info", None) or ()]
    names = [name for name in listed if to_map.takes(outputs.get(name))]
    last = [name for name, output in outputs.items() if behind is not None and output is behind]
    if last and to_map.takes(behind) and not set(last) & set(names):
        names.append(last[-1])  # The outermost of those that hand it on.
    by_size = {to_map(outputs[name]).shape[2:]: name for name in names}  # Later ones replace earlier ones.
    return list(by_size.values())


def timm_head(network: nn.Module, features: Tensor) -> Tensor:
    return network.forward_head(features)


@hookimpl
def register_models(register: Register) -> None:
    register(Timm)
