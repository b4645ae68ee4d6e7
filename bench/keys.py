"""Content keys: the same work always gets the same name, on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

SCHEMA = 1  # Raise when the meaning of a key changes; results.py then needs a migration.


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, whole floats kept as floats, NaN and infinity refused."""
    _refuse_nan(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with None in the place of every number that is none, so that it can be written as JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def key(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """`sha256:…` of a file's content."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def derived_seed(*parts: Any) -> int:
    """A seed below 2**63 that depends on every part and on nothing else, e.g. derived_seed(seed, "order", epoch)."""
    return int(key(list(parts))[:16], 16) >> 1


def _refuse_nan(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be part of a key")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"a key's dictionary has the name {name!r}, which is not text")
            _refuse_nan(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_nan(inner)
