"""`bench diff`: which numbers and places changed, and what is named as the reason."""

import pytest
from click.testing import CliRunner
from synthetic import line, part, published, star

from bench import compare
from bench.cli import main

ABOUT = {"interval": None}


def networks(values: dict[str, float], **changes):
    return [line(value, augmenter=name, **ABOUT, **changes) for name, value in values.items()]


def only(before, after):
    (change,) = compare.diff(before, after)
    return change


def test_the_same_lines_differ_in_nothing():
    lines, _ = star(seeds=2)
    assert compare.diff(lines, list(reversed(lines))) == []
    assert compare.report([]) == "0 numbers differ, 0 places changed, 0 regressions"


def test_a_changed_number_changes_its_own_place_and_that_of_the_row_it_passed():
    before = networks({"none": 50.0, "edda": 60.0, "mixup": 55.0})
    after = networks({"none": 50.0, "edda": 52.0, "mixup": 55.0})
    found = {change.row.augmenter: change for change in compare.diff(before, after)}
    assert {name: (change.before.place, change.after.place) for name, change in found.items()} == {"edda": (1, 2), "mixup": (2, 1)}
    assert found["edda"].differs
    assert not found["mixup"].differs
    assert found["mixup"].reasons == ("no longer ahead of it: edda",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"augmenter": part("edda", version=2)}, "augmenter.version 1 → 2"),
        ({"augmenter": part("edda", parameters={"tau": 0.4})}, "augmenter.tau none → 0.4"),
        ({"augmenter": part("edda", distribution="bench-xai 0.2.0")}, "augmenter.distribution bench-xai 0.1.0 → bench-xai 0.2.0"),
        ({"metric": {**line()["metric"], "version": 3}}, "metric.version 1 → 3"),
        ({"recipe": {**line()["recipe"], "epochs": 9}}, "recipe.epochs 2 → 9"),
        (
            {"dataset": {**line()["dataset"], "fingerprint": "sha256:0123456789abcdef"}},
            "dataset.fingerprint sha256:a7c0c120a1e5… → sha256:0123456789ab…",
        ),
        ({"model": part("small-net", version=2)}, "model.version 1 → 2"),
        ({"weights": "sha256:other"}, "the weights differ"),
        ({"environment": {**line()["environment"], "threads": 2}}, "threads 1 → 2"),
        ({}, "nothing that is recorded differs"),
    ],
)
def test_what_differs_is_named_as_the_reason(changes, reason):
    before = line(60.0, augmenter="edda", **ABOUT)
    after = {**before, **changes, "value": 61.0, "key": "another"}
    assert reason in only([before], [after]).reasons


def test_words_about_a_part_are_no_reason():
    before = line(60.0, augmenter=part("edda", claim="unverified", paper="A; B; 2020"), **ABOUT)
    after = {**before, "augmenter": part("edda", claim="formula verified"), "value": 61.0}
    assert only([before], [after]).reasons == ("nothing that is recorded differs",)


def test_other_seeds_are_named():
    before = [line(60.0, seed=0, **ABOUT)]
    after = [*before, line(70.0, seed=1, **ABOUT)]
    assert only(before, after).reasons == ("seeds 0 → 0, 1",)


def test_worse_by_more_than_the_intervals_allow_is_a_regression():
    def change(new: float, **about):
        return only([line(60.0, interval=[58.0, 62.0])], [line(new, interval=[new - 2, new + 2])])

    assert not change(57.0).regressed()
    assert change(55.5).regressed()
    assert change(57.0).regressed(tolerance=1.0)
    assert not change(65.0).regressed(tolerance=0.0)


def test_less_is_a_gain_where_lower_is_better():
    def change(new: float):
        about = {"explainer": "gradcam", "metric": "deletion", **ABOUT}
        return only([line(0.5, **about)], [line(new, **about)])

    assert change(0.6).regressed()
    assert not change(0.4).regressed()


def test_a_number_that_is_gone_is_a_regression_and_a_new_one_is_not():
    before, after = networks({"none": 50.0, "edda": 60.0}), networks({"none": 50.0, "mixup": 60.0})
    found = {change.row.augmenter: change for change in compare.diff(before, after)}
    assert {name: change.regressed() for name, change in found.items()} == {"edda": True, "mixup": False}
    gone = only(networks({"edda": 60.0}), [line(None, augmenter="edda")])
    assert gone.regressed()


def test_times_are_never_a_regression():
    def lines(value: float):
        return [line(value, explainer="gradcam", metric="throughput", **ABOUT)]

    assert not only(lines(900.0), lines(100.0)).regressed()


def test_a_table_that_one_side_does_not_have_is_new_or_gone():
    both = compare.diff(networks({"none": 50.0}), networks({"none": 50.0}, dataset="digits"))
    assert [(change.table.split(",")[0], change.before is None, change.after is None) for change in both] == [
        ("scenes", False, True),
        ("digits", True, False),
    ]


def test_equal_numbers_share_a_place():
    before, after = networks({"a": 50.0, "b": 50.0, "c": 40.0}), networks({"a": 50.0, "b": 50.0, "c": 60.0})
    found = {change.row.augmenter: (change.before.place, change.after.place) for change in compare.diff(before, after)}
    assert found == {"a": (1, 2), "b": (1, 2), "c": (3, 1)}


def run(*arguments):
    done = CliRunner().invoke(main, ["diff", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_command_says_what_changed_and_can_fail_a_build(tmp_path):
    before = published(tmp_path / "before", networks({"none": 50.0, "edda": 60.0}))
    after = published(tmp_path / "after", networks({"none": 50.0, "edda": 45.0}))
    code, said = run(before, after)
    assert code == 0
    assert "accuracy ↑  edda: place 1 of 2 → 2 of 2, 60.00 → 45.00  REGRESSION" in said
    assert said.endswith("1 numbers differ, 2 places changed, 1 regressions\n")
    assert run(before, after, "--fail-on-regression")[0] == 1
    assert run(before, after, "--fail-on-regression", "--tolerance", "20")[0] == 0
    assert run(after, before, "--fail-on-regression")[0] == 0
    assert run(before / "scenes/synthetic.jsonl", before, "--fail-on-regression")[0] == 0


def test_with_every_small_changes_are_shown_too(tmp_path):
    before = published(tmp_path / "before", networks({"none": 50.0, "edda": 60.0}))
    after = published(tmp_path / "after", networks({"none": 50.0, "edda": 61.0}))
    assert "edda" not in run(before, after)[1]
    assert "edda: 60.00 → 61.00" in run(before, after, "--every")[1]
