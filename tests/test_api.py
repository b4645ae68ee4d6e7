"""From Python: one's own network, and runs from a dictionary."""

import copy
import sys
from importlib.metadata import entry_points

import pytest
import tiny_parts
import torch
from conftest import FINISHED
from torch import nn

import bench
from bench import api, plugins, testing
from bench import spec as specs
from bench.errors import BenchError, DataError, DeviceError, InvalidValue, UnknownName
from bench.interfaces import ArrayData
from bench.testing import TinyNetwork, dataset_info, tiny_data


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Only the finished plugins are installed, and a data set and a model that call themselves default."""
    points = [point for point in entry_points(group="bench") if point.name in (*FINISHED, "scenes", "resnet_mini")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    return points


def evaluate(module, dataset=None, explainers=("slope",), metrics=("inside", "accuracy"), **options):
    options = {"threads": 1, "images": 12, "plugins": [tiny_parts.__file__], **options}
    return bench.evaluate(module, tiny_data(24) if dataset is None else dataset, explainers, metrics, **options)


def pairs(frame):
    return {(explainer or None, metric) for explainer, metric in frame[["explainer", "metric"]].where(frame.notna(), None).values.tolist()}


# evaluate


def test_evaluate_gives_a_row_per_explainer_and_metric_with_the_floors_beside():
    found = evaluate(TinyNetwork())
    assert list(found.columns) == ["explainer", "metric", "value", "low", "high", "n", "unit", "higher_is_better"]
    assert pairs(found) == {(None, "accuracy"), ("random", "inside"), ("centre", "inside"), ("slope", "inside")}
    assert len(found) == 4
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()


def test_a_value_is_what_the_network_gives_by_hand():
    """Every image is scored: 24 of 24, so nothing depends on the choice of images."""
    model, data = TinyNetwork().eval(), tiny_data(24)
    found = evaluate(model, images=24).set_index(["explainer", "metric"]).value
    inputs = (data.images.float() / 255).requires_grad_()
    logits = model(inputs)
    assert found.loc[(None, "accuracy")].item() == pytest.approx(100 * (logits.argmax(1) == data.labels).float().mean().item())
    maps = torch.autograd.grad(logits.max(1).values.sum(), inputs)[0].abs().sum(1)
    on_object = [maps[row][data.masks[row, 0]].mean() for row in range(24)]
    assert found.loc[("slope", "inside")] == pytest.approx(torch.stack(on_object).mean().item(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_batch_size_changes_no_number(size):
    torch.testing.assert_close(
        torch.tensor(evaluate(TinyNetwork(), batch_size=size).value.tolist()),
        torch.tensor(evaluate(TinyNetwork()).value.tolist()),
        rtol=1e-6,
        atol=1e-6,
    )


def frozen_in_part(model):
    model.train()
    model.first.eval()
    model.fc.bias.requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    return model


def test_evaluate_leaves_a_network_in_eval_mode_as_it_found_it():
    model = TinyNetwork().eval()
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = testing.snapshot(model)
    evaluate(model)
    assert testing.changed(before, model) == []


def test_evaluate_leaves_a_network_with_a_frozen_part_as_it_found_it():
    model = frozen_in_part(TinyNetwork())
    before = testing.snapshot(model)
    evaluate(model)
    assert testing.changed(before, model) == []


def test_evaluate_leaves_the_network_as_it_found_it_when_something_breaks():
    model = TinyNetwork().train()
    before = testing.snapshot(model)
    with pytest.raises(RuntimeError, match="the explainer broke"):
        evaluate(model, explainers=["breaks"])
    assert testing.changed(before, model) == []


def test_a_network_that_wants_normalised_images_gets_them():
    inner = TinyNetwork().eval()
    del inner.normalisation
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    outer = copy.deepcopy(inner)
    weight = inner.first[0].weight / std.view(1, 3, 1, 1)  # The same network on images that are not normalised …
    outer.first[0].weight.data.copy_(weight)
    outer.first[0].bias.data.sub_((weight * mean.view(1, 3, 1, 1)).sum((1, 2, 3)))
    inner.first[0].padding_mode, inner.first[0].padding, outer.first[0].padding = "zeros", (0, 0), (0, 0)  # … without a border.
    normalised = evaluate(inner, mean=mean.tolist(), std=std.tolist(), metrics=["logit-sum"], explainers=["random"])
    plain = evaluate(outer, mean=[0.0] * 3, std=[1.0] * 3, metrics=["logit-sum"], explainers=["random"])
    assert normalised.value.tolist() == pytest.approx(plain.value.tolist(), rel=1e-4)


def test_a_layer_is_taken_by_its_name_and_found_by_a_rule_otherwise():
    model = TinyNetwork()
    last, second, first = (evaluate(model, explainers=["gradcam"], metrics=["inside"], layer=layer) for layer in (None, "second", "first"))
    value = [frame[frame.explainer == "gradcam"].value.item() for frame in (last, second, first)]
    assert value[0] == value[1] != value[2]
    with pytest.raises(InvalidValue, match=r"(?s)no layer 'secnd'\. Did you mean 'second'.*Stages found: first, second"):
        evaluate(model, layer="secnd")


def test_metrics_that_the_data_has_nothing_for_are_left_out():
    data = tiny_data(24)
    bare = ArrayData(dataset_info(4, (16, 16), 3, name="bare"), data.images, data.labels)
    assert pairs(evaluate(TinyNetwork(), bare)) == {(None, "accuracy")}


def test_a_dataset_is_taken_by_its_name():
    assert len(evaluate(TinyNetwork(), "tiny")) == 4
    assert len(evaluate(TinyNetwork(), {"name": "tiny", "test_images": 12})) == 4


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"explainers": ["slop"]}, UnknownName, "Did you mean 'slope'"),
        ({"metrics": ["insid"]}, UnknownName, "Did you mean 'inside'"),
        ({"dataset": "tinny"}, UnknownName, "Did you mean 'tiny'"),
        ({"dataset": [1, 2]}, InvalidValue, "dataset is list"),
        ({"images": 1}, InvalidValue, "'images' is 1"),
        ({"target": "all"}, InvalidValue, "'predicted' or 'true'"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
        ({"device": "gpu"}, DeviceError, "cpu, cuda or cuda:N"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(options, error, words):
    with pytest.raises(error, match=words):
        evaluate(TinyNetwork(), **options)


def test_a_metric_on_all_images_is_on_all_images_here_too():
    found = evaluate(TinyNetwork(), metrics=["accuracy"], explainers=["random"], images=8)
    assert found[found.metric == "accuracy"].n.item() == 24


def test_a_metric_that_explains_again_has_what_the_explainer_was_prepared_with():
    found = evaluate(TinyNetwork(), explainers=["far-from-mean"], metrics=["again"])
    assert found[found.explainer == "far-from-mean"].value.item() == 0


def test_a_network_for_grey_images_is_scored_too():
    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
            self.head = nn.Linear(6, 4)

        def forward(self, inputs):
            return self.head(self.body(inputs).mean((2, 3)))

    data = tiny_data(24)
    grey = ArrayData(dataset_info(4, (16, 16), 1, has_masks=True), data.images[:, :1], data.labels, data.masks)
    assert len(evaluate(Grey(), grey)) == 4


def test_one_explainer_may_stand_without_its_list():
    assert pairs(evaluate(TinyNetwork(), explainers="slope", metrics="inside")) == {("random", "inside"), ("centre", "inside"), ("slope", "inside")}


def test_ones_own_network_and_images_need_no_installed_ones(installed):
    installed[:] = [point for point in installed if point.name not in ("scenes", "resnet_mini")]
    assert len(evaluate(TinyNetwork())) == 4


# run


SPEC = {
    "datasets": "tiny",
    "models": "tiny-net",
    "augmenters": "none",
    "explainers": "slope",
    "metrics": ["inside", "accuracy"],
    "images": 8,
    "floors": False,
    "recipe": {"epochs": 1, "batch_size": 16},
}


def run(spec=SPEC, **options):
    return bench.run(spec, threads=1, plugins=[tiny_parts.__file__], **options)


def test_a_run_from_a_dictionary_gives_its_lines_and_failures(tmp_path):
    outcome = run(store=tmp_path)
    assert {(line["explainer"] and line["explainer"]["label"], line["metric"]["label"]) for line in outcome.lines} == {
        ("slope", "inside"),
        (None, "accuracy"),
    }
    assert (outcome.done, outcome.failures) == (4, {})
    assert run(store=tmp_path).done == 0


def test_a_run_from_a_file_a_path_and_a_spec_is_the_same_run(tmp_path):
    spec = specs.make(SPEC)
    (tmp_path / "spec.toml").write_text(spec.toml())
    keys = [
        {line["key"] for line in run(each, store=tmp_path / "store").lines}
        for each in (SPEC, spec, tmp_path / "spec.toml", str(tmp_path / "spec.toml"))
    ]
    assert keys[0]
    assert all(each == keys[0] for each in keys)


def test_a_run_tells_its_observers(tmp_path):
    events = []

    class Observer:
        def started(self, job):
            events.append("started")

        def progress(self, job, values):
            pass

        def finished(self, job, record):
            events.append(record["stage"])

        def failed(self, job, error):
            events.append(error)

    run({**SPEC, "explainers": ["breaks", "slope"]}, store=tmp_path, observers=[Observer()])
    assert [event for event in events if event != "started"] == ["train", "score", "Broken: the explainer broke", "explain", "score"]


def test_a_run_has_the_store_and_the_data_of_the_surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_STORE", str(tmp_path / "mine"))
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    run()
    assert (tmp_path / "mine").is_dir()
    assert api.data_folder() == tmp_path / "data"
    assert api.data_folder("other").name == "other"
    monkeypatch.delenv("BENCH_DATA")
    assert api.data_folder() is None


@pytest.mark.parametrize(
    ("change", "words"), [({"augmenters": "nonne"}, "'none'"), ({"image": 8}, "'images'"), ({"recipe": {"epochs": 0}}, "epochs")]
)
def test_a_mistake_in_the_dictionary_is_an_error_before_anything_is_done(tmp_path, change, words):
    with pytest.raises(BenchError, match=words):
        run({**SPEC, **change}, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_data_that_is_not_there_is_an_error_before_anything_is_done(tmp_path, monkeypatch):
    def missing(self, split, root):
        raise DataError("there are no images")

    run(store=tmp_path / "store")
    monkeypatch.setattr(sys.modules["bench_plugin_tiny_parts"].Data, "load", missing)
    monkeypatch.setattr(plugins, "load_file", lambda path: sys.modules["bench_plugin_tiny_parts"])
    with pytest.raises(DataError, match="no images"):
        run(store=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_resolves_the_trackers_it_names(tmp_path):
    with pytest.raises(UnknownName, match="no tracker is called 'nosuch'"):
        run({**SPEC, "trackers": ["nosuch"]}, store=tmp_path)


def test_threads_are_pinned():
    api.prepare_device("cpu", 1)
    assert torch.get_num_threads() == 1
