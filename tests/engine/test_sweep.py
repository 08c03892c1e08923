from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from loop_singular_bit import _native
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.engine.kv import KVCache
from loop_singular_bit.engine.network import LayerWeights, Network
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.sweep import (
    Batch,
    Head,
    InputSite,
    Sweep,
    record_layer,
)
from loop_singular_bit.engine.workspace import Workspace
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]
TOKENS = 45
IDS = np.random.default_rng(0).integers(4, 512, TOKENS)


class Altered:
    """A network with some fields of its specification replaced."""

    def __init__(self, network: Network, **fields: object) -> None:
        self._network = network
        self.spec: ModelSpec = replace(network.spec, **fields)  # type: ignore[arg-type]
        self.final_norm = network.final_norm
        self.embedding = network.embedding
        self.head = network.head
        self.resident = network.resident

    def layer(self, index: int) -> LayerWeights:
        return self._network.layer(index)

    def begin_layers(self, head_follows: bool) -> None: ...

    def begin_head(self) -> None: ...


@pytest.fixture(scope="module")
def raw(tiny_model: Path) -> Network:
    return OriginalNetwork(open_source(str(tiny_model)), 2)


@pytest.fixture(scope="module")
def planes(tiny_artefact: Path):
    network = ResidentNetwork(tiny_artefact)
    yield network
    network.close()


@pytest.fixture(params=["raw", "planes"])
def network(request: pytest.FixtureRequest) -> Network:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=_native.available_tiers(), autouse=True)
def tier(request: pytest.FixtureRequest):
    before = _native.active_tier()
    _native.use_tier(request.param)
    yield
    _native.use_tier(before)


class Rows:
    """Sweeps and their logits over one cache."""

    def __init__(self, network: Network, slots: int = 1, rows_max: int = 64) -> None:
        self.cache = KVCache(network.spec, slots, 64)
        self.rotary = rotary_table(network.spec, 64)
        self.sweep = Sweep(network, self.cache, self.rotary, rows_max)
        self.head = Head(network, 5)

    def logits(self, ids: npt.NDArray[np.int64], slots: list[int], positions: list[int]) -> Floats:
        batch = Batch(ids, np.array(slots, np.int32), np.array(positions, np.int32))
        return self.head.logits(self.sweep.hidden(batch))

    def chunks(self, ids: npt.NDArray[np.int64], size: int, slot: int = 0) -> Floats:
        starts = range(0, len(ids), size)
        parts = [ids[start : start + size] for start in starts]
        return np.concatenate(
            [
                self.logits(part, [slot] * len(part), list(range(start, start + len(part))))
                for start, part in zip(starts, parts, strict=True)
            ]
        )


@pytest.mark.parametrize("size", [1, 7, 16])
def test_chunks_give_the_same_bits_as_one_sweep(network: Network, size: int) -> None:
    whole = Rows(network).chunks(IDS, TOKENS)
    assert np.isfinite(whole).all()
    assert whole.std() > 0.5
    assert np.array_equal(Rows(network).chunks(IDS, size), whole)


def test_sequences_sharing_a_batch_give_the_same_bits_as_alone(network: Network) -> None:
    lengths = (5, 12, 9)
    sequences = [IDS[slot * 12 : slot * 12 + length] for slot, length in enumerate(lengths)]
    alone = [Rows(network).chunks(ids, len(ids)) for ids in sequences]
    order = [(slot, place) for place in range(12) for slot in (2, 0, 1) if place < lengths[slot]]
    shared = Rows(network, slots=3)
    ids = np.array([sequences[slot][place] for slot, place in order])
    found = shared.logits(ids, [slot for slot, _ in order], [place for _, place in order])
    for row, (slot, place) in zip(found, order, strict=True):
        assert np.array_equal(row, alone[slot][place])


def test_one_token_of_each_sequence_at_its_own_position(network: Network) -> None:
    shared = Rows(network, slots=2)
    shared.chunks(IDS[:20], 20, slot=1)
    shared.chunks(IDS[30:33], 3, slot=0)
    both = shared.logits(IDS[[33, 20]], [0, 1], [3, 20])
    assert np.array_equal(both[0], Rows(network).chunks(IDS[30:34], 4)[-1])
    assert np.array_equal(both[1], Rows(network).chunks(IDS[:21], 21)[-1])


def test_threads_do_not_change_a_bit(network: Network) -> None:
    before = _native.threads()
    try:
        found = []
        for count in (1, 3):
            _native.set_threads(count)
            found.append(Rows(network).chunks(IDS, TOKENS))
    finally:
        _native.set_threads(before)
    assert np.array_equal(*found)


