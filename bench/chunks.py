"""Chunks: how many images go through a network at once. A short timed probe finds the number, and it is halved where memory runs out.

No result depends on it, beyond rounding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import nn

from bench import contexts
from bench.environment import measuring, release_memory

SMALLEST = 2  # A lone image would take other kernels: see `contexts.forward`.
LARGEST_ON_CPU, LARGEST_ON_GPU = 64, 1024
PIXELS = 16 * 224 * 224  # A forward of so many is a fair start.
QUICK = 0.05  # Seconds for a chunk that is not worth a probe.
NEARLY = 1.05  # Of the least time per image: the smallest chunk so near to it is taken, for it needs the least memory.


def usual(size: tuple[int, int]) -> int:
    """Images of this size per forward where nothing was timed: 64 small ones, 16 of 224 x 224, fewer of larger."""
    return max(SMALLEST, min(LARGEST_ON_CPU, PIXELS // (size[0] * size[1])))


def fastest(model: nn.Module, size: tuple[int, int], channels: int, device: str = "cpu") -> int:
    """Images per forward that take the least time each, by forwards of grey images. The model is to be in eval mode."""
    start = usual(size)
    times = {start: _seconds_per_image(model, size, channels, start, device)}
    if device == "cpu" and times[start] * start < QUICK:
        return start
    least, most = max(SMALLEST, start // 4), LARGEST_ON_CPU if device == "cpu" else LARGEST_ON_GPU
    for step in (0.5, 2.0):
        chunk = int(start * step)
        while least <= chunk <= most:
            times[chunk] = _seconds_per_image(model, size, channels, chunk, device)
            if times[chunk] > min(times.values()) * NEARLY:
                break  # It only gets worse from here.
            chunk = int(chunk * step)
    limit = min(times.values()) * NEARLY
    return min(chunk for chunk, seconds in times.items() if seconds <= limit)


def _seconds_per_image(model: nn.Module, size: tuple[int, int], channels: int, chunk: int, device: str) -> float:
    """The quicker of two forwards after one that builds kernels and caches; endless where memory does not suffice."""
    images = torch.full((chunk, channels, *size), 0.5, device=device)
    try:
        contexts.forward(model, images, chunk)
        times = []
        for _ in range(2):
            with measuring(device) as measured:
                contexts.forward(model, images, chunk)
            times.append(measured.seconds)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        _free()
        return float("inf")
    return min(times) / chunk


def walk(total: int, chunk: int, work: Callable[[slice, int], None]) -> None:
    """Call `work(rows, chunk)` for stretches of `chunk` rows; where memory runs out, again for those rows with half as many.

    What `work` did before it failed must not count: it is called again with the same first row.
    """
    done = 0
    while done < total:
        try:
            work(slice(done, min(total, done + chunk)), chunk)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or chunk <= SMALLEST:
                raise
            chunk = max(SMALLEST, chunk // 2)
        else:
            done += chunk
            continue
        _free()  # Here, where the error no longer holds the tensors of its frames.


def out_of_memory(error: BaseException) -> bool:
    """Did memory run out? Torch says so of a GPU by a type, and of a processor only in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _free() -> None:
    gc.collect()
    release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
