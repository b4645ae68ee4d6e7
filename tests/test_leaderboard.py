"""Boards from hand-made lines, cell by cell. What the tests on them say is in test_boards.py and test_statistics.py."""

import random
import re

import pytest
from synthetic import line, part, published

from bench import leaderboard
from bench.errors import BenchError
from bench.leaderboard import boards
from bench.leaderboard.comparisons import verdicts
from bench.leaderboard.pages import table_text
from bench.results import dump


def cells(text):
    """The cells of the first markdown table in a text, stripped, without the line under the heading."""
    rows = [row for row in text.splitlines() if row.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not row.startswith("|:")]


def table(*lines):
    (board,) = boards(lines)
    return table_text(board)


def build(tmp_path, *lines):
    return leaderboard.build(published(tmp_path / "data", lines))


# Views


def star(augmenters, explainers, seeds=(0, 1)):
    """Every augmenter x gradcam and the floors; every explainer x none and edda. A row's value is told by its place."""
    pairs = [(augmenter, explainer) for augmenter in augmenters for explainer in ("random", "gradcam")]
    pairs += [(augmenter, explainer) for augmenter in ("none", "edda") for explainer in explainers]
    return [
        line(place + seed / 10, augmenter=augmenter, explainer=explainer, metric="insertion", seed=seed)
        for place, (augmenter, explainer) in enumerate(pairs)
        for seed in seeds
    ]


AUGMENTERS = ["none", "edda", *(f"augmenter-{number:02}" for number in range(20))]
EXPLAINERS = [f"explainer-{number:02}" for number in range(30)]


def test_a_star_with_more_rows_than_can_be_read_comes_as_the_questions_that_are_asked_of_it():
    found = boards(star(AUGMENTERS, EXPLAINERS))
    assert [board.view for board in found] == ["augmenters, explained by gradcam", "explainers, trained with none", "explainers, trained with edda"]
    assert [len(board.rows) for board in found] == [22 + 1, 30 + 2, 30 + 2]
    assert [row.name for row in found[0].rows if row.floor] == ["none × random"]
    assert len({board.identity for board in found}) == 3


def test_a_view_tests_each_row_against_the_floor_and_the_plain_network_that_it_does_not_show():
    by_gradcam, _, of_edda = boards(star(AUGMENTERS, EXPLAINERS))
    (judged,) = verdicts(by_gradcam, {}).values()
    row = next(row for row in by_gradcam.rows if row.augmenter == "augmenter-07")
    assert judged.of(row, "floor").other.name == "augmenter-07 × random"
    assert judged.of(row, "plain").other.name == "none × gradcam"
    (judged,) = verdicts(of_edda, {}).values()
    row = next(row for row in of_edda.rows if row.explainer == "explainer-03")
    assert judged.of(row, "plain").other.name == "none × explainer-03"
    assert judged.of(row, "best").other.name == "edda × explainer-29"


def test_what_can_be_read_stays_one_table_and_so_does_what_is_asked_for_whole():
    assert [board.view for board in boards(star(AUGMENTERS[:5], EXPLAINERS[:5]))] == [""]
    assert [board.view for board in boards(star(AUGMENTERS, EXPLAINERS), whole=True)] == [""]


def test_each_result_of_a_star_is_counted_once(tmp_path):
    lines = star(AUGMENTERS, EXPLAINERS)
    assert cells(build(tmp_path, *lines)["README.md"])[1][-1] == str(len(lines))


# Cells


def test_one_seed_shows_its_interval_over_images_and_floors_are_in_italics():
    text = table(line(62.5, augmenter="none", interval=[60.0, 65.0]), line(71.0, augmenter="edda", interval=[69.5, 72.25]))
    assert cells(text) == [
        ["augmenter", "accuracy ↑ (%)"],
        ["*none*", "62.50 [60.00, 65.00]"],
        ["edda", "**71.00 [69.50, 72.25]**"],
    ]
    assert "n = 100 images per number." in text


def test_several_seeds_show_their_mean_and_students_interval():
    """none: 50 and 60, mean 55, standard error 5; edda: 70 and 72, mean 71, standard error 1; t(1 degree) is 12.706."""
    values = {("none", 0): 50.0, ("none", 1): 60.0, ("edda", 0): 70.0, ("edda", 1): 72.0}
    text = table(*(line(value, augmenter=augmenter, seed=seed) for (augmenter, seed), value in values.items()))
    assert cells(text) == [
        ["augmenter", "accuracy ↑ (%)"],
        ["*none*", "55.00 ± 63.53"],
        ["edda", "**71.00 ± 12.71**"],
    ]


def test_explanations_have_a_row_per_network_and_explainer_and_less_may_be_better():
    lines = [
        line(value, augmenter=augmenter, explainer=explainer, metric="deletion", interval=None)
        for augmenter, explainer, value in [("none", "random", 0.5), ("none", "gradcam", 0.25), ("edda", "gradcam", 0.125)]
    ]
    assert cells(table(*lines)) == [
        ["augmenter", "explainer", "deletion ↓ (area)"],
        ["*none*", "*random*", "0.500"],
        ["none", "gradcam", "0.250"],
        ["edda", "gradcam", "**0.125**"],
    ]


