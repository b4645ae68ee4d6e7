"""A change guard: under an unchanged version a part gives what it gave before. These numbers are no known answers.

They were written by running the code, and say nothing of whether it is right: the other tests do. Stored results are found by a
part's version, so a change of its numbers has to raise it.
"""

import json
import re

import golden_write
import pytest
from golden_write import KINDS, digest, renewed, verdict

from bench import checks

ENTRIES = {(kind, name): entry for kind in KINDS for name, entry in golden_write.read(kind).items()}


@pytest.fixture(scope="session")
def installed():
    return golden_write.installed()


@pytest.mark.parametrize(("kind", "name"), ENTRIES, ids=lambda text: text)
def test_a_part_gives_what_its_version_gave_before(installed, kind, name):
    if name not in {entry.name for entry in golden_write.guarded(installed, kind)}:
        pytest.fail(f"there is no {kind} '{name}' any more. Type: {golden_write.COMMAND}")
    entry = installed.entry(kind, name)
    if problem := verdict(kind, name, entry.version, digest(entry, installed), ENTRIES[kind, name]):
        pytest.fail(problem)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_has_an_entry_or_a_reason_to_have_none(installed, kind):
    for entry in golden_write.guarded(installed, kind):
        if (kind, entry.name) in ENTRIES:
            continue
        with pytest.raises(checks.NotTried, match=r"\w"):
            pytest.fail(verdict(kind, entry.name, entry.version, digest(entry, installed), None))


def test_what_is_left_out_is_timed_or_does_not_apply(installed):
    left_out = {entry.name for kind in KINDS for entry in golden_write.guarded(installed, kind) if (kind, entry.name) not in ENTRIES}
    costs = {entry.name for entry in installed.entries("metric") if entry.factory.category == "cost"}
    assert left_out == costs | {"mean-average-precision", "human"}  # Several labels per image; a file of labels.


# The guard itself


def shade(registry, version=1, **parameters):
    """The digest of the tests' own augmenter, and what the guard says of it where this is the digest of its defaults."""
    entry = registry.entry("augmenter", "shade")
    golden = {"version": version, "digest": digest(entry, registry)}
    changed = golden_write.OUTPUTS["augmenter"](registry.resolve("augmenter", {"name": "shade", **parameters}))
    return verdict("augmenter", "shade", 1, {name: golden_write.summary(output) for name, output in changed.items()}, golden)


def test_the_same_output_passes(registry):
    assert shade(registry) is None


def test_a_changed_output_under_an_unchanged_version_says_to_raise_the_version(registry):
    assert re.search(r"not what version 1 gave.*raise `version` in its class to 2, then type: python -m", shade(registry, strength=0.51), re.DOTALL)


def test_a_raised_version_and_a_new_part_say_what_to_type(registry):
    assert shade(registry, version=2).endswith(f"Type: {golden_write.COMMAND}")
    assert verdict("augmenter", "shade", 1, {}, None) == f"augmenter 'shade' has no entry in tests/golden. Type: {golden_write.COMMAND}"


@pytest.mark.parametrize(("factor", "kept"), [(1.0005, True), (0.9995, True), (1.01, False)])
def test_rounding_is_no_change_and_one_per_cent_is(factor, kept):
    assert golden_write.same({"maps": [2.0 * factor, -1.0]}, {"maps": [2.0, -1.0]}) is kept


def test_a_tensor_more_or_of_another_size_is_a_change():
    assert not golden_write.same({"maps": [1.0], "loss": [0.0]}, {"maps": [1.0]})
    assert not golden_write.same({"maps": [1.0, 1.0]}, {"maps": [1.0]})


def test_the_writer_keeps_what_is_the_same_and_refuses_a_change_without_a_version(installed):
    known = golden_write.read("noise")
    known["symmetric"] = {"version": 1, "digest": {"labels": [0.0] * 8}}
    del known["pairflip"]
    entries, refused = renewed(installed, "noise", known)
    assert [text.split("\n")[0] for text in refused] == ["the output of noise 'symmetric' is not what version 1 gave before."]
    assert entries["symmetric"] == known["symmetric"]
    assert entries["pairflip"] == golden_write.read("noise")["pairflip"]


def test_each_part_is_one_line_of_its_file():
    for kind in KINDS:
        lines = golden_write.path(kind).read_text().splitlines()[1:-1]
        assert [json.loads(f"{{{line.rstrip(',')}}}") for line in lines] == [{name: entry} for name, entry in golden_write.read(kind).items()]
