"""TensorBoard and MLflow: what is written is read back with their own readers."""

import math
from pathlib import Path

import pytest

from bench import observers, plugins, runner
from bench.errors import PluginError
from bench_plugins import trackers
from bench_plugins.trackers import MLflow, TensorBoard


@pytest.fixture
def outcome(planned, store):
    """Runs a small plan with a tracker watching; returns the plan and the result lines by metric and explainer."""

    def run(tracker):
        plan = planned(augmenters="shade", explainers="slope", metrics=["deletion", "accuracy"], recipe={"epochs": 3})
        said = []
        found = runner.execute(plan, store, observers=[observers.Tracking(tracker, said.append)])
        assert (found.failures, said) == ({}, [])
        lines = {(line["explainer"] and line["explainer"]["label"], line["metric"]["label"]): line for line in found.lines}
        return plan, store.record(plan.trainings[0].key)["cost"]["epochs"], lines

    return run


def test_tensorboard_reads_back_the_log_and_the_scores(outcome, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = TensorBoard(tmp_path / "board")
    plan, epochs, lines = outcome(tracker)
    (folder,) = (tmp_path / "board").iterdir()
    assert folder.name == f"tiny-tiny-net-standard-shade-seed-0-{plan.trainings[0].key[:8]}"
    found = events.EventAccumulator(str(folder)).Reload()
    assert [(each.step, each.value) for each in found.Scalars("training/loss")] == [(each["epoch"], pytest.approx(each["loss"])) for each in epochs]
    assert found.Scalars("accuracy")[0].value == pytest.approx(lines[None, "accuracy"]["value"])
    deletion = lines["slope", "deletion"]
    read = [found.Scalars(f"slope/deletion{end}")[0].value for end in ("", ".low", ".high")]
    assert read == pytest.approx([deletion["value"], *deletion["interval"]])


def test_mlflow_reads_back_the_log_the_scores_and_the_setting_and_goes_on_with_a_run(outcome, tmp_path, monkeypatch):
    pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = MLflow((tmp_path / "mlruns").as_uri())
    try:
        assert tracker._experiment
    except Exception as error:
        pytest.skip(f"this MLflow cannot write to a folder: {error}")
    plan, epochs, lines = outcome(tracker)
    (run,) = tracker._client.search_runs([tracker._experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params["augmenter.strength"] == "0.5"
    assert run.data.params["recipe.epochs"] == "3"
    assert run.data.metrics["slope/deletion"] == pytest.approx(lines["slope", "deletion"]["value"])
    history = tracker._client.get_metric_history(run.info.run_id, "training/loss")
    assert [(each.step, each.value) for each in history] == [(each["epoch"], pytest.approx(each["loss"])) for each in epochs]
    again = MLflow(tracker.uri)
    again.started(plan.trainings[0])
    assert len(tracker._client.search_runs([tracker._experiment])) == 1


def test_both_are_registered_and_take_their_place_from_the_spec():
    registry = plugins.load([Path(trackers.__file__)], only=()).registry
    assert str(registry.resolve("tracker", {"name": "tensorboard", "folder": "elsewhere"}).part.folder) == "elsewhere"
    assert registry.resolve("tracker", {"name": "mlflow", "experiment": "mine"}).part.experiment == "mine"


def test_a_library_that_is_not_there_is_named_with_what_to_install():
    with pytest.raises(PluginError, match=r"needs a library that is not installed .*\nInstall it: pip install 'bench-xai\[tensorboard\]'"):
        trackers.needed("no_such_library", "tensorboard")


def test_what_is_missing_is_left_out():
    assert list(trackers.numbers({"epoch": 1, "loss": math.nan, "rows": 3, "note": "x", "flag": True})) == [("rows", 3.0)]
    assert list(trackers.scores(None, {"stage": "train"})) == []
    assert list(trackers.scores(None, {"outcome": {"value": None, "interval": None}})) == []
