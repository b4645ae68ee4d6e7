"""Boards: what may be compared, what is marked, and that the same lines make the same pages."""

import csv
import io
import json
import random as shuffling
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from synthetic import line, part, published, scored, star

from bench import leaderboard, plugins, results
from bench.errors import BenchError, InvalidValue
from bench.leaderboard import exports, figures, reported, statistics, text
from bench.leaderboard.changes import changes
from bench.leaderboard.comparisons import disagreements, verdicts
from bench.leaderboard.tables import Board, Column, Row, boards


def only(lines) -> Board:
    (board,) = boards(lines)
    return board


def column(board: Board, label: str) -> Column:
    return next(each for each in board.columns if each.label == label)


def row(board: Board, augmenter: str, explainer: str | None = None) -> Row:
    return next(each for each in board.rows if (each.augmenter, each.explainer) == (augmenter, explainer))


def seeds(values: dict[str, list[float | None]], **about) -> list[results.Line]:
    """Lines of each augmenter with one value per seed."""
    return [line(value, augmenter=name, seed=seed, **about) for name, found in values.items() for seed, value in enumerate(found)]


# What stands together


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": {"name": "scenes", "label": "scenes", "fingerprint": "sha256:other", "licence": "CC0", "redistributable": True}},
        {"images": {"fingerprint": "x", "images": 100, "target": "true", "memory_format": "channels_last"}},
        {"model": part("small-net", version=2)},
        {"trainer": part("standard", parameters={"rate": 2})},
        {"noise": part("symmetric")},
        {"recipe": {**line()["recipe"], "epochs": 3}},
    ],
    ids=["other images", "other target", "other model version", "other parameter", "label noise", "other recipe"],
)
def test_rows_that_differ_in_what_matters_never_share_a_table(changes):
    pair = boards([line(0.9, augmenter="none"), {**line(0.8, augmenter="mixup"), **changes}])
    assert [len(board.rows) for board in pair] == [1, 1]


@pytest.mark.parametrize("changes", [{"paper": "Another; Title; 2020"}, {"claim": "unverified"}, {"distribution": "other 2.0"}, {"plugin": "moved"}])
def test_what_is_only_said_of_a_part_does_not_part_the_rows(changes):
    board = only([line(0.9, augmenter="none"), line(0.8, augmenter="mixup", trainer=part("standard", **changes))])
    assert len(board.rows) == 2


def test_parts_of_one_name_are_told_apart_by_what_differs():
    first, second = (part("drop", parameters={"keep": keep, "fill": "mean"}, higher_is_better=False, category="c", unit="%") for keep in (0.15, 0.5))
    versions = [part("mixup", version=1), part("mixup", version=2)]
    board = only([line(0.5, metric=metric, augmenter=augmenter) for metric in (first, second) for augmenter in versions])
    assert [each.label for each in board.columns] == ["drop (keep 0.15)", "drop (keep 0.5)"]
    assert [each.augmenter for each in board.rows] == ["mixup (version 1)", "mixup (version 2)"]


def test_numbers_over_other_images_are_another_column():
    other = {**line()["images"], "images": 500}
    board = only([line(0.5), line(0.6, images=other)])
    assert [each.label for each in board.columns] == ["accuracy (images 100)", "accuracy (images 500)"]


def test_the_order_in_which_lines_come_changes_nothing():
    lines, _ = star(seeds=2)
    mixed = lines * 2
    shuffling.Random(1).shuffle(mixed)
    assert exports.boards_csv(boards(mixed)) == exports.boards_csv(boards(lines))


# Cells


def test_a_seed_without_a_value_makes_the_cell_a_missing_one():
    board = only(seeds({"none": [0.5, 0.6], "mixup": [0.9, None]}))
    assert board.cell(row(board, "mixup"), board.columns[0]).value is None
    assert board.ranked(board.columns[0]) == [row(board, "none")]
    assert board.best(board.columns[0]) == set()


def test_two_results_of_one_seed_that_contradict_each_other_are_a_missing_one():
    board = only([line(0.5, key="a"), line(0.6, key="b"), line(0.7, key="c", seed=1)])
    assert board.cells[board.rows[0], board.columns[0]].value is None
    agreeing = only([line(0.5, key="a"), line(0.5, key="b"), line(None, key="c"), line(0.7, key="d", seed=1)])
    assert agreeing.cells[agreeing.rows[0], agreeing.columns[0]].value == pytest.approx(0.6)


