"""Buffers of a sweep in one piece of memory: those that are never needed together share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.rotation import activation_group
from loop_singular_bit.codec.weights import InputRows
from loop_singular_bit.container import AlignedBuffer
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

ALIGN_BYTES = 64  # of a row, so that every buffer starts at a cache line


class Stage(Flag):
    """Parts of a layer, in the order they run. No native step belongs to two of them."""

    QKV = auto()  # norm, three products, biases, rotary
    ATTEND = auto()
    OUTPUT = auto()
    GATE_UP = auto()  # norm, two products, their gating
    DOWN = auto()


ALWAYS = ~Stage(0)


@dataclass(frozen=True)
class Buffer:
    """Bytes of a row, and the stages from its first write to its last read."""

    row_bytes: int
    live: Stage


def _floats(width: int, live: Stage) -> Buffer:
    return Buffer(_aligned(4 * width), live)


def _packed(cols: int, live: Stage) -> Buffer:
    return Buffer(_aligned(_native.PackedRows.row_bytes(cols, activation_group(cols))), live)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES


def layer_buffers(spec: ModelSpec) -> dict[str, Buffer]:
    """What `record_layer` works on, and when each of it is in use."""
    hidden, query, kv, inner = spec.hidden, spec.query_width, spec.kv_width, spec.intermediate
    return {
        "x": _floats(hidden, ALWAYS),
        "normed": _floats(hidden, Stage.QKV | Stage.GATE_UP),
        "hidden_rows": _packed(hidden, Stage.QKV | Stage.GATE_UP),
        "q": _floats(query, Stage.QKV | Stage.ATTEND),
        "k": _floats(kv, Stage.QKV | Stage.ATTEND),
        "v": _floats(kv, Stage.QKV | Stage.ATTEND),
        "attended": _floats(query, Stage.ATTEND | Stage.OUTPUT),
        "query_rows": _packed(query, Stage.OUTPUT),
        "delta": _floats(hidden, Stage.OUTPUT | Stage.DOWN),
        "gate": _floats(inner, Stage.GATE_UP | Stage.DOWN),
        "up": _floats(inner, Stage.GATE_UP),
        "inner_rows": _packed(inner, Stage.DOWN),
    }


def head_buffers(spec: ModelSpec) -> dict[str, Buffer]:
    """What the final norm and the head work on."""
    return {
        "x": _floats(spec.hidden, ALWAYS),
        "normed": _floats(spec.hidden, ALWAYS),
        "rows": _packed(spec.hidden, ALWAYS),
        "logits": _floats(spec.vocab, ALWAYS),
    }


def arrange(buffers: Mapping[str, Buffer]) -> dict[str, int]:
    """Where each buffer starts, in bytes of a row: the largest first, each at the lowest place
    that none holds which is live with it."""
    starts: dict[str, int] = {}
    for name in sorted(buffers, key=lambda name: -buffers[name].row_bytes):
        buffer = buffers[name]
        others = [o for o in starts if buffers[o].live & buffer.live]
        start = 0
        for other in sorted(others, key=starts.__getitem__):
            if starts[other] >= start + buffer.row_bytes:
                break
            start = max(start, starts[other] + buffers[other].row_bytes)
        starts[name] = start
    return starts


def row_bytes(buffers: Mapping[str, Buffer]) -> int:
    """Bytes that all buffers take together for each row."""
    return max(start + buffers[name].row_bytes for name, start in arrange(buffers).items())


class Arena:
    """Buffers for up to `rows_max` rows, made once.

    memory: at least rows_max * row_bytes(buffers), which others may use between two runs, or None
    for its own.
    """

    def __init__(
        self, buffers: Mapping[str, Buffer], rows_max: int, memory: U8 | None = None
    ) -> None:
        self.rows_max = rows_max
        self._buffers, self._starts = buffers, arrange(buffers)
        needed = rows_max * row_bytes(buffers)
        self._memory = AlignedBuffer(needed).array if memory is None else memory
        if len(self._memory) < needed:
            raise ValueError(f"{len(self._memory)} bytes of memory, {needed} needed")

    def floats(self, name: str, width: int) -> Floats:
        """A buffer as float32 [rows_max, width]."""
        return self._part(name)[: 4 * self.rows_max * width].view(np.float32).reshape(-1, width)

    def packed(self, name: str, cols: int) -> InputRows:
        """A buffer as rows of `cols` numbers that enter a product."""
        return InputRows(self.rows_max, cols, self._part(name))

    def _part(self, name: str) -> U8:
        start, size = self._starts[name], self._buffers[name].row_bytes
        return self._memory[self.rows_max * start : self.rows_max * (start + size)]


class Workspace:
    """The buffers of a layer. x holds the hidden states, before and after it."""

    def __init__(self, spec: ModelSpec, rows_max: int, memory: U8 | None = None) -> None:
        arena = Arena(layer_buffers(spec), rows_max, memory)
        self.rows_max = rows_max
        self.x, self.normed, self.delta = (
            arena.floats(name, spec.hidden) for name in ("x", "normed", "delta")
        )
        self.q, self.attended = (arena.floats(name, spec.query_width) for name in ("q", "attended"))
        self.k, self.v = (arena.floats(name, spec.kv_width) for name in ("k", "v"))
        self.gate, self.up = (arena.floats(name, spec.intermediate) for name in ("gate", "up"))
        self.hidden_rows = arena.packed("hidden_rows", spec.hidden)
        self.query_rows = arena.packed("query_rows", spec.query_width)
        self.inner_rows = arena.packed("inner_rows", spec.intermediate)


def workspace_bytes(spec: ModelSpec, rows_max: int) -> int:
    """Bytes that a Workspace takes."""
    return rows_max * row_bytes(layer_buffers(spec))


def head_bytes(spec: ModelSpec, rows_max: int) -> int:
    """Bytes that a Head takes."""
    return rows_max * row_bytes(head_buffers(spec))
