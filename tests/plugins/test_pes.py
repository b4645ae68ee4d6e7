"""PES: numbers worked out by hand, what learns in which phase, and trainings that can be taken up again to the bit."""

import math

import pytest
import torch
from fitting_cases import Stop, Trained, coloured, resumed, same
from torch import nn

from bench import testing
from bench.errors import InvalidValue
from bench.interfaces import Layer
from bench_plugins.fitting import Standard
from bench_plugins.lpa3 import LPA3
from bench_plugins.mixing import Mixup
from bench_plugins.pes import (
    Mix,
    Pes,
    alone,
    batch_sizes,
    class_weights,
    endless,
    groups,
    late_parts,
    parameters_of,
    squared_error,
    weighted_cross_entropy,
)
from bench_plugins.plain import Plain

SMALL = {"warm_up": 0.25, "refinements": (1,), "ramp": 0.25}
CONFIDENT = {**SMALL, "form": "confident", "refinements": (2, 1)}


def wrong_labels(labels):
    """A third of the labels moved on by one."""
    return torch.where(torch.arange(len(labels)) % 3 == 0, (labels + 1) % 4, labels)


def noisy(trainer, augmenter=None, **options):
    return Trained(trainer, augmenter or Plain(), noise=wrong_labels, **options)


# Numbers


def test_a_class_weighs_the_mean_count_over_its_own_and_an_absent_one_nothing():
    """The mean of 4, 2 and 6 is 4."""
    assert torch.allclose(class_weights(torch.tensor([4.0, 2.0, 0.0, 6.0])), torch.tensor([1.0, 2.0, 0.0, 2 / 3]))


def test_class_weights_are_cut_off_at_the_cap():
    """The mean of 1 and 9 is 5."""
    assert class_weights(torch.tensor([1.0, 9.0]), cap=3.0).tolist() == pytest.approx([3.0, 5 / 9])
    assert class_weights(torch.tensor([1.0, 9.0])).tolist() == pytest.approx([5.0, 5 / 9])


@pytest.mark.parametrize(("epoch", "share"), [(34.0, 0.0), (35.0, 0.0), (43.0, 0.5), (51.0, 1.0), (299.0, 1.0)])
def test_the_ramp_runs_over_sixteen_of_three_hundred_epochs_from_the_35th(epoch, share):
    step = testing.step_context(testing.TinyNetwork(), epochs=300, progress=epoch / 300)
    assert Pes().ramp_at(step) == pytest.approx(share)


@pytest.mark.parametrize(("epoch", "alpha"), [(35, 4.0), (149, 4.0), (150, 0.75), (299, 0.75)])
def test_alpha_changes_in_the_middle_of_the_training(epoch, alpha):
    assert Pes().alpha_at(testing.step_context(testing.TinyNetwork(), epoch=epoch, epochs=300)) == alpha


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "sizes"), [(30000, 20000, (77, 51)), (20000, 30000, (64, 64)), (25000, 25000, (64, 64)), (49999, 1, (127, 1))]
)
def test_a_batch_is_split_as_published(labelled, unlabelled, sizes):
    assert batch_sizes(labelled, unlabelled, 128) == sizes


def test_the_published_shares_are_the_published_epochs():
    assert round(Pes().warm_up * 300) == 35
    assert round(0.15 * 200) == 30  # The confident form's.


