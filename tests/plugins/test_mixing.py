"""Mixup and CutMix. With one class per image the mixed targets show each row's share and partner."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from timm.data import mixup as timm_mixup

from bench import contexts, testing
from bench.interfaces import Batch
from bench_plugins.mixing import CutMix, Mixup, box_masks, draw_shares, mix_targets


def batch_of(count, height=32, width=32, seed=0):
    inputs = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return Batch.of(inputs, torch.eye(count))


def mixed(augmenter, batch, step=0):
    return augmenter(None, batch, testing.step_context(None, step=step))


def shares_and_partners(batch):
    """(B,) the weight of a row's own class and the row it was mixed with (itself where nothing is mixed in)."""
    own = batch.targets.diagonal()
    others = batch.targets - torch.diag(own)
    return own, torch.where(others.amax(1) > 0, others.argmax(1), torch.arange(len(batch)))


# Shares


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 5.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = draw_shares(alpha, 1.0, 20_000, contexts.generator("beta", alpha)).numpy()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * (variance / len(shares)) ** 0.5
    assert abs(shares.var() - variance) < 0.02 * variance + 0.002
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_a_tiny_alpha_gives_shares_of_zero_and_one_and_nothing_undefined():
    shares = draw_shares(1e-4, 1.0, 1000, contexts.generator("tiny"))
    assert ((shares >= 0) & (shares <= 1)).all()
    assert ((shares < 1e-6) | (shares > 1 - 1e-6)).float().mean() > 0.99


@pytest.mark.parametrize("augmenter", [Mixup(mode="elem", prob=0.3), CutMix(mode="elem", prob=0.3)], ids=str)
def test_prob_is_the_part_of_the_images_that_are_mixed(augmenter):
    batch = batch_of(600, 8, 8)
    result = mixed(augmenter, batch)
    changed = (result.inputs != batch.inputs).flatten(1).any(1).float().mean()
    empty_boxes = 0.03 if isinstance(augmenter, CutMix) else 0.0  # Sides below two pixels: 1 - λ < (2/8)² in 6 % of the boxes.
    assert abs(changed - 0.3) < 0.06 + empty_boxes


@pytest.mark.parametrize("augmenter", [Mixup(prob=0.0), CutMix(prob=0.0), Mixup(mode="elem", prob=0.0)], ids=str)
def test_probability_zero_changes_nothing(augmenter):
    batch = batch_of(4)
    result = mixed(augmenter, batch)
    assert torch.equal(result.inputs, batch.inputs)
    assert torch.equal(result.targets, batch.targets)


@pytest.mark.parametrize("factory", [Mixup, CutMix])
def test_a_batch_shares_one_mix_and_elements_have_their_own(factory):
    batch = batch_of(40)
    together, alone = (shares_and_partners(mixed(factory(mode=mode), batch)) for mode in ("batch", "elem"))
    rows = torch.arange(40)
    for own, partners in (together, alone):
        assert (own[partners == rows] == 1).all()
    moved = together[1] != rows
    assert together[0][moved].unique().numel() == 1
    assert alone[0][alone[1] != rows].unique().numel() > 20


@pytest.mark.parametrize("augmenter", [Mixup(), Mixup(mode="elem"), CutMix(), CutMix(mode="elem")], ids=str)
def test_an_image_mixed_with_itself_stays_itself_to_the_bit(augmenter):
    batch = batch_of(1)
    result = mixed(augmenter, batch)
    assert torch.equal(result.inputs, batch.inputs)
    assert torch.equal(result.targets, batch.targets)


@pytest.mark.parametrize("augmenter", [Mixup(), CutMix()], ids=str)
def test_partners_are_a_permutation_that_changes_from_step_to_step(augmenter):
    batch = batch_of(12)
    orders = []
    for step in range(4):
        own, partners = shares_and_partners(mixed(augmenter, batch, step))
        if own.amin() < 1:
            assert partners.sort().values.tolist() == list(range(12))
            orders.append(tuple(partners.tolist()))
    assert len(set(orders)) == len(orders) > 1


