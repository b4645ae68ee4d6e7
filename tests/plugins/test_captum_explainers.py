"""The explainers that captum computes: on a network worked out by hand, beside captum itself, and where captum goes wrong silently."""

import copy

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule
from torch import nn
from torchvision.models import resnet18

from bench import contexts, testing
from bench.errors import InvalidValue
from bench.interfaces import Layer
from bench.registry import Registry
from bench_plugins import captum_explainers
from bench_plugins.captum_explainers import (
    Conductance,
    DeconvNet,
    DeepLift,
    GradientShap,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Lime,
    Lrp,
    Occlusion,
    Saliency,
    ShapleySampling,
    SmoothGrad,
    SmoothGradSquared,
    VarGrad,
)
from bench_plugins.captum_explainers.regions import grid_of_cells, nearness
from bench_plugins.cifar_resnets import CifarResNet
from bench_plugins.resnet_mini import ResNetMini
from bench_plugins.torchvision_models import ResNet

X = testing.TWO_CHANNEL_IMAGE
FIRST = torch.tensor([0])
ALL = [
    Saliency(),
    InputXGradient(),
    SmoothGrad(samples=3),
    SmoothGradSquared(samples=3),
    VarGrad(samples=3),
    GradientShap(samples=3, noise=0.1),
    IntegratedGradients(steps=5, tolerance=1.0),
    Conductance(steps=3),
    DeconvNet(),
    GuidedBackprop(),
    GuidedGradCam(),
    DeepLift(baseline="black"),
    Occlusion(window=0.5, stride=0.25),
    Lime(samples=9, cells=2),
    KernelShap(samples=9, cells=2),
    ShapleySampling(samples=2, cells=2),
    Lrp(),
    Lrp(rule="gamma"),
]


def named(explainers):
    return pytest.mark.parametrize("explainer", explainers, ids=lambda explainer: getattr(explainer, "rule", "") + explainer.name)


class Normalisation(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))

    def forward(self, inputs):
        return (inputs - self.mean) / self.std


class Small(nn.Module):
    """A plain network with what most have: normalisation, batch norm, in-place ReLU, overlapping max-pooling, dropout, biases."""

    def __init__(self):
        super().__init__()
        self.normalisation = Normalisation()
        first = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        second = [nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(32, 4)]
        self.body = nn.Sequential(*first, *second)
        self.body[1].running_mean.normal_(0, 0.2)
        self.body[1].running_var.uniform_(0.5, 2)

    def forward(self, inputs):
        return self.body(self.normalisation(inputs))

    @property
    def layers(self):
        return [Layer("body.4", self.body[4])]


@pytest.fixture
def two_channel():
    return testing.TwoChannelNetwork()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 3, 1, 1, 2])


def explain(model, explainer, inputs, targets, **options):
    layers = model.layers if hasattr(model, "layers") else [Layer("", model)]
    return testing.explain(model, explainer, inputs, targets, layers, **options)


def lowered(model):
    """The two-channel network with a mean colour of -1, which it does not use, so that fills are -1."""
    model.normalisation.mean.fill_(-1.0)
    return model


# On the two-channel network the logit of class 0 is a sum over pixels of relu(x) / 2 - relu(-x) / 4.


