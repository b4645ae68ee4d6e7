"""Carrying a plan out: skipping, failing, forgetting, being killed, and never changing a number."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import tiny_parts
import torch

from bench import api, explain, observers, pictures, results, runner
from bench.errors import DataError, StoreError
from bench.interfaces import ArrayData, Curve
from bench.store import Store, read_tensors, tensors_digest, write_tensors
from bench.testing import tiny_data

MAPS_AND_NETWORK = {"metrics": ["deletion", "inside", "accuracy"], "explainers": ["slope", "random"]}


def by_key(outcome):
    return {line["key"]: line for line in outcome.lines}


def all_same(first, second, tolerance=0.0):
    return first.keys() == second.keys() and all(results.same(first[key], second[key], tolerance) for key in first)


def values(outcome):
    """The values by what stands before them in a table: `none x slope: inside`."""
    return {results.describe(line): line["value"] for line in outcome.lines}


def loaded_parts():
    """The module that the registry's parts come from: the plugin file was loaded from its path, not imported by its name."""
    return sys.modules["bench_plugin_tiny_parts"]


# What is done, and in what order


def test_every_job_is_done_once_and_every_score_is_a_line(ran, planned, store):
    plan = planned(**MAPS_AND_NETWORK)
    outcome = ran(**MAPS_AND_NETWORK)
    assert sorted(store.finished()) == sorted(job.key for job in plan.jobs)
    assert (outcome.done, outcome.skipped, outcome.failures) == (8, 0, {})  # 1 training, 2 explanations, 2 x 2 + 1 scores
    assert sorted(by_key(outcome)) == sorted(job.key for job in plan.scorings)
    assert runner.pending(plan, store) == []


def test_a_second_run_does_nothing_and_says_the_same(ran, store):
    first = ran(**MAPS_AND_NETWORK)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    second = ran(**MAPS_AND_NETWORK)
    assert (second.done, second.skipped) == (0, 8)
    assert second.lines == first.lines
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()} == before


def test_a_larger_run_does_only_what_is_new(ran):
    ran(explainers=["random"])
    outcome = ran(explainers=["random", "slope"])
    assert outcome.done == 2  # one explanation, one score
    assert len(outcome.lines) == 2


def test_the_values_of_a_line_are_those_of_the_stored_rows(ran, store):
    outcome = ran(metrics=["inside", "accuracy"])
    for line in outcome.lines:
        rows = store.tensors(line["key"], "rows")["values"]
        assert line["value"] == pytest.approx(float(rows.mean()), abs=0)
        assert line["n"] == len(rows) == {"inside": 8, "accuracy": 24}[line["metric"]["label"]]


def test_the_score_is_that_of_the_stored_maps_and_the_data(ran, store, planned):
    """`inside` worked out again from the maps in the store and the masks of the data."""
    line = next(iter(ran(metrics="inside", explainers="slope").lines))
    plan = planned(metrics="inside", explainers="slope")
    maps = store.tensors(line["explaining"], "attributions")
    test = plan.trainings[0].data.test
    means = [maps["attributions"][row, 0][test[int(index)].masks[0]].mean() for row, index in enumerate(maps["indices"])]
    assert line["value"] == pytest.approx(float(torch.stack(means).mean()), rel=1e-6)


# Numbers that nothing else may change


@pytest.fixture(scope="module")
def with_batches(registry, tmp_path_factory):
    """The same run with evaluation batches of 1, 7 and 64 images."""
    from bench import plan as plans
    from bench import spec as specs

    values = {
        "datasets": "tiny",
        "models": "tiny-net",
        "trainers": "standard",
        "augmenters": "shade",
        "explainers": ["slope", "random", "gradcam", "far-from-mean"],
        "metrics": ["deletion", "insertion", "drop", "inside", "accuracy", "accuracy-under-noise", "passes-forward", "passes-backward"],
        "images": 15,
        "floors": False,
        "recipe": {"epochs": 2, "batch_size": 16, "crop_padding": 2},
    }
    outcomes = {}
    for size in (1, 7, 64):
        plan = plans.make(specs.make(values), registry, None, "cpu")
        outcomes[size] = runner.execute(plan, Store(tmp_path_factory.mktemp(f"batches-{size}")), runner.Settings(batch_size=size))
        assert outcomes[size].failures == {}
    return outcomes


