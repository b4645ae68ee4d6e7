"""SnapMix, Intra-class Part Swapping and Attribute Mix, with explainers whose maps are known."""

import pytest
import torch
import torch.nn.functional as F
from augmenter_cases import augment, batch_of, heat, network

from bench import contexts, testing
from bench.interfaces import Batch
from bench_plugins import cam_mixing
from bench_plugins._boxes import Boxes
from bench_plugins.cam_mixing import AttributeMix, IntraClassPartSwapping, SnapMix, bounding_boxes, partners_of_class, shares_of_sum


def fixed_boxes(monkeypatch, *boxes):
    """Let SnapMix draw these boxes (top, bottom, left, right): the target's, then the source's."""
    left = [Boxes(*(torch.tensor([edge]) for edge in box)) for box in boxes]
    monkeypatch.setattr(cam_mixing, "boxes_of", lambda *_: left.pop(0))
    monkeypatch.setattr(cam_mixing, "draw_shares", lambda *_: None)


def partners_in(batch):
    """The permutation that the part draws, which is its first draw where shares and boxes are fixed."""
    return torch.randperm(len(batch), generator=contexts.generator("", "augmenter", 5, 0))


def test_a_map_becomes_shares_of_its_sum():
    maps = torch.tensor([[[[1.0, -2.0], [3.0, 0.5]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    expected = torch.tensor([[[[3.0, 0.0], [5.0, 2.5]]], [[[1.0, 1.0], [1.0, 1.0]]]]) / torch.tensor([10.5, 4.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(shares_of_sum(maps), expected)


def test_snapmix_pastes_the_resized_box_and_weighs_by_the_maps(monkeypatch):
    fixed_boxes(monkeypatch, (0, 2, 0, 4), (4, 8, 4, 8))
    batch = batch_of(6, side=8, classes=6)
    partners = partners_in(batch)
    result = augment(SnapMix(), batch)
    pasted = F.interpolate(batch.inputs[partners][:, :, 4:8, 4:8], size=(2, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(result.inputs[:, :, 0:2, 0:4], pasted, atol=1e-5, rtol=0)
    assert torch.equal(result.inputs[:, :, 2:], batch.inputs[:, :, 2:])
    assert torch.equal(result.inputs[:, :, :2, 4:], batch.inputs[:, :, :2, 4:])
    brightness = batch.inputs.mean(1)
    shares = brightness - brightness.amin((1, 2), keepdim=True)
    shares = shares / shares.sum((1, 2), keepdim=True)
    own, other = 1 - shares[:, :2, :4].sum((1, 2)), shares[partners][:, 4:8, 4:8].sum((1, 2))
    loss_weights = result.targets * result.weights.unsqueeze(1)
    torch.testing.assert_close(loss_weights, own.unsqueeze(1) * torch.eye(6) + other.unsqueeze(1) * torch.eye(6)[partners], atol=1e-5, rtol=0)


def test_two_images_of_one_class_count_once_together(monkeypatch):
    fixed_boxes(monkeypatch, (0, 2, 0, 4), (4, 8, 4, 8))
    batch = batch_of(6, side=8, classes=1)
    result = augment(SnapMix(), batch)
    assert torch.equal(result.targets, batch.targets)
    assert ((result.weights - 1).abs() > 1e-3).any()
    assert (result.weights < 2).all()


def test_a_constant_map_counts_as_the_area(monkeypatch):
    fixed_boxes(monkeypatch, (0, 2, 0, 4), (4, 8, 4, 8))
    batch = batch_of(6, side=8, classes=6)
    result = augment(SnapMix(), batch, explainer=lambda model, inputs, *_: torch.full_like(inputs[:, :1], 0.3))
    weights = (result.targets * result.weights.unsqueeze(1))[partners_in(batch) != torch.arange(6)]
    torch.testing.assert_close(weights.sort(1, descending=True).values[:, :2], torch.tensor([[1 - 8 / 64, 16 / 64]]).expand(len(weights), 2))


def test_an_empty_box_leaves_the_batch_alone_and_explains_nothing(monkeypatch):
    fixed_boxes(monkeypatch, (2, 2, 0, 4), (4, 8, 4, 8))
    batch = batch_of(4)
    assert augment(SnapMix(), batch, explainer=None) is batch


def test_the_box_goes_around_every_marked_pixel():
    regions = torch.zeros(3, 1, 5, 6, dtype=torch.bool)
    regions[0, 0, 1, 2] = regions[0, 0, 3, 4] = regions[1, 0, 4, 0] = True
    assert [edge.tolist() for edge in bounding_boxes(regions)] == [[1, 4, 0], [4, 5, 5], [2, 0, 0], [5, 1, 6]]


def test_partners_are_others_of_the_same_class():
    labels = torch.tensor([0, 1, 0, 2, 0, 1])
    seen = torch.stack([partners_of_class(labels, contexts.generator("class", step)) for step in range(60)])
    assert (labels[seen] == labels).all()
    assert (seen[:, 3] == 3).all()
    assert set(seen[:, 0].tolist()) == {2, 4}
    assert set(seen[:, 1].tolist()) == {5}


def spots(*places, side=12):
    """Dark images with one 2 x 3 spot each, brighter in the later images."""
    inputs = torch.zeros(len(places), 3, side, side)
    for number, (row, column) in enumerate(places):
        inputs[number, :, row : row + 2, column : column + 3] = 0.5 + number / 10
    return inputs


def test_the_part_of_another_image_of_the_class_covers_the_own_part():
    inputs = spots((1, 1), (7, 5), (4, 8))
    batch = Batch.of(inputs, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    result = augment(IntraClassPartSwapping(), batch)
    expected = inputs.clone()
    expected[0, :, 1:3, 1:4] = 0.6
    expected[1, :, 7:9, 5:8] = 0.5
    torch.testing.assert_close(result.inputs, expected)
    assert torch.equal(result.targets, batch.targets)


def test_attributes_are_found_one_after_another():
    inputs = spots((1, 1), (7, 5))
    inputs[:, :, 10, 0:2] = 0.2
    batch = Batch.of(inputs, torch.eye(2))
    context = testing.step_context(None, explainer=heat)
    part = AttributeMix(fill="black")
    first, second = (part.attribute(number, network(), batch, context) for number in (0, 1))
    assert torch.equal(first, inputs[:, :1] >= 0.5)
    assert torch.equal(second, inputs[:, :1] == 0.2)


def test_an_attribute_is_pasted_at_its_place():
    inputs = spots((1, 1), (7, 5))
    batch = Batch.of(inputs, torch.eye(2))
    results = [augment(AttributeMix(attributes=1), batch, step=step) for step in range(6)]
    mixed = next(result for result in results if not torch.equal(result.inputs, inputs))
    assert torch.equal(mixed.inputs[0], torch.maximum(inputs[0], inputs[1]))
    torch.testing.assert_close(mixed.targets, torch.tensor([[1 - 6 / 144, 6 / 144], [6 / 144, 1 - 6 / 144]]))


@pytest.mark.parametrize("step", range(4))
def test_without_a_map_there_is_no_attribute(step):
    batch = batch_of(4)
    result = augment(AttributeMix(), batch, explainer=lambda model, inputs, *_: torch.zeros_like(inputs[:, :1]), step=step)
    assert torch.equal(result.inputs, batch.inputs)
