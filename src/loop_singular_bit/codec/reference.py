"""The slow numpy version of every codec operation: what the native kernels must equal.

Nothing here is used at run time. Shapes: rows x cols matrices, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Int8s = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

QUAD = 4  # columns of a step
ROW_GROUP = 4  # rows of a step
STREAMS = 16
BLOCK_ROWS = 32
STRIP = 16  # columns of a strip of 64 bytes
WINDOW_MAX = 12
PLANES_PER_GROUP = 4
GROUP_RATIO = 8
AHEAD = 64
STEP_MAX = 4096  # largest cost of a step of the Viterbi search
ERROR_MAX = 16383
REACH = 3.0  # targets beyond this multiple of the largest level are cut


def padded_rows(rows: int) -> int:
    return -(-rows // BLOCK_ROWS) * BLOCK_ROWS


def tile_ranges(rows: int, tile_rows: int) -> list[tuple[int, int]]:
    """Row ranges of the tiles, the last one rounded up to a whole block."""
    padded = padded_rows(rows)
    return [(start, min(start + tile_rows, padded)) for start in range(0, padded, tile_rows)]


def to_streams(tile: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[rows, cols] of one tile -> [steps, 16 streams]: quads of columns, in them row groups."""
    rows, cols = tile.shape
    cut = tile.reshape(rows // ROW_GROUP, ROW_GROUP, cols // QUAD, QUAD)
    return cut.transpose(2, 0, 1, 3).reshape(-1, STREAMS)


def from_streams(steps: npt.NDArray[Any], rows: int, cols: int) -> npt.NDArray[Any]:
    """The inverse of to_streams."""
    cut = steps.reshape(cols // QUAD, rows // ROW_GROUP, ROW_GROUP, QUAD)
    return cut.transpose(1, 2, 0, 3).reshape(rows, cols)


def unpack_windows(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The 12 bits up to each step [steps, 16] of one tile, the newest highest; [blocks, quads, 16]
    bytes. Bits before the first are zero."""
    bits = np.unpackbits(blocks, axis=2, bitorder="little").astype(np.int64)
    count, quads, _ = blocks.shape
    ordered = bits.reshape(count, quads, STREAMS, 8).transpose(1, 0, 3, 2).reshape(-1, STREAMS)
    padded = np.concatenate([np.zeros((WINDOW_MAX - 1, STREAMS), np.int64), ordered])
    ages = [padded[age : age + len(ordered)] << age for age in range(WINDOW_MAX)]
    return np.asarray(np.bitwise_or.reduce(ages), np.int64)


def window_levels(window: int, hashes: Bytes) -> npt.NDArray[np.int64]:
    """Level index of every window [2^L] (the newest bit highest)."""
    bits = np.arange(1 << window) << (WINDOW_MAX - window)
    hashed = hashes[0][bits >> 4 & 15] ^ hashes[1][bits & 15]
    return np.asarray(bits >> 8 ^ hashed, np.int64)


def tile_planes(
    extents: Sequence[Bytes], planes: int, rows: int, cols: int, tile_rows: int
) -> list[Bytes]:
    """The planes [planes, blocks, quads, 16] of every tile; extents are tiles one after another."""
    quads = -(-cols // STRIP) * STRIP // QUAD
    blocks = np.concatenate(extents).reshape(-1, quads, STREAMS)
    found = []
    for start, stop in tile_ranges(rows, tile_rows):
        part = blocks[planes * start // BLOCK_ROWS : planes * stop // BLOCK_ROWS]
        found.append(part.reshape(planes, -1, quads, STREAMS)[:, :, : cols // QUAD])
    return found


def level_indices(blocks: Bytes, window: int, hashes: Bytes) -> npt.NDArray[np.intp]:
    """Level index of each weight [padded rows, cols] of a plane [blocks, quads, 16]."""
    rows, cols = len(blocks) * BLOCK_ROWS, blocks.shape[1] * QUAD
    index = window_levels(window, hashes)[unpack_windows(blocks) >> (WINDOW_MAX - window)]
    return from_streams(index, rows, cols)


def decode_planes(
    extents: Sequence[Bytes],
    window: int,
    hashes: Bytes,
    levels: Int8s,
    rows: int,
    cols: int,
    tile_rows: int,
) -> npt.NDArray[np.int16]:
    """Integer weights [rows, cols] from a record's extents, hashes [2, 16], levels [planes, 16].

    Up to four planes their sum; beyond, 8 x (first four) + (the rest).
    """
    tiles = []
    for tile in tile_planes(extents, len(levels), rows, cols, tile_rows):
        total = np.zeros((tile.shape[1] * BLOCK_ROWS, cols), np.int16)
        for plane, blocks in enumerate(tile):
            wide = len(levels) > PLANES_PER_GROUP and plane < PLANES_PER_GROUP
            index = level_indices(blocks, window, hashes)
            total += (GROUP_RATIO if wide else 1) * levels[plane].astype(np.int16)[index]
        tiles.append(total)
    return np.concatenate(tiles)[:rows]


def viterbi(
    x: Floats, window: int, hashes: Bytes, levels: Int8s, unit: float, state: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Windows [steps, 16] of the paths with the least squared error through one plane.

    x [steps, 16]; levels [16] in steps of `unit`; state [16] the L-1 bits before the first step.
    Costs are integers: targets and levels on a grid that gives the largest error 14 bits.
    """
    states = 1 << (window - 1)
    fine = np.float32(ERROR_MAX) / (
        np.float32(1 + REACH) * np.float32(max(1, np.abs(levels.astype(int)).max()))
    )
    cut = np.float32(ERROR_MAX / (1 + REACH) * REACH)
    goal = np.rint(np.clip(x * (fine / np.float32(unit)), -cut, cut)).astype(np.int64)
    value = np.rint(fine * levels.astype(np.float32)).astype(np.int64)
    level_of = window_levels(window, hashes)
    cost = np.where(np.arange(states)[:, None] == state, 0, window * STEP_MAX)
    oldest = np.zeros((len(x), states, STREAMS), np.int64)
    before = 2 * np.arange(states) % states
    for t, target in enumerate(goal):
        error = ((target - value[level_of][:, None]) ** 2) >> 16
        zero, one = cost[before] + error[0::2], cost[before + 1] + error[1::2]
        oldest[t] = one < zero
        cost = np.minimum(zero, one)
    now = cost.argmin(axis=0)
    windows = np.zeros((len(x), STREAMS), np.int64)
    for t in range(len(x) - 1, -1, -1):
        windows[t] = 2 * now + oldest[t, now, np.arange(STREAMS)]
        now = windows[t] % states
    return windows


def rotate(x: Floats, scale: Floats, block: int, mix: Floats | None) -> Floats:
    """[T, cols] -> (mix x H / sqrt(block)) (scale * x), H the Hadamard matrix of size `block`."""
    cols = x.shape[1]
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    blocks = (x * scale).astype(np.float64).reshape(len(x), cols // block, block) @ (
        h / np.sqrt(block)
    )
    if mix is not None:
        blocks = np.einsum("ab,tbi->tai", mix.astype(np.float64), blocks)
    return np.asarray(blocks.reshape(len(x), cols), np.float32)


def quantize_rows(x: Floats, group: int) -> tuple[Int8s, Floats]:
    """int8 values [T, cols] and scales [T, cols/group]: x ~ value * scale."""
    parts = x.reshape(len(x), -1, group)
    top = np.abs(parts).max(axis=2)
    top = np.where(top < np.float32(1e-30), np.float32(0), top)
    with np.errstate(divide="ignore"):
        inverse = np.where(top > 0, np.float32(127) / top, np.float32(0)).astype(np.float32)
    q = np.rint(parts * inverse[:, :, None]).astype(np.int8)
    return q.reshape(x.shape), (top / np.float32(127)).astype(np.float32)


def planes_matmul(
    weight: npt.NDArray[np.int16], row_scale: Floats, q: Int8s, scale: Floats
) -> Floats:
    """y [T, rows] = (q * scale) (row_scale * weight)^T with exact integer sums per group."""
    tokens, groups = scale.shape
    parts = q.reshape(tokens, groups, -1).astype(np.int64)
    columns = weight.reshape(len(weight), groups, -1).astype(np.int64)
    sums = np.einsum("tgi,rgi->tgr", parts, columns).astype(np.float64)
    y = np.einsum("tgr,tg->tr", sums, scale.astype(np.float64)) * row_scale
    return np.asarray(y, np.float32)


def feedback_factor(H: Floats, block: int) -> npt.NDArray[np.float64]:
    """Strictly upper A with H = (I + A) D (I + A)^T, D block diagonal in blocks of `block`.

    Quantizing columns in order, the target of block J is W_J + sum_{i<J} (W_i - Q_i) A_{i,J}.
    """
    flipped = np.linalg.cholesky(H.astype(np.float64)[::-1, ::-1])
    upper = flipped[::-1, ::-1].copy()
    for start in range(0, len(H), block):
        stop = min(start + block, len(H))
        upper[:stop, start:stop] = upper[:stop, start:stop] @ np.linalg.inv(
            upper[start:stop, start:stop]
        )
    return upper - np.eye(len(H))


@dataclass(frozen=True)
class Tables:
    """window L; hashes uint8 [2, 16]; levels int8 [planes, 16]."""

    window: int
    hashes: Bytes
    levels: Int8s


def encode_with_feedback(
    target: Floats,
    factor: npt.NDArray[np.float64] | None,
    tables: Tables,
    tile_rows: int,
    block: int,
) -> npt.NDArray[np.int16]:
    """Integer weights [rows, cols] of the whole encoder, one column block and one plane at a time.

    target [rows, cols] in units of the first plane group; factor from `feedback_factor`, or None.
    """
    rows, cols = target.shape
    wide = len(tables.levels) > PLANES_PER_GROUP
    work = np.zeros((padded_rows(rows), cols), np.float64)
    work[:rows] = target
    out = np.zeros(work.shape, np.int16)
    for start, stop in tile_ranges(rows, tile_rows):
        states = np.zeros((len(tables.levels), STREAMS), np.int64)
        error = np.zeros((stop - start, cols))
        for at in range(0, cols, block):
            columns = slice(at, min(at + block, cols))
            goal = work[start:stop, columns].copy()
            # The next quad's first steps, whose targets still lack this block's feedback.
            more = columns.stop < cols
            beyond = slice(columns.stop, columns.stop + QUAD if more else 0)
            ahead = work[start:stop, beyond].copy()
            if factor is not None:
                goal += error[:, :at] @ factor[:at, columns]
                ahead += error[:, :at] @ factor[:at, beyond]
            if factor is not None and more:  # a first pass finds the errors that it comes from
                trial = _foreseen(goal, ahead, tables, states.copy())
                wrong = work[start:stop, columns] - trial / (GROUP_RATIO if wide else 1)
                ahead += wrong @ factor[columns, beyond]
            value = _encode_block(goal, ahead, tables, states)
            out[start:stop, columns] = value
            error[:, columns] = work[start:stop, columns] - out[start:stop, columns] / (
                GROUP_RATIO if wide else 1
            )
    return out[:rows]


def _encode_block(
    goal: npt.NDArray[np.float64],
    ahead: npt.NDArray[np.float64],
    tables: Tables,
    states: npt.NDArray[np.int64],
) -> npt.NDArray[np.int16]:
    """Integers of a block [rows, cols], whose paths look into the quad `ahead` [rows, 4 or 0]."""
    steps = np.concatenate([to_streams(goal), to_streams(ahead)[:AHEAD]]).astype(np.float32)
    value = _encode_planes(steps, goal.size // STREAMS, tables, states)
    return from_streams(value, *goal.shape)


def _foreseen(
    goal: npt.NDArray[np.float64],
    ahead: npt.NDArray[np.float64],
    tables: Tables,
    states: npt.NDArray[np.int64],
) -> npt.NDArray[np.int16]:
    """Integers of a block as far as the first steps of the next quad need to know them: of a quad
    alone twice as many steps, zero beyond."""
    steps = goal.size // STREAMS
    if goal.shape[1] > QUAD or steps <= 2 * AHEAD:
        return _encode_block(goal, ahead, tables, states)
    value = np.zeros((steps, STREAMS), np.int16)
    left = to_streams(goal)[: 2 * AHEAD].astype(np.float32)
    value[: 2 * AHEAD] = _encode_planes(left, 2 * AHEAD, tables, states)
    return from_streams(value, *goal.shape)


def _encode_planes(
    left: Floats, kept: int, tables: Tables, states: npt.NDArray[np.int64]
) -> npt.NDArray[np.int16]:
    """Integers [kept, 16] of every plane's path through left [steps, 16]; moves `states` on."""
    value = np.zeros((kept, STREAMS), np.int16)
    level_of = window_levels(tables.window, tables.hashes)
    wide = len(tables.levels) > PLANES_PER_GROUP
    for plane, levels in enumerate(tables.levels):
        unit = np.float32(1 if plane < PLANES_PER_GROUP else 1 / GROUP_RATIO)
        windows = viterbi(left, tables.window, tables.hashes, levels, float(unit), states[plane])
        states[plane] = windows[kept - 1] // 2
        index = level_of[windows]
        left -= unit * levels[index]
        ratio = GROUP_RATIO if wide and plane < PLANES_PER_GROUP else 1
        value += ratio * levels[index[:kept]].astype(np.int16)
    return value
