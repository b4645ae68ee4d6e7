"""LP-A3 against a derivation of its own, one image at a time in float64, and against limits worked out by hand."""

import itertools
import math

import pytest
import torch
from fitting_cases import Trained, resumed, same
from torch import nn

from bench import contexts, testing
from bench.interfaces import Batch, Layer, Passes
from bench.registry import Registry
from bench_plugins.fitting import Standard
from bench_plugins.lpa3 import LPA3, deviation, embed, log_likelihood, register_augmenters
from bench_plugins.plain import Plain

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


class Network(nn.Module):
    """Three stages and a linear head; the model normalises its inputs itself."""

    def __init__(self, classes=5, activation=nn.Tanh):
        super().__init__()
        self.normalisation = testing.Plain(3)
        self.normalisation.mean.copy_(torch.tensor(MEAN).view(1, 3, 1, 1))
        self.normalisation.std.copy_(torch.tensor(STD).view(1, 3, 1, 1))
        widths = (3, 8, 12, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(here, there, 3, stride=2 if number else 1, padding=1), nn.BatchNorm2d(there), activation())
            for number, (here, there) in enumerate(itertools.pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, inputs):
        return self.inner((inputs - self.normalisation.mean) / self.normalisation.std)[0]

    def inner(self, normalised):
        """Logits and stage outputs of an image in model space."""
        maps = []
        for stage in self.stages:
            normalised = stage(normalised)
            maps.append(normalised)
        return self.head(normalised.mean((2, 3))), maps

    @property
    def layers(self):
        return [Layer(f"stage {number}", stage) for number, stage in enumerate(self.stages)]


def network(seed=0, **options):
    torch.manual_seed(seed)
    model = Network(**options)
    for _ in range(5):
        model(torch.rand(32, 3, 12, 12))
    with torch.no_grad():
        model.head.weight *= 4
    return model


def images(count, size=12, seed=1, dtype=torch.float32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def batch_of(inputs, classes=5):
    return Batch.of(inputs, torch.eye(classes, dtype=inputs.dtype)[torch.arange(len(inputs)) % classes])


def step(model, classes=5, multi_label=False, **options):
    info = testing.dataset_info(classes, (12, 12), 3, multi_label=multi_label)
    context = testing.step_context(model, model.layers, None, info, **options)
    context.logged = {}
    context.log = lambda **values: context.logged.update({name: float(value) for name, value in values.items()})
    return context


def twins(augmenter, model, inputs, **options):
    return augmenter(model, batch_of(inputs), step(model, **options)).inputs[len(inputs) :]


def initial_delta(inputs):
    """The δ that the augmenter starts from, before clamping: the first draws of the step's stream."""
    return 0.02 * torch.rand(inputs.shape, generator=contexts.generator("", "augmenter", 0, 0)).to(inputs) - 0.01


def agreement(model, inputs, others):
    with torch.no_grad():
        return (model(inputs).argmax(1) == model(others).argmax(1)).float().mean().item()


# The derivation


def one_twin(model, image, delta, bound, rounds, lam, probe):
    """The twin of one image (3, H, W), written out in model space from the method's description."""
    mean, std = (values.view(3, 1, 1) for values in (model.normalisation.mean, model.normalisation.std))
    lowest, highest = (0 - mean) / std, (1 - mean) / std
    x = (image - mean) / std

    def look(z):
        logits, maps = model.inner(z.unsqueeze(0))
        blocks = []
        for stage in maps:
            _, channels, height, width = stage.shape
            flat = stage.reshape(channels, height * width)
            norms = torch.stack([torch.sqrt((flat[:, place] ** 2).sum()) + 1e-10 for place in range(height * width)])
            blocks.append((flat / norms / math.sqrt(height * width)).reshape(-1))
        return logits[0] - torch.log(torch.exp(logits[0]).sum()), torch.cat(blocks)

    with torch.no_grad():
        scores, phi = look(x)
    label = max(range(len(scores)), key=lambda c: scores[c].item())
    delta = torch.minimum(torch.maximum(delta, lowest - x), highest - x)
    for t in range(rounds):
        delta = delta.clone().requires_grad_()
        now, features = look(x + delta)
        distance = torch.sqrt(((features - phi) ** 2).sum())
        penalty = torch.clamp(scores[label] - now[label] - bound, min=0)
        objective = -distance + lam * 0.1 ** (1 - t / rounds) * penalty
        gradient = torch.autograd.grad(objective, delta)[0]
        gradient = gradient / (math.sqrt((gradient**2).sum().item()) + 1e-8)
        delta = delta.detach()
        with torch.no_grad():
            beside = look(x + delta - probe * gradient)[0][label]
        slope = abs(now[label].item() - beside.item()) / probe
        delta = delta - gradient * (bound * 0.1 ** (t / rounds) / (slope + 1e-4))
        delta = torch.minimum(torch.maximum(delta, lowest - x), highest - x)
    return (x + delta) * std + mean


@pytest.mark.parametrize(
    "parameters",
    [{}, {"bound": 0.002}, {"bound": 0.5, "lam": 10.0}, {"iterations": 2, "lam": 0.0}, {"iterations": 3, "probe": 0.5}],
    ids=str,
)
def test_twins_are_those_of_the_derivation(parameters):
    model, inputs = network().double().eval(), images(4, dtype=torch.float64)
    augmenter = LPA3(**parameters)
    starts = initial_delta(inputs)
    settings = augmenter.bound, augmenter.iterations, augmenter.lam, augmenter.probe
    expected = torch.stack([one_twin(model, image, start, *settings) for image, start in zip(inputs, starts, strict=True)])
    found = twins(augmenter, model, inputs)
    assert (expected - inputs).abs().amax() > 1e-2  # Something happened.
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)