@pytest.mark.parametrize(
    ("explainer", "expected"),
    [
        (Saliency(), [[0.5, 0.25], [0.5, 0.5]]),
        (InputXGradient(), [[0.5, -0.5], [1.5, 0.25]]),
        (GradientShap(samples=3), [[0.5, -0.5], [1.5, 0.25]]),
        (IntegratedGradients(), [[0.5, -0.5], [1.5, 0.25]]),
        (Conductance(), [[0.5, -0.5], [1.5, 0.25]]),
        (DeconvNet(), [[0.5, 0.5], [0.5, 0.5]]),
        (GuidedBackprop(), [[0.5, 0.0], [0.5, 0.5]]),
        (GuidedGradCam(), [[0.25, 0.0], [0.75, 0.125]]),
        (DeepLift(), [[0.5, -0.5], [1.5, 0.25]]),
        (Occlusion(), [[0.5, -0.5], [1.5, 0.25]]),
        (KernelShap(samples=100), [[0.5, -0.5], [1.5, 0.25]]),
        (ShapleySampling(samples=2), [[0.5, -0.5], [1.5, 0.25]]),
        (Lrp(), [[0.5, -0.5], [1.5, 0.25]]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_map_of_the_two_channel_network_is_the_one_worked_out_by_hand(two_channel, explainer, expected):
    assert torch.allclose(explain(two_channel, explainer, X, FIRST)[0, 0], torch.tensor(expected), atol=1e-5)


@named([DeepLift(), Occlusion(), KernelShap(samples=100), ShapleySampling(samples=2)])
def test_effects_are_counted_from_the_baseline(two_channel, explainer):
    # A pixel of -1 gives -0.25, and the logit of the baseline is -1.
    assert torch.allclose(explain(lowered(two_channel), explainer, X, FIRST)[0, 0], torch.tensor([[0.75, -0.25], [1.75, 0.5]]), atol=1e-5)


@named([IntegratedGradients(), Conductance(steps=200)])
def test_a_path_meets_the_kink_between_two_of_its_points(two_channel, explainer):
    found = explain(lowered(two_channel), explainer, X, FIRST)[0, 0]
    assert torch.allclose(found, torch.tensor([[0.75, -0.25], [1.75, 0.5]]), atol=0.02)  # the third pixel passes 4 · 0.25 / 50 in one step


def test_the_gradient_is_multiplied_by_the_distance_from_the_baseline(two_channel):
    assert torch.allclose(explain(lowered(two_channel), InputXGradient(), X, FIRST)[0, 0], torch.tensor([[1.0, -0.25], [2.0, 0.75]]))


def test_the_gamma_rule_favours_what_speaks_for_the_target(two_channel):
    # The head's weights become 2.5 and -1: shares 2.8125 / 2.3125 and -0.5 / 2.3125 of the logit, then by activation within each channel.
    positive, negative = 1.75 * 2.8125 / 2.3125 / 4.5, -1.75 * 0.5 / 2.3125
    found = explain(two_channel, Lrp(rule="gamma"), X, FIRST)[0, 0]
    assert torch.allclose(found, torch.tensor([[positive, negative], [3 * positive, 0.5 * positive]]))


def test_the_gamma_rule_favours_what_speaks_against_a_logit_below_zero(two_channel):
    # For -x the logit is 2 · 0.5 - 1.125 = -0.125. The head's weights become 2 and -1.25: shares 1 and -1.40625 of -0.40625.
    positive, negative = -0.125 * 1 / -0.40625, -0.125 * -1.40625 / -0.40625
    found = explain(two_channel, Lrp(rule="gamma"), -X, FIRST)[0, 0]
    assert torch.allclose(found, torch.tensor([[negative / 4.5, positive], [3 * negative / 4.5, 0.5 * negative / 4.5]]))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_gamma_rule_is_captums_where_inputs_and_outputs_are_above_zero(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    with torch.no_grad():
        model[5].bias += 5.0
    reference = copy.deepcopy(model)
    for layer in (reference[0], reference[2], reference[5]):
        layer.rule = GammaRule(0.25)
    reference[4].rule = EpsilonRule()
    expected = captum.attr.LRP(reference).attribute(images, TARGETS).sum(1, keepdim=True).detach()
    found = explain(model, Lrp(rule="gamma"), images, TARGETS)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("steps", "total"), [(10, 1.7119), (50, 1.7481)])
def test_gauss_legendre_steps_leave_out_the_ends_of_the_path(two_channel, steps, total):
    found = explain(two_channel, Conductance(steps=steps, points="gauss-legendre"), X, FIRST)
    assert found.sum().item() == pytest.approx(total, abs=1e-4)


def test_lime_finds_effects_that_add_up_but_for_its_ridge(two_channel):
    found = explain(two_channel, Lime(samples=2000), X, FIRST)[0, 0]
    expected = torch.tensor([[0.5, -0.5], [1.5, 0.25]])
    assert torch.allclose(found, expected, atol=0.02)
    assert found.abs().sum() < expected.abs().sum()


class SquaredSum(nn.Module):
    """Logits (Σ x)² and Σ x. The first has Shapley values x_i Σ x: each x_i², and half of every 2 x_i x_j."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, inputs):
        self.shown.append(inputs)
        total = inputs.sum((1, 2, 3))
        return torch.stack([total**2, total], 1)


PIXELS = torch.tensor([[[[0.1, 0.4], [0.3, 0.8]]]])


def test_lime_is_a_weighted_ridge_regression_on_the_pictures_it_showed():
    model = SquaredSum()
    found = explain(model, Lime(samples=30, baseline="black"), PIXELS, FIRST)
    shown, logits = (model.shown[0].flatten(1) > 0).double(), model.shown[0].flatten(1).sum(1).double() ** 2
    assert shown.shape == (30, 4)
    assert shown[0].all()
    weights = torch.exp(-((1 - shown.mean(1).sqrt()) ** 2) / (2 * 0.25**2))[:, None]
    centred = shown - (weights * shown).sum(0) / weights.sum()
    expected = torch.linalg.solve(centred.T @ (weights * centred) + torch.eye(4), centred.T @ (weights[:, 0] * logits))
    assert torch.allclose(found.flatten().double(), expected, atol=1e-5)


@named([KernelShap(samples=2000, baseline="black"), ShapleySampling(samples=400, baseline="black")])
def test_sampled_shapley_values_tend_to_the_exact_ones(explainer):
    found = explain(SquaredSum(), explainer, PIXELS, FIRST)
    assert torch.allclose(found, PIXELS * 1.6, atol=0.05)  # an effect varies by less than 0.5: √400 makes that 0.025
    assert found.sum().item() == pytest.approx(1.6**2, abs=1e-3)


def test_lime_weighs_by_the_cosine_between_shown_regions_and_all():
    everything, half = torch.ones(1, 4), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert nearness(X, X, everything) == 1
    assert nearness(X, X, half) == pytest.approx(0.5034, abs=1e-4)  # exp(-(1 - √0.5)² / (2 · 0.25²))


def test_regions_are_the_cells_of_a_grid():
    assert grid_of_cells((2, 4), 2).tolist() == [[[[0, 0, 1, 1], [2, 2, 3, 3]]]]
    assert grid_of_cells((3, 2), 8).tolist() == [[[[0, 1], [2, 3], [4, 5]]]]  # no more cells than pixels
    assert grid_of_cells((5, 5), 2).unique().tolist() == [0, 1, 2, 3]


# Noise


class Square(nn.Module):
    """Logits x² / 2 and x⁴ / 4 summed over the pixels: the gradients are x and x³."""

    def forward(self, inputs):
        return torch.stack([(inputs**power).sum((1, 2, 3)) / power for power in (2, 4)], 1)


def test_the_moments_of_the_noisy_gradient_are_those_of_the_noise():
    inputs = torch.tensor([0.25, 0.75]).repeat_interleave(2000).view(1, 1, 40, 100)  # the range is 0.5, so the deviation is 0.3
    found = {part: explain(Square(), part(samples=20, noise=0.6), inputs, FIRST)[0, 0] for part in (SmoothGrad, SmoothGradSquared, VarGrad)}
    bright = inputs[0, 0] == 0.75
    assert found[SmoothGrad][bright].mean().item() == pytest.approx(0.75, abs=0.01)  # 40000 draws: standard error 0.0015
    assert found[SmoothGradSquared][bright].mean().item() == pytest.approx(0.5625 + 0.09, abs=0.02)
    assert found[SmoothGradSquared][~bright].mean().item() == pytest.approx(0.0625 + 0.09, abs=0.01)
    assert found[VarGrad].mean().item() == pytest.approx(0.09 * 19 / 20, abs=0.005)  # the variance divides by n


def test_noise_changes_nothing_where_the_gradient_is_the_same_everywhere():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    inputs, targets = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    weights = model[1].weight[targets].view(2, 3, 2, 2)
    assert torch.allclose(explain(model, SmoothGrad(samples=4), inputs, targets), weights.abs().amax(1, keepdim=True), atol=1e-6)
    assert torch.allclose(explain(model, SmoothGradSquared(samples=4), inputs, targets), (weights**2).amax(1, keepdim=True), atol=1e-6)
    assert explain(model, VarGrad(samples=4), inputs, targets).abs().max() < 1e-8


def test_gradient_shap_tends_to_integrated_gradients():
    inputs = torch.tensor([[[0.2, 0.6], [0.9, 1.0]]]).expand(100, 1, 2, 2)  # the same image with a hundred random streams
    found = explain(Square(), GradientShap(samples=40, baseline="black"), inputs, torch.ones(100, dtype=torch.long), chunk=100)
    assert found.std(0).max() > 0.01
    # The integral of x (a x)³ over a; the standard error for x = 1 is √(1/7 - 1/16) / √4000 = 0.0045.
    assert torch.allclose(found.mean(0), inputs[0] ** 4 / 4, atol=0.015)


# Beside captum itself


@pytest.mark.filterwarnings("ignore::UserWarning")  # captum announces each time that it sets hooks
def test_the_maps_agree_with_captum(small, images):
    baselines = small.normalisation.mean.expand_as(images)
    arguments = (images, baselines, TARGETS)
    expected = {
        Saliency(): captum.attr.Saliency(small).attribute(images, TARGETS).amax(1, keepdim=True),
        InputXGradient(): captum.attr.InputXGradient(lambda d: small(d + baselines)).attribute(images - baselines, TARGETS).sum(1, keepdim=True),
        IntegratedGradients(): captum.attr.IntegratedGradients(small).attribute(*arguments).sum(1, keepdim=True),
        DeconvNet(): captum.attr.Deconvolution(small).attribute(images, TARGETS).sum(1, keepdim=True),
        GuidedBackprop(): captum.attr.GuidedBackprop(small).attribute(images, TARGETS).sum(1, keepdim=True),
        GuidedGradCam(layer="body.4"): captum.attr.GuidedGradCam(small, small.body[4])
        .attribute(images, TARGETS, interpolate_mode="bilinear")
        .sum(1, keepdim=True),
        Occlusion(window=0.5, stride=0.25): captum.attr.Occlusion(small).attribute(images, (3, 6, 6), (3, 3, 3), *arguments[1:])[:, :1],
    }
    for explainer, values in expected.items():
        found = explain(small, explainer, images, TARGETS)
        assert torch.allclose(found, values.detach(), rtol=1e-4, atol=1e-5 * values.abs().max().item()), explainer.name


def test_conductance_agrees_with_captum(small, images):
    library = captum.attr.LayerConductance(small, small.body[4])
    maps = library.attribute(images, small.normalisation.mean.expand_as(images), TARGETS, n_steps=7, method="riemann_trapezoid")
    expected = F.interpolate(maps.sum(1, keepdim=True), size=(12, 12), mode="bilinear").detach()
    assert torch.allclose(explain(small, Conductance(steps=7), images, TARGETS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_deeplift_agrees_with_captum_where_nothing_overlaps_or_adjoins(images):
    torch.manual_seed(3)
    first = [nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 5, 1), nn.MaxPool2d(2)]
    model = nn.Sequential(*first, nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)).eval()
    expected = captum.attr.DeepLift(model).attribute(images, torch.zeros_like(images), TARGETS).sum(1, keepdim=True).detach()
    assert torch.allclose(explain(model, DeepLift(baseline="black"), images, TARGETS), expected, atol=1e-6)


# Where captum goes wrong without a word


class Functional(testing.TwoChannelNetwork):
    def forward(self, inputs):
        return self.head(F.adaptive_avg_pool2d(F.relu(self.conv(inputs)), 1).flatten(1))


class InPlace(testing.TwoChannelNetwork):
    def forward(self, inputs):
        maps = self.conv(inputs)
        F.relu_(maps)
        return self.head(maps.mean((2, 3)))


class Clamped(testing.TwoChannelNetwork):
    def forward(self, inputs):
        return self.head(self.conv(inputs).clamp(min=0).mean((2, 3)))


@pytest.mark.parametrize("network", [Functional, InPlace, Clamped])
def test_a_relu_outside_modules_counts_as_one(network):
    model = network()
    assert torch.allclose(explain(model, DeconvNet(), X, FIRST)[0, 0], torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    assert torch.allclose(explain(model, GuidedBackprop(), X, FIRST)[0, 0], torch.tensor([[0.5, 0.0], [0.5, 0.5]]))
    found = explain(lowered(model), DeepLift(), X, FIRST)[0, 0]
    assert torch.allclose(found, torch.tensor([[0.75, -0.25], [1.75, 0.5]]))  # captum: 1, -0.25, 2, 0.75


class Deconvolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs.relu()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.relu()


class Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.relu()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.relu() * (ctx.saved_tensors[0] > 0)


class Branching(nn.Module):
    """One ReLU called four times, in two branches and beside a skip connection from its own input."""

    def __init__(self, relu):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)])
        self.relu = relu
        self.head = nn.Linear(4, 4)

    def forward(self, inputs):
        stem = self.convs[0](inputs)
        left, right = self.convs[1](self.relu(stem)), self.convs[2](stem)
        joined = stem + self.relu(left) - self.relu(right)
        return self.head(self.relu(self.convs[3](joined)).mean((2, 3)))


@pytest.mark.parametrize(("explainer", "rule"), [(DeconvNet(), Deconvolved), (GuidedBackprop(), Guided)])
@pytest.mark.parametrize("relu", [nn.ReLU(), F.relu, torch.relu, lambda tensor: tensor.clamp_min(0)])
def test_repeated_and_branching_relus_have_the_backward_written_out(images, explainer, rule, relu):
    torch.manual_seed(2)
    reference = Branching(rule.apply)
    model = Branching(relu)
    model.load_state_dict(reference.state_dict())
    inputs = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(reference(inputs).gather(1, TARGETS.view(-1, 1)).sum(), inputs)
    assert torch.allclose(explain(model, explainer, images, TARGETS), expected.sum(1, keepdim=True), atol=1e-6)


class Pooled(nn.Module):
    """The sum of overlapping maxima, right behind a ReLU."""

    def __init__(self):
        super().__init__()
        self.relu, self.pool, self.normalisation = nn.ReLU(), nn.MaxPool2d((1, 2), stride=1), testing.Plain(1)

    def forward(self, inputs):
        return self.pool(self.relu(inputs)).sum((1, 2, 3))[:, None].expand(-1, 2)


def test_deeplift_adds_up_the_windows_that_share_a_maximum():
    found = explain(Pooled(), DeepLift(baseline="black"), torch.tensor([[[[1.0, 3.0, 2.0]]]]), FIRST)
    assert found.flatten().tolist() == [0, 6, 0]  # both maxima are the 3; unpooling would keep one of them


def test_deeplift_gives_a_fallen_maximum_to_the_place_of_the_baselines_maximum():
    model = Pooled()
    model.normalisation.mean.fill_(1.0)
    found = explain(model, DeepLift(), torch.tensor([[[[0.2, 0.6]]]]), FIRST)
    # The baseline is 1, its maximum at the first place. captum gives the ReLU right before the pooling the plain gradient: 0, -0.4.
    assert torch.allclose(found.flatten(), torch.tensor([-0.4, 0.0]), atol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "black", "blur"])
def test_deeplift_adds_up_in_a_residual_network(baseline):
    torch.manual_seed(0)
    model, inputs, targets = resnet18(num_classes=3).eval(), torch.rand(2, 3, 32, 32), torch.tensor([0, 2])
    context = testing.explain_context(model, [], 2)
    found = explain(model, DeepLift(baseline=baseline), inputs, targets).sum((1, 2, 3))
    with torch.no_grad():
        change = (model(inputs) - model(context.fill(baseline, inputs))).gather(1, targets.view(-1, 1)).squeeze(1)
    assert torch.allclose(found, change, atol=1e-4)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.Hardswish()])
def test_deeplift_has_its_rule_for_any_elementwise_activation(images, activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.Linear(400, 4)).eval()
    found = explain(model, DeepLift(baseline="black", tolerance=1e-5), images, TARGETS)  # an error if the sum were off
    assert found.abs().max() > 0


def test_lrp_is_input_times_gradient_in_networks_of_relus(small, images):
    expected = explain(small, InputXGradient(), images, TARGETS)
    assert torch.allclose(explain(small, Lrp(), images, TARGETS), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("part", [ResNetMini(), CifarResNet(), CifarResNet(shortcut="projection"), ResNet()], ids=lambda part: part.name)
def test_lrp_follows_the_residual_networks_of_bench_xai(part):
    torch.manual_seed(0)
    model, inputs, targets = part.build(testing.dataset_info(4, (16, 16), 3, mean=(0.4,) * 3, std=(0.2,) * 3)), torch.rand(8, 3, 16, 16), TARGETS[:2]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(inputs)  # So that maps are of the size that batch norm gives them.
    layers = [model.stages[-1]]
    expected = testing.explain(model, InputXGradient(), inputs[:2], targets, layers)
    found = testing.explain(model, Lrp(), inputs[:2], targets, layers)
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())
    # With captum's own gamma rule these sums are 1e5 and more.
    assert testing.explain(model, Lrp(rule="gamma"), inputs[:2], targets, layers).abs().sum() < 10


def test_an_identity_behind_a_relu_changes_nothing_about_lrp(small, images):
    model = copy.deepcopy(small)
    model.body[2] = nn.Sequential(nn.ReLU(), nn.Identity())
    for rule in ("epsilon", "gamma"):
        expected = explain(small, Lrp(rule=rule), images, TARGETS)
        assert torch.allclose(explain(model, Lrp(rule=rule), images, TARGETS), expected, atol=1e-6 * expected.abs().max().item())


def test_without_max_pooling_deconvnet_does_not_see_the_image(two_channel):
    first, second = (explain(two_channel, DeconvNet(), inputs, FIRST) for inputs in (X, torch.rand_like(X)))
    assert torch.equal(first, second)


def test_maps_before_an_in_place_relu_are_the_ones_the_layer_gave(two_channel):
    in_place = copy.deepcopy(two_channel)
    in_place.relu.inplace = True
    for explainer in (Conductance(layer="conv"), GuidedGradCam(layer="conv")):
        assert torch.equal(explain(in_place, explainer, X, FIRST), explain(two_channel, explainer, X, FIRST))


class Tokens(nn.Module):
    """A class token and then the image's pixels, channel last; the logits are the mean of the pixels' squares."""

    def __init__(self):
        super().__init__()
        self.block = nn.Identity()

    def forward(self, inputs):
        pixels = inputs.flatten(2).transpose(1, 2)
        tokens = self.block(torch.cat([torch.zeros_like(pixels[:, :1]), pixels], 1))
        return (tokens[:, 1:] ** 2).mean(1)


def test_a_model_says_how_its_tokens_become_a_map():
    model, inputs = Tokens(), torch.rand(2, 3, 4, 4)
    layer = Layer("block", model.block, lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    found = testing.explain(model, Conductance(steps=200, baseline="black"), inputs, torch.tensor([0, 2]), [layer])
    expected = torch.stack([inputs[0, :1], inputs[1, 2:]]) ** 2 / 16  # only the target's channel counts
    assert torch.allclose(found, expected, atol=5e-4)


# Refusals


class Gated(nn.Module):
    def forward(self, inputs):
        return (inputs * inputs.sigmoid()).sum((2, 3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, inputs):
        return (inputs + self.relu(self.conv(inputs))).mean((2, 3))


def head(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


REPEATED = nn.ReLU()


@pytest.mark.parametrize(
    ("explainer", "model", "message"),
    [
        (GuidedBackprop(), head(), "this network calls none"),
        (DeconvNet(), head(nn.ReLU(), nn.GELU()), "also uses gelu"),
        (GuidedGradCam(layer="0"), head(nn.SiLU()), "also uses silu"),
        (DeepLift(), head(nn.GroupNorm(1, 4)), "no rule for group_norm"),
        (DeepLift(), Gated(), "no rule for mul"),
        (Lrp(), head(nn.GELU()), "no rule for module '1', a GELU"),
        (Lrp(), head(REPEATED, nn.Conv2d(4, 4, 1), REPEATED), "uses '1' 2 times"),
        (Lrp(), Residual(), "computes add, mean outside"),
        (IntegratedGradients(steps=1, baseline="black"), Square(), "1 steps are too few"),
        (KernelShap(samples=4, cells=2), head(), "4 samples do not fix 5 unknowns"),
        (Occlusion(window=0.1, stride=0.5), head(), "leaves out pixels"),
    ],
)
def test_what_would_be_wrong_without_a_word_is_an_error(images, explainer, model, message):
    with pytest.raises(InvalidValue, match=message):
        explain(model, explainer, images[:2], torch.tensor([1, 1]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# What holds for all of them


@named(ALL)
def test_a_batch_is_its_parts(small, images, explainer):
    together = explain(small, explainer, images, TARGETS)
    smallest = 1e-5 * together.abs().max().item()
    for chunk in (2, 4):  # the last chunk of five rows has one
        assert torch.allclose(explain(small, explainer, images, TARGETS, chunk=chunk), together, atol=smallest)
    assert torch.allclose(explain(small, explainer, images[:1], TARGETS[:1]), together[:1], atol=smallest)


@named(ALL)
def test_no_forward_is_larger_than_the_chunk(small, images, explainer):
    sizes = []
    handle = small.register_forward_hook(lambda module, arguments, output: sizes.append(len(output)))
    explain(small, explainer, images, TARGETS, chunk=4)
    handle.remove()
    assert max(sizes) <= 4
    assert min(sizes) >= 2


@named(ALL)
def test_a_row_does_not_depend_on_its_neighbours(small, images, explainer):
    others = torch.cat([images[:2], images[:2].flip(0), images[4:]])
    found = explain(small, explainer, others, TARGETS)
    together = explain(small, explainer, images, TARGETS)
    same = [0, 1, 4]
    assert torch.equal(found[same], together[same])


@named(ALL)
def test_the_global_random_streams_are_left_alone_and_do_not_matter(small, images, explainer):
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = explain(small, explainer, images[:2], TARGETS[:2])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(6)
    assert torch.equal(explain(small, explainer, images[:2], TARGETS[:2]), found)


@named(ALL)
def test_a_black_image_and_one_of_the_mean_colour_have_finite_maps(small, explainer):
    inputs = torch.stack([torch.zeros(3, 12, 12), small.normalisation.mean[0].expand(3, 12, 12)])
    assert explain(small, explainer, inputs, torch.tensor([0, 1])).isfinite().all()


class Failing(nn.Module):
    """Fails after a number of forwards."""

    def __init__(self, model, forwards):
        super().__init__()
        self.model, self.left, self.normalisation = model, forwards, model.normalisation

    def forward(self, inputs):
        self.left -= 1
        if self.left < 0:
            raise IndexError("out of luck")
        return self.model(inputs)


def traces(model):
    hooks = [{kind: list(getattr(module, kind)) for kind in vars(module) if kind.endswith("_hooks")} for module in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    flags = [module.training for module in model.modules()], [parameter.requires_grad for parameter in model.parameters()]
    return hooks, attributes, flags, [parameter.grad for parameter in model.parameters()]


@named(ALL)
def test_the_model_is_left_as_it_was_found(images, explainer):
    model = Small().train()
    nn.functional.cross_entropy(model(images), TARGETS).backward()
    weights, before = copy.deepcopy(model.state_dict()), traces(model)
    assert not explain(model, explainer, images, TARGETS).requires_grad
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    hooks, attributes, flags, gradients = traces(model)
    assert (hooks, attributes, flags) == before[:3]
    assert all(gradient is kept for gradient, kept in zip(gradients, before[3], strict=True))


@named(ALL)
@pytest.mark.parametrize("forwards", [0, 1])
def test_a_forward_that_fails_leaves_no_trace(images, explainer, forwards):
    model = Failing(Small(), forwards)
    weights, before = copy.deepcopy(model.state_dict()), traces(model)
    layer = Layer("layer", model.model.body[4])
    try:
        testing.explain(model, explainer, images, TARGETS, [layer], chunk=2)
    except IndexError:
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert traces(model)[:3] == before[:3]
    else:
        pytest.fail("the error was swallowed")


@pytest.mark.parametrize(
    ("explainer", "forward", "backward"),
    [
        (Saliency(), 1, 1),
        (SmoothGrad(samples=4), 4, 4),
        (IntegratedGradients(steps=4, tolerance=1), 6, 4),
        (Conductance(steps=4), 8, 8),
        (GuidedBackprop(), 1, 1),
        (GuidedGradCam(), 2, 2),
        (DeepLift(), 4, 2),
        (Occlusion(window=0.5, stride=0.25), 10, 0),
        (Lime(samples=7, cells=2), 7, 0),
        (KernelShap(samples=7, cells=2), 7, 0),
        (ShapleySampling(samples=3, cells=2), 14, 0),  # three orders of four cells, and the baseline twice, since no picture goes alone
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_costs_are_those_on_the_card(small, images, explainer, forward, backward):
    context = testing.explain_context(small, small.layers, 5)
    contexts.explain(small, explainer, images, TARGETS, context)
    assert (context.passes.forward / 5, context.passes.backward / 5) == (forward, backward)


def test_every_part_can_be_asked_for_by_its_name():
    registry = Registry()

    def register(factory, *, name=None, **defaults):
        registry.add("explainer", factory, name=name, defaults=defaults, plugin="captum_explainers", distribution="test")

    captum_explainers.register_explainers(register)
    parts = {entry.name: registry.resolve("explainer", entry.name).part for entry in registry.entries("explainer")}
    assert len(parts) == len(ALL)
    assert parts["lrp-gamma"] == Lrp(rule="gamma")
    assert parts["integrated-gradients"] == IntegratedGradients()
    with pytest.raises(InvalidValue, match="steps"):
        registry.resolve("explainer", {"name": "integrated-gradients", "steps": 0})
