"""Score-CAM and Ablation-CAM on a network worked out by hand, beside a plain loop, and beside pytorch-grad-cam."""

import math

import pytest
import torch
from pytorch_grad_cam import AblationCAM as LibraryAblationCam
from pytorch_grad_cam import ScoreCAM as LibraryScoreCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models import resnet18

from bench import contexts, testing
from bench.interfaces import Layer
from bench_plugins.gradcam import GradCam
from bench_plugins.masking_cams import AblationCam, ScoreCam

X = testing.TWO_CHANNEL_IMAGE
ZERO, ONE = torch.tensor([0]), torch.tensor([1])
EXPLAINERS = [ScoreCam(fill="black"), ScoreCam(weights="softmax"), ScoreCam(weights="probability"), AblationCam()]


@pytest.fixture
def two_channel():
    return testing.TwoChannelNetwork()


@pytest.fixture(scope="module")
def network():
    """With a positive classifier, so that the logits are positive and differ clearly."""
    torch.manual_seed(0)
    model = resnet18(num_classes=5).eval()
    with torch.no_grad():
        model.fc.weight.abs_().mul_(10)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def targets(network, images):
    """Classes that the images speak for more than black ones do: the increase of any other would have an empty map."""
    with torch.no_grad():
        return (network(images).softmax(1) - network(torch.zeros_like(images)).softmax(1)).argmax(1)


def explain(model, explainer, inputs, targets, **options):
    layers = model.layers if hasattr(model, "layers") else [Layer("layer1", model.layer1)]
    return testing.explain(model, explainer, inputs, targets, layers, **options)


