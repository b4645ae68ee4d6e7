"""The environment a job ran in: recorded beside every number, never part of its key unless the number is a time."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

DISTRIBUTION = "bench-xai"
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # What glibc's `mallopt` calls them.
NEVER = 2**31 - 1


def describe(device: str = "cpu") -> dict[str, Any]:
    """Library versions, operating system, processor or GPU and threads, as JSON. No host name and no path."""
    import torch

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "versions": dict(_versions()),
    }


def hardware(device: str = "cpu") -> str:
    """The name of the processor or GPU."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return _processor()


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Our own version and those of everything we require."""
    found = []
    for name in (DISTRIBUTION, *_required()):
        with suppress(PackageNotFoundError):
            found.append((name, version(name)))
    return tuple(found)


def _required() -> list[str]:
    try:
        wanted = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    names = (re.match(r"[\w.-]+", requirement) for requirement in wanted if "extra ==" not in requirement)
    return [name.group() for name in names if name]


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores" if names else platform.machine()


def keep_memory() -> None:
    """Have glibc keep freed memory for the next tensor; the numbers stay the same.

    By itself it gives each large block back to the system, which then clears it page by page for the next one: a forward of
    EfficientNet-Lite0 over 16 images of 224 x 224 was measured to take 1.4 times as long. Another C library is left as it is.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, NEVER)


def release_memory() -> None:
    """Give kept memory back, so that the peak of the next job is its own."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Measured:
    """What a block of work took: `seconds` on the clock, and `peak_memory` in bytes where it can be told, else None."""

    seconds: float = 0.0
    peak_memory: int | None = None


@contextmanager
def measuring(device: str = "cpu") -> Iterator[Measured]:
    """Time a block, its queued GPU work included, and take the peak of the memory in use while it ran."""
    measured = Measured()
    _reset_peak(device)
    start = _now(device)
    try:
        yield measured
    finally:
        measured.seconds = _now(device) - start
        measured.peak_memory = _peak(device)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here.


def _peak(device: str) -> int | None:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)