@pytest.mark.parametrize("size", [1, 7])
def test_the_evaluation_batch_changes_no_number(with_batches, size):
    expected, found = by_key(with_batches[64]), by_key(with_batches[size])
    assert expected.keys() == found.keys()
    pairs = [(expected[key], found[key]) for key in expected if not expected[key]["metric"]["label"].startswith("passes")]
    assert {results.describe(one): (one["value"], other["value"]) for one, other in pairs if not results.same(one, other, 1e-6)} == {}


@pytest.mark.parametrize("size", [1, 7])
def test_the_evaluation_batch_changes_no_count_of_passes(with_batches, size):
    expected, found = ({name: value for name, value in values(with_batches[each]).items() if "passes" in name} for each in (64, size))
    assert expected == found


def test_the_order_of_lists_changes_no_number(ran, tmp_path):
    one = ran(Store(tmp_path / "one"), augmenters=["none", "mixup"], explainers=["random", "slope"], metrics=["deletion", "drop"])
    other = ran(Store(tmp_path / "other"), augmenters=["mixup", "none"], explainers=["slope", "random"], metrics=["drop", "deletion"])
    assert all_same(by_key(one), by_key(other))


def test_other_cells_change_no_number(ran, tmp_path):
    alone = ran(Store(tmp_path / "alone"), augmenters="mixup", explainers="slope", metrics="drop")
    amid = ran(Store(tmp_path / "amid"), augmenters=["none", "shade", "mixup"], explainers=["random", "slope"], metrics=["deletion", "drop"], seeds=2)
    assert all_same(by_key(alone), {key: line for key, line in by_key(amid).items() if key in by_key(alone)})


def test_a_metric_about_the_floor_does_not_depend_on_the_order_of_augmenters(ran, tmp_path):
    found = [
        values(ran(Store(tmp_path / names), augmenters=names.split(), metrics="passes-over-floor", explainers="random"))
        for names in ("none shade", "shade none")
    ]
    assert None not in found[0].values()
    assert found[0] == found[1]


@pytest.mark.parametrize("stage", ["score", "explain", "train"])
def test_a_forgotten_job_is_done_again_with_the_same_number(ran, store, stage):
    first = ran(**MAPS_AND_NETWORK)
    kept = {key: store.record(key) for key in store.finished()}
    for key in [key for key, record in kept.items() if record["stage"] == stage]:
        store.remove(key)
    second = ran(**MAPS_AND_NETWORK)
    assert second.done == {"score": 5, "explain": 2, "train": 1}[stage]
    assert all_same(by_key(first), by_key(second))
    assert {key: record.get("weights") for key, record in kept.items()} == {key: store.record(key).get("weights") for key in store.finished()}


def test_everything_forgotten_but_the_plan_gives_the_same_numbers_elsewhere(ran, tmp_path):
    here, there = (ran(Store(tmp_path / name), augmenters=["shade", "mixup"], explainers="slope") for name in ("here", "there"))
    assert all_same(by_key(here), by_key(there))


def test_two_runs_in_one_process_do_not_share_a_random_stream(ran, tmp_path):
    plain = ran(Store(tmp_path / "plain"), augmenters="shade", explainers=["random", "slope"])
    torch.manual_seed(999)
    torch.rand(17)
    stirred = ran(Store(tmp_path / "stirred"), augmenters="shade", explainers=["random", "slope"])
    assert all_same(by_key(plain), by_key(stirred))


def test_trainings_with_one_seed_start_from_the_same_weights(ran, planned, store):
    """A training of one step, at the rate 0 with which a cycle begins, keeps the weights that it starts with."""
    one_step = {"augmenters": ["none", "shade"], "seeds": 2, "recipe": {"batch_size": 64}}
    ran(**one_step)
    weights = {(job.augmenter.label, job.seed): store.tensors(job.key, "weights")["fc.weight"] for job in planned(**one_step).trainings}
    assert torch.equal(weights["none", 0], weights["shade", 0])
    assert torch.equal(weights["none", 1], weights["shade", 1])
    assert not torch.equal(weights["none", 0], weights["none", 1])


# Failures


def test_a_failing_explainer_stops_neither_the_others_nor_the_network_scores(ran, store):
    outcome = ran(explainers=["breaks", "slope"], metrics=["inside", "accuracy"])
    assert set(values(outcome)) == {"none x slope: inside", "none: accuracy"}
    assert list(outcome.failures.values()) == ["Broken: the explainer broke"]
    (key,) = outcome.failures
    assert "Traceback" in store.failure(key).read_text()
    assert 'raise Broken("the explainer broke")' in store.failure(key).read_text()


