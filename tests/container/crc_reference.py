"""CRC-32C (RFC 3720, appendix B.4) in plain Python: the oracle of the native one."""

from __future__ import annotations

POLYNOMIAL = 0x82F63B78  # 0x1EDC6F41 with its bits reversed


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


TABLE = tuple(_entry(byte) for byte in range(256))


def crc32c(data: bytes, seed: int = 0) -> int:
    """The CRC of `data`, or of earlier bytes and `data` where `seed` is the CRC of those."""
    crc = seed ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
