"""What the harness hands out: counted, leaving no trace, shared, and the same whoever asks."""

import math

import pytest
import torch
from torch import nn

from bench import contexts, fills, testing
from bench.interfaces import Explained, Layer, Passes
from bench.testing import TinyNetwork, TwoChannelNetwork, dataset_info, tiny_data, tiny_images
from bench_plugins.confidence import Drop
from bench_plugins.deletion import Deletion, Insertion

INFO = dataset_info(4, (16, 16), 3)


@pytest.fixture
def model():
    return TinyNetwork().eval()


def slope(model, inputs, targets, context):
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(model(inputs).gather(1, targets[:, None]).sum(), inputs)[0].sum(1, keepdim=True)


def explain(model, explainer, inputs, seed=0, first=0, **options):
    streams = [contexts.generator(seed, first + row) for row in range(len(inputs))]
    context = contexts.explain_context(model, INFO, model.layers[-1:], model.layers, streams, **options)
    return contexts.explain(model, explainer, inputs, torch.zeros(len(inputs), dtype=torch.long), context), context


# Counting


def test_passes_are_counted_in_images(model):
    passes = Passes()
    with contexts.counting(model, passes):
        model(tiny_images(5))
        logits = model(tiny_images(3))
        torch.autograd.grad(logits.sum(), model.fc.weight)
    assert (passes.forward, passes.backward) == (8, 3)


def test_forwards_without_gradient_have_no_backward(model):
    passes = Passes()
    with contexts.counting(model, passes), torch.no_grad():
        model(tiny_images(5))
    assert (passes.forward, passes.backward) == (5, 0)


def test_a_backward_pass_is_counted_each_time_it_is_made(model):
    passes = Passes()
    with contexts.counting(model, passes):
        inputs = tiny_images(2).requires_grad_()
        logits = model(inputs)
        for target in range(4):
            torch.autograd.grad(logits[:, target].sum(), inputs, retain_graph=True)
    assert (passes.forward, passes.backward) == (2, 8)


def test_counting_ends_with_its_block_whatever_happens_in_it(model):
    def break_off():
        with contexts.counting(model, passes):
            model(tiny_images(2))
            raise ZeroDivisionError

    passes, before = Passes(), testing.snapshot(model)
    with pytest.raises(ZeroDivisionError):
        break_off()
    model(tiny_images(2))
    assert passes.forward == 2
    assert testing.changed(before, model) == []


# Leaving no trace


def mixed(model):
    """In training, but for one frozen stage, one frozen parameter and left-over gradients."""
    model.train()
    model.second.eval()
    model.fc.bias.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    return model


def test_inside_untouched_nothing_asks_for_gradient_and_all_is_in_eval_mode(model):
    with contexts.untouched(mixed(model)):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_after_untouched_everything_is_as_it_was(model, error):
    before = testing.snapshot(mixed(model))
    try:
        with contexts.untouched(model):
            inputs = tiny_images(2).requires_grad_()
            model(inputs).sum().backward()
            assert inputs.grad is not None
            if error:
                raise error
    except ZeroDivisionError:
        pass
    assert testing.changed(before, model) == []


@pytest.mark.parametrize("rows", [1, 3])
def test_explaining_leaves_no_trace(model, rows):
    before = testing.snapshot(mixed(model))
    maps, _ = explain(model, slope, tiny_images(rows))
    assert testing.changed(before, model) == []
    assert not maps.requires_grad


def test_an_explainer_that_raises_leaves_no_trace_either(model):
    def raises(model, inputs, targets, context):
        model(inputs)
        raise ZeroDivisionError

    before = testing.snapshot(mixed(model))
    with pytest.raises(ZeroDivisionError):
        explain(model, raises, tiny_images(2))
    assert testing.changed(before, model) == []


def test_an_explainer_may_take_gradients_where_the_caller_does_not(model):
    with torch.no_grad():
        maps, _ = explain(model, slope, tiny_images(2))
    assert maps.abs().sum() > 0


def test_an_explainer_cannot_write_into_the_images_gradient(model):
    inputs = tiny_images(2).requires_grad_()
    explain(model, lambda model, inputs, targets, context: inputs[:, :1] * (0 if inputs.requires_grad else 1), inputs)
    assert inputs.grad is None


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 16, 16), (1, 1, 16, 16), (2, 1, 8, 8)])
def test_a_map_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\) = \(2, 1, 16, 16\)"):
        explain(model, lambda *given: torch.zeros(shape), tiny_images(2))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_map_that_is_not_finite_is_refused(model, number):
    with pytest.raises(ValueError, match="not finite"):
        explain(model, lambda *given: torch.full((2, 1, 16, 16), number), tiny_images(2))


