from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from codec_data import flat_transform, gaussian, random_outliers, scaled_transform, stored_as

from loop_singular_bit import _native
from loop_singular_bit.codec import reference
from loop_singular_bit.codec.numbers import DenseKind
from loop_singular_bit.codec.planes import PlaneOptions, encode
from loop_singular_bit.codec.program import Program
from loop_singular_bit.codec.rotation import activation_group
from loop_singular_bit.codec.tables import table_set
from loop_singular_bit.codec.weights import (
    DenseWeight,
    InputRows,
    Linear,
    PlanesWeight,
    Weight,
    multiply,
)

ROWS = 69  # neither a row group nor a block nor a tile
TOKENS = 5


def dense(kind: DenseKind, cols: int = 100) -> DenseWeight:
    W = gaussian(ROWS, cols)
    scale = np.linspace(0.1, 2, ROWS, dtype=np.float32)
    if kind is DenseKind.I8:
        return DenseWeight(kind, cols, np.clip(40 * W, -127, 127).astype(np.int8), scale)
    if kind is DenseKind.SIGN:
        return DenseWeight(kind, cols, np.packbits(W > 0, axis=1, bitorder="little"), scale)
    return DenseWeight(kind, cols, stored_as(W, kind.name.lower()))


def signs_with_outliers(cols: int = 100, dtype: str = "bf16") -> DenseWeight:
    plain = dense(DenseKind.SIGN, cols)
    kept = random_outliers(ROWS, cols, 0.1, dtype)
    return DenseWeight(plain.kind, cols, plain.data, plain.scale, kept)


def planes(count: int, cols: int = 192, tile_rows: int = 32, share: float = 0.0) -> PlanesWeight:
    kept = random_outliers(ROWS, cols, share, "f16") if share else None
    W = gaussian(ROWS, cols)
    options = PlaneOptions(count, tile_rows=tile_rows)
    return encode(W, scaled_transform(cols), options, outliers=kept)[0]


DENSE = [*map(dense, DenseKind), signs_with_outliers(), signs_with_outliers(8, "f32")]
DENSE_IDS = [*(kind.name for kind in DenseKind), "outlier1", "outlier1-narrow"]
# planes, columns, tile rows, share of outliers
PLANES = [(1,), (4,), (6,), (8,), (3, 64, 256), (2, 12), (3, 192, 32, 0.02), (2, 36)]


def run(program: Program, rows: int) -> None:
    nowhere = np.zeros(rows, np.int32)
    program.run_steps(nowhere, nowhere)


def product(weight: Linear, tokens: int = TOKENS) -> tuple[npt.NDArray[np.float32], InputRows]:
    """x W^T [tokens, rows] and the rows x that entered."""
    program, inputs = Program(tokens), InputRows(tokens, weight.cols + -weight.cols % 4)
    inputs.load(program, gaussian(tokens, weight.cols, 4))
    out = np.full((tokens, weight.rows), np.nan, np.float32)
    multiply(inputs, [(weight, out)])
    run(program, tokens)
    return out, inputs


@pytest.mark.parametrize("weight", DENSE, ids=DENSE_IDS)
def test_dense_products(weight: DenseWeight) -> None:
    out, inputs = product(weight)
    exact = inputs.x.astype(np.float64) @ weight.dense().T
    assert np.abs(out - exact).max() < 1e-5 * max(1, np.abs(exact).max())


def test_bits() -> None:
    assert [dense(kind).bits for kind in DenseKind] == [32, 16, 16, 8, 1]


def test_values_of_signs() -> None:
    data = np.array([[0b00000101, 0b11111110]], np.uint8)  # only the lowest bit of the second byte
    weight = DenseWeight(DenseKind.SIGN, 9, data, np.array([0.5], np.float32))
    assert weight.dense().tolist() == [[0.5, -0.5, 0.5, -0.5, -0.5, -0.5, -0.5, -0.5, -0.5]]


def test_outliers_take_the_place_of_signs() -> None:
    weight = signs_with_outliers()
    assert weight.outliers is not None
    kept = weight.outliers.dense(weight.cols)
    signs = DenseWeight(weight.kind, weight.cols, weight.data, weight.scale).dense()
    assert (kept != 0).any()
    assert np.array_equal(weight.dense(), np.where(kept != 0, kept, signs))


