"""Bytes of plane records written out: docs/format.md, "Plane streams"."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from codec_data import scaled_transform

from loop_singular_bit.codec.numbers import to_bf16
from loop_singular_bit.codec.outliers import extract
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.records import pack_transform, pack_weight, unpack_weight
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.weights import PlanesWeight

LITERAL_WEIGHTS = """
-10  23  24  22   56 -38  13  13   13  13 -57 -26  -31 -10  23  24  -25  22  56 -38  13  13 -57 -26
-31 -10  23  24  -25  22  56  14   22 -11 -38  13   13  13 -57 -26  -31 -10  23  24   22 -10 -27  51
 23  24 -25 -25  -25  22  56  14   22 -11  14  22   51  23 -31 -10
"""


def test_literal_bytes_of_a_small_record() -> None:
    W = (np.arange(64).reshape(16, 4) * 37 % 64 - 31.5).astype(np.float32)
    mask = np.zeros(W.shape, bool)
    mask[[2, 2, 15], [1, 3, 0]] = True
    kept = extract(mask, W.astype(np.float16).view(np.uint16), "f16")
    transform = InputTransform(np.array([1, 2, 0.5, 1], np.float32), 7)
    options = PlaneOptions(1, 4, tile_rows=16)
    weight, _ = encode(np.where(mask, 0, W), transform, options, outliers=kept)
    payload = pack_weight(weight, "layers.0.attn_in")
    assert payload.attributes == {
        "rows": 16, "cols": 4, "window": 4, "planes": 1, "tile_rows": 16,
        "input": "layers.0.attn_in", "outliers": 3, "outlier_dtype": "f16", "outlier_index": "gaps",
    }  # fmt: skip
    assert {name: data.tobytes().hex() for name, data in payload.extents.items()} == {
        "scale": "8e3fe53e083f863ff33ef93e9a3f133f0a3f6a3f283fbf3e8d3f303f1f3f233f",
        "outlier_counts": "0000000002000000000000000000000000000000000000000000000000000100",
        "outlier_index": "010100",
        "outlier_values": "a0cc40c8404a",
        "plane1": "000000000000006007ecc19ec0ae9fb4",
    }
    assert weight.integers().reshape(-1).tolist() == [int(v) for v in LITERAL_WEIGHTS.split()]
    assert pack_transform(transform).extents["scale"].tobytes().hex() == "803f0040003f803f"


def integers(stream: str, rows: int, cols: int, tile_rows: int = 16) -> npt.NDArray[np.int16]:
    """Weights of one plane with L = 4 from the hexadecimal bytes of its stream."""
    attributes = {
        "rows": rows, "cols": cols, "window": 4, "planes": 1, "tile_rows": tile_rows, "input": "x",
    }  # fmt: skip
    extents = {
        "scale": to_bf16(np.ones(rows, np.float32)).tobytes(),
        "plane1": bytes.fromhex(stream),
    }

    def read(name: str) -> npt.NDArray[np.uint8]:
        return np.frombuffer(extents[name], np.uint8)

    weight = unpack_weight("q", "planes", attributes, read, {"x": scaled_transform(cols)})
    assert isinstance(weight, PlanesWeight)
    return weight.integers()


# Plane 1 for L = 4: entries 0, 1, 2, 4 and 8.
T0, T1, T2, T4, T8 = 13, -38, -11, 22, -57
NONE = "0000000000000000"
FIRST = "0100000000000000"


def test_one_bit_passes_through_the_windows_of_four_weights() -> None:
    expected = np.full((16, 4), T0)
    expected[0] = [T8, T4, T2, T1]
    assert np.array_equal(integers(NONE + FIRST, 16, 4), expected)


def test_the_prefix_holds_the_bits_before_the_first_weight() -> None:
    expected = np.full((16, 4), T0)
    expected[0, :3] = [T4, T2, T1]
    assert np.array_equal(integers("0000000000000080" + NONE, 16, 4), expected)
    assert np.array_equal(integers("ffffffffffffff1f" + NONE, 16, 4), np.full((16, 4), T0))


def test_a_window_reaches_back_over_rows_row_groups_and_quads_of_its_tile() -> None:
    """17 rows are one tile of 32, two row groups of two quads; row 31 is only padding."""
    last = "0000000000000080"
    found = integers(NONE + last + last + NONE + NONE, 17, 8, tile_rows=32)
    expected = np.full((17, 8), T0)
    expected[15, 3] = T8
    expected[16, :3] = [T4, T2, T1]
    expected[0, 4:7] = [T4, T2, T1]
    assert np.array_equal(found, expected)


def test_tiles_are_streams_of_their_own() -> None:
    found = integers(NONE + "0000000000000080" + NONE + FIRST, 32, 4, tile_rows=16)
    expected = np.full((32, 4), T0)
    expected[15, 3] = T8
    expected[16] = [T8, T4, T2, T1]
    assert np.array_equal(found, expected)
