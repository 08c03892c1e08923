"""The index of a container: its types, its JSON and the rules that hold for each value alone."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

import msgspec

from loop_singular_bit.errors import FormatError

BLOCK_BYTES = 262_144
SHARD_BYTES = 5_000_000_000
SHARD_BYTES_MIN = 4096
INDEX_BYTES_MAX = 256 * 1024 * 1024
DEPTH_MAX = 32
INTEGER_MAX = 2**63 - 1

_NAME_PATTERN = r"^[!-~]{1,255}\Z"
_NAME = re.compile(_NAME_PATTERN)
_BLOCK_BYTES_ALLOWED = tuple(4096 << shift for shift in range(13))

Name = Annotated[str, msgspec.Meta(pattern=_NAME_PATTERN)]
Count = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
Crc = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}\Z")]


class Extent(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A named byte range. Where it lies follows from what comes before it (layout.lay_out)."""

    name: Name
    size_bytes: Count


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named group of extents; `kind` and `attributes` belong to the layers above."""

    name: Name
    kind: Name
    attributes: dict[str, Any]
    extents: Annotated[tuple[Extent, ...], msgspec.Meta(min_length=1)]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a container says about its bytes. `runs` holds first record numbers."""

    block_bytes: Count
    meta: dict[str, Any]
    optional: tuple[Extent, ...]
    records: tuple[Record, ...]
    runs: tuple[Count, ...]
    shard_bytes: Count
    table_crc32c: Crc


_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(Index)


def encode_index(index: Index) -> bytes:
    """The index as it stands in the file: UTF-8 JSON, sorted keys, no spaces.

    Raises FormatError when it is longer than a reader accepts.
    """
    try:
        data = _ENCODER.encode(index)
    except UnicodeEncodeError as error:
        raise FormatError(f"index: a string is not Unicode text ({error})") from error
    if len(data) > INDEX_BYTES_MAX:
        raise FormatError(f"index: {len(data)} bytes, the format allows {INDEX_BYTES_MAX}")
    return data


def decode_index(data: bytes) -> Index:
    """An index whose every value is valid by itself. Raises FormatError naming the value.

    What values must be to each other (layout.check_index) is not looked at.
    """
    try:
        index = _DECODER.decode(data)
    except msgspec.ValidationError as error:
        raise FormatError(_explain(str(error), data)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"index: not JSON: {error}") from error
    except RecursionError as error:
        raise FormatError(f"index: nested deeper than {DEPTH_MAX}") from error
    check_block_bytes(index.block_bytes)
    check_shard_bytes(index.shard_bytes)
    check_values("index meta", index.meta)
    for record in index.records:
        check_values(f"index record {record.name!r} attributes", record.attributes)
    # Our own writer's bytes come out again unchanged, so they cannot hold a duplicate key. Only
    # other bytes pay for the slow look.
    if encode_index(index) != data:
        json.loads(data, object_pairs_hook=_unique_keys)
    return index


def check_name(what: str, name: str) -> None:
    """Refuses a name that the format does not allow."""
    if not (isinstance(name, str) and _NAME.match(name)):
        raise FormatError(
            f"{what}: found {name!r:.80}, expected 1 to 255 printable ASCII characters, no space"
        )


def check_block_bytes(block_bytes: int) -> None:
    """Refuses a block size that the format does not allow."""
    if block_bytes not in _BLOCK_BYTES_ALLOWED:
        raise FormatError(
            f"index block_bytes: found {block_bytes}, expected a power of two from "
            f"{_BLOCK_BYTES_ALLOWED[0]} to {_BLOCK_BYTES_ALLOWED[-1]}"
        )


def check_shard_bytes(shard_bytes: int) -> None:
    """Refuses a shard limit that the format does not allow."""
    if not SHARD_BYTES_MIN <= shard_bytes <= INTEGER_MAX:
        raise FormatError(
            f"index shard_bytes: found {shard_bytes}, expected {SHARD_BYTES_MIN} to {INTEGER_MAX}"
        )


def check_values(what: str, value: object, path: tuple[object, ...] = ()) -> None:
    """Refuses what the format does not allow in `meta` and `attributes`, naming the place."""
    if isinstance(value, dict):
        _check_depth(what, path)
        for key, item in value.items():
            if not isinstance(key, str):
                raise FormatError(f"{_place(what, path)}: key {key!r:.80} is not a string")
            check_values(what, item, (*path, key))
    elif isinstance(value, list | tuple):
        _check_depth(what, path)
        for number, item in enumerate(value):
            check_values(what, item, (*path, number))
    elif isinstance(value, int):
        if not -INTEGER_MAX - 1 <= value <= INTEGER_MAX:
            bits = value.bit_length()
            raise FormatError(f"{_place(what, path)}: an integer of {bits} bits, allowed 64 signed")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise FormatError(f"{_place(what, path)}: found {value}, expected a finite number")
    elif not (value is None or isinstance(value, str)):
        kind = type(value).__name__
        raise FormatError(f"{_place(what, path)}: found a {kind}, expected a JSON value")


def _check_depth(what: str, path: tuple[object, ...]) -> None:
    if len(path) >= DEPTH_MAX:
        raise FormatError(f"{what}: nested deeper than {DEPTH_MAX}")


def _place(what: str, path: tuple[object, ...]) -> str:
    return " ".join((what, *(f"{key!s:.80}" for key in path)))


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise FormatError(f"index: key {key!r:.80} stands twice in one object")
        seen[key] = value
    return seen


def _explain(message: str, data: bytes) -> str:
    """msgspec's message, with the record's name and the value found at the path it ends with."""
    reason, _, path = message.partition(" - at `$")
    try:
        value: Any = msgspec.json.decode(data)
        where = "index"
        for key, number in re.findall(r"\.([a-z0-9_]+)|\[(\d+)\]", path):
            value = value[key] if key else value[int(number)]
            label = _label(value)
            where += f" {key}" if key else f"[{number}]"
            if number and isinstance(label, str):
                where += f" {label!r:.80}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        # The document has more than one defect; the first is enough.
        return f"index{path.rstrip('`')}: {reason}"
    found = "" if isinstance(value, dict) else f", found {value!r:.80}"
    return f"{where}: {reason}{found}"


def _label(value: Any) -> Any:
    """The name of a record or of an extent."""
    if isinstance(value, dict):
        return value.get("name")
    return value[0] if isinstance(value, list) and value else None
