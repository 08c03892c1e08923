"""Tiny random models, complete and deterministic, as a Hugging Face directory or a GGUF file.

Both forms of one `Tiny` hold the same weights (to the precision of the form) and tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

Array = npt.NDArray[Any]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_TOKEN = "<tool_call>"
BOS_ID, EOS_ID = 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "The river runs slowly past the old mill, and every evening the miller counts 12 sacks.",
    "She asked whether the train would leave at 17:45 or at 18:05; nobody at the station knew.",
    "def area(width, height):\n    return width * height  # square metres\n",
    "for index in range(100):\n    if index % 3 == 0:\n        print(index, 'is a multiple')\n",
    "A model that does not fit into memory is read from the disk, layer after layer.",
    "They're sure that we've seen this before, but I don't think they'll remember it.",
    "Le café est fermé, la bibliothèque est ouverte; el niño come una manzana roja.",
    "Большая река течёт медленно. 静かな川がゆっくり流れる。 Die Straße ist gesperrt.",
    "Nothing is lost when the second pass corrects what the first pass has left over.",
    "weights, biases, scales and signs: each of them takes a share of the storage budget",
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {"llama": "smollm", "mistral": "gpt-2", "qwen2": "qwen2"}

_HF_TO_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@dataclass(frozen=True)
class Tiny:
    """Sizes of a tiny model; the head size is hidden / heads."""

    family: str = "llama"
    layers: int = 2
    hidden: int = 64
    intermediate: int = 128
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 512
    tied: bool = True
    seed: int = 0
    rope_theta: float = 10000.0
    llama3_rope: bool = False
    rope_original: int = 8192  # positions before the llama3 scaling
    sliding_window: int | None = None  # mistral

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def add_bos(self) -> bool:
        return self.family == "mistral"

    @property
    def rope_scaling(self) -> dict[str, object] | None:
        if not self.llama3_rope:
            return None
        return {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": self.rope_original,
        }


def write_tiny_model(
    directory: Path, family: str = "llama", *, dtype: str = "f32", shards: int = 1, **sizes: Any
) -> Path:
    """Write a Hugging Face directory and return it. dtype: "f32", "f16" or "bf16" (all tensors).

    sizes: the fields of `Tiny` (layers, hidden, intermediate, heads, kv_heads, vocab, tied, ...).
    """
    tiny = Tiny(family=family, **sizes)
    directory.mkdir(parents=True, exist_ok=True)
    names = list(weights := tiny_weights(tiny))
    if shards == 1:
        write_safetensors(directory / "model.safetensors", weights, dtype)
    else:
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = names[shard::shards]
            write_safetensors(directory / file, {name: weights[name] for name in part}, dtype)
            weight_map.update(dict.fromkeys(part, file))
        _write_json(
            directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map}
        )
    _write_json(directory / "config.json", tiny_config(tiny))
    _write_json(
        directory / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    )
    tokenizer = tiny_tokenizer(PRE_TOKENIZERS[family], tiny.vocab, tiny.add_bos)
    (directory / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(tiny))
    return directory


def write_tiny_gguf(
    path: Path,
    family: str = "llama",
    *,
    quantization: str = "F16",
    weights: dict[str, Array] | None = None,
    **sizes: Any,
) -> Path:
    """Write a GGUF file and return its path. quantization: any matrix type the gguf package can
    write, such as "F32", "F16", "BF16" or "Q8_0"; norms and biases are F32. weights: instead of
    the random ones, by Hugging Face name. sizes: as above."""
    tiny = Tiny(family=family, **sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    arch = "qwen2" if family == "qwen2" else "llama"
    writer = GGUFWriter(path, arch)
    _add_gguf_sizes(writer, tiny)
    _add_gguf_tokenizer(writer, tiny)
    for name, value in (tiny_weights(tiny) if weights is None else weights).items():
        stored = _permuted(name, value, tiny) if arch == "llama" else value
        kind = GGMLQuantizationType[quantization if value.ndim == 2 else "F32"]
        writer.add_tensor(_gguf_name(name), quantize(stored, kind), raw_dtype=kind)
    if tiny.llama3_rope:
        writer.add_tensor("rope_freqs.weight", _rope_factors(tiny))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_weights(tiny: Tiny) -> dict[str, Array]:
    """float32 weights by Hugging Face name, matrices [out, in] with variance 1/in; embedding and
    head with 4/in, so that the logits have a deviation of about 2."""
    rng = np.random.default_rng(tiny.seed)
    hidden, inner = tiny.hidden, tiny.intermediate
    kv = tiny.kv_heads * tiny.head_dim

    def matrix(rows: int, columns: int, deviation: float | None = None) -> Array:
        scale = deviation if deviation is not None else columns**-0.5
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    def norm() -> Array:
        return (1 + 0.1 * rng.standard_normal(hidden)).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(tiny.vocab, hidden, 2 * hidden**-0.5)}
    for layer in range(tiny.layers):
        prefix = f"model.layers.{layer}."
        weights[prefix + "input_layernorm.weight"] = norm()
        for part, rows in (("q", hidden), ("k", kv), ("v", kv)):
            weights[f"{prefix}self_attn.{part}_proj.weight"] = matrix(rows, hidden)
            if tiny.family == "qwen2":
                weights[f"{prefix}self_attn.{part}_proj.bias"] = matrix(1, rows, 0.1)[0]
        weights[prefix + "self_attn.o_proj.weight"] = matrix(hidden, hidden)
        weights[prefix + "post_attention_layernorm.weight"] = norm()
        weights[prefix + "mlp.gate_proj.weight"] = matrix(inner, hidden)
        weights[prefix + "mlp.up_proj.weight"] = matrix(inner, hidden)
        weights[prefix + "mlp.down_proj.weight"] = matrix(hidden, inner)
    weights["model.norm.weight"] = norm()
    if not tiny.tied:
        weights["lm_head.weight"] = matrix(tiny.vocab, hidden, 2 * hidden**-0.5)
    return weights


def tiny_config(tiny: Tiny) -> dict[str, object]:
    """The config.json, in the spelling of transformers 4."""
    config: dict[str, object] = {
        "architectures": [f"{tiny.family.capitalize()}ForCausalLM"],
        "model_type": tiny.family,
        "vocab_size": tiny.vocab,
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.intermediate,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": tiny.rope_theta,
        "max_position_embeddings": 65536 if tiny.llama3_rope else 256,
        "tie_word_embeddings": tiny.tied,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
    }
    if tiny.rope_scaling is not None:
        config["rope_scaling"] = tiny.rope_scaling
    if tiny.family == "mistral":
        config["sliding_window"] = tiny.sliding_window
    return config


@lru_cache
def tiny_tokenizer(pre: str, vocab: int = 512, add_bos: bool = False) -> str:
    """tokenizer.json of a byte-level BPE trained on TEXT. pre: "gpt-2", "smollm" or "qwen2"."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre != "qwen2")
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[*SPECIAL_TOKENS, USER_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL_TOKENS[BOS_ID]} $A",
            pair=f"{SPECIAL_TOKENS[BOS_ID]} $A {SPECIAL_TOKENS[BOS_ID]}:1 $B:1",
            special_tokens=[(SPECIAL_TOKENS[BOS_ID], BOS_ID)],
        )
    document = json.loads(tokenizer.to_str())
    for added in document["added_tokens"]:
        added["special"] = added["content"] != USER_TOKEN
    return json.dumps(document, ensure_ascii=False)


