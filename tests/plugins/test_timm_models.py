"""Networks of timm: their layers are found, tokens become maps in the right order, and their files load under other names."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from bench import testing
from bench.errors import InvalidValue, WeightsError
from bench.layers import recording
from bench.registry import Registry
from bench_plugins import timm_models
from bench_plugins.timm_models import Timm, ToMap

INFO = testing.dataset_info(5, (32, 32), 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
TEST_DATA = os.environ.get("BENCH_TEST_DATA")

# Architecture, input size, stages within the network. Small sizes, for speed; SMALL_VIT has patches of 16 pixels.
SMALL_VIT = "vit_tiny_patch16_224"
MAPS = [
    ("resnet10t", 64, ["act1", "layer1", "layer2", "layer3", "layer4"]),
    ("tf_efficientnet_lite0", 64, ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"]),
    ("mobilenetv3_small_050", 64, ["bn1", "blocks.0", "blocks.1", "blocks.3", "blocks.5"]),
    ("convnext_atto", 64, ["stages.0", "stages.1", "stages.2", "stages.3"]),
    ("swin_tiny_patch4_window7_224", 64, ["layers.0", "layers.1", "layers.2", "norm"]),
]
TOKENS = [
    (SMALL_VIT, 64, 1),
    ("deit_tiny_distilled_patch16_224", 64, 2),
    ("vit_small_patch16_dinov3", 64, 5),
]


def built(architecture, **parameters):
    torch.manual_seed(0)
    part = Timm(architecture, **parameters)
    return part, part.build(INFO).eval()


def images(size, count=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def outputs_of(part, model, inputs):
    stages = part.stages(model)
    with recording(stages) as outputs, torch.no_grad():
        logits = model(inputs)
    return logits, outputs, [stage.to_map(output) for stage, output in zip(stages, outputs, strict=True)]


@pytest.mark.parametrize(("architecture", "size", "stages"), MAPS)
def test_the_stages_of_a_network_of_maps_are_its_blocks_and_its_head_runs_alone(architecture, size, stages):
    part, model = built(architecture, input_size=size)
    logits, outputs, maps = outputs_of(part, model, images(size))
    assert [stage.name for stage in part.stages(model)] == [f"network.{name}" for name in stages]
    assert part.target_layers(model) == part.stages(model)[-1:]
    assert [each.shape[-1] for each in maps] == [size // 2**power for power in range(6 - len(stages), 6)]
    assert torch.equal(model.features(images(size)), outputs[-1])
    torch.testing.assert_close(model.head(outputs[-1]), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "size", "others"), TOKENS)
def test_a_transformers_stages_are_the_first_norms_at_the_ends_of_its_quarters(architecture, size, others):
    part, model = built(architecture, input_size=size)
    logits, outputs, maps = outputs_of(part, model, images(size))
    assert [stage.name for stage in part.stages(model)] == [f"network.blocks.{number}.norm1" for number in (2, 5, 8, 11)]
    assert logits.shape == (2, 5)
    assert all(output.shape[1] == others + 16 for output in outputs)
    assert not hasattr(model, "head")
    for row in range(4):
        for column in range(4):
            token = outputs[-1][:, others + 4 * row + column]
            assert torch.equal(maps[-1][:, :, row, column], token)


def test_a_patch_of_the_image_lies_in_its_own_place_of_the_map():
    """Before the first attention a token depends on its own patch alone."""
    part, model = built(SMALL_VIT, input_size=64, layer="blocks.0.norm1")
    layer = part.target_layers(model)[0]
    changed = images(64, 1)
    changed[:, :, 16:32, 48:64] += 0.1
    with torch.no_grad(), recording([layer]) as before:
        model(images(64, 1))
    with torch.no_grad(), recording([layer]) as after:
        model(changed)
    difference = (layer.to_map(after[0]) - layer.to_map(before[0])).abs().amax((0, 1))
    assert difference.nonzero().tolist() == [[1, 3]]


def test_the_gradient_of_the_class_reaches_the_patches_of_the_target_layer():
    part, model = built(SMALL_VIT, input_size=64)
    with recording(part.target_layers(model)) as outputs:
        logits = model(images(64))
    gradient = torch.autograd.grad(logits[:, 0].sum(), outputs[0])[0]
    assert part.target_layers(model)[0].to_map(gradient).abs().amax((1, 2, 3)).gt(0).all()


def test_tokens_and_channels_last_become_maps():
    tokens = torch.arange(2 * 7 * 1.0).view(2, 7, 1)
    assert ToMap((2, 3), 1, False)(tokens).tolist() == [[[[1, 2, 3], [4, 5, 6]]], [[[8, 9, 10], [11, 12, 13]]]]
    assert torch.equal(ToMap(None, 0, True)(torch.arange(6.0).view(1, 1, 2, 3)), torch.tensor([[[[0.0, 3]], [[1, 4]], [[2, 5]]]]))


def test_what_gives_no_map_is_not_taken_for_one():
    takes = ToMap((2, 3), 1, False).takes
    assert takes(torch.zeros(1, 6, 4))
    assert takes(torch.zeros(1, 7, 4))
    assert not takes(torch.zeros(1, 9, 4))  # Tokens of another grid.
    assert not takes(torch.zeros(2, 6, 4))  # Windows of one image.
    assert not takes(torch.zeros(1, 4, 1, 1))
    assert not takes(torch.zeros(1, 4))
    assert not takes(None)
    assert not ToMap(None, 0, False).takes(torch.zeros(1, 6, 4))


def test_another_layer_can_be_the_target():
    part, model = built("resnet10t", input_size=64, layer="layer2.0.conv1")
    assert [layer.name for layer in part.target_layers(model)] == ["network.layer2.0.conv1"]
    assert [layer.name for layer in part.stages(model)][-1] == "network.layer4"


@pytest.mark.parametrize(("layer", "hint"), [("layer5", "Did you mean 'layer"), ("global_pool", "layer4")])
def test_a_layer_without_a_map_is_refused_with_what_there_is(layer, hint):
    with pytest.raises(InvalidValue, match=hint):
        built("resnet10t", input_size=64, layer=layer)


def test_a_network_whose_tokens_lie_in_no_known_grid_is_refused():
    with pytest.raises(InvalidValue, match="name it: `layer`"):
        built("levit_128s")


def test_size_and_normalisation_are_those_of_timms_configuration():
    part, model = built("tf_efficientnet_lite0")
    assert model.input_size == (224, 224)
    assert model.normalisation.mean.flatten().tolist() == model.normalisation.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert part.identity() == {
        "architecture": "tf_efficientnet_lite0",
        "input_size": [224, 224],
        "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "layer": None,
        "weights": None,
    }


def test_a_tag_brings_its_own_configuration():
    plain, tagged = Timm("vit_base_patch16_224.augreg_in21k"), Timm("vit_base_patch16_224.mae")
    assert plain.identity()["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert tagged.identity()["normalisation"]["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_another_size_and_the_datasets_colours_can_be_asked_for():
    part, model = built("mobilenetv3_small_050", input_size=48, normalisation="dataset")
    assert model.input_size == (48, 48)
    assert model.normalisation.mean.flatten().tolist() == pytest.approx(INFO.mean)
    assert part.identity()["input_size"] == [48, 48]
    assert part.identity()["normalisation"] == "dataset"


def test_the_network_is_timms_behind_the_normalisation():
    _, model = built("mobilenetv3_small_050", input_size=64)
    twin = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=5)
    twin.load_state_dict(model.network.state_dict())
    with torch.no_grad():
        normalised = (images(64) - model.normalisation.mean) / model.normalisation.std
        torch.testing.assert_close(model(images(64)), twin.eval()(normalised))


def test_activations_are_not_in_place():
    _, model = built("mobilenetv3_small_050", input_size=64)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_finding_the_layers_draws_nothing_and_leaves_no_trace():
    torch.manual_seed(0)
    timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=5)
    expected = torch.rand(1)
    torch.manual_seed(0)
    model = Timm("mobilenetv3_small_050", input_size=64).build(INFO)
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(tensor == 0 for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked"))


def test_weights_load_by_name_and_under_other_names_in_order(tmp_path):
    torch.manual_seed(1)
    state = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=5).state_dict()
    files = tmp_path / "named.pt", tmp_path / "ordered.pt"
    torch.save(state, files[0])
    torch.save(
        {
            f"_{name.replace('.', '._')}".replace("._weight", ".weight").replace("._bias", ".bias").replace("._running", ".running"): tensor
            for name, tensor in state.items()
            if "num_batches" not in name
        },
        files[1],
    )
    for file in files:
        part, model = built("mobilenetv3_small_050", input_size=64, weights=file)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.network.state_dict().items() if "num_batches" not in name)
        assert part.identity()["weights"].startswith("sha256:")
        assert file.name not in str(part.identity())


def test_weights_for_another_number_of_classes_are_refused_by_shape(tmp_path):
    torch.save(timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=7).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"classifier.weight is \(7, 1024\) and should be \(5, 1024\)"):
        built("mobilenetv3_small_050", input_size=64, weights=tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("architecture", "hint"), [("resnet1", "Did you mean 'resnet"), ("resnet18.nothing", "tv_in1k"), ("hf-hub:someone/network", "timm has no model")]
)
def test_a_name_that_timm_does_not_have_is_refused(architecture, hint):
    with pytest.raises(InvalidValue, match=hint):
        built(architecture)


@pytest.mark.parametrize("architecture", [SMALL_VIT, "convnext_atto"])
def test_a_size_that_an_architecture_cannot_have_is_refused(architecture):
    with pytest.raises(InvalidValue, match=f"timm:{architecture} cannot be built for images of 8x8"):
        built(architecture, input_size=8)


def test_the_architecture_stands_behind_the_colon():
    registry = Registry()

    def register(factory, *, name=None, **parameters):
        registry.add("model", factory, name=name, defaults=parameters, plugin="timm", distribution="tests")

    timm_models.register_models(register)
    resolved = registry.resolve("model", "timm:convnext_atto")
    assert resolved.part.architecture == "convnext_atto"
    assert resolved.identity()["parameters"]["input_size"] == [224, 224]


@pytest.mark.skipif(not TEST_DATA, reason="BENCH_TEST_DATA names no folder of published weights and images")
def test_a_published_efficientnet_knows_the_images():
    """82.31 % of all 1,300 images are right."""
    count, folder = 60, Path(TEST_DATA)
    rows = json.loads((folder / "imagenet_val1300/boxes.json").read_text())["images"][:count]
    with tarfile.open(folder / "imagenet_val1300/images.tar") as tar:
        pictures = [np.asarray(Image.open(io.BytesIO(tar.extractfile(row["file"]).read())).convert("RGB")) for row in rows]
    inputs = torch.stack([torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255 for picture in pictures])
    part = Timm("tf_efficientnet_lite0", weights=folder / "weights/efficientnet-lite0-57934424.pth")
    model = part.build(testing.dataset_info(1000, (227, 227), 3)).eval()
    with torch.no_grad():
        resized = F.interpolate(inputs, model.input_size, mode="bilinear", antialias=True)
        predicted = torch.cat([model(part) for part in resized.split(20)]).argmax(1)
    correct = predicted.eq(torch.tensor([row["label"] for row in rows])).float().mean().item()
    assert abs(correct - 0.8231) < 4 * (0.8231 * 0.1769 / count) ** 0.5
