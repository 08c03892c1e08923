"""Bytes of plane records written out: docs/format.md, "Tiles" and "Plane streams".

Expected integers are worked out by hand. With the levels of `Own`, a weight is its level index;
where the window has 4 bits, that is the newest nibble: a bit alone passes through 8, 4, 2 and 1.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from codec_data import scaled_transform

from loop_singular_bit import _native
from loop_singular_bit.codec import planes as planes_module
from loop_singular_bit.codec import weights as weights_module
from loop_singular_bit.codec.numbers import to_bf16
from loop_singular_bit.codec.outliers import extract
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.records import pack_transform, pack_weight, unpack_weight
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.tables import table_set
from loop_singular_bit.codec.weights import PlanesWeight

Integers = npt.NDArray[np.int64]

NO_HASHES = ("0000000000000000", "0000000000000000")
# Levels of planes 1 to 5 are the index times these.
FACTORS = (1, -2, 3, 2, 5)


def nibbles(digits: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    return np.array([[int(digit, 16) for digit in line] for line in digits], np.uint8)


def use_tables(
    patch: pytest.MonkeyPatch, hashes: tuple[str, ...], levels: npt.NDArray[np.int8]
) -> None:
    """Other constants than those of the format."""

    def native_tables(window: int, planes: int) -> _native.PlaneTables:
        return _native.PlaneTables(window, nibbles(hashes), levels[:planes].copy())

    patch.setattr(planes_module, "native_tables", native_tables)
    patch.setattr(planes_module, "table_set", lambda _: SimpleNamespace(sigma=30.0))
    patch.setattr(weights_module, "native_tables", native_tables)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.arange(16) * np.array(FACTORS)[:, None]
    use_tables(monkeypatch, NO_HASHES, levels.astype(np.int8))


def at(*placed: tuple[int, str], nbytes: int = 64) -> str:
    """Zero bytes but for those placed: (where, hexadecimal)."""
    data = bytearray(nbytes)
    for start, digits in placed:
        part = bytes.fromhex(digits)
        data[start : start + len(part)] = part
    return data.hex()


def integers(
    *tiles: str,
    rows: int,
    cols: int,
    planes: int = 1,
    tile_rows: int = 32,
    extent_rows: int = 64,
    window: int = 4,
) -> Integers:
    """Weights from the hexadecimal bytes of the tiles of a record."""
    attributes = {
        "rows": rows, "cols": cols, "window": window, "planes": planes,
        "tile_rows": tile_rows, "extent_rows": extent_rows, "input": "x",
    }  # fmt: skip
    extents = {"scale": to_bf16(np.ones(rows, np.float32)).tobytes()}
    extents |= {f"tiles{i}": bytes.fromhex(part) for i, part in enumerate(tiles)}

    def read(name: str) -> npt.NDArray[np.uint8]:
        return np.frombuffer(extents[name], np.uint8)

    weight = unpack_weight("q", "planes", attributes, read, {"x": scaled_transform(cols)})
    assert isinstance(weight, PlanesWeight)
    return weight.integers().astype(np.int64)


def with_values(
    shape: tuple[int, int], *runs: tuple[int, int, list[int]], rest: int = 0
) -> Integers:
    """`rest`, but for runs (row, column, values) down every fourth row."""
    expected = np.full(shape, rest)
    for row, column, values in runs:
        expected[row : row + 4 * len(values) : 4, column] = values
    return expected


@pytest.mark.usefixtures("own")
def test_the_lowest_bit_of_a_byte_is_the_first_of_eight_row_groups() -> None:
    first = integers(at((0, "01")), rows=32, cols=4)
    assert np.array_equal(first, with_values((32, 4), (0, 0, [8, 4, 2, 1])))
    last = integers(at((0, "80")), rows=32, cols=4)
    assert np.array_equal(last, with_values((32, 4), (28, 0, [8])))


@pytest.mark.usefixtures("own")
def test_the_newest_bit_of_a_window_is_the_highest_of_the_nibble() -> None:
    """Bits 1 0 1 0 1 1 0 0 in the order of the rows."""
    found = integers(at((0, "35")), rows=32, cols=4)
    assert np.array_equal(found, with_values((32, 4), (0, 0, [8, 4, 10, 5, 10, 13, 6, 3])))


@pytest.mark.usefixtures("own")
def test_bytes_of_a_quad_are_its_four_columns_in_each_of_four_rows() -> None:
    for stream in range(16):
        found = integers(at((stream, "01")), rows=32, cols=4)
        row, column = divmod(stream, 4)
        assert np.array_equal(found, with_values((32, 4), (row, column, [8, 4, 2, 1]))), stream


@pytest.mark.usefixtures("own")
def test_a_stream_goes_on_from_the_last_row_group_of_a_quad_to_the_first_of_the_next() -> None:
    found = integers(at((0, "80"), (7, "40")), rows=32, cols=8)
    expected = with_values(
        (32, 8), (28, 0, [8]), (0, 4, [4, 2, 1]), (25, 3, [8, 4]), (1, 7, [2, 1])
    )
    assert np.array_equal(found, expected)


@pytest.mark.usefixtures("own")
def test_blocks_of_a_tile_follow_each_other_before_the_next_quad() -> None:
    """64 rows: a quad is 16 row groups, the second eight of them 64 bytes on."""
    across = integers(at((5, "80"), nbytes=128), rows=64, cols=8, tile_rows=64)
    assert np.array_equal(across, with_values((64, 8), (29, 1, [8, 4, 2, 1])))
    back = integers(at((64 + 5, "80"), nbytes=128), rows=64, cols=8, tile_rows=64)
    assert np.array_equal(back, with_values((64, 8), (61, 1, [8]), (1, 5, [4, 2, 1])))
    second = integers(at((64 + 16 + 15, "01"), nbytes=128), rows=64, cols=8, tile_rows=64)
    assert np.array_equal(second, with_values((64, 8), (35, 7, [8, 4, 2, 1])))


@pytest.mark.usefixtures("own")
def test_tiles_are_streams_of_their_own_that_start_from_zero_bits() -> None:
    stream = at((0, "80"), (16, "80"), (64 + 16 + 3, "01"), nbytes=128)
    found = integers(stream, rows=64, cols=8, tile_rows=32)
    expected = with_values(
        (64, 8), (28, 0, [8]), (0, 4, [4, 2, 1]), (28, 4, [8]), (32, 7, [8, 4, 2, 1])
    )
    assert np.array_equal(found, expected)


@pytest.mark.usefixtures("own")
def test_a_low_last_tile_goes_on_from_its_own_last_block() -> None:
    """70 rows in tiles of 64: the third block is a tile. Its rows 70 to 95 are only padding."""
    tiles = at((64, "80"), nbytes=128), at((0, "80"))
    found = integers(*tiles, rows=70, cols=8, tile_rows=64)
    expected = with_values((70, 8), (60, 0, [8]), (0, 4, [4, 2, 1]), (64, 4, [4, 2]))
    assert np.array_equal(found, expected)


@pytest.mark.usefixtures("own")
def test_padded_rows_are_in_the_streams() -> None:
    """33 rows in a tile of two blocks; the bit belongs to row 60."""
    found = integers(at((64, "80"), nbytes=128), rows=33, cols=8, tile_rows=64)
    assert np.array_equal(found, with_values((33, 8), (0, 4, [4, 2, 1])))


@pytest.mark.usefixtures("own")
def test_strips_of_a_block_follow_each_other_and_padded_columns_are_in_no_stream() -> None:
    """20 columns: the fifth quad is the first of the second strip; three more are only padding."""
    stream = at((48, "80"), (64 + 2, "01"), (80, "ff" * 48), (128, "01"), nbytes=256)
    found = integers(stream, rows=64, cols=20, tile_rows=64)
    expected = with_values((64, 20), (28, 12, [8, 4, 2, 1]), (0, 18, [8, 4, 2, 1]))
    expected[32:48:4, 0] = [8, 4, 2, 1]
    assert np.array_equal(found, expected)
    alone = integers(at((48, "80"), (80, "ff" * 48), nbytes=128), rows=32, cols=20)
    assert np.array_equal(alone, with_values((32, 20), (28, 12, [8]), (0, 16, [4, 2, 1])))


HASHED = [  # window, hashes, the 16 steps of stream 0, the weights of streams without a bit
    (
        10,
        ("5017a3c92f64d8be", "111177774444eeee"),
        [12, 0, 14, 1, 9, 6, 1, 1, 11, 11, 10, 9, 15, 6, 15, 2],
        4,
    ),
    (
        8,
        ("5017a3c92f64d8be", "0000000000000000"),
        [13, 1, 15, 0, 8, 7, 0, 0, 15, 12, 14, 14, 11, 8, 8, 3],
        5,
    ),
    (
        6,
        ("5555aaaa2222dddd", "0000000000000000"),
        [13, 1, 15, 0, 8, 7, 4, 9, 11, 9, 8, 12, 6, 8, 12, 14],
        5,
    ),
    (
        4,
        NO_HASHES,
        [8, 4, 10, 5, 10, 13, 6, 3, 9, 4, 2, 9, 4, 2, 9, 12],
        0,
    ),
]


@pytest.mark.parametrize(("window", "hashes", "steps", "rest"), HASHED)
def test_older_nibbles_are_hashed_into_the_newest(
    window: int,
    hashes: tuple[str, ...],
    steps: list[int],
    rest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bits 1010 1100 1001 0011. Step 12 of window 10: newest nibble 0010 (step 12 highest) = 4, the
    one of step 8 is 9 and that of step 4 starts with 10: 4 ^ f ^ 4 = 15."""
    use_tables(monkeypatch, hashes, np.arange(16, dtype=np.int8)[None])
    found = integers(at((0, "35"), (16, "c9")), rows=32, cols=8, window=window)
    expected = with_values((32, 8), (0, 0, steps[:8]), (0, 4, steps[8:]), rest=rest)
    assert np.array_equal(found, expected)


