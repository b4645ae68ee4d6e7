"""The training loop, against trainings written out by hand."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from bench import contexts
from bench.errors import BenchError, TrainingDiverged
from bench.interfaces import ArrayData, Batch, Recipe
from bench.keys import derived_seed
from bench.testing import TinyNetwork, dataset_info, tiny_data
from bench.train import FitContext, TrainingData, fit, rate_at, row_losses, training_data
from bench_plugins.fitting import Standard
from bench_plugins.plain import Plain

RECIPE = Recipe(epochs=2, batch_size=16, crop_padding=2)


class Dropping(nn.Module):
    """A network with dropout and batch norm, on the smallest images there are here."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(54, 4))

    def forward(self, inputs):
        return self.body(inputs)


def small_data(count=48):
    return tiny_data(count, size=8)


def train(recipe=RECIPE, model=None, augmenter=None, data=None, folder=None, noise=None, seed=0, trainer=None, report=lambda progress: None):
    """A training without a plan or a store around it: the model, what it took, and its context."""
    model = TinyNetwork() if model is None else model
    data = small_data() if data is None else data
    context = FitContext(recipe, data.info, seed, "key", "cpu", [], [], folder=folder, report=report)
    cost = fit(trainer or Standard(), model, training_data(data, recipe, noise, None), augmenter or Plain(), context)
    return model, cost, context


def same_weights(first, second):
    return all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


# Against a training written out


def cropped_by_hand(images, padding, stream):
    """Shift and mirror image by image, from the draws in the order the loop makes them."""
    offsets = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=stream)
    mirrored = torch.rand(len(images), generator=stream) < 0.5
    size = images.shape[-1]
    found = []
    for image, top, left, mirror in zip(images, *offsets.tolist(), mirrored.tolist(), strict=True):
        framed = torch.zeros(3, size + 2 * padding, size + 2 * padding)
        framed[:, padding : padding + size, padding : padding + size] = image
        piece = framed[:, top : top + size, left : left + size]
        found.append(piece.flip(2) if mirror else piece)
    return torch.stack(found)


def trained_by_hand(model, data, recipe, rates, seed):
    """SGD with Nesterov's momentum in the words of its formula, on the streams that a seed, an epoch and a step give."""
    model.train()
    parameters = dict(model.named_parameters())
    velocity = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    rates = iter(rates)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derived_seed(seed, "order", "train", epoch)))
        for step in range(len(data) // recipe.batch_size):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            stream = torch.Generator().manual_seed(derived_seed(seed, "crop", "train", epoch, step))
            inputs = cropped_by_hand(data.images[rows].float() / 255, recipe.crop_padding, stream)
            inputs = inputs.contiguous(memory_format=torch.channels_last)  # Dropout draws in the order of the memory.
            torch.manual_seed(derived_seed(seed, "dropout", "train", epoch, step))
            logits = model(inputs)
            loss = -(logits - logits.logsumexp(1, keepdim=True))[torch.arange(len(rows)), data.labels[rows]].mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            rate = recipe.learning_rate * next(rates)
            with torch.no_grad():
                for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                    gradient = gradient + recipe.weight_decay * parameter
                    velocity[name] = recipe.momentum * velocity[name] + gradient
                    parameter -= rate * (gradient + recipe.momentum * velocity[name])
    return model


@pytest.mark.parametrize("network", [TinyNetwork, Dropping])
def test_the_standard_trainer_is_the_training_written_out(network):
    # One-cycle over 6 steps: up to 1 in the first quarter, then down to 0; at steps 0..5 of 6.
    rates = [0, (1 / 6) / 0.25, (4 / 6) / 0.75, (3 / 6) / 0.75, (2 / 6) / 0.75, (1 / 6) / 0.75]
    found, _, _ = train(model=network(), seed=3)
    expected = trained_by_hand(network(), small_data(), RECIPE, rates, seed=3)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert not same_weights(found, network())


def test_another_seed_is_another_training():
    assert not same_weights(train(seed=0)[0], train(seed=1)[0])


@pytest.mark.parametrize(
    ("schedule", "progress", "rate"),
    [
        ("constant", 0.0, 1.0),
        ("constant", 0.99, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 1 / 3, 0.75),  # (1 + cos 60°) / 2
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("one-cycle", 0.0, 0.0),
        ("one-cycle", 0.125, 0.5),
        ("one-cycle", 0.25, 1.0),
        ("one-cycle", 0.625, 0.5),
        ("one-cycle", 1.0, 0.0),
        ("step", 0.0, 1.0),
        ("step", 0.499, 1.0),
        ("step", 0.5, 0.1),
        ("step", 0.75, 0.01),
        ("step", 1.0, 0.01),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, progress, rate):
    assert rate_at(Recipe(schedule=schedule), progress) == pytest.approx(rate, abs=1e-12)


def test_a_step_schedule_has_the_milestones_of_its_recipe():
    recipe = Recipe(schedule="step", milestones=(0.2, 0.4, 0.6))
    assert [round(rate_at(recipe, progress), 6) for progress in (0.1, 0.3, 0.5, 0.7)] == [1.0, 0.1, 0.01, 0.001]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "step"])
