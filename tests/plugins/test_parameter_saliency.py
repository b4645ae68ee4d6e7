"""Parameter saliency against gradients by hand, loops over single images, vmap over the network and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from bench import contexts, testing
from bench.errors import InvalidValue
from bench_plugins import parameter_saliency
from bench_plugins.parameter_saliency import FilterSaliency, Moments, ParameterSaliency, filter_saliency

INFO = testing.dataset_info(3, (8, 8), 3)


class OneFilterPerClass(nn.Module):
    """A 1 x 1 convolution whose two outputs are the logits."""

    def __init__(self, first=0.0, second=0.0):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([first, second]).view(2, 1, 1, 1))

    def forward(self, inputs):
        return self.conv(inputs).flatten(1)


class Network(nn.Module):
    """Strided, grouped, dilated, reflecting and shared convolutions, batch norm, and activations that work in place."""

    def __init__(self, activation=None):
        super().__init__()
        torch.manual_seed(0)
        self.activation = activation or nn.ReLU(inplace=True)
        self.stem = nn.Conv2d(3, 6, 3, padding="same")
        self.norm = nn.BatchNorm2d(6)
        self.shared = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3, bias=False)
        self.last = nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.unused = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(8, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, inputs):
        maps = self.activation(self.norm(self.stem(inputs)))
        maps = self.activation(self.shared(maps) + maps)
        maps = self.activation(self.shared(maps))
        return self.head(self.activation(self.last(maps)).mean((2, 3)))


class Batches:
    """Images with labels, handed out in parts."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def batches(self, size):
        return zip(self.inputs.split(size), self.labels.split(size), strict=True)


def images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator)


def by_loop(model, inputs, labels):
    """(B, K) one backward pass per image, to the weights themselves."""
    weights = [model.stem.weight, model.shared.weight, model.last.weight]
    rows = []
    for image, label in zip(inputs, labels, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image[None]), label[None]), weights)
        rows.append(torch.cat([gradient.abs().mean((1, 2, 3)) for gradient in gradients]))
    return torch.stack(rows)


def profile(model, inputs, labels, **options):
    return filter_saliency(model, inputs, labels, **options).filters


def explain(explainer, model, inputs, targets, state=None, info=INFO, **options):
    context = testing.explain_context(model, [], len(inputs), info, state=state, **options)
    return contexts.explain(model, explainer, inputs, targets, context), context


# Saliency of filters


@pytest.mark.parametrize(("first", "expected"), [(0.0, 1.0), (math.log(3) / 2, 0.5)])
def test_one_filter_per_class_has_the_saliency_worked_out_by_hand(first, expected):
    """x = 2, label 0: the gradient is 2 (p - 1, 1 - p), with p = 1/2 and 3/4."""
    found = profile(OneFilterPerClass(first), torch.tensor([[[[2.0]]]]), torch.tensor([0]))
    assert torch.allclose(found, torch.full((1, 2), expected))


def test_opposite_labels_do_not_cancel():
    """The gradient of the mean loss is zero; each image's own is not."""
    found = profile(OneFilterPerClass(), torch.full((2, 1, 1, 1), 2.0), torch.tensor([0, 1]))
    assert torch.allclose(found, torch.ones(2, 2))


def test_all_images_at_once_equal_one_backward_pass_per_image():
    model, (inputs, labels) = Network().eval(), images(5)
    assert torch.allclose(profile(model, inputs, labels), by_loop(model, inputs, labels), rtol=1e-4, atol=1e-8)


def test_all_images_at_once_equal_vmap_over_the_whole_network():
    model, (inputs, labels) = Network(nn.ReLU()).eval(), images(5)
    weights = {name: getattr(model, name.split(".")[0]).weight.detach() for name in ("stem.weight", "shared.weight", "last.weight")}

    def loss(weights, image, label):
        return F.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, labels)
    expected = torch.cat([each.abs().mean((2, 3, 4)) for each in gradients.values()], dim=1)
    assert torch.allclose(profile(model, inputs, labels), expected, rtol=1e-4, atol=1e-8)


def test_the_parts_in_which_weight_gradients_are_reduced_do_not_matter(monkeypatch):
    model, (inputs, labels) = Network().eval(), images(5)
    together = profile(model, inputs, labels)
    monkeypatch.setattr(parameter_saliency, "AT_ONCE", 1)
    assert torch.allclose(profile(model, inputs, labels), together, rtol=1e-5)


def test_permuting_a_layers_filters_permutes_the_profile():
    model, (inputs, labels) = Network().eval(), images(2)
    before, order = profile(model, inputs, labels), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.last.weight.copy_(model.last.weight[order].clone())
        model.last.bias.copy_(model.last.bias[order].clone())
        model.head.weight.copy_(model.head.weight[:, order].clone())
    after = profile(model, inputs, labels)
    assert torch.allclose(after[:, -8:], before[:, -8:][:, order], rtol=1e-4, atol=1e-8)
    assert torch.allclose(after[:, :-8], before[:, :-8], rtol=1e-4, atol=1e-8)