def test_a_failing_metric_does_not_stop_those_scored_with_it(ran, store, tmp_path):
    outcome = ran(metrics=["inside", "breaks", "deletion"])
    assert set(values(outcome)) == {"none x random: inside", "none x random: deletion"}
    assert list(outcome.failures.values()) == ["Broken: the metric broke"]
    assert values(outcome) == values(ran(Store(tmp_path / "without"), metrics=["inside", "deletion"]))


def test_a_failing_training_does_not_stop_the_others(ran, store):
    outcome = ran(augmenters=["breaks", "none"], metrics=["inside", "accuracy"])
    assert {line["augmenter"]["label"] for line in outcome.lines} == {"none"}
    assert len(outcome.lines) == 2
    assert list(outcome.failures.values()) == ["Broken: the augmenter broke"]
    assert len(list((store.root / "failed").glob("*.txt"))) == 1


def test_a_failed_job_is_tried_again_and_then_its_traceback_is_gone(ran, store, monkeypatch):
    first = ran(metrics="breaks")
    assert ran(metrics="breaks").failures == first.failures
    monkeypatch.setattr(loaded_parts().BreakingMetric, "__call__", tiny_parts.Inside.__call__)
    mended = ran(metrics="breaks")
    assert (mended.failures, len(mended.lines)) == ({}, 1)
    assert list((store.root / "failed").iterdir()) == []


def test_a_failed_job_is_left_alone_when_told_so(ran):
    first = ran(metrics="breaks")
    second = ran(settings=runner.Settings(retry_failed=False), metrics="breaks")
    assert second.done == 0
    assert first.failures.keys() == second.failures.keys()
    assert "the metric broke" in next(iter(second.failures.values()))


def test_a_metric_that_says_nothing_of_any_image_is_stored_as_missing(ran, store, monkeypatch):
    monkeypatch.setattr(loaded_parts().Inside, "__call__", lambda self, model, explained, context: torch.full((len(explained),), torch.nan))
    outcome = ran(metrics="inside")
    (line,) = outcome.lines
    assert (line["value"], line["interval"], line["n"], line["unscored"]) == (None, None, 0, 8)


def test_a_value_in_the_log_that_is_no_number_does_not_lose_the_training(ran, monkeypatch):
    def logs_nan(self, model, batch, context):
        context.log(share=float("nan"))
        return batch

    monkeypatch.setattr(loaded_parts().Shade, "__call__", logs_nan)
    assert ran(augmenters="shade").failures == {}


def test_a_point_of_a_curve_that_is_no_number_does_not_lose_the_score(ran, monkeypatch):
    monkeypatch.setattr(loaded_parts().LogitSum, "curve", lambda self, rows: Curve([0.0, 1.0], [0.0, float("nan")], "x", "y"))
    (line,) = ran(metrics="logit-sum").lines
    assert line["curve"]["y"] == [0.0, None]


# Damage


def test_other_weights_than_those_recorded_are_refused(ran, store, planned):
    ran(explainers="random")
    (training,) = planned().trainings
    file = store.path(training.key) / "weights.safetensors"
    weights = read_tensors(file)
    write_tensors(file, {**weights, "fc.bias": weights["fc.bias"] + 1e-6})
    with pytest.raises(StoreError, match="are not those of its record"):
        ran(explainers="slope")


def rewrite_training(store, key):
    """Another training's outcome under the same key, whole and consistent in itself, as from another machine."""
    record, weights = store.record(key), store.tensors(key, "weights")
    weights = {**weights, "fc.weight": 2 * weights["fc.weight"]}
    store.remove(key)
    store.put(key, {**record, "weights": tensors_digest(weights)}, {"weights": weights})


def test_what_rests_on_other_weights_is_done_again(ran, store, planned, tmp_path):
    """Maps and scores that were made with other weights than the stored network's are never mixed with its own."""
    metrics = ["deletion", "inside", "accuracy", "logit-sum"]
    old = ran(explainers="slope", metrics=metrics[:3])
    (training,) = planned().trainings
    rewrite_training(store, training.key)
    new = ran(explainers="slope", metrics=metrics)
    assert {line["weights"] for line in new.lines} == {store.record(training.key)["weights"]}
    assert new.done == 5  # the maps and four scores
    assert values(new)["none x slope: deletion"] != values(old)["none x slope: deletion"]
    fresh = Store(tmp_path / "fresh")
    fresh.put(training.key, store.record(training.key), {"weights": store.tensors(training.key, "weights")})
    assert all_same(by_key(new), by_key(ran(fresh, explainers="slope", metrics=metrics)))


