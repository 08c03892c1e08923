"""A recorded program does what its operations do one by one, for any rows and threads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from native_calls import Floats, everywhere, floats, native, random_extents, random_tables

from loop_singular_bit import _native

Places = npt.NDArray[np.int32]
ROWS_MAX, COLS = 9, 64


def places(rows: int, slot: int = 0, position: int = 0) -> tuple[Places, Places]:
    return np.full(rows, slot, np.int32), np.full(rows, position, np.int32)


def run(program: _native.Program, rows: int) -> None:
    program.run(*places(rows), 0, program.steps)


def two_products(rows: int, rng: np.random.Generator) -> list[Floats]:
    """x normed, packed and multiplied by matrices of 70 and 40 rows; then the halves' sum."""
    x, gain, sign = floats(rng, ROWS_MAX, COLS), floats(rng, COLS), np.ones(COLS, np.float32)
    tables = random_tables(rng, 3, 7)
    weights = [
        (random_extents(rng, 3, height, COLS, 32), height, COLS, 32, native(tables))
        for height in (70, 40)
    ]
    scales = [floats(rng, height) for height in (70, 40)]

    def recorded() -> Floats:
        normed = np.empty_like(x)
        outs = [np.full((ROWS_MAX, height), 7, np.float32) for height in (70, 40)]
        packed = _native.PackedRows(ROWS_MAX, COLS, 16)
        program = _native.Program(ROWS_MAX)
        program.rms_norm(x, gain, 1e-5, normed)
        program.pack(normed, sign, COLS, None, packed)
        for weight, scale, out in zip(weights, scales, outs, strict=True):
            program.planes_matmul(*weight, scale, packed, out)
        program.add_bias(scales[0], outs[0])
        assert program.steps == 3  # norm and pack, both products, the bias
        run(program, rows)
        return np.concatenate(outs, axis=1)

    def one_by_one() -> Floats:
        normed, rotated = np.empty((rows, COLS), np.float32), np.empty((rows, COLS), np.float32)
        outs = [np.empty((rows, height), np.float32) for height in (70, 40)]
        packed = _native.PackedRows(ROWS_MAX, COLS, 16)
        _native.rms_norm(x[:rows], gain, 1e-5, normed)
        _native.rotate(normed, sign, COLS, None, False, rotated)
        packed.pack(rotated)
        for weight, scale, out in zip(weights, scales, outs, strict=True):
            _native.planes_matmul(*weight, scale, packed, out)
        outs[0] += scales[0]
        return np.concatenate(outs, axis=1)

    return [everywhere(recorded), one_by_one()]


@pytest.mark.parametrize("rows", [1, 2, 5, ROWS_MAX])
def test_a_program_gives_the_bits_of_its_operations(rows: int) -> None:
    found, expected = two_products(rows, np.random.default_rng(rows))
    assert np.array_equal(found[:rows], expected)
    assert (found[rows:] == 7).all()  # rows that did not run are left alone


def test_steps_run_from_mark_to_mark() -> None:
    x, to = np.ones((2, 4), np.float32), np.zeros((2, 4), np.float32)
    program = _native.Program(2)
    program.add(x, to)
    assert program.mark() == 1
    program.add(x, to)
    assert program.steps == 2
    program.run(*places(2), 0, 1)
    assert (to == 1).all()
    program.run(*places(1), 1, 2)
    assert to.tolist() == [[2] * 4, [1] * 4]


def test_a_program_keeps_its_arrays() -> None:
    to = np.zeros((1, 4), np.float32)
    program = _native.Program(1)
    program.add(np.full((1, 4), 3, np.float32), to)
    np.full((1, 4), 5, np.float32)  # would take the place of an array that was let go
    run(program, 1)
    assert (to == 3).all()


BUFFER, OTHER, NARROW = (np.zeros(shape, np.float32) for shape in ((4, 16), (3, 16), (4, 8)))
ROW = np.zeros(16, np.float32)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (lambda p: p.add(OTHER, BUFFER), "other rows"),
        (lambda p: p.add(NARROW, BUFFER), "columns of buffers disagree"),
        (lambda p: p.add_bias(ROW[:8], BUFFER), "columns of buffers disagree"),
        (lambda p: p.rms_norm(BUFFER, ROW[:8], 1e-5, BUFFER), "columns of buffers disagree"),
        (lambda p: p.swiglu(BUFFER, NARROW, BUFFER), "columns of buffers disagree"),
        (lambda p: p.rope(BUFFER, NARROW, OTHER, 16), "rotary tables disagree"),
        (
            lambda p: p.pack(BUFFER, ROW, 16, None, _native.PackedRows(3, 16, 16)),
            "packed rows disagree",
        ),
        (lambda p: p.pack(BUFFER, ROW, 12, None, _native.PackedRows(4, 16, 16)), "power of two"),
        (lambda p: p.dense_matmul(0, ROW[None, :8], None, BUFFER, BUFFER), "columns disagree"),
        (lambda p: p.dense_matmul(0, ROW[None], None, BUFFER, BUFFER), "columns of buffers"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_recorded(record, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(_native.Program(4))


@pytest.mark.parametrize(
    ("slots", "positions", "steps", "message"),
    [
        ([0] * 5, [0] * 5, (0, 1), "more rows"),
        ([], [], (0, 1), "more rows"),
        ([0], [0], (0, 2), "steps out of range"),
        ([0], [0], (1, 0), "steps out of range"),
        ([0], [3], (0, 1), "outside the cache"),
        ([-1], [0], (0, 1), "outside the cache"),
        ([0, 0], [0], (0, 1), "one place for each row"),
    ],
)
def test_rows_and_steps_must_be_there(
    slots: list[int], positions: list[int], steps: tuple[int, int], message: str
) -> None:
    program = _native.Program(4)
    program.rope(BUFFER.copy(), NARROW[:3], NARROW[:3], 16)
    with pytest.raises(ValueError, match=message):
        program.run(np.array(slots, np.int32), np.array(positions, np.int32), *steps)
