"""The checksum of a block, bound to the block's place (docs/format.md, "Checksums")."""

from __future__ import annotations

from loop_singular_bit._native import crc32c


def block_crc32c(number: int, data: memoryview) -> int:
    """CRC-32C of the block number (8 bytes, little endian) followed by the block's bytes.

    The number makes two blocks that changed places fail, although each is intact.
    """
    return crc32c(data, crc32c(number.to_bytes(8, "little")))