def test_an_unfinished_folder_in_the_place_of_a_job_does_not_block_it(ran, store, planned):
    (training,) = planned().trainings
    store.path(training.key).mkdir(parents=True)
    (store.path(training.key) / "weights.safetensors").write_bytes(b"half")
    outcome = ran()
    assert outcome.failures == {}
    assert len(outcome.lines) == 1


def test_explaining_goes_on_behind_the_finished_shards(planned, store, monkeypatch, ran, tmp_path):
    whole = ran(Store(tmp_path / "undisturbed"), runner.Settings(batch_size=3), explainers="random", images=10)
    monkeypatch.setattr(explain, "SHARD_SECONDS", -1.0)  # Every batch is a shard.
    calls = []

    def stops_at_third(values):
        calls.append(values["step"])
        if len(calls) == 3:
            raise KeyboardInterrupt

    observer = type("Stops", (), {"started": lambda *_: None, "finished": lambda *_: None, "failed": lambda *_: None})()
    observer.progress = lambda job, values: stops_at_third(values) if "epoch" not in values and hasattr(job, "explainer") else None
    plan = planned(explainers="random", images=10)
    with pytest.raises(KeyboardInterrupt):
        runner.execute(plan, store, runner.Settings(batch_size=3), [observer])
    (explaining,) = plan.explainings
    kept = sorted((store.root / "partial" / explaining.key).glob("shard-*.safetensors"))
    assert [len(read_tensors(file)["indices"]) for file in kept] == [3, 3]
    calls.extend([None] * 9)
    outcome = runner.execute(planned(explainers="random", images=10), store, runner.Settings(batch_size=3), [observer])
    assert [call for call in calls if call is not None] == [3, 6, 9, 9, 10]
    assert all_same(by_key(whole), by_key(outcome))
    assert store.record(explaining.key)["cost"]["images"] == 10


def test_a_damaged_checkpoint_does_not_block_its_training(ran, store, planned):
    (store.partial(planned().trainings[0].key) / "checkpoint.pt").write_bytes(b"half a file")
    assert ran().failures == {}


def test_a_damaged_shard_does_not_block_its_explanation(ran, store, planned):
    (store.partial(planned().explainings[0].key) / "shard-00000.safetensors").write_bytes(b"half a file")
    assert ran().failures == {}


# All kinds of data and networks


@pytest.mark.parametrize("target", ["predicted", "true"])
def test_data_with_several_labels_goes_all_the_way(ran, monkeypatch, target):
    def load(self, split, root):
        data = tiny_data(48, seed=int(split == "train"))
        both = torch.eye(4)[data.labels] + torch.eye(4)[(data.labels + 1) % 4]
        return ArrayData(replace(data.info, multi_label=True), data.images, both, data.masks)

    monkeypatch.setattr(loaded_parts().Data, "load", load)
    metrics = ["accuracy", "mean-average-precision", "deletion", "inside"]
    outcome = ran(augmenters=["none", "mixup", "edda"], explainers=["slope", "gradcam"], metrics=metrics, target=target)
    assert outcome.failures == {}
    assert len(outcome.lines) == 3 * (2 + 2 * 2)
    assert None not in values(outcome).values()


def test_a_network_that_is_trained_already_needs_no_training_images(ran, monkeypatch):
    load = loaded_parts().Data.load

    def only_test(self, split, root):
        if split == "train":
            raise DataError("there are no training images")
        return load(self, split, root)

    monkeypatch.setattr(loaded_parts().Data, "load", only_test)
    outcome = ran(trainers="pretrained", explainers=["slope", "far-from-mean"], metrics=["inside", "again", "accuracy"])
    assert outcome.failures == {}
    assert len(outcome.lines) == 2 * 2 + 1
    assert values(outcome)["far-from-mean: again"] == 0


def test_images_and_masks_come_at_the_size_of_the_network(ran, store, monkeypatch):
    build = loaded_parts().Network.build

    def built(self, info):
        module = build(self, info)
        module.input_size = (8, 8)
        return module

    monkeypatch.setattr(loaded_parts().Network, "build", built)
    outcome = ran(augmenters="edda", explainers="slope", metrics=["inside", "deletion"])
    assert outcome.failures == {}
    assert store.tensors(outcome.lines[0]["explaining"], "attributions")["attributions"].shape == (8, 1, 8, 8)


