from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loop_singular_bit.codec.program import Program
from loop_singular_bit.engine.artefact import read_spec
from loop_singular_bit.engine.kv import (
    KV_BITS,
    KVCache,
    attention_bytes,
    cache_bytes,
    round_context,
)
from loop_singular_bit.errors import UsageError


@pytest.mark.parametrize(("context", "rounded"), [(1, 16), (15, 16), (16, 16), (17, 32)])
def test_context_is_reserved_in_whole_blocks(context: int, rounded: int) -> None:
    assert round_context(context) == rounded


@pytest.mark.parametrize("bits", KV_BITS)
@pytest.mark.parametrize(("slots", "context"), [(1, 16), (3, 50)])
def test_cache_bytes_are_those_of_a_cache(
    tiny_model: Path, slots: int, context: int, bits: str
) -> None:
    spec = read_spec(tiny_model)
    cache = KVCache(spec, slots, context, bits=bits)
    assert cache.nbytes == cache_bytes(spec, slots, context, bits)
    assert {layer.native.bits for layer in cache.layers} == {KV_BITS[bits]}


def test_cache_bytes_of_a_known_model(tiny_model: Path) -> None:
    spec = replace(read_spec(tiny_model), layers=30, kv_heads=3, head_dim=64)
    heads = 30 * 2048 * 3
    found = {bits: cache_bytes(spec, 1, 2048, bits) // heads for bits in KV_BITS}
    assert found == {"16": 256, "8": 132, "8:4": 100, "4": 68}


def test_other_bits_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="--kv 5: must be one of 16, 8, 8:4, 4"):
        KVCache(read_spec(tiny_model), 1, 16, bits="5")


def test_cache_for_fewer_layers(tiny_model: Path) -> None:
    spec = read_spec(tiny_model)
    assert len(KVCache(spec, 1, 16, layers=1).layers) == 1
    assert KVCache(spec, 1, 16, layers=1).nbytes == cache_bytes(spec, 1, 16) // spec.layers


@pytest.mark.parametrize(
    ("bits", "tolerance"), [("16", 1e-5), ("8", 0.03), ("8:4", 0.4), ("4", 0.6)]
)
def test_attention_over_stored_rows_is_the_softmax_of_their_scores(
    tiny_model: Path, bits: str, tolerance: float
) -> None:
    spec = read_spec(tiny_model)
    rng = np.random.default_rng(0)
    n, heads, width = 20, spec.heads, spec.head_dim
    q = rng.standard_normal((n, spec.query_width), np.float32)
    k, v = rng.standard_normal((2, n, spec.kv_width), np.float32)
    k, v = (a.astype(np.float16).astype(np.float32) for a in (k, v))  # what the cache can hold
    slots, positions = np.full(n, 1, np.int32), np.arange(n, dtype=np.int32)
    layer = KVCache(spec, 2, 32, bits=bits).layers[1]
    out, program = np.empty_like(q), Program(n)
    layer.store(program, k, v)
    layer.attend(program, q, heads, None, out)
    program.run_steps(slots, positions)
    keys = np.repeat(k.reshape(n, spec.kv_heads, width), heads // spec.kv_heads, axis=1)
    values = np.repeat(v.reshape(n, spec.kv_heads, width), heads // spec.kv_heads, axis=1)
    scores = np.einsum("qhd,khd->hqk", q.reshape(n, heads, width).astype(float), keys)
    scores = np.where(np.tri(n, dtype=bool), scores / np.sqrt(width), -np.inf)
    share = np.exp(scores - scores.max(axis=2, keepdims=True))
    share /= share.sum(axis=2, keepdims=True)
    expected = np.einsum("hqk,khd->qhd", share, values).reshape(n, -1)
    assert np.abs(out - expected).max() < tolerance


def test_scratch_of_attention_is_known_before(tiny_model: Path) -> None:
    spec = read_spec(tiny_model)
    one, two = (attention_bytes(spec, 250, threads) for threads in (1, 2))
    state = 4 * (spec.head_dim + 16)
    assert two == 2 * one + 8 * spec.heads * state  # every thread's, and the parts of one chunk