# A lone row, and rows that do not depend on their neighbours


def test_a_lone_row_goes_through_the_network_as_two(model):
    seen = []

    def watching(model, inputs, targets, context):
        seen.append((len(inputs), len(targets), len(context.generators)))
        return slope(model, inputs, targets, context)

    maps, _ = explain(model, watching, tiny_images(1))
    assert seen == [(2, 2, 2)]
    assert maps.shape == (1, 1, 16, 16)


def test_a_lone_rows_map_is_its_map_among_others_to_the_bit(model):
    inputs = tiny_images(5)
    among, _ = explain(model, slope, inputs)
    alone = torch.cat([explain(model, slope, inputs[row : row + 1], first=row)[0] for row in range(5)])
    assert torch.equal(among, alone)


def noisy(model, inputs, targets, context):
    return torch.stack([torch.rand(1, *inputs.shape[2:], generator=stream) for stream in context.generators])


def test_a_lone_row_draws_what_it_draws_among_others(model):
    inputs = tiny_images(3)
    among, _ = explain(model, noisy, inputs)
    alone = torch.cat([explain(model, noisy, inputs[row : row + 1], first=row)[0] for row in range(3)])
    assert torch.equal(among, alone)


def test_a_lone_row_is_filled_with_the_noise_it_is_filled_with_among_others(model):
    def filled(model, inputs, targets, context):
        return context.fill("noise", inputs)[:, :1]

    inputs = tiny_images(3)
    among, _ = explain(model, filled, inputs)
    alone = torch.cat([explain(model, filled, inputs[row : row + 1], first=row)[0] for row in range(3)])
    assert torch.equal(among, alone)


@pytest.mark.parametrize(("rows", "chunk", "sizes"), [(7, 3, [3, 3, 2]), (6, 3, [3, 3]), (1, 8, [2]), (3, 1, [2, 2, 2])])
def test_a_forward_is_split_into_chunks_and_a_chunk_of_one_goes_as_two(model, rows, chunk, sizes):
    seen = []
    handle = model.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    inputs = tiny_images(rows)
    logits = contexts.forward(model, inputs, chunk)
    handle.remove()
    assert seen == sizes
    with torch.no_grad():
        torch.testing.assert_close(logits, model(inputs), rtol=1e-5, atol=1e-6)


def test_a_stream_depends_on_its_parts_and_on_nothing_else():
    torch.manual_seed(1)
    first = torch.rand(3, generator=contexts.generator(0, "explain", 5))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(3, generator=contexts.generator(0, "explain", 5)))
    assert not torch.equal(first, torch.rand(3, generator=contexts.generator(0, "score", 5)))


# In a training step


def test_what_an_augmenter_asks_for_leaves_the_training_as_it_was(model):
    before = testing.snapshot(mixed(model))
    context = contexts.step_context(model, INFO, model.layers[-1:], model.layers, slope)
    context.explain(model, tiny_images(3), torch.tensor([0, 1, 2]))
    context.predict(model, tiny_images(3))
    context.features(model, tiny_images(3))
    context.fill("blur", tiny_images(3))
    assert testing.changed(before, model) == []


def test_predictions_for_an_augmenter_are_those_of_eval_mode(model):
    with torch.no_grad():
        expected = model(tiny_images(4))
    context = contexts.step_context(model.train(), INFO, [], [])
    torch.testing.assert_close(context.predict(model, tiny_images(4)), expected)


def test_features_are_the_stages_maps_with_gradient(model):
    context = contexts.step_context(model, INFO, [], model.layers)
    inputs = tiny_images(2).requires_grad_()
    _, maps = context.features(model, inputs)
    assert [tuple(each.shape) for each in maps] == [(2, 8, 16, 16), (2, 12, 8, 8)]
    torch.testing.assert_close(maps[1], model.features(inputs))
    assert torch.autograd.grad(maps[1].sum(), inputs)[0].abs().sum() > 0


def test_logits_can_be_differentiated_by_the_maps_that_features_hands_out(model):
    context = contexts.step_context(model, INFO, [], model.layers)
    logits, maps = context.features(model, tiny_images(2).requires_grad_())
    assert torch.autograd.grad(logits.sum(), maps[1])[0].abs().sum() > 0


def test_no_rows_are_explained_and_predicted_as_no_rows(model):
    context = contexts.step_context(model, INFO, model.layers, model.layers, slope)
    none = torch.zeros(0, 3, 16, 16)
    assert context.explain(model, none, torch.zeros(0, dtype=torch.long)).shape == (0, 1, 16, 16)
    assert context.predict(model, none).shape == (0, 4)


# Fills


