"""GGUF files: the same values as the directory of the same model, and each refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tiny import Tiny, tiny_weights, to_dtype, write_tiny_gguf, write_tiny_model

from loop_singular_bit.compress.gguf_source import QUANTIZED, half_split_rows, open_gguf_file
from loop_singular_bit.compress.hf_source import open_hf_directory
from loop_singular_bit.compress.source import SourceTensor
from loop_singular_bit.errors import LoopError, TensorError, TokenizerError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.names import hf_name
from loop_singular_bit.models.spec import Role, all_tensors

Q_NAME = "model.layers.1.self_attn.q_proj.weight"


def values(tensor: SourceTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if tensor.dtype == "bf16":
        return (tensor.data.astype(np.uint32) << 16).view(np.float32)
    return tensor.data.view(np.float16).astype(np.float32) if tensor.dtype == "f16" else tensor.data


def refusal(path: Path, error: type[LoopError]) -> str:
    with pytest.raises(error) as caught:
        open_gguf_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(("dtype", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("f32", "F32")])
@pytest.mark.parametrize("tied", [True, False])
def test_same_values_as_the_directory(
    tmp_path: Path, family: str, dtype: str, kind: str, tied: bool
) -> None:
    sizes = {"tied": tied, "hidden": 128, "heads": 8, "kv_heads": 4}
    directory = open_hf_directory(write_tiny_model(tmp_path / "hf", family, dtype=dtype, **sizes))
    gguf = open_gguf_file(write_tiny_gguf(tmp_path / "m.gguf", family, quantization=kind, **sizes))
    assert gguf.spec.tied_head == tied
    for tensor in all_tensors(directory.spec):
        expected, found = directory.read(tensor), gguf.read(tensor)
        assert found.dtype == gguf.dtype(tensor)
        if len(tensor.shape) == 2:
            assert found.dtype == dtype
            np.testing.assert_array_equal(found.data, expected.data)
        else:  # GGUF keeps vectors in float32
            assert found.dtype == "f32"
            rounded = to_dtype(found.data, dtype).view(expected.data.dtype)
            np.testing.assert_array_equal(rounded, expected.data)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantized_blocks_are_decoded_to_float32(tmp_path: Path, family: str, kind: str) -> None:
    source = open_gguf_file(write_tiny_gguf(tmp_path / "m.gguf", family, quantization=kind))
    weights = tiny_weights(Tiny(family=family))
    stored = GGMLQuantizationType[kind]
    for tensor in all_tensors(source.spec):
        weight = weights[hf_name(tensor)]
        # Rows are quantized one by one, so their order does not change the blocks.
        expected = dequantize(quantize(weight, stored), stored) if weight.ndim == 2 else weight
        found = source.read(tensor)
        assert (found.dtype, source.dtype(tensor)) == ("f32", "f32")
        np.testing.assert_array_equal(found.data, expected)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_every_range_of_rows(tmp_path: Path, family: str, kind: str) -> None:
    source = open_gguf_file(write_tiny_gguf(tmp_path / "m.gguf", family, quantization=kind))
    for tensor in all_tensors(source.spec):
        whole, rows = source.read(tensor).data, tensor.shape[0]
        for start, stop in [(0, 1), (1, 2), (7, 9), (15, 31), (rows - 3, rows), (5, 5), (0, rows)]:
            part = source.read(tensor, start, stop).data
            np.testing.assert_array_equal(part, whole[start:stop])


def test_rows_outside_the_tensor(tmp_path: Path) -> None:
    source = open_gguf_file(write_tiny_gguf(tmp_path / "m.gguf"))
    norm = next(t for t in all_tensors(source.spec) if t.role is Role.FINAL_NORM)
    with pytest.raises(ValueError, match="of a tensor of 64 rows"):
        source.read(norm, 0, 65)


def test_half_split_rows_undo_the_interleaving() -> None:
    """Head size 4: halves (0 1 | 2 3) of a head are stored as pairs (0 2) (1 3)."""
    stored = np.array([0, 2, 1, 3, 4, 6, 5, 7])
    for start in range(9):
        for stop in range(start, 9):
            first, order = half_split_rows(start, stop, 4)
            assert first == start // 4 * 4
            assert stored[first + order].tolist() == list(range(start, stop))


@pytest.mark.parametrize("kind", QUANTIZED)
def test_every_type_we_accept_can_be_decoded(kind: str) -> None:
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    decoded = dequantize(np.zeros((2, block_bytes), np.uint8), GGMLQuantizationType[kind])
    assert decoded.shape == (2, block)


def test_companion_files_describe_the_same_model(tmp_path: Path) -> None:
    directory = write_tiny_model(tmp_path / "hf", "qwen2", tied=False)
    source = open_gguf_file(write_tiny_gguf(tmp_path / "m.gguf", "qwen2", tied=False))
    files = source.companion_files()
    assert sorted(files) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads(files["config.json"])
    assert spec_from_config(config) == open_hf_directory(directory).spec == source.spec
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    generation = json.loads(files["generation_config.json"])
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def test_a_directory_made_of_them_opens(tmp_path: Path) -> None:
    """What compress writes beside its weights is a model directory that we can read again."""
    source = open_gguf_file(write_tiny_gguf(tmp_path / "m.gguf"))
    directory = write_tiny_model(tmp_path / "hf")
    for name, content in source.companion_files().items():
        (directory / name).write_bytes(content)
    assert open_hf_directory(directory).spec == source.spec


def test_missing_tensor(tmp_path: Path) -> None:
    weights = tiny_weights(Tiny())
    del weights[Q_NAME]
    message = refusal(write_tiny_gguf(tmp_path / "m.gguf", weights=weights), TensorError)
    assert "tensor blk.1.attn_q.weight is missing" in message


def test_tensor_of_another_shape(tmp_path: Path) -> None:
    weights = tiny_weights(Tiny())
    weights[Q_NAME] = weights[Q_NAME][:48]
    message = refusal(write_tiny_gguf(tmp_path / "m.gguf", weights=weights), TensorError)
    assert "attn_q.weight has shape [48, 64], the metadata expects [64, 64]" in message


def test_unexpected_tensor(tmp_path: Path) -> None:
    weights = tiny_weights(Tiny())
    weights["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    message = refusal(write_tiny_gguf(tmp_path / "m.gguf", weights=weights), TensorError)
    assert "tensor blk.0.attn_q.bias is unexpected" in message
    assert "has 20 tensors, 21 found" in message


def test_type_that_cannot_be_decoded(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    name = b"blk.0.attn_q.weight"
    content = path.read_bytes()
    # After the name: dimension count (4 bytes), two dimensions (16 bytes), then the type.
    place = content.index(name) + len(name) + 20
    int16 = int(GGMLQuantizationType.I16).to_bytes(4, "little")
    path.write_bytes(content[:place] + int16 + content[place + 4 :])
    assert "attn_q.weight is stored as I16, expected one of: F16" in refusal(path, TensorError)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(tmp_path: Path, kind: str, value: float) -> None:
    weights = tiny_weights(Tiny())
    weights[Q_NAME][3, 5] = value
    path = write_tiny_gguf(tmp_path / "m.gguf", weights=weights, quantization=kind)
    source = open_gguf_file(path)
    tensor = next(t for t in all_tensors(source.spec) if hf_name(t) == Q_NAME)
    with pytest.raises(TensorError, match=r"blk\.1\.attn_q\.weight has 1 NaN or infinite values"):
        source.read(tensor)
    assert np.isfinite(values(source.read(tensor, 4, 64))).all()


def test_truncated_file(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-5000])
    assert "m.gguf is truncated" in refusal(path, TensorError)


def test_tokenizer_much_smaller_than_the_network(tmp_path: Path) -> None:
    """4,096 rows of embedding, most of them unused: TEXT trains far fewer tokens."""
    message = refusal(write_tiny_gguf(tmp_path / "m.gguf", vocab=4096), TokenizerError)
    assert "expected more than half of the model's 4096" in message