def test_every_group_gets_its_own_share_of_the_rate(schedule):
    recipe = replace(RECIPE, schedule=schedule)
    context = FitContext(recipe, dataset_info(4), 0, "key", "cpu", [], [])
    groups = [{"params": nn.Linear(2, 2).parameters()}, {"params": nn.Linear(2, 2).parameters(), "lr": 0.4}]
    optimizer = context.optimizer(groups)
    for progress in (0.5, 0.0, 0.125, 0.9):
        context.set_rate(optimizer, progress)
        rate = rate_at(recipe, progress)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * rate, 0.4 * rate])


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 1.0), (0.5, 0.55), (1.0, 0.1)])
def test_a_cosine_may_end_above_nothing(progress, rate):
    assert rate_at(Recipe(schedule="cosine"), progress, least=0.1) == pytest.approx(rate)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_a_recipe_names_its_optimiser(name, kind):
    context = FitContext(replace(RECIPE, optimizer=name, learning_rate=0.02, weight_decay=0.003), dataset_info(4), 0, "key", "cpu", [], [])
    optimizer = context.optimizer(nn.Linear(2, 2).parameters())
    assert type(optimizer) is kind
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.02, 0.003)


# Losses


def test_the_loss_of_a_row_is_the_cross_entropy_of_its_soft_targets():
    logits, targets = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.5, 0.5]])  # probabilities 1/4 and 3/4
    assert row_losses(logits, targets, False).item() == pytest.approx(-0.5 * math.log(1 / 4) - 0.5 * math.log(3 / 4))


def test_label_smoothing_moves_its_share_to_all_classes_alike():
    logits, targets = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 1.0]])
    # 0.2 of the target goes half to each class: (0.1, 0.9)
    assert row_losses(logits, targets, False, 0.2).item() == pytest.approx(-0.1 * math.log(1 / 4) - 0.9 * math.log(3 / 4))


def test_several_labels_have_the_mean_of_their_binary_losses():
    logits, targets = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1.0, 0.0]])
    assert row_losses(logits, targets, True).item() == pytest.approx((-math.log(1 / 2) - math.log(1 / 4)) / 2)


def test_rows_are_weighed_in_the_loss():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    inputs = torch.rand(3, 3, 2, 2)
    batch = Batch.of(inputs, torch.eye(2)[[0, 1, 1]]).replace(weights=torch.tensor([1.0, 0.0, 3.0]))
    context = FitContext(RECIPE, dataset_info(2), 0, "key", "cpu", [], [])
    losses = row_losses(model(inputs), batch.targets, False)
    assert context.loss(model, Plain(), batch, None).item() == pytest.approx(((losses[0] + 3 * losses[2]) / 4).item())


def test_an_augmenter_may_bring_its_own_forward_and_loss():
    class Own:
        def forward(self, model, batch, context):
            return model(batch.inputs) * 0

        def loss(self, logits, batch):
            return logits.sum(1) + 7

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    context = FitContext(RECIPE, dataset_info(2), 0, "key", "cpu", [], [])
    assert context.loss(model, Own(), Batch.of(torch.rand(3, 3, 2, 2), torch.eye(2)[[0, 1, 1]]), None).item() == 7


# Randomness


