"""SISE and Ada-SISE against the two-channel network by hand, OpenCV's Otsu and a loop over single masks."""

import copy
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bench import contexts, testing
from bench.interfaces import Layer
from bench.layers import recording
from bench_plugins import sise
from bench_plugins.sise import AdaSise, Sise, fuse, otsu

KAT = testing.TWO_CHANNEL_IMAGE
TWO_CHANNELS = testing.TwoChannelNetwork()
INFO = testing.dataset_info(3, (8, 8), 3)


class TwoBlocks(nn.Module):
    """Two blocks, so that there is something to fuse. The second activation works in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 10, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 3))
        with torch.no_grad():
            self.head[-1].weight.mul_(8)  # Confident enough for the masks to matter.

    def forward(self, inputs):
        return self.head(self.second(self.first(inputs)))

    @property
    def layers(self):
        return [Layer("first", self.first), Layer("second", self.second)]


def images(count, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def explain(explainer, inputs, targets, model=None, **options):
    model = model or TwoBlocks()
    context = testing.explain_context(model, model.layers, len(inputs), INFO, **options)
    return contexts.explain(model, explainer, inputs, targets, context), context


def stage_gradients(model, image, target):
    """Each stage's maps and the mean gradients of the softmax probability in them: of a network in double precision, no shortcut."""
    first = model.first(image[None].double())
    second = model.second(first)
    probability = model.head(second).softmax(1)[0, target]
    gradients = torch.autograd.grad(probability, [first, second])
    return [(maps[0].detach(), gradient[0].mean((1, 2))) for maps, gradient in zip((first, second), gradients, strict=True)]


def by_loop(image, target, keep):
    """The map of one image, mask after mask, in double precision; `keep` says which mean gradients are taken."""
    model = TwoBlocks().double().eval()
    pictures = []
    for maps, gradients in stage_gradients(model, image, target):
        total, count = torch.zeros(8, 8, dtype=torch.float64), 0
        for channel in keep(gradients):
            if maps[channel].min() == maps[channel].max():
                continue
            mask = F.interpolate(maps[channel][None, None], size=(8, 8), mode="bilinear", align_corners=False)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            hidden = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
            with torch.no_grad():
                probability = model(hidden + mask * (image[None].double() - hidden)).softmax(1)[0, target]
            total, count = total + probability * mask[0, 0] / mask.sum(), count + 1
        pictures.append(total / max(count, 1))
    values = pictures[1].flatten().sort().values
    splits = [(_between(values, n), values[n - 1]) for n in range(1, 64) if values[n] > values[n - 1]]
    return (pictures[0] + pictures[1]) * (pictures[1] > max(splits)[1])


def _between(values, count):
    low, high = values[:count], values[count:]
    return (len(low) * len(high) * (low.mean() - high.mean()) ** 2).item()


# The two-channel network


def test_one_stage_of_the_two_channel_network_gives_the_known_picture():
    """Only the first channel has a positive gradient; its mask is [[1/3, 0], [1, 1/6]] and leaves the probability .928414."""
    maps = testing.explain(TWO_CHANNELS, Sise(), KAT, torch.tensor([0]), TWO_CHANNELS.layers)
    assert torch.allclose(maps, torch.tensor([[[[0.20631, 0.0], [0.61894, 0.10316]]]]), atol=1e-5)


def test_adasise_keeps_the_only_positive_channel_and_agrees():
    ours = testing.explain(TWO_CHANNELS, AdaSise(), KAT, torch.tensor([0]), TWO_CHANNELS.layers)
    assert torch.equal(ours, testing.explain(TWO_CHANNELS, Sise(), KAT, torch.tensor([0]), TWO_CHANNELS.layers))


# Whole maps


@pytest.mark.parametrize(
    ("explainer", "keep"),
    [
        (Sise(), lambda g: [k for k in range(len(g)) if g[k] > 0]),
        (Sise(mu=0.5), lambda g: [k for k in range(len(g)) if g[k] > 0 and g[k] > 0.5 * max(g)]),
    ],
)
def test_maps_agree_with_a_loop_over_images_and_masks(explainer, keep):
    inputs, targets = images(4), torch.tensor([0, 1, 2, 1])
    maps, _ = explain(explainer, inputs, targets)
    expected = torch.stack([by_loop(image, int(target), keep) for image, target in zip(inputs, targets, strict=True)])
    assert torch.allclose(maps[:, 0].double(), expected, atol=1e-7, rtol=1e-4)
    assert maps.amax() > 0


