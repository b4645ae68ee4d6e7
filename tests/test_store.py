"""The folder of finished jobs: written once, whole, and never changed."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from bench import store as stores
from bench.errors import StoreError
from bench.store import Store, read_tensors, tensors_digest, write_tensors

KEY, OTHER = "ab" + "0" * 62, "cd" + "1" * 62
ROWS = {"rows": torch.arange(3.0)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_job_is_a_record_and_its_tensors_in_a_folder_of_its_key(store):
    store.put(KEY, {"stage": "score", "value": 0.5}, {"rows": ROWS})
    assert files(store.root) == {f"ab/{KEY}/record.json", f"ab/{KEY}/rows.safetensors"}
    assert store.has(KEY)
    assert store.record(KEY) == {"stage": "score", "value": 0.5}
    assert torch.equal(store.tensors(KEY, "rows")["rows"], ROWS["rows"])
    assert list(store.finished()) == [KEY]


def test_there_is_nothing_before_anything_is_put(store):
    assert not store.has(KEY)
    assert list(store.finished()) == []
    with pytest.raises(StoreError, match="has no job ab0000000000"):
        store.record(KEY)


def test_the_first_to_finish_stays(store):
    store.put(KEY, {"by": "first"}, {"rows": ROWS})
    store.put(KEY, {"by": "second"}, {"rows": {"rows": torch.zeros(1)}})
    assert store.record(KEY) == {"by": "first"}
    assert len(store.tensors(KEY, "rows")["rows"]) == 3
    assert files(store.root) == {f"ab/{KEY}/record.json", f"ab/{KEY}/rows.safetensors"}


def test_many_writers_of_one_job_leave_one_whole_job(store):
    def put(number):
        store.put(KEY, {"by": number}, {"rows": {"rows": torch.full((1000,), float(number))}})

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = store.record(KEY)["by"]
    assert torch.equal(store.tensors(KEY, "rows")["rows"], torch.full((1000,), float(winner)))
    assert files(store.root) == {f"ab/{KEY}/record.json", f"ab/{KEY}/rows.safetensors"}


@pytest.mark.parametrize("moment", ["tensors", "record", "rename"])
def test_a_job_that_is_not_whole_is_not_there(store, monkeypatch, moment):
    """The power goes while the tensors, the record or the name are written."""

    def breaks(*given, **more):
        raise SystemError

    patched = {"tensors": (stores, "write_tensors"), "record": (Path, "write_text"), "rename": (Path, "rename")}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(*patched, breaks)
        with pytest.raises(SystemError):
            store.put(KEY, {"stage": "score"}, {"rows": ROWS})
    assert not store.has(KEY)
    assert files(store.root) == set()
    store.put(KEY, {"stage": "score"}, {"rows": ROWS})
    assert store.has(KEY)


def test_a_record_without_its_tensors_cannot_be_because_it_is_written_last(store, monkeypatch):
    written = []
    write = stores.write_tensors
    monkeypatch.setattr(stores, "write_tensors", lambda path, tensors: (written.append(sorted(os.listdir(path.parent))), write(path, tensors)))
    store.put(KEY, {}, {"a": ROWS, "b": ROWS})
    assert all("record.json" not in there for there in written)


def test_a_number_that_is_none_is_written_as_missing(store):
    store.put(KEY, {"value": float("nan"), "deep": [{"x": float("inf")}, 1.5]}, {})
    assert store.record(KEY) == {"value": None, "deep": [{"x": None}, 1.5]}


# Unfinished and failed work


def test_unfinished_work_has_a_place_that_goes_when_the_job_is_finished(store):
    (store.partial(KEY) / "checkpoint.pt").write_bytes(b"half")
    assert files(store.partial(KEY)) == {"checkpoint.pt"}
    assert not store.has(KEY)
    store.put(KEY, {}, {})
    assert not (store.root / "partial" / KEY).exists()


def test_unfinished_work_of_others_stays(store):
    (store.partial(OTHER) / "checkpoint.pt").write_bytes(b"half")
    store.put(KEY, {}, {})
    assert files(store.partial(OTHER)) == {"checkpoint.pt"}


def test_a_traceback_lies_under_its_key_until_the_job_is_finished(store):
    store.fail(KEY, "Traceback: first")
    store.fail(KEY, "Traceback: second")
    assert store.failure(KEY).read_text() == "Traceback: second"
    assert not store.has(KEY)
    store.put(KEY, {}, {})
    assert not store.failure(KEY).exists()


def test_a_job_that_is_removed_is_gone_and_others_stay(store):
    store.put(KEY, {}, {})
    store.put(OTHER, {}, {})
    store.remove(KEY)
    store.remove(KEY)
    assert list(store.finished()) == [OTHER]


def test_finished_jobs_come_in_order_and_are_nothing_else(store):
    store.put(OTHER, {}, {})
    store.put(KEY, {}, {})
    store.partial("ef" + "2" * 62)
    store.fail("ef" + "3" * 62, "Traceback")
    (store.root / "ef" / ("ef" + "4" * 62)).mkdir(parents=True)
    (store.root / "boards").mkdir()
    assert list(store.finished()) == [KEY, OTHER]


# Refusals


@pytest.mark.parametrize("call", [lambda s: s.check_writable(), lambda s: s.put(KEY, {}, {}), lambda s: s.partial(KEY), lambda s: s.fail(KEY, "x")])
@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_file_in_the_place_of_the_store_is_refused(tmp_path, call, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"cannot be written: .*--store or BENCH_STORE"):
        call(Store(tmp_path / place))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full. Finished jobs are safe; make room and run the same command again"),
        (errno.EROFS, "cannot be written: Read-only file system"),
        (errno.EACCES, "cannot be written: Permission denied"),
        (errno.EDQUOT, "is full"),
        (errno.EIO, "cannot be written: Input/output error"),
    ],
)
def test_what_the_system_refuses_is_an_error_that_says_what_to_do(store, monkeypatch, number, words):
    store.put(OTHER, {}, {})

    def refuses(*given, **more):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuses)
        with pytest.raises(StoreError) as caught:
            store.put(KEY, {}, {"rows": ROWS})
    assert words in str(caught.value)
    assert str(store.root) in str(caught.value)
    assert list(store.finished()) == [OTHER]
    assert not list(store.root.glob(".writing-*"))


def test_an_error_that_is_ours_is_not_taken_for_the_systems(store):
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.put(KEY, {"value": object()}, {})
    assert files(store.root) == set()


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_record_is_named_with_what_to_do(store, text):
    store.put(KEY, {}, {})
    (store.path(KEY) / "record.json").write_text(text)
    with pytest.raises(StoreError, match=r"record\.json is damaged .* Remove its folder"):
        store.record(KEY)


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_damaged_tensors_are_named_with_what_to_do(store, content):
    store.put(KEY, {}, {"rows": ROWS})
    file = store.path(KEY) / "rows.safetensors"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(StoreError, match=r"rows\.safetensors cannot be read .* Remove its folder"):
        store.tensors(KEY, "rows")


# Tensors


def test_tensors_come_back_as_they_were(tmp_path):
    tensors = {
        "float": torch.randn(2, 3),
        "turned": torch.arange(6.0).view(2, 3).T,
        "channels last": torch.randn(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "whole": torch.tensor([1, -2]),
        "flag": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(7),
        "gradient": torch.ones(2, requires_grad=True),
    }
    write_tensors(tmp_path / "file.safetensors", tensors)
    found = read_tensors(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_digest_is_that_of_names_types_shapes_and_bytes():
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3])}
    same = {"b": torch.tensor([3]), "a": torch.tensor([0.0, 1.0, 2.0])[1:]}
    assert tensors_digest(base) == tensors_digest(same)
    others = [
        {**base, "b": torch.tensor([4])},
        {"a": base["a"], "c": base["b"]},
        {**base, "a": base["a"].view(1, 2)},
        {**base, "a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"a": base["a"]},
    ]
    assert len({tensors_digest(each) for each in [base, *others]}) == 6


def test_a_digest_takes_every_type_of_weights():
    assert tensors_digest({"a": torch.zeros(2, dtype=torch.bfloat16)}) != tensors_digest({"a": torch.zeros(2, dtype=torch.float16)})


def test_a_digest_is_written_down_once_and_for_all():
    """Records of every machine hold it: name|type|shape| and the bytes, little end first, by hand."""
    import hashlib

    content = b"a|torch.float32|(2,)|" + b"\x00\x00\x80\x3f\x00\x00\x00\x40"  # 1.0 and 2.0
    assert tensors_digest({"a": torch.tensor([1.0, 2.0])}) == "sha256:" + hashlib.sha256(content).hexdigest()


def test_a_store_is_data_and_never_a_program(store):
    """Records are JSON and tensors safetensors; the only pickle is the checkpoint, read with weights only."""
    store.put(KEY, {"stage": "train"}, {"weights": ROWS})
    assert {Path(name).suffix for name in files(store.root)} == {".json", ".safetensors"}
    assert json.loads((store.path(KEY) / "record.json").read_text()) == {"stage": "train"}
