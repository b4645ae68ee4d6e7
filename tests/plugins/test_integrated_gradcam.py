"""Integrated Grad-CAM on networks worked out by hand, in the paper's form and in that of the authors' notebook."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from bench import contexts, testing
from bench.interfaces import Layer
from bench_plugins.gradcam import GradCam
from bench_plugins.integrated_gradcam import IntegratedGradCam

X = testing.TWO_CHANNEL_IMAGE
TARGETS = torch.tensor([0, 4])


@pytest.fixture
def two_channel():
    return testing.TwoChannelNetwork()


@pytest.fixture(scope="module")
def network():
    """With a positive classifier: otherwise a random network's map may be negative everywhere, and its positive part 0."""
    torch.manual_seed(0)
    model = resnet18(num_classes=5).eval()
    with torch.no_grad():
        model.fc.weight.abs_()
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def explain(model, explainer, inputs, targets, **options):
    layers = model.layers if hasattr(model, "layers") else [Layer("layer3", model.layer3)]
    return testing.explain(model, explainer, inputs, targets, layers, **options)


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_the_notebooks_form_is_the_sum_of_the_maps_on_the_way(two_channel):
    found = explain(two_channel, IntegratedGradCam(form="reference"), X, torch.tensor([0]))
    assert torch.allclose(found, torch.tensor([[[[12.25, 0.0], [36.75, 6.125]]]]))  # (0 + 1 + … + 49) / 50 times Grad-CAM


def test_the_papers_form_is_half_of_gradcam_where_the_way_is_straight(two_channel):
    for target in (0, 1):
        whole = explain(two_channel, GradCam(), X, torch.tensor([target]))
        found = explain(two_channel, IntegratedGradCam(steps=7), X, torch.tensor([target]))
        assert torch.allclose(found, whole / 2)


def test_one_step_of_the_notebook_is_the_map_of_the_baseline(two_channel):
    assert explain(two_channel, IntegratedGradCam(form="reference", steps=1), X, torch.tensor([0])).eq(0).all()


def test_an_image_like_the_baseline_has_no_map_in_the_papers_form(network):
    assert explain(network, IntegratedGradCam(steps=3), torch.zeros(2, 3, 32, 32), TARGETS).eq(0).all()


class Squared(nn.Module):
    """The logit is 3 · (mean of relu(x))² for class 0 and 5 more than that for class 1."""

    def __init__(self, factor=3.0):
        super().__init__()
        self.relu = nn.ReLU()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.layers = [Layer("relu", self.relu)]

    def forward(self, inputs):
        score = self.factor * self.relu(inputs).mean((1, 2, 3)) ** 2
        return torch.stack([score, score + 5], 1)


def test_the_midpoints_are_exact_for_a_quadratic_gradient_in_the_limit():
    # At b + t x, b = 0: gradient 2 · 3 · t · mean(x) / 4 per pixel, maps t · x; the integral of t² is 1/3.
    x = torch.tensor([[[[1.0, 2.0], [3.0, 2.0]]]])
    found = explain(Squared(), IntegratedGradCam(steps=200), x, torch.tensor([0]))
    assert torch.allclose(found, 6 * 2 / 4 * x / 3, rtol=1e-4)


def test_the_baseline_is_the_fill_that_was_asked_for():
    # From b = 1 to x: at 1 + t (x - 1) the gradient is 6 · (1 + t) / 4 (mean of x is 2) and the maps moved by t (x - 1).
    model = Squared()
    model.normalisation = testing.Plain(1)
    model.normalisation.mean.fill_(1.0)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 2.0]]]])
    found = explain(model, IntegratedGradCam(steps=200, fill="mean"), x, torch.tensor([0]))
    assert torch.allclose(found, 6 / 4 * (1 / 2 + 1 / 3) * (x - 1), rtol=1e-4)


def test_a_scaled_logit_scales_the_map_and_a_constant_does_not_show():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 2.0]]]])
    once, shifted = (explain(Squared(), IntegratedGradCam(), x, torch.tensor([target])) for target in (0, 1))
    assert torch.allclose(once, shifted)
    assert torch.allclose(explain(Squared(6.0), IntegratedGradCam(), x, torch.tensor([0])), 2 * once)


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_the_map_is_the_sum_over_points_taken_one_at_a_time(network, images, form):
    steps, layer, baseline = 4, network.layer3, torch.zeros(1, 3, 32, 32)

    def maps_at(inputs):
        kept = []
        handle = layer.register_forward_hook(lambda module, arguments, output: kept.append(output))
        logits = network(inputs)
        handle.remove()
        return logits, kept[0]

    for row in range(2):
        total = 0
        for step in range(steps):
            share = (step + 0.5) / steps if form == "paper" else step / steps
            logits, maps = maps_at(share * images[row : row + 1])
            (gradient,) = torch.autograd.grad(logits[0, TARGETS[row]], maps)
            change = maps - maps_at(baseline)[1] if form == "paper" else maps
            heat = (gradient.mean((2, 3), keepdim=True) * change).sum(1, keepdim=True)
            total = total + (heat / steps if form == "paper" else heat.relu())
        expected = nn.functional.interpolate(total.relu(), (32, 32), mode="bilinear").detach()
        found = explain(network, IntegratedGradCam(form=form, steps=steps), images, TARGETS)[row : row + 1]
        assert relative_error(found, expected) < 1e-4


def test_fifty_steps_are_close_to_the_limit(network, images):
    fifty, limit = (explain(network, IntegratedGradCam(steps=steps), images[:1], TARGETS[:1]) for steps in (50, 200))
    assert relative_error(fifty, limit) < 0.02


@pytest.mark.parametrize("options", [{"form": "paper"}, {"form": "reference"}, {"fill": "blur"}], ids=str)
def test_a_batch_is_its_parts_whatever_the_chunk(network, images, options):
    explainer = IntegratedGradCam(steps=5, **options)
    together = explain(network, explainer, images, TARGETS)
    assert relative_error(explain(network, explainer, images, TARGETS, chunk=3), together) < 1e-4
    assert relative_error(explain(network, explainer, images[1:], TARGETS[1:]), together[1:]) < 1e-4


def test_each_step_costs_one_forward_and_one_backward(network, images):
    for form, extra in (("paper", 2), ("reference", 0)):
        context = testing.explain_context(network, [Layer("layer3", network.layer3)], 2)
        contexts.explain(network, IntegratedGradCam(form=form, steps=4), images, TARGETS, context)
        assert (context.passes.forward, context.passes.backward) == (8 + extra, 8)


def test_the_model_is_left_as_it_was(two_channel):
    two_channel.train()
    explain(two_channel, IntegratedGradCam(steps=2), X, torch.tensor([0]))
    assert two_channel.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in two_channel.parameters())
    assert not any(module._forward_hooks for module in two_channel.modules())