def test_the_losses_by_hand():
    """p = (3/4, 1/4); t = (1/2, 1/2), w = (1, 3): (ln(4/3) + 3 ln 4) / 2; squared error (1/16 + 1/16) / 2."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    targets, weights = torch.tensor([[0.5, 0.5]]), torch.tensor([1.0, 3.0])
    assert weighted_cross_entropy(logits, targets, weights, torch.ones(1)).item() == pytest.approx((math.log(4 / 3) + 3 * math.log(4)) / 2)
    assert squared_error(logits, targets).item() == pytest.approx(1 / 16)


def test_guesses_are_the_sharpened_mean_of_both_views():
    """(0.6, 0.4) and (0.8, 0.2) have the mean (0.7, 0.3); squared and normalised, (0.49, 0.09) / 0.58."""

    class Given(nn.Module):
        def forward(self, inputs):
            return inputs

    context = noisy(Pes()).context
    found = Pes().guesses(Given(), torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.8, 0.2]]).log(), context)
    assert torch.allclose(found, torch.tensor([[0.49, 0.09], [0.49, 0.09]]) / 0.58)


def test_a_row_keeps_at_least_half_of_itself_and_inputs_and_targets_are_mixed_alike():
    values = torch.arange(10.0).view(10, 1)
    for seed in range(20):
        mix = Mix.drawn(0.75, 10, torch.Generator().manual_seed(seed))
        assert 0.5 <= mix.share <= 1
        assert torch.allclose(mix(values), mix.share * values + (1 - mix.share) * values[mix.partners])
        assert torch.allclose(mix(values.repeat(1, 3)), mix(values).expand(-1, 3))


def test_a_list_starts_over_when_it_ends():
    positions = torch.tensor([3, 5, 8])
    rows = endless(positions, 8, "labelled", 0, noisy(Pes()).context)
    assert len(rows) == 8
    assert sorted(rows[:3].tolist()) == sorted(rows[3:6].tolist()) == [3, 5, 8]


# Which layers


def names_of(model, modules):
    return [name for name, module in model.named_modules() if any(module is each for each in modules)]


def test_late_parts_shrink_towards_the_classifier():
    model = testing.TinyNetwork()
    assert [names_of(model, part) for part in late_parts(model, model.layers, 1)] == [["fc"]]
    assert [names_of(model, part) for part in late_parts(model, model.layers, 2)] == [["second.0", "second.1", "fc"], ["fc"]]
    assert late_parts(model, model.layers, 0) == []


def test_layers_behind_the_last_stage_start_afresh_with_the_last_block():
    """A pre-activation network has a batch norm between its last block and the classifier."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    parts = late_parts(model, [Layer("0", model[0]), Layer("1", model[1])], 2)
    assert [names_of(model, part) for part in parts] == [["1", "2", "4"], ["4"]]


def test_more_refinements_than_stages_are_refused():
    model = testing.TinyNetwork()
    with pytest.raises(InvalidValue, match="2 stages"):
        late_parts(model, model.layers, 3)


def test_every_parameter_is_in_one_group_and_the_late_ones_in_the_last():
    model = testing.TinyNetwork()
    late = late_parts(model, model.layers, 2)[0]
    kept, renewed = (group["params"] for group in groups(model, None, late))
    assert {id(each) for each in [*kept, *renewed]} == {id(each) for each in model.parameters()}
    assert len(kept) + len(renewed) == len(list(model.parameters()))
    assert {id(each) for each in renewed} == {id(each) for each in parameters_of(late)}


def learning(optimizer):
    """The parameters whose rate is not zero."""
    return {id(parameter) for group in optimizer.param_groups if group["lr"] > 0 for parameter in group["params"]}


def refined(trainer, **options):
    """A training right after its refinement: model, late parts, optimiser, and the state before."""
    training = noisy(trainer, **options)
    model, context = training.model.train(), training.context
    late = late_parts(model, context.stages, len(trainer.refinements))
    optimizer = context.optimizer(groups(model, None, late[0]))
    trainer.learn(model, training.data, Plain(), optimizer, 0, context)  # So that there is momentum.
    before = training.weights
    trainer.refine(model, training.data, Plain(), optimizer, late, 1, context)
    context.set_rate(optimizer, 0.3)
    return model, late, optimizer, before


@pytest.mark.parametrize("variant", ["fixed", "reference"])
def test_the_reference_loses_the_renewed_layers_from_its_optimiser_and_the_fixed_one_does_not(variant):
    model, late, optimizer, _ = refined(Pes(**CONFIDENT | {"variant": variant}))
    every, renewed = {id(each) for each in model.parameters()}, {id(each) for each in parameters_of(late[0])}
    assert every - learning(optimizer) == (renewed if variant == "reference" else set())


@pytest.mark.parametrize("variant", ["fixed", "reference"])
def test_the_refinement_moves_no_weight_in_front_and_statistics_only_in_the_reference(variant):
    model, _, _, before = refined(Pes(**CONFIDENT | {"variant": variant}))
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    in_front = {name for name in changed if name.startswith("first")}
    statistics = {"first.1.running_mean", "first.1.running_var", "first.1.num_batches_tracked"}
    assert in_front == (statistics if variant == "reference" else set())
    assert {"second.0.weight", "fc.weight", "fc.bias"} <= changed


