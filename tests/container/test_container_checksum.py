from __future__ import annotations

import crc_reference
import numpy as np
import pytest

from loop_singular_bit._native import crc32c
from loop_singular_bit.container.checksum import block_crc32c

DATA = np.random.default_rng(1).integers(0, 256, 1000, np.uint8).tobytes()


def test_oracle_gives_the_published_check_value() -> None:
    assert crc_reference.crc32c(b"123456789") == 0xE3069283
    assert crc_reference.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


@pytest.mark.parametrize("size_bytes", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
def test_native_equals_oracle_at_any_length_and_alignment(size_bytes: int) -> None:
    for start in range(min(9, 1001 - size_bytes)):
        data = DATA[start : start + size_bytes]
        assert crc32c(memoryview(DATA)[start : start + size_bytes]) == crc_reference.crc32c(data)


def test_seed_continues_an_earlier_crc() -> None:
    assert crc32c(DATA[300:], crc32c(DATA[:300])) == crc32c(DATA)
    assert crc32c(DATA[300:], crc32c(DATA[:300])) == crc_reference.crc32c(DATA)


def test_block_checksum_is_the_crc_of_number_and_bytes() -> None:
    expected = crc_reference.crc32c(bytes([2, 1, 0, 0, 0, 0, 0, 0]) + DATA)
    assert block_crc32c(258, memoryview(DATA)) == expected
    assert block_crc32c(259, memoryview(DATA)) != expected
