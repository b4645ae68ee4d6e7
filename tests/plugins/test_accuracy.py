"""Accuracy, top-k and mean average precision against counts made by hand and against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from bench.errors import InvalidValue
from bench.interfaces import Explained
from bench_plugins._scoring import hits
from bench_plugins.accuracy import Accuracy, MeanAveragePrecision, TopFiveAccuracy, average_precision


def seen(logits, labels):
    images = torch.zeros(len(logits), 1, 2, 2)
    return Explained(images, labels, torch.arange(len(logits)), logits.argmax(1), logits)


def test_a_hit_is_100_and_a_miss_is_0():
    logits = torch.tensor([[3.0, 1, 2], [0, 5, 1], [9, 0, 1]])
    assert Accuracy()(None, seen(logits, torch.tensor([0, 1, 2])), None).tolist() == [100, 100, 0]


def test_the_label_may_be_anywhere_among_the_first_k():
    logits = torch.arange(6.0).repeat(6, 1)
    assert TopFiveAccuracy()(None, seen(logits, torch.arange(6)), None).tolist() == [0, 100, 100, 100, 100, 100]


def test_equal_logits_are_right_for_the_first_class_only():
    assert hits(torch.zeros(3, 3), torch.arange(3)).tolist() == [100, 0, 0]


def test_logits_that_are_no_numbers_are_never_right():
    assert hits(torch.full((2, 7), torch.nan), torch.tensor([0, 6]), k=5).tolist() == [0, 0]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 100))
def test_top_k_agrees_with_scikit_learn(k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 7, generator=generator)
    labels = torch.randint(7, (40,), generator=generator)
    expected = top_k_accuracy_score(labels, logits, k=k, labels=range(7))
    assert float(hits(logits, labels, k).mean()) == pytest.approx(100 * expected)


def test_with_several_labels_it_is_the_share_of_classes_called_right():
    logits = torch.tensor([[1.0, -1, 2, -2]])
    assert hits(logits, torch.tensor([[1, 0, 0, 0]])).tolist() == [75]


def test_top_5_with_several_labels_is_refused():
    with pytest.raises(InvalidValue, match="mean-average-precision"):
        hits(torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.long), k=5)


def test_average_precision_by_hand():
    # Ranked: yes, no, yes. Precision at the two hits: 1 and 2/3.
    scores, relevant = torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([[True, False, True]])
    assert average_precision(scores, relevant).item() == pytest.approx((1 + 2 / 3) / 2)


def test_equal_scores_enter_together():
    assert average_precision(torch.zeros(1, 4), torch.tensor([[True, False, False, False]])).item() == 0.25


@settings(deadline=None)
@given(st.integers(0, 100), st.sampled_from([2, 50]))
def test_mean_average_precision_agrees_with_scikit_learn(seed, distinct):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-distinct, distinct, (30, 5), generator=generator).float()
    labels = (torch.rand(30, 5, generator=generator) < 0.3).long()
    labels[0] = 1  # scikit-learn wants every class to be seen.
    metric = MeanAveragePrecision()
    rows = metric(None, seen(logits, labels), None)
    assert metric.aggregate(rows) == pytest.approx(100 * average_precision_score(labels, logits, average="macro"), rel=1e-5)


def test_a_class_that_no_image_shows_is_left_out_of_the_mean():
    logits, labels = torch.tensor([[1.0, 5.0], [2.0, 3.0]]), torch.tensor([[1, 0], [0, 0]])
    metric = MeanAveragePrecision()
    rows = metric(None, seen(logits, labels), None)
    assert metric.aggregate(rows) == 50  # Class 0: the one image that shows it comes second.
    assert metric.values(rows)[0] == 50
    assert metric.values(rows)[1].isnan()