class Watching:
    """Keeps what it is given; with `draws`, uses its own stream a lot and returns other rows."""

    def __init__(self, draws=False):
        self.draws, self.seen = draws, []

    def __call__(self, model, batch, context):
        self.seen.append((batch.indices, batch.inputs, torch.random.get_rng_state(), context.progress))
        if not self.draws:
            return batch
        noise = torch.rand(batch.inputs.shape, generator=context.generator)
        return batch.append(noise, torch.arange(len(batch)))


def test_an_augmenter_that_draws_sees_the_same_images_as_one_that_does_not():
    quiet, loud = Watching(), Watching(draws=True)
    train(augmenter=quiet)
    train(augmenter=loud)
    assert len(quiet.seen) == len(loud.seen) == 6
    for one, other in zip(quiet.seen, loud.seen, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one[:3], other[:3], strict=True))


def test_every_image_is_seen_once_an_epoch_and_a_smaller_last_batch_is_left_out():
    watching = Watching()
    _, cost, _ = train(augmenter=watching, recipe=replace(RECIPE, batch_size=20))
    assert [len(indices) for indices, *_ in watching.seen] == [20, 20, 20, 20]
    for epoch in (watching.seen[:2], watching.seen[2:]):
        assert len(torch.cat([indices for indices, *_ in epoch]).unique()) == 40
    assert (cost["images"], cost["rows"], cost["steps"]) == (80, 80, 4)


def test_progress_is_the_share_of_the_training_that_is_done():
    watching = Watching()
    train(augmenter=watching)
    assert [progress for *_, progress in watching.seen] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])


def test_fewer_images_than_a_batch_are_one_smaller_batch():
    watching = Watching()
    train(augmenter=watching, data=small_data(12), recipe=replace(RECIPE, epochs=1))
    assert [len(indices) for indices, *_ in watching.seen] == [12]


def test_the_augmenters_stream_depends_on_key_epoch_and_step_alone():
    def seed(key, epoch, step):
        return contexts.step_context(nn.Identity(), dataset_info(), [], [], key=key, epoch=epoch, step=step).generator.initial_seed()

    assert seed("a", 0, 0) == seed("a", 0, 0)
    assert len({seed("a", 0, 0), seed("b", 0, 0), seed("a", 1, 0), seed("a", 0, 1)}) == 4


def test_images_that_may_not_be_mirrored_are_not():
    data = small_data()
    one_way = ArrayData(replace(data.info, flippable=False), data.images, data.labels)
    watching = Watching()
    train(augmenter=watching, data=one_way, recipe=replace(RECIPE, crop_padding=0))
    for indices, inputs, *_ in watching.seen:
        assert torch.equal(inputs, data.images[indices].float() / 255)


@pytest.mark.parametrize(
    "memory_format",
    [
        "channels_last",
        "contiguous",
    ],
)
def test_batches_have_the_memory_format_of_the_recipe(memory_format):
    watching = Watching()
    train(augmenter=watching, recipe=replace(RECIPE, epochs=1, memory_format=memory_format))
    wanted = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}[memory_format]
    assert all(inputs.is_contiguous(memory_format=wanted) for _, inputs, *_ in watching.seen)


# Passes and rows


def test_passes_are_counted_in_images():
    _, cost, _ = train()
    assert (cost["forward"], cost["backward"]) == (96, 96)  # 48 images, 2 epochs
    assert [epoch["forward"] for epoch in cost["epochs"]] == [48, 48]


def test_rows_an_augmenter_adds_are_counted_as_rows_and_passes_and_not_as_images():
    _, cost, _ = train(augmenter=Watching(draws=True))
    assert (cost["images"], cost["rows"], cost["forward"], cost["backward"]) == (96, 192, 192, 192)


def test_what_an_augmenter_forwards_for_itself_is_counted():
    class Predicting:
        def __call__(self, model, batch, context):
            context.predict(model, batch.inputs)
            return batch

    _, cost, _ = train(augmenter=Predicting())
    assert (cost["forward"], cost["backward"]) == (192, 96)


def test_what_an_augmenter_logs_is_averaged_over_the_epoch():
    class Logging:
        def __call__(self, model, batch, context):
            context.log(number=context.epoch * 10 + context.step)
            return batch

    _, _, context = train(augmenter=Logging())
    assert [epoch["number"] for epoch in context.log] == [1, 11]  # of 0, 1, 2 and of 10, 11, 12


