"""The maps that pytorch-grad-cam computes: worked out by hand, beside the library called directly, and where it needs care."""

import copy

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST, ClassifierOutputTarget, FinerWeightedTarget
from torch import nn
from torchvision.models import resnet18

from bench import contexts, testing
from bench.errors import InvalidValue
from bench.interfaces import Layer
from bench.registry import Registry
from bench_plugins import gradcam_library
from bench_plugins.gradcam_library import EigenCam, EigenGradCam, FinerCam, FullGrad, GradCamElementWise, KpcaCam, ShapleyCam

X = testing.TWO_CHANNEL_IMAGE
FIRST = torch.tensor([0])
ALL = [EigenCam(), EigenGradCam(), KpcaCam(), GradCamElementWise(), FinerCam(), ShapleyCam(), FullGrad()]
TARGETS = torch.tensor([0, 4, 2])


def named(explainers):
    return pytest.mark.parametrize("explainer", explainers, ids=lambda explainer: explainer.name)


class Small(nn.Module):
    """Two convolutions at the size of the image, so that a map has the 256 pixels from which the solver of `kpca-cam` draws."""

    def __init__(self):
        super().__init__()
        first = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*first, nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        self.body[1].running_mean.normal_(0, 0.2)

    def forward(self, inputs):
        return self.body(inputs)

    @property
    def layers(self):
        return [Layer("body.1", self.body[1])]  # What it gives is overwritten by the ReLU behind it.


@pytest.fixture
def two_channel():
    return testing.TwoChannelNetwork()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet18(num_classes=5).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def thumbnails():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def explain(model, explainer, inputs, targets, **options):
    layers = model.layers if hasattr(model, "layers") else [Layer("layer3", model.layer3)]
    return testing.explain(model, explainer, inputs, targets, layers, **options)


