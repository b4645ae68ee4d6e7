"""Cutout, Random Erasing, Hide-and-Seek and GridMask: where and how much is hidden."""

from types import SimpleNamespace

import pytest
import torch
from augmenter_cases import augment, batch_of, network
from scipy import stats
from torchvision import transforms

from bench import contexts
from bench.interfaces import Batch
from bench_plugins.erasing import Cutout, GridMask, HideAndSeek, RandomErasing


def hidden_by(part, count, side=32, **options):
    """(B, H, W) True where white images were made black."""
    batch = Batch.of(torch.ones(count, 1, side, side), torch.eye(2)[torch.arange(count) % 2])
    return augment(part, batch, **options).inputs[:, 0] == 0


def extents(hidden):
    """(n,) heights and widths of what is hidden, which has to be a rectangle."""
    heights, widths = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.sum((1, 2)), heights * widths)
    return heights, widths


@pytest.mark.parametrize(("length", "pixels"), [(8, 56.25), (16, 196.0)])
def test_cutout_hides_the_mean_area_that_clipping_leaves(length, pixels):
    per_side = sum(min(centre + length // 2, 32) - max(centre - length // 2, 0) for centre in range(32)) / 32
    assert per_side**2 == pytest.approx(pixels, abs=0.5)  # By enumeration of the centres; the card measured 56.3 and 196.1.
    areas = hidden_by(Cutout(length=length / 32, fill="black"), 3000).sum((1, 2)).float()
    assert abs(areas.mean() - per_side**2) < 4 * areas.std() / 3000**0.5


def test_a_cutout_square_is_smaller_only_at_the_border():
    hidden = hidden_by(Cutout(fill="black"), 300)
    heights, widths = extents(hidden)
    at_rows, at_columns = hidden[:, [0, -1]].any((1, 2)), hidden[:, :, [0, -1]].any((1, 2))
    assert ((heights == 16) | at_rows).all()
    assert ((widths == 16) | at_columns).all()
    assert min(heights.min(), widths.min()) >= 8


def test_holes_are_drawn_one_by_one():
    hidden = hidden_by(Cutout(length=4 / 32, n_holes=3, fill="black"), 300).sum((1, 2))
    assert hidden.max() == 3 * 16
    assert hidden.min() < 3 * 16


def test_hidden_pixels_take_the_fill_and_the_others_stay():
    model, batch = network(), batch_of(40, side=32)
    model.normalisation = SimpleNamespace(mean=torch.tensor([0.1, 0.2, 0.3]))
    result = augment(Cutout(), batch, model).inputs
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).expand_as(result)
    changed = (result != batch.inputs).any(1, keepdim=True).expand_as(result)
    assert torch.equal(result[changed], mean[changed])
    assert changed.any()
    noise = augment(Cutout(fill="noise"), batch, model).inputs[changed]
    assert abs(noise.mean() - 0.5) < 0.01
    assert len(noise.unique()) > 0.9 * len(noise)


def test_random_erasing_hides_half_of_the_images_within_the_ranges():
    hidden = hidden_by(RandomErasing(fill="black"), 2000)
    erased = hidden[hidden.any((1, 2))]
    assert abs(len(erased) / 2000 - 0.5) < 0.045
    heights, widths = extents(erased)
    assert heights.max() < 32
    assert widths.max() < 32
    shares = heights * widths / 1024
    assert 0.015 < shares.min() < 0.03
    assert 0.37 < shares.max() < 0.43
    large = heights * widths > 100  # Of small boxes, rounding moves the aspect too far.
    aspects = (heights / widths)[large]
    assert 0.25 < aspects.min() < 0.4
    assert 2.5 < aspects.max() < 4


def test_the_rectangles_are_torchvisions_in_distribution():
    ours = RandomErasing(min_area=0.02, max_area=0.4).rectangles(3000, 32, 32, contexts.generator("rectangles"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.tensor([transforms.RandomErasing.get_params(torch.zeros(1, 32, 32), (0.02, 0.4), (0.3, 1 / 0.3))[:4] for _ in range(3000)])
    for mine, reference in zip((ours.top, ours.left, ours.bottom - ours.top, ours.right - ours.left), theirs.T, strict=True):
        assert stats.ks_2samp(mine.numpy(), reference.numpy()).pvalue > 1e-3


def test_an_image_that_no_candidate_fits_stays_whole():
    rectangles = RandomErasing(min_area=1.0, max_area=1.0).rectangles(5, 32, 32, contexts.generator("none"))
    assert (rectangles.areas == 0).all()


def test_hide_and_seek_hides_whole_cells_with_equal_chance():
    hidden = hidden_by(HideAndSeek(grid_sizes=(0.25,), fill="black"), 500)
    cells = hidden.view(500, 4, 8, 4, 8).float().mean((2, 4))
    assert ((cells == 0) | (cells == 1)).all()
    assert abs(cells.mean() - 0.5) < 4 * 0.5 / 8000**0.5


def test_a_fifth_of_the_images_is_hidden_nowhere_by_hide_and_seek():
    hidden = hidden_by(HideAndSeek(fill="black"), 1000)
    whole = 0.2 + 0.2 * 2.0**-16 * (1 + 1)  # The two coarsest grids have 5 x 5 and 4 x 4 cells, rarely all shown.
    assert abs((~hidden.any((1, 2))).float().mean() - whole) < 0.05
    assert abs(hidden.float().mean() - 0.8 * 0.5) < 0.03


def fixed_period(**options):
    """GridMask on 32 pixels with a period of 8, for every image."""
    return GridMask(**{"d1": 0.25, "d2": 0.25, "prob": 1.0, "ramp": 0.0, "rotate": 0, "fill": "black", **options})


@pytest.mark.parametrize(("ratio", "square"), [(0.5, 4), (0.6, 3)])
def test_gridmask_hides_squares_or_stripes_of_the_grid(ratio, square):
    squares = hidden_by(fixed_period(ratio=ratio), 20).float().mean((1, 2))
    assert (squares == (square / 8) ** 2).all()
    stripes = hidden_by(fixed_period(ratio=ratio, squares=False), 20).float().mean((1, 2))
    assert (stripes == 1 - (square / 8) ** 2).all()


def test_turning_the_grid_keeps_the_share_that_it_hides():
    shares = hidden_by(fixed_period(ratio=0.5, rotate=360), 500).float().mean((1, 2))
    assert abs(shares.mean() - 0.25) < 0.01
    assert shares.std() > 0.001
    quarter_turn = hidden_by(GridMask(rotate=91, prob=1.0, fill="black"), 500)
    assert quarter_turn.any((1, 2)).all()


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.4, 0.4), (0.8, 0.8), (0.95, 0.8)])
def test_gridmask_grows_more_frequent_until_the_ramp_ends(progress, share):
    hidden = hidden_by(GridMask(fill="black"), 1000, progress=progress)
    assert abs(hidden.any((1, 2)).float().mean() - share) < 0.05
