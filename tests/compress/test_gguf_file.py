"""GGUF headers: literal bytes, what the gguf package writes, and each defect."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tiny import write_tiny_gguf

from loop_singular_bit.compress.gguf_file import read_header
from loop_singular_bit.errors import ConfigError, LoopError, ResourceError, TensorError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def header(tensors: list[bytes], keys: list[bytes], version: int = 3) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(keys))
    return b"GGUF" + counts + b"".join(keys) + b"".join(tensors)


def aligned(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def refusal(path: Path, content: bytes, error: type[LoopError] = ConfigError) -> str:
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_header(path)
    assert "m.gguf" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_literal_bytes(path: Path, version: int) -> None:
    keys = [key("a.b", 4, struct.pack("<I", 7)), key("s", 8, text("né"))]
    entries = [tensor("w", [4, 2]), tensor("v", [1], 1, 32)]
    head = aligned(header(entries, keys, version))
    path.write_bytes(head + bytes(32) + b"\x00\x3c")
    read = read_header(path)
    assert read.metadata == {"a.b": 7, "s": "né"}
    w, v = read.tensors["w"], read.tensors["v"]
    assert (w.kind, w.shape, w.offset_bytes, w.size_bytes) == ("F32", (2, 4), len(head), 32)
    assert (v.kind, v.shape, v.offset_bytes, v.size_bytes) == ("F16", (1,), len(head) + 32, 2)


def test_every_type_of_value(path: Path) -> None:
    values = {
        "u8": (GGUFValueType.UINT8, 255),
        "i8": (GGUFValueType.INT8, -1),
        "u16": (GGUFValueType.UINT16, 65535),
        "i16": (GGUFValueType.INT16, -2),
        "u32": (GGUFValueType.UINT32, 2**32 - 1),
        "i32": (GGUFValueType.INT32, -3),
        "f32": (GGUFValueType.FLOAT32, 0.5),
        "bool": (GGUFValueType.BOOL, True),
        "u64": (GGUFValueType.UINT64, 2**63),
        "i64": (GGUFValueType.INT64, -4),
        "f64": (GGUFValueType.FLOAT64, 0.1),
        "text": (GGUFValueType.STRING, "x"),
    }
    writer = GGUFWriter(path, "llama")
    for name, (kind, value) in values.items():
        writer.add_key_value(name, value, kind)
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("texts", ["a", "", "c"])
    writer.add_custom_alignment(64)
    writer.add_tensor("w", np.zeros((3, 5), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_header(path)
    assert {name: read.metadata[name] for name in values} == {n: v for n, (_, v) in values.items()}
    assert read.metadata["numbers"] == [1, -2, 3]
    assert read.metadata["texts"] == ["a", "", "c"]
    assert read.tensors["w"].offset_bytes % 64 == 0


@pytest.mark.parametrize("quantization", ["F16", "Q8_0"])
def test_places_are_those_of_the_gguf_package(path: Path, quantization: str) -> None:
    reference = GGUFReader(write_tiny_gguf(path, quantization=quantization))
    read = read_header(path)
    places = {n: (t.kind, t.offset_bytes, t.size_bytes) for n, t in read.tensors.items()}
    assert places == {
        t.name: (t.tensor_type.name, t.data_offset, t.n_bytes) for t in reference.tensors
    }
    shapes = {t.name: tuple(int(d) for d in reversed(t.shape)) for t in reference.tensors}
    assert {n: t.shape for n, t in read.tensors.items()} == shapes
    fields = {f.name: f.contents() for f in reference.fields.values() if f.name[:4] != "GGUF"}
    assert read.metadata == fields


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04" + bytes(100)])
def test_another_kind_of_file(path: Path, content: bytes) -> None:
    assert "does not start with the letters GGUF" in refusal(path, content)


@pytest.mark.parametrize("version", [1, 4, 3 << 24])
def test_another_version(path: Path, version: int) -> None:
    assert f"version {version} found, expected 2 or 3" in refusal(path, header([], [], version))


def test_every_truncation_is_refused(path: Path) -> None:
    whole = header([tensor("w", [8])], [key("k", 9, struct.pack("<IQ", 8, 2) + text("a") * 2)])
    for size in range(4, len(whole)):
        message = refusal(path, whole[:size])
        assert f"truncated: {size} bytes found" in message


def test_truncated_tensor(path: Path) -> None:
    head = aligned(header([tensor("w", [8])], []))
    message = refusal(path, head + bytes(31), TensorError)
    assert f"{len(head) + 31} bytes found, tensor w ends at {len(head) + 32}" in message


def test_damaged_length(path: Path) -> None:
    assert "truncated" in refusal(path, header([], [struct.pack("<Q", 2**63)]))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([key("k", 99, b"")], "a value has the unknown type 99"),
        ([key("k", 9, struct.pack("<IQ", 9, 1))], "an array has elements of type 9"),
        ([key("k", 0, b"\1")] * 2, "key k is there twice"),
        ([key("k", 8, struct.pack("<Q", 1) + b"\xff")], "a string is not UTF-8"),
        ([key("general.alignment", 4, struct.pack("<I", 24))], "general.alignment is 24"),
        ([key("general.alignment", 4, struct.pack("<I", 0))], "general.alignment is 0"),
        ([key("general.alignment", 8, text("x"))], "general.alignment is 'x'"),
    ],
)
def test_bad_metadata(path: Path, keys: list[bytes], expected: str) -> None:
    assert expected in refusal(path, header([], keys))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([tensor("w", [])], "tensor w has 0 dimensions, expected 1 to 4"),
        ([tensor("w", [1] * 5)], "tensor w has 5 dimensions"),
        ([tensor("w", [4], 999)], "tensor w has the unknown type 999"),
        ([tensor("w", [0, 4])], "tensor w has shape [4, 0]"),
        ([tensor("w", [33], 8)], "expected rows of whole Q8_0 blocks (32 weights)"),
        ([tensor("w", [1]), tensor("w", [1])], "tensor w is there twice"),
    ],
)
def test_bad_tensor_entry(path: Path, tensors: list[bytes], expected: str) -> None:
    assert expected in refusal(path, aligned(header(tensors, [])) + bytes(64))


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot read"):
        read_header(tmp_path / "absent.gguf")
