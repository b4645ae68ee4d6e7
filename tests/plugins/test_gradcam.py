"""Grad-CAM on a network worked out by hand, beside two libraries, and inside a training step."""

import copy

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models import resnet18

from bench import contexts, testing
from bench.errors import InvalidValue
from bench.interfaces import Layer
from bench_plugins.gradcam import GradCam


@pytest.fixture
def two_channel():
    return testing.TwoChannelNetwork()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 4, 2])


def explain(model, explainer, inputs, targets, **options):
    layers = model.layers if hasattr(model, "layers") else [Layer("layer4", model.layer4)]
    return testing.explain(model, explainer, inputs, targets, layers, **options)


def stretched(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def test_the_map_of_the_two_channel_network_is_the_one_worked_out_by_hand(two_channel):
    x = testing.TWO_CHANNEL_IMAGE  # weights 2/4 and -1/4 for relu(x) and relu(-x)
    signed = explain(two_channel, GradCam(relu=False), x, torch.tensor([0]))
    assert torch.allclose(signed, torch.tensor([[[[0.5, -0.5], [1.5, 0.25]]]]))
    assert torch.allclose(explain(two_channel, GradCam(), x, torch.tensor([0])), torch.tensor([[[[0.5, 0.0], [1.5, 0.25]]]]))


def test_another_class_has_another_map(two_channel):
    signed = explain(two_channel, GradCam(relu=False), testing.TWO_CHANNEL_IMAGE, torch.tensor([1]))
    assert torch.allclose(signed, torch.tensor([[[[-0.25, 1.5], [-0.75, -0.125]]]]))  # weights -1/4 and 3/4


def test_the_layer_may_be_any_module(two_channel):
    # At the convolution the gradient passes where the channel is positive: weights 2/4 * 3/4 and -1/4 * 1/4.
    signed = explain(two_channel, GradCam(layer="conv", relu=False), testing.TWO_CHANNEL_IMAGE, torch.tensor([0]))
    assert torch.allclose(signed, torch.tensor([[[[0.4375, -0.875], [1.3125, 0.21875]]]]))


def test_a_layer_that_does_not_exist_or_gives_no_map_is_refused(two_channel):
    with pytest.raises(InvalidValue, match=r"no layer 'rellu'\. Did you mean 'relu'"):
        explain(two_channel, GradCam(layer="rellu"), testing.TWO_CHANNEL_IMAGE, torch.tensor([0]))
    with pytest.raises(InvalidValue, match=r"layer 'head' gives \(2, 2\)"):
        explain(two_channel, GradCam(layer="head"), testing.TWO_CHANNEL_IMAGE, torch.tensor([0]))
    two_channel.unused = nn.ReLU()
    with pytest.raises(InvalidValue, match="takes no part"):
        explain(two_channel, GradCam(layer="unused"), testing.TWO_CHANNEL_IMAGE, torch.tensor([0]))


def test_pytorch_grad_cam_shows_the_two_channel_network_stretched(two_channel):
    with GradCAM(two_channel, [two_channel.relu]) as library:
        theirs = torch.from_numpy(library(testing.TWO_CHANNEL_IMAGE, [ClassifierOutputTarget(0)]))
    assert torch.allclose(theirs, torch.tensor([[[1 / 3, 0.0], [1.0, 1 / 6]]]), atol=1e-4)
    assert torch.allclose(stretched(explain(two_channel, GradCam(), testing.TWO_CHANNEL_IMAGE, torch.tensor([0])))[:, 0], theirs, atol=1e-4)


def test_the_map_agrees_with_pytorch_grad_cam(network, images):
    with GradCAM(network, [network.layer4]) as library:
        expected = torch.from_numpy(library(images, [ClassifierOutputTarget(int(target)) for target in TARGETS]))
    assert torch.allclose(stretched(explain(network, GradCam(), images, TARGETS))[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("layer", ["layer4", "layer3", "layer2.1.conv1"])
def test_the_map_agrees_with_captum(network, images, layer):
    attributions = LayerGradCam(network, network.get_submodule(layer)).attribute(images, TARGETS)
    expected = LayerAttribution.interpolate(attributions, (64, 64), "bilinear").detach()
    found = explain(network, GradCam(layer=layer, relu=False), images, TARGETS)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_maps_before_an_in_place_relu_are_the_ones_the_layer_gave(two_channel):
    in_place = copy.deepcopy(two_channel)
    in_place.relu.inplace = True
    arguments = (GradCam(layer="conv", relu=False), testing.TWO_CHANNEL_IMAGE, torch.tensor([0]))
    assert torch.equal(explain(in_place, *arguments), explain(two_channel, *arguments))


class Tokens(nn.Module):
    """A class token and then the map's pixels, channel last; the logits are twice the mean of the pixels of channel 0."""

    def __init__(self):
        super().__init__()
        self.block = nn.Identity()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs):
        pixels = inputs.flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([torch.full_like(pixels[:, :1], 9.0), pixels], 1))
        return self.scale * tokens[:, 1:].mean(1)


def test_a_model_says_how_its_tokens_become_a_map():
    model, inputs = Tokens(), torch.rand(2, 3, 4, 4)
    layer = Layer("block", model.block, lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    found = testing.explain(model, GradCam(), inputs, torch.tensor([0, 2]), [layer])
    expected = torch.stack([inputs[0, :1], inputs[1, 2:]]) * 2 / 16  # only the target's channel weighs, by 2 / 16 pixels
    assert torch.allclose(found, expected)


def test_a_batch_is_its_parts(network, images):
    together = explain(network, GradCam(), images, TARGETS)
    assert torch.allclose(explain(network, GradCam(), images, TARGETS, chunk=2), together, atol=1e-6 * together.max().item())
    for row in range(3):
        alone = explain(network, GradCam(), images[row : row + 1], TARGETS[row : row + 1])
        assert torch.allclose(alone, together[row : row + 1], atol=1e-5 * together.max().item())


def test_the_costs_are_one_forward_and_one_backward_per_image(network, images):
    context = testing.explain_context(network, [Layer("layer4", network.layer4)], 3)
    contexts.explain(network, GradCam(), images, TARGETS, context)
    assert (context.passes.forward, context.passes.backward) == (3, 3)


def test_a_black_image_has_a_finite_map(network):
    assert explain(network, GradCam(), torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])).isfinite().all()


def test_explaining_inside_a_training_step_leaves_the_model_as_it_was():
    trunk = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    model = nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2))
    inputs, targets = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    model.train()
    loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    step = testing.step_context(model, [Layer("1", model[1])], GradCam())
    found = step.explain(model, inputs, targets)
    assert found.shape == inputs.shape
    assert not found.requires_grad
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, kept) for parameter, kept in zip(model.parameters(), gradients, strict=True))
    assert not any(module._forward_hooks for module in model.modules())


def test_the_brightest_patch_is_found_in_a_network_that_looks_for_brightness(two_channel):
    inputs = torch.full((2, 1, 16, 16), 0.1)
    inputs[0, 0, 2:6, 8:12] = 1
    inputs[1, 0, 9:13, 1:5] = 1
    found = explain(two_channel, GradCam(), inputs, torch.tensor([0, 0]))
    assert torch.equal(found > found.mean((2, 3), keepdim=True), inputs == 1)
