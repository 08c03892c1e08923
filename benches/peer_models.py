"""Models of random weights for the peers: a GGUF file as large as our weights, and bfloat16.

Both are written tensor by tensor, in the memory of one tensor, and say that they are synthetic.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

from loop_singular_bit.compress.shapes import BOS_ID, EOS_ID, Shape
from loop_singular_bit.compress.synthetic_tokenizer import SPECIAL_TOKENS, synthetic_tokenizer
from loop_singular_bit.errors import UsageError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.names import hf_name
from loop_singular_bit.models.spec import all_tensors

LABEL = "synthetic, random weights"
BLOCK = 256  # weights of a block of every type below
Q3_K, IQ3_XXS = GGMLQuantizationType.Q3_K, GGMLQuantizationType.IQ3_XXS
F32 = GGMLQuantizationType.F32
BF16_ONE = 0x3F80  # the pattern of 1.0: sign, 8 bits of exponent, 7 of mantissa


@dataclass(frozen=True)
class BlockKind:
    """A block's bytes, where its float16 scale is, and the deviation of a random block's values
    over that scale."""

    nbytes: int
    scale_at: int
    deviation: float


# Types that llama.cpp multiplies as they lie in the file: of others (Q2_K, Q4_K, Q6_K) it makes a
# second copy in another order where it can, which no limit below the model's size would hold.
KINDS = {Q3_K: BlockKind(110, 108, 43.3), IQ3_XXS: BlockKind(98, 0, 142.0)}


@dataclass(frozen=True)
class GgufTensor:
    """dims: [rows, cols] of a matrix, [count] of a vector, which is float32."""

    name: str
    dims: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def row_bytes(self) -> int:
        cols = self.dims[-1]
        return 4 * cols if self.kind == F32 else cols // BLOCK * KINDS[self.kind].nbytes

    @property
    def nbytes(self) -> int:
        return self.row_bytes * (1 if len(self.dims) == 1 else self.dims[0])


def gguf_tensors(shape: Shape, target_bytes: int) -> list[GgufTensor]:
    """Tensors of about `target_bytes`: all Q3_K, and of the first layers as many IQ3_XXS as needed.

    The sum is nearest from below, within one matrix, where the two types allow it. Raises
    UsageError for rows that are no whole blocks.
    """
    found = [_tensor(name, dims, Q3_K) for name, dims in _gguf_names(shape)]
    size = sum(each.nbytes for each in found)
    for place, each in enumerate(found):
        if size <= target_bytes:
            break
        if ".ffn_" in each.name and each.kind != F32:
            found[place] = _tensor(each.name, each.dims, IQ3_XXS)
            size += found[place].nbytes - each.nbytes
    return found


def _tensor(name: str, dims: tuple[int, ...], kind: GGMLQuantizationType) -> GgufTensor:
    if len(dims) == 1:
        return GgufTensor(name, dims, F32)
    if dims[1] % BLOCK:
        raise UsageError(f"{name}: rows of {dims[1]} weights are no whole blocks of {BLOCK}")
    return GgufTensor(name, dims, kind)


def _gguf_names(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    kv = shape.hidden // shape.heads * shape.kv_heads
    h, inner = shape.hidden, shape.intermediate
    found: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (shape.vocab, h))]
    for layer in range(shape.layers):
        for name, dims in (
            ("attn_norm", (h,)), ("attn_q", (h, h)), ("attn_k", (kv, h)), ("attn_v", (kv, h)),
            ("attn_output", (h, h)), ("ffn_norm", (h,)), ("ffn_gate", (inner, h)),
            ("ffn_up", (inner, h)), ("ffn_down", (h, inner)),
        ):  # fmt: skip
            found.append((f"blk.{layer}.{name}.weight", dims))
    return [*found, ("output_norm.weight", (h,)), ("output.weight", (shape.vocab, h))]


def write_gguf(shape: Shape, target_bytes: int, path: Path) -> None:
    """A file of the Llama architecture whose tensors take about `target_bytes`."""
    partial = path.with_name(path.name + ".partial")
    tensors = gguf_tensors(shape, target_bytes)
    writer = GGUFWriter(partial, "llama")
    _add_sizes(writer, shape)
    _add_tokenizer(writer, shape)
    for each in tensors:
        if each.kind == F32:
            writer.add_tensor_info(each.name, each.dims, np.dtype(np.float32), each.nbytes)
        else:
            dims = (each.dims[0], each.row_bytes)  # of bytes, as the writer has it
            writer.add_tensor_info(each.name, dims, np.dtype(np.uint8), each.nbytes, each.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.Generator(np.random.SFC64(0))
    for each in tensors:
        vector = each.kind == F32
        writer.write_tensor_data(np.ones(each.dims, np.float32) if vector else _blocks(rng, each))
    writer.close()
    partial.rename(path)


def _blocks(rng: np.random.Generator, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random bytes, and a scale that gives every row's product unit deviation."""
    kind, (rows, cols) = KINDS[tensor.kind], tensor.dims
    data = rng.integers(0, 256, (rows, cols // BLOCK, kind.nbytes), np.uint8)
    scale = np.float16(1 / (kind.deviation * np.sqrt(cols)))
    data[:, :, kind.scale_at : kind.scale_at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return data.reshape(rows, -1)


def _add_sizes(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name(LABEL)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _add_tokenizer(writer: GGUFWriter, shape: Shape) -> None:
    model = json.loads(synthetic_tokenizer(shape.vocab))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    controls = len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL] * controls + [TokenType.NORMAL] * (len(tokens) - controls)
    )
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)


def write_bf16(shape: Shape, companions: dict[str, bytes], directory: Path) -> None:
    """A Hugging Face directory of bfloat16 with real bytes on disk: a hole would read as nothing.

    One file for each module that AirLLM streams, so that it links them and makes no second copy.
    """
    partial = directory.with_name(directory.name + ".partial")
    partial.mkdir(exist_ok=True)
    shards = bf16_shards(shape)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(partial / name, tensors, seed=number)
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"synthetic": LABEL}, "weight_map": weight_map}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    for name, data in companions.items():
        (partial / name).write_bytes(data)
    (partial / "README.md").write_text(f"# {directory.name}\n\n{LABEL}\n", "utf-8")
    partial.rename(directory)


def bf16_shards(shape: Shape) -> list[dict[str, tuple[int, ...]]]:
    """Shapes by name, module by module: embedding, every layer, norm, head."""
    shards: dict[str, dict[str, tuple[int, ...]]] = {}  # by layer, or name where there is none
    for tensor in all_tensors(spec_from_config(shape.config())):
        module = tensor.name if tensor.layer is None else str(tensor.layer)
        shards.setdefault(module, {})[hf_name(tensor)] = tuple(tensor.shape)
    return list(shards.values())


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], seed: int) -> None:
    """One safetensors file of bfloat16: vectors of ones, matrices of about unit gain."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "synthetic": LABEL}}
    offset = 0
    for name, dims in tensors.items():
        end = offset + 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.Generator(np.random.SFC64(seed))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dims in tensors.values():
            _patterns(rng, dims).tofile(file)


def _patterns(
    rng: np.random.Generator, dims: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Random signs and mantissas under one exponent; at exponent 0 their deviation is 1.53."""
    if len(dims) == 1:
        return np.full(dims, BF16_ONE, np.uint16)
    exponent = 127 + round(-np.log2(1.53 * np.sqrt(dims[1])))
    data = rng.integers(0, 1 << 16, dims, np.uint16)
    data &= np.uint16(0x807F)
    data |= np.uint16(exponent << 7)
    return data