def test_the_mean_fill_is_zero_in_model_space():
    normalised = nn.Module()
    normalised.normalisation = nn.Module()
    normalised.normalisation.mean = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1)
    mean = fills.mean_colour(normalised, 3)
    filled = fills.fill("mean", tiny_images(2), mean)
    assert torch.equal(filled - normalised.normalisation.mean, torch.zeros(2, 3, 16, 16))


def test_a_model_that_shows_no_normalisation_has_mid_grey():
    assert torch.equal(fills.mean_colour(nn.Identity(), 3), torch.full((3, 1, 1), 0.5))


def test_the_blur_is_the_sum_over_an_11_by_11_gaussian_of_sigma_5():
    image = torch.rand(1, 1, 13, 13, generator=contexts.generator("blur"), dtype=torch.float64)
    weights = [[math.exp(-(dy * dy + dx * dx) / 50) for dx in range(-5, 6)] for dy in range(-5, 6)]
    total = sum(map(sum, weights))
    for y, x in [(6, 6), (0, 0), (12, 3)]:  # in the middle, in a corner, at the border: the mean, 0.3, comes in from outside
        value = 0.3
        for dy in range(-5, 6):
            for dx in range(-5, 6):
                if 0 <= y + dy < 13 and 0 <= x + dx < 13:
                    value += weights[dy + 5][dx + 5] / total * (image[0, 0, y + dy, x + dx].item() - 0.3)
        assert fills.fill("blur", image, torch.tensor([[[0.3]]]))[0, 0, y, x].item() == pytest.approx(value, abs=1e-6)


def test_noise_is_each_images_own():
    streams = testing.generators(3)
    together = fills.fill("noise", torch.zeros(3, 3, 4, 4), torch.zeros(3, 1, 1), streams)
    alone = [fills.fill("noise", torch.zeros(1, 3, 4, 4), torch.zeros(3, 1, 1), [stream]) for stream in testing.generators(3)]
    assert torch.equal(together, torch.cat(alone))
    assert 0 <= together.min() <= together.max() < 1


# Masked images


def masked_by_hand(model, images, count, kind, keep, multi_label=False):
    """One image at a time, one pixel at a time: equal values by position, most important first."""
    found = []
    for row in range(len(images)):
        values = images.attributions[row, 0].flatten().tolist()
        order = sorted(range(len(values)), key=lambda place: (-values[place], place))
        chosen = set(order[:count])
        image = images.inputs[row].clone()
        hidden = {
            "black": torch.zeros_like(image),
            "mean": torch.full_like(image, 0.25),
            "blur": fills.gaussian_blur(images.inputs[row : row + 1] - 0.25)[0] + 0.25,
            "noise": torch.rand(image.shape, generator=contexts.generator(0, row)),
        }[kind]
        for place in range(len(values)):
            if (place in chosen) != keep:
                y, x = divmod(place, image.shape[-1])
                image[:, y, x] = hidden[:, y, x]
        with torch.no_grad():
            logits = model(image.repeat(2, 1, 1, 1))[0]
        exponentials = [math.exp(logit) for logit in logits.tolist()]
        target = int(images.targets[row])
        odds = exponentials[target]
        found.append(odds / (1 + odds) if multi_label else odds / sum(exponentials))
    return found


def images_with_ties(model, rows=3, side=6):
    inputs = tiny_images(rows, side)
    maps = torch.randint(0, 5, (rows, 1, side, side), generator=contexts.generator("ties")).float()  # Many equal values.
    model.normalisation.mean.fill_(0.25)
    return testing.explained(model, inputs, maps)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["black", "mean", "blur", "noise"])
def test_masked_probabilities_are_those_of_a_plain_loop(model, kind, keep, multi_label):
    images = images_with_ties(model)
    context = testing.metric_context(model, images, dataset_info(4, (6, 6), 3, multi_label=multi_label), chunk=4)
    counts = [0, 1, 7, 35, 36]
    found = context.masked_probabilities(counts, kind, keep)
    expected = torch.tensor([masked_by_hand(model, images, count, kind, keep, multi_label) for count in counts]).T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_masked_probabilities_of_the_two_channel_network():
    """Channel maps relu(x) and relu(-x) of [[1, -2], [3, 0.5]]: hiding the 3 behind black leaves P = 1.5 / 4 and Q = 2 / 4."""
    model = TwoChannelNetwork().eval()
    images = testing.explained(model, testing.TWO_CHANNEL_IMAGE, testing.TWO_CHANNEL_IMAGE)
    context = testing.metric_context(model, images)
    hidden = [2 * 0.375 - 0.5, -0.375 + 3 * 0.5]
    expected = math.exp(hidden[0]) / (math.exp(hidden[0]) + math.exp(hidden[1]))
    assert context.masked_probabilities([0, 1], "black", keep=False)[0].tolist() == pytest.approx([0.798187, expected], abs=1e-6)