def test_a_row_without_the_usual_seeds_is_shown_and_not_ranked():
    lines = seeds({"none": [0.5, 0.6, 0.55], "mixup": [0.6, 0.65, 0.7], "cutmix": [0.9]})
    board = only(lines)
    assert [each.augmenter for each in board.ranked(board.columns[0])] == ["mixup", "none"]
    assert "0.900 [0.850, 0.950] ‡" in leaderboard.pages.table_text(board)


def test_a_row_with_more_seeds_than_usual_is_ranked():
    board = only(seeds({"none": [0.5, 0.6], "mixup": [0.7, 0.7], "edda": [0.9, 0.9, 0.9]}))
    assert [each.augmenter for each in board.ranked(board.columns[0])] == ["edda", "mixup", "none"]


# Comparisons


def test_rows_are_compared_on_the_seeds_they_share():
    lines = seeds({"none": [0.50, 0.60, 0.55], "mixup": [0.61, 0.73, 0.64, 0.10]})
    board = only(lines)
    verdict = verdicts(board, {})[board.columns[0]]
    found = verdict.of(row(board, "mixup"), "floor")
    expected = statistics.over_paired_seeds([0.61, 0.73, 0.64], [0.50, 0.60, 0.55])
    assert found.difference == expected
    assert (found.difference.unit, found.difference.n) == ("seeds", 3)
    assert verdict.tested_over == "seeds (n = 3)"


def test_with_one_seed_rows_are_compared_over_the_images_of_that_seed():
    random = np.random.RandomState(0)
    floor, better = random.rand(80), random.rand(80) + 0.2
    pairs = [scored(floor, augmenter="none"), scored(better, augmenter="mixup")]
    board = only(made for made, _ in pairs)
    per_image = {made["key"]: values for made, values in pairs}
    found = verdicts(board, per_image)[board.columns[0]].of(row(board, "mixup"), "floor")
    assert found.difference == statistics.over_paired_images(pairs[1][1], pairs[0][1])
    assert found.told_apart
    assert found.better


def test_without_shared_seeds_or_images_nothing_is_compared():
    lines = [line(0.5, augmenter="none", seed=0), line(0.9, augmenter="mixup", seed=1), line(0.7, augmenter="cutmix", seed=0)]
    board = only(lines)
    assert all(verdict.comparisons == () for verdict in verdicts(board, {}).values())
    written = leaderboard.pages.table_text(board, judged=verdicts(board, {}))
    assert "Tested over" not in written
    assert not set("≈°") & set(written)


def test_a_number_that_is_no_mean_over_images_is_not_compared_over_images():
    pairs = [scored(np.linspace(0, 1, 50), augmenter=name) for name in ("none", "mixup")]
    changed = [{**made, "value": made["value"] + 0.1} for made, _ in pairs]
    per_image = {made["key"]: values for made, values in pairs}
    board = only(changed)
    assert verdicts(board, per_image)[board.columns[0]].comparisons == ()


def test_repeats_of_a_measurement_are_not_images():
    repeated = part("repeats", higher_is_better=True, category="cost", unit="", per_image=False)
    pairs = [scored(np.linspace(0, 1, 50), augmenter=name, metric=repeated) for name in ("none", "mixup")]
    board = only(made for made, _ in pairs)
    assert board.columns[0] not in verdicts(board, {made["key"]: values for made, values in pairs})


def test_an_image_without_a_score_for_one_of_two_rows_is_left_out_of_their_comparison():
    first, second = np.linspace(0, 1, 40), np.linspace(0, 1, 40) ** 2
    second[:5] = np.nan
    pairs = [scored(first, augmenter="none"), scored(second, augmenter="mixup")]
    board = only(made for made, _ in pairs)
    found = verdicts(board, {made["key"]: values for made, values in pairs})[board.columns[0]].of(row(board, "mixup"), "floor")
    assert found.difference.n == 35
    assert "Images without a score: accuracy: up to 5." in leaderboard.pages.table_text(board)


