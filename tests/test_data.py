"""Selections of images, batches in [0, 1], crops and flips."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import data as core
from bench.contexts import generator
from bench.interfaces import ArrayData, Sample
from bench.testing import dataset_info, tiny_data, tiny_images

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=40).map(torch.tensor)


class Items:
    """Data that makes its samples one at a time."""

    def __init__(self, samples):
        self.info, self.samples = dataset_info(4, (4, 4), 3), samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


# Selections


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(1, 40))
def test_a_selection_is_as_even_over_the_classes_as_it_can_be(labels, count):
    chosen = core.select(labels, count, "test")
    assert len(chosen) == min(count, len(labels))
    assert (chosen.diff() > 0).all()
    there, taken = labels.bincount(minlength=5), labels[chosen].bincount(minlength=5)
    # No class could give one more to a class that has two more already.
    assert all(taken[one] == there[one] or taken[one] >= taken.max() - 1 for one in range(5))


@settings(max_examples=40, deadline=None)
@given(LABELS, st.integers(1, 20), st.integers(0, 20))
def test_a_smaller_selection_is_part_of_a_larger_one(labels, count, more):
    assert set(core.select(labels, count, "x").tolist()) <= set(core.select(labels, count + more, "x").tolist())


def test_a_selection_depends_on_its_seed_alone():
    labels = torch.arange(200) % 10
    torch.manual_seed(1)
    first = core.select(labels, 20, "test", "sha256:a")
    torch.manual_seed(2)
    assert torch.equal(first, core.select(labels, 20, "test", "sha256:a"))
    assert not torch.equal(first, core.select(labels, 20, "train", "sha256:a"))
    assert not torch.equal(first, core.select(labels, 20, "test", "sha256:b"))


def test_all_images_are_all_images_in_order():
    labels = torch.tensor([3, 1, 2])
    assert core.select(labels, None, "x").tolist() == core.select(labels, 3, "x").tolist() == core.select(labels, 9, "x").tolist() == [0, 1, 2]


def test_every_image_of_a_class_may_be_chosen():
    chosen = {int(index) for seed in range(60) for index in core.select(torch.zeros(10, dtype=torch.long), 2, seed)}
    assert chosen == set(range(10))


def test_several_labels_are_drawn_without_regard_to_classes():
    labels = torch.eye(4).repeat(10, 1)
    chosen = core.select(labels, 12, "x")
    assert len(chosen.unique()) == 12


# Fetching


def test_stored_bytes_become_floats_from_zero_to_one():
    data = ArrayData(
        dataset_info(2, (2, 2), 3), torch.tensor([0, 51, 255, 102], dtype=torch.uint8).view(1, 1, 2, 2).expand(2, 3, 2, 2), torch.tensor([0, 1])
    )
    images = core.fetch(data, torch.tensor([1]))
    assert images.inputs[0, 0].flatten().tolist() == pytest.approx([0, 0.2, 1, 0.4])
    assert images.labels.tolist() == [1]


def test_fetching_leaves_the_data_as_it_was():
    data = ArrayData(dataset_info(2, (4, 4), 3), torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))
    before = data.images.clone()
    core.fetch(data, torch.tensor([0, 1]), (2, 2)).inputs.zero_()
    core.fetch(data, torch.tensor([0, 1])).inputs.zero_()
    assert torch.equal(data.images, before)


def test_items_and_arrays_give_the_same_images():
    array = tiny_data(6)
    items = Items([array[index] for index in range(6)])
    chosen = torch.tensor([4, 0, 3])
    one, other = core.fetch(array, chosen), core.fetch(items, chosen)
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.masks, other.masks)


def test_the_masks_of_an_image_become_their_union():
    left, right = torch.zeros(2, 1, 4, 4, dtype=torch.bool).unbind()
    left[0, :, 0], right[0, :, 3] = True, True
    both = torch.cat([left, right])
    data = ArrayData(dataset_info(2, (4, 4), 3), torch.zeros(1, 3, 4, 4), torch.tensor([0]), both[None])
    for each in (data, Items([Sample(torch.zeros(3, 4, 4), 0, 0, both)])):
        assert core.fetch(each, torch.tensor([0])).masks[0, 0].sum(0).tolist() == [4, 0, 0, 4]


def test_masks_of_several_labels_stay_apart_where_there_is_one_for_each_class():
    info = dataset_info(2, (4, 4), 3, multi_label=True)
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0], masks[0, 1, 3] = True, True
    images, labels = torch.zeros(1, 3, 4, 4), torch.tensor([[1, 1]])
    items = Items([Sample(images[0], labels[0], 0, masks[0])])
    items.info = info
    for each in (ArrayData(info, images, labels, masks), items):
        assert torch.equal(core.fetch(each, torch.tensor([0])).masks, masks)
    three = ArrayData(info, images, labels, torch.cat([masks, masks[:, :1]], 1))  # Three masks and two classes: nobody can say whose they are.
    assert torch.equal(core.fetch(three, torch.tensor([0])).masks, masks.any(1, keepdim=True))


def test_resizing_leaves_the_class_of_a_box_as_it_is():
    box = torch.tensor([[1.0, 0.0, 3.0, 4.0, 0.0, 7.0]])
    images = core.fetch(Items([Sample(torch.rand(3, 4, 4), 0, 0, boxes=box), Sample(torch.rand(3, 4, 4), 0, 1)]), torch.tensor([0, 1]), (8, 8))
    assert images.boxes[0].tolist() == [[2.0, 0.0, 6.0, 8.0, 0.0, 7.0]]
    assert images.boxes[1].shape == (0, 5)


def test_resizing_doubles_masks_pixel_by_pixel_and_boxes_corner_by_corner():
    mask = torch.eye(4, dtype=torch.bool)[None]
    box = torch.tensor([[1.0, 0.0, 3.0, 4.0, 1.0]])
    images = core.fetch(Items([Sample(torch.rand(3, 4, 4), 0, 0, mask, box)]), torch.tensor([0]), (8, 12))
    assert images.inputs.shape == (1, 3, 8, 12)
    assert torch.equal(images.masks[0, 0], torch.eye(4, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert images.boxes[0].tolist() == [[3.0, 0.0, 9.0, 8.0, 1.0]]  # x three times, y twice, the mark of difficulty as it was


def test_resized_images_keep_their_brightness_and_stay_in_range():
    images = core.fetch(ArrayData(dataset_info(2, (16, 16), 3), tiny_images(3), torch.zeros(3, dtype=torch.long)), torch.arange(3), (8, 8)).inputs
    torch.testing.assert_close(images.mean((2, 3)), tiny_images(3).mean((2, 3)), atol=5e-3, rtol=0)
    assert images.min() >= 0
    assert images.max() <= 1


def test_halving_an_image_is_antialiased():
    """A chessboard of single pixels becomes grey; taking every second pixel would make it black or white."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    data = ArrayData(dataset_info(2, (16, 16), 3), board.float().expand(1, 3, 16, 16), torch.tensor([0]))
    middle = core.fetch(data, torch.tensor([0]), (8, 8)).inputs[0, 0, 2:-2, 2:-2]
    assert (middle - 0.5).abs().max() < 0.05