def test_what_was_not_scored_is_a_dash_and_is_never_best():
    lines = [
        line(0.5, explainer="gradcam", metric="deletion", interval=None),
        line(0.6, explainer="rise", metric="deletion", interval=None),
        line(0.7, explainer="rise", metric="insertion", interval=None),
        line(None, explainer="gradcam", metric="insertion"),
        line(0.1, explainer="lime", metric="insertion", interval=None),
    ]
    assert cells(table(*lines)) == [
        ["augmenter", "explainer", "deletion ↓ (area)", "insertion ↑ (area)"],
        ["none", "gradcam", "**0.500**", "–"],
        ["none", "lime", "–", "0.100"],
        ["none", "rise", "0.600", "**0.700**"],
    ]


def test_a_seed_without_a_value_makes_its_cell_a_missing_one():
    lines = [line(value, augmenter=augmenter, seed=seed, interval=None) for augmenter, seed, value in
             [("none", 0, 50.0), ("none", 1, 52.0), ("edda", 0, 70.0), ("edda", 1, None)]]  # fmt: skip
    assert cells(table(*lines))[2] == ["edda", "–"]


def test_a_seed_that_never_finished_is_not_averaged_around_in_silence():
    """Its job failed, so there is no line of it: the mean over the others stands with a mark and is not the best."""
    lines = [line(value, augmenter=augmenter, seed=seed) for augmenter, seed, value in
             [("none", 0, 50.0), ("none", 1, 52.0), ("cutmix", 0, 60.0), ("cutmix", 1, 61.0), ("edda", 0, 70.0)]]  # fmt: skip
    found = {row[0]: row[1] for row in cells(table(*lines))}
    assert found["edda"].endswith("‡")
    assert "**" not in found["edda"]
    assert found["cutmix"].startswith("**")


def test_rows_that_are_equally_good_are_all_the_best_and_one_alone_is_not():
    equal = cells(table(*(line(50.0, augmenter=name, interval=None) for name in ("a", "b"))))
    assert [row[1] for row in equal[1:]] == ["**50.00**", "**50.00**"]
    assert cells(table(line(50.0, interval=None)))[1] == ["*none*", "50.00"]


def test_times_are_marked_named_with_their_machine_and_have_no_best():
    text = table(*(line(value, augmenter=name, metric="throughput", interval=None) for name, value in (("none", 900.0), ("edda", 300.0))))
    assert cells(text) == [["augmenter", "throughput ↑ † (images/s)"], ["*none*", "900.0"], ["edda", "300.0"]]
    assert "† measured on a processor, 1 thread." in text


# What may stand together


