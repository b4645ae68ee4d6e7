"""The command: what it says about a mistake, what it leaves alone then, and how it ends."""

import io
import re
import shutil
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
import tiny_parts
from click.testing import CliRunner
from conftest import FINISHED
from rich.console import Console

from bench import plugins
from bench.cli import main
from bench.display import Display

PARTS = Path(tiny_parts.__file__)
SMALL = f"""--plugin {PARTS} --datasets tiny --models tiny-net --trainers standard --augmenters none --explainers random
    --metrics deletion,accuracy --images 8 --epochs 1 --no-floors --threads 1 --name run --set recipe.batch_size=16""".split()


@pytest.fixture
def installed(monkeypatch):
    """Only the finished plugins are installed, and what a test adds."""
    points = [point for point in entry_points(group="bench") if point.name in FINISHED]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    return points


@pytest.fixture
def bench(installed, monkeypatch, tmp_path):
    """Calls the command in a folder of its own: (exit code, what it printed, what it said about errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture
def plugin(tmp_path):
    """Writes a plugin of one file and returns its path."""

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return path

    return write


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


EXPLAINER = """
from dataclasses import dataclass
from typing import ClassVar
from bench import hookimpl

@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "{name}"
    version: ClassVar[int] = 1
    def __call__(self, model, inputs, targets, context):
        return inputs.mean(1, keepdim=True)

@hookimpl
def register_explainers(register):
    register(Mine)