@pytest.mark.parametrize("case", PLANES)
def test_plane_products_equal_the_reference_on_the_same_int8_inputs(case: tuple[int, ...]) -> None:
    weight = planes(*case)
    out, inputs = product(weight)
    group = activation_group(weight.cols)
    q, scale = reference.quantize_rows(weight.transform.inputs(inputs.x), group)
    expected = reference.planes_matmul(weight.integers(), weight.row_scale, q, scale)
    if weight.outliers is not None:
        expected += inputs.x @ weight.outliers.dense(weight.cols).T
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", PLANES)
def test_plane_products_differ_by_the_rounding_of_the_inputs_only(case: tuple[int, ...]) -> None:
    weight = planes(*case)
    out, inputs = product(weight)
    group = activation_group(weight.cols)
    step = reference.quantize_rows(weight.transform.inputs(inputs.x), group)[1]
    rotated = np.abs(weight.integers() * weight.row_scale[:, None])
    bound = 0.5 * np.repeat(step, group, axis=1) @ rotated.T.astype(np.float64)
    exact = inputs.x.astype(np.float64) @ weight.dense().T
    error = np.abs(out - exact)
    assert (error <= bound + 1e-4).all()
    assert error.mean() < 0.02 * np.abs(exact).mean()


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("case", PLANES)
def test_unpacked_planes_give_the_same_bits(case: tuple[int, ...], tokens: int) -> None:
    weight = planes(*case)
    for tier in _native.available_tiers():
        before = _native.active_tier()
        _native.use_tier(tier)
        assert np.array_equal(product(weight.unpacked(), tokens)[0], product(weight, tokens)[0])
        _native.use_tier(before)


def test_unpacked_planes_take_a_byte_a_weight_and_two_beyond_four_planes() -> None:
    for count, nbytes in ((1, 1), (4, 1), (5, 2), (8, 2)):
        weight = planes(count, cols=64).unpacked()
        assert weight.native.nbytes == nbytes * 96 * 64  # rows up to whole blocks


@pytest.mark.parametrize("case", PLANES)
def test_integers_are_those_of_the_reference(case: tuple[int, ...]) -> None:
    weight = planes(*case)
    decoded = reference_integers(weight)
    assert np.array_equal(weight.integers(), decoded)
    assert np.array_equal(weight.integers(5, 37), decoded[5:37])


def reference_integers(weight: PlanesWeight) -> npt.NDArray[np.int16]:
    tables = table_set(weight.window)
    levels = tables.levels[: weight.planes]
    shape = weight.rows, weight.cols, weight.tiling.tile_rows
    return reference.decode_planes(weight.extents, weight.window, tables.hashes, levels, *shape)


@pytest.mark.parametrize("case", PLANES)
def test_dense_planes_are_what_the_format_says(case: tuple[int, ...]) -> None:
    weight = planes(*case)
    V = weight.transform.inputs(np.eye(weight.cols, dtype=np.float32)).astype(np.float64).T
    W = weight.row_scale[:, None] * reference_integers(weight).astype(np.float64) @ V
    if weight.outliers is not None:
        W += weight.outliers.dense(weight.cols)
    assert np.abs(weight.dense() - W).max() < 1e-4


@pytest.mark.parametrize("weight", DENSE, ids=DENSE_IDS)
def test_rows_of_dense_weights(weight: DenseWeight) -> None:
    assert_rows(weight)


@pytest.mark.parametrize("case", PLANES)
def test_rows_of_planes(case: tuple[int, ...]) -> None:
    assert_rows(planes(*case))


def assert_rows(weight: Weight) -> None:
    """Rows read one by one are those of the whole matrix, bit for bit."""
    rows = np.array([68, 0, 31, 32, 32, 64])
    assert np.array_equal(weight.read_rows(rows), weight.dense()[rows])


def test_inputs_are_packed_once_for_all_matrices_that_share_them() -> None:
    program, inputs, transform = Program(4), InputRows(4, 64), flat_transform(64)
    x = gaussian(4, 64)
    inputs.load(program, x)
    packed = inputs.packed(transform)
    steps = program.mark()
    assert inputs.packed(transform) is packed
    assert program.steps == steps == 1
    run(program, 3)
    assert packed.tokens == 3
    expected = reference.quantize_rows(transform.inputs(x[:3]), 64)[0]
    assert np.array_equal(quantized(packed), expected)
    inputs.packed(flat_transform(64, seed=2))
    assert program.steps == 2
    inputs.load(program, x)
    inputs.packed(transform)
    program.mark()
    assert program.steps == 2  # rows of one step: packed in the same pass
    run(program, 2)
    assert np.array_equal(quantized(packed), expected[:2])


def quantized(packed: _native.PackedRows) -> npt.NDArray[np.int8]:
    q = np.empty((packed.tokens, 64), np.int8)
    packed.quantized(q, np.empty((packed.tokens, 64 // packed.group), np.float32))
    return q
