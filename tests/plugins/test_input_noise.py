"""Accuracy under noise on a network whose answer is known for every noise value."""

from statistics import NormalDist

import pytest
import torch
from torch import nn

from bench.testing import dataset_info, explained, generators, metric_context
from bench_plugins.input_noise import AccuracyUnderNoise


class BrighterThan(nn.Module):
    """Says class 1 where the mean of the image is above the threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, inputs):
        brightness = inputs.mean((1, 2, 3)) - self.threshold
        return torch.stack([-brightness, brightness], dim=1)


def score(metric, model, images, labels, seeds=None):
    seen = explained(model, images, labels=labels)
    context = metric_context(model, seen, dataset_info(image_size=tuple(images.shape[2:])))
    context.generators = seeds or context.generators
    return metric(model, seen, context)


def test_every_strength_has_a_column():
    rows = score(AccuracyUnderNoise(sigmas=(0.1, 0.2), draws=1), BrighterThan(0.5), torch.full((3, 1, 4, 4), 0.9), torch.ones(3, dtype=torch.long))
    assert rows.shape == (3, 2)


def test_noise_too_weak_to_matter_leaves_the_accuracy():
    labels = torch.tensor([1, 1, 0, 0])
    images = torch.tensor([0.9, 0.1, 0.9, 0.1]).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    rows = score(AccuracyUnderNoise(sigmas=(1e-4,), draws=2), BrighterThan(0.5), images, labels)
    assert rows[:, 0].tolist() == [100, 0, 0, 100]


def test_the_share_of_right_answers_is_that_of_the_normal_distribution():
    # One pixel at .5, threshold .6: right (class 0) where the noise stays below .1, which is one sigma.
    images = torch.full((400, 1, 1, 1), 0.5)
    rows = score(AccuracyUnderNoise(sigmas=(0.1,), draws=25), BrighterThan(0.6), images, torch.zeros(400, dtype=torch.long))
    assert float(rows.mean()) == pytest.approx(100 * NormalDist().cdf(1), abs=1.5)  # Standard error .37.


def test_noisy_images_stay_in_the_unit_range():
    class Watching(BrighterThan):
        def forward(self, inputs):
            assert 0 <= inputs.min() <= inputs.max() <= 1
            return super().forward(inputs)

    score(AccuracyUnderNoise(sigmas=(2.0,)), Watching(0.5), torch.rand(4, 3, 4, 4), torch.ones(4, dtype=torch.long))


def test_an_image_scores_the_same_alone_and_in_company():
    images, labels = torch.rand(7, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(7, dtype=torch.long)
    metric, model = AccuracyUnderNoise(sigmas=(0.3, 0.6), draws=5), BrighterThan(0.5)
    together = score(metric, model, images, labels)
    alone = [score(metric, model, images[i : i + 1], labels[i : i + 1], [generators(7)[i]]) for i in range(7)]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(score(metric, model, images, labels), together)


def test_the_curve_is_drawn_over_the_strengths():
    metric = AccuracyUnderNoise(sigmas=(0.1, 0.2))
    assert metric.curve(torch.tensor([[100.0, 0], [50, 50]]))[:2] == ([0.1, 0.2], [75, 25])
