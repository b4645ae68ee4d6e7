"""ExCon: masks of the two-channel network by hand, every outcome of masking, and the training without explanations."""

import pytest
import torch
from fitting_cases import Trained, resumed, same
from torch import nn

from bench import contexts, testing
from bench.interfaces import Batch, Layer, Passes
from bench_plugins._views import Views
from bench_plugins.excon import ExCon, PlainViews
from bench_plugins.gradcam import GradCam
from bench_plugins.supcon import SupCon

SIGNED = GradCam(relu=False)
MODEL = testing.TwoChannelNetwork()
LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # A map that shows the left column.


def fixed_map(saliency):
    return lambda model, inputs, targets, context: saliency.expand(len(inputs), 1, *inputs.shape[2:])


class BySide(nn.Module):
    """Class 1 where the named column is bright."""

    def __init__(self, column):
        super().__init__()
        self.column, self.unused = column, nn.Linear(1, 1)

    def forward(self, inputs):
        lit = inputs[:, 0, :, self.column].mean(1) - 0.55
        return torch.stack([-lit, lit], dim=1)


def step(model, explainer, **options):
    layers = model.layers if hasattr(model, "layers") else [Layer("unused", model.unused)]
    context = testing.step_context(model, layers, explainer, **options)
    context.logged = {}
    context.log = lambda **values: context.logged.update({name: float(value) for name, value in values.items()})
    return context


def views_of(raw, labels):
    """Views that can be told apart: the first is all 0.25, the second all 0.75."""
    return Views.of(raw, torch.full_like(raw, 0.25), torch.full_like(raw, 0.75), torch.tensor(labels))


# The mask


def test_the_mask_of_the_two_channel_network():
    """The signed map scaled is [[0.5, 0], [1, 0.375]]: only the pixel above 0.5 is shown, the one at 0.5 is hidden."""
    found = ExCon(start=0)(MODEL, None, None), ExCon(start=0).views(MODEL, views_of(testing.TWO_CHANNEL_IMAGE, [0]), step(MODEL, SIGNED))
    assert found[0] is None  # A batch stays what it is.
    assert torch.equal(found[1].first, torch.tensor([[[[0.0, 0.0], [3.0, 0.0]]]]))  # The network's mean colour is 0.
    assert (found[1].second == 0.75).all()


def test_the_image_is_explained_by_its_own_label_and_whole():
    explained = []

    def note(model, inputs, targets, context):
        explained.append((inputs.clone(), targets.tolist()))
        return LEFT.expand(len(inputs), 1, 2, 2)

    raw = torch.rand(3, 1, 2, 2)
    model = BySide(0)
    ExCon(start=0).views(model, views_of(raw, [0, 1, 0]), step(model, note))
    assert torch.equal(explained[0][0], raw)
    assert explained[0][1] == [0, 1, 0]


@pytest.mark.parametrize(("fill", "value"), [("black", 0.0), ("mean", 0.5)])
def test_hidden_pixels_take_the_fill(fill, value):
    model = BySide(0)
    found = ExCon(start=0, fill=fill).views(model, views_of(torch.full((1, 1, 2, 2), 0.9), [1]), step(model, fixed_map(LEFT)))
    assert (found.first[0, 0, :, 0] == 0.9).all()
    assert (found.first[0, 0, :, 1] == value).all()


def test_a_constant_map_hides_everything():
    model = BySide(0)
    found = ExCon(start=0).views(model, views_of(torch.full((1, 1, 2, 2), 0.9), [0]), step(model, fixed_map(torch.full((2, 2), 0.3))))
    assert (found.first == 0.5).all()  # Mid-grey, which this network takes for class 0.


# What becomes of the masked image

BRIGHT, DARK = 0.9, 0.1
OUTCOMES = {
    # the column that decides, the columns' brightness, the label: is the whole image recognised, is the masked one
    "both": (0, (BRIGHT, DARK), 1, True, True),
    "masked alone": (1, (DARK, BRIGHT), 0, False, True),  # The deciding right column is hidden and grey counts as class 0.
    "whole alone": (1, (DARK, BRIGHT), 1, True, False),
    "neither": (0, (DARK, BRIGHT), 1, False, False),
}


