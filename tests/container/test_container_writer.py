from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loop_singular_bit.container import ContainerReader, ContainerWriter, RecordPlan, plan_layout
from loop_singular_bit.errors import FormatError, ResourceError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.lsb"


def _nothing_left(path: Path) -> bool:
    return not list(path.parent.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_interrupted_writer_leaves_nothing(path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), ContainerWriter(path) as writer:
        writer.add("w", "raw", {}, {"values": bytes(100)})
        raise error
    assert _nothing_left(path)


def test_existing_file_is_kept_unless_told(path: Path) -> None:
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists"):
        ContainerWriter(path)
    assert path.read_bytes() == b"old"
    with ContainerWriter(path, overwrite=True) as writer:
        writer.add("w", "raw", {}, {"values": b"x"})
    with ContainerReader.open(path) as reader:
        assert reader.read("w", "values").tobytes() == b"x"


def test_expected_bytes_beyond_the_disk_are_refused(path: Path) -> None:
    with pytest.raises(ResourceError, match="bytes needed"):
        ContainerWriter(path, expected_bytes=2**60)
    assert _nothing_left(path)


def test_meta_set_last_counts(path: Path) -> None:
    with ContainerWriter(path, {"a": 1}) as writer:
        writer.set_meta({"a": 2})
        writer.set_meta({"b": 3})
    with ContainerReader.open(path) as reader:
        assert reader.meta == {"b": 3}
        assert reader.records == ()
        reader.verify_all()


@pytest.mark.parametrize(
    "payload",
    [
        np.arange(12, dtype="<f4").reshape(3, 4),
        np.arange(12, dtype=np.float16)[2:],
        np.zeros((0, 4), np.uint8),
        np.array(7, np.int64),
        bytearray(b"abc"),
        memoryview(b"abcdef")[1:4],
        memoryview(np.arange(6, dtype="<u2").data),
    ],
)
def test_payloads_are_written_as_their_bytes(path: Path, payload: Any) -> None:
    with ContainerWriter(path) as writer:
        writer.add("w", "raw", {}, {"values": payload})
    with ContainerReader.open(path) as reader:
        assert reader.read("w", "values").tobytes() == np.asarray(payload).tobytes()


def test_record_is_returned_as_the_reader_sees_it(path: Path) -> None:
    with ContainerWriter(path) as writer:
        writer.begin_run()
        written = writer.add("w", "planes", {"loops": 2}, {"p0": bytes(100), "p1": bytes(9)})
    with ContainerReader.open(path) as reader:
        assert reader.record("w") == written


def test_layout_so_far_is_the_plan(path: Path) -> None:
    with ContainerWriter(path, {"a": 1}) as writer:
        writer.begin_run()
        writer.add("w", "raw", {"b": [1]}, {"values": bytes(300_000)})
        plan = RecordPlan("w", "raw", {"b": [1]}, {"values": 300_000}, begins_run=True)
        expected = plan_layout([plan], {"a": 1})
        assert writer.layout() == expected
    assert path.stat().st_size == expected.file_bytes


def test_attributes_changed_later_do_not_reach_the_file(path: Path) -> None:
    attributes = {"a": 1}
    with ContainerWriter(path) as writer:
        writer.add("w", "raw", attributes, {"values": b"x"})
        attributes["a"] = 2
    with ContainerReader.open(path) as reader:
        assert reader.record("w").attributes == {"a": 1}


Misuse = Callable[[ContainerWriter], object]


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda w: w.add("w", "raw", {}, {"v": b""}), "record name: 'w' stands twice"),
        (lambda w: w.add("a b", "raw", {}, {"v": b""}), "record name: found 'a b'"),
        (lambda w: w.add("x", "", {}, {"v": b""}), "record 'x' kind: found ''"),
        (lambda w: w.add("x", "raw", {}, {}), "record 'x': 0 extents"),
        (lambda w: w.add("x", "raw", {}, {"": b""}), "record 'x' extent name: found ''"),
        (
            lambda w: w.add("x", "raw", {"n": np.int64(1)}, {"v": b""}),
            "record 'x' attributes n: found a int64",
        ),
        (
            lambda w: w.add("x", "raw", {}, {"v": np.zeros((4, 4))[:, :2]}),
            "record 'x' extent 'v': the array is not contiguous",
        ),
        (lambda w: w.set_meta({"a": float("nan")}), "meta a: found nan"),
        (lambda w: w.add_optional("a b", b""), "optional extent name: found 'a b'"),
        (
            lambda w: (w.add_optional("o", b""), w.add_optional("o", b"")),
            "optional extent name: 'o' stands twice",
        ),
        (
            lambda w: (w.add_optional("o", b""), w.add("x", "raw", {}, {"v": b""})),
            "record 'x': comes after an optional extent",
        ),
    ],
)
def test_what_the_format_forbids_is_refused_and_nothing_left(
    path: Path, misuse: Misuse, message: str
) -> None:
    with pytest.raises(FormatError, match=message), ContainerWriter(path) as writer:
        writer.add("w", "raw", {}, {"v": b"x"})
        misuse(writer)
    assert _nothing_left(path)


@pytest.mark.parametrize("misuse", [{"meta": {"a": b""}}, {"block_bytes": 1000}])
def test_bad_options_leave_nothing(path: Path, misuse: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        ContainerWriter(path, **misuse)
    assert _nothing_left(path)


def test_refused_record_can_be_left_out(path: Path) -> None:
    with ContainerWriter(path) as writer:
        with pytest.raises(FormatError):
            writer.add("w", "raw", {}, {"ok": bytes(10), "a b": b"x"})
        writer.add("w", "raw", {}, {"ok": b"y"})
    with ContainerReader.open(path) as reader:
        assert reader.read("w", "ok").tobytes() == b"y"
        reader.verify_all()