def test_the_condition_took_part_in_the_derivation():
    """With a strong condition the twins differ from those without, so the comparison above has seen both terms."""
    model, inputs = network().double().eval(), images(4, dtype=torch.float64)
    free, held = (twins(LPA3(bound=0.5, lam=lam), model, inputs) for lam in (0.0, 10.0))
    assert ((free - held).flatten(1).abs().amax(1) > 1e-3).any()


# Parts


def test_every_stage_is_a_block_of_length_one():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(3, channels, size, size, generator=generator) for channels, size in ((4, 8), (6, 4), (9, 2), (5, 1))]
    phi = embed(maps)
    blocks = phi.split([4 * 64, 6 * 16, 9 * 4, 5], dim=1)
    for block in blocks:
        assert torch.allclose(block.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose((phi - embed([-each for each in maps])).norm(dim=1), torch.full((3,), 4.0), atol=1e-5)  # 2 √4
    assert torch.allclose(embed([7.0 * each for each in maps]), phi, atol=1e-6)


def test_schedules_for_the_published_parameters():
    lengths, weights = zip(*(LPA3().schedule(step) for step in range(5)), strict=True)
    assert lengths == pytest.approx([0.02, 0.012619, 0.007962, 0.005024, 0.003170], abs=1e-6)
    assert weights == pytest.approx([0.1, 0.158489, 0.251189, 0.398107, 0.630957], abs=1e-6)


def test_log_likelihood_of_a_class_and_of_a_set_of_classes():
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert log_likelihood(logits, torch.tensor([0])).item() == pytest.approx(math.log(3 / 4))
    assert log_likelihood(logits, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(math.log(3 / 4) + math.log(1 / 2))


def test_model_space_is_read_from_the_normalisation_and_is_pixel_space_without_one():
    assert deviation(Network(), images(2)).flatten().tolist() == pytest.approx(STD)
    assert deviation(nn.Identity(), images(2)).flatten().tolist() == [1, 1, 1]


# Limits


def test_a_constant_classifier_gives_a_step_of_ten_thousand_times_its_length():
    """The slope is 0, so a step of 1e-6 nats has the length 1e-6 / 1e-4 in model space; grey pixels are far from the border."""
    model = network().double()
    nn.init.zeros_(model.head.weight)
    inputs = 0.5 + 0.01 * images(3, dtype=torch.float64)
    delta = (twins(LPA3(bound=1e-6, iterations=1), model, inputs) - inputs) / model.normalisation.std
    moved = (delta - initial_delta(inputs)).flatten(1).norm(dim=1)
    assert moved.tolist() == pytest.approx([0.01] * 3, rel=1e-5)


def test_only_the_border_stops_the_twins_of_a_constant_classifier():
    model = network()
    nn.init.zeros_(model.head.weight)
    found = twins(LPA3(), model, images(3))
    assert found.min() == 0
    assert found.max() == 1


def test_the_condition_does_nothing_where_the_logits_do_not_depend_on_the_image():
    model = network()
    nn.init.zeros_(model.head.weight)
    inputs = 0.5 + 0.01 * images(3)
    free, held = (twins(LPA3(bound=1e-6, lam=lam), model, inputs) for lam in (0.0, 100.0))
    assert torch.equal(free, held)


def test_locations_without_any_active_feature_leave_everything_finite():
    model = network(activation=nn.ReLU)
    with torch.no_grad():
        model.stages[1][1].bias -= 3.0  # Most locations of the second stage, and all of the third, are zero.
        model.stages[2][1].bias.fill_(-100.0)
    found = twins(LPA3(), model, images(4))
    assert found.isfinite().all()
    assert not torch.equal(found, images(4))


# Independence, labels, rows


def test_a_batch_gives_what_its_images_give_alone():
    model, inputs = network().double(), images(4, dtype=torch.float64)
    together = twins(LPA3(), model, inputs)
    for row in range(4):
        context = step(model)
        torch.rand(inputs[:row].shape, generator=context.generator)  # What the rows before it have drawn.
        alone = LPA3()(model, batch_of(inputs[row : row + 1]), context).inputs[1]
        assert torch.allclose(alone, together[row], rtol=0, atol=1e-6)


def test_twins_carry_the_labels_of_the_batch_but_are_made_with_the_models_own():
    model, inputs = network(), images(5)
    plain = batch_of(inputs)
    noisy = plain.replace(targets=plain.targets.roll(1, 0))
    first, second = (LPA3()(model, batch, step(model)) for batch in (plain, noisy))
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, plain.targets.repeat(2, 1))
    assert torch.equal(second.targets, noisy.targets.repeat(2, 1))


def test_training_mode_makes_no_difference():
    model = network()
    assert torch.equal(twins(LPA3(), model.train(), images(4)), twins(LPA3(), model.eval(), images(4)))


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.1, 1), (0.5, 5), (1.0, 10)])
def test_fraction_is_the_part_of_the_rows_that_are_attacked(fraction, count):
    model = network()
    augmented = LPA3(fraction=fraction, iterations=1)(model, batch_of(images(10)), step(model))
    rows = augmented.group[10:]
    assert len(rows) == len(rows.unique()) == count
    assert (rows.diff() > 0).all()


