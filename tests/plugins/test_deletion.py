"""Deletion and insertion: the two-channel network by hand, constant and linear scores, and torchcam."""

from contextlib import nullcontext

import pytest
import torch
from metric_cases import MEAN, images, in_parts, maps, score, small_network
from torch import nn
from torchcam.metrics import DeletionInsertionMetric

from bench.testing import TWO_CHANNEL_IMAGE, TwoChannelNetwork, dataset_info, explained, metric_context
from bench_plugins.deletion import Deletion, DeletionAccuracy, Insertion, InsertionAccuracy, kept

GRADCAM = torch.tensor([[[[0.5, -0.5], [1.5, 0.25]]]])  # Order of the pixels: (1,0), (0,0), (1,1), (0,1).


def test_the_two_channel_network_step_by_step():
    deletion = score(Deletion(steps=4), TwoChannelNetwork(), TWO_CHANNEL_IMAGE, GRADCAM)[0]
    insertion = score(Insertion(steps=4), TwoChannelNetwork(), TWO_CHANNEL_IMAGE, GRADCAM)[0]
    assert deletion.tolist() == pytest.approx([0.306757, 0.798187, 0.294215, 0.164516, 0.119203, 0.5], abs=1e-6)
    assert insertion.tolist() == pytest.approx([0.868308, 0.5, 0.904651, 0.952574, 0.966914, 0.798187], abs=1e-6)


def test_more_steps_than_pixels_give_the_same_area():
    rows = score(Deletion(), TwoChannelNetwork(), TWO_CHANNEL_IMAGE, GRADCAM)
    assert Deletion().values(rows).item() == pytest.approx(0.306757, abs=1e-6)


class Share(nn.Module):
    """Class 0 has the image's mean as its probability."""

    def forward(self, inputs):
        share = inputs.mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([share.log(), (1 - share).log()], dim=1)


@pytest.mark.parametrize("steps", [4, 7, 32])
def test_a_score_that_falls_evenly_has_an_area_of_one_half(steps):
    for metric in (Deletion(steps=steps, fill="black"), Insertion(steps=steps, fill="black")):
        rows = score(metric, Share(), torch.ones(1, 1, 15, 15), torch.rand(1, 1, 15, 15))
        assert metric.values(rows).item() == pytest.approx(0.5, abs=1e-5)


def test_a_score_that_never_changes_is_its_own_area():
    class Constant(nn.Module):
        def forward(self, inputs):
            return torch.tensor([0.8, 0.2]).log().expand(len(inputs), 2)

    rows = score(Deletion(steps=5), Constant(), torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4))
    assert Deletion(steps=5).values(rows).tolist() == pytest.approx([0.8, 0.8])


def test_the_area_is_the_trapezoid_of_the_authors_code():
    """225 scores, 113 of them 1 and then 112 of 0: half of the first one is not counted, so (113 - 1/2) / 224."""

    class Falling(nn.Module):
        """Class 0 for certain while at most 112 of the 224 pixels are black."""

        def forward(self, inputs):
            certain = 200.0 * ((inputs == 0).sum((1, 2, 3)) <= 112) - 100
            return torch.stack([certain, -certain], dim=1)

    metric = Deletion(steps=224, fill="black")
    rows = score(metric, Falling(), torch.ones(1, 1, 14, 16), torch.rand(1, 1, 14, 16))
    assert metric.values(rows).item() == pytest.approx(0.502232, abs=1e-6)


@pytest.mark.parametrize(("side", "steps"), [(16, 32), (16, 8), (15, 5)])
def test_the_areas_agree_with_torchcam(side, steps):
    model, inputs, cams = small_network(), images(64, side), maps(64, side)
    theirs = DeletionInsertionMetric(Extractor(model, cams), lambda logits: logits.softmax(-1), steps=steps, baseline=MEAN.view(1, 3, 1, 1))
    theirs.update(inputs)
    summary = theirs.summary()
    assert abs(summary["deletion_auc"] - summary["insertion_auc"]) > 1e-3  # The two cannot be mistaken for each other.
    for metric, expected in ((Deletion(steps=steps), summary["deletion_auc"]), (Insertion(steps=steps), summary["insertion_auc"])):
        assert metric.values(score(metric, model, inputs, cams)).mean().item() == pytest.approx(expected, abs=1e-5)