def stretched(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def for_library(targets):
    return [ClassifierOutputTarget(int(target)) for target in targets]


# The masks are [[1/3, 0], [1, 1/6]] and [[0, 1], [0, 0]]. Behind them P = (1/3 + 3 + 1/12) / 4 and Q = 0, P = 0 and Q = 1/2:
# logits (2P, -P) = (1.708333, -.854167) and (-0.5, 1.5); all hidden gives (0, 0).
KEPT = 3 * (1 / 3 + 3 + 1 / 12) / 4  # the first logit less the second, behind the first mask


def test_scorecam_weighs_by_the_increase_of_the_probability(two_channel):
    first, second = sigmoid(KEPT) - 0.5, sigmoid(-2) - 0.5
    assert torch.allclose(explain(two_channel, ScoreCam(), X, ZERO), (first * X.relu() + second * (-X).relu()).relu())
    first, second = sigmoid(-KEPT) - 0.5, sigmoid(2) - 0.5
    assert torch.allclose(explain(two_channel, ScoreCam(), X, ONE), (first * X.relu() + second * (-X).relu()).relu())


def test_the_softmax_variant_weighs_channels_against_each_other(two_channel):
    first = sigmoid(2 * KEPT / 3 + 0.5)
    found = explain(two_channel, ScoreCam(weights="softmax"), X, ZERO)
    assert torch.allclose(found, first * X.relu() + (1 - first) * (-X).relu())
    assert torch.allclose(stretched(found), torch.tensor([[[[0.2806, 0.0], [1.0, 0.1008]]]]), atol=1e-4)  # what the library gives


def test_the_reference_variant_weighs_by_the_probability_itself(two_channel):
    found = explain(two_channel, ScoreCam(weights="probability"), X, ZERO)
    assert torch.allclose(found, sigmoid(KEPT) * X.relu() + sigmoid(-2) * (-X).relu())


def test_the_hidden_part_of_scorecam_is_filled_as_asked(two_channel):
    two_channel.normalisation.mean.fill_(-1.0)  # The colour that `mean` stands for; the network itself does not use it.
    # Behind the first mask: 1/3 - 2/3, -1, 3, 1/6 - ... = [[-1/3, -1], [3, -3/4]]; behind the second [[-1, -2], [-1, -1]].
    first = 3 * 3 / 4 - 4 * (1 / 3 + 1 + 3 / 4) / 4  # 2P - Q less -P + 3Q
    second, hidden = -4 * 5 / 4, -4 * 1
    found = explain(two_channel, ScoreCam(), X, ZERO)
    increases = [sigmoid(first) - sigmoid(hidden), sigmoid(second) - sigmoid(hidden)]
    assert torch.allclose(found, (increases[0] * X.relu() + increases[1] * (-X).relu()).relu(), atol=1e-6)


def test_ablationcam_weighs_by_the_share_of_the_logit_that_is_lost(two_channel):
    # The logits 1.75 and 0.375 lose 2P and -Q, and -P and 3Q, where P = 4.5 / 4 and Q = 2 / 4.
    found = explain(two_channel, AblationCam(), X, ZERO)
    assert torch.allclose(found, ((2.25 * X.relu() - 0.5 * (-X).relu()) / 1.75).relu())
    found = explain(two_channel, AblationCam(), X, ONE)
    assert torch.allclose(found, ((-1.125 * X.relu() + 1.5 * (-X).relu()) / 0.375).relu())


def test_ablationcam_without_the_division_keeps_its_direction_when_the_logit_is_negative(two_channel):
    x = -X  # The logits are 2 · 2/4 - 4.5/4 = -0.125 and 2.875; class 0 loses 1 and -1.125.
    assert torch.allclose(explain(two_channel, AblationCam(relative=False), x, ZERO), (x.relu() - 1.125 * (-x).relu()).relu())
    assert torch.allclose(explain(two_channel, AblationCam(), x, ZERO), ((x.relu() - 1.125 * (-x).relu()) / -0.125).relu())


def test_on_a_linear_head_an_even_map_gives_ablationcam_the_order_of_gradcam(two_channel):
    relative = explain(two_channel, AblationCam(), X, ZERO)
    assert torch.allclose(stretched(relative), stretched(explain(two_channel, GradCam(), X, ZERO)))


def maps_of(model, layer, inputs):
    kept = []
    handle = layer.register_forward_hook(lambda module, arguments, output: kept.append(output.detach()))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return kept[0]


def resized(maps, size=(32, 32)):
    return nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def test_scorecam_is_the_loop_over_images_and_channels(network, images, targets):
    maps = maps_of(network, network.layer1, images)
    found = explain(network, ScoreCam(fill="black"), images, targets)
    for row in range(2):
        with torch.no_grad():
            hidden = network(torch.zeros(1, 3, 32, 32)).softmax(1)[0, targets[row]]
            total = 0
            for channel in maps[row]:
                mask = stretched(resized(channel[None, None]))
                total = total + (network(images[row : row + 1] * mask).softmax(1)[0, targets[row]] - hidden) * channel
        expected = resized(total.relu()[None, None])
        assert expected.max() > 0
        assert torch.allclose(found[row : row + 1], expected, atol=1e-4 * expected.max().item())


def test_scorecam_softmax_agrees_with_pytorch_grad_cam(network, images, targets, monkeypatch):
    # The library's masks keep their corners when they are resized; here they are resized as ours.
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False))
    with LibraryScoreCam(network, [network.layer1]) as library:
        expected = torch.from_numpy(library(images, for_library(targets)))
    found = explain(network, ScoreCam(weights="softmax", fill="black"), images, targets)
    assert torch.allclose(stretched(found)[:, 0], expected, atol=1e-4)


