"""Results: one line of JSON per number, with everything needed to compare it, and the folder where they are published."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import InvalidValue
from bench.keys import SCHEMA, finite

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

Line = dict[str, Any]
TIMES = ("seconds", "finished", "environment", "run")  # Fields that differ from run to run without any number being another.
ABOUT_PARTS = ("label", "plugin", "distribution", "paper", "claim", "floor", "per_image")  # Said of a part; not what it does.


def dump(result: Line) -> str:
    """One line of text, names sorted. A number that is missing is null, never NaN."""
    return json.dumps(finite(result), sort_keys=True, ensure_ascii=False, allow_nan=False)


def read(path: Path) -> Iterator[Line]:
    """Result lines of a file, one at a time, brought up to the present schema. Raises InvalidValue naming a damaged line."""
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                yield migrated(json.loads(text))
            except (ValueError, TypeError, KeyError) as error:
                raise InvalidValue(f"{path}, line {number} is not a result ({error}).") from None


def lines_of(source: Path) -> list[Line]:
    """Every line of a file or folder, each key once. Raises InvalidValue where there is none."""
    files = [source] if source.is_file() else sorted(source.rglob("*.jsonl"))
    if not files:
        raise InvalidValue(f"there are no result lines in {source}.\nMake some: bench run")
    return list({line["key"]: line for file in files for line in read(file)}.values())


def migrated(result: Line) -> Line:
    """A line of any past schema as one of the present. There has been one schema so far."""
    if not isinstance(result, dict) or "key" not in result:
        raise ValueError("there is no key")
    if result.get("schema") != SCHEMA:
        raise ValueError(f"schema {result.get('schema')} is not known; this version reads up to {SCHEMA}")
    return result


def same(first: Line, second: Line, tolerance: float = 1e-6) -> bool:
    """Do two lines say the same, times, machines and words about parts aside, numbers within the tolerance?"""
    ours, theirs = ({name: _essence(value) for name, value in each.items() if name not in TIMES} for each in (first, second))
    return _near(ours, theirs, tolerance)


def _essence(value: Any) -> Any:
    """A part without what is only said of it; anything else as it is."""
    is_part = isinstance(value, dict) and "parameters" in value
    return {name: inner for name, inner in value.items() if name not in ABOUT_PARTS} if is_part else value


def _near(first: Any, second: Any, tolerance: float) -> bool:
    if isinstance(first, float) and isinstance(second, (int, float)):
        return math.isclose(first, second, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_near(first[name], second[name], tolerance) for name in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(_near(*pair, tolerance) for pair in zip(first, second, strict=True))
    return bool(first == second)


def write(path: Path, lines: Iterable[Line]) -> None:
    """Lines sorted by key, so that a diff shows what changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(dump(each) + "\n" for each in sorted(lines, key=lambda each: each["key"])), encoding="utf-8")


def publish(lines: Sequence[Line], rows: Mapping[str, list[float]], folder: Path, run: str) -> list[Path]:
    """Add lines to `<folder>/<dataset>/<run>.jsonl` and their per-image rows to the `.rows.jsonl.gz` beside it.

    Raises InvalidValue, before anything is written, for a key that is published already with another value.
    """
    published = {each["key"]: (path, each) for path in sorted(folder.glob("*/*.jsonl")) for each in read(path)}
    for each in lines:
        path, known = published.get(each["key"], (None, each))
        if not each["machine"] and not same(known, each):
            raise InvalidValue(
                f"{path} has key {each['key'][:12]}… ({describe(each)}) as {known['value']}, and this run found {each['value']}.\n"
                "Nothing was published. If the method changed, raise its version; if not, find out which of the two is wrong."
            )
    elsewhere = {key for key, (path, _) in published.items() if path.stem != run}
    return add([each for each in lines if each["key"] not in elsewhere], rows, folder, run)


def add(lines: Iterable[Line], rows: Mapping[str, list[float]], folder: Path, run: str) -> list[Path]:
    """Add lines and rows to a run's files under `<folder>/<dataset>/`, whatever else is there."""
    groups: dict[str, list[Line]] = {}
    for each in lines:
        groups.setdefault(each["dataset"]["name"], []).append(each)
    return [path for dataset, group in groups.items() for path in _add(folder / slug(dataset), run, group, rows)]


def _add(folder: Path, run: str, lines: list[Line], rows: Mapping[str, list[float]]) -> list[Path]:
    path = folder / f"{run}.jsonl"
    merged = {each["key"]: each for each in (read(path) if path.exists() else ())}
    merged |= {each["key"]: each for each in lines}
    write(path, merged.values())
    kept = folder / f"{run}.rows.jsonl.gz"
    known = read_rows(kept) if kept.exists() else {}
    known |= {key: values for key, values in rows.items() if key in merged}
    text = "".join(json.dumps({"key": key, "values": [finite(float(f"{v:.7g}")) for v in values]}) + "\n" for key, values in sorted(known.items()))
    kept.write_bytes(gzip.compress(text.encode(), mtime=0))
    return [path, kept]


def read_rows(path: Path) -> dict[str, list[float]]:
    """Per-image values by key; a value that is not there is NaN."""
    return {key: [math.nan if value is None else value for value in values] for key, values in _rows(path)}


def rows_of(folder: Path) -> dict[str, NDArray[np.float64]]:
    """The per-image values that lie beside the lines of a folder, as arrays by key; nothing where there are none."""
    import numpy as np

    files = sorted(folder.glob("*.rows.jsonl.gz"))
    return {key: np.asarray(values, dtype=np.float64) for path in files for key, values in _rows(path)}  # None becomes NaN.


def _rows(path: Path) -> Iterator[tuple[str, list[float | None]]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for text in file:
            entry = json.loads(text)
            yield entry["key"], entry["values"]


def slug(name: str) -> str:
    """A file name for a name, whatever a plugin called it: letters, digits, dot, dash, underscore; never above its folder."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".strip("-")


def describe(result: Line) -> str:
    """`edda x gradcam: insertion` — what a line is about, in a few words."""
    parts = [result[name]["label"] for name in ("augmenter", "explainer") if result.get(name)]
    return f"{' x '.join(parts) or result['model']['label']}: {result['metric']['label']}"


def frame(source: Path) -> pd.DataFrame:
    """Every result of a file or folder as a DataFrame, one row per number, part names as columns.

    `frame(path).query("metric == 'accuracy' and explainer == 'gradcam'").value.max()` is one line.
    """
    import pandas as pd

    files = [source] if source.is_file() else sorted(path for path in source.rglob("*.jsonl"))
    return pd.DataFrame([flat(each) for path in files for each in read(path)])


def flat(result: Line) -> Line:
    """A line with parts as their labels, and their parameters as `part.parameter`."""
    row: Line = {}
    for name, value in result.items():
        if isinstance(value, dict) and "label" in value:
            row[name] = value["label"]
            row |= {f"{name}.{parameter}": inner for parameter, inner in value.get("parameters", {}).items()}
        elif name == "interval":
            row["low"], row["high"] = value or (None, None)
        elif name not in ("environment", "curve"):
            row[name] = value.get("name") if isinstance(value, dict) and "name" in value else value
    return row
