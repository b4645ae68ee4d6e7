"""The networks: they normalise images themselves, name their stages, run their heads alone, and take weights in the layouts in use."""

import copy
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.vgg import VGG, make_layers

from bench import testing
from bench.errors import WeightsError
from bench.layers import recording
from bench.registry import Registry
from bench_plugins import cifar_resnets, resnet_mini, torchvision_models
from bench_plugins._networks import IMAGENET, Colours, SplitClassifier, read_weights
from bench_plugins.cifar_resnets import CifarResNet, PaddedShortcut
from bench_plugins.resnet_mini import ResNetMini
from bench_plugins.torchvision_models import ResNet, Vgg, vgg_stages, vgg_tail

INFO = testing.dataset_info(10, (32, 32), 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
LARGE = testing.dataset_info(10, (96, 96), 3)
TEST_DATA = os.environ.get("BENCH_TEST_DATA")
needs_test_data = pytest.mark.skipif(not TEST_DATA, reason="BENCH_TEST_DATA names no folder of published weights and images")


def registered():
    registry = Registry()
    for module in (resnet_mini, cifar_resnets, torchvision_models):

        def register(factory, *, name=None, module=module, **parameters):
            registry.add("model", factory, name=name, defaults=parameters, plugin=module.__name__, distribution="tests")

        module.register_models(register)
    return registry


NAMES = [entry.name for entry in registered().entries("model")]


@pytest.fixture(scope="module")
def built():
    """Every registered model for 32x32 images, each built once: (part, module)."""
    known = {}

    def get(name):
        if name not in known:
            torch.manual_seed(0)
            part = registered().resolve("model", name).part
            known[name] = (part, part.build(INFO).eval())
        return known[name]

    return get


def images(count=2, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def logits_of(model, inputs):
    with torch.no_grad():
        return model.eval()(inputs)


def scrambled(network):
    """The network with random numbers in every tensor, those of batch norm too; variances stay above zero."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.mul_(1 + 0.2 * torch.randn(tensor.shape, generator=generator)).add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


# All models


def test_the_names_are_the_ones_promised():
    thin = [f"cifar-resnet{depth}" for depth in (20, 32, 44, 56)]
    assert set(NAMES) == {*thin, "resnet-mini", "resnet18", "resnet50", "vgg16", "vgg16-bn"}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_gives_logits_and_ever_coarser_maps_of_at_least_4x4(built, name):
    part, model = built(name)
    stages = part.stages(model)
    with recording(stages) as outputs, torch.no_grad():
        logits = model(images())
    maps = [stage.to_map(output) for stage, output in zip(stages, outputs, strict=True)]
    sides = [each.shape[-1] for each in maps]
    assert logits.shape == (2, 10)
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] >= 4
    assert part.target_layers(model) == stages[-1:]
    assert all(dict(model.named_modules())[stage.name] is stage.module for stage in stages)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_run_alone_gives_the_models_logits(built, name):
    part, model = built(name)
    with recording(part.target_layers(model)) as outputs, torch.no_grad():
        logits = model(images())
        assert torch.equal(model.features(images()), outputs[0])
        torch.testing.assert_close(model.head(outputs[0]), logits)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_normalised_inside_and_the_normalisation_can_be_read(built, name):
    _, model = built(name)
    mean, std = model.normalisation.mean, model.normalisation.std
    assert mean.shape == std.shape == (1, 3, 1, 1)
    assert mean.flatten().tolist() == pytest.approx(INFO.mean)
    assert std.flatten().tolist() == pytest.approx(INFO.std)
    torch.testing.assert_close(logits_of(model, images()), logits_of(model.network, (images() - mean) / std))


class Rectified(TorchFunctionMode):
    """Counts the rectifications that torch is asked for while it is open, and those in place."""

    def __init__(self):
        super().__init__()
        self.calls = self.in_place = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.calls += function in (F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
        self.in_place += function in (torch.relu_, torch.Tensor.relu_) or (options or {}).get("inplace", False)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", NAMES)
def test_every_rectifier_is_a_module_of_its_own_used_once_and_not_in_place(built, name):
    _, model = built(name)
    rectifiers = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    used = []
    handles = [module.register_forward_hook(lambda module, *_: used.append(module)) for module in rectifiers]
    with Rectified() as counted:
        logits_of(model, images())
    for handle in handles:
        handle.remove()
    assert len(used) == len(set(used)) == counted.calls > 0
    assert counted.in_place == 0
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize("part", [ResNetMini(), CifarResNet(), ResNet()])
def test_initial_weights_come_from_torchs_generator(part):
    def built_from(seed):
        torch.manual_seed(seed)
        return part.build(INFO).state_dict()

    first, again, other = built_from(0), built_from(0), built_from(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])


def test_a_copied_model_runs_its_own_head():
    model = ResNetMini().build(INFO).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.network.fc.weight.zero_()
        assert torch.equal(twin.head(twin.features(images())), twin.network.fc.bias.expand(2, -1))
        assert not torch.equal(model.head(model.features(images())), twin(images()))


def test_a_models_state_loads_into_another_of_its_kind():
    source, target = scrambled(CifarResNet().build(INFO)), CifarResNet().build(LARGE)
    target.load_state_dict({name: tensor.clone() for name, tensor in source.state_dict().items()})
    assert torch.equal(logits_of(source, images()), logits_of(target, images()))


# Sizes and shapes


def test_the_mini_network_has_the_parameters_counted_by_hand():
    convolutions = 27 * 16 + 2 * 9 * 16 * 16 + 9 * (16 * 32 + 32 * 32) + 9 * (32 * 64 + 64 * 64) + 16 * 32 + 32 * 64
    norms = 2 * (3 * 16 + 3 * 32 + 3 * 64)
    assert sum(parameter.numel() for parameter in ResNetMini().build(INFO).parameters()) == convolutions + norms + 64 * 10 + 10


def test_the_mini_network_gives_8x8_maps_of_a_small_image():
    assert ResNetMini().build(INFO).features(images()).shape == (2, 64, 8, 8)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_a_thin_network_has_the_published_layers_and_parameters(depth, millions):
    """Table 6 of the paper."""
    network = CifarResNet(depth=depth).build(INFO).network
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in network.modules()) == depth
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 2) == millions


def test_the_padded_shortcut_takes_every_second_pixel_between_zero_channels():
    inputs = torch.arange(32.0).view(1, 2, 4, 4)
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    assert PaddedShortcut(2)(inputs)[0].tolist() == [zeros, [[0, 2], [8, 10]], [[16, 18], [24, 26]], zeros]


def test_torchvision_networks_end_in_an_eighth_of_a_small_image_and_a_thirty_second_of_a_large_one():
    for part in (ResNet(), ResNet(depth=50), Vgg(batch_norm=True)):
        assert part.build(INFO).features(images()).shape[-2:] == (4, 4)
    assert ResNet().build(LARGE).features(images(1, 96)).shape[-2:] == (3, 3)
    assert ResNet(stem="small").build(LARGE).features(images(1, 96)).shape[-2:] == (12, 12)


# Weights of the thin networks, against a forward written out here


def thin_layout(family, classes, depth=20):
    """Random tensors under the names of the files of one family: `projection` (chenyaofo) or `padding` (akamaster)."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    def norm(name, channels):
        values = (1 + random(channels), random(channels), random(channels), random(channels).abs() + 0.5, torch.tensor(7))
        return dict(zip((f"{name}.{end}" for end in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")), values, strict=True))

    tensors = {"conv1.weight": random(16, 3, 3, 3), **norm("bn1", 16)}
    inputs = 16
    for stage, outputs in ((1, 16), (2, 32), (3, 64)):
        for block in range((depth - 2) // 6):
            start = f"layer{stage}.{block}"
            tensors |= {f"{start}.conv1.weight": random(outputs, inputs, 3, 3), **norm(f"{start}.bn1", outputs)}
            tensors |= {f"{start}.conv2.weight": random(outputs, outputs, 3, 3), **norm(f"{start}.bn2", outputs)}
            if inputs != outputs and family == "projection":
                tensors |= {f"{start}.downsample.0.weight": random(outputs, inputs, 1, 1), **norm(f"{start}.downsample.1", outputs)}
            inputs = outputs
    head = "fc" if family == "projection" else "linear"
    return {**tensors, f"{head}.weight": random(classes, 64), f"{head}.bias": random(classes)}


def thin_logits(tensors, inputs, depth=20):
    """What a thin network with these tensors says of normalised images."""

    def normed(name, maps):
        weight, bias, mean, variance = (tensors[f"{name}.{end}"] for end in ("weight", "bias", "running_mean", "running_var"))
        return F.batch_norm(maps, mean, variance, weight, bias)

    maps = normed("bn1", F.conv2d(inputs, tensors["conv1.weight"], padding=1)).clamp(min=0)
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            start, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = normed(f"{start}.bn1", F.conv2d(maps, tensors[f"{start}.conv1.weight"], stride=stride, padding=1)).clamp(min=0)
            inner = normed(f"{start}.bn2", F.conv2d(inner, tensors[f"{start}.conv2.weight"], padding=1))
            if f"{start}.downsample.0.weight" in tensors:
                maps = normed(f"{start}.downsample.1", F.conv2d(maps, tensors[f"{start}.downsample.0.weight"], stride=2))
            elif stride == 2:
                zeros = torch.zeros(len(maps), maps.shape[1] // 2, maps.shape[2] // 2, maps.shape[3] // 2)
                maps = torch.cat([zeros, maps[:, :, ::2, ::2], zeros], dim=1)
            maps = (maps + inner).clamp(min=0)
    head = "fc" if "fc.weight" in tensors else "linear"
    return maps.mean((2, 3)) @ tensors[f"{head}.weight"].T + tensors[f"{head}.bias"]


CIFAR100 = Colours((0.507, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
CIFAR10 = Colours((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def thin_file(folder, family, classes):
    """A file as the authors of the family wrote it."""
    tensors, path = thin_layout(family, classes), folder / f"{family}-{classes}.pt"
    if family == "projection":
        torch.save(tensors, path)
    else:
        torch.save({"best_prec1": 91.7, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    return path


@pytest.mark.parametrize(
    ("family", "classes", "colours"), [("projection", 100, CIFAR100), ("projection", 10, CIFAR10), ("padding", 10, IMAGENET)], ids=str
)
def test_a_file_of_either_family_loads_by_naming_the_model(tmp_path, family, classes, colours):
    model = CifarResNet(weights=thin_file(tmp_path, family, classes)).build(testing.dataset_info(classes, (32, 32), 3))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in colours)
    wanted = thin_logits(thin_layout(family, classes), (images() - mean) / std)
    torch.testing.assert_close(logits_of(model, images()), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("normalisation", "colours"), [("dataset", Colours(INFO.mean, INFO.std)), ("cifar100", CIFAR100), ("imagenet", IMAGENET)])
def test_another_normalisation_can_be_asked_for(tmp_path, normalisation, colours):
    model = CifarResNet(weights=thin_file(tmp_path, "projection", 10), normalisation=normalisation).build(INFO)
    assert model.normalisation.mean.flatten().tolist() == pytest.approx(colours.mean)
    assert model.normalisation.std.flatten().tolist() == pytest.approx(colours.std)


def test_the_key_says_what_auto_stood_for_and_never_a_path(tmp_path):
    path = thin_file(tmp_path, "projection", 100)
    moved = path.rename(tmp_path / "elsewhere.pt")
    identity = CifarResNet(weights=moved).identity()
    assert (identity["shortcut"], identity["normalisation"]) == ("projection", "cifar100")
    assert identity["weights"].startswith("sha256:")
    assert "elsewhere" not in str(identity)
    assert identity == CifarResNet(weights=moved, shortcut="projection", normalisation="cifar100").identity()
    assert CifarResNet().identity() == {"depth": 20, "shortcut": "padding", "normalisation": "dataset", "weights": None}


@pytest.mark.parametrize("family", ["projection", "padding"])
def test_a_shortcut_that_the_weights_were_not_made_for_is_refused(tmp_path, family):
    other = {"projection": "padding", "padding": "projection"}[family]
    with pytest.raises(WeightsError, match="downsample"):
        CifarResNet(weights=thin_file(tmp_path, family, 10), shortcut=other).build(INFO)


# Weights of the others


@pytest.mark.parametrize(("depth", "original"), [(18, torchvision.models.resnet18), (50, torchvision.models.resnet50)])
def test_torchvisions_own_weights_give_torchvisions_logits(tmp_path, depth, original):
    network = scrambled(original(num_classes=10))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    model = ResNet(depth=depth, weights=tmp_path / "weights.pth").build(LARGE)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in IMAGENET)
    torch.testing.assert_close(logits_of(model, images(2, 64)), logits_of(network, (images(2, 64) - mean) / std), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_large_vgg_has_the_names_and_shapes_of_torchvisions(batch_norm):
    with torch.device("meta"):
        model = Vgg(batch_norm=batch_norm).build(LARGE)
        original = torchvision.models.vgg16_bn(num_classes=10) if batch_norm else torchvision.models.vgg16(num_classes=10)
    shapes = {name: tensor.shape for name, tensor in original.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.network.state_dict().items()} == shapes


def test_a_large_vgg_takes_maps_before_each_pooling_and_pools_in_its_head():
    with torch.device("meta"):
        network = VGG(nn.Sequential(), num_classes=1)
    network.features, network.classifier = make_layers([4, "M", 8, "M"]), nn.Linear(8 * 7 * 7, 3)
    model = SplitClassifier(network, Colours(INFO.mean, INFO.std), vgg_stages(network), vgg_tail).eval()
    assert [stage.name for stage in model.stages] == ["network.features.1", "network.features.4"]
    features = model.features(images())
    assert features.shape == (2, 8, 16, 16)
    torch.testing.assert_close(model.head(features), model(images()))


def test_weights_that_bench_wrote_bring_their_normalisation(tmp_path):
    path = tmp_path / "weights.safetensors"
    source = scrambled(ResNetMini().build(INFO))
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, path)
    model = ResNetMini(weights=path).build(LARGE)
    assert torch.equal(logits_of(model, images()), logits_of(source, images()))
    assert torch.equal(model.normalisation.mean, source.normalisation.mean)


def test_a_thin_networks_own_file_names_its_family(tmp_path):
    path = tmp_path / "weights.safetensors"
    source = scrambled(CifarResNet(shortcut="projection").build(INFO))
    safetensors.torch.save_file(source.state_dict(), path)
    assert CifarResNet(weights=path).identity()["normalisation"] == "weights"
    assert torch.equal(logits_of(CifarResNet(weights=path).build(LARGE), images()), logits_of(source, images()))


def mini_tensors():
    torch.manual_seed(0)
    return scrambled(ResNetMini().build(INFO)).network.state_dict()


def mini_with(tmp_path, tensors):
    torch.save(tensors, tmp_path / "weights.pt")
    return ResNetMini(weights=tmp_path / "weights.pt").build(INFO)


def test_tensors_under_other_names_load_in_order(tmp_path):
    renamed = {f"_{name.replace('layer', 'block')}": tensor for name, tensor in mini_tensors().items() if "num_batches" not in name}
    loaded = mini_with(tmp_path, renamed).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in mini_tensors().items() if "num_batches" not in name)


def test_tensors_whose_order_is_another_do_not_load(tmp_path):
    tensors = mini_tensors()
    names = list(tensors)
    first, second = names.index("layer1.conv1.weight"), names.index("layer1.conv2.weight")
    names[first], names[second] = names[second], names[first]
    with pytest.raises(WeightsError, match="missing: conv1"):  # One name is new, and two that are known stand elsewhere.
        mini_with(tmp_path, {("stem.weight" if name == "conv1.weight" else name): tensors[name] for name in names})


def test_tensors_that_are_of_another_sort_do_not_load(tmp_path):
    """A weight and a bias of batch norm have one shape; only the ends of their names tell them apart."""
    swapped = {"weight": "bias", "bias": "weight"}
    tensors = {f"x{name.rpartition('.')[0]}.{swapped.get(name.rpartition('.')[2], 'mean')}": tensor for name, tensor in mini_tensors().items()}
    with pytest.raises(WeightsError, match="does not fit"):
        mini_with(tmp_path, tensors)


# Files that do not do


def message_of(weights):
    with pytest.raises(WeightsError) as caught:
        ResNetMini(weights=weights).build(INFO)
    return str(caught.value)


def saved(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_a_misfit_names_the_tensors_in_a_few_lines(tmp_path):
    tensors = mini_tensors()
    tensors["fc.weight"], tensors["fc.bias"] = torch.zeros(100, 64), torch.zeros(100)
    tensors["extra.weight"] = tensors.pop("conv1.weight")
    message = message_of(saved(tmp_path, tensors))
    assert "missing: conv1.weight" in message
    assert "unexpected: extra.weight" in message
    assert "fc.weight is (100, 64) and should be (10, 64)" in message


def test_a_misfit_of_many_tensors_is_told_briefly(tmp_path):
    message = message_of(thin_file(tmp_path, "projection", 10))
    assert len(message.splitlines()) <= 6
    assert "in all)" in message


class Code:
    """Pickled, this makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, zipped):
    torch.save({"conv1.weight": Code(tmp_path / "ran")}, tmp_path / "weights.pt", _use_new_zipfile_serialization=zipped)
    message = message_of(tmp_path / "weights.pt")
    assert "refused" in message
    assert f"{os.mkdir.__module__}.mkdir" in message
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_refused_with_the_way_to_save_its_weights(tmp_path):
    assert "state_dict()" in message_of(saved(tmp_path, nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a page that says: not found",
        b"PK\x03\x04 cut short",
        b"\x80\x02}",
        pickle.dumps({"a": 1}, 2)[:-2],
        b"\x10\0\0\0\0\0\0\0{broken",
    ],
    ids=["empty", "text", "zip", "pickle", "cut", "safetensors"],
)
def test_what_is_no_file_of_weights_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert "weights.pt" in message_of(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"epoch": 3}, {"state_dict": {"conv1.weight": "no tensor"}}])
def test_a_file_without_named_tensors_is_refused(tmp_path, content):
    assert "not tensors by name" in message_of(saved(tmp_path, content))


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "nowhere.pt: there is no such file" in message_of(tmp_path / "nowhere.pt")


# Published weights


def cifar_test_images(name, per_class):
    """The first images of each class, from strips one above the other."""
    pictures, labels = [], []
    archive = next((Path(TEST_DATA) / name).glob("*_test*.tar"))
    with tarfile.open(archive) as tar:
        strips = sorted((member.name, tar.extractfile(member).read()) for member in tar)
    for label, (_, content) in enumerate(strips):
        strip = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 32, 32, 3)
        pictures.append(torch.from_numpy(strip[:per_class].copy()))
        labels += [label] * per_class
    return torch.cat(pictures).permute(0, 3, 1, 2) / 255, torch.tensor(labels)


@needs_test_data
@pytest.mark.parametrize(
    ("depth", "file", "data", "per_class", "published"),
    [
        (56, "cifar100_resnet56-f2eff4c8.pt", "cifar100", 3, 0.7263),
        (20, "cifar10_resnet20-12fca82f.th", "cifar10_test5000", 30, 0.9173),
        (56, "cifar10_resnet56-4bfd9763.th", "cifar10_test5000", 30, 0.9339),
    ],
)
def test_published_weights_are_as_accurate_as_published(depth, file, data, per_class, published):
    inputs, labels = cifar_test_images(data, per_class)
    model = CifarResNet(depth=depth, weights=Path(TEST_DATA) / "weights" / file).build(testing.dataset_info(int(labels.max()) + 1, (32, 32), 3))
    correct = torch.cat([logits_of(model, part).argmax(1) for part in inputs.split(100)]).eq(labels).float().mean().item()
    deviation = (published * (1 - published) / len(labels)) ** 0.5
    assert abs(correct - published) < 4 * deviation


def test_read_weights_takes_the_prefix_off(tmp_path):
    assert list(read_weights(saved(tmp_path, {"model": {"module.a": torch.zeros(1), "b": torch.zeros(1)}}))) == ["a", "b"]
