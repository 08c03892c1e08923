"""One test for each defect of the index that the checksums do not catch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from container_files import forge_index, forge_index_bytes, read_index, write_layered

from loop_singular_bit.container import ContainerReader
from loop_singular_bit.container.index import check_values
from loop_singular_bit.errors import FormatError, ResourceError

# write_layered: records embed, 0.norm (run), 0.q (3 extents), 1.norm (run), 1.q; optional notes.
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.lsb"
    write_layered(path)
    return path


def _refused(path: Path, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        ContainerReader.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def _put(place: str, value: object) -> Change:
    """A change that sets `records 2 extents 1 offset` and the like."""
    *parents, last = (int(key) if key.isdigit() else key for key in place.split())

    def change(index: dict[str, Any]) -> None:
        at: Any = index
        for key in parents:
            at = at[key]
        at[last] = value

    return change


def _remove(place: str) -> Change:
    *parents, last = (int(key) if key.isdigit() else key for key in place.split())

    def change(index: dict[str, Any]) -> None:
        at: Any = index
        for key in parents:
            at = at[key]
        del at[last]

    return change


def test_forging_nothing_gives_a_valid_file(path: Path) -> None:
    forge_index(path, lambda index: None)
    with ContainerReader.open(path) as reader:
        reader.verify_all()


KEYS = ("block_bytes", "meta", "optional", "records", "runs", "shard_bytes", "table_crc32c")


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_required(path: Path, key: str) -> None:
    forge_index(path, _remove(key))
    _refused(path, f"index: .*missing required field `{key}`")


@pytest.mark.parametrize("key", ["attributes", "extents", "kind", "name"])
def test_every_key_of_a_record_is_required(path: Path, key: str) -> None:
    forge_index(path, _remove(f"records 2 {key}"))
    name = "" if key == "name" else " '0.q'"
    _refused(path, rf"index records\[2\]{name}: .*missing required field `{key}`")


@pytest.mark.parametrize("place", ["", "records 0 "])
def test_unknown_key(path: Path, place: str) -> None:
    forge_index(path, _put(f"{place}more", 1))
    _refused(path, "unknown field `more`")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("block_bytes", "4096", "index block_bytes: Expected `int`, got `str`, found '4096'"),
        ("block_bytes", 4096.0, "index block_bytes: Expected `int`, got `float`, found 4096.0"),
        ("block_bytes", 5000, "index block_bytes: found 5000, expected a power of two"),
        ("block_bytes", 0, "index block_bytes: found 0"),
        ("block_bytes", 2**25, "index block_bytes: found 33554432"),
        ("block_bytes", 8192, "checksum table: found a byte beside it that is not zero"),
        ("shard_bytes", 4095, "index shard_bytes: found 4095, expected 4096 to 9223372036854775"),
        ("shard_bytes", 2**63, "index shard_bytes: Expected `int` <= 9223372036854775807"),
        ("shard_bytes", 16384, "preamble index offset: found 33024, expected 8512"),
        ("meta", [], "index meta: Expected `object`, got `array`"),
        ("meta a", 2**63, "index meta a: an integer of 64 bits"),
        ("meta a", -(2**70), "index meta a: an integer of 71 bits"),
        ("table_crc32c", 7, "index table_crc32c: Expected `str`, got `int`, found 7"),
        ("table_crc32c", "0000000G", "index table_crc32c: .*found '0000000G'"),
        ("table_crc32c", "00000000", "index table_crc32c: found .*, expected 00000000"),
        ("records", {}, "index records: Expected `array`, got `object`"),
        ("records 1", [], r"index records\[1\]: Expected `object`, got `array`"),
        ("records 1 name", 7, r"index records\[1\] name: Expected `str`, got `int`, found 7"),
        ("records 1 name", "", r"index records\[1\] '' name: .*found ''"),
        ("records 1 name", "a b", "name: Expected `str` matching regex .*found 'a b'"),
        ("records 1 name", "é", "name: Expected `str` matching regex"),
        ("records 1 name", "n" * 256, "name: Expected `str` matching regex"),
        ("records 1 name", "embed", "index record name: 'embed' stands 2 times, expected once"),
        ("records 1 kind", None, r"index records\[1\] '0.norm' kind: Expected `str`, got `null`"),
        ("records 1 kind", "", r"index records\[1\] '0.norm' kind: Expected `str` matching"),
        ("records 1 attributes", 1, "'0.norm' attributes: Expected `object`, got `int`, found 1"),
        ("records 1 attributes", {"a": [2**63]}, "record '0.norm' attributes a 0: an integer of"),
        ("records 1 extents", [], r"'0.norm' extents: Expected `array` of length >= 1, found \[\]"),
        ("records 1 extents", {}, "'0.norm' extents: Expected `array`, got `object`"),
        ("records 2 extents 1", 1, r"'0.q' extents\[1\]: Expected `array`, got `int`, found 1"),
        ("records 2 extents 1", {}, r"'0.q' extents\[1\]: Expected `array`, got `object`"),
        ("records 2 extents 1", [], r"'0.q' extents\[1\]: Expected `array` of .* length 2, got 0"),
        ("records 2 extents 1", ["x"], r"extents\[1\] 'x': Expected `array` of .* 2, got 1"),
        ("records 2 extents 1", ["x", 1, 2], "index: Expected `array` of at most length 2"),
        ("records 2 extents 1 0", "a b", r"'0.q' extents\[1\] 'a b'\[0\]: .*found 'a b'"),
        ("records 2 extents 1 0", "plane0", "index record '0.q' extent name: 'plane0' stands 2"),
        ("records 2 extents 1 1", "x", r"'plane1'\[1\]: Expected `int`, got `str`, found 'x'"),
        ("records 2 extents 1 1", True, r"'plane1'\[1\]: Expected `int`, got `bool`, found True"),
        ("records 2 extents 1 1", 1.5, r"'plane1'\[1\]: Expected `int`, got `float`"),
        ("records 2 extents 1 1", -1, r"'plane1'\[1\]: Expected `int` >= 0, found -1"),
        ("records 2 extents 1 1", 2**63, r"\[1\]: Expected `int` <= 9223372036854775807"),
        (
            "records 2 extents 1 1",
            12352,
            "index table_crc32c: found [0-9a-f]{8}, expected [0-9a-f]{8}",
        ),
        (
            "records 2 extents 1 1",
            2**62,
            "preamble index offset: found 33024, expected 45035996273",
        ),
        ("runs", 3, "index runs: Expected `array`, got `int`, found 3"),
        ("runs", ["a"], r"index runs\[0\]: Expected `int`, got `str`, found 'a'"),
        ("runs", [3, 1], r"index runs\[1\]: found record 1, expected 4 to 4"),
        ("runs", [1, 1], r"index runs\[1\]: found record 1, expected 2 to 4"),
        ("runs", [1, 5], r"index runs\[1\]: found record 5, expected 2 to 4"),
        ("runs", [-1], r"index runs\[0\]: Expected `int` >= 0, found -1"),
        ("runs", [], "preamble index offset: found 33024, expected 25152"),
        ("runs", [1, 2, 3], "preamble index offset: found 33024, expected 37120"),
        ("optional", {}, "index optional: Expected `array`, got `object`"),
        ("optional 0", 1, r"index optional\[0\]: Expected `array`, got `int`, found 1"),
        ("optional 0 0", "a b", r"index optional\[0\] 'a b'\[0\]: .*found 'a b'"),
        ("optional", [], "preamble index offset: found 33024, expected 32960"),
    ],
)
def test_value(path: Path, place: str, value: object, message: str) -> None:
    forge_index(path, _put(place, value))
    _refused(path, message)


def test_repeated_optional_name(path: Path) -> None:
    forge_index(path, lambda index: index["optional"].append(index["optional"][0]))
    _refused(path, "index optional extent name: 'notes' stands 2 times")


def test_extents_in_another_order(path: Path) -> None:
    """Their lengths do not tell, their checksums do."""
    forge_index(path, lambda index: index["records"][2]["extents"].reverse())
    with ContainerReader.open(path) as reader, pytest.raises(ResourceError, match=r"record '0\.q'"):
        reader.verify_all()


def _nested(depth: int) -> Any:
    return {"a": _nested(depth - 1)} if depth > 1 else {}


def test_nesting(path: Path) -> None:
    forge_index(path, _put("meta", _nested(32)))
    ContainerReader.open(path).close()
    forge_index(path, _put("meta", _nested(33)))
    _refused(path, "index meta: nested deeper than 32")


def _encode(index: dict[str, Any]) -> bytes:
    return json.dumps(index, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"meta":{', b'"meta":{"model":1,', "index: key 'model' stands twice in one object"),
        (b'"kind":"raw"', b'"kind":"raw","kind":"raw"', "index: key 'kind' stands twice"),
        (b'"tiny"', b'"\xff"', "index: not JSON"),
        (b'"tiny"', b'"\\ud800"', "index: not JSON"),
        (b'"tiny"', b"NaN", "index: not JSON"),
        (b'"tiny"', b"1e999", r"index.meta\[...\]: Number out of range"),
        (b'"tiny"', b"[" * 100_000, "index: nested deeper than 32"),
        (b'"runs":[1,3],', b'"runs":"a","x":' + b"[" * 100_000, "index.runs: Expected `array`"),
        (b'"runs":[1,3],', b'"runs":0,"runs":[],', "index runs: Expected `array`, got `int`"),
        (
            b'"records":[',
            b'"records":[0],"records":[',
            "index records.0. 'embed': Expected `object`",
        ),
        (b'"runs":[1,3],', b'"runs":[1,3],x', "index: not JSON"),
        (b'"runs":[1,3],', b'"runs":[1,3]', "index: not JSON"),
    ],
)
def test_text(path: Path, old: bytes, new: bytes, message: str) -> None:
    text = _encode(read_index(path.read_bytes()))
    assert old in text
    forge_index_bytes(path, text.replace(old, new, 1))
    _refused(path, message)


@pytest.mark.parametrize("text", [b"[]", b"null", b"1", b" ", b"{}"])
def test_other_documents(path: Path, text: bytes) -> None:
    forge_index_bytes(path, text)
    _refused(path, "index")


def test_another_writers_spelling_is_read(path: Path) -> None:
    text = json.dumps(read_index(path.read_bytes()), indent=1).replace('"tiny"', '"\\u0074iny"')
    forge_index_bytes(path, text.encode())
    with ContainerReader.open(path) as reader:
        assert reader.meta == {"model": "tiny"}
        reader.verify_all()


def test_values_of_json_pass() -> None:
    check_values("meta", {"a": [None, True, 2**63 - 1, -(2**63), -1.5, "é", (), {}]})