"""


# Mistakes. Each: arguments, and the words that must stand in the paragraph.

MISTAKES = {
    "an unknown dataset": (["--datasets", "tinny"], ["no dataset is called 'tinny'", "Did you mean 'tiny'?", "Installed:", "bench plugins"]),
    "an unknown model": (["--models", "tiny-nett"], ["no model is called 'tiny-nett'", "'tiny-net'"]),
    "an unknown trainer": (["--trainers", "standart"], ["no trainer is called 'standart'", "'standard'"]),
    "an unknown augmenter": (["--augmenters", "eda"], ["no augmenter is called 'eda'", "'edda'"]),
    "an unknown explainer": (["--explainers", "grad-cam"], ["no explainer is called 'grad-cam'", "'gradcam'"]),
    "an unknown metric": (["--metrics", "delete"], ["no metric is called 'delete'", "'deletion'"]),
    "an unknown noise": (["--label-noise", "flipp:0.2"], ["no noise is called 'flipp'", "'flip'"]),
    "a name like no other": (["--explainers", "xyzzy"], ["no explainer is called 'xyzzy'.", "Installed:"]),
    "too few images": (["--images", "1"], ["'images' is 1", "greater than or equal to 2"]),
    "no seeds": (["--seeds", "0"], ["'seeds'", "a number of seeds above 0"]),
    "no epochs": (["--epochs", "0"], ["'recipe.epochs' is 0", "greater than or equal to 1"]),
    "a schedule that is none": (["--set", "recipe.schedule=linear"], ["'recipe.schedule' is \"linear\"", "'cosine'", "'one-cycle'"]),
    "text for a number": (["--set", "recipe.learning_rate=fast"], ["'recipe.learning_rate' is \"fast\"", "number"]),
    "a share above one": (["--set", "recipe.momentum=1.5"], ["'recipe.momentum' is 1.5", "less than or equal to 1"]),
    "a name for a run with a slash": (["--name", "a/b"], ["'name' is \"a/b\""]),
    "an unknown field": (["--set", "augmentors=edda"], ["'augmentors'", "Did you mean 'augmenters'?", "Fields:"]),
    "an unknown field of the recipe": (["--set", "recipe.epoch=3"], ["'recipe.epoch'", "Did you mean 'epochs'?", "learning_rate"]),
    "a setting without a value": (["--set", "recipe.epochs"], ["--set recipe.epochs", "field=value"]),
    "a setting that is not TOML": (["--set", "seeds=[1, 2"], ["[1, 2 is not a TOML value"]),
    "an unknown parameter": (["--set", 'explainers=[{name="slope", powr=2}]'], ["explainer 'slope' has no parameter 'powr'", "'power'"]),
    "a parameter of the wrong type": (["--set", 'explainers=[{name="slope", power="two"}]'], ["explainer 'slope'", "'power' is \"two\"", "number"]),
    "a parameter out of its range": (["--set", 'augmenters={name="shade", strength=2}'], ["'shade'", "'strength' is 2", "less than or equal to 1"]),
    "a file of weights that is not there": (["--set", 'explainers=[{name="slope", weights="no.pt"}]'], ["weights is no.pt", "no such file"]),
    "an argument for a part that takes none": (["--explainers", "random:3"], ["'random:3'", "takes none"]),
    "a recipe that is none": (["nosuchrecipe"], ["'nosuchrecipe' is neither a spec file nor a recipe", "Recipes:"]),
    "a folder for a spec": (["."], ["'.' is neither a spec file nor a recipe"]),
    "a spec file that is not there": (["missing.toml"], ["no spec file missing.toml"]),
    "a GPU that is not there": (["--device", "cuda:99"], ["--device cuda:99"]),
    "a device that is none": (["--device", "gpu"], ["--device gpu", "cpu, cuda or cuda:N"]),
    "a plugin that is not there": (["--plugin", "nosuch.py"], ["--plugin nosuch.py", "no such file"]),
    "a run that takes too long": (["--explainers", "slope", "--max-hours", "0"], ["--max-hours allows 0", "Nothing was run"]),
    "a recipe that is a number": (["--set", "recipe=3"], ["recipe"]),
    "a part of a list": (["--set", "augmenters.strength=1"], ["augmenters"]),
    "a rate without end": (["--set", "recipe.learning_rate=inf"], ["learning_rate"]),
    "a tracker that is none": (["--set", 'trackers=["nosuch"]'], ["no tracker is called 'nosuch'"]),
}


def is_one_paragraph(said):
    first, *rest = said.rstrip("\n").split("\n")
    return first.startswith("Error: ") and all(line.startswith("       ") for line in rest) and "Traceback" not in said


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with a finished run, which no mistake may touch."""
    folder = tmp_path_factory.mktemp("filled") / "store"
    points = [point for point in entry_points(group="bench") if point.name in FINISHED]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "entry_points", lambda group: points)
        assert CliRunner().invoke(main, ["run", *SMALL, "--store", str(folder)]).exit_code == 0
    return folder


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_paragraph_that_says_what_to_do_and_loses_nothing(bench, filled, arguments, words):
    before = contents(filled)
    code, _, said = bench("run", *SMALL, "--store", filled, *arguments)
    assert code == 2
    assert is_one_paragraph(said), said
    assert [word for word in words if word not in said] == []
    assert contents(filled) == before


def test_a_recipe_that_leaves_nothing_to_train_on_fails_in_words(bench):
    code, printed, _ = bench("run", *SMALL, "--set", "recipe.validation=0.999")
    assert code == 1
    assert "recipe.validation = 0.999 holds out all 64 training images." in printed


TOML = {
    "an unclosed list": ('name = "a"\nseeds = [1, 2\nimages = 8\n', ["spec.toml is not valid TOML", "line 3"]),
    "a word without quotes": ("name = abc\n", ["not valid TOML", "line 1"]),
    "a field twice": ("images = 3\nimages = 4\n", ["not valid TOML", "line 2"]),
    "bytes that are no text": ("name = \udcff", ["not valid TOML"]),
    "an unknown field": ("augmentors = ['edda']\n", ["spec.toml has a field 'augmentors'", "'augmenters'"]),
    "an unknown field of the recipe": ("[recipe]\nepoch = 3\n", ["'recipe.epoch'", "'epochs'"]),
    "a wrong value": ("images = 'many'\n", ["spec.toml: field 'images' is \"many\"", "integer"]),
    "a wrong value deep inside": ("[recipe]\nmilestones = [0.5, 1.5]\n", ["'recipe.milestones.1' is 1.5", "less than or equal to 1"]),
}


