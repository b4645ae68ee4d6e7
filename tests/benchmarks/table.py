"""Write docs/speed.md from what pytest-benchmark measured: `python -m tests.benchmarks.table FROM.json TO.md`."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

HEADER = """<!-- Written by `make bench` from its own measurements. Changes by hand are lost. -->

# Speed

How long bench takes for the same result as another library, and how much it adds to the passes through the network that a method
cannot do without. `make bench` measures it again, writes this page, and fails where a claim does not hold for which no reason is given.

How it is timed: {machine}. Both sides work on the same images and the same network (random weights), their results are compared
first, and they run in turn; a number is the least processor time over {rounds} rounds, divided by the images. Every side runs at its best
among the batch sizes tried (8, 16 and 32 images of 224², 32 to 128 of 32²). bench keeps freed memory for the next tensor, as `bench run`
does (`bench.environment.keep_memory`): left to itself the C library returns large blocks to the system and gets them back page by page.
"""

LIBRARIES = """Twice each. *As it comes*: a script of one's own, in another process, with the network as it is built (contiguous) and memory left to
the C library. *As bench runs*: the same library given what makes bench fast, memory kept and the better of both memory formats. What
is then left is forward passes, which all have in common.

Maps agree to 1e-4 after the rescaling that pytorch-grad-cam does; those of Score-CAM are correlated by 0.98 and more, since the
libraries enlarge the masks in two other ways; areas agree to 1e-4."""

PASSES = """The other side here is no library: it is the bare passes through the network, and nothing else. Integrated Grad-CAM stands beside the
usual way, a backward pass through everything. EDDA and LP-A3 stand beside the passes that their papers' methods are made of; EDDA with
every image recognised."""

SHARES = """Augmenters that ask the network nothing, beside a step (forward, backward, update) of the ResNet-18 for 32² images, which takes
{step:.1f} ms an image here. Those that add rows are charged against a step on all rows. Claim: under 5 %."""


def page(measured: dict[str, Any]) -> str:
    """The page: libraries, bare passes, augmenters."""
    rows = [row for benchmark in measured["benchmarks"] for row in benchmark["extra_info"].get("rows", ())]
    libraries = [row for row in rows if ", as " in row["against"]]
    passes = [row for row in rows if row not in libraries]
    rounds = sorted({benchmark["stats"]["rounds"] for benchmark in measured["benchmarks"]})
    parts = [HEADER.format(machine=machine(measured), rounds=f"{rounds[0]} to {rounds[-1]}")]
    parts += ["## Beside other libraries", LIBRARIES, table(libraries), *notes(libraries)]
    parts += ["## Beside the bare passes", PASSES, table(passes), *notes(passes)]
    for benchmark in measured["benchmarks"]:
        if shares := benchmark["extra_info"].get("shares"):
            parts += ["## Augmenters", SHARES.format(step=shares["step"]), share_table(shares["augmenters"])]
    return "\n\n".join(parts) + "\n"


def machine(measured: dict[str, Any]) -> str:
    environment = measured["machine_info"]["bench"]
    threads = environment["threads"]
    return f"{environment['hardware']}, {threads} thread{'s' * (threads > 1)}, torch {environment['versions']['torch']}, float32"


def table(rows: list[dict[str, Any]]) -> str:
    body = [
        [
            row["what"],
            row["network"],
            f"{row['ours']:.3g} ({row['setting']})",
            row["against"],
            f"{row['theirs']:.3g} ({row['other_setting']})",
            f"{row['ratio']:.2f}",
            claim(row),
            "yes" if row["reached"] else "**no**",
        ]
        for row in rows
    ]
    head = ["", "network", "bench, ms per image", "beside", "ms per image", "ratio", "claim", "holds"]
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def claim(row: dict[str, Any]) -> str:
    """The ratio is theirs by ours where bench is to be faster, and ours by theirs where it is to stay near."""
    return f"at least {row['target']:g} times as fast" if row["claim"] == "faster" else f"at most {row['target']:g} times as long"


def notes(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Why what is not reached is not."""
    return list(dict.fromkeys(f"{row['what']}, {row['against']}: {row['missed']}." for row in rows if row["missed"] and not row["reached"]))


def share_table(augmenters: dict[str, dict[str, float]]) -> str:
    ordered = sorted(augmenters.items(), key=lambda each: -each[1]["share"])
    body = [[name, f"{found['ms']:.3f}", f"{found['share']:.1%}"] for name, found in ordered]
    return tabulate(body, ["", "ms per image", "of a step"], tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(page(json.loads(source.read_text())))
