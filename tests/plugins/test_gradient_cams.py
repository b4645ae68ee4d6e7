"""The relatives of Grad-CAM on a network worked out by hand, and beside pytorch-grad-cam."""

import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models import resnet18

from bench import contexts, testing
from bench.errors import InvalidValue
from bench.interfaces import Layer
from bench_plugins._maps import maps_and_gradients
from bench_plugins.gradcam import GradCam
from bench_plugins.gradient_cams import Cam, GradCamPlusPlus, HiResCam, LayerCam, XGradCam

X = testing.TWO_CHANNEL_IMAGE
EXPLAINERS = [GradCamPlusPlus(), XGradCam(), LayerCam(), HiResCam(), Cam()]
TARGETS = torch.tensor([0, 4, 2])


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


def explain(model, explainer, inputs, targets, **options):
    layers = model.layers if hasattr(model, "layers") else [Layer("layer4", model.layer4)]
    return testing.explain(model, explainer, inputs, targets, layers, **options)


def stretched(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


# The maps are relu(x) and relu(-x); the gradients of class 0 are 0.5 and -0.25 everywhere, of class 1 -0.25 and 0.75.
def test_gradcam_plus_plus_drops_channels_that_speak_against_the_target(two_channel):
    found = explain(two_channel, GradCamPlusPlus(), X, torch.tensor([0]))
    weight = 4 * 0.25 / (2 * 0.25 + 4.5 * 0.125) * 0.5  # 0.470588; alpha is the same for the four pixels
    assert torch.allclose(found, weight * X.relu())
    other = explain(two_channel, GradCamPlusPlus(), X, torch.tensor([1]))
    assert torch.allclose(other, 4 * 0.5625 / (2 * 0.5625 + 2 * 0.421875) * 0.75 * (-X).relu())


def test_with_even_gradients_xgradcam_and_hirescam_are_gradcam(two_channel):
    expected = torch.tensor([[[[0.5, -0.5], [1.5, 0.25]]]])
    assert torch.allclose(explain(two_channel, HiResCam(), X, torch.tensor([0])), expected)
    assert torch.allclose(explain(two_channel, XGradCam(relu=False), X, torch.tensor([0])), expected)
    assert torch.allclose(explain(two_channel, XGradCam(), X, torch.tensor([0])), expected.relu())


def test_layercam_takes_positive_gradients_only(two_channel):
    assert torch.allclose(explain(two_channel, LayerCam(), X, torch.tensor([0])), torch.tensor([[[[0.5, 0.0], [1.5, 0.25]]]]))


def test_cam_is_the_classifiers_weights_times_the_maps(two_channel):
    found = explain(two_channel, Cam(), X, torch.tensor([0]))
    assert torch.allclose(found, torch.tensor([[[[2.0, -2.0], [6.0, 1.0]]]]))
    assert found.mean().item() == pytest.approx(1.75)  # the logit
    assert torch.allclose(found, 4 * explain(two_channel, GradCam(relu=False), X, torch.tensor([0])))


class Uneven(nn.Module):
    """One feature map, the image itself; the logit is the sum of `weights` times the map, so they are its gradient."""

    def __init__(self, weights):
        super().__init__()
        self.relu = nn.ReLU()
        self.weights = nn.Parameter(torch.tensor(weights))
        self.layers = [Layer("relu", self.relu)]

    def forward(self, inputs):
        return (self.relu(inputs) * self.weights).sum((2, 3))


def test_gradients_that_differ_between_pixels_tell_the_methods_apart():
    model = Uneven([[1.0, -1.0], [2.0, 0.0]])
    inputs = torch.tensor([[[[1.0, 2.0], [1.0, 4.0]]]])  # sums to 8
    target = torch.tensor([0])
    assert torch.allclose(explain(model, HiResCam(), inputs, target), torch.tensor([[[[1.0, -2.0], [2.0, 0.0]]]]))
    assert torch.allclose(explain(model, LayerCam(), inputs, target), torch.tensor([[[[1.0, 0.0], [2.0, 0.0]]]]))
    assert torch.allclose(explain(model, XGradCam(), inputs, target), (1 - 2 + 2) / 8 * inputs)
    alpha = [1 / (2 + 8 * 1), 4 / (2 * 4 + 8 * 8)]  # where the gradient is 1 and 2
    assert torch.allclose(explain(model, GradCamPlusPlus(), inputs, target), (alpha[0] * 1 + alpha[1] * 2) * inputs)


@pytest.mark.parametrize(
    ("explainer", "library"),
    [
        (GradCamPlusPlus(), pytorch_grad_cam.GradCAMPlusPlus),
        (XGradCam(), pytorch_grad_cam.XGradCAM),
        (LayerCam(), pytorch_grad_cam.LayerCAM),
        (HiResCam(relu=True), pytorch_grad_cam.HiResCAM),
    ],
)
@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_the_map_agrees_with_pytorch_grad_cam(images, explainer, library, layer):
    torch.manual_seed(0)
    model = resnet18(num_classes=5).eval()
    with torch.no_grad():
        model.fc.weight *= 1e4  # The library adds 1e-6 to a denominator that small gradients would vanish beside.
    explainer = type(explainer)(layer=layer, relu=explainer.relu)
    with library(model, [model.get_submodule(layer)]) as reference:
        expected = torch.from_numpy(reference(images, [ClassifierOutputTarget(int(target)) for target in TARGETS]))
    assert torch.allclose(stretched(explain(model, explainer, images, TARGETS))[:, 0], expected, atol=1e-4)


def test_cam_is_gradcam_times_the_number_of_pixels_of_the_map(network, images):
    signed = explain(network, GradCam(relu=False), images, TARGETS)
    assert torch.allclose(explain(network, Cam(), images, TARGETS), 4 * signed, atol=1e-5)  # 64² images leave maps of 2 x 2


def test_cam_refuses_a_network_without_pooling_and_a_linear_layer(network, images):
    with pytest.raises(InvalidValue, match="global average pooling"):
        explain(network, Cam(layer="layer3"), images, TARGETS)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(InvalidValue, match="layer '0'"):
        testing.explain(model, Cam(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), [Layer("0", model[0])])


def test_an_unclamped_xgradcam_adds_up_to_the_sum_of_gradient_times_activation(network, images):
    layer = Layer("layer3", network.layer3)
    maps, gradients = maps_and_gradients(network, images, TARGETS, layer, 32)
    found = XGradCam(relu=False).combine(maps, gradients)
    assert torch.allclose(found.sum((1, 2, 3)), (gradients * maps).sum((1, 2, 3)), rtol=1e-3)


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.name)
def test_a_batch_is_its_parts(network, images, explainer):
    together = explain(network, explainer, images, TARGETS)
    tolerance = 1e-5 * together.abs().max().item()
    assert torch.allclose(explain(network, explainer, images, TARGETS, chunk=2), together, atol=tolerance)
    alone = explain(network, explainer, images[2:], TARGETS[2:])
    assert torch.allclose(alone, together[2:], atol=tolerance)


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.name)
def test_a_black_image_has_a_finite_map_and_dead_channels_do_no_harm(network, two_channel, explainer):
    assert explain(network, explainer, torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])).isfinite().all()
    assert explain(two_channel, explainer, torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])).eq(0).all()


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.name)
def test_the_costs_are_one_forward_and_at_most_one_backward_per_image(network, images, explainer):
    context = testing.explain_context(network, [Layer("layer4", network.layer4)], 3)
    contexts.explain(network, explainer, images, TARGETS, context)
    assert (context.passes.forward, context.passes.backward) == (3, 0 if isinstance(explainer, Cam) else 3)


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda explainer: explainer.name)
def test_the_model_is_left_as_it_was(two_channel, explainer):
    two_channel.train()
    explain(two_channel, explainer, X, torch.tensor([0]))
    assert two_channel.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in two_channel.parameters())
    assert not any(module._forward_hooks for module in two_channel.modules())
