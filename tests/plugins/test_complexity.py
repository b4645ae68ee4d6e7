"""Sparseness and complexity: maps worked out by hand, scipy, and the Gini index by its other definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from bench.interfaces import Explained
from bench_plugins.complexity import Complexity, Sparseness


def score(metric, maps):
    rows = torch.zeros(len(maps), dtype=torch.long)
    return metric(None, Explained(torch.zeros(len(maps), 3, *maps.shape[2:]), rows, rows, rows, torch.zeros(len(maps), 2), maps), None)


def single_pixel(side=4):
    maps = torch.zeros(1, 1, side, side)
    maps[0, 0, 1, 2] = -3
    return maps


def test_an_even_map_is_complex_and_not_sparse():
    for maps in (torch.full((1, 1, 4, 4), 0.7), torch.zeros(1, 1, 4, 4)):
        assert score(Sparseness(), maps).item() == pytest.approx(0)
        assert score(Complexity(), maps).item() == pytest.approx(math.log(16))


def test_a_single_pixel_is_sparse_and_not_complex():
    assert score(Sparseness(), single_pixel()).item() == pytest.approx(15 / 16)
    assert score(Complexity(), single_pixel()).item() == 0


def test_half_of_the_pixels_count_as_half():
    maps = torch.tensor([1.0, 0, 1, 0]).view(1, 1, 2, 2)
    assert score(Sparseness(), maps).item() == pytest.approx(0.5)
    assert score(Complexity(), maps).item() == pytest.approx(math.log(2))


@settings(deadline=None)
@given(st.integers(0, 500))
def test_both_agree_with_their_definitions(seed):
    maps = torch.randn(3, 1, 5, 6, generator=torch.Generator().manual_seed(seed))
    values = maps.flatten(1).double().abs()
    pairs = (values[:, :, None] - values[:, None]).abs().mean((1, 2)) / (2 * values.mean(1))
    torch.testing.assert_close(score(Sparseness(), maps), pairs)
    torch.testing.assert_close(score(Complexity(), maps), torch.from_numpy(entropy(values.numpy(), axis=1)))


@pytest.mark.parametrize("metric", [Sparseness(), Complexity()])
def test_neither_depends_on_scale_sign_order_or_batch(metric):
    maps = torch.randn(7, 1, 8, 8)
    expected = score(metric, maps)
    torch.testing.assert_close(score(metric, -5 * maps), expected)
    torch.testing.assert_close(score(metric, maps.flatten(1)[:, torch.randperm(64)].view_as(maps)), expected)
    torch.testing.assert_close(torch.cat([score(metric, part) for part in maps.split(1)]), expected)
