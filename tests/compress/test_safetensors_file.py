"""One test for each defect a safetensors header can have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import write_safetensors

from loop_singular_bit.compress.safetensors_file import read_header
from loop_singular_bit.errors import TensorError

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def written(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(TensorError) as caught:
        read_header(path)
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_a_file_by_the_reference_implementation(path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float16), "b": np.ones(4, np.float32)}, path)
    tensors = read_header(path)
    assert {n: (t.kind, t.shape, t.size_bytes) for n, t in tensors.items()} == {
        "a": ("F16", (2, 3), 12),
        "b": ("F32", (4,), 16),
    }
    start = tensors["b"].offset_bytes
    assert path.read_bytes()[start : start + 16] == np.ones(4, np.float32).tobytes()


def test_literal_bytes(path: Path) -> None:
    header = b'{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    path.write_bytes(bytes([len(header), 0, 0, 0, 0, 0, 0, 0]) + header + b"\x80\x3f")
    (tensor,) = read_header(path).values()
    assert (tensor.name, tensor.kind, tensor.shape) == ("x", "BF16", (1,))
    assert (tensor.offset_bytes, tensor.size_bytes) == (8 + len(header), 2)


def test_no_tensors(path: Path) -> None:
    assert read_header(written(path, {"__metadata__": {"format": "pt"}}, b"")) == {}


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8), (1 << 40).to_bytes(8, "little")])
def test_no_whole_header(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert f"in a file of {len(content)} bytes" in refusal(path)


def test_truncated_file(path: Path) -> None:
    write_safetensors(path, {"a": np.zeros((8, 8), np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    message = refusal(path)
    assert "is truncated" in message
    assert f"{len(whole) - 10} bytes found, {len(whole)} expected" in message


def test_trailing_bytes(path: Path) -> None:
    assert "is too long" in refusal(written(path, {"a": ENTRY}, bytes(17)))


@pytest.mark.parametrize("text", [b"{nonsense", b'{"a":"\xff"}', b"[" * 100_000])
def test_header_that_is_not_json(path: Path, text: bytes) -> None:
    assert "not valid JSON" in refusal(written(path, text))


def test_header_that_is_no_object(path: Path) -> None:
    assert "not a JSON object" in refusal(written(path, [1, 2]))


def test_name_used_twice(path: Path) -> None:
    entry = json.dumps(ENTRY)
    assert "a name is used twice" in refusal(written(path, f'{{"a":{entry},"a":{entry}}}'.encode()))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"more": 1}, "exactly dtype, shape and data_offsets"),
        ({"dtype": 5}, "dtype is 5, expected a string"),
        ({"shape": [2, -2]}, "shape is [2, -2], expected a list of sizes"),
        ({"shape": [2, 2.0]}, "shape is [2, 2.0]"),
        ({"shape": [True, 4]}, "shape is [True, 4]"),
        ({"shape": 4}, "shape is 4"),
        ({"data_offsets": [16, 0]}, "data_offsets are [16, 0], expected [start, stop]"),
        ({"data_offsets": [0]}, "data_offsets are [0]"),
        ({"data_offsets": [0, 15]}, "15 bytes found, 16 expected for F32 [2, 2]"),
        ({"shape": [2, 3]}, "16 bytes found, 24 expected for F32 [2, 3]"),
    ],
)
def test_bad_entry(path: Path, changes: dict[str, object], expected: str) -> None:
    message = refusal(written(path, {"a": ENTRY | changes}))
    assert "tensor a" in message
    assert expected in message


def test_entry_that_is_no_object(path: Path) -> None:
    assert "tensor a: header entry without" in refusal(written(path, {"a": None}))


def test_overlapping_tensors(path: Path) -> None:
    second = ENTRY | {"data_offsets": [8, 24]}
    message = refusal(written(path, {"a": ENTRY, "b": second}, bytes(24)))
    assert "overlap or leave a gap" in message


def test_gap_between_tensors(path: Path) -> None:
    second = ENTRY | {"data_offsets": [20, 36]}
    message = refusal(written(path, {"a": ENTRY, "b": second}, bytes(36)))
    assert "overlap or leave a gap" in message