def test_it_joins_after_its_share_of_the_training():
    model, batch = network(), batch_of(images(2))
    augmenter = LPA3(start=0.3, iterations=1)
    assert augmenter(model, batch, step(model, progress=0.29)) is batch
    assert len(augmenter(model, batch, step(model, progress=0.3))) == 4


def test_multi_label_data_hold_the_set_of_predicted_classes():
    """A shift of all logits changes which classes are predicted, and no class of a softmax."""
    model, inputs = network().double(), images(4, dtype=torch.float64)
    batch = Batch.of(inputs, torch.ones(4, 5))
    before = LPA3(bound=0.5, lam=10.0)(model, batch, step(model, multi_label=True)).inputs[4:]
    softmax = twins(LPA3(bound=0.5, lam=10.0), model, inputs)
    with torch.no_grad():
        model.head.bias += 1.0
    after = LPA3(bound=0.5, lam=10.0)(model, batch, step(model, multi_label=True)).inputs[4:]
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(softmax, twins(LPA3(bound=0.5, lam=10.0), model, inputs), atol=1e-6)


# Effect and cost


@pytest.fixture(scope="module")
def trained():
    """A network that has learnt five classes of noisy patterns well, and 64 of its images."""
    model, generator = network(seed=3, activation=nn.ReLU), torch.Generator().manual_seed(3)
    patterns = torch.rand(5, 3, 12, 12, generator=generator)
    labels = torch.arange(64) % 5
    inputs = (0.5 * patterns[labels] + 0.5 * torch.rand(64, 3, 12, 12, generator=generator)).clamp(0, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval(), inputs


def feature_distance(model, inputs, others):
    with torch.no_grad():
        return (embed(step(model).features(model, inputs)[1]) - embed(step(model).features(model, others)[1])).norm(dim=1).mean().item()


def test_twins_lie_farther_in_features_than_noise_of_the_same_length(trained):
    model, inputs = trained
    found = twins(LPA3(bound=0.002), model, inputs)
    length = ((found - inputs) / model.normalisation.std).flatten(1).norm(dim=1)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * length.view(-1, 1, 1, 1)
    noisy = inputs + noise * model.normalisation.std  # Not clamped: that would shorten it.
    assert feature_distance(model, inputs, found) > feature_distance(model, inputs, noisy)


def test_a_smaller_bound_gives_shorter_steps_and_more_agreement(trained):
    model, inputs = trained
    logged, agreements = [], []
    for bound in (0.02, 0.0002):
        context = step(model)
        found = LPA3(bound=bound)(model, batch_of(inputs), context).inputs[64:]
        logged.append(context.logged)
        agreements.append(agreement(model, inputs, found))
        length = ((found - inputs) / model.normalisation.std).flatten(1).norm(dim=1).mean().item()
        assert context.logged["lpa3_length"] == pytest.approx(length, rel=1e-3)
    assert logged[1]["lpa3_length"] < logged[0]["lpa3_length"]
    assert agreements[1] > agreements[0]
    assert logged[1]["lpa3_agreement"] >= logged[0]["lpa3_agreement"]
    assert logged[1]["lpa3_log_change"] > logged[0]["lpa3_log_change"]


def test_the_strict_variant_loses_no_more_than_the_bound(trained):
    model, inputs = trained
    with torch.no_grad():
        before = model(inputs).log_softmax(1)
    label = before.argmax(1, keepdim=True)

    def lost(augmenter):
        with torch.no_grad():
            return (before - model(twins(augmenter, model, inputs)).log_softmax(1)).gather(1, label)

    assert (lost(LPA3()) > 0.02).any()  # The published one does not hold it here.
    assert (lost(LPA3(strict=True)) <= 0.02 + 1e-5).all()
    assert not torch.equal(twins(LPA3(strict=True), model, inputs), inputs)


@pytest.mark.parametrize(("augmenter", "forward", "backward"), [(LPA3(), 11, 5), (LPA3(iterations=2), 5, 2), (LPA3(strict=True), 20, 5)], ids=str)
def test_passes_per_image(augmenter, forward, backward):
    model = network()
    with contexts.counting(model, Passes()) as passes:
        twins(augmenter, model, images(6))
    assert (passes.forward, passes.backward) == (6 * forward, 6 * backward)


# Batch norms of their own


def test_twins_name_the_first_further_branch_where_they_have_norms_of_their_own():
    model = network()
    plain, own = (LPA3(iterations=1, fraction=0.5, auxiliary_norm=auxiliary)(model, batch_of(images(4)), step(model)) for auxiliary in (False, True))
    assert plain.branch.tolist() == [0] * 6
    assert own.branch.tolist() == [0] * 4 + [1] * 2
    assert torch.equal(plain.inputs, own.inputs)  # The attack itself is the same.
    assert LPA3().branches == ()
    assert LPA3(auxiliary_norm=True).branches == (0.01,)


def test_the_networks_norms_learn_from_the_originals_alone():
    """Without decay, and at a rate too small to move anything else, the norms end where the originals alone take them."""
    still = {"learning_rate": 1e-12, "weight_decay": 0.0, "epochs": 1}
    alone, own, shared = (
        Trained(Standard(), augmenter, **still).run().weights for augmenter in (Plain(), LPA3(iterations=1, auxiliary_norm=True), LPA3(iterations=1))
    )
    for name in ("first.1.running_mean", "second.1.running_var"):
        assert torch.allclose(own[name], alone[name], rtol=1e-5)
        assert not torch.allclose(shared[name], alone[name], rtol=1e-5)


def test_a_stopped_training_with_norms_of_their_own_ends_with_the_same_weights(tmp_path):
    augmenter = LPA3(iterations=1, auxiliary_norm=True)
    assert same(Trained(Standard(), augmenter).run().weights, resumed(Standard(), augmenter, tmp_path, 2).weights)


def test_norms_of_their_own_are_part_of_the_key_and_their_absence_is_not():
    registry = Registry()
    register_augmenters(lambda factory: registry.add("augmenter", factory, name=None, defaults={}, plugin="lpa3", distribution="bench-xai"))
    published = {"bound": 0.02, "iterations": 5, "lam": 1.0, "probe": 0.1, "start": 0.0, "fraction": 1.0, "strict": False}
    for request in ("lpa3", {"name": "lpa3", "auxiliary_norm": False}):
        assert registry.resolve("augmenter", request).identity() == {"name": "lpa3", "version": LPA3.version, "parameters": published}
    assert registry.resolve("augmenter", {"name": "lpa3", "auxiliary_norm": True}).identity()["parameters"] == {**published, "auxiliary_norm": True}
