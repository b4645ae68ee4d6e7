"""FMix, SmoothMix and GridMix."""

import numpy as np
import pytest
import torch
from augmenter_cases import augment, marked

from bench import contexts
from bench_plugins.mixing_masks import FMix, GridMix, SmoothMix, _holes_along, bumps, highest, low_frequencies


def test_the_noise_is_the_inverse_transform_of_a_decaying_spectrum():
    noise = low_frequencies(2, 16, 12, 3.0, contexts.generator("spectrum"))
    spectrum = torch.randn(2, 16, 7, dtype=torch.complex64, generator=contexts.generator("spectrum")).numpy()
    weights = np.array([[max((down**2 + across**2) ** 0.5, 1 / 16) ** -3.0 for across in np.arange(7) / 12] for down in np.fft.fftfreq(16)])
    expected = np.fft.irfft2(spectrum * weights, s=(16, 12))
    np.testing.assert_allclose(noise.numpy(), expected, rtol=1e-3, atol=1e-3 * abs(expected).max())


def test_a_higher_decay_makes_smoother_noise():
    rough, smooth = (low_frequencies(20, 32, 32, decay, contexts.generator("smooth")) for decay in (0.5, 3.0))
    steps = [(noise.diff(dim=2).std() / noise.std()).item() for noise in (rough, smooth)]
    assert steps[0] > 0.8
    assert steps[1] < 0.3


def test_the_highest_pixels_are_kept_rounded_up_or_down():
    noise = torch.randn(200, 8, 8, generator=contexts.generator("rank"))
    kept = highest(noise, torch.full((200,), 0.33, dtype=torch.float64), contexts.generator("coin"))
    counts = kept.sum((1, 2))  # 0.33 of 64 pixels are 21.12.
    assert set(counts.tolist()) == {21, 22}
    assert abs((counts == 22).float().mean() - 0.5) < 0.15
    lowest_kept = noise.masked_fill(~kept, torch.inf).amin((1, 2))
    assert (lowest_kept > noise.masked_fill(kept, -torch.inf).amax((1, 2))).all()


@pytest.mark.parametrize("part", [FMix(), SmoothMix(), GridMix()], ids=lambda part: part.name)
def test_a_batch_shares_one_mask_unless_each_image_asks_for_its_own(part):
    own = augment(part, marked(8)).inputs.diagonal().movedim(-1, 0)  # (B, H, W) the share of the row's own image
    mixed = own[(own < 1).flatten(1).any(1)]
    assert len(mixed) > 3
    assert (mixed == mixed[0]).all()
    each = augment(type(part)(mode="elem"), marked(8)).inputs.diagonal().movedim(-1, 0)
    assert len(each.flatten(1).unique(dim=0)) > 5


def test_a_gaussian_is_1_at_its_pixel_and_falls_off_with_sigma():
    bump = bumps(torch.tensor([3]), torch.tensor([5]), torch.tensor([2.0]), 8, 10)[0]
    assert bump[3, 5] == 1
    assert bump[5, 5] == pytest.approx(np.exp(-0.5))
    assert bump[4, 6] == pytest.approx(np.exp(-2 / 8))
    assert bump.shape == (8, 10)


def test_the_image_itself_is_seen_inside_the_gaussian_and_its_target_has_the_mean_weight():
    result = augment(SmoothMix(mode="elem"), marked(10, side=32))
    own = result.inputs.diagonal().movedim(-1, 0)
    assert (own.amax((1, 2)) == 1).all()
    torch.testing.assert_close(result.targets.diagonal(), own.mean((1, 2)))
    mixed = own.amin((1, 2)) < 1
    row, column = divmod(int(own[mixed][0].argmax()), 32)
    beside = own[mixed][0][row, column + 1 if column < 31 else column - 1]
    assert 8 <= float(-0.5 / beside.log()) ** 0.5 <= 16  # σ ~ U(0.25, 0.5) of 32 pixels, read off one step from the centre


@pytest.mark.parametrize(("share", "hole"), [(0.75, 4), (0.999, 1), (0.0, 7)])
def test_a_hole_has_the_root_of_the_area_and_leaves_an_edge(share, hole):
    part = GridMix(n_holes=(4, 4), cut_area=(1, 1), cut_aspect=(1, 1))
    holes = part.holes(torch.tensor([share]), 32, 32, contexts.generator("holes"))[0]
    assert holes.float().mean() == (hole / 8) ** 2
    assert holes[:hole, :hole].all()
    assert not holes[hole:8].any()


def test_holes_are_those_of_a_loop_over_cells():
    for start, length, cell, side in ((0, 20, 6, 4), (3, 11, 5, 2), (7, 13, 13, 12), (2, 4, 1, 1)):
        expected = torch.zeros(20, dtype=torch.bool)
        for first in range(start, start + length, cell):
            expected[first : min(first + side, start + length)] = True
        numbers = (torch.tensor([value]) for value in (start, length, cell, side))
        assert torch.equal(_holes_along(*numbers, 20)[0], expected)


def test_the_grid_lies_in_a_box_of_the_drawn_area_inside_the_image():
    holes = GridMix(cut_area=(0.5, 0.5), cut_aspect=(1, 1)).holes(torch.full((300,), 0.1), 32, 32, contexts.generator("boxes"))
    heights = torch.tensor([rows[-1] - rows[0] + 1 for rows in (mask.any(1).nonzero() for mask in holes)])
    assert heights.max() <= 22  # √0.5 of 32 pixels are 22.6
    assert heights.min() > 12
