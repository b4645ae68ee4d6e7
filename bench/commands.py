"""What the commands that work with networks do: put spec, plan, store and display together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import batch_size, checks, estimate, gallery, leaderboard, pictures, reference, reporting
from bench import plan as plans
from bench import plugins as plugin_loader
from bench import spec as specs
from bench.api import data_folder, prepare_device, trackers_of
from bench.display import Display, name
from bench.errors import InvalidValue
from bench.interfaces import KINDS
from bench.layers import RULE
from bench.plan import Plan, Training
from bench.plugins import Loaded
from bench.runner import Settings, execute, pending
from bench.store import Store

FLAGS = ("datasets", "models", "trainers", "augmenters", "explainers", "metrics", "label_noise")
RECIPE_FLAGS = ("epochs", "train_images", "precision")


def run_command(**options: Any) -> int:
    """Carry a run out and return the exit code: 1 where a job failed, 130 where it was interrupted."""
    console = Console()
    loaded, plan, device = _plan(options)
    _warn(console, loaded, plan)
    store = Store(reporting.store_folder(options["store"]))
    store.check_writable()
    todo = pending(plan, store)
    expected = estimate.seconds(plan, todo, device) if todo else 0.0
    total = len(list(plan.jobs))
    console.print(f"{total} jobs, {total - len(todo)} stored already, {estimate.spoken(expected) if todo else 'nothing to do'}", highlight=False)
    _refuse_long(expected, options["max_hours"])
    settings = Settings(device, options["batch_size"], not options["no_retry_failed"])
    trackers = trackers_of(plan.spec, loaded.registry, lambda text: console.print(text, style="yellow", markup=False, highlight=False))
    try:
        with Display(console, len(todo)) as display:
            outcome = execute(plan, store, settings, [display, *trackers])
    except KeyboardInterrupt:
        console.print("\nStopped. What is finished is stored; the same command carries on from here.")
        return 130
    folder = reporting.keep(store, plan.spec.name, plan.spec.toml(), outcome.lines)
    figures = pictures.draw(plan, store, folder / "figures")
    pictures.collect(plan, store, folder / "figures" / "networks")
    gallery.write(plan, store, folder / "gallery")
    leaderboard.write(folder / "data", folder)
    reporting.print_boards(console, outcome.lines)
    console.print(f"{outcome.done} jobs done, {len(outcome.failures)} failed.  Board: {folder / 'README.md'}", highlight=False, soft_wrap=True)
    for figure in figures:
        console.print(f"Picture: {figure}", highlight=False, soft_wrap=True)
    if outcome.failures:
        console.print(f"Tracebacks: {store.root / 'failed'}.  The next run tries failed jobs again.", highlight=False, soft_wrap=True)
    return 1 if outcome.failures else 0


def plan_command(**options: Any) -> None:
    """Print the plan."""
    console = Console()
    verbose, probe, find_batch = options.pop("verbose"), options.pop("estimate"), options.pop("find_batch")
    loaded, plan, device = _plan(options)
    _warn(console, loaded, plan)
    store = Store(reporting.store_folder(options["store"]))
    todo = pending(plan, store)
    expected = estimate.seconds(plan, todo, device) if probe and todo else None
    if verbose:
        _print_layers(console, plan)
    waiting = {job.key for job in todo}
    for job in plan.jobs:
        if verbose:
            console.print(f"{job.key[:12]}  {'to do ' if job.key in waiting else 'stored'}  {name(job)}", highlight=False, markup=False)
    spoken = f", {estimate.spoken(expected)}" if probe and todo else ""
    counts = f"{len(plan.trainings)} networks, {len(plan.explainings)} explanations, {len(plan.scorings)} scores"
    console.print(f"{counts}: {len(waiting)} of {len(list(plan.jobs))} jobs to do{spoken}", highlight=False)
    if find_batch:
        _propose_batch(console, plan, device)


def _propose_batch(console: Console, plan: Plan, device: str) -> None:
    """Print how quick each kind of training is by the size of its batches, and which size to type."""
    with console.status("trying batch sizes"):
        found = batch_size.trials(plan, device)
    if not found:
        console.print("Nothing is trained, so there is no batch size to propose.")
        return
    tried = sorted({size for trial in found for size in (*trial.seconds, trial.refused) if size})
    table = Table("images/s by batch size", *map(str, tried))
    for trial in found:
        rates = {size: f"{1 / seconds:.0f}" for size, seconds in trial.seconds.items()}
        table.add_row(escape(trial.name), *("no room" if size == trial.refused else rates.get(size, "") for size in tried))
    console.print(table, highlight=False)
    proposed = batch_size.proposal(found, plan.spec.recipe)
    text = "Nothing to propose: no size fits every training." if proposed is None else proposed.text(plan.spec.recipe)
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _plan(options: dict[str, Any]) -> tuple[Loaded, Plan, str]:
    loaded = plugin_loader.load(options["plugin_files"], options["without_plugin"])
    spec = _spec(options).completed(loaded.registry)
    device = prepare_device(options["device"], options["threads"])
    return loaded, plans.make(spec, loaded.registry, data_folder(options["data"]), device), device


def _spec(options: dict[str, Any]) -> specs.Spec:
    """The file or recipe, then the flags, then --set."""
    source = options["spec"]
    values = specs.read(specs.find(source)) if source else {}
    for flag in FLAGS:
        if options[flag]:
            values[flag] = [part for part in options[flag].split(",") if part]
    for flag in ("seeds", "images", "name"):
        if options[flag] is not None:
            values[flag] = options[flag]
    if options["no_floors"]:
        values["floors"] = False
    recipe = [f"recipe.{flag}={options[flag]}" for flag in RECIPE_FLAGS if options[flag] is not None]
    return specs.make(specs.merge(values, [*recipe, *options["settings"]]), source or "the command")


def _warn(console: Console, loaded: Loaded, plan: Plan) -> None:
    for text in [*loaded.summary.splitlines(), *(f"left out: {reason}" for reason in plan.left_out)]:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _refuse_long(expected: float | None, max_hours: float | None) -> None:
    if max_hours is None:
        return
    if expected is None or expected > max_hours * 3600:
        raise InvalidValue(
            f"the plan is estimated to take {estimate.spoken(expected)}, and --max-hours allows {max_hours:g}. Nothing was run.\n"
            "Smaller: fewer --seeds, --images or --epochs; `bench plan` shows the jobs."
        )


def _print_layers(console: Console, plan: Plan) -> None:
    """The layers of each network: what maps are taken from."""
    seen = set()
    for training in plan.trainings:
        if (place := (training.data.part.label, training.model.label)) in seen:
            continue
        seen.add(place)
        targets, stages = _layers(training)
        console.print(
            f"{training.model.label} on {training.data.part.label}: target layer {', '.join(targets)}; stages {', '.join(stages)}",
            highlight=False,
            markup=False,
        )
    console.print(f"Where a model does not name its layers, the rule is: {RULE}.", highlight=False, markup=False)


def _layers(training: Training) -> tuple[list[str], list[str]]:
    info = training.data.train.info if training.fits else training.data.test.info
    model = training.model.part
    module = model.build(info)
    return [layer.name for layer in model.target_layers(module)], [layer.name for layer in model.stages(module)]


def plugins_command(kind: str | None, part: str | None, folder: Path | None, plugin_files: tuple[Path, ...], without_plugin: tuple[str, ...]) -> None:
    """Print what is registered, or write the reference pages."""
    console = Console()
    loaded = plugin_loader.load(plugin_files, without_plugin)
    if folder is not None:
        for path in reference.write(loaded, folder):
            console.print(str(path), highlight=False, markup=False)
        return
    kind = kind and kind.removesuffix("s")
    if kind and kind not in KINDS:
        raise InvalidValue(f"there is no kind of part called '{kind}'.\nKinds: {', '.join(KINDS)}")
    if kind and part:
        _print_part(console, loaded, kind, part)
        return
    table = Table("kind", "name", "what it does", "plugin", "from")
    for entry in loaded.registry.entries(kind):
        table.add_row(entry.kind, entry.name, entry.summary, entry.plugin, entry.distribution)
    console.print(table)
    console.print(loaded.summary, style="yellow", highlight=False, markup=False)


def _print_part(console: Console, loaded: Loaded, kind: str, name: str) -> None:
    entry = loaded.registry.entry(kind, name)
    resolved = getattr(entry.factory, "__dataclass_fields__", {})
    console.print(f"{kind} {entry.name}, version {entry.version}, from {entry.distribution}", highlight=False, markup=False)
    if paper := getattr(entry.factory, "paper", ""):
        console.print(f"Paper: {paper}", highlight=False, markup=False)
    for field in entry.fields:
        default = entry.defaults.get(field, resolved[field].default)
        console.print(f"    {field} = {default!r}", highlight=False, markup=False)
    module = loaded.modules[entry.plugin]
    console.print(f"\n{(module.__doc__ or entry.summary).strip()}", highlight=False, markup=False)


def check_command(names: tuple[str, ...], plugin_files: tuple[Path, ...], without_plugin: tuple[str, ...]) -> int:
    """Check parts against the promises of their hooks, and return 1 where one is broken."""
    console = Console()
    loaded = plugin_loader.load(plugin_files, without_plugin)
    console.print(loaded.summary, style="yellow", highlight=False, markup=False)
    failed = 0
    for finding in checks.run(loaded.registry, names):
        failed += not finding.passed
        mark = "[green]ok[/green]    " if finding.passed else "[red]broken[/red]"
        console.print(
            f"{mark} {finding.kind} {finding.name}: {finding.claim}" + (f"\n       {finding.reason}" if finding.reason else ""), highlight=False
        )
    console.print(f"{failed} promises broken" if failed else "every promise kept", highlight=False)
    return 1 if failed or loaded.broken else 0
