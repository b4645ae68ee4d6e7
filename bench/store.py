"""The store: a folder of finished jobs by key, written once and never changed.

ab/abcdef…/record.json            what was done, what it cost, where it ran
ab/abcdef…/*.safetensors          weights, attributions or rows; a picture, where the metric draws one
chunks/abcdef….txt                how many images at once were fastest on this machine
partial/abcdef…/                  unfinished work, from which the same job goes on
failed/abcdef….txt                the traceback of a job that failed
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.keys import finite

FIGURE = "figure.png"  # In the folder of a score job whose metric draws.


class Store:
    """Finished jobs by key. Two processes may write the same job: the first to finish stays."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        return (self.path(key) / "record.json").is_file()

    def finished(self) -> Iterator[str]:
        """The keys of all finished jobs, in order."""
        for record in sorted(self.root.glob("[0-9a-f][0-9a-f]/*/record.json")):
            yield record.parent.name

    def record(self, key: str) -> dict[str, Any]:
        """The record of a finished job. Raises StoreError where it is missing or damaged."""
        file = self.path(key) / "record.json"
        try:
            record = json.loads(file.read_text())
            if not isinstance(record, dict):
                raise ValueError("it is no table")
            return record
        except FileNotFoundError:
            raise StoreError(f"the store has no job {key[:12]}…: {file} is missing.") from None
        except ValueError as error:
            raise StoreError(f"{file} is damaged ({error}). Remove its folder; the next run makes it again.") from None

    def tensors(self, key: str, name: str) -> dict[str, Any]:
        """The tensors of one file of a finished job."""
        return read_tensors(self.path(key) / f"{name}.safetensors")

    def put(
        self,
        key: str,
        record: Mapping[str, Any],
        files: Mapping[str, Mapping[str, Any]],
        drawings: Mapping[str, Callable[[Path], None]] | None = None,
    ) -> None:
        """Write a finished job: its tensors, what draws itself into a file, then its record, then one rename to its place."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.root))
            try:
                for name, tensors in files.items():
                    write_tensors(folder / f"{name}.safetensors", tensors)
                for name, draw in (drawings or {}).items():
                    draw(folder / name)
                (folder / "record.json").write_text(json.dumps(finite(record), indent=1, sort_keys=True, allow_nan=False) + "\n")
                folder.chmod(0o755)
                self._move(folder, key)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self.drop_partial(key)
        self.failure(key).unlink(missing_ok=True)

    def _move(self, folder: Path, key: str) -> None:
        place = self.path(key)
        place.parent.mkdir(exist_ok=True)
        if place.exists() and not self.has(key):
            shutil.rmtree(place)  # Without a record it is nobody's.
        try:
            folder.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not self.has(key):
                raise

    def partial(self, key: str) -> Path:
        """The folder of a job's unfinished work, made if need be."""
        folder = self.root / "partial" / key
        with writing(self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_partial(self, key: str) -> None:
        """Forget a job's unfinished work."""
        shutil.rmtree(self.root / "partial" / key, ignore_errors=True)

    def remembered(self, key: str, find: Callable[[], int]) -> int:
        """A number that is found once and then kept, so that a restart works with the same."""
        file = self.root / "chunks" / f"{key}.txt"
        if not file.is_file():
            with writing(self.root):
                write_bytes(file, f"{find()}\n".encode())
        return int(file.read_text())

    def failure(self, key: str) -> Path:
        """Where the traceback of a failed job lies."""
        return self.root / "failed" / f"{key}.txt"

    def fail(self, key: str, traceback: str) -> None:
        with writing(self.root):
            self.failure(key).parent.mkdir(parents=True, exist_ok=True)
            self.failure(key).write_text(traceback)

    def remove(self, key: str) -> None:
        """Forget one finished job."""
        shutil.rmtree(self.path(key), ignore_errors=True)

    def check_writable(self) -> None:
        """Raise StoreError now rather than after hours of work."""
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"\0" * 4096)


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turns the operating system's refusals into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"the store {root} is full. Finished jobs are safe; make room and run the same command again.") from error
        raise StoreError(f"the store {root} cannot be written: {error.strerror}. Name another with --store or BENCH_STORE.") from error


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Tensors to one safetensors file, moved into place when it is whole."""
    from safetensors.torch import save

    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def write_bytes(path: Path, content: bytes) -> None:
    """A file that is either whole or not there. Its folder is made again if another process took it away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read ({error}). Remove its folder; the next run makes it again.") from None


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """`sha256:…` of names, types, shapes and bytes, in order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16.
    return "sha256:" + digest.hexdigest()