def test_renewed_layers_have_no_momentum_of_the_old_ones():
    _, late, optimizer, _ = refined(Pes(**CONFIDENT))
    assert not any(parameter in optimizer.state for parameter in parameters_of(late[0]))
    assert any("momentum_buffer" in state for state in optimizer.state.values())


def test_every_layer_is_trainable_and_in_training_mode_again_after_the_refinement():
    model, *_ = refined(Pes(**CONFIDENT))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_alone_gives_everything_back_when_something_fails():
    def fail():
        with alone(model, [model.fc], still=True):
            seen.append([name for name, each in model.named_parameters() if each.requires_grad])
            seen.append(model.first[1].training)
            raise Stop

    seen, model = [], testing.TinyNetwork()
    model.first[0].bias.requires_grad_(False)
    with pytest.raises(Stop):
        fail()
    assert seen == [["fc.weight", "fc.bias"], False]
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["first.0.bias"]
    assert model.first[1].training


@pytest.mark.parametrize("variant", ["fixed", "reference"])
def test_the_published_defect_keeps_the_classifier_of_the_refinement(variant):
    """From the epoch after the refinement on, the classifier's weights only move if the optimiser knows them."""
    seen = {}

    class Watching(Plain):
        def end_epoch(self, model, data, context):
            seen[context.epoch] = model.fc.weight.detach().clone()

    noisy(Pes(**SMALL | {"form": "confident", "variant": variant}), Watching()).run()
    assert torch.equal(seen[1], seen[3]) == (variant == "reference")
    assert not torch.equal(seen[0], seen[1])


# Phases


def test_the_warm_up_is_the_plain_training():
    """Until the first refinement the weights are those of `standard` under a constant rate."""
    recipe = {"epochs": 2, "schedule": "constant"}
    plain = noisy(Standard(), **recipe).run()
    warming = noisy(Pes(warm_up=1.0, refinements=(1,)), **recipe).run()
    assert same(plain.weights, warming.weights)


def test_confident_images_are_those_whose_label_the_network_gives_them():
    """A network that always says 2."""
    model = testing.TinyNetwork()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    training = noisy(Pes(), model=model)
    sure = Pes().confident(model, training.data, 0, training.context)
    assert torch.equal(sure, wrong_labels(torch.arange(64) % 4) == 2)
    assert training.context.passes.forward == 0  # Only `fit` counts.


def test_labelled_rows_come_first_and_are_confident():
    """Each batch of 16: as many confident images first as the split says, then the others."""
    seen = []

    class Spy(Pes):
        def mixmatch_loss(self, model, batch, labelled_rows, augmenter, norms, weights, step, context):
            sure = Pes.confident(self, model, training.data, step.epoch, context) if step.step == 0 else seen[-1][2]
            seen.append((batch.indices, labelled_rows, sure))
            return super().mixmatch_loss(model, batch, labelled_rows, augmenter, norms, weights, step, context)

    training = noisy(Spy(**SMALL), epochs=3)
    training.run()
    assert len(seen) == 2 * 4
    for indices, labelled_rows, sure in seen:
        assert len(indices) == 16
        expected = batch_sizes(int(sure.sum()), int((~sure).sum()), 16)
        assert labelled_rows == expected[0]
        assert sure[indices[:labelled_rows]].all()
        assert not sure[indices[labelled_rows:]].any()


@pytest.mark.parametrize("says", [0, None])
def test_an_epoch_without_or_with_nothing_but_confident_images_is_a_plain_one(says):
    class Sorted(Pes):
        def confident(self, model, data, epoch, context):
            return torch.full((len(data),), says is not None)

    training = noisy(Sorted(**SMALL), epochs=3).run()
    assert all("unlabelled_error" not in epoch for epoch in training.log)
    assert training.log[-1]["rows"] == 64


def test_lpa3_attacks_both_views_of_the_unlabelled_images_and_nothing_else():
    class Watched(LPA3):
        def attack(self, model, inputs, context):
            attacked.append((context.epoch, len(inputs)))
            return super().attack(model, inputs, context)

    class Spy(Pes):
        def mixmatch_loss(self, model, batch, labelled_rows, *rest):
            unlabelled.append(len(batch) - labelled_rows)
            return super().mixmatch_loss(model, batch, labelled_rows, *rest)

    attacked, unlabelled = [], []
    training = noisy(Spy(**SMALL), Watched(iterations=1), epochs=3).run()
    assert [epoch for epoch, _ in attacked] == [1] * 4 + [2] * 4
    assert [rows for _, rows in attacked] == [2 * rows for rows in unlabelled]
    assert training.log[1]["rows"] == 64 + 4 * 32 + sum(2 * rows for rows in unlabelled[:4])  # Refinement, mixed rows, twins.