def test_ablationcam_agrees_with_pytorch_grad_cam(network, images, targets):
    with LibraryAblationCam(network, [network.layer1]) as library:
        expected = torch.from_numpy(library(images, for_library(targets)))
    assert torch.allclose(stretched(explain(network, AblationCam(), images, targets))[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("explainer", [*EXPLAINERS, ScoreCam(fill="blur", weights="probability")], ids=repr)
def test_a_batch_is_its_parts_whatever_the_chunk(network, images, targets, explainer):
    together = explain(network, explainer, images, targets)
    tolerance = 1e-4 * together.max().item()
    assert tolerance > 0
    assert torch.allclose(explain(network, explainer, images, targets, chunk=9), together, atol=tolerance)
    assert torch.allclose(explain(network, explainer, images[1:], targets[1:]), together[1:], atol=tolerance)


class Closed(nn.Module):
    """A network whose features and head cannot be had one by one."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.layers = inner, inner.layers

    def forward(self, inputs):
        return self.inner(inputs)


def test_ablationcam_through_the_head_alone_is_that_through_the_whole_network():
    model, inputs, targets = testing.TinyNetwork(), testing.tiny_images(3), torch.tensor([0, 1, 2])
    passes = []
    for layer, network in ((1, model), (1, Closed(model)), (0, model), (0, Closed(model))):
        context = testing.explain_context(network, model.layers[layer : layer + 1], 3)
        found = contexts.explain(network, AblationCam(relative=False), inputs, targets, context)
        passes.append((context.passes.forward, found))
    assert torch.allclose(passes[0][1], passes[1][1], atol=1e-6)
    assert passes[0][0] == 3 + 2
    assert passes[1][0] > 3 * 6
    assert torch.equal(passes[2][1], passes[3][1])  # The head takes the last stage's maps, not the first's.


class WithADeadChannel(testing.TwoChannelNetwork):
    """A third feature map that is constant: zero, or one."""

    def __init__(self, constant):
        super().__init__()
        self.constant = constant
        self.join = nn.Identity()

    @property
    def layers(self):
        return [Layer("join", self.join)]

    def forward(self, inputs):
        maps = self.relu(self.conv(inputs))
        joined = self.join(torch.cat([maps, torch.full_like(maps[:, :1], self.constant)], 1))
        return self.head(joined[:, :2].mean((2, 3))) + joined[:, 2:].mean((2, 3))


@pytest.mark.parametrize("explainer", EXPLAINERS[:3], ids=repr)
def test_scorecam_does_not_forward_a_constant_map_and_loses_nothing(two_channel, explainer):
    for constant in (0.0, 1.0):
        model = WithADeadChannel(constant)
        context = testing.explain_context(model, model.layers, 1)
        found = contexts.explain(model, explainer, X, ZERO, context)
        assert context.passes.forward == 2 * (1 + 2) + 2  # A lone row counts twice: maps, two masks, and the background.
        first, second, third = {
            "increase": [sigmoid(KEPT) - 0.5, sigmoid(-2) - 0.5, 0.0],
            "probability": [sigmoid(KEPT), sigmoid(-2), 0.0],
            "softmax": torch.tensor([2 * KEPT / 3, -0.5, 0.0]).softmax(0).tolist(),  # Less the constant, which all logits have.
        }[explainer.weights]
        assert torch.allclose(found, (first * X.relu() + second * (-X).relu() + third * constant).relu())


def test_ablationcam_spares_channels_that_are_zero_already():
    model = WithADeadChannel(0.0)
    context = testing.explain_context(model, model.layers, 1)
    found = contexts.explain(model, AblationCam(), X, ZERO, context)
    assert context.passes.forward == 2 * (1 + 2)
    assert torch.allclose(found, ((2.25 * X.relu() - 0.5 * (-X).relu()) / 1.75).relu())


class Tokens(nn.Module):
    """A class token and then the map's pixels, channel last; every token counts in the logits."""

    def __init__(self):
        super().__init__()
        self.block = nn.Identity()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs):
        pixels = inputs.flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([torch.full_like(pixels[:, :1], 9.0), pixels], 1))
        return self.scale * tokens.mean(1)


def test_ablationcam_hides_a_channel_of_the_map_and_leaves_other_tokens_alone():
    model, inputs = Tokens(), torch.rand(2, 3, 4, 4)
    layer = Layer("block", model.block, lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    found = testing.explain(model, AblationCam(), inputs, torch.tensor([0, 2]), [layer])
    own = torch.stack([inputs[0, :1], inputs[1, 2:]])
    total = own.sum((1, 2, 3), keepdim=True)
    assert torch.allclose(found, total / (total + 9) * own)  # The class token's 9 is not lost.


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
def test_a_black_image_has_a_finite_map(network, two_channel, explainer):
    assert explain(network, explainer, torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])).isfinite().all()
    assert explain(two_channel, explainer, torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])).eq(0).all()


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
def test_the_model_is_left_as_it_was(two_channel, explainer):
    two_channel.train()
    explain(two_channel, explainer, X, ZERO)
    assert two_channel.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in two_channel.parameters())
    assert not any(module._forward_hooks for module in two_channel.modules())


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=repr)
def test_no_forward_is_larger_than_the_chunk(network, images, targets, explainer):
    sizes = []
    handle = network.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    explain(network, explainer, images, targets, chunk=10)
    handle.remove()
    assert max(sizes) == 10
