"""EDDA on the two-channel network, whose maps and probabilities are worked out by hand, and on models that follow a rule."""

import pytest
import torch
from torch import nn

from bench import contexts, testing
from bench.errors import InvalidValue
from bench.interfaces import Batch, Layer, Passes
from bench.registry import Registry
from bench_plugins import controls, edda
from bench_plugins.controls import Random
from bench_plugins.edda import Edda, unit_range

IMAGE = testing.TWO_CHANNEL_IMAGE
UMASK = torch.tensor([[[0.0, 0.0], [3.0, 0.0]]])
MODEL = testing.TwoChannelNetwork()


def grad_cam(positive):
    """Grad-CAM at the target layer, with or without its last ReLU; maps of the network here need no upsampling."""

    def explain(model, inputs, targets, context):
        kept = []
        handle = context.target_layers[-1].module.register_forward_hook(lambda module, arguments, output: kept.append(output.requires_grad_()))
        try:
            logits = model(inputs)
        finally:
            handle.remove()
        (gradients,) = torch.autograd.grad(logits.gather(1, targets.view(-1, 1)).sum(), kept[0])
        maps = (gradients.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)
        return maps.relu() if positive else maps

    return explain


def fixed_map(saliency):
    """An explainer that gives the same map for every image."""
    return lambda model, inputs, targets, context: saliency.expand(len(inputs), 1, *inputs.shape[2:])


