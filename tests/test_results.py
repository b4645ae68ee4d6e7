"""Result lines: written, read, compared and published."""

import io
import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import line, part

from bench import reporting, results
from bench.errors import InvalidValue
from bench.store import Store


def by_run(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Writing and reading


def test_a_line_has_its_names_sorted_and_no_number_that_json_does_not_know():
    text = results.dump({"b": math.nan, "a": [1.0, math.inf], "c": {"é": (2, -math.inf)}})
    assert text == '{"a": [1.0, null], "b": null, "c": {"é": [2, null]}}'


def test_lines_are_written_sorted_by_key_and_read_back(tmp_path):
    lines = [line(0.1, key="b"), line(0.2, key="a")]
    results.write(tmp_path / "deep/er/run.jsonl", lines)
    assert list(results.read(tmp_path / "deep/er/run.jsonl")) == lines[::-1]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": 1}', '{"key": "a", "schema": 2}', '{"key": "a"}'])
def test_a_damaged_line_is_named_with_its_file_and_number(tmp_path, text):
    good = results.dump(line())
    (tmp_path / "run.jsonl").write_text(f"{good}\n{good}\n{text}\n{good}\n")
    with pytest.raises(InvalidValue, match=r"run\.jsonl, line 3 is not a result"):
        list(results.read(tmp_path / "run.jsonl"))


# Comparing


def test_lines_say_the_same_where_only_time_place_and_the_words_for_a_part_differ():
    base = line(0.5, explainer="gradcam")
    other = {**base, "seconds": 9.0, "finished": "2030", "environment": {}, "run": "another"}
    other["explainer"] = {**base["explainer"], "label": "early", "plugin": "theirs", "distribution": "bench-xai 9.9"}
    assert results.same(base, other)


@pytest.mark.parametrize(
    "change",
    [
        {"value": 0.5001},
        {"value": None},
        {"n": 99},
        {"interval": [0.4, 0.55]},
        {"interval": None},
        {"weights": "sha256:other"},
        {"seed": 1},
        {"key": "x"},
    ],
)
def test_lines_do_not_say_the_same_where_a_number_or_what_made_it_differs(change):
    assert not results.same(line(0.5), {**line(0.5), **change})


def test_numbers_are_the_same_within_the_tolerance():
    assert results.same(line(0.5), {**line(0.5), "value": 0.5 + 4e-7})
    assert not results.same(line(0.5), {**line(0.5), "value": 0.5 + 4e-7}, tolerance=1e-7)
    assert results.same(line(0.0), {**line(0.0), "value": 1e-9})


def test_a_part_with_another_parameter_is_another():
    one, other = (line(0.5, key="k", explainer={**line(explainer="rise")["explainer"], "parameters": {"masks": masks}}) for masks in (10, 20))
    assert not results.same(one, other)


def test_a_line_is_the_same_before_and_after_the_file(ran, tmp_path):
    (found,) = ran().lines
    results.write(tmp_path / "run.jsonl", [found])
    assert results.same(found, next(results.read(tmp_path / "run.jsonl")))


# Publishing


def test_lines_and_their_rows_are_published_by_dataset_and_run(tmp_path):
    scenes, digits = line(0.5, key="aa"), line(0.6, key="bb", dataset="digits")
    paths = results.publish([scenes, digits], {"aa": [0.25, math.nan], "bb": [0.6]}, tmp_path, "first")
    assert sorted(str(path.relative_to(tmp_path)) for path in paths) == [
        "digits/first.jsonl",
        "digits/first.rows.jsonl.gz",
        "scenes/first.jsonl",
        "scenes/first.rows.jsonl.gz",
    ]
    assert list(results.read(tmp_path / "scenes/first.jsonl")) == [scenes]
    rows = results.read_rows(tmp_path / "scenes/first.rows.jsonl.gz")
    assert rows.keys() == {"aa"}
    assert rows["aa"][0] == 0.25
    assert math.isnan(rows["aa"][1])


def test_publishing_again_writes_the_same_bytes(tmp_path):
    lines = [line(0.5, key="aa"), line(0.6, key="bb", metric="deletion")]
    rows = {"aa": [0.123456789, 1.0], "bb": [0.5]}
    results.publish(lines, rows, tmp_path, "first")
    before = by_run(tmp_path)
    results.publish(lines[::-1], dict(reversed(rows.items())), tmp_path, "first")
    assert by_run(tmp_path) == before


def test_a_run_may_be_added_to(tmp_path):
    results.publish([line(0.5, key="aa")], {"aa": [0.5]}, tmp_path, "first")
    results.publish([line(0.6, key="bb")], {"bb": [0.6]}, tmp_path, "first")
    assert [each["key"] for each in results.read(tmp_path / "scenes/first.jsonl")] == ["aa", "bb"]
    assert results.read_rows(tmp_path / "scenes/first.rows.jsonl.gz") == {"aa": [0.5], "bb": [0.6]}


def test_a_line_that_contradicts_a_published_one_is_refused_and_nothing_is_written(tmp_path):
    results.publish([line(0.5, key="aa")], {"aa": [0.5]}, tmp_path, "first")
    before = by_run(tmp_path)
    lines = [line(0.9, key="new", dataset="digits"), line(0.6, key="bb"), line(0.51, key="aa")]
    with pytest.raises(InvalidValue, match=r"(?s)first\.jsonl has key aa.* as 0\.5, and this run found 0\.51\.\nNothing was published"):
        results.publish(lines, {}, tmp_path, "second")
    assert by_run(tmp_path) == before


def test_a_job_that_two_runs_share_stays_where_it_was_published_first(tmp_path):
    shared = line(0.5, key="aa")
    results.publish([shared], {"aa": [0.5]}, tmp_path, "first")
    results.publish([{**shared, "run": "second"}, line(0.6, key="bb")], {"aa": [0.5], "bb": [0.6]}, tmp_path, "second")
    assert [each["key"] for each in results.read(tmp_path / "scenes/second.jsonl")] == ["bb"]
    assert results.read_rows(tmp_path / "scenes/second.rows.jsonl.gz").keys() == {"bb"}


def test_a_time_may_be_measured_again(tmp_path):
    results.publish([line(100.0, key="aa", metric="throughput")], {}, tmp_path, "first")
    results.publish([line(120.0, key="aa", metric="throughput")], {}, tmp_path, "first")
    assert [each["value"] for each in results.read(tmp_path / "scenes/first.jsonl")] == [120.0]


def test_rows_are_kept_to_seven_digits(tmp_path):
    results.publish([line(0.5, key="aa")], {"aa": [1 / 3, -200 / 3, 1e-9]}, tmp_path, "first")
    assert results.read_rows(tmp_path / "scenes/first.rows.jsonl.gz")["aa"] == [0.3333333, -66.66667, 1e-9]


# Tables for pandas


def test_a_frame_has_a_row_per_number_and_the_parts_as_columns(tmp_path):
    rise = {**line(explainer="rise")["explainer"], "parameters": {"masks": 10}}
    results.write(tmp_path / "scenes/run.jsonl", [line(0.5, key="a"), line(0.7, key="b", explainer=rise, metric="insertion")])
    frame = results.frame(tmp_path).sort_values("key")
    assert frame[["metric", "augmenter", "value", "low", "high", "dataset"]].values.tolist() == [
        ["accuracy", "none", 0.5, 0.45, 0.55, "scenes"],
        ["insertion", "none", 0.7, pytest.approx(0.65), 0.75, "scenes"],
    ]
    assert frame.query("metric == 'insertion' and explainer == 'rise'").value.max() == 0.7
    assert frame["explainer.masks"].tolist()[1] == 10


def test_a_frame_of_one_file_is_the_file_and_of_a_folder_is_all_of_it(tmp_path):
    for name in ("a", "b"):
        results.write(tmp_path / f"scenes/{name}.jsonl", [line(0.5, key=name)])
    assert len(results.frame(tmp_path / "scenes/a.jsonl")) == 1
    assert len(results.frame(tmp_path)) == 2


def test_a_line_without_an_interval_is_flat_too():
    assert {"low": None, "high": None, "value": None}.items() <= results.flat(line(None)).items()


def test_a_line_is_described_by_what_was_scored():
    assert results.describe(line(augmenter="edda", explainer="gradcam", metric="insertion")) == "edda x gradcam: insertion"
    assert results.describe(line(augmenter=None, model="vit")) == "vit: accuracy"


def test_a_real_line_has_every_field_that_the_boards_read(ran, registry):
    found = json.loads(results.dump(ran(metrics="deletion").lines[0]))
    assert set(line(explainer="random", metric="deletion")) <= set(found)
    assert found["dataset"]["redistributable"] is False
    assert found["floor"] is True  # the explainer is random
    assert found["seed"] == 0


# The runs of a store


def test_a_run_is_kept_as_its_spec_its_lines_and_its_boards_and_replaces_its_last_lines(tmp_path):
    store = Store(tmp_path)
    reporting.keep(store, "mine", "images = 3\n", [line(0.5, key="a"), line(0.6, key="b", dataset="digits")])
    reporting.keep(store, "other", "", [line(0.7, key="c", augmenter="edda")])
    folder = reporting.keep(store, "mine", "images = 4\n", [line(0.5, key="a")])
    assert (tmp_path / "runs/mine.toml").read_text() == "images = 4\n"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jsonl")) == ["data/scenes/mine.jsonl", "data/scenes/other.jsonl"]
    assert "edda" in (folder / "scenes.md").read_text()
    assert not (folder / "digits.md").exists()


def test_two_processes_may_keep_a_run_at_the_same_time(tmp_path, monkeypatch):
    def taken_away(path, missing_ok=False):
        os.remove(path)  # By the other process, just before.
        unlink(path, missing_ok=missing_ok)

    unlink = Path.unlink
    reporting.keep(Store(tmp_path), "mine", "", [line(0.5, key="a")])
    monkeypatch.setattr(Path, "unlink", taken_away)
    folder = reporting.keep(Store(tmp_path), "mine", "", [line(0.5, key="a")])
    assert len(list(results.read(folder / "data/scenes/mine.jsonl"))) == 1


@pytest.mark.parametrize("name", ["a/b", "../../elsewhere", "/tmp/elsewhere", ".."])
def test_the_lines_of_a_dataset_stay_in_the_store_whatever_it_is_called(tmp_path, name):
    folder = reporting.keep(Store(tmp_path / "deep" / "store"), "mine", "", [line(0.5, dataset=name)])
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"store"}
    assert len(list((folder / "data").glob("*/mine.jsonl"))) == 1
    assert len(list(folder.glob("*.md"))) == 2


@pytest.mark.parametrize("text", ["[/x]", "[red]", "[bold]b[/bold]"])
def test_a_label_in_the_terminal_is_text_and_never_markup(text):
    console = Console(file=io.StringIO(), width=200)
    reporting.print_boards(console, [line(0.5, augmenter=part("edda", label=text))])
    assert f" {text} " in console.file.getvalue()
