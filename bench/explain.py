"""Explaining: an explainer's maps for the chosen test images, shard by shard, with what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench import chunks, contexts
from bench.data import Preparation, batches
from bench.environment import measuring
from bench.interfaces import DatasetInfo, ImageData, Layer, Passes
from bench.store import read_tensors, write_tensors, writing

SHARD_SECONDS = 20.0  # Work that a kill may cost.

TargetRule = Literal["predicted", "true"]


@dataclass(frozen=True)
class Subject:
    """A trained network in eval mode with everything needed to explain and score it. `chunk`: images per forward."""

    model: nn.Module
    info: DatasetInfo
    target_layers: Sequence[Layer]
    stages: Sequence[Layer]
    device: str
    size: tuple[int, int] | None = None
    chunk: int | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size or self.info.image_size

    @property
    def at_once(self) -> int:
        """Images per forward: as many as were found to be fastest, or the usual number for their size."""
        return self.chunk or chunks.usual(self.image_size)


@dataclass(frozen=True)
class Selection:
    """Which test images, which class of each is explained, and the seed of the images' random streams."""

    data: ImageData
    indices: Tensor
    target: TargetRule = "predicted"
    seed: int = 0  # The training's, so that an interval over seeds holds what the explainer draws, too.

    def generators(self, purpose: str, indices: Tensor) -> list[torch.Generator]:
        """One stream per image, from the seed and the image's index."""
        return [contexts.generator(self.seed, purpose, int(index)) for index in indices]


def targets_for(rule: TargetRule, logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) the class to explain: the predicted one, or the true one (the likeliest true one for multi-label data)."""
    if rule == "predicted":
        return logits.argmax(1)
    return labels if labels.ndim == 1 else logits.masked_fill(labels < 0.5, -torch.inf).argmax(1)


def explain(
    subject: Subject,
    explainer: Any,
    selection: Selection,
    preparation: Preparation | None,
    *,
    folder: Path | None = None,
    batch_size: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda progress: None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Maps (N, 1, H, W) with logits (N, K), targets (N,) and indices (N,), and their cost.

    With a folder, finished shards are kept there and a restart goes on behind them.
    """
    shards, cost = _finished(folder, selection.indices)
    indices = selection.indices[sum(len(shard["indices"]) for shard in shards) :]
    state = prepare(subject, explainer, preparation, cost)
    fresh: list[dict[str, Tensor]] = []
    last = time.perf_counter()

    def work(rows: slice, chunk: int) -> None:
        nonlocal shards, fresh, last
        (images,) = batches(selection.data, indices[rows], chunk, subject.size, subject.device)
        logits = contexts.forward(subject.model, images.inputs, chunk)
        targets = targets_for(selection.target, logits, images.labels)
        streams = selection.generators("explain", images.indices)
        context = contexts.explain_context(subject.model, subject.info, subject.target_layers, subject.stages, streams, chunk, state)
        with measuring(subject.device) as measured:
            maps = contexts.explain(subject.model, explainer, images.inputs, targets, context)
        _charge(cost, len(maps), context.passes, measured.seconds, measured.peak_memory)
        fresh.append({"attributions": maps.cpu(), "logits": logits.cpu(), "targets": targets.cpu(), "indices": images.indices})
        report({"step": cost["images"], "steps": len(selection.indices)})
        if folder is not None and time.perf_counter() - last > SHARD_SECONDS:
            with writing(folder):
                shards.append(_keep(folder, shards, fresh, cost))
            fresh, last = [], time.perf_counter()

    chunks.walk(len(indices), batch_size or subject.at_once, work)
    return _joined([*shards, *fresh]), cost


def prepare(subject: Subject, explainer: Any, preparation: Preparation | None, cost: dict[str, Any]) -> Any:
    """What the explainer wants to know before it explains, None for most; its passes are put into `cost`, apart."""
    own = getattr(explainer, "prepare", None)
    if own is None:
        return None
    if preparation is None:
        raise ValueError("this explainer looks at data before it explains, and there is none")
    context = contexts.explain_context(subject.model, subject.info, subject.target_layers, subject.stages, [contexts.generator("prepare")])
    context.chunk = subject.at_once
    with (
        contexts.untouched(subject.model),
        torch.enable_grad(),
        contexts.counting(subject.model, context.passes),
        measuring(subject.device) as measured,
    ):
        state = own(subject.model, preparation, context)
    cost["preparation"] = {"forward": context.passes.forward, "backward": context.passes.backward, "seconds": measured.seconds}
    return state


def _charge(cost: dict[str, Any], images: int, passes: Passes, seconds: float, peak: int | None) -> None:
    cost["images"] += images
    # A lone image goes through as two; what it costs is still one image's passes.
    cost["forward"] += passes.forward / 2 if images == 1 else passes.forward
    cost["backward"] += passes.backward / 2 if images == 1 else passes.backward
    cost["seconds"] += seconds
    cost["peak_memory"] = max(cost["peak_memory"] or 0, peak) if peak is not None else cost["peak_memory"]


def _finished(folder: Path | None, indices: Tensor) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """The shards that are there, as far as they hold these images in this order, and what they cost."""
    cost: dict[str, Any] = {"images": 0, "forward": 0.0, "backward": 0.0, "seconds": 0.0, "peak_memory": None}
    files = [] if folder is None else sorted(folder.glob("shard-*.safetensors"))
    shards: list[dict[str, Tensor]] = []
    for file in files:
        shard, done = read_tensors(file), cost["images"]
        if not torch.equal(shard["indices"], indices[done : done + len(shard["indices"])]):
            break  # Another process wrote here at the same time.
        shards.append(shard)
        images, forward, backward, seconds, peak = shard.pop("cost").tolist()
        cost["images"] += int(images)
        cost["forward"] += forward
        cost["backward"] += backward
        cost["seconds"] += seconds
        cost["peak_memory"] = max(cost["peak_memory"] or 0, int(peak)) or None
    return shards, cost


def _keep(folder: Path, earlier: Sequence[dict[str, Tensor]], fresh: Sequence[dict[str, Tensor]], cost: dict[str, Any]) -> dict[str, Tensor]:
    """Write one shard; its own cost is the cost so far less that of the shards before it."""
    shard = _joined(fresh)
    before = _finished(folder, torch.cat([each["indices"] for each in earlier]) if earlier else torch.empty(0))[1]
    own = [cost[name] - before[name] for name in ("images", "forward", "backward", "seconds")]
    write_tensors(
        folder / f"shard-{len(earlier):05d}.safetensors", {**shard, "cost": torch.tensor([*own, cost["peak_memory"] or 0], dtype=torch.float64)}
    )
    return shard


def _joined(shards: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([shard[name] for shard in shards]) for name in ("attributions", "logits", "targets", "indices")}
