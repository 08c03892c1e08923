"""Buffers share memory only when no stage needs two of them, and sharing changes no bit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop_singular_bit import _native
from loop_singular_bit.engine import workspace
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.engine.kv import KVCache
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.sweep import Batch, Head, record_layer
from loop_singular_bit.engine.workspace import (
    ALWAYS,
    Buffer,
    Stage,
    Workspace,
    arrange,
    head_bytes,
    layer_buffers,
    row_bytes,
    workspace_bytes,
)

IDS = np.random.default_rng(0).integers(4, 512, 40)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, ALWAYS.value)), min_size=1))
def test_what_is_live_together_lies_apart(kinds: list[tuple[int, int]]) -> None:
    buffers = {str(n): Buffer(size, Stage(live)) for n, (size, live) in enumerate(kinds)}
    starts = arrange(buffers)
    for (name, one), (other, two) in combinations(buffers.items(), 2):
        if one.live & two.live:
            apart = starts[name] + one.row_bytes <= starts[other]
            assert apart or starts[other] + two.row_bytes <= starts[name]
    needed = {s: sum(b.row_bytes for b in buffers.values() if s in b.live) for s in Stage}
    assert max(needed.values()) <= row_bytes(buffers)


def test_one_place_for_those_that_never_meet() -> None:
    buffers = {s.name or "": Buffer(64, s) for s in Stage} | {"all": Buffer(128, ALWAYS)}
    assert row_bytes(buffers) == 128 + 64


def apart(buffers: Mapping[str, Buffer]) -> dict[str, int]:
    ends = accumulate((b.row_bytes for b in buffers.values()), initial=0)
    return dict(zip(buffers, ends, strict=False))


@pytest.fixture(scope="module")
def network(tiny_artefact: Path):
    network = ResidentNetwork(tiny_artefact)
    yield network
    network.close()


def run_layers(network: ResidentNetwork, rows: int) -> np.ndarray:
    """Both layers over the same buffers, which hold NaN at first."""
    spec = network.spec
    cache, rotary = KVCache(spec, 1, 64), rotary_table(spec, 64)
    memory = np.full(rows * row_bytes(layer_buffers(spec)), 0xFF, np.uint8)
    work = Workspace(spec, rows, memory)
    work.x[:] = network.embedding.read_rows(IDS[:rows])
    batch = Batch(IDS[:rows], np.zeros(rows, np.int32), np.arange(rows, dtype=np.int32))
    for index in range(spec.layers):
        record_layer(spec, network.layer(index), cache.layers[index], rotary, work).run(batch)
    return work.x.copy()


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("threads", [1, 3])
def test_sharing_changes_no_bit(
    network: ResidentNetwork, rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _native.threads()
    _native.set_threads(threads)
    shared = run_layers(network, rows)
    taken = row_bytes(layer_buffers(network.spec))
    monkeypatch.setattr(workspace, "arrange", apart)
    separate = run_layers(network, rows)
    _native.set_threads(before)
    assert np.isfinite(shared).all()
    assert np.array_equal(shared, separate)
    assert taken < 0.8 * row_bytes(layer_buffers(network.spec))


def test_layers_and_head_may_take_turns_in_one_memory(network: ResidentNetwork) -> None:
    spec = network.spec
    memory = np.full(max(workspace_bytes(spec, 8), head_bytes(spec, 4)), 0xFF, np.uint8)
    x = np.random.default_rng(1).standard_normal((8, spec.hidden)).astype(np.float32)
    work = Workspace(spec, 8, memory)
    work.x[:] = x
    assert np.array_equal(
        Head(network, 4, memory).logits(work.x[-3:]), Head(network, 4).logits(x[-3:])
    )


def test_too_little_memory_is_refused(network: ResidentNetwork) -> None:
    spec = network.spec
    with pytest.raises(ValueError, match="bytes of memory"):
        Workspace(spec, 8, np.empty(workspace_bytes(spec, 8) - 1, np.uint8))