def test_a_convolution_that_does_not_run_has_no_filters():
    assert [layer.shape[1] for layer in filter_saliency(Network().eval(), *images(2)).layers] == [6, 6, 8]


def test_a_certain_and_correct_network_keeps_its_digits():
    """At a margin of 20, p is 1 in single precision; the gradient is still 2 exp(-20)."""
    found = profile(OneFilterPerClass(10.0), torch.tensor([[[[2.0]]]]), torch.tensor([0]))
    assert torch.allclose(found, torch.full((1, 2), 2 * math.exp(-20)), rtol=1e-4)


def test_multi_label_losses_are_binary():
    """Logits (4, 0): the loss of class 0 alone has gradient 2 (σ(4) - 1); that of labels (1, 1) adds 2 (1/2 - 1) for the second filter."""
    model, image = OneFilterPerClass(2.0), torch.tensor([[[[2.0]]]])
    first = 2 * (1 - 1 / (1 + math.exp(-4)))
    assert torch.allclose(profile(model, image, torch.tensor([0]), multi_label=True), torch.tensor([[first, 0.0]]))
    assert torch.allclose(profile(model, image, torch.tensor([[1, 1]]), multi_label=True), torch.tensor([[first, 1.0]]))


@pytest.mark.parametrize(
    ("build", "filters", "tensors"),
    [
        ("resnet18", 4800, 20),
        ("resnet34", 8512, 36),
        ("resnet50", 26560, 53),
        ("vgg16", 4224, 13),
        ("vgg19", 5504, 16),
        ("densenet121", 10240, 120),
    ],
)
def test_known_networks_have_the_known_number_of_filters(build, filters, tensors):
    import torchvision

    with torch.device("meta"):
        model = getattr(torchvision.models, build)()
    with parameter_saliency.listening(model) as layers:
        assert (sum(layer.out_channels for layer in layers), len(layers)) == (filters, tensors)


def test_the_filters_of_an_auxiliary_head_do_not_count():
    """Inception-v3 has 18112 filters with its auxiliary classifier, which does not run in eval mode, and 17216 without."""
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.inception_v3(init_weights=False).eval()
        with parameter_saliency.listening(model) as layers:
            assert sum(layer.out_channels for layer in layers) == 18112
            model(torch.zeros(1, 3, 299, 299))
        assert sum(layer.out_channels for layer, uses in layers.items() if uses) == 17216


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(InvalidValue, match="has none"):
        filter_saliency(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), *images(2))


# Statistics


