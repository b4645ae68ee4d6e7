"""Write the table of docs/speed.md from what pytest-benchmark measured: `python -m tests.benchmarks.table FROM.json TO.md`."""

import json
import sys
from pathlib import Path

from tabulate import tabulate

HEADER = """<!-- Written by `make bench` from its own measurements. Changes by hand are lost. -->

# Speed

Both sides run in one process, in turn, and are timed by processor time; their maps are compared first and agree to 1e-4 after the libraries' own
rescaling. Medians; smaller is faster. Ratios say more than the milliseconds of one machine.
"""


def page(measured: dict) -> str:
    """The page: a table for each benchmark, the fastest first."""
    parts = [HEADER]
    for benchmark in measured["benchmarks"]:
        rows = sorted(((name.split(":")[0], value) for name, value in benchmark["extra_info"].items()), key=lambda row: row[1])
        ours = next(value for name, value in rows if name == "ours")
        body = [[name, f"{value:.1f}", f"{value / ours:.2f}"] for name, value in rows]
        parts += [f"## {benchmark['group']}\n", tabulate(body, ["", "ms per image", "times ours"], tablefmt="pipe", disable_numparse=True), ""]
    machine = measured["machine_info"]
    processor = machine["cpu"]
    parts.append(f"Python {machine['python_version']}, {processor.get('brand_raw', machine['machine'])}, {processor.get('count', '?')} cores.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(page(json.loads(source.read_text())))