@pytest.mark.parametrize("count", [-1, 37])
def test_more_pixels_than_there_are_cannot_be_hidden(model, count):
    context = testing.metric_context(model, images_with_ties(model), INFO)
    with pytest.raises(ValueError, match="of 36"):
        context.masked_probabilities([count], "mean", keep=False)


def test_ranking_pixels_without_a_map_is_an_error(model):
    context = testing.metric_context(model, testing.explained(model, tiny_images(2)), INFO)
    with pytest.raises(ValueError, match="no attributions"):
        context.masked_probabilities([1], "mean", keep=False)


def test_metrics_of_one_group_forward_no_state_twice(model):
    """Deletion and insertion in 8 steps and drop on 64 pixels: 8 hidden, 7 shown and 1 shown that is new, for each image."""
    model.normalisation.mean.fill_(0.25)
    inputs = tiny_images(3, 8)
    images = testing.explained(model, inputs, torch.rand(3, 1, 8, 8, generator=contexts.generator("maps")))
    context = testing.metric_context(model, images, dataset_info(4, (8, 8), 3), chunk=7)  # 24, 21 and 3 forwards: no lone one
    seen = []
    handle = model.register_forward_pre_hook(lambda module, arguments: seen.extend(arguments[0].clone()))
    fill = "noise"  # With a colour, the wholly hidden images would be the same image for all three.
    for metric in (Deletion(8, fill), Insertion(8, fill), Drop(fill=fill), Deletion(8, fill)):
        metric(model, images, context)
    handle.remove()
    assert len(seen) == 3 * (8 + 7 + 1) == context.passes.forward
    assert len({image.numpy().tobytes() for image in seen}) == len(seen)
    assert not any(torch.equal(image, original) for image in seen for original in inputs)


def test_what_is_shared_is_what_each_metric_would_have_found_alone(model):
    images = images_with_ties(model)
    shared = testing.metric_context(model, images, INFO)
    metrics = [Deletion(steps=9), Insertion(steps=9), Drop(), Deletion(steps=9, fill="black"), Insertion(steps=9, fill="noise")]
    for metric in metrics:
        alone = metric(model, images, testing.metric_context(model, images, INFO))
        torch.testing.assert_close(metric(model, images, shared), alone, rtol=1e-6, atol=1e-7)


def test_a_metrics_noise_is_the_same_however_often_it_is_asked_for(model):
    images = images_with_ties(model)
    context = testing.metric_context(model, images, INFO)
    assert torch.equal(context.fill("noise", images.inputs), context.fill("noise", images.inputs))


def test_explaining_again_for_a_metric_draws_the_same_again(model):
    images = images_with_ties(model)
    context = testing.metric_context(model, images, INFO, explainer=noisy)
    first = context.explain(images.inputs, images.targets)
    assert torch.equal(first, context.explain(images.inputs, images.targets))
    assert torch.equal(first[:1], context.explain(images.inputs[:1], images.targets[:1]))


# Layers


def test_a_layer_is_the_models_last_choice_unless_it_is_named(model):
    context = testing.explain_context(model, model.layers, 2, INFO)
    assert context.layer().name == "second"
    assert context.layer("first").module is model.first
    assert context.layer("second.1", model).module is model.second[1]


def test_a_layer_that_is_not_there_is_named_with_those_that_are(model):
    from bench.errors import InvalidValue

    context = testing.explain_context(model, model.layers, 2, INFO)
    with pytest.raises(InvalidValue, match=r"(?s)no layer 'secnd'\. Did you mean 'second'.*first, second"):
        context.layer("secnd", model)


def test_stages_are_found_by_the_rule_and_finding_them_leaves_no_trace(model):
    from bench.layers import find_stages

    before = testing.snapshot(mixed(model))
    found = find_stages(model, (16, 16))
    assert [layer.name for layer in found] == ["first", "second"]  # The containers end after what they contain.
    assert testing.changed(before, model) == []


def test_recording_replaces_outputs_and_then_is_gone(model):
    from bench.layers import recording

    before = testing.snapshot(model)
    with recording([Layer("second", model.second)], lambda position, output: output * 0) as outputs:
        logits = model(tiny_images(2))
    assert torch.equal(logits, model.fc.bias.expand(2, -1))
    assert not outputs[0].any()
    assert testing.changed(before, model) == []


def test_explained_images_know_how_many_they_are(model):
    images = testing.explained(model, tiny_data(4).images.float() / 255)
    assert isinstance(images, Explained)
    assert len(images) == 4