def test_the_maps_chosen_are_those_that_the_probability_itself_would_choose():
    model, inputs, targets = TwoBlocks().eval(), images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    context = testing.explain_context(model, model.layers, 6, INFO)
    found = sise.feature_maps(model, inputs, targets, context)
    for row in range(6):
        for (_, ours), (_, theirs) in zip(found, stage_gradients(TwoBlocks().double().eval(), inputs[row], int(targets[row])), strict=True):
            assert torch.allclose(ours[row].double() / ours[row].double().norm(), theirs / theirs.norm(), atol=1e-5)
            for mu in (0.0, 0.3, 0.5):
                assert torch.equal(Sise(mu=mu).choose(ours[[row]])[0], (theirs > mu * theirs.max()) & (theirs > 0))


def test_a_certain_network_has_the_masks_that_double_precision_would_choose():
    """At a margin of 25 the probability is 1 in single precision and its gradient there is lost; ours is not."""
    model, inputs = TwoBlocks().eval(), images(1)
    with torch.no_grad():
        target = int(model(inputs).argmax(1))
        model.head[-1].weight.mul_(10)
        model.head[-1].bias.zero_()
        others = model(inputs)[0].clone()
        others[target] = -math.inf
        model.head[-1].bias[target] = 25 + others.max() - model(inputs)[0, target]
        assert model(inputs).softmax(1)[0, target] == 1
    ours = sise.feature_maps(model, inputs, torch.tensor([target]), testing.explain_context(model, model.layers, 1, INFO))
    exact = copy.deepcopy(model).double()
    theirs = stage_gradients(exact, inputs[0], target)
    for (_, gradients), (_, expected) in zip(ours, theirs, strict=True):
        assert torch.equal(Sise().choose(gradients)[0], expected > 0)
        assert (expected > 0).any()


def test_an_image_depends_neither_on_its_neighbours_nor_on_the_chunks():
    inputs, targets = images(5), torch.tensor([0, 1, 2, 0, 1])
    for explainer in (Sise(), AdaSise(), Sise(threshold="soft")):
        together, _ = explain(explainer, inputs, targets, chunk=64)
        alone = torch.cat([explain(explainer, inputs[[row]], targets[[row]])[0] for row in range(5)])
        assert torch.allclose(together, alone, atol=1e-6)
        assert torch.allclose(together, explain(explainer, inputs, targets, chunk=3)[0], atol=1e-6)
        assert torch.equal(together, explain(explainer, inputs, targets, chunk=64)[0])


def test_scaling_the_feature_maps_changes_nothing():
    """Masks are scaled to [0, 1]: a first block ten times as strong, undone by the next weights, gives the same maps."""
    stronger = TwoBlocks()
    with torch.no_grad():
        stronger.first[1].weight.mul_(10)
        stronger.first[1].bias.mul_(10)
        stronger.second[1].weight.div_(10)
    inputs, targets = images(2), torch.tensor([0, 1])
    assert torch.allclose(explain(Sise(), inputs, targets)[0], explain(Sise(), inputs, targets, stronger)[0], atol=1e-6)


@pytest.mark.parametrize("explainer", [Sise(), AdaSise()])
def test_an_image_costs_one_forward_and_backward_and_a_forward_per_mask(explainer):
    model, inputs, targets = TwoBlocks().eval(), images(4), torch.tensor([0, 1, 2, 1])
    found = sise.feature_maps(model, inputs, targets, testing.explain_context(model, model.layers, 4, INFO))
    masks = [int((explainer.choose(gradients) & (maps.amax((2, 3)) > maps.amin((2, 3)))).sum()) for maps, gradients in found]
    assert min(masks) > 1
    _, context = explain(explainer, inputs, targets, chunk=4)
    assert (context.passes.forward, context.passes.backward) == (4 + sum(masks), 4)


def test_the_part_of_an_image_that_decides_the_class_is_found():
    model = TwoBlocks()
    with torch.no_grad():
        model.first[0].weight.zero_()
        model.first[0].weight[:, 0, 1, 1] = 1.0  # Every map shows how red the image is, …
        model.first[0].bias.fill_(-0.5)
        model.second[1].weight.fill_(0.05)
        model.second[1].bias.fill_(-0.01)
        model.head[-1].weight.zero_()
        model.head[-1].weight[0] = 5.0  # … and class 0 is red.
    inputs = torch.zeros(2, 3, 8, 8)
    inputs[:, 0, :4, 4:] = 1.0
    maps, _ = explain(Sise(), inputs, torch.zeros(2, dtype=torch.long), model)
    assert (maps[:, 0, :4, 4:].sum((1, 2)) / maps.sum((1, 2, 3)) > 0.8).all()