def test_an_explanation_is_compared_with_the_better_floor_of_its_own_network():
    values = {"random": 0.40, "centre": 0.45, "gradcam": 0.60}
    lines = [
        line(value + 0.01 * seed + (0.1 if augmenter == "edda" else 0), augmenter=augmenter, explainer=name, metric="insertion", seed=seed)
        for name, value in values.items()
        for augmenter in ("none", "edda")
        for seed in range(3)
    ]
    board = only([*lines, line(0.5, augmenter="none")][:-1])
    verdict = verdicts(board, {})[board.columns[0]]
    assert verdict.of(row(board, "edda", "gradcam"), "floor").other == row(board, "edda", "centre")
    assert verdict.of(row(board, "none", "gradcam"), "floor").other == row(board, "none", "centre")
    assert verdict.of(row(board, "edda", "random"), "floor") is None


def test_an_augmenter_is_compared_with_the_same_explainer_on_the_network_without_it():
    lines, rows = star()
    (networks, explanations) = boards(lines)
    assert networks.kind == "networks"
    found = verdicts(explanations, rows)[column(explanations, "deletion")]
    assert found.of(row(explanations, "augmenter-2", "explainer-1"), "plain").other == row(explanations, "none", "explainer-1")
    assert found.of(row(explanations, "none", "explainer-1"), "plain") is None


def test_older_lines_know_the_unaugmented_network_from_its_row_about_networks():
    lines, _ = star()
    older = [{**each, "augmenter": {name: value for name, value in each["augmenter"].items() if name != "floor"}} for each in lines]
    _, explanations = boards(older)
    assert {each.augmenter for each in explanations.rows if each.plain} == {"none"}


def test_the_family_of_the_best_is_every_pair_and_that_of_the_floor_its_rows():
    lines, rows = star()
    networks, _ = boards(lines)
    verdict = verdicts(networks, rows)[networks.columns[0]]
    best = [each for each in verdict.comparisons if each.against == "best"]
    floor = [each for each in verdict.comparisons if each.against == "floor"]
    assert [each.p for each in best] == statistics.holm([each.difference.p for each in best], 6)
    assert [each.p for each in floor] == statistics.holm([each.difference.p for each in floor])


def test_times_are_neither_ranked_nor_tested():
    lines, rows = star()
    _, explanations = boards(lines)
    timed = column(explanations, "throughput")
    assert timed.machine
    assert timed not in verdicts(explanations, rows)
    assert "**" not in leaderboard.pages.table_text(explanations, [timed])


def test_metrics_disagree_over_the_rows_that_have_both():
    values = {"none": (1.0, 1.0), "a": (2.0, 3.0), "b": (3.0, 2.0), "c": (4.0, None)}
    metrics = ("accuracy", "pointing")
    lines = [line(value, augmenter=name, metric=metric) for name, pair in values.items() for metric, value in zip(metrics, pair, strict=True)]
    board = only(lines)
    (tau,) = disagreements(board, board.columns).values()
    assert tau == pytest.approx((2 - 1) / 3)


# Pages


@pytest.fixture
def boards_of(tmp_path):
    def write(lines, rows=None, name="boards") -> Path:
        published(tmp_path / name / "data", lines, rows)
        leaderboard.write(tmp_path / name / "data", tmp_path / name)
        return tmp_path / name

    return write