def test_window_forgets_what_lies_before_it(raw: Network) -> None:
    """Layers reach window - 1 tokens back each: two of 6 see 11 positions in all."""
    windowed = Altered(raw, sliding_window=6)
    other = IDS.copy()
    other[0] = 3 if IDS[0] != 3 else 4
    one, two = (Rows(windowed).chunks(ids, TOKENS) for ids in (IDS, other))
    assert not np.array_equal(one[10], two[10])
    assert np.array_equal(one[11:], two[11:])


def test_window_as_long_as_the_sequence_changes_nothing(network: Network) -> None:
    wide = Altered(network, sliding_window=TOKENS)
    narrow = Altered(network, sliding_window=TOKENS - 1)
    whole = Rows(network).chunks(IDS, TOKENS)
    assert np.array_equal(Rows(wide).chunks(IDS, TOKENS), whole)
    assert np.array_equal(Rows(narrow).chunks(IDS, TOKENS)[:-1], whole[:-1])
    assert not np.array_equal(Rows(narrow).chunks(IDS, TOKENS)[-1], whole[-1])


@pytest.mark.parametrize("size", [1, 7])
def test_windowed_chunks_give_the_same_bits(network: Network, size: int) -> None:
    windowed = Altered(network, sliding_window=10)
    whole = Rows(windowed).chunks(IDS, TOKENS)
    assert np.array_equal(Rows(windowed).chunks(IDS, size), whole)


def test_later_tokens_do_not_change_earlier_logits(network: Network) -> None:
    whole = Rows(network).chunks(IDS, TOKENS)
    assert np.array_equal(Rows(network).chunks(IDS[:20], 20), whole[:20])


def test_a_layer_is_what_its_definition_says(raw: Network) -> None:
    spec, rows = raw.spec, Rows(raw)
    batch = Batch(IDS[:8], np.zeros(8, np.int32), np.arange(8, dtype=np.int32))
    before, layer, work = raw.embedding.read_rows(batch.ids), raw.layer(0), Workspace(spec, 9)
    work.x[:8] = before
    program = record_layer(spec, layer, rows.cache.layers[0], rows.rotary, work)
    seen = {site: inputs.copy() for site, inputs in program.run_by_site(batch)}
    assert list(seen) == list(InputSite)
    attended = before + seen[InputSite.OUTPUT] @ layer.o.dense().T
    gate = seen[InputSite.MLP] @ layer.gate.dense().T
    up = seen[InputSite.MLP] @ layer.up.dense().T
    down = gate / (1 + np.exp(-gate)) * up
    assert np.allclose(seen[InputSite.DOWN], down, atol=1e-5)
    assert np.allclose(work.x[:8], attended + down @ layer.down.dense().T, atol=1e-5)
    scale = np.sqrt((before**2).mean(axis=1, keepdims=True) + spec.norm_eps)
    assert np.allclose(seen[InputSite.ATTENTION], before / scale * layer.attn_norm, atol=1e-5)


def test_a_layer_run_by_site_is_the_layer(network: Network) -> None:
    batch = Batch(IDS[:8], np.zeros(8, np.int32), np.arange(8, dtype=np.int32))
    found = []
    for by_site in (False, True):
        rows, work = Rows(network), Workspace(network.spec, 8)
        work.x[:] = network.embedding.read_rows(batch.ids)
        program = record_layer(
            network.spec, network.layer(0), rows.cache.layers[0], rows.rotary, work
        )
        if by_site:
            assert len(list(program.run_by_site(batch))) == len(InputSite)
        else:
            program.run(batch)
        found.append(work.x.copy())
    assert np.array_equal(*found)


def test_logits_are_the_head_of_normed_states(raw: Network) -> None:
    x = np.random.default_rng(3).standard_normal((7, raw.spec.hidden)).astype(np.float32)
    scale = np.sqrt((x**2).mean(axis=1, keepdims=True) + raw.spec.norm_eps)
    expected = (x / scale * raw.final_norm) @ raw.head.dense().T
    assert np.allclose(Head(raw, 3).logits(x), expected, atol=1e-4)


def test_logits_do_not_depend_on_how_many_rows_share_a_pass(network: Network) -> None:
    x = np.random.default_rng(3).standard_normal((7, network.spec.hidden)).astype(np.float32)
    assert np.array_equal(Head(network, 3).logits(x), Head(network, 7).logits(x))
