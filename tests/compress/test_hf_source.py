"""Hugging Face directories: what is read, and one test for each refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import (
    Tiny,
    tiny_weights,
    to_dtype,
    write_safetensors,
    write_tiny_model,
)

from loop_singular_bit.compress.hf_source import open_hf_directory
from loop_singular_bit.errors import ConfigError, LoopError, TensorError, TokenizerError
from loop_singular_bit.models.names import hf_name
from loop_singular_bit.models.spec import Role, TensorSpec, all_tensors

INDEX = "model.safetensors.index.json"
Q_NAME = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def refusal(path: Path, error: type[LoopError]) -> str:
    with pytest.raises(error) as caught:
        open_hf_directory(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("tied", "shards"), [(True, 1), (False, 3)])
def test_every_tensor_exactly_as_stored(
    tmp_path: Path, family: str, dtype: str, tied: bool, shards: int
) -> None:
    path = write_tiny_model(tmp_path, family, dtype=dtype, tied=tied, shards=shards)
    source = open_hf_directory(path)
    weights = tiny_weights(Tiny(family=family, tied=tied))
    assert (source.path, source.spec.family) == (path, family)
    for tensor in all_tensors(source.spec):
        read = source.read(tensor)
        expected = to_dtype(weights[hf_name(tensor)], dtype)
        assert read.dtype == source.dtype(tensor) == dtype
        assert read.data.dtype == (np.float32 if dtype == "f32" else np.uint16)
        np.testing.assert_array_equal(read.data, expected.view(read.data.dtype))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 17), (60, 64), (0, 64), (5, 5)])
def test_a_range_of_rows(model: Path, start: int, stop: int) -> None:
    source = open_hf_directory(model)
    for tensor in all_tensors(source.spec):
        part = source.read(tensor, start % tensor.shape[0], min(stop, tensor.shape[0]))
        whole = source.read(tensor)
        np.testing.assert_array_equal(part.data, whole.data[start % tensor.shape[0] : stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (4, 3), (0, 65)])
def test_rows_outside_the_tensor(model: Path, start: int, stop: int) -> None:
    source = open_hf_directory(model)
    norm = next(t for t in all_tensors(source.spec) if t.role is Role.FINAL_NORM)
    with pytest.raises(ValueError, match="of a tensor of 64 rows"):
        source.read(norm, start, stop)


def test_companion_files_are_the_directory_s_own(model: Path) -> None:
    files = open_hf_directory(model).companion_files()
    assert sorted(files) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all((model / name).read_bytes() == content for name, content in files.items())
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat_template.jinja" in open_hf_directory(model).companion_files()


def test_a_tied_checkpoint_may_hold_the_head_again(model: Path) -> None:
    weights = tiny_weights(Tiny())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_safetensors(model / "model.safetensors", weights)
    assert open_hf_directory(model).spec.tied_head


def test_no_config(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path, ConfigError)


@pytest.mark.parametrize(
    ("text", "expected"), [("{", "not valid JSON"), ("[1]", "not a JSON object")]
)
def test_config_that_cannot_be_parsed(model: Path, text: str, expected: str) -> None:
    (model / "config.json").write_text(text)
    assert f"config.json is {expected}" in refusal(model, ConfigError)


def test_config_with_a_bad_field(model: Path) -> None:
    change_json(model / "config.json", num_attention_heads=0)
    assert "num_attention_heads is 0" in refusal(model, ConfigError)


def test_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "has no weights, expected model.safetensors or" in refusal(model, TensorError)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_weights_in_a_pickle(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    message = refusal(model, TensorError)
    assert f"has its weights in {name}" in message
    assert "convert them to safetensors" in message


def test_missing_shard(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, shards=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    message = refusal(path, TensorError)
    assert "model-00002-of-00003.safetensors is missing" in message
    assert "2 shards found, 3 expected" in message


def test_truncated_shard(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, shards=2)
    shard = path / "model-00002-of-00002.safetensors"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-4])
    message = refusal(path, TensorError)
    assert f"{shard.name} is truncated: {size - 4} bytes found, {size} expected" in message


@pytest.mark.parametrize(
    "shard", ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/b", "a\\b", "..", "", 3]
)
def test_shard_outside_the_directory(tmp_path: Path, shard: object) -> None:
    path = write_tiny_model(tmp_path, shards=2)
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    change_json(path / INDEX, weight_map=weight_map | {Q_NAME: shard})
    message = refusal(path, TensorError)
    assert f"names shard {shard!r}, expected a plain file name" in message


@pytest.mark.parametrize("weight_map", [{}, [], None])
def test_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    path = write_tiny_model(tmp_path, shards=2)
    change_json(path / INDEX, weight_map=weight_map)
    assert "has no weight_map" in refusal(path, TensorError)


def test_index_that_is_not_json(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, shards=2)
    (path / INDEX).write_text("weight_map")
    assert f"{INDEX} is not valid JSON" in refusal(path, TensorError)


def test_tensor_not_in_the_shard_the_index_names(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, shards=2)
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    other = next(shard for shard in weight_map.values() if shard != weight_map[Q_NAME])
    change_json(path / INDEX, weight_map=weight_map | {Q_NAME: other})
    assert f"tensor {Q_NAME} is not in {other}" in refusal(path, TensorError)


def test_missing_tensor(model: Path) -> None:
    weights = tiny_weights(Tiny())
    del weights[Q_NAME]
    write_safetensors(model / "model.safetensors", weights)
    assert f"tensor {Q_NAME} is missing" in refusal(model, TensorError)


def test_missing_head(model: Path) -> None:
    change_json(model / "config.json", tie_word_embeddings=False)
    message = refusal(model, TensorError)
    assert "tensor lm_head.weight is missing" in message
    assert "the head is not tied" in message


def test_tensor_of_another_shape(model: Path) -> None:
    weights = tiny_weights(Tiny())
    weights[Q_NAME] = weights[Q_NAME][:-1]
    write_safetensors(model / "model.safetensors", weights)
    message = refusal(model, TensorError)
    assert f"tensor {Q_NAME} has shape [63, 64], config.json expects [64, 64]" in message


def test_unexpected_tensor(model: Path) -> None:
    weights = tiny_weights(Tiny())
    weights["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    write_safetensors(model / "model.safetensors", weights)
    message = refusal(model, TensorError)
    assert "tensor model.layers.0.self_attn.q_proj.bias is unexpected" in message


def test_unsupported_element_type(model: Path) -> None:
    path = model / "model.safetensors"
    # Same width as F32, so the header stays consistent.
    path.write_bytes(path.read_bytes().replace(b'"dtype": "F32"', b'"dtype": "I32"'))
    assert "is stored as I32, expected one of: F16, BF16, F32" in refusal(model, TensorError)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(model: Path, dtype: str, value: float) -> None:
    weights = tiny_weights(Tiny())
    weights[Q_NAME][3, 5] = weights[Q_NAME][7, 0] = value
    write_safetensors(model / "model.safetensors", weights, dtype)
    source = open_hf_directory(model)
    tensor = TensorSpec("layers.1.q", (64, 64), Role.Q, 1)
    with pytest.raises(TensorError, match=f"tensor {Q_NAME} has 2 NaN or infinite values among"):
        source.read(tensor)
    assert source.read(tensor, 8, 64).data.shape == (56, 64)


@pytest.mark.parametrize(("dtype", "largest"), [("f16", 65504.0), ("f32", 3.4e38)])
def test_the_largest_finite_values_are_fine(model: Path, dtype: str, largest: float) -> None:
    weights = tiny_weights(Tiny())
    weights[Q_NAME][0, :2] = [largest, -largest]
    write_safetensors(model / "model.safetensors", weights, dtype)
    assert open_hf_directory(model).read(TensorSpec("", (64, 64), Role.Q, 1)).dtype == dtype


def test_file_that_shrank_after_opening(model: Path) -> None:
    source = open_hf_directory(model)
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(TensorError, match=r"model\.safetensors ends inside tensor .* expected"):
        for tensor in all_tensors(source.spec):
            source.read(tensor)


def test_no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(model, TokenizerError)


def test_tokenizer_of_another_model(model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", vocab=600)
    (other / "tokenizer.json").rename(model / "tokenizer.json")
    assert "the model has 512" in refusal(model, TokenizerError)
