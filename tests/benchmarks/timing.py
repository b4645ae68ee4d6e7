"""How the benchmarks time: every side at its best batch size, in turn, by processor time; and what of it goes on the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.ways import WAYS, Case, Way

ROUNDS, BUDGET = (5, 15), 2.5  # At least and at most so many rounds; between, as many as give one side so many seconds.
LEVEL = 0.95  # Two sides that do the same work were seen to be this far apart on a busy machine.


@dataclass(frozen=True)
class Row:
    """One line of the page: bench beside something else, in milliseconds of processor time per image.

    claim: "faster" says that the other takes at least `target` times as long, "within" that bench takes at most `target` times
    as long. missed: why the target is not reached; then only `least` is held.
    """

    what: str
    network: str
    setting: str
    against: str
    other_setting: str
    ours: float
    theirs: float
    claim: Literal["faster", "within"]
    target: float
    least: float | None = None
    missed: str = ""

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours if self.claim == "faster" else self.ours / self.theirs

    def holds(self, target: float) -> bool:
        return self.ratio >= target if self.claim == "faster" else self.ratio <= target


def enter(benchmark: Any, *rows: Row) -> None:
    """Put the rows on the page, then hold bench to them."""
    for row in rows:
        benchmark.extra_info.setdefault("rows", []).append({**asdict(row), "ratio": row.ratio, "reached": row.holds(row.target)})
    for row in rows:
        target = row.target if row.least is None else row.least
        assert row.holds(target), f"{row.what} beside {row.against} on {row.network}: {row.ratio:.2f}, and {row.claim} {target} is claimed"


def seconds(way: Callable[[], object]) -> float:
    """Processor time, which other programs on the machine hardly touch."""
    start = time.process_time()
    way()
    return time.process_time() - start


def fastest(make: Callable[[Case], Way], cases: Iterable[Case]) -> tuple[Case, Way]:
    """The case in which a way is fastest, by the better of two runs of each after one to warm up."""
    ways = [(case, make(case)) for case in cases]
    for _, way in ways:
        way()
    return min(ways, key=lambda each: min(seconds(each[1]) for _ in range(2)))


def in_turn(
    benchmark: Any,
    ours: Callable[[], object],
    others: Mapping[Any, Callable[[], float]],
    before: Callable[[], object] = lambda: None,
) -> tuple[float, dict[Any, float]]:
    """The least seconds of ours and of each other over the rounds, one after another, so that a slow moment is shared.

    others: each returns the seconds it took. before: run before each, and not timed.
    """
    taken: dict[Any, list[float]] = {name: [] for name in others}

    def setup() -> None:
        for name, other in others.items():
            before()
            taken[name].append(other())
        before()

    before()
    least, most = ROUNDS
    benchmark.pedantic(ours, setup=setup, rounds=min(most, max(least, int(BUDGET / seconds(ours)))))
    return benchmark.stats.stats.min, {name: min(values) for name, values in taken.items()}


# Libraries as they come


class AnotherProcess:
    """Runs the ways of `WAYS` in a process that leaves memory to the C library, as a script of one's own would."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.connection, inside = context.Pipe()
        self.process = context.Process(target=serve, args=(inside,), daemon=True)
        self.process.start()
        inside.close()

    def fastest(self, what: str, library: str, cases: list[Case]) -> tuple[Case, Tensor]:
        """The library's best case, which is then the one that is timed, and what it gives."""
        return self._ask("fastest", what, library, cases)

    def seconds(self, what: str, library: str) -> float:
        return self._ask("seconds", what, library)

    def close(self) -> None:
        self.connection.close()
        self.process.join()

    def _ask(self, *question: Any) -> Any:
        self.connection.send(question)
        return self.connection.recv()


def serve(connection: Connection) -> None:
    """Answer until nobody is there to ask."""
    torch.set_num_threads(1)
    best: dict[tuple[str, str], Way] = {}
    while True:
        try:
            question, what, library, *rest = connection.recv()
        except EOFError:
            return
        if question == "fastest":
            case, best[what, library] = fastest(WAYS[what][library], *rest)
            connection.send((case, best[what, library]()))
        else:
            connection.send(seconds(best[what, library]))