@pytest.mark.parametrize("explainer", [Sise(), AdaSise(), Sise(threshold="soft"), Sise(fill="noise"), Sise(mu=0.9)])
def test_a_black_image_gives_finite_maps(explainer):
    maps, _ = explain(explainer, torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    assert maps.isfinite().all()


def test_without_any_mask_the_map_is_zero():
    """For class 1 of a network whose class 0 takes all, no map of the only stage has a positive gradient."""
    model = testing.TwoChannelNetwork()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    maps = testing.explain(model, Sise(), KAT, torch.tensor([1]), model.layers)
    assert torch.equal(maps, torch.zeros_like(maps))


def test_multi_label_data_is_scored_by_the_sigmoid():
    """Sigmoid of 2P - Q for the mask [[1/3, 0], [1, 1/6]]: P = (1/3 + 3 + 1/12) / 4, Q = 0; the picture is that times m / 1.5."""
    info = testing.dataset_info(multi_label=True)
    maps = testing.explain(TWO_CHANNELS, Sise(), KAT, torch.tensor([0]), TWO_CHANNELS.layers, info)
    probability = 1 / (1 + math.exp(-2 * (1 / 3 + 3 + 1 / 12) / 4))
    assert torch.allclose(maps, probability / 1.5 * torch.tensor([[[[1 / 3, 0.0], [1.0, 1 / 6]]]]), atol=1e-6)


def test_the_model_is_left_as_it_was():
    model = TwoBlocks().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain(Sise(), images(3), torch.tensor([0, 1, 2]), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


# The choice of masks


def test_a_larger_mu_leaves_fewer_maps_and_the_largest_always():
    gradients = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    counts = [int(Sise(mu=mu).choose(gradients).sum()) for mu in (0.0, 0.3, 0.5, 0.999)]
    assert counts == sorted(counts, reverse=True)
    assert Sise(mu=0.999).choose(gradients)[0].nonzero().flatten().tolist() == [int(gradients.argmax())]


@pytest.mark.parametrize("explainer", [Sise(), Sise(mu=0.5), AdaSise()])
def test_gradients_at_or_below_zero_choose_nothing(explainer):
    assert not explainer.choose(torch.tensor([[-3.0, -1.0, -2.0], [0.0, 0.0, 0.0]])).any()


def test_adasise_takes_the_upper_of_two_heaps():
    gradients = torch.cat([torch.full((50,), 0.1), torch.full((10,), 0.9)]).unsqueeze(0)
    assert torch.equal(AdaSise().choose(gradients), gradients > 0.5)


def test_adasise_keeps_equal_gradients_and_single_ones():
    assert AdaSise().choose(torch.tensor([[0.2, 0.2, -1.0], [-1.0, 0.3, -1.0]])).tolist() == [[True, True, False], [False, True, False]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=30), st.floats(0.1, 100))
def test_adasise_chooses_among_the_maps_of_sise_and_does_not_mind_the_scale(values, scale):
    gradients = torch.tensor([values], dtype=torch.float64)
    chosen = AdaSise().choose(gradients)
    assert not (chosen & ~Sise().choose(gradients)).any()
    assert chosen.any() == (gradients > 0).any()
    assert chosen.sum() == AdaSise().choose(gradients * scale).sum()


def test_adasise_is_sise_with_otsus_threshold_for_mu():
    gradients = torch.randn(20, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in gradients.split(1):
        level = otsu(row, row > 0).item()
        just_below_the_next = (level + row[row > level].min().item()) / 2  # So that a product's last bit decides nothing.
        assert torch.equal(AdaSise().choose(row), Sise(mu=just_below_the_next / row.max().item()).choose(row))


@pytest.mark.parametrize("explainer", [Sise(), AdaSise()])
def test_each_masks_share_of_a_picture_adds_up_to_its_score(explainer):
    """Where everything has the confidence 1/2, V of any number of masks adds up to 1/2, and nothing in it is below zero."""
    model, inputs, targets = TwoBlocks().eval(), images(3), torch.tensor([0, 1, 2])
    context = testing.explain_context(model, model.layers, 3, INFO)
    context.probability = lambda logits: torch.full_like(logits, 0.5)
    for maps, gradients in sise.feature_maps(model, inputs, targets, context):
        chosen = explainer.choose(gradients) & (maps.amax((2, 3)) > maps.amin((2, 3)))
        found = sise.picture(model, inputs, torch.zeros_like(inputs), targets, maps, chosen, context)
        assert found.min() >= 0
        assert torch.allclose(found.sum((1, 2, 3)), 0.5 * chosen.any(1).float(), atol=1e-5)


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_the_blocks_have_as_many_maps_as_in_the_paper(name):
    """VGG-16: 64 + 128 + 256 + 512 + 512. Of ResNet-50 the first convolution, a block in the paper, is no stage of the model: 3840 of 3904."""
    from bench_plugins.torchvision_models import ResNet, Vgg

    info = testing.dataset_info(20, (224, 224), 3)
    with torch.device("meta"):
        model = (Vgg() if name == "vgg16" else ResNet(depth=50)).build(info)
        with recording(model.stages) as outputs:
            model(torch.zeros(1, 3, 224, 224))
    counts = [output.shape[1] for output in outputs]
    assert counts == {"vgg16": [64, 128, 256, 512, 512], "resnet50": [256, 512, 1024, 2048]}[name]
    if name == "vgg16":  # What its poolings read: rectified maps.
        assert [stage.name for stage in model.stages] == [f"network.features.{place}" for place in (3, 8, 15, 22, 29)]


# Otsu and the fusion


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=2, max_size=200))
def test_otsu_splits_whole_numbers_as_well_as_opencv_does(values):
    """OpenCV takes the first of several equally good thresholds, by another rounding; so the variance between the classes is compared."""
    pixels = np.array([values], dtype=np.uint8)
    theirs, _ = cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    ours = otsu(torch.tensor([values], dtype=torch.float64), without_split=0.0).item()

    def between(level):
        low, high = pixels[pixels <= level].astype(float), pixels[pixels > level].astype(float)
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

    assert between(ours) >= between(theirs) * (1 - 1e-6)
    assert between(theirs) >= between(ours) * (1 - 1e-6)