def test_a_page_marks_ties_and_floors_and_names_what_was_tested(boards_of):
    random = np.random.RandomState(1)
    base = random.rand(100)
    pairs = [
        scored(base, augmenter="none"),
        scored(base + 0.001 * random.randn(100), augmenter="same"),
        scored(base + 0.3, augmenter="good"),
        scored(base + 0.3 + 0.001 * random.randn(100), augmenter="as-good"),
    ]
    folder = boards_of([made for made, _ in pairs], {made["key"]: values for made, values in pairs})
    page = (folder / "scenes.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in page.split("####")[0].splitlines() if line.startswith("|")}
    marks = {name: [mark for mark in "≈°‡" if mark in rows[name].split("|")[2]] for name in ("*none*", "same", "good", "as-good")}
    assert marks["same"] == ["°"]
    assert sorted(marks["good"] + marks["as-good"]) == ["≈"]
    assert marks["*none*"] == []
    assert "Tested over images (n = 100)." in page
    assert "| 2 of 3 " in page


def test_pages_are_the_same_bytes_however_the_lines_are_ordered_and_spread(boards_of, tmp_path):
    lines, rows = star(seeds=2)
    first = boards_of(lines, rows)
    other = tmp_path / "other"
    for number, group in enumerate((lines[::2], lines[1::2])):
        published(other / "data", group, rows, run=f"run-{number}")
    leaderboard.write(other / "data", other)
    names = {path.relative_to(first) for path in first.rglob("*") if path.is_file() and "data" not in path.parts}
    assert len(names) > 4
    assert all((first / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_check_notices_a_changed_figure(boards_of):
    folder = boards_of(*star())
    leaderboard.check(folder / "data", folder)
    figure = next((folder / "figures").glob("*.svg"))
    figure.write_text(figure.read_text().replace("rank", "Rank"))
    with pytest.raises(BenchError, match=figure.name):
        leaderboard.check(folder / "data", folder)


def test_without_values_per_image_a_single_seed_has_intervals_only(boards_of):
    lines, _ = star()
    folder = boards_of(lines)
    page = (folder / "scenes.md").read_text()
    assert not set("≈°") & set(page)
    assert not list(folder.glob("*.csv"))
    assert not (folder / "figures").exists()


def test_many_metrics_are_split_by_category(boards_of):
    names = [("a", "first kind"), ("b", "first kind"), *((letter, "second kind") for letter in "cdefg")]
    metrics = [part(name, higher_is_better=True, category=category, unit="") for name, category in names]
    folder = boards_of([line(0.5, metric=metric, augmenter=augmenter) for metric in metrics for augmenter in ("none", "mixup")])
    page = (folder / "scenes.md").read_text()
    assert page.index("#### First kind") < page.index("#### Second kind")
    assert max(line.count("|") for line in page.splitlines() if line.startswith("| none") or line.startswith("| *none*")) == 7


def test_every_comparison_is_in_the_file_beside_the_page(boards_of):
    lines, rows = star()
    folder = boards_of(lines, rows)
    written = list(csv.DictReader(io.StringIO((folder / "scenes-comparisons.csv").read_text())))
    counted = sum(len(verdict.comparisons) for board in boards(lines) for verdict in verdicts(board, rows).values())
    assert len(written) == counted > 20
    one = next(each for each in written if each["augmenter"] == "augmenter-2" and each["metric"] == "accuracy" and each["against"] == "floor")
    assert one["tested_over"] == "images"
    assert float(one["low"]) <= float(one["difference"]) <= float(one["high"])


HOSTILE = '<script>alert("x")</script>|`*_[a](javascript:b)\n=1+1'


def test_text_from_plugins_is_escaped_everywhere(boards_of):
    random = np.random.RandomState(2)
    names = ["none", "plain", HOSTILE]
    metric = part(HOSTILE, higher_is_better=True, category=HOSTILE, unit=HOSTILE, per_image=True)
    about = {"claim": HOSTILE, "paper": f"{HOSTILE}; {HOSTILE}; Venue 2020"}
    pairs = [scored(random.rand(30), augmenter=part(name, floor=name == "none", **about), metric=metric, dataset="../../escape") for name in names]
    folder = boards_of([made for made, _ in pairs], {made["key"]: values for made, values in pairs}, name="inner/boards")
    written = [path for path in folder.parents[1].rglob("*") if path.is_file() and "data" not in path.parts and path.suffix != ".jsonl"]
    assert all(folder in path.parents for path in written)
    for path in written:
        content = path.read_text()
        if path.suffix in (".md", ".svg"):
            assert "<script>" not in content
        if path.suffix == ".svg":
            ET.fromstring(content)
        if path.suffix == ".csv":
            assert all(not value.startswith("=") for record in csv.reader(io.StringIO(content)) for value in record)
    assert {path.suffix for path in written} == {".md", ".svg", ".csv", ".bib"}


def test_a_file_name_never_leaves_its_folder_and_two_names_never_share_one():
    assert results.slug("cifar100") == "cifar100"
    names = ["../up", "a/b", "a-b", "..", "", "A b", "a\\b", "é"]
    found = [results.slug(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(not set(name) & set("/\\ ") and not name.startswith(".") for name in found)


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [
        (0.91, None, "0.910"),
        (45.678, None, "45.68"),
        (1234.5, None, "1234"),
        (0.01234, None, "0.0123"),
        (3.2e-7, None, "3.2e-07"),
        (-1e-4, 3, "0.000"),
    ],
)
def test_numbers_have_as_many_digits_as_their_size_asks_for(value, digits, written):
    assert text.number(value, digits) == written


def test_figures_are_well_formed_and_the_same_bytes_again():
    values = np.random.RandomState(4).rand(6, 50) + np.arange(6)[:, None] * 0.1
    names = [f"method & <{number}>" for number in range(6)]
    first, second = (figures.draw(names, values, True, "a & b") for _ in range(2))
    assert first == second
    shown = [node.text for node in ET.fromstring(first).iter() if node.tag.endswith("text")]
    assert [text for text in shown if text in names] == names[::-1]  # The last has the largest values.


# Exports


def test_latex_marks_the_best_and_leaves_no_bare_sign_behind():
    board = only(seeds({"none": [0.5, 0.6], "mix_up & co": [0.7, 0.8]}))
    written = exports.latex([board])
    assert "\\textbf{0.750} $\\pm$ 0.635" in written  # t(.975, 1) = 12.706 times .05.
    assert "mix\\_up \\& co" in written
    assert "\\textit{none}" in written
    assert written.count("\\begin{tabular}") == written.count("\\end{tabular}") == 1


@pytest.mark.parametrize(
    ("paper", "fields"),
    [
        (
            "Petsiuk, Das, Saenko; RISE: Randomized Input Sampling; BMVC 2018; arXiv:1806.07421",
            {"author": "Petsiuk and Das and Saenko", "title": "RISE: Randomized Input Sampling", "year": "2018", "eprint": "1806.07421"},
        ),
        ("Guo et al.; On Calibration; ICML 2017", {"author": "Guo and others", "year": "2017", "howpublished": "ICML"}),
        ("E. Alpaydin, C. Kaynak; Digits; UCI Machine Learning Repository 1998", {"author": "E. Alpaydin and C. Kaynak", "year": "1998"}),
        ("A title alone", {"title": "A title alone"}),
    ],
)
def test_a_paper_becomes_the_fields_of_an_entry(paper, fields):
    found = exports.paper_fields(paper)
    assert {name: found[name] for name in fields} == fields


def test_two_papers_of_one_author_and_year_get_keys_of_their_own():
    written = exports.bibtex({"Kim; Puzzle Mix; ICML 2020": ["augmenter a"], "Kim; Puzzle Again; ICML 2020": ["augmenter b"]})
    assert "@misc{kim2020puzzle," in written
    assert "@misc{kim2020puzzleb," in written


def test_the_papers_of_the_methods_stand_beside_the_boards(boards_of):
    cited = part("rise", paper="Petsiuk, Das, Saenko; RISE; BMVC 2018; arXiv:1806.07421", claim="formula verified")
    folder = boards_of([line(0.5, explainer=cited, metric="deletion"), line(0.6, explainer="random", metric="deletion")])
    assert "@misc{petsiuk2018rise," in (folder / "methods.bib").read_text()
    assert "formula verified" in (folder / "scenes.md").read_text()


# Published lines


def test_a_job_that_two_runs_share_is_published_once_whatever_is_said_of_its_parts(tmp_path):
    first = line(0.5, key="k")
    results.publish([first], {"k": [0.5]}, tmp_path, "one")
    again = {**first, "run": "two", "augmenter": {**first["augmenter"], "claim": "formula verified", "distribution": "bench-xai 9"}}
    results.publish([again], {"k": [0.5]}, tmp_path, "two")
    assert [each["run"] for path in tmp_path.glob("*/*.jsonl") for each in results.read(path)] == ["synthetic"]
    assert [path.stem for path in tmp_path.glob("*/*.jsonl") if path.read_text()] == ["one"]
    with pytest.raises(InvalidValue, match="found"):
        results.publish([{**first, "value": 0.6}], {}, tmp_path, "three")


def test_values_per_image_are_read_back_with_gaps(tmp_path):
    results.publish([line(0.5, key="k")], {"k": [0.25, float("nan"), 0.75]}, tmp_path, "one")
    found = results.rows_of(tmp_path / "scenes")["k"]
    assert found.tolist()[::2] == [0.25, 0.75]
    assert np.isnan(found[1])


# Size


def test_fifty_thousand_lines_make_a_board_in_seconds_and_little_memory(tmp_path):
    template = json.dumps(line(0.5, augmenter="AUG", explainer="EXP", metric="deletion", key="KEY", seed=987654321, curve=None), sort_keys=True)
    place = tmp_path / "data" / "scenes"
    place.mkdir(parents=True)
    with (place / "run.jsonl").open("w") as file:
        number = 0
        for augmenter in range(100):
            for explainer in range(100):
                for seed in range(5):
                    number += 1
                    made = template.replace("AUG", f"a{augmenter}").replace("EXP", f"e{explainer}").replace("KEY", f"{number:064x}")
                    file.write(made.replace("987654321", str(seed)).replace('"value": 0.5', f'"value": {0.5 + (number * 7919 % 1000) / 1e4}') + "\n")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom bench import leaderboard\n"
        "folder = Path(sys.argv[1]); leaderboard.write(folder / 'data', folder)\n"
        "peak = next(each.split()[1] for each in open('/proc/self/status') if each.startswith('VmHWM'))\n"
        "print(time.process_time(), int(peak) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    seconds, mebibytes = map(float, done.stdout.split())
    assert seconds < 20
    assert mebibytes < 500
    assert (tmp_path / "scenes.md").read_text().count("\n| a") >= 10000


def test_what_an_augmentation_changes_is_its_paired_difference(boards_of):
    """Accuracies .90 .92 .94 without and .93 .96 .98 with: differences .03 .04 .04, mean .0367, t = 11 with two degrees of freedom, p = .0082."""
    lines = seeds({"none": [0.90, 0.92, 0.94], "edda": [0.93, 0.96, 0.98]})
    section = (boards_of(lines) / "scenes.md").read_text().split("#### What the augmentation changes")[1].split("####")[0]
    rows = {cells[1].strip(): cells[2].strip() for line in section.splitlines() if len(cells := line.split("|")) > 2}
    assert "on the same seeds" in section
    half = 4.302653 * 0.0057735 / 3**0.5
    assert rows["edda"] == f"+0.0367 [{0.0366667 - half:.4f}, {0.0366667 + half:.4f}] **better**"
    assert "none" not in rows


def test_an_explanation_is_compared_with_the_same_explainer_on_the_plain_network(boards_of):
    plain = seeds({"none": [0.50, 0.51, 0.52]}, metric="deletion", explainer="gradcam")
    worse = seeds({"edda": [0.60, 0.61, 0.62001]}, metric="deletion", explainer="gradcam")
    alone = seeds({"edda": [0.60, 0.61, 0.62]}, metric="deletion", explainer="rise")
    section = (boards_of(plain + worse + alone) / "scenes.md").read_text().split("#### What the augmentation changes")[1].split("####")[0]
    assert "| edda        | gradcam     | +0.100 [0.100, 0.100] **worse** |" in section
    assert "rise" not in section


def test_the_change_of_a_floor_stands_beside_the_change_of_an_explainer(boards_of):
    """An insertion that falls by as much for a map that looks at nothing has not fallen for what the map shows."""
    values = {("none", "gradcam"): 0.8, ("edda", "gradcam"): 0.6, ("none", "random"): 0.5, ("edda", "random"): 0.3}
    lines = [
        each
        for (augmenter, explainer), value in values.items()
        for each in seeds(
            {augmenter: [value, value + 0.01, value + (0.03001 if augmenter == "edda" else 0.03)]}, metric="insertion", explainer=explainer
        )
    ]
    section = (boards_of(lines) / "scenes.md").read_text().split("#### What the augmentation changes")[1].split("####")[0]
    assert "| edda        | gradcam     | -0.200 [-0.200, -0.200] **worse** |" in section
    assert "| *edda*      | *random*    | -0.200 [-0.200, -0.200] **worse** |" in section
    assert "look at no network" in section


def test_a_view_of_a_board_has_the_changes_of_the_floors_that_it_leaves_out():
    values = {("none", "gradcam"): 0.8, ("edda", "gradcam"): 0.6, ("none", "random"): 0.5, ("edda", "random"): 0.31}
    lines = [
        each
        for (augmenter, explainer), value in values.items()
        for each in seeds({augmenter: [value, value + 0.01, value + 0.03]}, metric="insertion", explainer=explainer)
    ]
    whole = only(lines)
    view = replace(whole, rows=tuple(each for each in whole.rows if each != row(whole, "edda", "random")), view="explained by gradcam")
    found = changes(view, verdicts(view, {}))
    assert found is not None
    assert [each.name for each in found.rows] == ["edda × gradcam", "edda × random"]
    assert [round(each.difference.mean, 2) for each in found.of[view.columns[0]].values()] == [-0.2, -0.19]


def test_ranks_and_a_mean_that_point_in_opposite_directions_tell_nothing_apart():
    """Of 100 images 80 are a little better, 20 far worse: the ranks say better, the mean says worse."""
    random = np.random.RandomState(5)
    base = random.rand(100)
    change = np.where(np.arange(100) < 80, 0.01, -0.2) + 1e-4 * random.randn(100)
    pairs = [scored(base, augmenter="none"), scored(base + change, augmenter="edda")]
    board = only([made for made, _ in pairs])
    verdict = verdicts(board, {made["key"]: values for made, values in pairs})[board.columns[0]]
    (found,) = (each for each in verdict.comparisons if each.against == "floor")
    assert found.p < 0.05
    assert found.difference.mean < 0 < found.difference.effect
    assert not found.told_apart
    assert verdict.beats(row(board, "edda"), "floor") is False


def test_what_metrics_drew_stands_at_the_end_with_run_metric_and_network(boards_of, tmp_path):
    drawn = tmp_path / "boards" / "figures" / "networks"
    drawn.mkdir(parents=True)
    for name in ("scenes--star--ece--small-net--standard--edda.png", "scenes-more--star--ece--small-net--standard--edda.png"):
        (drawn / name).write_bytes(b"")
    page = (boards_of([line(0.5)]) / "scenes.md").read_text()
    assert "![star, ece, small-net, standard, edda](figures/networks/scenes--star--ece--small-net--standard--edda.png)" in page
    assert "first seed (1)" in page
    assert "scenes-more" not in page


# Reported numbers


REPORTED = """
[[table]]
paper = "Li et al.; EDDA; 2021"
where = "Table 3"
compares = "augmenter"
dataset = "cifar100"
model = "resnet50"
explainer = "gradcam"
metrics = ["deletion", "insertion"]
factor = 0.01
note = "5 seeds"
[table.rows]
none = [[22.36, 0.50], 27.3]
edda = [[39.77, 0.50], [46.08, 0.38]]
"""


def test_what_a_paper_prints_stands_beside_what_is_measured_here(boards_of, tmp_path):
    about = {"explainer": "gradcam", "dataset": "cifar100", "model": "resnet50"}
    lines = [
        line(0.25, metric="deletion", augmenter=part("edda", claim="formula verified"), **about),
        line(0.35, metric="deletion", augmenter="edda", **{**about, "explainer": "random"}),
        line(0.45, metric="deletion", augmenter="edda", **{**about, "model": "vgg16"}),
        line(0.55, metric="deletion", augmenter="edda", noise=part("symmetric"), **about),
    ]
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / reported.FILE).write_text(REPORTED)
    page = (boards_of(lines) / "reported.md").read_text()
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in page.splitlines() if row.startswith("|")}
    assert rows["edda"] == ["0.3977 ± 0.0050", "[0.250 (0.200, 0.300)](cifar100.md)", "0.4608 ± 0.0038", "–", "formula verified"]
    assert rows["none"] == ["0.2236 ± 0.0050", "–", "0.273", "–", "–"]


def test_a_paper_s_metrics_may_be_printed_in_different_units(tmp_path):
    (tmp_path / reported.FILE).write_text(REPORTED.replace("factor = 0.01", "factor = [0.01, 1]"))
    (table,) = reported.read(tmp_path / reported.FILE)
    assert [reported.printed(*number) for number in table.rows["edda"]] == ["0.3977 ± 0.0050", "46.08 ± 0.38"]


def test_a_paper_s_comparison_on_other_data_stands_below_its_table(boards_of, tmp_path):
    about = {"explainer": "gradcam", "dataset": "scenes", "model": "resnet-mini"}
    lines = [
        line(0.25, metric="deletion", augmenter="edda", **about),
        line(0.35, metric="deletion", augmenter="none", **about),
        line(0.45, metric="deletion", augmenter="mixup", **about),  # Not in the paper's table.
        line(0.55, metric="deletion", augmenter="edda", **{**about, "explainer": "rise"}),
        line(0.65, metric="deletion", augmenter="edda", **{**about, "dataset": "digits"}),  # Alone there: nothing is compared.
    ]
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / reported.FILE).write_text(REPORTED)
    page = (boards_of(lines) / "reported.md").read_text()
    assert "Measured here: [digits" not in page
    below = page.split("### Measured here: [scenes, resnet-mini, standard](scenes.md)")[1]
    head, _, *rows = ([cell.strip() for cell in row.split("|")[1:-1]] for row in below.splitlines() if row.startswith("|"))
    assert head == ["augmenter", "deletion ↓ (area)"]
    assert "Explained by gradcam." in below
    assert rows == [["none", "0.350 [0.300, 0.400]"], ["edda", "0.250 [0.200, 0.300]"]]


def test_numbers_of_two_recipes_are_not_mixed_into_one_comparison(boards_of, tmp_path):
    about = {"metric": "deletion", "explainer": "gradcam", "model": "resnet-mini"}
    short, long = ({**line()["recipe"], "epochs": epochs} for epochs in (2, 8))
    lines = [
        line(value, augmenter=name, recipe=recipe, **about)
        for value, (name, recipe) in zip((0.1, 0.2, 0.3, 0.4), product(("none", "edda"), (short, long)), strict=True)
    ]
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / reported.FILE).write_text(REPORTED)
    first, second = (boards_of(lines) / "reported.md").read_text().split("### Measured here")[1:]
    assert ("2 epochs" in first, "8 epochs" in second) == (True, True)
    assert ("0.100" in first, "0.300" in first, "0.200" in first) == (True, True, False)


