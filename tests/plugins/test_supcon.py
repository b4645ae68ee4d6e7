"""SupCon: losses worked out by hand and by a loop, torchvision's crops and colours, and what learns when."""

import itertools
import math

import pytest
import torch
import torchvision.transforms.functional as reference
from fitting_cases import Trained, coloured, resumed, same
from torch import nn

from bench import testing
from bench.errors import InvalidValue
from bench.interfaces import Batch
from bench_plugins import _views as drawing
from bench_plugins._views import Views
from bench_plugins.excon import PlainViews
from bench_plugins.supcon import Projection, SupCon, contrastive_loss, drawn_views, encoded, last_linear

NONE = torch.zeros(2, dtype=torch.bool)


def points(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


# The loss


def test_two_orthogonal_images_whose_views_are_alike():
    """Each view: one positive at exp(10), two others at exp(0): (1 / 0.7) ln(1 + 2 exp(-10)) = 1.29708e-4."""
    found = contrastive_loss(points([1, 0], [0, 1], [1, 0], [0, 1]), torch.tensor([0, 1]), NONE, temperature=0.1)
    assert found.item() == pytest.approx(math.log1p(2 * math.exp(-10)) / 0.7, rel=1e-9)
    assert found.item() == pytest.approx(1.29708e-4, rel=1e-5)


def test_all_points_alike_and_two_labels():
    """The positive is one of three equals: ln 3 / 0.7."""
    found = contrastive_loss(points(*[[1, 1]] * 4), torch.tensor([0, 1]), NONE, temperature=0.1)
    assert found.item() == pytest.approx(1.569446, rel=1e-6)


def test_all_points_alike_and_one_row_that_is_a_negative_only():
    """Two views more to stay away from: ln 5 / 0.7, the mean over the two real rows."""
    negative = torch.tensor([False, False, True])
    found = contrastive_loss(points(*[[1, 1]] * 6), torch.tensor([0, 1, 0]), negative, temperature=0.1)
    assert found.item() == pytest.approx(2.299197, rel=1e-6)


def by_hand(z, labels, negative, temperature):
    """The loss by a loop over anchors and pairs."""
    labels, negative = [*labels, *labels], [*negative, *negative]
    losses = []
    for i in range(len(z)):
        if negative[i]:
            continue
        others = [j for j in range(len(z)) if j != i]
        total = sum(math.exp(float(z[i] @ z[j]) / temperature) for j in others)
        positives = [j for j in others if labels[j] == labels[i] and not negative[j]]
        losses.append(-sum(math.log(math.exp(float(z[i] @ z[j]) / temperature) / total) for j in positives) / len(positives))
    return temperature / 0.07 * sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_a_loop_over_pairs(seed):
    stream = torch.Generator().manual_seed(seed)
    z = points(*torch.randn(14, 5, generator=stream).tolist())
    labels = torch.randint(3, (7,), generator=stream)
    negative = torch.tensor([False] * 5 + [True] * 2)
    found = contrastive_loss(z, labels, negative, 0.2)
    assert found.item() == pytest.approx(by_hand(z, labels.tolist(), negative.tolist(), 0.2), rel=1e-9)


def test_a_negative_row_pushes_others_away_and_has_no_loss_of_its_own():
    z = points(*torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).tolist()).requires_grad_()
    negative = torch.tensor([False, False, True])

    def loss(values, labels):
        return contrastive_loss(values, torch.tensor(labels), negative, 0.1)

    (gradient,) = torch.autograd.grad(loss(z, [0, 1, 0]), z)
    assert (gradient[[2, 5]].abs().sum(1) > 0).all()  # It stands in the others' denominators.
    assert loss(z, [0, 1, 0]).item() == loss(z, [0, 1, 1]).item()  # Whatever its label says.
    near, far = points([1, 0, 0], [0, 1, 0], [1, 0, 0]), points([1, 0, 0], [0, 1, 0], [0, 0, 1])
    assert loss(far.repeat(2, 1), [0, 1, 0]) < loss(near.repeat(2, 1), [0, 1, 0])


# The views


def test_crops_are_torchvisions():
    images = torch.rand(6, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 20, 16], [3, 2, 7, 9], [13, 0, 7, 16], [5, 5, 1, 1], [0, 9, 12, 7], [8, 3, 12, 2]])
    expected = [reference.resized_crop(image, *box, [20, 16], antialias=False) for image, box in zip(images, boxes.tolist(), strict=True)]
    assert torch.allclose(drawing.take(images, boxes), torch.stack(expected), atol=1e-5)