def test_the_sample_itself_has_mean_zero_and_variance_one_when_standardised():
    model, (inputs, labels) = Network(), images(30)
    explainer = ParameterSaliency()
    state = explainer.prepare(model, Batches(inputs, labels), testing.explain_context(model, [], 7, INFO, chunk=7))
    standardised = explainer.standardised(profile(model.eval(), inputs, labels).double(), {name: each.double() for name, each in state.items()})
    alive = state["std"] > 1e-14
    assert torch.allclose(standardised.mean(0), torch.zeros(20, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(standardised.var(0)[alive], torch.ones(int(alive.sum()), dtype=torch.float64), rtol=1e-4)


def test_statistics_do_not_depend_on_the_parts_and_a_constant_filter_has_no_spread():
    rows = torch.rand(11, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 2] = 0.3
    moments = Moments()
    for part in rows.split(3):
        moments.add(part)
    assert torch.allclose(moments.mean, rows.mean(0))
    assert torch.allclose(moments.std, rows.std(0), atol=1e-6)
    assert moments.std[2] == 0
    assert parameter_saliency.or_one(moments.std)[2] == 1


def test_preparing_leaves_the_model_in_training_as_it_was():
    model = Network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ParameterSaliency().prepare(model, Batches(*images(5)), testing.explain_context(model, [], 5, INFO))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_without_statistics_only_the_naive_form_explains():
    model, (inputs, labels) = Network(), images(2)
    with pytest.raises(InvalidValue, match="prepare"):
        explain(ParameterSaliency(), model, inputs, labels)
    assert ParameterSaliency(standardise="naive").prepare(model, Batches(inputs, labels), None) == {}
    assert explain(ParameterSaliency(standardise="naive"), model, inputs, labels)[0].amax() > 0


# The map


def prepared(explainer, model, count=20):
    return explainer.prepare(model, Batches(*images(count, seed=1)), testing.explain_context(model, [], count, INFO))


@pytest.mark.parametrize("standardise", ["std", "norm", "naive"])
def test_the_map_is_the_slope_of_the_agreement_with_the_boosted_profile(standardise):
    """Finite differences in double precision, the profile by one backward pass per image, activations smooth."""
    model, (inputs, labels) = Network(nn.Softplus()).double().eval(), images(2)
    inputs = inputs.double()
    explainer = ParameterSaliency(top=3, standardise=standardise)
    state = {"mean": torch.rand(20).double() * 0.01, "std": torch.rand(20).double() * 0.01 + 0.001}
    context = testing.explain_context(model, [], 2, INFO, state=state)
    maps = explainer.maps(model, inputs, labels, context)

    def scaled(row):
        return {"std": (row - state["mean"]) / state["std"], "norm": row / state["mean"], "naive": row}[standardise]

    start = scaled(by_loop(model, inputs[:1], labels[:1])[0])
    boosted = torch.where(start >= start.sort().values[-3], 100 * start, start)
    for row, column in ((0, 0), (3, 5), (7, 2)):
        slopes = []
        for colour in range(3):
            step = torch.zeros_like(inputs[:1])
            step[0, colour, row, column] = 1e-5
            up, down = (scaled(by_loop(model, inputs[:1] + sign * step, labels[:1])[0]) for sign in (1, -1))
            slopes.append(float((F.cosine_similarity(up, boosted, dim=0) - F.cosine_similarity(down, boosted, dim=0)) / 2e-5))
        assert float(maps[0, 0, row, column]) == pytest.approx(max(map(abs, slopes)), rel=1e-4, abs=1e-9)


def test_without_a_boost_the_agreement_is_at_its_maximum_and_the_map_is_zero():
    model, (inputs, labels) = Network(nn.Softplus()).double().eval(), images(2)
    context = testing.explain_context(model, [], 2, INFO)
    maps = ParameterSaliency(boost=1.0, standardise="naive").maps(model, inputs.double(), labels, context)
    boosted = ParameterSaliency(standardise="naive").maps(model, inputs.double(), labels, context)
    assert maps.amax() < 1e-9 * boosted.amax()


def test_the_pixels_behind_the_misbehaving_filter_are_found():
    """Filter 1 sees only what is brighter than .6, a corner, and votes against the label; filter 0 sees everything.

    The agreement grows with saliency 1 / saliency 0, so the slope is 1/(9 · .9) - 1/53.6 in the corner and 1/53.6 elsewhere, to scale.
    """
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -0.6]))
        model[4].weight.copy_(torch.tensor([[1.0, -8.0], [-1.0, 8.0]]))
    image = torch.full((2, 1, 10, 10), 0.5)
    image[:, :, :3, 7:] = 0.9
    explainer = ParameterSaliency(top=1, standardise="naive")
    maps, _ = explain(explainer, model, image, torch.zeros(2, dtype=torch.long), info=testing.dataset_info(2, (10, 10)))
    inside, outside = maps[:, 0, :3, 7:], maps[:, 0, 3:, :7]
    assert torch.allclose(inside.mean() / outside.mean(), torch.tensor((1 / 8.1 - 1 / 53.6) * 53.6), rtol=1e-3)


def test_an_image_depends_neither_on_its_neighbours_nor_on_the_chunks():
    model, (inputs, labels), explainer = Network(), images(7), ParameterSaliency()
    state = prepared(explainer, model)
    together, _ = explain(explainer, model, inputs, labels, state, chunk=64)
    alone = torch.cat([explain(explainer, model, inputs[[row]], labels[[row]], state)[0] for row in range(7)])
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-6)
    assert torch.allclose(together, explain(explainer, model, inputs, labels, state, chunk=8)[0], rtol=1e-3, atol=1e-6)


def test_an_image_costs_one_forward_and_two_backward_passes():
    model, (inputs, labels), explainer = Network(), images(6), ParameterSaliency()
    _, context = explain(explainer, model, inputs, labels, prepared(explainer, model), chunk=12)
    assert (context.passes.forward, context.passes.backward) == (6, 12)


@pytest.mark.parametrize("standardise", ["std", "norm", "naive"])
def test_a_black_image_gives_finite_maps(standardise):
    model, explainer = Network(), ParameterSaliency(standardise=standardise)
    maps, _ = explain(explainer, model, torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), prepared(explainer, model))
    assert maps.isfinite().all()


def test_a_profile_of_zeros_gives_a_map_of_zeros():
    """A black image, and no biases: no weight has any gradient."""
    network = testing.TwoChannelNetwork()
    maps, _ = explain(ParameterSaliency(standardise="naive"), network, torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), info=testing.dataset_info())
    assert torch.equal(maps, torch.zeros(2, 1, 2, 2))


