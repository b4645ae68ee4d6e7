"""What every installed explainer has to do beside keeping the promises of its hook: find what decides, for the class that is asked for."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import checks, plugins, testing
from bench.interfaces import Layer
from bench_plugins.sanity import correlation, ranks, shuffle

INSTALLED = plugins.load().registry
NAMES = [entry.name for entry in INSTALLED.entries("explainer")]
QUICKER = {
    "lime": {"samples": 80},
    "kernel-shap": {"samples": 100},
    "shapley": {"samples": 2},
    "smoothgrad": {"samples": 10},
    "smoothgrad-squared": {"samples": 10},
    "vargrad": {"samples": 10},
    "gradient-shap": {"samples": 10},
    "conductance": {"steps": 12},
    "integrated-gradcam": {"steps": 12},
    "integrated-gradcam-reference": {"steps": 12},
    "rise": {"masks": 300},
    "rise-8000": {"masks": 200},
    "rise-per-pixel": {"masks": 300},
}
LOOK_AWAY = {"random": "it draws", "centre": "it is the same for every image", "edges": "it looks at the image alone"}
BLIND = {**LOOK_AWAY, "deconvnet": "without max-pooling nothing of the image enters its way back"}
ONE_FOR_ALL_CLASSES = {*LOOK_AWAY, "eigencam", "kpca-cam"}  # Those two say what the maps have in common.


@cache
def part(name):
    return INSTALLED.resolve("explainer", {"name": name, **QUICKER.get(name, {})})


def explain(name, model, inputs, targets):
    return checks.explain(part(name), model, inputs, torch.tensor(targets))


# A planted signal


class Redness(testing.TinyNetwork):
    """Class 0 speaks for the redder image, the others against it, and nothing else counts.

    The channels of the first stage begin to fire at other shades of red each, so that the slope changes with the shade.
    """

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            for convolution in (self.first[0], self.second[0]):
                convolution.weight.zero_()
                convolution.bias.zero_()
            self.first[0].weight[:, 0, 1, 1] = 1.0
            self.first[0].bias.copy_(-torch.linspace(0.45, 1.0, 8))
            self.second[0].weight[:, :, 1:, 1:] = torch.linspace(0.5, 1.5, 12).view(12, 1, 1, 1) / 8
            self.fc.weight.fill_(-5.0)
            self.fc.weight[0] = 15.0
            self.fc.bias.copy_(torch.tensor([-4.5, 0.0, 0.0, 0.0]))
        self.normalisation.mean.fill_(checks.MEAN)


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_signal_is_found(name):
    """A red square of 4 x 4 pixels, in a place of its own in each of two images of other colours."""
    if name in BLIND:
        pytest.skip(BLIND[name])
    inputs = 0.8 * testing.tiny_images(2)
    inputs[:, 0] = 0.1
    square = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    square[0, :, 2:6, 10:14], square[1, :, 8:12, 2:6] = True, True
    inputs[:, :1] = torch.where(square, 0.85, inputs[:, :1])
    maps = explain(name, Redness(), inputs, [0, 0])
    top = ranks(-maps.flatten(1)) <= 16.5
    found = (top & square.flatten(1)).sum(1)
    assert (found >= 8).all(), f"{found.tolist()} of the 16 strongest pixels lie on the square; chance is 1"


# The class that is asked for


@pytest.mark.parametrize("name", NAMES)
def test_swapping_two_classes_in_the_head_swaps_their_maps(name):
    if name == "parameter-saliency":
        pytest.skip("it compares with the loss on labelled images, whose labels stay; parameter-saliency-naive compares with nothing")
    model, inputs = checks.network(), testing.tiny_images(2)
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (swapped.fc.weight, swapped.fc.bias):
            tensor.copy_(tensor[torch.tensor([1, 0, 2, 3])].clone())
    maps, expected = explain(name, swapped, inputs, [1, 2]), explain(name, model, inputs, [0, 2])
    assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_have_two_maps(name):
    model, inputs = checks.network(), testing.tiny_images(2)
    first, second = (explain(name, model, inputs, targets) for targets in ([0, 1], [1, 2]))
    assert torch.equal(first, second) == (name in ONE_FOR_ALL_CLASSES)


# What the network computes, not how it is written


class Functional(testing.TinyNetwork):
    """The same network with its activations and its pooling as functions."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.load_state_dict(checks.network().state_dict(), strict=False)
        self.normalisation = checks.network().normalisation

    def features(self, inputs):
        first = self.maps[0](F.relu(self.first[:2](inputs)))
        return self.maps[1](F.relu(self.second[:2](first)))

    def head(self, maps):
        return self.fc(maps.mean((2, 3)))

    @property
    def layers(self):
        return [Layer("first", self.maps[0]), Layer("second", self.maps[1])]


@pytest.mark.parametrize("name", NAMES)
def test_two_networks_that_compute_the_same_have_the_same_maps(name):
    inputs, targets = testing.tiny_images(2), [0, 1]
    if name in ("lrp", "lrp-gamma"):
        with pytest.raises(checks.NotTried, match="computes relu, mean outside"):
            explain(name, Functional().eval(), inputs, targets)
        return
    expected, maps = (explain(name, model.eval(), inputs, targets) for model in (checks.network(), Functional()))
    assert torch.allclose(maps, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


# What the network has learnt


@pytest.mark.parametrize("name", NAMES)
def test_shuffled_weights_have_other_maps(name):
    model, inputs, targets = checks.network(), testing.tiny_images(2), [0, 1]
    shuffled = copy.deepcopy(model)
    shuffle(list(shuffled.parameters()), torch.Generator().manual_seed(3))
    maps, other = (ranks(explain(name, each, inputs, targets).flatten(1)) for each in (model, shuffled))
    assert (float(correlation(maps, other).mean()) > 0.9) == (name in LOOK_AWAY)
