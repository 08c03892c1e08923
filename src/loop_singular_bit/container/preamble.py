"""The first 64 bytes of a container's files (docs/format.md, "Preamble" and "Shards")."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from loop_singular_bit._native import crc32c
from loop_singular_bit.container.index import INDEX_BYTES_MAX
from loop_singular_bit.errors import FormatError

MAGIC = b"LSBIT\r\n\x1a"
SHARD_MAGIC = b"LSBSH\r\n\x1a"
FORMAT_VERSION = 1
FEATURES_KNOWN = 0
PREAMBLE_BYTES = 64
ALIGN_BYTES = 64
ID_BYTES = 16

_FIRST = struct.Struct("<8sIIQQQI")
_SHARD = struct.Struct("<8sIIQ16sI")
_VERSION_OFFSET = 8
_CRC_OFFSET = 44
_NEWER = "needs a newer version of loop-singular-bit: run `pip install -U loop-singular-bit`"
_OLDER = "written before the format was frozen: compress the model again"
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Preamble:
    """The fields of the first file's first 64 bytes that vary."""

    index_offset: int
    index_bytes: int
    file_bytes: int
    index_crc32c: int


@dataclass(frozen=True)
class ShardPreamble:
    """The fields of a further shard's first 64 bytes that vary; `number` counts from 1."""

    number: int
    file_bytes: int
    artefact_id: bytes


def artefact_id(table: bytes, index: bytes) -> bytes:
    """What binds shards to their first file: 16 bytes of the SHA-256 of table and index.

    The table has a checksum of every block of every shard, so other content has another id.
    """
    return hashlib.sha256(table + index).digest()[:ID_BYTES]


def pack_preamble(preamble: Preamble) -> bytes:
    """The first 64 bytes of the first file."""
    return _sealed(
        _FIRST.pack(
            MAGIC,
            FORMAT_VERSION,
            0,
            preamble.index_offset,
            preamble.index_bytes,
            preamble.file_bytes,
            preamble.index_crc32c,
        )
    )


def pack_shard_preamble(preamble: ShardPreamble) -> bytes:
    """The first 64 bytes of a further shard."""
    number, file_bytes, bound_to = preamble.number, preamble.file_bytes, preamble.artefact_id
    return _sealed(_SHARD.pack(SHARD_MAGIC, FORMAT_VERSION, number, file_bytes, bound_to, 0))


def unpack_preamble(data: bytes, file_bytes: int) -> Preamble:
    """The preamble of a first file that is `file_bytes` long. Raises FormatError naming the field.

    `data` is as much of the first 64 bytes as there is.
    """
    if data[: len(SHARD_MAGIC)] == SHARD_MAGIC:
        raise FormatError("preamble magic: a further shard; open the first file, without a number")
    _check_seal("preamble", data, file_bytes, MAGIC)
    _, _, features, *rest = _FIRST.unpack_from(data)
    _check_features(features)
    _check_reserved("preamble", data)
    preamble = Preamble(*rest)
    _check_ranges(preamble, file_bytes)
    return preamble


def check_shard_preamble(data: bytes, file_bytes: int, expected: ShardPreamble) -> None:
    """Refuses a shard `file_bytes` long that is not the expected one: FormatError naming the field.

    `data` is as much of the first 64 bytes as there is.
    """
    what = "shard preamble"
    _check_seal(what, data, file_bytes, SHARD_MAGIC)
    _, _, number, stated_bytes, bound_to, zero = _SHARD.unpack_from(data)
    if bound_to != expected.artefact_id:
        raise FormatError(
            f"{what} artefact: found {bound_to.hex()}, expected {expected.artefact_id.hex()}: "
            f"a shard of another artefact; {_AGAIN}"
        )
    if number != expected.number:
        raise FormatError(f"{what} number: found {number}, expected {expected.number}; {_AGAIN}")
    _check_reserved(what, data)
    if zero:
        raise FormatError(f"{what} reserved: found {zero}, expected 0; {_NEWER}")
    if stated_bytes != expected.file_bytes:
        raise FormatError(
            f"{what} file bytes: found {stated_bytes}, expected {expected.file_bytes}"
        )
    _check_length(what, file_bytes, expected.file_bytes)


def _sealed(head: bytes) -> bytes:
    return (head + struct.pack("<I", crc32c(head))).ljust(PREAMBLE_BYTES, b"\0")


def _check_seal(what: str, data: bytes, file_bytes: int, magic: bytes) -> None:
    """What every version has at the same place: magic, version, CRC."""
    if len(data) < PREAMBLE_BYTES:
        raise FormatError(f"{what}: the file has {file_bytes} bytes, expected {PREAMBLE_BYTES}")
    if data[: len(magic)] != magic:
        raise FormatError(f"{what} magic: found {data[:8].hex()}, expected {magic.hex()}")
    (found,) = struct.unpack_from("<I", data, _CRC_OFFSET)
    expected = crc32c(data[:_CRC_OFFSET])
    if found != expected:
        raise FormatError(f"{what} crc32c: found {found:08x}, expected {expected:08x}")
    (version,) = struct.unpack_from("<I", data, _VERSION_OFFSET)
    if version != FORMAT_VERSION:
        hint = _OLDER if version < FORMAT_VERSION else _NEWER
        raise FormatError(f"{what} version: found {version}, expected {FORMAT_VERSION}; {hint}")


def _check_features(features: int) -> None:
    unknown = features & ~FEATURES_KNOWN
    if unknown:
        bits = ", ".join(str(bit) for bit in range(32) if unknown >> bit & 1)
        raise FormatError(
            f"preamble features: found {features:#x}, known {FEATURES_KNOWN:#x}: "
            f"bit {bits} is not known; {_NEWER}"
        )


def _check_reserved(what: str, data: bytes) -> None:
    if any(data[_CRC_OFFSET + 4 : PREAMBLE_BYTES]):
        raise FormatError(f"{what} reserved: found a byte that is not zero; {_NEWER}")


def _check_ranges(preamble: Preamble, file_bytes: int) -> None:
    _check_length("preamble", file_bytes, preamble.file_bytes)
    if not 1 <= preamble.index_bytes <= INDEX_BYTES_MAX:
        raise FormatError(
            f"preamble index bytes: found {preamble.index_bytes}, expected 1 to {INDEX_BYTES_MAX}"
        )
    if preamble.index_offset < PREAMBLE_BYTES or preamble.index_offset % ALIGN_BYTES:
        raise FormatError(
            f"preamble index offset: found {preamble.index_offset}, expected a multiple of "
            f"{ALIGN_BYTES} from {PREAMBLE_BYTES}"
        )
    end = preamble.index_offset + preamble.index_bytes
    if end != file_bytes:
        raise FormatError(f"preamble index end: found {end}, expected {file_bytes}")


def _check_length(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise FormatError(
            f"{what} file bytes: the file has {found} bytes, expected {expected}; {_AGAIN}"
        )