def test_boxes_lie_in_the_image_and_have_the_area_and_shape_they_are_to_have():
    boxes = drawing.crop_boxes(4000, 32, 32, torch.Generator().manual_seed(0)).float()
    top, left, tall, wide = boxes.unbind(1)
    assert (boxes >= 0).all()
    assert (top + tall <= 32).all()
    assert (left + wide <= 32).all()
    areas, aspects = tall * wide / 1024, wide / tall
    assert 0.17 < areas.min() < 0.22  # Sides are rounded to whole pixels.
    assert areas.max() == 1
    assert 0.65 < aspects.min() < 0.78
    assert 1.28 < aspects.max() < 1.5
    assert abs(float(aspects.log().mean())) < 0.02


def test_a_box_may_lie_anywhere():
    boxes = drawing.crop_boxes(4000, 32, 32, torch.Generator().manual_seed(1))
    small = boxes[(boxes[:, 2] == 16) & (boxes[:, 3] == 16)]
    assert small[:, 0].min() == 0
    assert small[:, 0].max() == 16
    assert small[:, 1].unique().numel() > 8


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (drawing.brighten, reference.adjust_brightness, (0.6, 1.0, 1.4)),
        (drawing.contrast, reference.adjust_contrast, (0.6, 1.0, 1.4)),
        (drawing.saturate, reference.adjust_saturation, (0.6, 1.0, 1.4)),
        (drawing.turn_hue, reference.adjust_hue, (-0.1, 0.0, 0.1)),
    ],
)
def test_colours_change_as_torchvisions_do(ours, theirs, amounts):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    images[:, :, 0, :2] = torch.tensor([0.0, 0.5]).view(1, 1, 2)  # Black and grey have no hue.
    images[:, 1, 1] = images[:, 0, 1]  # Two channels share the largest value.
    expected = torch.stack([theirs(image, amount) for image, amount in zip(images, amounts, strict=True)])
    assert torch.allclose(ours(images, torch.tensor(amounts).view(3, 1, 1, 1)), expected, atol=1e-5)


def test_a_fifth_keeps_its_colours_and_a_fifth_of_all_loses_them():
    images = testing.tiny_images(1).expand(3000, -1, -1, -1)
    stream = torch.Generator().manual_seed(3)
    kept = (drawing.jittered(images, stream) == images).flatten(1).all(1).float().mean().item()
    views = drawing.faded(images, stream)
    grey = (views[:, 0] == views[:, 1]).flatten(1).all(1).float().mean().item()
    error = 4 * math.sqrt(0.8 * 0.2 / 3000)
    assert kept == pytest.approx(0.2, abs=error)
    assert grey == pytest.approx(0.2, abs=error)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_views_are_images_whatever_the_channels_and_leave_the_originals_alone(channels):
    images = torch.rand(20, channels, 12, 12, generator=torch.Generator().manual_seed(4))
    before = images.clone()
    view = drawing.random_view(images, True, torch.Generator().manual_seed(5))
    assert view.shape == images.shape
    assert view.min() >= 0
    assert view.max() <= 1
    assert torch.equal(images, before)
    assert torch.equal(view, drawing.random_view(images, True, torch.Generator().manual_seed(5)))


def test_the_two_views_of_an_image_differ_and_are_the_same_under_every_augmenter():
    """The streams depend on the seed, not on the training's key."""
    batch = Batch.of(testing.tiny_images(4), torch.eye(4))
    views = []
    for key in ("one", "other"):
        training = Trained(SupCon(), PlainViews())
        training.context.key = key
        step = training.context.step(training.model, training.data, 0, 0, 1)
        views.append(drawn_views(batch, step, training.context))
    assert not torch.equal(views[0].first, views[0].second)
    assert torch.equal(views[0].first, views[1].first)
    assert torch.equal(views[0].second, views[1].second)


def test_images_that_mean_something_else_in_a_mirror_are_not_mirrored():
    ramps = torch.linspace(0, 1, 16).expand(50, 1, 16, 16)
    for mirror in (True, False):
        views = drawing.resized_crop(ramps, mirror, torch.Generator().manual_seed(6))
        rising = (views.diff(dim=3) >= 0).flatten(1).all(1)
        assert rising.all() == (not mirror)
        assert rising.any()