def test_boxes_stay_with_their_images_where_an_image_has_none():
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0]])
    items = Items([Sample(torch.zeros(3, 4, 4), 0, index, None, boxes) for index, boxes in enumerate([box, None, 2 * box])])
    boxes = core.fetch(items, torch.arange(3)).boxes
    assert len(boxes) == 3
    assert len(boxes[1]) == 0
    assert torch.equal(boxes[2], 2 * box)


def test_batches_come_in_order_and_the_last_is_smaller():
    found = list(core.batches(tiny_data(10), torch.tensor([9, 1, 5, 2, 0]), 2, None, "cpu"))
    assert [images.indices.tolist() for images in found] == [[9, 1], [5, 2], [0]]
    assert torch.equal(torch.cat([images.labels for images in found]), torch.tensor([9, 1, 5, 2, 0]) % 4)


# Labels


def test_labels_of_items_are_gathered_one_by_one():
    assert core.labels_of(Items([Sample(torch.zeros(3, 4, 4), label, index) for index, label in enumerate([2, 0, 3])])).tolist() == [2, 0, 3]
    several = [Sample(torch.zeros(3, 4, 4), torch.tensor([1.0, 0.0]), 0), Sample(torch.zeros(3, 4, 4), torch.tensor([1.0, 1.0]), 1)]
    assert core.labels_of(Items(several)).tolist() == [[1, 0], [1, 1]]