def write_safetensors(path: Path, tensors: dict[str, Array], dtype: str = "f32") -> None:
    """Write float32 arrays as F32, F16 or BF16 (rounded to nearest, ties to even)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blocks, offset = [], 0
    for name, value in tensors.items():
        block = np.ascontiguousarray(to_dtype(value, dtype)).tobytes()
        span = [offset, offset + len(block)]
        header[name] = {"dtype": dtype.upper(), "shape": list(value.shape), "data_offsets": span}
        blocks.append(block)
        offset += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *blocks]))


def to_dtype(value: Array, dtype: str) -> Array:
    """float32 -> float32, float16, or the uint16 patterns of bfloat16."""
    if dtype == "bf16":
        bits = value.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return value.astype({"f32": np.float32, "f16": np.float16}[dtype])


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")


def _tokenizer_config(tiny: Tiny) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "unk_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[0],
        "add_bos_token": tiny.add_bos,
        "chat_template": CHAT_TEMPLATE,
    }


def _add_gguf_sizes(writer: GGUFWriter, tiny: Tiny) -> None:
    config = tiny_config(tiny)
    writer.add_name("tiny")
    writer.add_vocab_size(tiny.vocab)
    writer.add_context_length(int(str(config["max_position_embeddings"])))
    writer.add_embedding_length(tiny.hidden)
    writer.add_feed_forward_length(tiny.intermediate)
    writer.add_block_count(tiny.layers)
    writer.add_head_count(tiny.heads)
    writer.add_head_count_kv(tiny.kv_heads)
    writer.add_rope_freq_base(tiny.rope_theta)
    writer.add_rope_dimension_count(tiny.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_gguf_tokenizer(writer: GGUFWriter, tiny: Tiny) -> None:
    pre = PRE_TOKENIZERS[tiny.family]
    document = json.loads(tiny_tokenizer(pre, tiny.vocab, tiny.add_bos))
    tokens = sorted(document["model"]["vocab"], key=document["model"]["vocab"].__getitem__)
    types = [TokenType.NORMAL] * len(tokens)
    for added in document["added_tokens"]:
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    missing = tiny.vocab - len(tokens)
    tokens += [f"[PAD{index}]" for index in range(missing)]
    types += [TokenType.UNUSED] * missing
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(tiny.add_bos)
    writer.add_chat_template(CHAT_TEMPLATE)


def _gguf_name(name: str) -> str:
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name]
    _, _, layer, *middle, last = name.split(".")
    return f"blk.{layer}.{_HF_TO_GGUF['.'.join(middle)]}.{last}"


def _permuted(name: str, value: Array, tiny: Tiny) -> Array:
    """q and k rows from the half-split to the interleaved rotary order of GGUF's llama."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return value
    heads = value.shape[0] // tiny.head_dim
    halves = value.reshape(heads, 2, tiny.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))


def _rope_factors(tiny: Tiny) -> Array:
    """Divisors of the rotary frequencies, float32 [head_dim/2] (Llama 3.1 scaling)."""
    frequencies = tiny.rope_theta ** -(np.arange(0, tiny.head_dim, 2) / tiny.head_dim)
    wavelengths = 2 * np.pi / frequencies
    smooth = np.clip((tiny.rope_original / wavelengths - 1.0) / (4.0 - 1.0), 0, 1)
    return (1 / ((1 - smooth) / 8.0 + smooth)).astype(np.float32)
