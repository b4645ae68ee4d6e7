"""`bench verify`: published numbers are made again, and what does not hold is named."""

import pytest
from click.testing import CliRunner
from conftest import FINISHED, PARTS

from bench import plugins, results
from bench.cli import main
from bench.errors import InvalidValue
from bench.store import Store
from bench.verify import chosen, verify


@pytest.fixture
def lines(ran, tmp_path):
    """What a small run finds, as it is read back from its file."""
    outcome = ran(
        augmenters=["none", {"name": "shade", "strength": 0.3, "as": "dim"}],
        explainers=["random", {"name": "slope", "power": 2.0}],
        metrics=["deletion", "accuracy", "passes-over-floor"],
        seeds=1,
    )
    assert not outcome.failures
    results.write(tmp_path / "published/data/tiny/run.jsonl", outcome.lines)
    return list(results.read(tmp_path / "published/data/tiny/run.jsonl"))


def judged(lines, registry, tmp_path, **options):
    return {finding.line["key"]: finding for finding in verify(lines, registry, Store(tmp_path / "fresh"), **options)}


def test_what_was_published_is_found_again_from_the_lines_alone(lines, registry, tmp_path):
    found = judged(lines, registry, tmp_path)
    assert len(found) == len(lines) == 2 * (2 + 2)
    assert {finding.verdict for finding in found.values()} == {"same"}


def test_only_the_jobs_of_the_lines_are_done(lines, registry, tmp_path):
    one = next(line for line in lines if line["metric"]["name"] == "deletion" and line["augmenter"]["label"] == "dim")
    judged([one], registry, tmp_path)
    assert {Store(tmp_path / "fresh").record(key)["stage"] for key in Store(tmp_path / "fresh").finished()} == {"train", "explain", "score"}
    assert len(list(Store(tmp_path / "fresh").finished())) == 3


def test_a_number_that_was_changed_does_not_hold(lines, registry, tmp_path):
    one = next(line for line in lines if line["metric"]["name"] == "deletion")
    low, high = one["interval"]
    near, far = one["value"] + 0.4 * (high - low), one["value"] + (high - low)
    assert judged([{**one, "value": near}], registry, tmp_path)[one["key"]].verdict == "holds"
    assert judged([{**one, "value": far}], registry, tmp_path)[one["key"]].verdict == "differs"
    assert judged([{**one, "value": far}], registry, tmp_path, tolerance=2.0)[one["key"]].verdict == "holds"
    assert judged([{**one, "value": near}], registry, tmp_path, tolerance=0.0)[one["key"]].verdict == "differs"


def test_another_version_cannot_be_repeated_and_the_reason_says_so(lines, registry, tmp_path):
    one = next(line for line in lines if line["metric"]["name"] == "accuracy")
    other = {**one, "training": "0" * 64, "key": "1" * 64, "augmenter": {**one["augmenter"], "version": 7}}
    (finding,) = verify([other], registry, Store(tmp_path / "fresh"))
    assert finding.verdict == "cannot be repeated"
    assert "augmenter.version 7 → 1" in finding.reason
    assert not list(Store(tmp_path / "fresh").finished())


def test_a_part_that_is_not_installed_is_named(lines, registry, tmp_path):
    one = {**lines[0], "augmenter": {**lines[0]["augmenter"], "name": "unheard-of", "label": "unheard-of"}}
    (finding,) = verify([one], registry, Store(tmp_path / "fresh"))
    assert finding.verdict == "cannot be repeated"
    assert "no augmenter is called 'unheard-of'" in finding.reason


def test_times_are_left_out(lines, registry, tmp_path):
    timed = {**lines[0], "machine": {"hardware": "a processor", "threads": 1}}
    assert list(verify([timed], registry, Store(tmp_path / "fresh"))) == []


def test_lines_are_chosen_by_key_or_by_network(lines):
    assert chosen(lines, [lines[0]["key"][:10]], None) == [lines[0]]
    assert len({line["training"] for line in chosen(lines, [], 1)}) == 1
    with pytest.raises(InvalidValue, match="begins with zz"):
        chosen(lines, ["zz"], None)


def test_the_command_prints_a_finding_per_line_and_fails_where_one_does_not_hold(lines, tmp_path, monkeypatch):
    small = plugins.load([PARTS], only=FINISHED)
    monkeypatch.setattr(plugins, "load", lambda files=(), without=(): small)
    key = next(line["key"] for line in lines if line["metric"]["name"] == "deletion")

    def run(*more):
        done = CliRunner().invoke(main, ["verify", str(tmp_path / "published"), "--threads", "1", *more])
        return done.exit_code, done.output

    code, said = run("--networks", "1")
    assert code == 0
    assert "4 same" in said
    changed = [{**line, "value": line["value"] + 1} if line["key"] == key else line for line in lines]
    results.write(tmp_path / "published/data/tiny/run.jsonl", changed)
    code, said = run("--key", key[:12])
    assert code == 1
    assert said.startswith("differs ")