# Equal passes


class Repeating(Watching):
    """Asks the network about every image some more times."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def __call__(self, model, batch, context):
        for _ in range(self.times):
            context.predict(model, batch.inputs)
        return super().__call__(model, batch, context)


EQUAL = replace(RECIPE, epochs=4, equal_passes=True)


def test_with_equal_passes_plain_training_is_what_it_was():
    plain, expected, _ = train(recipe=replace(EQUAL, equal_passes=False), model=Dropping())
    found, cost, _ = train(recipe=EQUAL, model=Dropping())
    assert same_weights(plain, found)
    assert (cost["images"], cost["forward"] + cost["backward"]) == (expected["images"], cost["budget"]) == (192, 384)


@pytest.mark.parametrize(("times", "steps"), [(2, 6), (4, 4), (1, 8)])
def test_with_equal_passes_a_costlier_augmenter_takes_fewer_steps(times, steps):
    """Twelve plain steps are 2 x 12 passes for each image of a batch; a step with n questions takes 2 + n of them."""
    watching = Repeating(times)
    _, cost, _ = train(recipe=EQUAL, augmenter=watching)
    assert len(watching.seen) == steps == 24 // (2 + times)
    assert cost["forward"] + cost["backward"] == cost["budget"] == 384


def test_with_equal_passes_the_last_step_may_go_beyond_by_itself_alone():
    watching = Repeating(5)
    _, cost, _ = train(recipe=EQUAL, augmenter=watching)
    assert len(watching.seen) == 4  # 24 / 7 is more than 3.
    assert cost["budget"] < cost["forward"] + cost["backward"] < cost["budget"] + 7 * 16


def test_with_equal_passes_progress_is_the_share_that_is_spent():
    watching = Repeating(4)
    train(recipe=EQUAL, augmenter=watching)
    assert [progress for *_, progress in watching.seen] == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4])


def test_with_equal_passes_the_learning_rate_falls_to_its_end():
    rates = []

    @dataclass(frozen=True)
    class Noting(Standard):
        def fit(self, model, data, augmenter, context):
            optimizer = context.optimizer(model.parameters())
            for epoch in context.epochs(model, data):
                for batch, step in context.batches(model, data, epoch):
                    augmenter(model, batch, step)
                    context.loss(model, augmenter, batch, step).backward()
                    context.set_rate(optimizer, step.progress)
                    rates.append(optimizer.param_groups[0]["lr"])

    train(recipe=replace(EQUAL, schedule="step", milestones=(0.5,)), augmenter=Repeating(4), trainer=Noting())
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_with_equal_passes_images_that_an_epoch_leaves_out_are_not_paid_for():
    _, cost, _ = train(recipe=replace(EQUAL, epochs=2, batch_size=20))
    assert (cost["images"], cost["budget"]) == (80, 160)


def test_with_equal_passes_a_stopped_training_ends_with_the_same_weights(tmp_path):
    class StopsRepeating(Repeating):
        def __call__(self, model, batch, context):
            if (context.epoch, context.step) == (1, 1):
                raise Stops
            return super().__call__(model, batch, context)

    whole, expected, _ = train(recipe=EQUAL, augmenter=Repeating(2))
    with pytest.raises(Stops):
        train(recipe=EQUAL, augmenter=StopsRepeating(2), folder=tmp_path)
    found, cost, _ = train(recipe=EQUAL, augmenter=Repeating(2), folder=tmp_path)
    assert same_weights(whole, found)
    assert (cost["steps"], cost["forward"]) == (expected["steps"], expected["forward"])
    assert train(recipe=EQUAL, augmenter=Repeating(2), folder=tmp_path)[1]["steps"] == cost["steps"]


# Validation and noise


def flipped(labels):
    return (labels + 1) % 4


def test_the_validation_part_is_balanced_and_disjoint_from_what_is_trained_on():
    data = training_data(small_data(), replace(RECIPE, validation=0.25), None, None)
    assert (len(data), len(data.validation)) == (36, 12)
    assert sorted(torch.cat([data.indices, data.validation]).tolist()) == list(range(48))
    assert small_data().labels[data.validation].bincount().tolist() == [3, 3, 3, 3]


def test_a_part_of_the_training_images_is_balanced_and_the_same_for_every_seed():
    data = training_data(small_data(), replace(RECIPE, train_images=16), None, None)
    assert small_data().labels[data.indices].bincount().tolist() == [4, 4, 4, 4]
    assert torch.equal(data.indices, training_data(small_data(), replace(RECIPE, train_images=16, epochs=9), None, None).indices)


def test_noise_comes_after_the_split_and_on_both_parts():
    recipe = replace(RECIPE, validation=0.25)
    clean, noisy = training_data(small_data(), recipe, None, None), training_data(small_data(), recipe, flipped, None)
    assert torch.equal(clean.indices, noisy.indices)
    assert torch.equal(clean.validation, noisy.validation)
    assert torch.equal(noisy.labels, (clean.labels + 1) % 4)


def test_the_network_is_trained_on_the_noisy_labels():
    class Remembering(Watching):
        def __call__(self, model, batch, context):
            self.seen.append((batch.indices, batch.labels))
            return batch

    remembering = Remembering()
    train(augmenter=remembering, noise=flipped)
    assert all(torch.equal(labels, (indices % 4 + 1) % 4) for indices, labels in remembering.seen)  # tiny_data's labels are 0, 1, 2, 3, 0, …


def test_images_held_out_are_never_trained_on():
    watching = Watching()
    recipe = replace(RECIPE, validation=0.25, batch_size=12)
    train(augmenter=watching, recipe=recipe)
    held_out = training_data(small_data(), recipe, None, None).validation
    assert not set(torch.cat([indices for indices, *_ in watching.seen]).tolist()) & set(held_out.tolist())


@dataclass(frozen=True)
class Keeping(Standard):
    """The standard trainer, keeping the weights at the end of each epoch."""

    kept: tuple = ()

    def fit(self, model, data, augmenter, context):
        optimizer = context.optimizer(model.parameters())
        for epoch in context.epochs(model, data, optimizer=optimizer):
            for batch, step in context.batches(model, data, epoch):
                optimizer.zero_grad()
                context.loss(model, augmenter, batch, step).backward()
                optimizer.step()
            self.kept[0].append({name: tensor.clone() for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize("report", ["last", "best"])
def test_the_reported_network_is_the_last_or_the_best_on_the_validation_part(report):
    kept = []
    recipe = replace(RECIPE, validation=0.5, epochs=5, batch_size=8, report=report)
    model, cost, _ = train(recipe=recipe, trainer=Keeping((kept,)))
    held_out = training_data(small_data(), recipe, None, None).validation
    right = []
    for weights in kept:
        other = TinyNetwork().eval()
        other.load_state_dict(weights)
        with torch.no_grad():
            right.append((other(small_data().images[held_out].float() / 255).argmax(1) == held_out % 4).float().mean().item())
    assert [epoch["validation_accuracy"] for epoch in cost["epochs"]] == pytest.approx(right)
    assert right.index(max(right)) not in (0, 4), "choose a seed for which best and last differ"
    chosen = kept[right.index(max(right))] if report == "best" else kept[-1]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in chosen.items())
    assert cost["forward"] == 5 * 24  # the validation forwards are no cost of the method


def test_the_validation_accuracy_of_several_labels_is_the_share_of_classes_called_right():
    data = small_data()
    data = ArrayData(replace(data.info, multi_label=True), data.images, torch.eye(4)[data.labels] + torch.eye(4)[(data.labels + 1) % 4])
    recipe = replace(RECIPE, epochs=1, batch_size=7, validation=0.25)
    model, cost, _ = train(recipe=recipe, data=data)
    held_out = training_data(data, recipe, None, None).validation
    with torch.no_grad():
        right = (model(data.images[held_out].float() / 255) > 0) == (data.labels[held_out] > 0)
    assert cost["epochs"][0]["validation_accuracy"] == pytest.approx(right.float().mean().item())


def test_a_validation_part_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(BenchError, match="validation"):
        train(recipe=replace(RECIPE, validation=0.99))


# Diverging


def test_a_loss_that_is_no_number_ends_the_training_and_names_the_epoch():
    class Poison:
        def __call__(self, model, batch, context):
            return batch.replace(weights=batch.weights * torch.nan) if (context.epoch, context.step) == (1, 2) else batch

    with pytest.raises(TrainingDiverged, match="the loss is nan in epoch 2 of 3"):
        train(recipe=replace(RECIPE, epochs=3), augmenter=Poison())


def test_a_training_that_blows_up_diverges():
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        train(recipe=replace(RECIPE, epochs=3, learning_rate=1e30))


# Going on after a stop


class Stops(Exception):
    pass


class StopsAt(Watching):
    """Raises at the given epoch and step."""

    def __init__(self, epoch, step):
        super().__init__()
        self.at = epoch, step

    def __call__(self, model, batch, context):
        if (context.epoch, context.step) == self.at:
            raise Stops
        return super().__call__(model, batch, context)


LONGER = replace(RECIPE, epochs=4, validation=0.25, report="best", batch_size=12)


@pytest.mark.parametrize("recipe", [LONGER, replace(LONGER, report="last", optimizer="adamw", learning_rate=0.01)], ids=["best, sgd", "last, adamw"])
def test_a_training_stopped_after_any_epoch_ends_with_the_same_weights(tmp_path, recipe):
    whole, expected, _ = train(recipe=recipe, model=Dropping())
    for epoch in range(1, 4):
        folder = tmp_path / str(epoch)
        folder.mkdir()
        with pytest.raises(Stops):
            train(recipe=recipe, model=Dropping(), augmenter=StopsAt(epoch, 1), folder=folder)
        again = Watching()
        found, cost, _ = train(recipe=recipe, model=Dropping(), augmenter=again, folder=folder)
        assert len(again.seen) == 3 * (4 - epoch)
        assert same_weights(whole, found)
        assert [log["loss"] for log in cost["epochs"]] == [log["loss"] for log in expected["epochs"]]
        assert (cost["images"], cost["forward"], cost["backward"]) == (expected["images"], expected["forward"], expected["backward"])


def test_a_training_stopped_behind_its_last_epoch_is_not_trained_again(tmp_path):
    whole, _, _ = train(recipe=LONGER, folder=tmp_path)
    again = Watching()
    found, cost, _ = train(recipe=LONGER, augmenter=again, folder=tmp_path)
    assert again.seen == []
    assert same_weights(whole, found)
    assert cost["images"] == 4 * 36


class Growing:
    """Adds four white images of class 0 after each epoch."""

    def __init__(self):
        self.sizes = []

    def __call__(self, model, batch, context):
        return batch

    def end_epoch(self, model, data: TrainingData, context):
        self.sizes.append(len(data))
        white = torch.full((4 * (context.epoch + 1), 3, 8, 8), 255, dtype=torch.uint8)
        return ArrayData(data.info, white, torch.zeros(len(white), dtype=torch.long))


def test_images_made_after_an_epoch_join_the_next_one():
    growing = Growing()
    _, cost, _ = train(recipe=replace(RECIPE, epochs=3, batch_size=4), augmenter=growing)
    assert growing.sizes == [48, 52, 56]
    assert [epoch["images"] for epoch in cost["epochs"]] == [48, 52, 56]


def test_added_images_come_with_their_own_inputs_and_labels():
    extra = ArrayData(dataset_info(4, (8, 8), 3), torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), torch.tensor([3, 2]))
    data = replace(training_data(small_data(8), RECIPE, None, None), extra=extra)
    assert data.positions().tolist() == list(range(10))
    inputs = data.inputs(torch.tensor([9, 1, 8]))
    assert torch.equal(inputs[0], torch.ones(3, 8, 8))
    assert torch.equal(inputs[1], small_data(8).images[1].float() / 255)
    assert data.targets(torch.tensor([9, 1, 8])).argmax(1).tolist() == [2, 1, 3]


def test_a_training_with_added_images_stopped_after_an_epoch_ends_with_the_same_weights(tmp_path):
    class GrowingAndStopping(Growing):
        def __call__(self, model, batch, context):
            if (context.epoch, context.step) == (2, 0):
                raise Stops
            return batch

    recipe = replace(RECIPE, epochs=3)
    whole, _, _ = train(recipe=recipe, augmenter=Growing())
    with pytest.raises(Stops):
        train(recipe=recipe, augmenter=GrowingAndStopping(), folder=tmp_path)
    assert same_weights(whole, train(recipe=recipe, augmenter=Growing(), folder=tmp_path)[0])
