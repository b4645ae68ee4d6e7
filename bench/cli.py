"""The command `bench`: it parses and prints, and decides nothing. Each command imports what it needs when it is called."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bench.errors import BenchError

LISTS = ("datasets", "models", "trainers", "augmenters", "explainers", "metrics", "label-noise")


class Group(click.Group):
    """A group whose commands print a `BenchError` as one paragraph and exit with 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BenchError as error:
            first, *rest = str(error).split("\n")
            click.echo("\n".join([f"Error: {first}", *(f"       {text}" for text in rest)]), err=True)
            sys.exit(2)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="bench-xai")
def main() -> None:
    """Train under every augmenter, explain with every explainer, score every combination."""


def _plugin_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--plugin", "plugin_files", multiple=True, type=click.Path(path_type=Path), help="A plugin of one file; may be given again."),
        click.option("--without-plugin", multiple=True, metavar="NAME", help="Leave an installed plugin out; may be given again."),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def _spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.argument("spec", required=False),
        *(click.option(f"--{name}", metavar="A,B", help=f"{name.replace('-', ' ').capitalize()}, by name.") for name in LISTS),
        click.option("--seeds", metavar="N", type=int, help="Trainings per combination, with seeds 0 to N-1."),
        click.option("--images", type=int, help="Test images to explain and score."),
        click.option("--epochs", type=int, help="The same as --set recipe.epochs=N."),
        click.option("--train-images", type=int, help="The same as --set recipe.train_images=N."),
        click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="The same as --set recipe.precision=…"),
        click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Any field of the spec, in TOML; may be given again."),
        click.option("--no-floors", is_flag=True, help="Leave the floors out: no augmentation, random and centre maps."),
        click.option("--name", help="The name of the run.  [default: run-… from what it asks for]"),
        click.option("--data", type=click.Path(path_type=Path), help="The folder of your datasets.  [default: $BENCH_DATA]"),
        click.option("--store", type=click.Path(path_type=Path), help="The folder of finished jobs.  [default: $BENCH_STORE or bench-runs]"),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option("--threads", type=click.IntRange(1), help="Processor threads.  [default: torch's own, one per core or OMP_NUM_THREADS]"),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), _plugin_options(command))


@main.command()
@_spec_options
@click.option("--batch-size", type=click.IntRange(1), help="Images per evaluation batch; changes no number.")
@click.option("--no-retry-failed", is_flag=True, help="Leave jobs that failed before as they are.")
@click.option("--max-hours", type=float, help="Refuse a plan that is estimated to take longer.")
def run(**options: Any) -> None:
    """Train, explain and score. SPEC is a TOML file or the name of a recipe; flags add to it or override it.

    \b
    bench run --augmenters edda,lpa3 --explainers gradcam
    """
    from bench.commands import run_command

    sys.exit(run_command(**options))


@main.command()
@_spec_options
@click.option("-v", "--verbose", is_flag=True, help="Every job with its key, and the layers of each network.")
@click.option("--estimate/--no-estimate", default=True, help="Probe how long the jobs will take.")
@click.option("--find-batch", is_flag=True, help="Try which sizes of training batches fit and are quick, and propose one.")
def plan(**options: Any) -> None:
    """Say what a run would do: its jobs, what is stored already, what is left out and why, and how long it will take."""
    from bench.commands import plan_command

    plan_command(**options)