class Rule(nn.Module):
    """Logits by a rule on the images; an explainer could not be fooled about it."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule
        self.unused = nn.Linear(1, 1)

    def forward(self, inputs):
        return self.rule(inputs)


def always(*logits):
    return Rule(lambda inputs: torch.tensor([logits]).expand(len(inputs), -1).clone())


def lit(row, column):
    """Class 0 where this pixel is bright, class 1 elsewhere."""
    return Rule(lambda inputs: torch.stack([inputs[:, 0, row, column], torch.full((len(inputs),), 0.5)], dim=1))


CORNER = torch.tensor([[1.0, 0.4], [0.2, 0.0]])  # A map whose top left is salient.


def step(model, explainer, multi_label=False, classes=2, size=(2, 2), **options):
    info = testing.dataset_info(classes, size, 1, multi_label=multi_label)
    layers = model.layers if hasattr(model, "layers") else [Layer("unused", model.unused)]
    context = testing.step_context(model, layers, explainer, info, **options)
    context.seen, predict = [], context.predict
    context.predict = lambda model, inputs: context.seen.append(inputs) or predict(model, inputs)
    context.logged = {}
    context.log = lambda **values: context.logged.update({name: float(value) for name, value in values.items()})
    return context


def batch_of(inputs, *labels, classes=2):
    return Batch.of(inputs, nn.functional.one_hot(torch.tensor(labels), classes).float())


def grey(count):
    """Dim images, (count, 1, 2, 2), each of another brightness; the mean colour of a model without normalisation is 0.5."""
    return torch.linspace(0.6, 0.9, count).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


# Known answers


def test_positive_grad_cam_on_the_two_channel_network():
    """s = [[1/3, 0], [1, 1/6]]: the umask shows one pixel and stays class 0, the imask becomes class 1 and is not kept."""
    context = step(MODEL, grad_cam(positive=True))
    saliency = unit_range(context.explain(MODEL, IMAGE, torch.tensor([0])))
    assert torch.allclose(saliency, torch.tensor([[[[1 / 3, 0.0], [1.0, 1 / 6]]]]))
    augmented = Edda()(MODEL, batch_of(IMAGE, 0), context)
    candidates = context.seen[1]
    assert torch.equal(candidates[0], UMASK)
    assert torch.equal(candidates[1], torch.tensor([[[1.0, -2.0], [0.0, 0.5]]]))
    assert torch.allclose(MODEL(candidates).softmax(1)[:, 0], torch.tensor([0.904651, 0.294215]), atol=1e-6)
    assert torch.equal(augmented.inputs, torch.stack([IMAGE[0], UMASK]))
    assert augmented.labels.tolist() == [0, 0]
    assert context.logged == {"edda_explained": 1, "edda_umask_accepted": 1, "edda_imask_accepted": 0}


def test_signed_grad_cam_hides_the_pixel_at_the_threshold_in_both_images():
    """s = [[0.5, 0], [1, 0.375]]: the pixel with 0.5 is in neither image."""
    context = step(MODEL, grad_cam(positive=False))
    augmented = Edda()(MODEL, batch_of(IMAGE, 0), context)
    candidates = context.seen[1]
    assert torch.equal(candidates[0], UMASK)
    assert torch.equal(candidates[1], torch.tensor([[[0.0, -2.0], [0.0, 0.5]]]))
    assert MODEL(candidates).softmax(1)[1, 0].item() == pytest.approx(0.164516, abs=1e-6)
    assert len(augmented) == 2


# Masks


def test_the_two_masks_split_the_image_where_the_thresholds_are_equal():
    inputs = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    context = step(always(1.0, 0.0), Random(), size=(6, 6))
    Edda(tau_u=0.3, tau_i=0.3, fill="black")(always(1.0, 0.0), batch_of(inputs, *[0] * 5), context)
    umasks, imasks = context.seen[1].chunk(2)
    assert torch.equal(umasks + imasks, inputs)
    assert (umasks * imasks == 0).all()


def test_hidden_pixels_take_the_fill():
    inputs = grey(1)
    for fill, value in (("black", 0.0), ("mean", 0.5)):
        context = step(always(1.0, 0.0), fixed_map(CORNER))
        Edda(fill=fill)(always(1.0, 0.0), batch_of(inputs, 0), context)
        umask, imask = context.seen[1]
        shown = CORNER > 0.5
        assert (umask[0][shown] == 0.6).all()
        assert (umask[0][~shown] == value).all()
        assert (imask[0][shown] == value).all()
        assert (imask[0][~shown] == 0.6).all()


def test_each_threshold_moves_its_own_mask():
    context = step(always(1.0, 0.0), fixed_map(CORNER))
    Edda(tau_u=0.3, tau_i=0.1, fill="black")(always(1.0, 0.0), batch_of(grey(1), 0), context)
    umask, imask = context.seen[1] > 0
    assert umask.flatten().tolist() == [True, True, False, False]
    assert imask.flatten().tolist() == [False, False, False, True]


def test_maps_are_brought_to_the_unit_range_each_by_itself():
    maps = torch.tensor([[-1.0, 1.0, 3.0, 0.0], [20.0, 10.0, 15.0, 12.5], [7.0, 7.0, 7.0, 7.0]]).view(3, 1, 2, 2)
    expected = torch.tensor([[0.0, 0.5, 1.0, 0.25], [1.0, 0.0, 0.5, 0.25], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(unit_range(maps).flatten(1), expected)


# Which images join


def test_a_model_that_is_always_right_triples_the_batch():
    model = always(1.0, 0.0)
    augmented = Edda()(model, batch_of(grey(4), *[0] * 4), step(model, fixed_map(CORNER)))
    assert len(augmented) == 12
    assert augmented.group.tolist() == [0, 1, 2, 3] * 3
    assert augmented.labels.tolist() == [0] * 12


def test_a_model_that_is_never_right_leaves_the_batch_alone_and_is_not_explained():
    model = always(1.0, 0.0)
    context = step(model, None)  # Without an explainer: calling it would fail.
    batch = batch_of(grey(4), *[1] * 4)
    assert Edda()(model, batch, context) is batch
    assert len(context.seen) == 1
    assert context.logged == {"edda_explained": 0}


@pytest.mark.parametrize(("pixel", "kept"), [((0, 0), "umask"), ((1, 1), "imask")])
def test_only_the_mask_that_is_still_recognised_joins(pixel, kept):
    model = lit(*pixel)
    context = step(model, fixed_map(CORNER))
    augmented = Edda(fill="black")(model, batch_of(grey(3), 0, 0, 0), context)
    shown = CORNER > 0.5 if kept == "umask" else CORNER < 0.5
    assert torch.equal(augmented.inputs[3:], grey(3) * shown)
    assert context.logged["edda_umask_accepted"] == (kept == "umask")
    assert context.logged["edda_imask_accepted"] == (kept == "imask")


def test_only_correct_images_are_explained_and_by_their_label():
    explained = []

    def note(model, inputs, targets, context):
        explained.append((inputs.flatten(1)[:, 0].tolist(), targets.tolist()))
        return CORNER.expand(len(inputs), 1, 2, 2)

    inputs = grey(4)
    inputs[1] = 0.3  # The model says class 1 here.
    model = lit(0, 0)
    augmented = Edda()(model, batch_of(inputs, 0, 1, 1, 0), step(model, note))
    assert [(pytest.approx([inputs[0, 0, 0, 0].item(), 0.3, inputs[3, 0, 0, 0].item()]), [0, 1, 0])] == explained
    assert 2 not in augmented.group[4:].tolist()


def test_a_constant_map_gives_no_copy_of_the_original():
    model = always(1.0, 0.0)
    context = step(model, fixed_map(torch.full((2, 2), 0.7)))
    augmented = Edda()(model, batch_of(grey(3), 0, 0, 0), context)
    assert len(context.seen[1]) == 3  # The imasks, equal to the originals, are not forwarded either.
    assert torch.equal(augmented.inputs[3:], torch.full((3, 1, 2, 2), 0.5))
    assert context.logged["edda_imask_accepted"] == 0


def test_a_batch_gives_what_its_images_give_alone():
    inputs = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    labels = MODEL(inputs).argmax(1).tolist()
    together = Edda()(MODEL, batch_of(inputs, *labels), step(MODEL, grad_cam(positive=True)))
    added = {number: together.inputs[6:][together.group[6:] == number] for number in range(6)}
    for number, label in enumerate(labels):
        alone = Edda()(MODEL, batch_of(inputs[number : number + 1], label), step(MODEL, grad_cam(positive=True)))
        assert torch.equal(alone.inputs[1:], added[number])


# Random maps


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_random_maps_show_the_share_that_the_threshold_says_and_differ_everywhere(threshold):
    model, inputs = always(1.0, 0.0), torch.full((8, 1, 32, 32), 0.9)
    images = []
    for number in range(2):
        context = step(model, Random(), size=(32, 32), step=number)
        Edda(explainer="random", tau_u=threshold, tau_i=threshold, fill="black")(model, batch_of(inputs, *[0] * 8), context)
        images.append(context.seen[1].chunk(2))
    error = 3 * (threshold * (1 - threshold) / (8 * 1024)) ** 0.5
    for umasks, imasks in images:
        assert (umasks > 0).float().mean().item() == pytest.approx(1 - threshold, abs=error)
        assert (imasks > 0).float().mean().item() == pytest.approx(threshold, abs=error)
    shown = torch.cat([umasks for umasks, _ in images]).flatten(1)
    correlations = torch.corrcoef((shown > 0).float())[~torch.eye(16, dtype=torch.bool)]
    assert correlations.abs().max() < 5 / 32  # Five standard errors for 1024 pixels.


# Multi-label data


def test_only_classes_that_are_labelled_and_predicted_are_explained():
    """Labels 1, 1, 0 and predictions 1, 0, 0 for the first image; 1, 0, 0 and 0, 1, 0 for the second, which gives nothing."""
    explained = []

    def note(model, inputs, targets, context):
        explained.append((len(inputs), targets.tolist()))
        return CORNER.expand(len(inputs), 1, 2, 2)

    model = Rule(lambda inputs: torch.where(inputs[:, 0, :1, 0] > 0.7, torch.tensor([2.0, -2.0, -1.0]), torch.tensor([-1.0, 1.0, -1.0])))
    inputs = torch.stack([torch.full((1, 2, 2), 0.8), torch.full((1, 2, 2), 0.6)])
    batch = Batch.of(inputs, torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    context = step(model, note, multi_label=True, classes=3)
    augmented = Edda(fill="black")(model, batch, context)
    assert set(explained[0][1]) == {0}  # A lone row is explained twice, so that it takes the same kernels as two.
    assert len(context.seen[1]) == 1
    assert torch.equal(context.seen[1][0], torch.tensor([[[0.0, 0.8], [0.8, 0.8]]]))
    assert len(augmented) == 2  # The imask hides the bright pixel and class 0 is no longer predicted.
    assert context.logged == {"edda_explained": 0.5, "edda_imask_accepted": 0}


def test_every_imask_still_recognised_joins_with_the_whole_target():
    """One image with three predicted classes, two of them labelled; class 1 is lost when the corner is hidden."""
    model = Rule(lambda inputs: torch.stack([torch.ones(len(inputs)), inputs[:, 0, 0, 0] - 0.1, torch.ones(len(inputs))], dim=1))
    batch = Batch.of(torch.full((1, 1, 2, 2), 0.8), torch.tensor([[1.0, 1.0, 0.0]]))
    context = step(model, fixed_map(CORNER), multi_label=True, classes=3)
    augmented = Edda(fill="black")(model, batch, context)
    assert len(context.seen[1]) == 2
    assert augmented.targets.tolist() == [[1, 1, 0]] * 2
    assert context.logged == {"edda_explained": 2, "edda_imask_accepted": 0.5}


# Names and parameters


def resolve(request):
    registry = Registry()
    for kind, hook in (("augmenter", edda.register_augmenters), ("explainer", controls.register_explainers)):
        hook(
            lambda factory, *, name=None, kind=kind, **defaults: registry.add(
                kind, factory, name=name, defaults=defaults, plugin="p", distribution="d"
            )
        )
    return registry.resolve("augmenter", request)


def test_edda_random_is_edda_with_the_random_explainer():
    assert resolve("edda-random").part == Edda(explainer="random")
    assert isinstance(resolve("edda-random").references["explainer"].part, Random)


@pytest.mark.parametrize("wrong", [{"tau_u": 1.5}, {"tau_i": -0.1}, {"start": 2}, {"fill": "white"}])
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        resolve({"name": "edda-random", **wrong})


# When, and what it costs


@pytest.mark.parametrize(("epoch", "rows"), [(0, 2), (4, 2), (5, 6), (9, 6)])
def test_with_r_one_half_the_first_five_of_ten_epochs_are_plain(epoch, rows):
    model = always(1.0, 0.0)
    context = step(model, fixed_map(CORNER), epoch=epoch, epochs=10, progress=epoch / 10)
    assert len(Edda(start=0.5)(model, batch_of(grey(2), 0, 0), context)) == rows


def test_it_takes_one_forward_for_each_image_and_per_correct_one_two_more_beside_the_explanation():
    inputs = torch.randn(10, 1, 2, 2, generator=torch.Generator().manual_seed(5))
    labels = MODEL(inputs).argmax(1)
    labels[:4] = 1 - labels[:4]
    with contexts.counting(MODEL, Passes()) as passes:
        Edda()(MODEL, batch_of(inputs, *labels.tolist()), step(MODEL, grad_cam(positive=False)))
    assert (passes.forward, passes.backward) == (10 + 6 + 2 * 6, 6)