# The network's two parts


def test_the_encoder_is_everything_in_front_of_the_classifier():
    training = Trained(SupCon(), PlainViews())
    model, inputs = training.model, testing.tiny_images(3)
    features = encoded(model, last_linear(model), inputs, training.context)
    assert features.shape == (3, 12)
    assert torch.equal(model.fc(features), model(inputs))
    assert not model.fc._forward_pre_hooks


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(InvalidValue, match="linear layer"):
        last_linear(nn.Conv2d(3, 4, 1))


def test_projections_lie_on_the_unit_sphere():
    found = Projection(12, 128)(torch.randn(5, 12))
    assert found.shape == (5, 128)
    assert torch.allclose(found.norm(dim=1), torch.ones(5))


# Trainings


class Watching(PlainViews):
    """Notes the weights when an encoder step begins, and at the end of the epoch."""

    def __init__(self):
        object.__setattr__(self, "seen", [])

    def note(self, model):
        self.seen.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    def views(self, model, views, context):
        self.note(model)
        return views

    def end_epoch(self, model, data, context):
        self.note(model)


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_encoder_learns_in_its_half_of_the_epoch_and_the_classifier_in_its_own():
    augmenter = Watching()
    Trained(SupCon(), augmenter, epochs=1).run()
    *steps, end = augmenter.seen
    assert len(steps) == 4
    during = set().union(*(changed(*pair) for pair in itertools.pairwise(steps)))
    assert "first.0.weight" in during
    assert "first.1.running_mean" in during
    assert not {name for name in during if name.startswith("fc")}
    assert changed(steps[-1], end) >= {"fc.weight", "fc.bias"}


def test_the_classifier_learns_the_classes_on_top_of_the_encoder():
    clean = coloured()
    model = Trained(SupCon(), PlainViews(), epochs=12, source=clean, batch_size=32, learning_rate=0.3).run().model
    with torch.no_grad():
        right = model.eval()(clean.images.float() / 255).argmax(1) == clean.labels
    assert right.float().mean() > 0.7  # The views change hues, and the classes are hues.


def test_passes_rows_and_images_are_counted():
    """64 images twice an epoch; two views of each with gradient, and one more without for the classifier."""
    log = Trained(SupCon(), PlainViews(), epochs=2).run().log
    for epoch in log:
        assert (epoch["images"], epoch["rows"], epoch["steps"]) == (128, 128, 8)
        assert (epoch["forward"], epoch["backward"]) == (128 + 64, 128)
        assert epoch["classifier_loss"] > 0


def test_negative_rows_are_forwarded_and_counted():
    class Doubling(PlainViews):
        def views(self, model, views, context):
            return views.with_negatives(views.raw[:3])

    log = Trained(SupCon(), Doubling(), epochs=1).run().log
    assert log[0]["rows"] == 4 * 2 * (16 + 3)


def test_views_with_negatives_mark_the_new_rows_alone():
    raw = testing.tiny_images(4)
    views = Views.of(raw, raw, raw, torch.arange(4)).with_negatives(raw[1:3])
    assert views.negative.tolist() == [False] * 4 + [True] * 2
    assert torch.equal(views.first[4:], raw[1:3])
    assert torch.equal(views.second[4:], raw[1:3])
    assert len(views.labels) == 6


@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_gives_the_same_weights_to_the_bit(stop, tmp_path):
    whole = Trained(SupCon(), PlainViews()).run()
    again = resumed(SupCon(), PlainViews(), tmp_path, stop)
    assert same(whole.weights, again.weights)
    assert [epoch["loss"] for epoch in whole.log] == [epoch["loss"] for epoch in again.log]


def test_the_rate_falls_to_a_thousandth():
    training = Trained(SupCon(), PlainViews(), learning_rate=0.5)
    optimizer = training.context.optimizer(training.model.parameters())
    for progress, rate in ((0.0, 0.5), (0.5, (0.5 + 0.0005) / 2), (1.0, 0.0005)):
        training.context.set_rate(optimizer, progress, SupCon().least_rate)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_data_with_several_labels_are_refused():
    training = Trained(SupCon(), PlainViews())
    training.context.info = testing.dataset_info(multi_label=True)
    with pytest.raises(InvalidValue, match="one label per image"):
        training.run()