# Mixup


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_mixup_blends_images_as_it_blends_targets(mode):
    batch = batch_of(16)
    result = mixed(Mixup(mode=mode), batch)
    own, partners = shares_and_partners(result)
    own = own.view(-1, 1, 1, 1)
    assert torch.allclose(result.inputs, own * batch.inputs + (1 - own) * batch.inputs[partners], atol=1e-6)


def test_mixup_by_hand():
    batch = Batch.of(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.eye(2))
    for step in range(5):
        result = mixed(Mixup(mode="elem"), batch, step)
        assert torch.allclose(result.inputs.flatten(), result.targets[:, 1], atol=1e-6)  # Brightness is the share of class 1.


# CutMix


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("size", [(32, 32), (12, 20)])
def test_cutmix_pastes_one_box_in_place_and_weighs_targets_by_its_area(mode, size):
    batch = batch_of(16, *size)
    result = mixed(CutMix(mode=mode), batch)
    own, partners = shares_and_partners(result)
    for row in range(16):
        if partners[row] == row:
            continue
        pasted = (result.inputs[row] == batch.inputs[partners[row]]).all(0)
        assert torch.equal(result.inputs[row][:, ~pasted], batch.inputs[row][:, ~pasted])
        assert own[row].item() == pytest.approx(1 - pasted.float().mean().item(), abs=1e-6)
        assert torch.equal(pasted, pasted.any(1)[:, None] & pasted.any(0)[None, :])  # A rectangle,
        for lines in (pasted.any(1), pasted.any(0)):
            assert (lines[1:] != lines[:-1]).sum() <= 2  # and in one piece.


def test_the_mean_share_after_clipping_is_seven_tenths_at_32_pixels():
    """For α = 1 the side is s with probability ((s+1)² - s²)/32²; the lengths inside the border are counted out by hand."""
    size, expected = 32, 0.0
    for side in range(size):
        inside = np.mean([min(centre + side // 2, size) - max(centre - side // 2, 0) for centre in range(size)])
        expected += ((side + 1) ** 2 - side**2) / size**2 * (1 - (inside / size) ** 2)
    assert expected == pytest.approx(0.701, abs=5e-4)  # The reference measurement.
    kept = []
    for step in range(20):
        own, partners = shares_and_partners(mixed(CutMix(mode="elem"), batch_of(500, 32, 32), step))
        kept.append(own[partners != torch.arange(500)])
    assert torch.cat(kept).mean() == pytest.approx(expected, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(0, 23), st.integers(0, 31))
def test_boxes_are_those_of_timm_but_for_the_last_pixel_of_odd_sides(share, row, column):
    height, width = 24, 32
    with patch.object(np.random, "randint", side_effect=[row, column]):
        top, bottom, left, right = timm_mixup.rand_bbox((3, height, width), share)
    tall, wide = int(height * np.sqrt(1 - share)), int(width * np.sqrt(1 - share))
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[top : min(bottom, row + tall // 2), left : min(right, column + wide // 2)] = True
    centre = torch.tensor([row]), torch.tensor([column])
    found = box_masks(torch.tensor([share], dtype=torch.float64), *centre, height, width)[0, 0]
    assert torch.equal(found, expected)


# Targets


def test_targets_are_those_of_timm():
    labels = torch.tensor([2, 0, 1, 2])
    expected = timm_mixup.mixup_target(labels, 3, 0.3)
    found = mix_targets(torch.eye(3)[labels], torch.tensor([3, 2, 1, 0]), torch.full((4,), 0.3, dtype=torch.float64))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("augmenter", [Mixup(), CutMix()], ids=str)
def test_multi_label_targets_are_mixed_class_by_class(augmenter):
    """Class 0 is on in both images, class 1 only in the first, class 2 in neither."""
    batch = Batch.of(torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)]), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    for step in range(6):
        result = mixed(augmenter, batch, step)
        first_share = 1 - result.inputs.mean((1, 2, 3))
        expected = torch.stack([torch.ones(2), first_share, torch.zeros(2)], dim=1)
        assert torch.allclose(result.targets, expected, atol=1e-6)