def test_half_precision_is_another_training_and_gives_another_network(ran, store, planned):
    both = [planned(recipe={"precision": precision}).trainings[0].key for precision in ("fp32", "bf16")]
    for precision in ("fp32", "bf16"):
        assert ran(recipe={"precision": precision}).failures == {}
    assert store.record(both[0])["weights"] != store.record(both[1])["weights"]


# Observers


class Journal:
    """A tracker as its hook describes it: started(job), epoch(job, values), finished(job, record)."""

    name = "journal"

    def __init__(self, breaks_at=None):
        self.events, self.breaks_at = [], breaks_at

    def _note(self, event, *given):
        self.events.append((event, *given))
        if event == self.breaks_at:
            raise ConnectionError("the server is gone")

    def started(self, job):
        self._note("started", job.key)

    def epoch(self, job, values):
        self._note("epoch", job.key, values["epoch"], values["loss"])

    def finished(self, job, record):
        self._note("finished", job.key, record["stage"])


def test_a_tracker_with_the_methods_of_its_hook_follows_a_run(planned, store):
    journal, plan = Journal(), planned(recipe={"epochs": 3})
    assert runner.execute(plan, store, observers=[observers.Tracking(journal)]).failures == {}
    (training,) = plan.trainings
    epochs = [event[2:] for event in journal.events if event[:2] == ("epoch", training.key)]
    assert epochs == [(epoch["epoch"], epoch["loss"]) for epoch in store.record(training.key)["cost"]["epochs"]]
    assert [epoch for epoch, _ in epochs] == [0, 1, 2]
    assert {event[1] for event in journal.events if event[0] == "finished"} == {job.key for job in plan.jobs}
    assert journal.events[0] == ("started", training.key)


@pytest.mark.parametrize("event", ["started", "epoch", "finished"])
def test_a_tracker_that_breaks_is_told_of_once_and_loses_nothing(planned, store, event):
    journal, said = Journal(event), []
    outcome = runner.execute(planned(recipe={"epochs": 2}), store, observers=[observers.Tracking(journal, said.append)])
    assert (outcome.failures, len(outcome.lines)) == ({}, 1)
    assert len(said) == 1
    assert "tracker 'journal' raised ConnectionError: the server is gone" in said[0]
    assert journal.events[-1][0] == event


def test_environment_and_identity_are_recorded_beside_every_job(ran, store, planned):
    ran()
    for job in planned().jobs:
        record = store.record(job.key)
        assert record["identity"] == json.loads(json.dumps(job.identity))
        assert record["environment"]["threads"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["finished"])
        assert os.uname().nodename not in str(record["environment"])


# Label noise and what is trained on


def test_label_noise_is_the_trainings_seeds_and_is_recorded_as_it_is(ran, store, planned):
    plan = planned(label_noise="flip:0.5")
    ran(label_noise="flip:0.5")
    found = store.record(plan.trainings[0].key)["label_noise"]
    transitions = torch.tensor(found["transitions"])
    assert transitions.sum() == 64
    assert transitions.sum(1).tolist() == [16] * 4  # rows are the clean classes of tiny_data
    assert found["rate"] == pytest.approx(1 - transitions.diag().sum().item() / 64)
    assert 0.25 < found["rate"] < 0.75
    assert all(int(transitions[clean, (clean + 2) % 4]) == 0 for clean in range(4))  # flip moves by one class only


# Being killed

SPEC = """
name = "mortal"
datasets = ["tiny"]
models = ["tiny-net"]
trainers = ["standard"]
augmenters = ["mortal"]
explainers = ["mortal", "random"]
metrics = ["mortal", "deletion", "accuracy"]
images = 5
floors = false
[recipe]
epochs = 2
batch_size = 16
"""
DIES_BEFORE_RENAME = """
import os, signal
from bench.store import Store
moves, move = [], Store._move
def mortal(self, folder, key):
    moves.append(key)
    if len(moves) == 2: os.kill(os.getpid(), signal.SIGKILL)
    move(self, folder, key)
Store._move = mortal
from bench.cli import main
main()
"""