def test_other_augmenters_act_on_labelled_rows_throughout():
    class Watched(Plain):
        def __call__(self, model, batch, context):
            seen.append((context.epoch, len(batch)))
            return batch

    seen = []
    with pytest.raises(Stop):
        noisy(Pes(**SMALL), Watched(), stop=2).run()
    assert [rows for epoch, rows in seen if epoch == 0] == [16] * 4
    assert [rows for epoch, rows in seen if epoch == 1][:4] == [16] * 4  # The refinement.
    mixed = [rows for epoch, rows in seen if epoch == 1][4:]
    assert len(mixed) == 4
    assert all(16 <= rows < 32 for rows in mixed)  # Two views of the labelled images, half of a batch of 16 or more.


def test_passes_are_those_of_the_phases():
    """Epoch 0: 64. Epoch 1: 64 refined, 128 to sort, 2 · 64 mixed, two views of each image without a label."""
    unlabelled = []

    class Spy(Pes):
        def mixmatch_loss(self, model, batch, labelled_rows, *rest):
            unlabelled.append(len(batch) - labelled_rows)
            return super().mixmatch_loss(model, batch, labelled_rows, *rest)

    log = noisy(Spy(**SMALL), epochs=3).run().log
    assert (log[0]["forward"], log[0]["backward"]) == (64, 64)
    assert log[1]["forward"] == 64 + 128 + 128 + 2 * sum(unlabelled[:4])
    assert log[1]["backward"] == 64 + 128


# Trainings


CASES = {
    "semi": (Pes(**SMALL), Plain(), 2),
    "semi, stopped at the refinement": (Pes(**SMALL), Plain(), 1),
    "reference": (Pes(variant="reference", **SMALL), Plain(), 3),
    "confident": (Pes(**CONFIDENT), Plain(), 3),
    "lpa3": (Pes(**SMALL), LPA3(iterations=1), 3),
}


@pytest.mark.parametrize("case", CASES)
def test_resuming_gives_the_same_weights_to_the_bit(case, tmp_path):
    trainer, augmenter, stop = CASES[case]
    whole = noisy(trainer, augmenter).run()
    again = resumed(trainer, augmenter, tmp_path, stop, noise=wrong_labels)
    assert same(whole.weights, again.weights)
    assert [epoch["loss"] for epoch in whole.log] == [epoch["loss"] for epoch in again.log]


def test_both_forms_learn_from_labels_of_which_a_third_is_wrong():
    clean = coloured()
    usual = {"warm_up": 0.5, "refinement_rate": 0.03}  # A class that the new classifier has not learnt yet is never confident.
    for trainer in (Pes(**SMALL | usual | {"refinements": (4,)}, lambda_u=1.0), Pes(**CONFIDENT | usual | {"refinements": (4, 2)})):
        model = noisy(trainer, epochs=8, source=clean).run().model
        with torch.no_grad():
            right = model.eval()(clean.images.float() / 255).argmax(1) == clean.labels
        assert right.float().mean() > 0.9


@pytest.mark.parametrize("method", ["forward", "loss"])
def test_mixmatch_refuses_augmenters_with_a_loss_or_forward_of_their_own(method):
    augmenter = type("Own", (Plain,), {"name": "own", method: lambda *arguments: None})()
    with pytest.raises(InvalidValue, match="pes-confident"):
        noisy(Pes(), augmenter).run()


def test_mixup_can_be_crossed_with_both_forms():
    for trainer in (Pes(**SMALL), Pes(**CONFIDENT)):
        assert math.isfinite(noisy(trainer, Mixup(), epochs=3).run().log[-1]["loss"])


def test_data_with_several_labels_are_refused():
    training = noisy(Pes())
    training.context.info = testing.dataset_info(multi_label=True)
    with pytest.raises(InvalidValue, match="one label per image"):
        training.run()