def stretched(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def shown(heat, size):
    """As the library shows a map (B, 1, h, w): clamped, stretched, enlarged, stretched."""
    return stretched(F.interpolate(stretched(heat.clamp(min=0)), size=size, mode="bilinear"))


def head(network, maps):
    """What the network computes of the maps of its third stage."""
    return network.fc(network.avgpool(network.layer4(maps)).flatten(1))


def maps_of(network, images):
    stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    with torch.no_grad():
        return network.layer3(network.layer2(network.layer1(stem)))


# The maps of the two-channel network are relu(x) and relu(-x), the gradients 0.5 and -0.25.


@pytest.mark.parametrize(
    ("explainer", "expected"),
    [
        # Covariance of (1, 0), (0, 2), (3, 0), (0.5, 0): first axis (0.84770, -0.53048), projections 0.15928, -1.7494, 1.8547, -0.2646.
        (EigenCam(), [[0.08588, 0.0], [1.0, 0.0]]),
        (KpcaCam(kernel="linear"), [[0.08588, 0.0], [1.0, 0.0]]),
        # Of (0.5, 0), (0, -0.5), (1.5, 0), (0.25, 0): first axis (0.97260, 0.23249), one projection above zero.
        (EigenGradCam(), [[0.0, 0.0], [1.0, 0.0]]),
        (GradCamElementWise(), [[1 / 3, 0.0], [1.0, 1 / 6]]),  # 0.5 relu(x)
        (FinerCam(), [[1 / 3, 0.0], [1.0, 1 / 6]]),  # weights (2 + 1) / 4 and (-1 - 3) / 4 of the difference of the logits
        (ShapleyCam(), [[1 / 3, 0.0], [1.0, 1 / 6]]),  # weights 0.7344 and -0.5626
        (FullGrad(), [[0.2, 0.2], [1.0, 0.0]]),  # no biases: |x g| is 0.5, 0.5, 1.5, 0.25
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_map_of_the_two_channel_network_is_the_one_worked_out_by_hand(two_channel, explainer, expected):
    assert torch.allclose(explain(two_channel, explainer, X, FIRST)[0, 0], torch.tensor(expected), atol=1e-4)


def test_fullgrad_counts_the_input_from_the_mean_colour(two_channel):
    two_channel.normalisation.mean.fill_(-1.0)
    found = explain(two_channel, FullGrad(), X, FIRST)[0, 0]  # |x + 1| |g| is 1, 0.25, 2, 0.75
    assert torch.allclose(found, torch.tensor([[3 / 7, 0.0], [1.0, 2 / 7]]), atol=1e-4)


# Beside the library called directly


def library(kind, network, images, targets, *layers, **options):
    with kind(network, list(layers), **options) as cam:
        return torch.from_numpy(cam(images, targets))[:, None]


def test_the_maps_agree_with_the_library(network, images):
    plain = [ClassifierOutputTarget(int(target)) for target in TARGETS]
    rest = [ClassifierOutputReST(int(target)) for target in TARGETS]
    expected = {
        GradCamElementWise(): library(pytorch_grad_cam.GradCAMElementWise, network, images, plain, network.layer3),
        ShapleyCam(): library(pytorch_grad_cam.ShapleyCAM, network, images, rest, network.layer3),
    }
    for explainer, maps in expected.items():
        assert torch.allclose(explain(network, explainer, images, TARGETS), maps, atol=1e-4), explainer.name


def test_finercam_agrees_with_the_library_where_its_shares_do_not_round_to_zero(network, images):
    with torch.no_grad():
        logits = network(images)
    targets = []
    for row, target in zip(logits, TARGETS.tolist(), strict=True):
        nearest = sorted((other for other in range(5) if other != target), key=lambda other: abs(row[other] - row[target]))
        targets.append(FinerWeightedTarget(target, nearest[:3], 1.0))
    expected = library(pytorch_grad_cam.FinerCAM, network, images, targets, network.layer3)
    assert torch.allclose(explain(network, FinerCam(), images, TARGETS), expected, atol=1e-4)


class Shifted(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs + 0.5)


def test_fullgrad_agrees_with_the_library_on_images_counted_from_grey(network, images):
    plain = [lambda logits, target=target: 1e6 * logits[target] for target in TARGETS]  # far above the 1e-7 that the library adds
    expected = library(pytorch_grad_cam.FullGrad, Shifted(network), images - 0.5, plain)
    assert torch.allclose(explain(network, FullGrad(), images, TARGETS), expected, atol=1e-4)


# Beside another way to compute them


def principal(features):
    """(B, 1, h, w) the first principal component of (B, C, h, w) by the covariance of the channels, rising with their sum."""
    centred = (features - features.mean((2, 3), keepdim=True)).flatten(2).double()
    axis = torch.linalg.eigh(centred @ centred.transpose(1, 2)).eigenvectors[..., -1:]  # (B, C, 1)
    component = (centred * axis).sum(1)
    turn = torch.sign((component * centred.sum(1)).sum(1, keepdim=True))
    return (component * turn).view(len(features), 1, *features.shape[2:]).float()


def test_eigencam_is_the_first_principal_component(network, images):
    expected = shown(principal(maps_of(network, images)), (64, 64))
    assert torch.allclose(explain(network, EigenCam(), images, TARGETS), expected, atol=1e-3)


def test_eigengradcam_is_the_first_principal_component_of_gradient_times_map(network, images):
    maps = maps_of(network, images).requires_grad_()
    (gradients,) = torch.autograd.grad(head(network, maps).gather(1, TARGETS.view(-1, 1)).sum(), maps)
    expected = shown(principal((gradients * maps).detach()), (64, 64))
    assert torch.allclose(explain(network, EigenGradCam(), images, TARGETS), expected, atol=1e-3)


@named([EigenCam(), EigenGradCam()])
def test_the_sign_of_a_component_does_not_depend_on_the_linear_algebra(network, images, explainer, monkeypatch):
    found = explain(network, explainer, images, TARGETS)
    decompose = np.linalg.svd

    def mirrored(*arguments, **options):
        left, values, right = decompose(*arguments, **options)
        return -left, values, -right

    monkeypatch.setattr(np.linalg, "svd", mirrored)
    assert torch.allclose(explain(network, explainer, images, TARGETS), found, atol=1e-6)


def test_kpca_cam_is_the_first_axis_of_the_centred_kernel(network, images):
    maps = maps_of(network, images)
    points = (maps - maps.mean((2, 3), keepdim=True)).flatten(2).transpose(1, 2).double()  # (B, hw, C)
    kernel = torch.tanh(points @ points.transpose(1, 2) / maps.shape[1] + 1)
    centre = torch.eye(points.shape[1]) - 1 / points.shape[1]
    component = torch.linalg.eigh(centre.double() @ kernel @ centre.double()).eigenvectors[..., -1]
    turn = torch.sign((component * points.sum(2)).sum(1, keepdim=True))
    expected = shown((component * turn).view(3, 1, *maps.shape[2:]).float(), (64, 64))
    assert torch.allclose(explain(network, KpcaCam(), images, TARGETS), expected, atol=1e-3)


def weighted_by_shapleycam(logits_of, maps, targets):
    """(B, 1, h, w) by torch.func: the maps weighted by the mean of the gradient less half of the Hessian times the maps."""

    def utility(maps):
        logits = logits_of(maps)
        return (logits + logits.log_softmax(1)).gather(1, targets.view(-1, 1)).sum()

    gradients, second = torch.func.jvp(torch.func.grad(utility), (maps,), (maps,))
    assert second.abs().mean() > 1e-3 * gradients.abs().mean()  # It is a term that counts.
    return ((gradients - 0.5 * second).mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).detach()


def test_shapleycam_takes_half_of_the_second_derivative_off_the_gradient(network, images):
    expected = shown(weighted_by_shapleycam(lambda maps: head(network, maps), maps_of(network, images), TARGETS), (64, 64))
    assert torch.allclose(explain(network, ShapleyCam(), images, TARGETS), expected.nan_to_num(0), atol=1e-3)


@pytest.mark.parametrize(("comparisons", "strength"), [(1, 1.0), (3, 0.6), (10, 0.0)])
def test_finercam_is_gradcam_of_the_weighted_difference(network, images, comparisons, strength):
    maps = maps_of(network, images).requires_grad_()
    total = torch.tensor(0.0)
    for row, target in zip(head(network, maps), TARGETS.tolist(), strict=True):
        others = [other for other in (row - row[target]).abs().argsort().tolist() if other != target][:comparisons]
        shares = row[others].exp() / row[others].exp().sum()
        total = total + (shares * (row[target] - strength * row[others])).sum()
    (gradients,) = torch.autograd.grad(total, maps)
    expected = shown((gradients.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).detach(), (64, 64))
    found = explain(network, FinerCam(comparisons=comparisons, strength=strength), images, TARGETS)
    assert torch.allclose(found, expected.nan_to_num(0), atol=1e-3)


def test_finercam_still_compares_where_the_target_is_certain(two_channel):
    assert explain(two_channel, FinerCam(), 60 * X, FIRST).amax() == pytest.approx(1)  # softmax of the other class: e^-82


def test_fullgrad_sums_input_and_biases_times_their_gradients(small, thumbnails):
    first, norm, _, second = small.body[:4]
    inputs = (thumbnails - 0.5).requires_grad_()
    outputs = [first(inputs + 0.5)]
    outputs.append(norm(outputs[0]))
    outputs.append(second(outputs[1].relu()))
    logits = small.body[4:](outputs[2])
    of_input, *of_outputs = torch.autograd.grad(logits.gather(1, TARGETS.view(-1, 1)).sum(), [inputs, *outputs])
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    parts = [of_input * inputs]
    parts += [gradient * bias.view(1, -1, 1, 1) for gradient, bias in zip(of_outputs, (first.bias, shift, second.bias), strict=True)]
    expected = sum(stretched(part.abs()).nan_to_num(0).sum(1, keepdim=True) for part in parts)
    assert torch.allclose(explain(small, FullGrad(), thumbnails, TARGETS), stretched(expected).detach(), atol=1e-3)


# Where the library needs care


@named([EigenCam(), EigenGradCam(), KpcaCam(), GradCamElementWise(), FinerCam(), ShapleyCam()])
def test_maps_before_an_in_place_relu_are_the_ones_the_layer_gave(small, thumbnails, explainer):
    model = copy.deepcopy(small)
    in_place = explain(model, explainer, thumbnails, TARGETS)
    model.body[2].inplace = False
    assert torch.allclose(explain(model, explainer, thumbnails, TARGETS), in_place, atol=1e-5)


class Tokens(nn.Module):
    """A class token and then the map's pixels, channel last; the logits are the mean of the pixels' squares."""

    def __init__(self):
        super().__init__()
        self.block, self.scale = nn.Identity(), nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs):
        pixels = self.scale * inputs.flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([torch.full_like(pixels[:, :1], 9.0), pixels], 1))
        return (tokens[:, 1:] ** 2).mean(1)


def test_a_model_says_how_its_tokens_become_a_map():
    model, inputs = Tokens(), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    layer, targets = Layer("block", model.block, lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))), torch.tensor([0, 2])
    expected = {
        GradCamElementWise(): torch.stack([inputs[0, :1], inputs[1, 2:]]) ** 2,  # only the target's channel has a gradient
        EigenCam(): principal(inputs),
        ShapleyCam(): weighted_by_shapleycam(lambda maps: (maps**2).mean((2, 3)), 2 * inputs, targets),
    }
    for explainer, heat in expected.items():
        found = testing.explain(model, explainer, inputs, targets, [layer])
        assert torch.allclose(found, shown(heat, (4, 4)).nan_to_num(0), atol=1e-3), explainer.name


