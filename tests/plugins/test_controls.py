"""The controls: noise, a centred Gaussian, and edges."""

import math

import pytest
import torch

from bench import testing
from bench_plugins.controls import Centre, Edges, Random

MODEL = testing.TwoChannelNetwork()


def explain(explainer, inputs, generators=None):
    context = testing.explain_context(MODEL, MODEL.layers, len(inputs))
    context.generators = context.generators if generators is None else generators
    return explainer(MODEL, inputs, torch.zeros(len(inputs), dtype=torch.long), context)


def test_random_maps_are_uniform_noise():
    noise = explain(Random(), torch.zeros(4, 1, 64, 64))
    assert noise.shape == (4, 1, 64, 64)
    assert noise.min() >= 0
    assert noise.max() < 1
    assert noise.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_a_random_map_depends_on_its_own_generator_alone():
    inputs = torch.zeros(3, 1, 8, 8)
    together = explain(Random(), inputs)
    alone = explain(Random(), inputs[:1], testing.generators(3)[2:])
    assert torch.equal(together[2:], alone)
    assert not torch.equal(together[0], together[1])


def test_centre_is_a_gaussian_of_the_distance_to_the_middle():
    found = explain(Centre(width=0.5), torch.rand(2, 3, 3, 5))
    assert found.shape == (2, 1, 3, 5)
    assert found[0, 0, 1, 2] == 1
    assert found[0, 0, 1, 3].item() == pytest.approx(math.exp(-((1 / 2.5) ** 2) / 2))  # one of five columns, width 2.5
    assert found[0, 0, 0, 0].item() == pytest.approx(math.exp(-((1 / 1.5) ** 2 + (2 / 2.5) ** 2) / 2))
    assert torch.equal(found[0], found[1])


def test_edges_of_a_step_are_four_beside_it_and_zero_elsewhere():
    image = torch.zeros(1, 1, 4, 6)
    image[..., 3:] = 1
    expected = torch.tensor([0.0, 0.0, 4.0, 4.0, 0.0, 0.0]).expand(4, 6)
    assert torch.equal(explain(Edges(), image)[0, 0], expected)
    assert torch.equal(explain(Edges(), image.transpose(2, 3))[0, 0], expected.T)


def test_edges_weigh_colours_as_the_eye_does():
    colours = torch.zeros(3, 3, 4, 4)
    for channel in range(3):
        colours[channel, channel, :, 2:] = 1
    found = explain(Edges(), colours)[:, 0, 1, 1]
    assert found.tolist() == pytest.approx([4 * 0.299, 4 * 0.587, 4 * 0.114])


def test_edges_of_a_corner_join_both_directions():
    image = torch.zeros(1, 1, 5, 5)
    image[..., 2:, 2:] = 1
    assert explain(Edges(), image)[0, 0, 1, 1].item() == pytest.approx(math.sqrt(2))  # gx = gy = 1


@pytest.mark.parametrize("explainer", [Random(), Centre(), Edges()])
def test_a_control_makes_no_pass_and_is_finite_on_a_black_image(explainer):
    context = testing.explain_context(MODEL, MODEL.layers, 2)
    found = explainer(MODEL, torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), context)
    assert found.isfinite().all()
    assert (context.passes.forward, context.passes.backward) == (0, 0)
