"""Proxy Attention: factors worked out by hand, which images become proxies, and what they may never touch."""

import pytest
import torch
from fitting_cases import Stop, Trained, resumed, same
from torch import nn

from bench import testing
from bench.errors import InvalidValue
from bench.interfaces import ArrayData, Batch
from bench.train import TrainingData
from bench_plugins.fitting import Standard
from bench_plugins.gradcam import GradCam
from bench_plugins.pes import Pes
from bench_plugins.plain import Plain
from bench_plugins.proxy_attention import ProxyAttention, darkened, mistakes

MAP = torch.tensor([[[[1 / 3, 0.0], [1.0, 1 / 6]]]])  # Grad-CAM of the two-channel network, scaled to [0, 1].
MODEL = testing.TwoChannelNetwork()


# The formula


def test_factors_on_the_two_channel_network():
    """weight 0.4 and threshold 0.3: factors [[1 - 0.4 / 3, 1], [0.6, 1]]."""
    found = darkened(testing.TWO_CHANNEL_IMAGE, MAP, threshold=0.3, weight=0.4)
    assert torch.allclose(found, torch.tensor([[[[0.8666667, -2.0], [1.8, 0.5]]]]))


@pytest.mark.parametrize(("threshold", "weight"), [(0.0, 0.0), (1.0, 0.9)])
def test_no_weight_or_a_threshold_that_no_map_exceeds_changes_nothing(threshold, weight):
    images = testing.tiny_images(3)
    maps = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(darkened(images, maps, threshold, weight), images)
    assert torch.equal(darkened(images, torch.zeros_like(maps), 0.5, weight), images)


def test_a_pixel_at_the_threshold_stays_and_one_above_is_darkened_by_its_map():
    found = darkened(torch.ones(1, 3, 1, 2), torch.tensor([[[[0.5, 0.6]]]]), threshold=0.5, weight=0.5)
    assert torch.allclose(found, torch.tensor([1.0, 0.7]).expand(1, 3, 1, 2))


def test_what_was_looked_at_more_becomes_darker_and_keeps_its_hue():
    colour = torch.tensor([0.9, 0.6, 0.3]).view(1, 3, 1, 1)
    maps = torch.linspace(0, 1, 50).view(1, 1, 1, 50)
    found = darkened(colour.expand(1, 3, 1, 50), maps, threshold=0.2, weight=0.95)
    assert (found.diff(dim=3) <= 0).all()
    assert found.min() >= 0
    assert torch.allclose(found / found[:, :1], (colour / 0.9).expand_as(found))


# Which images


class ByBrightness(nn.Module):
    """Class 1 for bright images, class 0 for dark ones."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(1, 1)

    def forward(self, inputs):
        bright = inputs.mean((1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], dim=1)


def shaded(count, labels, validation=()):
    """Training data whose image n has the grey value 10 · n; position p is trained on unless it is for validation."""
    images = (10 * torch.arange(count, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = ArrayData(testing.dataset_info(), images.contiguous(), torch.tensor(labels))
    kept = torch.tensor([position for position in range(count) if position not in validation])
    return TrainingData(data, data.labels, kept, torch.tensor(validation, dtype=torch.long))


def round_of(part, data, epoch=5, epochs=40, explainer=None):
    model = ByBrightness()
    context = testing.step_context(model, [], explainer, testing.dataset_info(), epoch=epoch, epochs=epochs)
    context.seen, explain = [], context.explain
    context.explain = lambda model, inputs, targets: context.seen.append((inputs, targets)) or explain(model, inputs, targets)
    context.logged = {}
    context.log = lambda **values: context.logged.update(values)
    return part.end_epoch(model, data, context), context


def flat(model, inputs, targets, context):
    """A map that is 1 in the first column and 0 in the second."""
    return torch.tensor([1.0, 0.0]).expand(len(inputs), 1, 2, 2)


def test_mistakes_keep_their_order_and_come_with_the_class_that_was_given():
    data = shaded(20, [0] * 20)
    order = torch.tensor([19, 2, 15, 3, 13])
    context = testing.step_context(ByBrightness())
    wrong, given = mistakes(ByBrightness(), data, order, context)
    assert wrong.tolist() == [19, 15, 13]  # 130 and more of 255 is bright.
    assert given.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("subset", "count"), [(0.2, 2), (0.0, None), (1.0, 7), (0.95, 7)])
def test_a_part_of_the_mistakes_rounded_up_becomes_proxies(subset, count):
    added, context = round_of(ProxyAttention(subset=subset), shaded(20, [0] * 20), explainer=flat)
    assert context.logged["proxy_mistakes"] == pytest.approx(7 / 20)
    assert (None if added is None else len(added)) == count


def test_a_network_without_mistakes_gives_no_proxies():
    added, context = round_of(ProxyAttention(), shaded(20, [0] * 13 + [1] * 7))
    assert added is None
    assert context.logged == {"proxy_mistakes": 0, "proxies": 0}


def test_a_proxy_is_its_image_darkened_where_its_wrong_class_is_seen_and_has_its_own_label():
    data = shaded(20, [0] * 20)
    added, context = round_of(ProxyAttention(weight=0.5, threshold=0.4, subset=1.0), data, explainer=flat)
    inputs, targets = context.seen[0]
    assert targets.tolist() == [1] * 7
    originals = (inputs * 255).round()
    assert torch.equal(added.images[..., 1].float(), originals[..., 1])
    assert torch.equal(added.images[..., 0].float(), originals[..., 0] / 2)
    assert added.labels.tolist() == [0] * 7
    assert sorted(originals[:, 0, 0, 1].tolist()) == [130, 140, 150, 160, 170, 180, 190]


def test_the_control_adds_the_mistaken_images_unchanged_and_explains_nothing():
    added, context = round_of(ProxyAttention(weight=0.0, subset=1.0), shaded(20, [0] * 20))
    assert sorted(added.images[:, 0, 0, 0].tolist()) == [130, 140, 150, 160, 170, 180, 190]
    assert context.seen == []


def test_validation_images_are_neither_asked_about_nor_made_proxies():
    data = shaded(20, [0] * 20, validation=(13, 19))
    for epoch in (5, 15, 25, 35):
        added, _ = round_of(ProxyAttention(weight=0.0, subset=1.0), data, epoch=epoch)
        data.extra = added
    assert set(data.extra.images[:, 0, 0, 0].tolist()) == {140, 150, 160, 170, 180}
    assert data.indices.tolist() == [position for position in range(20) if position not in (13, 19)]
    assert data.validation.tolist() == [13, 19]


# Rounds


def test_the_published_schedule_has_its_rounds_after_5_15_25_and_35_of_40_epochs():
    """[5, p, 9, p, 9, p, 9, p, 4]: five epochs, a round's epoch, nine more, and so on."""
    assert ProxyAttention().epochs(40) == {5, 15, 25, 35}
    assert ProxyAttention(rounds=(20 / 40,)).epochs(40) == {20}
    assert 5 + 9 + 9 + 9 + 4 + 4 == 40


