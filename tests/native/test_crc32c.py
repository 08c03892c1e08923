from __future__ import annotations

import numpy as np
import pytest

from loop_singular_bit._native import crc32c, damaged_block


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # RFC 3720, appendix B.4, and the check value of the polynomial
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_every_split_gives_the_same_crc() -> None:
    data = np.random.default_rng(0).integers(0, 256, 67, np.uint8).tobytes()
    whole = crc32c(data)
    for cut in range(len(data) + 1):
        assert crc32c(data[cut:], crc32c(data[:cut])) == whole


@pytest.mark.parametrize("size", [12287, 12288, 12289, 40_003])
def test_long_data_give_the_crc_of_their_short_parts(size: int) -> None:
    """Long data go through several streams at once, short data through one."""
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    crc = 0
    for start in range(0, size, 1000):
        crc = crc32c(data[start : start + 1000], crc)
    assert crc32c(data) == crc
    assert crc32c(data[3:].copy(), crc32c(data[:3])) == crc


def test_every_bit_flip_shows() -> None:
    data = bytearray(range(40))
    seen = {crc32c(data)}
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        seen.add(crc32c(data))
        data[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 1 + 8 * len(data)


def test_arrays_count_as_their_bytes() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert crc32c(array) == crc32c(array.tobytes())
    assert crc32c(memoryview(array.tobytes())) == crc32c(array.tobytes())


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        crc32c("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        crc32c(np.zeros((4, 4))[:, ::2])
    with pytest.raises(TypeError):
        crc32c(b"", -1)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 300])
def test_a_damaged_block_is_found_by_its_place(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    blocks = [data[at : at + 64] for at in range(0, size, 64)]
    numbers = [(5 + n).to_bytes(8, "little") for n in range(len(blocks))]
    sums = [
        crc32c(block.data, crc32c(number)) for block, number in zip(blocks, numbers, strict=True)
    ]
    expected = np.array(sums, np.uint32)
    assert damaged_block(data, 5, 64, expected) == -1
    assert damaged_block(data, 6, 64, expected) == 0  # intact, but not in its place
    data[-1] ^= 1
    assert damaged_block(data, 5, 64, expected) == len(blocks) - 1


def test_blocks_without_a_checksum_each_are_refused() -> None:
    with pytest.raises(ValueError, match="one checksum for each block"):
        damaged_block(np.zeros(65, np.uint8), 0, 64, np.zeros(1, np.uint32))
    with pytest.raises(ValueError, match="at least one byte"):
        damaged_block(np.zeros(65, np.uint8), 0, 0, np.zeros(1, np.uint32))
