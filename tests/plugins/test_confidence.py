"""Drop, increase and their relations: EDDA's formula, the two-channel network by hand, and torchcam for the soft form."""

from contextlib import nullcontext

import pytest
import torch
from metric_cases import MEAN, images, in_parts, maps, score, small_network
from torch import nn
from torchcam.metrics import ClassificationMetric

from bench.testing import TWO_CHANNEL_IMAGE, TwoChannelNetwork, dataset_info, explained, metric_context
from bench_plugins._scoring import share_of
from bench_plugins.confidence import Comprehensiveness, Confidence, Drop, DropSoft, Increase, IncreaseCount, IncreaseSoft, Sufficiency

GRADCAM = torch.tensor([[[[0.5, -0.5], [1.5, 0.25]]]])  # Of the two-channel network's image.
WHOLE, TOP_HALF, LOW_HALF = 0.798187, 0.952574, 0.164516  # Probabilities of class 0, by hand.


def two_channel(metric):
    return score(metric, TwoChannelNetwork(), TWO_CHANNEL_IMAGE, GRADCAM).item()


def test_edda_formula_on_given_probabilities():
    confidence = Confidence(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.75]))
    assert confidence.drop.mean().item() == pytest.approx(37.5)
    assert confidence.increase.mean().item() == pytest.approx(25)
    assert confidence.increased.mean().item() == 50


def test_the_two_channel_network_with_half_of_the_pixels():
    assert two_channel(Drop(keep=0.5)) == 0
    assert two_channel(Increase(keep=0.5)) == pytest.approx(19.3423, abs=1e-3)
    assert two_channel(IncreaseCount(keep=0.5)) == 100
    assert two_channel(Sufficiency(keep=0.5)) == pytest.approx(TOP_HALF - WHOLE, abs=1e-5)
    assert two_channel(Comprehensiveness(hide=0.5)) == pytest.approx(WHOLE - LOW_HALF, abs=1e-5)


def test_an_empty_top_shows_the_fill_alone():
    assert two_channel(Drop()) == pytest.approx(100 * (WHOLE - 0.5) / WHOLE, abs=1e-3)  # Zero in, even odds out.


def test_the_top_is_the_whole_number_below_the_share():
    assert [share_of(side**2, 0.15) for side in (32, 64, 224)] == [153, 614, 7526]
    assert share_of(100, 0.29) == 29


def test_everything_kept_changes_nothing():
    for metric in (Drop(keep=1), Increase(keep=1), IncreaseCount(keep=1), Sufficiency(keep=1)):
        assert score(metric, small_network(), images(4), maps(4)).tolist() == [0] * 4


def test_sufficiency_is_increase_minus_drop_in_units_of_the_probability():
    model = small_network()
    before = model(images(16)).softmax(1).amax(1).detach()
    drop, increase, sufficiency = (score(metric(keep=0.3), model, images(16), maps(16)) for metric in (Drop, Increase, Sufficiency))
    torch.testing.assert_close(sufficiency, before * (increase - drop) / 100, atol=1e-6, rtol=0)


def test_metrics_of_the_same_top_share_one_forward():
    model = small_network()
    seen = explained(model, images(6), maps(6))
    context = metric_context(model, seen, dataset_info(num_classes=5, image_size=(16, 16)))
    for metric in (Drop(), Increase(), Sufficiency(), IncreaseCount()):
        metric(model, seen, context)
    assert context.passes.forward == 6


class Extractor:
    """Gives torchcam a ready map. It multiplies what its network is given, so its network takes images less the mean colour."""

    def __init__(self, model, cams):
        self.model, self.cams = nn.Sequential(Shifted(), model), cams

    def __call__(self, class_idx=None, scores=None, **options):
        return [self.cams]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


class Shifted(nn.Module):
    def forward(self, inputs):
        return inputs + MEAN.view(1, 3, 1, 1)


def test_the_soft_form_agrees_with_torchcam():
    model, inputs, raw = small_network(), images(64), maps(64)
    lowest, highest = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
    theirs = ClassificationMetric(Extractor(model, ((raw - lowest) / (highest - lowest))[:, 0]), lambda logits: logits.softmax(-1))
    theirs.update(inputs - MEAN.view(1, 3, 1, 1))
    summary = theirs.summary()
    assert 0.05 < summary["avg_drop"] < 0.95
    assert score(DropSoft(), model, inputs, raw).mean().item() == pytest.approx(100 * summary["avg_drop"], abs=1e-3)
    assert score(IncreaseSoft(), model, inputs, raw).mean().item() == pytest.approx(100 * summary["conf_increase"], abs=1e-3)


def test_the_soft_form_takes_the_map_by_its_shape_not_its_scale():
    model = small_network()
    expected = score(DropSoft(), model, images(5), maps(5))
    torch.testing.assert_close(score(DropSoft(), model, images(5), 3 * maps(5) - 7), expected, atol=1e-3, rtol=0)


def test_a_constant_map_shows_the_fill_alone():
    drop = score(DropSoft(), TwoChannelNetwork(), TWO_CHANNEL_IMAGE, torch.ones_like(GRADCAM)).item()
    assert drop == pytest.approx(100 * (WHOLE - 0.5) / WHOLE, abs=1e-3)


@pytest.mark.parametrize("metric", [Drop(), Increase(), IncreaseCount(), Sufficiency(), Comprehensiveness(), DropSoft(), IncreaseSoft()])
def test_numbers_do_not_depend_on_the_batch(metric):
    whole = score(metric, small_network(), images(64), maps(64))
    for size in (1, 7):
        torch.testing.assert_close(in_parts(metric, small_network(), images(64), maps(64), size), whole, atol=1e-3, rtol=1e-5)


def test_a_probability_of_nothing_does_not_divide_by_zero():
    confidence = Confidence(torch.tensor([0.0]), torch.tensor([0.0]))
    assert confidence.drop.item() == confidence.increase.item() == 0