@pytest.mark.usefixtures("own")
def test_a_tile_is_plane_after_plane_and_an_extent_tile_after_tile() -> None:
    """160 rows in tiles of 64, extents of 128: two tiles of two planes of two blocks, then a low
    one. The levels of plane 2 are -2 times the index."""
    first = at((64, "80"), (128 + 64, "80"), (256, "01"), (256 + 128, "01"), nbytes=512)
    low = at((0, "01"), (64, "02"), nbytes=128)
    shape = {"rows": 160, "cols": 8, "planes": 2, "tile_rows": 64}
    found = integers(first, low, **shape, extent_rows=128)
    down = [-8, -4, -2, -1]
    expected = with_values((160, 8), (60, 0, [-8]), (0, 4, down[1:]), (64, 0, down))
    expected[128:148:4, 0] = [8, 4 - 16, 2 - 8, 1 - 4, -2]
    assert np.array_equal(found, expected)
    together = integers(first + low, **shape, extent_rows=192)
    assert np.array_equal(together, expected)
    apart = integers(first[:512], first[512:], low, **shape, extent_rows=64)
    assert np.array_equal(apart, expected)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("planes", "first"),
    [(1, 8), (2, -8), (3, 16), (4, 32), (5, 8 * 32 + 40)],
)
def test_planes_add_up_and_the_first_four_count_eightfold_beyond(planes: int, first: int) -> None:
    """The same bit in every plane: 8 (1 - 2 + 3 + 2), and 8 x 5 of the fifth."""
    found = integers(at((0, "01")) * planes, rows=32, cols=4, planes=planes)
    values = [first, first // 2, first // 4, first // 8]
    assert np.array_equal(found, with_values((32, 4), (0, 0, values)))


@pytest.mark.usefixtures("own")
def test_each_plane_has_its_own_levels() -> None:
    tile = "".join(at((k, "01")) for k in range(5))
    found = integers(tile, rows=32, cols=4, planes=5)
    factors = [8 * 1, 8 * -2, 8 * 3, 8 * 2, 5]
    runs = [(k // 4, k % 4, [8 * f, 4 * f, 2 * f, f]) for k, f in enumerate(factors)]
    assert np.array_equal(found, with_values((32, 4), *runs))


@pytest.mark.parametrize("window", range(4, 11))
def test_levels_and_hashes_are_the_constants_of_the_format(window: int) -> None:
    constants = table_set(window)
    levels, hashes = constants.levels[0].astype(int), constants.hashes.astype(int)
    found = integers(at((0, "35"), (16, "c9")), rows=32, cols=8, window=window)
    newest = HASHED[3][2]
    for step, nibble in enumerate(newest):
        older = [newest[step - back] if step >= back else 0 for back in (4, 8)]
        index = nibble ^ hashes[0, older[0]] ^ hashes[1, older[1]]
        assert found[step % 8 * 4, step // 8 * 4] == levels[index]


LEVELS = (24, 30, -53, 4, 18, -24, 66, -2, -40, 11, -14, 48, 2, -31, -9, -18)


def test_literal_bytes_of_a_small_record(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tables(monkeypatch, NO_HASHES, np.array([LEVELS], np.int8))
    W = (np.arange(64).reshape(16, 4) * 37 % 64 - 31.5).astype(np.float32)
    mask = np.zeros(W.shape, bool)
    mask[[2, 2, 15], [1, 3, 0]] = True
    kept = extract(mask, W.astype(np.float16).view(np.uint16), "f16")
    transform = InputTransform(np.array([1, 2, 0.5, 1], np.float32), 7)
    options = PlaneOptions(1, 4, tile_rows=32)
    weight, report = encode(np.where(mask, 0, W), transform, options, outliers=kept)
    payload = pack_weight(weight, "layers.0.attn_in")
    assert payload.attributes == {
        "rows": 16, "cols": 4, "window": 4, "planes": 1, "tile_rows": 32,
        "extent_rows": 1024, "input": "layers.0.attn_in",
        "outliers": 3, "outlier_dtype": "f16", "outlier_index": "gaps",
    }  # fmt: skip
    assert {name: data.tobytes().hex() for name, data in payload.extents.items()} == {
        "scale": "303ff63e133f5b3f053ffd3e883f4c3fee3e463f143feb3e1d3f0f3fcf3ea53e",
        "outlier_counts": "0000000002000000000000000000000000000000000000000000000000000100",
        "outlier_index": "010100",
        "outlier_values": "a0cc40c8404a",
        "tiles0": "e7709c7238e7e69ce6ce73e7e7e79c38" + 48 * "00",
    }
    assert pack_transform(transform).extents["scale"].tobytes().hex() == "803f0040003f803f"
    plane = payload.extents["tiles0"].tobytes()
    for (row, column), value in np.ndenumerate(weight.integers()):
        bits = plane[row % 4 * 4 + column] << 3  # three zeros before the first
        assert value == LEVELS[bits >> row // 4 & 15]
    assert report.relative_error < 0.4
