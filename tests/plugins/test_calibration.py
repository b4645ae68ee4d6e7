"""Calibration: bins filled by hand, torchmetrics, and PyTorch's own losses."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from bench import testing
from bench.interfaces import Explained
from bench_plugins.calibration import Brier, ExpectedCalibrationError, NegativeLogLikelihood, reliability

SINGLE = SimpleNamespace(probability=lambda logits: logits.softmax(1))
MULTI = SimpleNamespace(probability=torch.sigmoid)


def rows(metric, logits, labels, context=SINGLE):
    images = torch.zeros(len(logits), 1, 2, 2)
    return metric(None, Explained(images, labels, torch.arange(len(logits)), logits.argmax(1), logits), context)


def two_classes(*confidences):
    """Logits whose first class has these probabilities."""
    first = torch.tensor(confidences)
    return torch.stack([first.log(), (1 - first).log()], dim=1)


def test_two_bins_by_hand():
    metric = ExpectedCalibrationError(bins=10)
    found = rows(metric, two_classes(0.95, 0.95, 0.65, 0.65), torch.tensor([0, 0, 0, 1]))
    assert metric.aggregate(found) == pytest.approx(0.5 * 0.05 + 0.5 * 0.15)
    assert metric.values(found).tolist() == pytest.approx([-0.05, -0.05, -0.35, 0.65])


@settings(deadline=None)
@given(st.integers(0, 200), st.sampled_from([1, 10, 15]))
def test_ece_agrees_with_torchmetrics(seed, bins):
    draw = torch.Generator().manual_seed(seed)
    logits, labels = 2 * torch.randn(300, 6, generator=draw), torch.randint(6, (300,), generator=draw)
    metric = ExpectedCalibrationError(bins=bins)
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=6, n_bins=bins, norm="l1")
    assert metric.aggregate(rows(metric, logits, labels)) == pytest.approx(expected.item(), abs=1e-6)


def test_a_network_that_knows_its_chances_has_almost_no_error():
    draw = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(20000, generator=draw)
    labels = (torch.rand(20000, generator=draw) >= confidence).long()
    metric = ExpectedCalibrationError()
    assert metric.aggregate(rows(metric, two_classes(*confidence.tolist()), labels)) < 0.02


def test_full_confidence_has_a_bin():
    metric = ExpectedCalibrationError()
    assert metric.aggregate(rows(metric, torch.tensor([[200.0, 0], [200, 0]]), torch.tensor([0, 1]))) == pytest.approx(0.5)


def test_every_class_of_a_multi_label_image_is_a_prediction():
    metric = ExpectedCalibrationError(bins=10)
    logits = torch.tensor([[0.95, 0.35]]).logit()  # Yes with .95, no with .65.
    found = rows(metric, logits, torch.tensor([[1, 1]]), MULTI)
    assert found[0].tolist() == pytest.approx([0.95, 0.65, 1, 0])
    assert metric.aggregate(found) == pytest.approx((0.05 + 0.65) / 2)


def test_likelihood_and_brier_by_hand():
    logits, labels = two_classes(0.8, 0.8), torch.tensor([0, 1])
    assert rows(NegativeLogLikelihood(), logits, labels).tolist() == pytest.approx([-math.log(0.8), -math.log(0.2)])
    assert rows(Brier(), logits, labels).tolist() == pytest.approx([2 * 0.2**2, 2 * 0.8**2])


def test_with_several_labels_they_are_means_over_classes():
    logits, labels = torch.tensor([[0.9, 0.4]]).logit(), torch.tensor([[1, 0]])
    assert rows(NegativeLogLikelihood(), logits, labels, MULTI).item() == pytest.approx(-(math.log(0.9) + math.log(0.6)) / 2)
    assert rows(Brier(), logits, labels, MULTI).item() == pytest.approx((0.01 + 0.16) / 2)


# The figure


def test_the_bins_of_the_diagram_are_filled_by_hand():
    found = reliability(rows(ExpectedCalibrationError(), two_classes(0.95, 0.93, 0.65, 0.65), torch.tensor([0, 0, 0, 1])), 10)
    assert found.share.tolist() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.5]
    assert found.confidence[[6, 9]].tolist() == pytest.approx([0.65, 0.94])
    assert found.accuracy[[6, 9]].tolist() == [0.5, 1]
    assert found.accuracy.isnan().sum() == 8


@settings(deadline=None)
@given(st.integers(0, 50), st.sampled_from([1, 10, 15]))
def test_the_error_is_the_distance_of_the_bins_from_the_diagonal(seed, bins):
    draw = torch.Generator().manual_seed(seed)
    logits, labels = 2 * torch.randn(300, 6, generator=draw), torch.randint(6, (300,), generator=draw)
    metric = ExpectedCalibrationError(bins=bins)
    found = reliability(rows(metric, logits, labels), bins)
    assert found.share.sum().item() == pytest.approx(1)
    expected = (found.share * (found.accuracy - found.confidence).abs()).nansum().item()
    assert metric.aggregate(rows(metric, logits, labels)) == pytest.approx(expected)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_figure_is_a_picture_and_leaves_the_model_as_it_was(tmp_path, multi_label):
    model, data = testing.TinyNetwork().train(), testing.tiny_data(12)
    labels = torch.nn.functional.one_hot(data.labels, 4) if multi_label else data.labels
    images = SimpleNamespace(batches=lambda size: zip((data.images.float() / 255).split(size), labels.split(size), strict=True))
    info = testing.dataset_info(4, (16, 16), 3, multi_label=multi_label)
    before = testing.snapshot(model)
    ExpectedCalibrationError().figure(model, images, testing.explain_context(model, model.layers, 1, info, chunk=5), tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert testing.changed(before, model) == []