@pytest.mark.parametrize("backgrounds", [False, True])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_masked_image_is_a_view_if_it_is_recognised_and_else_a_background(outcome, backgrounds):
    column, brightness, label, whole_right, masked_right = OUTCOMES[outcome]
    raw = torch.tensor(brightness).expand(1, 1, 2, 2)
    masked = torch.tensor([brightness[0], 0.5]).expand(1, 1, 2, 2)
    model = BySide(column)
    assert (model(raw).argmax(1).item() == label, model(masked).argmax(1).item() == label) == (whole_right, masked_right)

    context = step(model, fixed_map(LEFT))
    found = ExCon(start=0, backgrounds=backgrounds).views(model, views_of(raw, [label]), context)
    assert torch.equal(found.first[:1], masked if masked_right else torch.full_like(raw, 0.25))
    assert (found.second[:1] == 0.75).all()
    assert context.logged == {"excon_recognised": float(masked_right)}
    added = backgrounds and not masked_right
    assert found.negative.tolist() == [False] + [True] * added
    if added:
        assert torch.equal(found.first[1:], masked)
        assert torch.equal(found.second[1:], masked)


def test_a_batch_gives_what_its_images_give_alone():
    raw = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 0, 1, 1, 0]
    together = ExCon(start=0).views(MODEL, views_of(raw, labels), step(MODEL, SIGNED))
    for row in range(6):
        alone = ExCon(start=0).views(MODEL, views_of(raw[row : row + 1], labels[row : row + 1]), step(MODEL, SIGNED))
        assert torch.equal(together.first[row], alone.first[0])


def test_the_model_is_left_as_it_was_found():
    model = testing.TinyNetwork().train()
    before = testing.snapshot(model)
    raw = testing.tiny_images(4)
    context = testing.step_context(model, model.layers, SIGNED, testing.dataset_info(4, (16, 16), 3))
    ExCon(start=0, backgrounds=True).views(model, Views.of(raw, raw, raw, torch.arange(4)), context)
    assert testing.changed(before, model) == []


def test_it_takes_the_explanation_and_one_forward_of_the_masked_image():
    raw = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    with contexts.counting(MODEL, Passes()) as passes:
        ExCon(start=0).views(MODEL, views_of(raw, [0] * 5), step(MODEL, SIGNED))
    assert (passes.forward, passes.backward) == (10, 5)


# When


@pytest.mark.parametrize(("epoch", "acts"), [(0, False), (48, False), (49, True), (199, True)])
def test_explanations_begin_with_the_fiftieth_of_two_hundred_epochs(epoch, acts):
    """The code counts from 1 and explains where its epoch is not below 50; here epochs count from 0."""
    views = views_of(testing.TWO_CHANNEL_IMAGE, [0])
    context = step(MODEL, SIGNED, epoch=epoch, epochs=200, progress=epoch / 200)
    assert (ExCon().views(MODEL, views, context) is not views) == acts


# In a training


def test_plain_views_change_nothing():
    batch, views = Batch.of(torch.rand(2, 1, 2, 2), torch.eye(2)), views_of(torch.rand(2, 1, 2, 2), [0, 1])
    assert PlainViews()(MODEL, batch, None) is batch
    assert PlainViews().views(MODEL, views, None) is views


def test_explanations_that_never_start_leave_plain_contrastive_training_to_the_bit():
    plain = Trained(SupCon(), PlainViews(), epochs=2).run()
    never = Trained(SupCon(), ExCon(start=1.0, backgrounds=True), explainer=SIGNED, epochs=2).run()
    assert same(plain.weights, never.weights)
    assert [epoch["loss"] for epoch in plain.log] == [epoch["loss"] for epoch in never.log]


def test_explanations_change_the_training_from_their_start_on():
    plain = Trained(SupCon(), PlainViews(), epochs=2).run()
    half = Trained(SupCon(), ExCon(start=0.5), explainer=SIGNED, epochs=2).run()
    assert plain.log[0]["loss"] == half.log[0]["loss"]
    assert plain.log[1]["loss"] != half.log[1]["loss"]
    assert "excon_recognised" not in half.log[0]
    assert half.log[1]["forward"] == plain.log[1]["forward"] + 2 * 64


def test_backgrounds_are_rows_of_the_training():
    training = Trained(SupCon(), ExCon(start=0, backgrounds=True), explainer=SIGNED, epochs=1).run()
    rejected = round((1 - training.log[0]["excon_recognised"]) * 64)
    assert rejected > 0
    assert training.log[0]["rows"] == 2 * (64 + rejected)


def test_resuming_gives_the_same_weights_to_the_bit(tmp_path):
    augmenter = ExCon(start=0.25, backgrounds=True)
    whole = Trained(SupCon(), augmenter, explainer=SIGNED).run()
    assert same(whole.weights, resumed(SupCon(), augmenter, tmp_path, 2, explainer=SIGNED).weights)