def test_explainers_are_compared_where_the_paper_s_noise_and_augmenter_are(boards_of, tmp_path):
    """A paper that names neither has no label noise and no augmentation; one that names a rate means that rate."""
    table = """
[[table]]
paper = "A paper"
where = "Table 1"
compares = "explainer"
dataset = "voc2007"
model = "vgg16"
metrics = ["deletion"]
{noise}
[table.rows]
gradcam = [1.0]
rise = [2.0]
"""
    noisy = part("symmetric", label="symmetric:0.8")
    lines = [
        line(value, metric="deletion", explainer=name, noise=noise, augmenter=augmenter)
        for value, (name, noise, augmenter) in enumerate(product(("gradcam", "rise"), (None, noisy), ("none", "edda")), 1)
    ]
    (tmp_path / "boards").mkdir()
    for noise, first, second in (("", "1", "5"), ('noise = "symmetric:0.8"', "3", "7")):
        (tmp_path / "boards" / reported.FILE).write_text(table.format(noise=noise))
        below = (boards_of(lines) / "reported.md").read_text().split("### Measured here")
        assert len(below) == 2
        numbers = [row.split("|")[2].split()[0].split(".")[0] for row in below[1].splitlines() if row.startswith(("| gradcam", "| rise"))]
        assert numbers == [first, second]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("metrics", "metricks"), "missing metrics; unknown metricks"),
        (("27.3]", "27.3, 1.0]"), "'none' has 3 numbers for 2 metrics"),
        (("factor = 0.01", "factor = [0.01]"), "factor has 1 numbers for 2 metrics"),
        (("[[table]]", "[[table"), "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_reported_numbers_is_named(tmp_path, change, complaint):
    (tmp_path / reported.FILE).write_text(REPORTED.replace(*change))
    with pytest.raises(InvalidValue, match=complaint):
        reported.read(tmp_path / reported.FILE)


def test_the_reported_numbers_name_methods_and_metrics_that_there_are():
    registry = plugins.load().registry
    known = {kind: {entry.name for entry in registry.entries(kind)} for kind in ("augmenter", "explainer", "trainer", "metric")}
    tables = reported.read(Path(__file__).parents[1] / "leaderboards" / reported.FILE)
    assert len(tables) > 10
    for table in tables:
        methods = set(table.rows) - ({"none"} if table.compares == "trainer" else set())
        assert methods <= known[table.compares], table.where
        assert set(table.metrics) <= known["metric"], table.where
