from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny import Tiny, tiny_weights, write_tiny_gguf, write_tiny_model

from loop_singular_bit.compress import original
from loop_singular_bit.compress.original import (
    OriginalNetwork,
    open_original,
    resident_layers,
    source_text,
)
from loop_singular_bit.compress.source import Source, open_source


@contextmanager
def opened(model: Path) -> Iterator[OriginalNetwork]:
    with open_original(str(model)) as (network, _):
        yield network


def test_weights_are_those_of_the_model(tiny_model: Path) -> None:
    weights = tiny_weights(Tiny())
    with opened(tiny_model) as network:
        layer = network.layer(1)
        np.testing.assert_array_equal(
            layer.down.dense(), weights["model.layers.1.mlp.down_proj.weight"]
        )
        np.testing.assert_array_equal(
            layer.attn_norm, weights["model.layers.1.input_layernorm.weight"]
        )
        np.testing.assert_array_equal(network.final_norm, weights["model.norm.weight"])
        np.testing.assert_array_equal(
            network.embedding.dense(), weights["model.embed_tokens.weight"]
        )
        assert layer.q_bias is None


def test_a_tied_head_is_the_embedding(tiny_model: Path, tmp_path: Path) -> None:
    with opened(tiny_model) as network:
        assert network.head is network.embedding
    with opened(write_tiny_model(tmp_path / "untied", tied=False)) as network:
        expected = tiny_weights(Tiny(tied=False))["lm_head.weight"]
        np.testing.assert_array_equal(network.head.dense(), expected)


def test_biases_are_vectors(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "qwen", "qwen2", dtype="f16")
    expected = tiny_weights(Tiny("qwen2"))["model.layers.0.self_attn.k_proj.bias"]
    with opened(model) as network:
        np.testing.assert_array_equal(network.layer(0).k_bias, np.float32(np.float16(expected)))


def test_layers_are_kept_up_to_the_number_asked(tiny_model: Path) -> None:
    source = open_source(str(tiny_model))
    kept, read = OriginalNetwork(source, 1), OriginalNetwork(source, 0)
    assert kept.layer(0) is kept.layer(0)
    assert kept.layer(1) is not kept.layer(1)
    assert read.layer(0) is not read.layer(0)


def test_a_small_original_is_resident_and_a_large_one_is_not(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tiny_model))
    assert resident_layers(source) == 2
    monkeypatch.setattr(original, "RESIDENT_BYTES", 1000)
    assert resident_layers(source) == 0


@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_the_text_of_a_source_outlives_its_files(kind: str, tmp_path: Path) -> None:
    source: Source = open_source(
        str(write_tiny_model(tmp_path / "m") if kind == "directory"
            else write_tiny_gguf(tmp_path / "m.gguf"))
    )  # fmt: skip
    with source_text(source) as text:
        pass
    assert text.encode("the mill", special=False)
    assert text.has_chat_template