def test_a_round_after_the_last_epoch_is_left_out():
    assert ProxyAttention(rounds=(0.0, 0.9)).epochs(10) == {0}


def test_between_rounds_nothing_is_done():
    added, context = round_of(ProxyAttention(), shaded(20, [0] * 20), epoch=6)
    assert added is None
    assert context.logged == {}


def test_fair_proxies_stay_and_those_of_the_reference_are_replaced():
    for protocol, second in (("fair", 14), ("reference", 7)):
        data = shaded(20, [0] * 20)
        part = ProxyAttention(protocol=protocol, weight=0.0, subset=1.0)
        for epoch, expected in ((5, 7), (15, second)):
            data.extra, _ = round_of(part, data, epoch=epoch)
            assert len(data.extra) == expected


def test_data_with_several_labels_are_refused():
    context = testing.step_context(ByBrightness(), info=testing.dataset_info(multi_label=True))
    with pytest.raises(InvalidValue, match="one label per image"):
        ProxyAttention()(ByBrightness(), Batch.of(torch.zeros(2, 1, 2, 2), torch.zeros(2, 2)), context)


# In a training

EARLY = {"rounds": (0.25, 0.5), "subset": 1.0, "threshold": 0.3}


def wrong_labels(labels):
    """A third of the labels moved on by one, so that there are mistakes."""
    return torch.where(torch.arange(len(labels)) % 3 == 0, (labels + 1) % 4, labels)


def test_proxies_are_trained_on_from_the_next_epoch_on():
    trained = Trained(Standard(), ProxyAttention(**EARLY), explainer=GradCam(), noise=wrong_labels, epochs=4).run()
    made = [epoch.get("proxies", 0) for epoch in trained.log]
    assert made[0] == made[3] == 0
    assert made[1] > 0
    sizes = [64, 64, 64 + made[1], 64 + made[1] + made[2]]
    assert [epoch["images"] for epoch in trained.log] == [size // 16 * 16 for size in sizes]


def test_until_the_first_round_a_training_is_the_plain_one():
    plain = Trained(Standard(), Plain(), noise=wrong_labels, epochs=4, stop=2)
    proxies = Trained(Standard(), ProxyAttention(**EARLY), explainer=GradCam(), noise=wrong_labels, epochs=4, stop=2)
    for trained in (plain, proxies):
        with pytest.raises(Stop):
            trained.run()
    assert [epoch["loss"] for epoch in plain.log[:2]] == [epoch["loss"] for epoch in proxies.log[:2]]


@pytest.mark.parametrize("trainer", [Standard(), Pes(form="confident", warm_up=0.25, refinements=(1,))], ids=["standard", "pes"])
def test_resuming_after_a_round_gives_the_same_weights_and_the_same_proxies(trainer, tmp_path):
    options = {"explainer": GradCam(), "noise": wrong_labels, "epochs": 4}
    whole = Trained(trainer, ProxyAttention(**EARLY), **options).run()
    again = resumed(trainer, ProxyAttention(**EARLY), tmp_path, stop=3, **options)
    assert len(whole.data.extra) > 0
    assert torch.equal(whole.data.extra.images, again.data.extra.images)
    assert torch.equal(whole.data.extra.labels, again.data.extra.labels)
    assert same(whole.weights, again.weights)