def test_the_model_is_left_as_it_was():
    model, (inputs, labels), explainer = Network().train(), images(3), ParameterSaliency()
    state = prepared(explainer, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain(explainer, model, inputs, labels, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_attention_beside_the_convolution_can_be_differentiated_twice():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 3)

        def forward(self, inputs):
            tokens = self.patches(inputs).flatten(2).transpose(1, 2).unsqueeze(1)
            return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens).mean((1, 2)))

    inputs, labels = images(2)
    assert explain(ParameterSaliency(standardise="naive"), Attending(), inputs, labels)[0].amax() > 0


# The metric


def scored(model, inputs, labels, **options):
    explained = testing.explained(model.eval(), inputs, labels=labels)
    context = testing.metric_context(model, explained, INFO, **options)
    return FilterSaliency()(model, explained, context), explained, context


def test_a_row_says_whether_the_image_is_misclassified_and_each_layers_mean():
    model, (inputs, labels) = Network(), images(7)
    rows, explained, context = scored(model, inputs, labels, chunk=5)
    single = by_loop(model, inputs, labels)
    expected = [(explained.logits.argmax(1) != labels).float(), *(single[:, part].mean(1) for part in (slice(6), slice(6, 12), slice(12, 20)))]
    assert torch.allclose(rows, torch.stack(expected, dim=1), rtol=1e-4)
    assert torch.allclose(FilterSaliency().values(rows), rows[:, 1:].mean(1))
    assert (context.passes.forward, context.passes.backward) == (7, 7)


def test_the_value_is_the_gap_between_mistakes_and_hits_in_standard_deviations():
    """Layer 1: means 5 and 2, values 1, 3, 4, 6 with variance 13/3; layer 2 is the same for all."""
    rows = torch.tensor([[0.0, 1, 7], [0, 3, 7], [1, 4, 7], [1, 6, 7]], dtype=torch.float64)
    gap = 3 / (13 / 3) ** 0.5
    assert FilterSaliency().aggregate(rows) == pytest.approx(gap / 2)
    assert FilterSaliency().curve(rows)[:2] == ([1.0, 2.0], [pytest.approx(gap), 0.0])


def test_filters_are_more_salient_on_mistakes():
    """Logits (x, 0) for x > 0: the saliency is x (1 - p) where the label is 0 and x p where it is not, and p = σ(x) > 1/2."""
    model, inputs = OneFilterPerClass(1.0).eval(), torch.tensor([0.6, 1.0, 0.6, 1.0]).view(4, 1, 1, 1)
    explained = testing.explained(model, inputs, labels=torch.tensor([0, 0, 1, 1]))
    rows = FilterSaliency()(model, explained, testing.metric_context(model, explained))
    p = [1 / (1 + math.exp(-x)) for x in (0.6, 1.0)]
    assert torch.allclose(rows, torch.tensor([[0, 0.6 * (1 - p[0])], [0, 1 - p[1]], [1, 0.6 * p[0]], [1, p[1]]]))
    assert FilterSaliency().aggregate(rows) > 0


def test_without_mistakes_the_gap_is_missing():
    model, (inputs, _) = Network().eval(), images(4)
    rows, _, _ = scored(model, inputs, model(inputs).argmax(1))
    assert math.isnan(FilterSaliency().aggregate(rows))
    assert FilterSaliency().curve(rows)[:2] == ([], [])


def test_the_metric_leaves_the_model_as_it_was():
    model = Network()
    scored(model, *images(4))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


# The figure


def test_the_profiles_are_the_means_of_mistakes_and_hits_filter_by_filter():
    model, (inputs, labels) = Network(), images(12)
    columns = parameter_saliency.profiles(model, Batches(inputs, labels), testing.explain_context(model, [], 5, INFO, chunk=5))
    wrong, single = model.eval()(inputs).argmax(1) != labels, by_loop(model, inputs, labels)
    assert columns.layer.tolist() == [1] * 6 + [2] * 6 + [3] * 8
    for found, expected in zip(columns[1:], (single.mean(0), single.std(0), single[~wrong].mean(0), single[wrong].mean(0)), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-8)
    spread = single.std(0)
    expected = (single[wrong].mean(0) - single.mean(0)) / spread.where(spread > 0, 1.0)  # Some filters are dead.
    assert torch.allclose(columns.standardised(columns.wrong), expected, rtol=1e-3, atol=1e-4)


def test_filters_are_sorted_within_their_layers():
    saliency, layer = torch.tensor([1.0, 3.0, 2.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0])
    ordered, means = parameter_saliency.by_layer(saliency, layer)
    assert ordered.tolist() == [3, 2, 1, 5, 0]
    assert means.tolist() == [2, 2, 2, 2.5, 2.5]


def test_the_figure_is_a_picture_even_without_mistakes(tmp_path):
    model, (inputs, labels) = Network().eval(), images(6)
    for name, truth in (("both", labels), ("hits", model(inputs).argmax(1))):
        FilterSaliency().figure(model, Batches(inputs, truth), testing.explain_context(model, [], 6, INFO), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
