"""Localisation: answers that follow by counting pixels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import intervals
from bench.interfaces import Explained
from bench.score import summarise
from bench_plugins.localisation import Bbox, EnergyPointingGame, MeanIntersectionOverUnion, PointingGame, inside_boxes

METRICS = [EnergyPointingGame(), PointingGame(), MeanIntersectionOverUnion(), Bbox()]


def seen(maps, masks=None, boxes=None, targets=None):
    targets = torch.zeros(len(maps), dtype=torch.long) if targets is None else targets
    inputs = torch.zeros(len(maps), 3, *maps.shape[2:])
    return Explained(inputs, targets, targets, targets, torch.zeros(len(maps), 4), maps, masks, boxes)


def score(metric, *args, **options):
    return metric(None, seen(*args, **options), None)


def block(top, left, height, width, side=10):
    mask = torch.zeros(1, 1, side, side, dtype=torch.bool)
    mask[..., top : top + height, left : left + width] = True
    return mask


def test_an_even_map_has_the_regions_share_of_the_energy():
    assert score(EnergyPointingGame(), torch.full((1, 1, 10, 10), 0.3), block(0, 0, 3, 5)).item() == pytest.approx(0.15)


def test_a_map_that_is_the_region_has_all_of_it():
    mask = block(2, 2, 4, 5)
    assert [score(metric, mask.float(), mask)[0].flatten()[0].item() for metric in METRICS] == [1, 100, 1, 1]  # 20 of 100 pixels.


def test_a_map_beside_the_region_has_nothing_of_it():
    mask = block(2, 2, 4, 5)
    assert [score(metric, (~mask).float(), mask)[0].flatten()[0].item() for metric in METRICS] == [0, 0, 0, 0]


@pytest.mark.parametrize(("height", "width"), [(2, 5), (8, 5)])
def test_the_overlap_of_unequal_areas_is_the_smaller_over_the_larger(height, width):
    mask = block(1, 1, height, width)
    smaller, larger = sorted((20, height * width))
    assert score(MeanIntersectionOverUnion(), mask.float(), mask).item() == pytest.approx(smaller / larger)


def test_random_maps_cover_the_regions_share_of_it():
    maps = torch.rand(2000, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    covered = score(Bbox(), maps, block(0, 0, 3, 10).expand(2000, 1, 10, 10))
    assert covered.mean().item() == pytest.approx(0.3, abs=0.01)


def test_energy_does_not_depend_on_the_scale_of_the_map():
    maps, mask = torch.randn(4, 1, 10, 10), block(0, 0, 5, 5).expand(4, 1, 10, 10)
    torch.testing.assert_close(score(EnergyPointingGame(), 5 * maps - 3, mask), score(EnergyPointingGame(), maps, mask))


def test_pointing_forgives_what_is_nearer_than_the_tolerance():
    maps = torch.zeros(1, 1, 10, 10)
    maps[0, 0, 4, 2] = 1  # Three columns left of the region, in its row.
    mask = block(4, 5, 1, 1)
    hits = [score(PointingGame(tolerance=tolerance), maps, mask)[0, 0].item() for tolerance in (0, 2.9, 3, 3.1)]
    assert hits == [0, 0, 0, 100]


def test_rows_and_columns_are_not_swapped():
    maps = torch.zeros(1, 1, 4, 6)
    maps[0, 0, 1, 5] = 1
    boxes = [torch.tensor([[5.0, 1, 6, 2, 0]])]
    assert score(PointingGame(), maps, boxes=boxes)[0, 0] == 100


def test_pointing_is_averaged_over_classes_not_images():
    maps, masks = torch.rand(4, 1, 10, 10), torch.ones(4, 1, 10, 10, dtype=torch.bool)
    masks[3] = block(0, 0, 1, 1)
    maps[3, 0, 5, 5] = 2
    rows = score(PointingGame(), maps, masks, targets=torch.tensor([1, 1, 1, 2]))
    assert PointingGame().values(rows).tolist() == [100, 100, 100, 0]
    assert PointingGame().aggregate(rows) == 50


def test_a_pixel_is_in_a_box_when_its_centre_is():
    inside = inside_boxes([torch.tensor([[1.0, 0.4, 3.0, 1.6, 0]])], (3, 4)).view(3, 4)
    assert inside.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_several_boxes_are_united_and_difficult_ones_left_out():
    boxes = torch.tensor([[0.0, 0, 1, 1, 0], [2, 2, 3, 3, 0], [0, 0, 3, 3, 1]])
    assert inside_boxes([boxes], (3, 3)).view(3, 3).int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def by_class():
    """One image with an object of class 0 on the left and one of class 2 on the right, by masks and by boxes."""
    masks = torch.cat([block(0, 0, 10, 2), block(0, 0, 0, 0), block(0, 6, 10, 4)], 1)
    return {"masks": masks}, {"boxes": [torch.tensor([[0.0, 0, 2, 10, 0, 0], [6, 0, 10, 10, 0, 2]])]}


@pytest.mark.parametrize("known", by_class(), ids=["masks", "boxes"])
def test_of_several_classes_the_explained_ones_object_counts(known):
    maps = block(0, 0, 10, 2).float()  # All of it lies on class 0.
    found = {target: [score(metric, maps, targets=torch.tensor([target]), **known).flatten()[0].item() for metric in METRICS] for target in (0, 1, 2)}
    assert found[0] == [1, 100, 1, 1]
    # For 40 pixels bbox adds the first 20 of the others by position, two rows of eight and four more left of the object: 8 lie on it.
    assert found[2] == [0, 0, 0, pytest.approx(8 / 40)]
    assert all(math.isnan(value) for value in found[1])  # Nothing in the image is of class 1.


def test_a_difficult_object_of_the_class_does_not_count():
    boxes = [torch.tensor([[0.0, 0, 2, 10, 1, 0], [6, 0, 10, 10, 0, 0]])]
    assert score(EnergyPointingGame(), block(0, 0, 10, 2).float(), boxes=boxes).item() == 0


@pytest.mark.parametrize("metric", METRICS)
def test_an_image_without_a_region_is_not_scored(metric):
    maps = torch.rand(2, 1, 10, 10)
    boxes = [torch.tensor([[0.0, 0, 10, 10, 1]]), torch.empty(0, 5)]
    rows = score(metric, maps, boxes=boxes)
    assert rows.view(2, -1)[:, 0].isnan().all()


def test_classes_keep_their_weight_in_the_interval_of_the_pointing_game():
    """Two hits of three images of one class, one of one of the other, one image without an object: (2/3 + 1) / 2 = 83.33 %."""
    rows = torch.tensor([[100.0, 0], [0, 0], [100, 0], [100, 1], [torch.nan, 1]])
    shares = PointingGame().shares(rows)
    assert shares.tolist() == pytest.approx([200 / 3, 0, 200 / 3, 200])
    assert float(shares.mean()) == pytest.approx(PointingGame().aggregate(rows))
    found = summarise(PointingGame(), rows)
    assert found.value == pytest.approx(250 / 3)
    assert found.interval == intervals.over_images(shares.double().numpy())


def test_the_pointing_game_of_no_image_is_not_a_number():
    assert math.isnan(PointingGame().aggregate(torch.tensor([[math.nan, 1.0]])))


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 7]))
def test_numbers_do_not_depend_on_the_batch(seed, size):
    draw = torch.Generator().manual_seed(seed)
    maps, masks = torch.randn(14, 1, 6, 6, generator=draw), torch.rand(14, 1, 6, 6, generator=draw) < 0.2
    for metric in METRICS:
        parts = [score(metric, *part) for part in zip(maps.split(size), masks.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), score(metric, maps, masks), equal_nan=True)