def biased(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 3, 1)

    def forward(self, inputs):
        return self.second(self.first(inputs)).mean((2, 3))


CONV = nn.Conv2d(4, 4, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (biased(nn.GroupNorm(1, 4)), "'1', a GroupNorm"),
        (biased(nn.BatchNorm2d(4, affine=False)), "'1', a BatchNorm2d"),
        (biased(CONV, CONV), "'1', a Conv2d"),
        (Backwards(), "'first', a Conv2d"),
    ],
)
def test_fullgrad_refuses_biases_that_it_would_not_count_right(thumbnails, model, message):
    with pytest.raises(InvalidValue, match=message):
        testing.explain(model, FullGrad(), thumbnails, TARGETS, [Layer("", model)])


# What holds for all of them


@named(ALL)
def test_a_batch_is_its_parts(small, thumbnails, explainer):
    together = explain(small, explainer, thumbnails, TARGETS)
    assert (together.amin(), together.amax()) == (0, pytest.approx(1))
    assert torch.allclose(explain(small, explainer, thumbnails, TARGETS, chunk=2), together, atol=1e-5)
    assert torch.allclose(explain(small, explainer, thumbnails[:1], TARGETS[:1]), together[:1], atol=1e-5)
    others = explain(small, explainer, torch.cat([thumbnails[:1], thumbnails[1:].flip(3)]), TARGETS)
    assert torch.equal(others[:1], together[:1])