def test_labels_that_lie_in_memory_are_taken_without_decoding_an_image():
    class Counting(ArrayData):
        def __getitem__(self, index):
            raise AssertionError("an image was decoded for its label")

    data = tiny_data(8)
    assert core.labels_of(Counting(data.info, data.images, data.labels)).tolist() == [0, 1, 2, 3] * 2


def test_targets_are_one_hot_and_several_labels_stay_as_they_are():
    assert core.one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert core.one_hot(torch.tensor([[1, 0, 1]]), 3).tolist() == [[1, 0, 1]]


def test_images_are_counted_by_class():
    assert core.class_counts(torch.tensor([2, 0, 2]), 4) == (1, 0, 2, 0)
    assert core.class_counts(torch.tensor([[1, 0], [1, 1]]), 2) == (2, 1)


# Crops and flips


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crops_and_flips_are_those_of_a_loop_over_the_images(padding, flip):
    images = tiny_images(9, 8)
    found = core.crop_and_flip(images, padding, flip, generator("here"))
    draws = generator("here")
    offsets = torch.randint(0, 2 * padding + 1, (2, 9), generator=draws)
    mirrored = torch.rand(9, generator=draws) < 0.5 if flip else [False] * 9
    for row in range(9):
        framed = torch.zeros(3, 8 + 2 * padding, 8 + 2 * padding)
        framed[:, padding : padding + 8, padding : padding + 8] = images[row]
        top, left = offsets[:, row].tolist()
        piece = framed[:, top : top + 8, left : left + 8]
        assert torch.equal(found[row], piece.flip(2) if mirrored[row] else piece)


def test_every_offset_and_both_sides_occur_and_each_image_has_its_own():
    """A single white pixel in the middle shows where each image went."""
    images = torch.zeros(400, 1, 5, 5)
    images[:, :, 2, 1] = 1
    found = core.crop_and_flip(images, 1, True, generator("here"))
    places = found[:, 0].flatten(1).argmax(1)
    assert set(places.tolist()) == {row * 5 + column for row in (1, 2, 3) for column in (0, 1, 2, 3, 4)}  # 0 to 2, mirrored 2 to 4
    assert found.sum() == 400


def test_no_padding_and_no_flip_is_the_image_itself():
    images = tiny_images(4)
    assert torch.equal(core.crop_and_flip(images, 0, False, generator("here")), images)


def test_crops_leave_the_images_they_are_made_from():
    images = tiny_images(4)
    core.crop_and_flip(images, 2, True, generator("here")).zero_()
    assert torch.equal(images, tiny_images(4))


def test_preparation_images_come_in_batches_at_the_models_size():
    preparation = core.Preparation(tiny_data(10), torch.arange(5), (8, 8), "cpu")
    found = list(preparation.batches(2))
    assert [len(inputs) for inputs, _ in found] == [2, 2, 1]
    assert found[0][0].shape == (2, 3, 8, 8)
    assert torch.cat([labels for _, labels in found]).tolist() == [0, 1, 2, 3, 0]