class Extractor:
    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx=None, scores=None, **options):
        return [self.maps[:, 0]]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


@pytest.mark.parametrize("fill", ["mean", "blur", "black", "noise"])
@pytest.mark.parametrize("kind", [Deletion, Insertion, DeletionAccuracy, InsertionAccuracy])
def test_numbers_do_not_depend_on_the_batch(kind, fill):
    metric = kind(steps=8, fill=fill)
    whole = score(metric, small_network(), images(64, 8), maps(64, 8))
    for size in (1, 7):
        torch.testing.assert_close(in_parts(metric, small_network(), images(64, 8), maps(64, 8), size), whole, atol=1e-5, rtol=0)


def test_deletion_and_insertion_share_their_ends():
    model = small_network()
    seen = explained(model, images(3), maps(3))
    context = metric_context(model, seen, dataset_info(num_classes=5, image_size=(16, 16)))
    deletion, insertion = (metric(steps=8)(model, seen, context) for metric in (Deletion, Insertion))
    assert context.passes.forward == 3 * (7 + 1 + 7)  # Inner steps, the fill alone, inner steps; the image itself is known.
    assert torch.equal(deletion[:, 1], insertion[:, -1])
    assert torch.equal(deletion[:, -1], insertion[:, 1])


def test_the_curve_runs_over_the_share_of_pixels():
    rows = score(Insertion(steps=4), TwoChannelNetwork(), TWO_CHANNEL_IMAGE, GRADCAM)
    curve = Insertion(steps=4).curve(rows)
    assert curve.x == [0, 0.25, 0.5, 0.75, 1]
    assert curve.y == pytest.approx([0.5, 0.904651, 0.952574, 0.966914, 0.798187], abs=1e-6)


# By accuracy


def test_by_accuracy_the_two_channel_network_keeps_its_class_while_the_probability_is_half_or_more():
    """The probabilities of deletion above are over 1/2 once, at the image; with all hidden the logits are equal, which is class 0."""
    deletion, insertion = DeletionAccuracy(steps=4), InsertionAccuracy(steps=4)
    rows = score(deletion, TwoChannelNetwork(), TWO_CHANNEL_IMAGE, GRADCAM)
    assert rows.tolist() == [[pytest.approx(2 * 0.5 / 4), 1, 0, 0, 0, 1]]
    assert score(insertion, TwoChannelNetwork(), TWO_CHANNEL_IMAGE, GRADCAM).tolist() == [[1, 1, 1, 1, 1, 1]]
    assert deletion.curve(rows)[1:] == ([1, 0, 0, 0, 1], "share of pixels hidden", "share of images that keep the class")


@pytest.mark.parametrize(("metric", "shows"), [(DeletionAccuracy(steps=4, fill="black"), False), (InsertionAccuracy(steps=4, fill="black"), True)])
def test_accuracy_is_that_of_a_loop_over_images_and_steps(metric, shows):
    model, inputs, attributions = small_network(), images(16, 8), maps(16, 8)
    found = score(metric, model, inputs, attributions)
    for image, saliency, row in zip(inputs, attributions.flatten(1), found, strict=True):
        predicted, kept_class = model(image[None]).argmax(), []
        for taken in (0, 16, 32, 48, 64):
            shown = torch.zeros(64) if shows else torch.ones(64)
            shown[saliency.argsort(descending=True)[:taken]] = float(shows)
            kept_class.append(float(model((image * shown.view(8, 8))[None]).argmax() == predicted))
        assert row.tolist() == pytest.approx([(sum(kept_class) - (kept_class[0] + kept_class[-1]) / 2) / 4, *kept_class])
    assert 0.1 < found[:, 2:5].mean() < 0.9


def test_of_several_labels_the_class_stays_while_it_is_said_to_be_there():
    logits = torch.tensor([[5.0, 1.0], [5.0, -1.0]])
    assert kept(logits, torch.tensor([1, 1]), multi_label=True).tolist() == [1, 0]
    assert kept(logits, torch.tensor([1, 0]), multi_label=False).tolist() == [0, 1]
