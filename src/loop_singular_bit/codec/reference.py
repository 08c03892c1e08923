"""The slow numpy version of every codec operation: what the native kernels must equal.

Nothing here is used at run time. Shapes: rows x cols matrices, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int8s = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]

ROW_GROUP = 16
QUAD = 4
PLANES_PER_GROUP = 4
GROUP_RATIO = 8
SUPER_COLUMNS = 64  # a path looks ahead within these
AHEAD = 16


def stream_order(rows: int, cols: int) -> npt.NDArray[np.int64]:
    """Index [rows * cols] of each weight of one tile in stream order (rows a multiple of 16)."""
    order = np.arange(rows * cols).reshape(rows // ROW_GROUP, ROW_GROUP, cols // QUAD, QUAD)
    return order.transpose(2, 0, 1, 3).reshape(-1)


def tile_ranges(rows: int, tile_rows: int) -> list[tuple[int, int]]:
    """Row ranges of the tiles, the last one rounded up to a whole row group."""
    padded = -(-rows // ROW_GROUP) * ROW_GROUP
    return [(start, min(start + tile_rows, padded)) for start in range(0, padded, tile_rows)]


def unpack_windows(stream: npt.NDArray[np.uint8], window: int) -> npt.NDArray[np.int64]:
    """Table index of every weight of one tile; `stream` is its bytes, the prefix word first."""
    bits = np.unpackbits(stream, bitorder="little").astype(np.int64)
    count = bits.size - 64
    index = np.zeros(count, np.int64)
    for age in range(window):  # bit `age` of the index, oldest first
        start = 64 - (window - 1) + age
        index |= bits[start : start + count] << age
    return index


def decode_planes(
    streams: Sequence[npt.NDArray[np.uint8]], tables: Int8s, rows: int, cols: int, tile_rows: int
) -> npt.NDArray[np.int16]:
    """Integer weights [rows, cols] from one stream per plane and tables [planes, 2^L].

    Up to four planes their sum; beyond, 8 x (first four) + (the rest).
    """
    planes, size = tables.shape
    window = size.bit_length() - 1
    padded = -(-rows // ROW_GROUP) * ROW_GROUP
    out = np.zeros((padded, cols), np.int16)
    for plane, stream in enumerate(streams):
        ratio = GROUP_RATIO if planes > PLANES_PER_GROUP and plane < PLANES_PER_GROUP else 1
        at = 0
        for start, stop in tile_ranges(rows, tile_rows):
            nbytes = 8 + (stop - start) * cols // 8
            index = unpack_windows(stream[at : at + nbytes], window)
            tile = np.zeros((stop - start) * cols, np.int16)
            tile[stream_order(stop - start, cols)] = ratio * tables[plane][index].astype(np.int16)
            out[start:stop] += tile.reshape(stop - start, cols)
            at += nbytes
    return out[:rows]


def viterbi(x: Floats, table: Int8s | Floats, state: int | None = None) -> npt.NDArray[np.int64]:
    """Table indices of the path through one plane's trellis with the least squared error.

    x [steps]; table [2^L]; `state` the L-1 bits before the first weight, or None for any.
    """
    size = len(table)
    states = size // 2
    value = np.asarray(table, np.float32)
    cost = np.full(states, np.float32(1e30))
    cost[slice(None) if state is None else state] = 0
    oldest = np.zeros((len(x), states), bool)
    before = (2 * np.arange(states)) % states
    for t, target in enumerate(x):
        error = (np.float32(target) - value) ** 2
        zero = cost[before] + error[0::2]
        one = cost[before + 1] + error[1::2]
        oldest[t] = one < zero
        cost = np.where(oldest[t], one, zero)
        if t % 64 == 63:
            cost -= cost.min()
    s = int(np.argmin(cost))
    index = np.zeros(len(x), np.int64)
    for t in range(len(x) - 1, -1, -1):
        index[t] = 2 * s + oldest[t, s]
        s = int(index[t]) % states
    return index


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


def encode_with_feedback(
    target: Floats,
    factor: npt.NDArray[np.float64] | None,
    tables: Int8s,
    tile_rows: int,
    block: int,
) -> npt.NDArray[np.int16]:
    """Integer weights [rows, cols] of the whole encoder, one column block and one plane at a time.

    target [rows, cols] in units of the first plane group; factor from `feedback_factor`, or None.
    """
    rows, cols = target.shape
    planes = len(tables)
    wide = planes > PLANES_PER_GROUP
    padded = -(-rows // ROW_GROUP) * ROW_GROUP
    work = np.zeros((padded, cols), np.float64)
    work[:rows] = target
    out = np.zeros((padded, cols), np.int16)
    for start, stop in tile_ranges(rows, tile_rows):
        states: list[int | None] = [None] * planes
        error = np.zeros((stop - start, cols))
        for at in range(0, cols, block):
            columns = slice(at, min(at + block, cols))
            goal = work[start:stop, columns].copy()
            # The next block's first weights, whose targets still lack this block's feedback.
            beyond = slice(columns.stop, columns.stop + QUAD if columns.stop % SUPER_COLUMNS else 0)
            ahead = work[start:stop, beyond].copy()
            if factor is not None:
                goal += error[:, :at] @ factor[:at, columns]
                ahead += error[:, :at] @ factor[:at, beyond]
            order = stream_order(stop - start, goal.shape[1])
            kept = len(order)
            left = np.append(goal.reshape(-1)[order], ahead.reshape(-1)[:AHEAD]).astype(np.float32)
            value = np.zeros(kept, np.int16)
            for plane in range(planes):
                unit = np.float32(1 if plane < PLANES_PER_GROUP else 1 / GROUP_RATIO)
                index = viterbi(left, tables[plane] * unit, states[plane])
                states[plane] = int(index[kept - 1]) // 2
                left -= unit * tables[plane][index]
                ratio = GROUP_RATIO if wide and plane < PLANES_PER_GROUP else 1
                value += ratio * tables[plane][index[:kept]].astype(np.int16)
            coded = np.zeros_like(value)
            coded[order] = value
            out[start:stop, columns] = coded.reshape(goal.shape)
            error[:, columns] = work[start:stop, columns] - out[start:stop, columns] / (
                GROUP_RATIO if wide else 1
            )
    return out[:rows]
