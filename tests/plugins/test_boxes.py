"""Boxes and what is moved between them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_plugins._boxes import Boxes, around, moved, window_sums

SIDE = 12
spans = st.tuples(st.integers(0, SIDE - 1), st.integers(1, SIDE)).filter(lambda span: span[0] < span[1])
boxes = st.tuples(spans, spans).map(lambda pair: Boxes(*(torch.tensor([edge]) for span in pair for edge in span)))


@given(source=boxes, target=boxes, interpolation=st.sampled_from(["bilinear", "nearest"]))
@settings(max_examples=60, deadline=None)
def test_a_moved_box_is_what_interpolate_makes_of_it(source, target, interpolation):
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    (top, bottom, left, right), (to_top, to_bottom, to_left, to_right) = (tuple(int(edge) for edge in box) for box in (source, target))
    options = {"align_corners": True} if interpolation == "bilinear" else {}
    expected = F.interpolate(images[:, :, top:bottom, left:right], size=(to_bottom - to_top, to_right - to_left), mode=interpolation, **options)
    result = moved(images, source, target, interpolation)[:, :, to_top:to_bottom, to_left:to_right]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_every_image_may_have_boxes_of_its_own():
    images = torch.rand(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    source = Boxes(*torch.tensor([[0, 2, 4], [6, 8, 12], [1, 0, 3], [5, 9, 4]]))
    target = Boxes(*torch.tensor([[1, 0, 0], [4, 12, 3], [2, 2, 2], [9, 8, 3]]))
    together = moved(images, source, target, "bilinear")
    for row in range(3):
        alone = moved(images[[row]], source.select(torch.tensor([row])), target.select(torch.tensor([row])), "bilinear")
        torch.testing.assert_close(together[[row]], alone)


@pytest.mark.parametrize("size", [4, 5])
def test_a_box_reaches_half_its_size_to_both_sides_and_is_cut_off_at_the_border(size):
    box = around(torch.tensor([3, 0]), torch.tensor([3, 11]), torch.tensor([size] * 2), torch.tensor([size] * 2), SIDE, SIDE)
    assert [edge.tolist() for edge in box] == [[1, 0], [5, 2], [1, 9], [5, 12]]
    assert box.areas.tolist() == [16, 6]
    assert box.cover(SIDE, SIDE).sum((1, 2, 3)).tolist() == [16, 6]


def test_window_sums_are_sums():
    maps = torch.arange(12.0).view(1, 3, 4)
    rows = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 1]]).bool()
    columns = torch.eye(4).bool()
    assert window_sums(maps, rows, columns)[0].tolist() == [[4, 6, 8, 10], [12, 15, 18, 21], [8, 9, 10, 11]]