@main.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="NAME", help="The network: a name, or a TOML table {name = …, weights = …}.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="A parameter of the network, such as weights=FILE; may be given again.")
@click.option("--explainers", required=True, metavar="A,B", help="Explainers, by name or as a TOML list.")
@click.option("--target", metavar="CLASS", help="The class to explain, by number or name.  [default: the predicted one]")
@click.option("--layer", metavar="NAME", help="Where class-activation maps are taken.  [default: the network's own choice]")
@click.option(
    "--classes", metavar="N|FILE", help="How many classes there are, or a JSON list of their names.  [default: as many as the weights have]"
)
@click.option("--dataset", metavar="NAME", help="What the network was trained on: names of classes, size of images.")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of your datasets.  [default: $BENCH_DATA]")
@click.option("--size", type=click.IntRange(2), help="Height and width that the network sees, where it has no size of its own.")
@click.option("--untrained", is_flag=True, help="Explain a network without weights all the same.")
@click.option("--out", type=click.Path(path_type=Path), help="The picture.  [default: IMAGE-maps.png where the command runs]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="Processor threads.  [default: all cores]")
@_plugin_options
def explain(**options: Any) -> None:
    """Draw the maps of several explainers for one photograph, IMAGE, side by side.

    \b
    bench explain dog.jpg --model timm:resnet50 --set weights=resnet50.pth --explainers gradcam,rise
    """
    from bench.explain_image import explain_command

    explain_command(**options)


@main.command()
@click.argument("kind", required=False)
@click.argument("part", required=False)
@click.option("--write", "folder", type=click.Path(path_type=Path), help="Write hooks.md, methods.md and recipes.md to this folder.")
@_plugin_options
def plugins(**options: Any) -> None:
    """List what is installed; with a KIND only that kind, with KIND and PART its parameters and its card."""
    from bench.commands import plugins_command

    plugins_command(**options)


@main.command()
@click.argument("names", nargs=-1)
@_plugin_options
def check(**options: Any) -> None:
    """Check that parts keep the promises of their hooks. NAMES are parts such as `gradcam`; all of them if none is given."""
    from bench.commands import check_command

    sys.exit(check_command(**options))


@main.group(cls=Group)
def results() -> None:
    """Look at results, and publish them."""


@results.command("show")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option("--csv", "form", flag_value="csv", help="The same as --format csv.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "cells", "markdown", "latex", "bibtex"]),
    default="table",
    show_default=True,
    help="Tables; comma-separated values, one line a number or (cells) one a cell of the tables; the papers of the methods.",
)
def results_show(source: Path | None, form: str) -> None:
    """Print the results of SOURCE, a file or folder of result lines.  [default: the runs of the store]"""
    from bench.reporting import show_results

    show_results(source, form)


@results.command("publish")
@click.argument("name")
@click.option("--store", type=click.Path(path_type=Path), help="The folder of finished jobs.  [default: $BENCH_STORE or bench-runs]")
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("leaderboards"), show_default=True, help="The folder of the boards.")
def results_publish(name: str, store: Path | None, folder: Path) -> None:
    """Add the results of the run NAME to the published lines, and write the boards again."""
    from bench.reporting import publish_run

    publish_run(name, store, folder)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="The folder of published lines.  [default: FOLDER/data]")
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("leaderboards"), show_default=True, help="The folder of the boards.")
@click.option("--check", "only_check", is_flag=True, help="Write nothing; exit with 2 where a page is not what the lines say.")
def leaderboard(data: Path | None, folder: Path, only_check: bool) -> None:
    """Write the boards from the published lines."""
    from bench import leaderboard as pages

    source = data or folder / "data"
    if only_check:
        pages.check(source, folder)
        click.echo(f"{folder}: every page is what the lines say")
        return
    for path in pages.write(source, folder):
        click.echo(path)


@main.command()
@click.option("--from", "source", type=click.Path(path_type=Path), default=Path("leaderboards"), show_default=True, help="The folder of the boards.")
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("site"), show_default=True, help="The folder of the site.")
def site(source: Path, folder: Path) -> None:
    """Write the boards as a web site: tables to sort and filter, curves, pictures, a page for every method and run.

    \b
    bench site --from bench-runs/boards
    """
    from bench.site import build

    pages = build(source, folder)
    click.echo(f"{len(pages)} pages. Open {folder / 'index.html'}")


@main.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True))
@click.argument("after", type=click.Path(path_type=Path, exists=True))
@click.option("--every", is_flag=True, help="Every number that is another one, not only changed places.")
@click.option("--tolerance", type=float, help="How much worse is a regression.  [default: more than the two intervals allow]")
@click.option("--fail-on-regression", is_flag=True, help="Exit with 1 where a number is worse or gone.")
def diff(before: Path, after: Path, every: bool, tolerance: float | None, fail_on_regression: bool) -> None:
    """Say which numbers and ranks changed between two files or folders of result lines, and what else differs that may be why."""
    from bench import compare, results

    changes = compare.diff(results.lines_of(before), results.lines_of(after))
    click.echo(compare.report(changes, tolerance, every))
    sys.exit(1 if fail_on_regression and any(change.regressed(tolerance) for change in changes) else 0)


@main.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True), default=Path("leaderboards"))
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Only lines whose key begins so; may be given again.")
@click.option("--networks", type=click.IntRange(1), metavar="N", help="Only the lines of N networks.")
@click.option("--tolerance", type=float, help="How far a number may be from the published one.  [default: half its interval]")
@click.option("--store", type=click.Path(path_type=Path), help="Where to do the jobs.  [default: a fresh folder, removed at the end]")
@click.option("--data", type=click.Path(path_type=Path), help="The folder of your datasets.  [default: $BENCH_DATA]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="Processor threads.  [default: all cores]")
@_plugin_options
def verify(**options: Any) -> None:
    """Do the jobs of published lines again, and say whether their numbers hold. SOURCE is a file or folder of result lines."""
    from bench.verify import verify_command

    sys.exit(verify_command(**options))


@main.command()
@click.option("--store", type=click.Path(path_type=Path), help="The folder of finished jobs.  [default: $BENCH_STORE or bench-runs]")
@click.option("--forget", metavar="KEY", multiple=True, help="Remove the job whose key begins so; the next run does it again.")
def store(**options: Any) -> None:
    """Say what the store holds: finished jobs by stage, unfinished and failed ones, and the space they take."""
    from bench.reporting import store_command

    store_command(**options)