def start(folder, *, death="", code="from bench.cli import main; main()"):
    """`bench run` in a process of its own."""
    journal = folder / "journal"
    journal.unlink(missing_ok=True)
    arguments = ["run", str(folder / "spec.toml"), "--plugin", tiny_parts.__file__, "--store", str(folder / "store"), "--threads", "1"]
    idle = {point.name for point in entry_points(group="bench")} - {"fitting", "controls", "accuracy", "deletion"}
    arguments += [word for name in sorted(idle) for word in ("--without-plugin", name)]  # Only to start faster.
    surroundings = {**os.environ, "TINY_JOURNAL": str(journal), "TINY_DEATH": death, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def command(folder, **how):
    """How such a process ended, and what the mortal parts wrote down."""
    code = start(folder, **how).wait(timeout=600)
    journal = folder / "journal"
    return code, journal.read_text().splitlines() if journal.exists() else []


def kept_lines(folder):
    return {line["key"]: line for line in results.read(folder / "store/boards/data/tiny/mortal.jsonl")}


def undisturbed(folder):
    return api.run(folder / "spec.toml", store=folder / "undisturbed", threads=1, plugins=[tiny_parts.__file__])


def test_a_run_killed_at_any_moment_goes_on_and_ends_with_the_same_lines(tmp_path):
    """Killed in training, in explaining, and with a score computed and not yet in its place; no finished work is done again."""
    (tmp_path / "spec.toml").write_text(SPEC)
    store = Store(tmp_path / "store")

    assert command(tmp_path, death="train 1 2") == (-signal.SIGKILL, ["train 0 0", "train 0 1", "train 0 2", "train 0 3", "train 1 0", "train 1 1"])
    assert list(store.finished()) == []

    code, journal = command(tmp_path, death="explain 5")
    assert (code, journal) == (-signal.SIGKILL, ["train 1 0", "train 1 1", "train 1 2", "train 1 3"])  # not epoch 0 again
    assert sorted(store.record(key)["stage"] for key in store.finished()) == ["score", "train"]

    code, journal = command(tmp_path, code=DIES_BEFORE_RENAME)  # the first move is the map's, the second its first score's
    assert (code, journal) == (-signal.SIGKILL, ["explain 5", "score 5"])
    assert sorted(store.record(key)["stage"] for key in store.finished()) == ["explain", "score", "train"]

    before = {path: path.stat().st_mtime_ns for path in store.root.glob("??/*/record.json")}
    code, journal = command(tmp_path)
    assert (code, journal) == (0, ["score 5", "score 5"])  # for each of the two explainers
    assert before.items() <= {path: path.stat().st_mtime_ns for path in store.root.glob("??/*/record.json")}.items()

    assert all_same(by_key(undisturbed(tmp_path)), kept_lines(tmp_path))
    assert list((store.root / "partial").iterdir()) == []


def test_two_processes_on_one_store_do_what_one_does(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    for process in [start(tmp_path), start(tmp_path)]:
        process.wait(timeout=600)
    store = Store(tmp_path / "store")
    after = api.run(tmp_path / "spec.toml", store=store.root, threads=1, plugins=[tiny_parts.__file__])
    assert (after.done, after.failures) == (0, {})
    assert all_same(by_key(undisturbed(tmp_path)), by_key(after))
    assert list(store.root.glob(".writing-*")) == []


# What a metric draws


def test_what_a_metric_draws_of_a_network_lies_beside_its_score_and_is_collected_once_a_network(tmp_path, planned):
    plan = planned(name="drawn", metrics=["accuracy", "portrait"], augmenters=["none", "shade"], seeds=2)
    store = Store(tmp_path / "store")
    assert runner.execute(plan, store).failures == {}
    drawn = [store.path(job.key) / "figure.png" for job in plan.scorings if job.metric.label == "portrait"]
    assert [path.read_text() for path in drawn] == ["8 images of 3 channels"] * 4
    collected = pictures.collect(plan, store, tmp_path / "figures")
    assert [path.name for path in collected] == [f"tiny--drawn--portrait--tiny-net--standard--{name}.png" for name in ("none", "shade")]


def test_a_metric_that_cannot_draw_fails_by_itself(tmp_path, planned):
    plan = planned(metrics=["accuracy", {"name": "portrait", "broken": True}])
    outcome = runner.execute(plan, Store(tmp_path))
    assert list(outcome.failures.values()) == ["Broken: no brush"]
    assert [line["metric"]["label"] for line in outcome.lines] == ["accuracy"]