@named(ALL)
def test_no_forward_is_larger_than_the_chunk(small, thumbnails, explainer):
    sizes = []
    handle = small.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    explain(small, explainer, thumbnails, TARGETS, chunk=2)
    handle.remove()
    assert set(sizes) == {2}


@named(ALL)
def test_numpys_stream_is_left_alone_and_does_not_matter(small, thumbnails, explainer):
    np.random.seed(5)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    found = explain(small, explainer, thumbnails, TARGETS)
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.random.seed(6)
    assert torch.equal(explain(small, explainer, thumbnails, TARGETS), found)


@named(ALL)
def test_a_black_image_and_a_grey_one_have_finite_maps(small, explainer):
    inputs = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.5)])
    assert explain(small, explainer, inputs, torch.tensor([0, 1])).isfinite().all()


@named(ALL)
def test_an_even_image_has_a_map_of_zeros(two_channel, explainer):
    two_channel.normalisation.mean.fill_(0.5)
    assert not explain(two_channel, explainer, torch.full((2, 1, 16, 16), 0.5), torch.tensor([0, 1])).any()


class Failing(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        self.model(inputs)
        raise IndexError("out of luck")


def traces(model):
    hooks = [{kind: list(getattr(module, kind)) for kind in vars(module) if kind.endswith("_hooks")} for module in model.modules()]
    flags = [module.training for module in model.modules()], [parameter.requires_grad for parameter in model.parameters()]
    return hooks, [set(vars(module)) for module in model.modules()], flags


@named(ALL)
def test_the_model_is_left_as_it_was_found(thumbnails, explainer):
    model = Small().train()
    nn.functional.cross_entropy(model(thumbnails), TARGETS).backward()
    weights, gradients, before = copy.deepcopy(model.state_dict()), [parameter.grad for parameter in model.parameters()], traces(model)
    assert not explain(model, explainer, thumbnails, TARGETS).requires_grad
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is kept for parameter, kept in zip(model.parameters(), gradients, strict=True))
    assert traces(model) == before


@named(ALL)
def test_a_forward_that_fails_is_heard_of_and_leaves_no_trace(thumbnails, explainer):
    model = Failing(Small())
    before = traces(model)
    with pytest.raises(IndexError, match="out of luck"):
        testing.explain(model, explainer, thumbnails, TARGETS, [Layer("layer", model.model.body[1])])
    assert traces(model) == before


@pytest.mark.parametrize(
    ("explainer", "forward", "backward"),
    [(EigenCam(), 1, 0), (KpcaCam(), 1, 0), (GradCamElementWise(), 1, 1), (FinerCam(), 2, 1), (ShapleyCam(), 1, 2), (FullGrad(), 1, 1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_costs_are_those_on_the_card(small, thumbnails, explainer, forward, backward):
    context = testing.explain_context(small, small.layers, 3)
    contexts.explain(small, explainer, thumbnails, TARGETS, context)
    assert (context.passes.forward / 3, context.passes.backward / 3) == (forward, backward)


def test_every_part_can_be_asked_for_by_its_name():
    registry = Registry()

    def register(factory, *, name=None, **defaults):
        registry.add("explainer", factory, name=name, defaults=defaults, plugin="gradcam_library", distribution="test")

    gradcam_library.register_explainers(register)
    assert {registry.resolve("explainer", entry.name).part for entry in registry.entries("explainer")} == set(ALL)
