"""GGUF metadata -> config.json: equal to the directory's, and each refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Tiny, tiny_config, write_tiny_gguf

from loop_singular_bit.compress.gguf_config import generation_config, model_config
from loop_singular_bit.compress.gguf_file import GgufHeader, read_header
from loop_singular_bit.compress.gguf_source import open_gguf_file
from loop_singular_bit.errors import ConfigError, TensorError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.spec import RopeScaling

MISSING = object()


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufHeader]:
    folder = tmp_path_factory.mktemp("gguf")
    return {
        family: read_header(write_tiny_gguf(folder / f"{family}.gguf", family))
        for family in ("llama", "mistral", "qwen2")
    }


def changed(header: GgufHeader, **changes: Any) -> GgufHeader:
    """Metadata with changes; "__" in a name stands for the dot."""
    metadata = {**header.metadata, **{n.replace("__", "."): v for n, v in changes.items()}}
    return replace(header, metadata={n: v for n, v in metadata.items() if v is not MISSING})


def refusal(header: GgufHeader, factors: Any = None) -> str:
    with pytest.raises(ConfigError) as caught:
        model_config(header, factors)
    return str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_equal_to_the_directory_s_config(headers: dict[str, GgufHeader], family: str) -> None:
    spec = spec_from_config(model_config(headers[family], None))
    # Mistral without a window has nothing that tells it from Llama, in the file and in the network.
    named = "llama" if family == "mistral" else family
    assert spec == replace(spec_from_config(tiny_config(Tiny(family=family))), family=named)


def test_a_window_makes_a_mistral(headers: dict[str, GgufHeader]) -> None:
    config = model_config(changed(headers["llama"], llama__attention__sliding_window=64), None)
    spec = spec_from_config(config)
    assert (spec.family, spec.sliding_window) == ("mistral", 64)
    assert config["architectures"] == ["MistralForCausalLM"]


def test_head_size_of_its_own(headers: dict[str, GgufHeader]) -> None:
    own = {
        "llama__attention__key_length": 32,
        "llama__attention__value_length": 32,
        "llama__rope__dimension_count": 32,
    }
    assert model_config(changed(headers["llama"], **own), None)["head_dim"] == 32


def test_absent_optional_keys(headers: dict[str, GgufHeader]) -> None:
    header = changed(
        headers["llama"],
        llama__rope__freq_base=MISSING,
        llama__attention__head_count_kv=MISSING,
        llama__rope__dimension_count=MISSING,
    )
    config = model_config(header, None)
    assert (config["rope_theta"], config["num_key_value_heads"]) == (10000.0, 4)


def test_sizes_given_layer_by_layer(headers: dict[str, GgufHeader]) -> None:
    header = changed(headers["llama"], llama__attention__head_count_kv=[2, 2])
    assert model_config(header, None)["num_key_value_heads"] == 2
    header = changed(headers["llama"], llama__attention__head_count_kv=[2, 4])
    assert "head_count_kv is [2, 4], expected one positive integer" in refusal(header)


@pytest.mark.parametrize("arch", ["gemma", MISSING])
def test_another_architecture(headers: dict[str, GgufHeader], arch: object) -> None:
    message = refusal(changed(headers["llama"], general__architecture=arch))
    assert "general.architecture is " in message
    assert "expected one of: llama, qwen2" in message


@pytest.mark.parametrize(
    "name",
    [
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
    ],
)
def test_missing_size(headers: dict[str, GgufHeader], name: str) -> None:
    assert f"{name} is missing" in refusal(changed(headers["llama"], **{name: MISSING}))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("split.count", 3, "1: join the parts"),
        ("llama.expert_count", 8, "absent (a dense model)"),
        ("llama.rope.scaling.type", "yarn", '"none"'),
        ("llama.rope.scale_linear", 4.0, "1.0"),
        ("llama.rope.dimension_count", 8, "the size of a head (16)"),
        ("llama.attention.value_length", 8, "the size of a head (16)"),
        ("llama.embedding_length", 66, "a multiple of the heads (4)"),
        ("tokenizer.ggml.eos_token_id", -1, "a token id"),
        ("tokenizer.ggml.eos_token_id", "2", "a token id"),
    ],
)
def test_what_we_do_not_run(
    headers: dict[str, GgufHeader], name: str, value: object, expected: str
) -> None:
    message = refusal(changed(headers["llama"], **{name: value}))
    assert f"{name} is {value!r}, expected {expected}" in message


def test_qwen2_window(headers: dict[str, GgufHeader]) -> None:
    header = changed(headers["qwen2"], qwen2__attention__sliding_window=64)
    assert "sliding_window is 64, expected absent or at least" in refusal(header)
    wide = changed(headers["qwen2"], qwen2__attention__sliding_window=256)
    assert spec_from_config(model_config(wide, None)).sliding_window is None


def test_no_embedding(headers: dict[str, GgufHeader]) -> None:
    tensors = {n: t for n, t in headers["llama"].tensors.items() if n != "token_embd.weight"}
    with pytest.raises(TensorError, match=r"token_embd\.weight is missing"):
        model_config(replace(headers["llama"], tensors=tensors), None)


def test_llama3_scaling_from_the_factors(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", llama3_rope=True, rope_theta=500000.0, heads=2)
    source = open_gguf_file(path)
    assert source.spec.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    assert source.spec.rope_theta == 500000.0
    config = json.loads(source.companion_files()["config.json"])
    assert spec_from_config(config) == source.spec


def test_factors_of_one_scale_nothing(headers: dict[str, GgufHeader]) -> None:
    config = model_config(headers["llama"], np.ones(8, np.float32))
    assert config["rope_scaling"] is None


@pytest.mark.parametrize("factors", [np.full(8, 2.0), np.linspace(1, 8, 8), np.full(4, 8.0)])
def test_factors_of_another_scaling(headers: dict[str, GgufHeader], factors: Any) -> None:
    message = refusal(headers["llama"], factors.astype(np.float32))
    assert "rope_freqs.weight holds a rotary scaling that is not Llama 3's" in message


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"eos": 2}, {"eos_token_id": 2}),
        ({"eos": 2, "eot": 2}, {"eos_token_id": 2}),
        ({"eos": 1, "eom": 8, "eot": 9, "bos": 0}, {"bos_token_id": 0, "eos_token_id": [1, 9, 8]}),
        ({"eot": 9, "padding": 3, "unknown": 4}, {"eos_token_id": 9, "pad_token_id": 3}),
        ({}, {}),
    ],
)
def test_ends_of_generation(ids: dict[str, int], expected: dict[str, object]) -> None:
    metadata = {f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items()}
    assert generation_config(metadata) == expected