@pytest.mark.parametrize(("text", "words"), TOML.values(), ids=TOML)
def test_a_mistake_in_a_spec_file_is_named_with_its_place(bench, tmp_path, text, words):
    (tmp_path / "spec.toml").write_bytes(text.encode(errors="surrogateescape"))
    code, _, said = bench("run", "spec.toml", "--plugin", PARTS)
    assert code == 2
    assert is_one_paragraph(said), said
    assert [word for word in words if word not in said] == []
    assert not (tmp_path / "bench-runs").exists()


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_store_that_cannot_be_written_is_refused_before_any_work(bench, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    code, printed, said = bench("run", *SMALL, "--store", tmp_path / place)
    assert code == 2
    assert is_one_paragraph(said)
    assert "cannot be written" in said
    assert "--store or BENCH_STORE" in said
    assert (tmp_path / "file").read_text() == "mine"
    assert "[0/" not in printed


def test_an_unknown_option_is_a_mistake_too(bench):
    code, _, said = bench("run", "--augmentors", "edda")
    assert code == 2
    assert "--augmenters" in said


# Plugins


def test_a_plugin_file_that_raises_is_refused_with_its_reason(bench, plugin):
    code, _, said = bench("run", *SMALL, "--plugin", plugin("mine", "import os\nraise OSError('the licence server is down')"))
    assert code == 2
    assert is_one_paragraph(said)
    assert "mine.py raises on import: OSError: the licence server is down" in said


def test_an_installed_plugin_that_raises_is_reported_and_the_run_goes_on(bench, installed, plugin, monkeypatch, tmp_path):
    plugin("their_broken_plugin", "raise OSError('the licence server is down')")
    monkeypatch.syspath_prepend(tmp_path)
    installed.append(EntryPoint("theirs", "their_broken_plugin", "bench"))
    code, printed, _ = bench("run", *SMALL)
    assert code == 0
    assert "plugin 'theirs' was left out: OSError: the licence server is down" in printed


def test_two_plugins_with_one_name_are_both_named(bench, plugin):
    code, _, said = bench("run", *SMALL, "--plugin", plugin("mine", EXPLAINER.format(name="gradcam")))
    assert code == 2
    assert is_one_paragraph(said)
    assert "two plugins bring a explainer called 'gradcam'" in said
    assert "'gradcam' of bench-xai" in said
    assert "'mine' of" in said
    assert "--without-plugin" in said


def test_the_advice_about_two_plugins_with_one_name_helps(bench, plugin):
    file = plugin("mine", EXPLAINER.format(name="gradcam"))
    _, _, said = bench("plan", *SMALL, "--plugin", file)
    advised = said.split("--without-plugin ")[1].split()[0].rstrip(".")
    code, _, said = bench("plan", *SMALL, "--plugin", file, "--without-plugin", advised)
    assert (code, said) == (0, "")


def test_a_plugin_that_is_left_out_takes_its_parts_with_it(bench):
    code, _, said = bench("plan", *SMALL, "--explainers", "gradcam", "--without-plugin", "gradcam")
    assert code == 2
    assert "no explainer is called 'gradcam'" in said


def test_a_misspelt_hook_is_reported_with_the_hooks_there_are(bench, plugin):
    file = plugin("mine", EXPLAINER.format(name="mine").replace("register_explainers", "register_explainer"))
    _, printed, _ = bench("plan", *SMALL, "--plugin", file)
    assert "register_explainer'" in printed
    assert "register_explainers," in printed


def test_ones_own_plugin_file_takes_part(bench, plugin):
    code, printed, _ = bench("run", *SMALL, "--plugin", plugin("mine", EXPLAINER.format(name="bright")), "--explainers", "bright")
    assert code == 0
    assert "bright" in printed


def test_plugins_are_listed_with_where_they_come_from(bench):
    code, printed, _ = bench("plugins", "explainers", "--plugin", PARTS)
    assert code == 0
    assert all(word in printed for word in ("gradcam", "slope", "The size of the target's gradient at each pixel.", "tiny_parts", "bench-xai"))
    assert "accuracy" not in printed


def test_a_part_is_shown_with_its_parameters_and_its_card(bench):
    code, printed, _ = bench("plugins", "explainer", "gradcam-signed")
    assert code == 0
    assert "relu = False" in printed
    assert "Checked against:" in printed


@pytest.mark.parametrize(("arguments", "word"), [(["metrix"], "Kinds:"), (["explainer", "gradcan"], "Did you mean 'gradcam'?")])
def test_plugins_names_what_there_is(bench, arguments, word):
    code, _, said = bench("plugins", *arguments)
    assert code == 2
    assert word in said


# Running


def test_a_run_ends_with_0_and_leaves_board_lines_spec_and_picture(bench, tmp_path):
    code, printed, _ = bench("run", *SMALL, "--name", "first")
    assert code == 0
    assert "4 jobs done, 0 failed" in printed
    boards = tmp_path / "bench-runs" / "boards"
    assert (boards / "README.md").exists()
    assert (boards / "tiny.md").exists()
    assert len((boards / "data/tiny/first.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "bench-runs/runs/first.toml").exists()
    assert list((boards / "figures").glob("tiny-first*.png"))


def test_a_saved_spec_repeats_the_run(bench, tmp_path):
    bench("run", *SMALL, "--name", "first", "--set", 'explainers=["random", {name="slope", power=0.5, as="root"}]')
    before = (tmp_path / "bench-runs/boards/data/tiny/first.jsonl").read_bytes()
    code, printed, _ = bench("run", tmp_path / "bench-runs/runs/first.toml", "--plugin", PARTS, "--threads", "1")
    assert code == 0
    assert "nothing to do" in printed
    assert "0 jobs done" in printed
    assert (tmp_path / "bench-runs/boards/data/tiny/first.jsonl").read_bytes() == before


def test_a_run_with_a_failed_job_ends_with_1_and_says_where_its_traceback_is(bench, tmp_path):
    code, printed, _ = bench("run", *SMALL, "--explainers", "breaks,slope")
    assert code == 1
    assert "Broken: the explainer broke" in printed
    assert "1 failed" in printed
    assert str(Path("bench-runs/failed")) in printed
    assert "the explainer broke" in next((tmp_path / "bench-runs/failed").iterdir()).read_text()
    assert "slope" in (tmp_path / "bench-runs/boards/tiny.md").read_text()


def test_flags_stand_over_the_file_and_settings_over_the_flags(bench, tmp_path):
    (tmp_path / "spec.toml").write_text('name = "file"\nimages = 4\n[recipe]\nepochs = 5\nbatch_size = 16\n')
    bench("run", "spec.toml", *SMALL, "--images", "6", "--set", "images=7")
    kept = tomllib.loads((tmp_path / "bench-runs/runs/run.toml").read_text())
    assert (kept["images"], kept["recipe"]["epochs"], kept["recipe"]["batch_size"]) == (7, 1, 16)


def test_a_plan_says_what_is_to_do_and_does_nothing(bench, tmp_path):
    code, printed, _ = bench("plan", "-v", *SMALL)
    assert code == 0
    assert "1 networks, 1 explanations, 2 scores: 4 of 4 jobs to do" in printed
    assert len(re.findall(r"^[0-9a-f]{12}  to do ", printed, re.MULTILINE)) == 4
    assert "target layer second" in printed
    assert not (tmp_path / "bench-runs").exists()
    bench("run", *SMALL)
    assert "0 of 4 jobs to do" in bench("plan", *SMALL)[1]


def test_a_plan_proposes_a_batch_size_and_takes_none(bench, tmp_path):
    code, printed, _ = bench("plan", *SMALL, "--no-estimate", "--find-batch", "--set", "recipe.train_images=40")
    assert code == 0
    assert "tiny tiny-net standard none" in printed
    assert re.search(r"images/s by batch size\W+16\W+32", printed)
    assert "--set recipe.batch_size=32" in printed or "Batches of 16, which the recipe has" in printed
    assert not (tmp_path / "bench-runs").exists()


def test_a_plan_without_training_has_no_batch_size_to_propose(bench):
    code, printed, _ = bench("plan", *SMALL, "--no-estimate", "--find-batch", "--trainers", "pretrained")
    assert code == 0
    assert "Nothing is trained" in printed


@pytest.mark.parametrize(
    "label",
    ["a|b", "[/x]"],
)
def test_a_run_ends_well_whatever_its_parts_are_called(bench, label):
    code, printed, _ = bench("run", *SMALL, "--set", f'explainers=[{{name="random", as="{label}"}}]')
    assert code == 0
    assert f" {label} " in printed


def test_the_live_line_shows_a_job_whatever_its_parts_are_called(planned):
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Display(console, 1) as display:
        display.started(planned(explainers={"name": "random", "as": "[/x]"}).explainings[0])
        display.live.refresh()
    assert "with [/x]" in console.file.getvalue()


# The store


def test_the_store_says_what_it_holds_and_forgets_a_job(bench, filled, tmp_path):
    shutil.copytree(filled, tmp_path / "copy")
    code, printed, _ = bench("store", "--store", "copy")
    assert code == 0
    assert "4 finished jobs (1 explain, 2 score, 1 train)" in printed
    key = next(path.parent.name for path in (tmp_path / "copy").glob("??/*/record.json"))
    assert f"forgot {key}" in bench("store", "--store", "copy", "--forget", key[:8])[1]
    assert "3 finished jobs" in bench("store", "--store", "copy")[1]


@pytest.mark.parametrize("prefix", ["", "ab", "zzzzzzzz"])
def test_only_one_job_is_forgotten_at_a_time(bench, filled, prefix):
    before = contents(filled)
    code, _, said = bench("store", "--store", filled, "--forget", prefix)
    assert code == 2
    assert is_one_paragraph(said)
    assert contents(filled) == before


def test_a_folder_from_which_a_run_never_came_is_an_empty_store(bench):
    assert "0 finished jobs (none)" in bench("store", "--store", "nowhere")[1]


# Results and boards


def test_results_are_shown_and_given_as_comma_separated_values(bench, filled):
    lines = next((filled / "boards/data/tiny").glob("*.jsonl"))
    assert "deletion" in bench("results", "show", lines)[1]
    header, *rows = bench("results", "show", filled / "boards/data", "--csv")[1].splitlines()
    assert len(rows) == 2
    assert {"metric", "explainer", "value", "low", "high"} <= set(header.split(","))


def test_no_results_are_a_mistake_that_says_how_to_make_some(bench):
    code, _, said = bench("results", "show", "nowhere")
    assert code == 2
    assert "bench run" in said


def test_a_run_is_published_and_its_boards_are_what_its_lines_say(bench, filled, tmp_path):
    code, printed, _ = bench("results", "publish", "run", "--store", filled, "--to", "public")
    assert code == 0
    assert "run.jsonl" in printed
    assert bench("leaderboard", "--to", "public", "--check")[0] == 0
    (tmp_path / "public/tiny.md").write_text("better numbers")
    code, _, said = bench("leaderboard", "--to", "public", "--check")
    assert code == 2
    assert "tiny.md" in said
    assert bench("leaderboard", "--to", "public")[0] == 0
    assert bench("leaderboard", "--to", "public", "--check")[0] == 0


def test_publishing_a_run_that_is_none_names_those_there_are(bench, filled):
    code, _, said = bench("results", "publish", "runn", "--store", filled)
    assert code == 2
    assert "Did you mean 'run'?" in said


# Conformance


def test_check_ends_with_0_where_every_promise_is_kept(bench):
    code, printed, _ = bench("check", "random", "none")
    assert code == 0
    assert "every promise kept" in printed


def test_check_ends_with_1_where_a_promise_is_broken(bench):
    code, printed, _ = bench("check", "breaks", "--plugin", PARTS)
    assert code == 1
    assert "broken" in printed
    assert "the explainer broke" in printed


def test_check_of_a_part_that_is_none_names_the_near_one(bench):
    code, _, said = bench("check", "gradcan")
    assert code == 2
    assert "Did you mean 'gradcam'?" in said


def test_an_error_that_is_ours_shows_its_traceback(bench, monkeypatch):
    from bench import commands

    monkeypatch.setattr(commands, "execute", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench("run", *SMALL)
