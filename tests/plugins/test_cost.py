"""Costs: an explainer of known slowness, and cost records with known quotients."""

import math
import time
from types import SimpleNamespace

import pytest
import torch

from bench_plugins.cost import Latency, PassesBackward, PassesForward, PeakMemory, Throughput, TrainingPasses, TrainingSlowdown, TrainingThroughput

EXPLAINING = {"images": 200, "forward": 300, "backward": 100, "seconds": 2.0, "peak_memory": 3 * 2**20}


def training(*seconds, images=1000):
    epochs = [{"images": images, "seconds": each} for each in seconds]
    return {"images": images * len(seconds), "forward": 4500, "backward": 1500, "seconds": sum(seconds), "epochs": epochs}


class Images(SimpleNamespace):
    def __len__(self):
        return len(self.inputs)


def run(metric, images=10, nap=0.0):
    """The rows, and how many images each call of the explainer was given."""
    calls = []

    def explain(inputs, targets):
        calls.append(len(inputs))
        time.sleep(nap)

    seen = Images(inputs=torch.zeros(images, 1, 2, 2), targets=torch.zeros(images))
    return metric(None, seen, SimpleNamespace(explain=explain)), calls


def test_throughput_counts_images_and_leaves_the_warm_up_out():
    rows, calls = run(Throughput(batch=8, warm_up=2, repeats=3))
    assert rows.shape == (3,)
    assert calls == [8] * 5


def test_throughput_cannot_be_more_than_the_sleep_allows():
    metric = Throughput(batch=8, repeats=3)
    rows, _ = run(metric, nap=0.02)
    assert 40 < metric.aggregate(rows) <= 8 / 0.02


def test_latency_is_the_time_of_one_image():
    metric = Latency(repeats=3)
    rows, calls = run(metric, nap=0.02)
    assert set(calls) == {1}
    assert 20 <= metric.aggregate(rows) < 200


def test_one_slow_repeat_does_not_move_the_median():
    assert Latency().aggregate(torch.tensor([5.0, 900.0, 7.0])) == 7


def test_passes_are_counted_per_image():
    context = SimpleNamespace(explain_cost=EXPLAINING)
    assert PassesForward()(None, None, context).tolist() == [1.5]
    assert PassesBackward()(None, None, context).tolist() == [0.5]


def test_memory_is_told_in_mebibytes():
    assert PeakMemory()(None, None, SimpleNamespace(explain_cost=EXPLAINING)).tolist() == [3]


def test_training_throughput_is_the_median_of_the_last_epochs():
    metric = TrainingThroughput(last_epochs=3)
    rows = metric(None, None, SimpleNamespace(training=training(90.0, 5.0, 2.0, 4.0)))
    assert rows.tolist() == [200, 500, 250]
    assert metric.aggregate(rows) == 250


def test_slowdown_is_taken_against_the_median_floor():
    metric = TrainingSlowdown()
    context = SimpleNamespace(training=training(6.0, 8.0, 7.0, images=2000), floor_training=training(1.0, 2.0, 9.0))
    assert metric(None, None, context).tolist() == pytest.approx([1.5, 2.0, 1.75])
    assert metric.aggregate(metric(None, None, context)) == pytest.approx(1.75)


def test_training_passes_count_forward_and_backward():
    context = SimpleNamespace(training=training(1.0, 1.0))
    assert TrainingPasses()(None, None, context).tolist() == [3]


@pytest.mark.parametrize("metric", [PassesForward(), PeakMemory(), TrainingThroughput(), TrainingSlowdown(), TrainingPasses()])
def test_what_was_not_recorded_is_no_row(metric):
    assert len(metric(None, None, SimpleNamespace(explain_cost=None, training=None, floor_training=None))) == 0


def test_a_median_of_nothing_is_not_a_number():
    assert math.isnan(PeakMemory().aggregate(torch.tensor([])))