@pytest.mark.parametrize(
    "other",
    [
        {"model": "large-net"},
        {"trainer": part("pes")},
        {"noise": part("symmetric", parameters={"rate": 0.2})},
        {"recipe": {**line()["recipe"], "epochs": 30}},
        {"images": {**line()["images"], "target": "true"}},
        {"images": {**line()["images"], "memory_format": "contiguous"}},
        {"dataset": "digits"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_rows_that_may_not_be_compared_stand_in_tables_of_their_own(other):
    found = boards([line(50.0, augmenter="none"), line(60.0, augmenter="edda", **other)])
    assert [len(board.rows) for board in found] == [1, 1]
    assert all("**" not in table_text(board) for board in found)


def test_each_table_tells_its_own_setting(tmp_path):
    short, long = line(50.0), line(60.0, recipe={**line()["recipe"], "epochs": 30})
    page = build(tmp_path, short, long)["scenes.md"]
    assert page.count("### Networks") == 2
    assert "for 2 epochs" in page
    assert "for 30 epochs" in page


def test_networks_and_explanations_of_one_run_stand_in_two_tables(tmp_path):
    page = build(tmp_path, line(50.0), line(0.5, explainer="gradcam", metric="deletion"))["scenes.md"]
    assert page.count("### Networks") == page.count("### Explanations") == 1


# The same bytes


def many():
    return [
        line(50.0 + seed + len(augmenter), augmenter=augmenter, explainer=explainer, metric=metric, seed=seed, dataset=dataset)
        for augmenter in ("none", "edda")
        for explainer, metric in ((None, "accuracy"), ("gradcam", "deletion"), ("random", "deletion"))
        for seed in range(3)
        for dataset in ("scenes", "digits")
    ]


def test_pages_do_not_depend_on_the_order_of_lines_nor_on_the_files_they_lie_in(tmp_path):
    lines = many()
    expected = build(tmp_path / "one", *lines)
    for number in range(3):
        random.Random(number).shuffle(lines)
        half = len(lines) // 2
        folder = tmp_path / f"shuffled {number}" / "data"
        published(folder, lines[:half], run="z")
        published(folder, lines[half:], run="a")
        for path in folder.rglob("*.jsonl"):
            path.write_text("".join(random.Random(number).sample(found := path.read_text().splitlines(keepends=True), len(found))))
        assert leaderboard.build(folder) == expected


def test_a_part_with_two_labels_has_the_same_one_whatever_comes_first():
    """Two runs called one explainer by two labels: what stands on the page must not depend on the order of the files."""
    plain, renamed = line(0.5, seed=0, key="a", explainer="gradcam"), line(0.6, seed=1, key="b", explainer=part("gradcam", label="early"))
    assert table(plain, renamed) == table(renamed, plain)


def test_a_job_in_two_files_counts_once(tmp_path):
    published(tmp_path / "data", [line(50.0)], run="a")
    published(tmp_path / "data", [line(50.0)], run="b")
    (board,) = boards([line(50.0), line(50.0)])
    assert board.cell(board.rows[0], board.columns[0]).seeds == 1
    assert "50.00 [49.95, 50.05]" in leaderboard.build(tmp_path / "data")["scenes.md"]


# Text from strangers


HOSTILE = "a|b\n# <script>alert(1)</script> **x** `c` [l](javascript:0) ![i](http://x/y.png) \\| _e_"


def test_a_hostile_label_stays_one_cell_of_text():
    text = table(line(50.0, augmenter=part("edda", label=HOSTILE), interval=None), line(40.0, interval=None))
    rows = [row for row in text.splitlines() if row.startswith("|")]
    assert len(rows) == 4
    assert all(len(re.findall(r"(?<!\\)\|", row.replace("\\\\", ""))) == 3 for row in rows)
    assert "<script>" not in text
    assert "](" not in text.replace("\\](", "")


@pytest.mark.parametrize("place", ["augmenter", "explainer", "model", "trainer", "noise", "metric", "dataset", "licence"])
def test_a_hostile_text_does_nothing_to_a_page_wherever_it_comes_from(tmp_path, place):
    hostile = part("x", label=HOSTILE)
    changes = {
        "metric": {"metric": {**line()["metric"], "label": HOSTILE, "unit": HOSTILE}},
        "dataset": {"dataset": HOSTILE},
        "licence": {},
        "model": {},
    }.get(place, {place: hostile})
    found = {**line(50.0, **changes)}
    if place == "model":
        found["model"] = hostile
    if place == "licence":
        found["dataset"] = {**found["dataset"], "licence": HOSTILE}
    for name, page in build(tmp_path, found).items():
        if name.endswith(".md"):
            assert "<script>" not in page
            assert "\n# <" not in page
            assert "`c`" not in page.replace("\\`c\\`", "")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


# Writing and checking


def test_check_is_content_with_what_was_written_and_names_what_was_changed(tmp_path):
    data = published(tmp_path / "data", many())
    with pytest.raises(BenchError, match=r"README\.md"):
        leaderboard.check(data, tmp_path)
    leaderboard.write(data, tmp_path)
    leaderboard.check(data, tmp_path)
    page = tmp_path / "scenes.md"
    page.write_text(page.read_text().replace("none", "better"))
    with pytest.raises(BenchError, match=r"^scenes\.md in .*\nWrite it again: bench leaderboard$"):
        leaderboard.check(data, tmp_path)


def test_writing_again_touches_nothing(tmp_path):
    data = published(tmp_path / "data", many())
    before = {path: path.stat().st_mtime_ns for path in leaderboard.write(data, tmp_path)}
    assert {path: path.stat().st_mtime_ns for path in leaderboard.write(data, tmp_path)} == before


def test_a_page_of_which_there_are_no_lines_any_more_is_noticed_and_removed(tmp_path):
    data = published(tmp_path / "data", many())
    leaderboard.write(data, tmp_path)
    (tmp_path / "notes.md").write_text("not ours")
    for path in (data / "digits").iterdir():
        path.unlink()
    with pytest.raises(BenchError, match=r"digits\.md"):
        leaderboard.check(data, tmp_path)
    leaderboard.write(data, tmp_path)
    leaderboard.check(data, tmp_path)
    assert {path.name for path in tmp_path.glob("*.md")} == {"README.md", "scenes.md", "notes.md"}


def test_nothing_published_is_a_page_that_says_so(tmp_path):
    assert "Nothing is published yet." in leaderboard.build(tmp_path)["README.md"]


def test_a_damaged_line_ends_the_writing_before_a_page_is_touched(tmp_path):
    data = published(tmp_path / "data", [line(50.0)])
    (data / "scenes/zz.jsonl").write_text(dump(line()) + "\nnot a line\n")
    with pytest.raises(BenchError, match=r"zz\.jsonl, line 2"):
        leaderboard.write(data, tmp_path)
    assert not (tmp_path / "README.md").exists()