def test_otsu_splits_two_values_exactly_and_leaves_members_out():
    assert otsu(torch.tensor([[0.2, 0.9, 0.2, 0.9, 0.9]])).item() == pytest.approx(0.2)
    members = torch.tensor([[True, True, True, True, False]])
    assert otsu(torch.tensor([[1.0, 2.0, 9.0, 9.5, 400.0]]), members).item() == 2.0


def test_nothing_is_above_the_threshold_of_a_constant_map():
    assert not sise.above(torch.full((1, 1, 3, 3), 0.7)).any()


def test_fusing_a_picture_with_itself_doubles_what_is_above_the_threshold():
    picture = torch.tensor([[[[0.1, 0.2], [0.8, 0.9]]]])
    there = torch.tensor([True])
    assert torch.allclose(fuse([picture, picture], [there, there], "hard"), torch.tensor([[[[0.0, 0.0], [1.6, 1.8]]]]))


def test_an_empty_last_picture_clears_the_map_and_a_block_without_masks_is_skipped():
    picture, empty = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    fused = fuse([picture, empty], [torch.tensor([True, True]), torch.tensor([True, False])], "hard")
    assert torch.equal(fused[0], torch.zeros(1, 4, 4))
    assert torch.equal(fused[1], picture[1])


@pytest.mark.parametrize(("high", "level"), [(8, 0.6), (40, 0.4)])
def test_the_soft_threshold_is_raised_by_half_where_fewer_than_a_tenth_exceed_it(high, level):
    """100 pixels: `high` at 1, one at 0, the rest at .4; Otsu ends the lower class at .4. With 8 at 1 the threshold is .6."""
    values = torch.full((100,), 0.4)
    values[:high], values[-1] = 1.0, 0.0
    gate = sise.softly_above(values.view(1, 1, 10, 10)).flatten()
    expected = [1 / (1 + math.exp(-100 * (value - level))) for value in (1.0, 0.4, 0.0)]
    assert torch.allclose(gate[torch.tensor([0, 50, 99])], torch.tensor(expected), atol=1e-4)


def test_the_soft_form_scales_the_pictures_first():
    first, second = torch.rand(1, 1, 5, 5), torch.rand(1, 1, 5, 5)
    there = torch.tensor([True])
    assert torch.allclose(fuse([first, second], [there, there], "soft"), fuse([3 * first + 1, 0.2 * second + 5], [there, there], "soft"), atol=1e-3)
