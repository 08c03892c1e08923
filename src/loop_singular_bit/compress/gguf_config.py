"""GGUF metadata -> the config.json and generation_config.json that the model had on the Hub."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from loop_singular_bit.compress.gguf_file import GgufHeader
from loop_singular_bit.errors import ConfigError, TensorError
from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.rope_config import DEFAULT_THETA

ARCHITECTURES = ("llama", "qwen2")
ROPE_FACTORS = "rope_freqs.weight"
_CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
# Llama 3.1 to 3.3 differ in the factor alone; GGUF stores only the frequencies that come out.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


def token_ids(metadata: Mapping[str, object]) -> dict[str, int]:
    """The ids of special tokens under the Hub's names: bos_token_id, eos_token_id, ..."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {f"{hub}_token_id": token_id(metadata, gguf) for hub, gguf in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def token_id(metadata: Mapping[str, object], name: str) -> int | None:
    """tokenizer.ggml.<name>_token_id, None when absent. Raises ConfigError when no id."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is not None and (type(value) is not int or value < 0):
        raise ConfigFields(metadata).bad(key, "a token id")
    return value


def generation_config(metadata: Mapping[str, object]) -> dict[str, object]:
    """generation_config.json: ids of special tokens; every token that ends a turn or message is an
    end of generation, so eos_token_id is a list where there are several."""
    ends = [token_id(metadata, name) for name in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    config: dict[str, object] = dict(token_ids(metadata))
    config.pop("unk_token_id", None)
    if unique:
        config["eos_token_id"] = unique if len(unique) > 1 else unique[0]
    return config


def model_config(
    header: GgufHeader, rope_factors: npt.NDArray[np.float32] | None
) -> dict[str, object]:
    """config.json of a Llama, Mistral or Qwen2 model.

    rope_factors  the tensor rope_freqs.weight, [head_dim/2], where the file has one: what each
                  rotary frequency is divided by

    Raises ConfigError naming the metadata key, TensorError when there is no embedding.
    """
    fields = ConfigFields(header.metadata)
    arch = fields.text("general.architecture", "")
    if arch not in ARCHITECTURES:
        raise fields.bad("general.architecture", f"one of: {', '.join(ARCHITECTURES)}")
    if "token_embd.weight" not in header.tensors:
        raise TensorError("tensor token_embd.weight is missing")
    _refuse_what_we_do_not_run(fields, arch)
    heads = _uniform(fields, f"{arch}.attention.head_count")
    head_dim = _head_dim(fields, arch, heads)
    window = fields.optional_positive_int(f"{arch}.attention.sliding_window")
    model_type = "mistral" if arch == "llama" and window is not None else arch
    theta = _theta(fields, arch)
    config: dict[str, object] = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "hidden_size": fields.positive_int(f"{arch}.embedding_length"),
        "intermediate_size": _uniform(fields, f"{arch}.feed_forward_length"),
        "num_hidden_layers": fields.positive_int(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(fields, arch, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": fields.positive_int(f"{arch}.context_length"),
        "rms_norm_eps": _decimal(fields.positive_float(f"{arch}.attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_scaling": None if rope_factors is None else _scaling(rope_factors, theta, head_dim),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **token_ids(header.metadata),
    }
    if model_type == "mistral":
        config["sliding_window"] = window
    return config


def _refuse_what_we_do_not_run(fields: ConfigFields, arch: str) -> None:
    if fields.has("split.count") and fields.positive_int("split.count") > 1:
        raise fields.bad("split.count", "1: join the parts with `llama-gguf-split --merge`")
    if fields.values.get(f"{arch}.expert_count") not in (None, 0):
        raise fields.bad(f"{arch}.expert_count", "absent (a dense model)")
    scaling = f"{arch}.rope.scaling.type"
    if fields.text(scaling, "none") != "none":
        raise fields.bad(scaling, '"none"')
    linear = f"{arch}.rope.scale_linear"
    if fields.has(linear) and fields.positive_float(linear) != 1.0:
        raise fields.bad(linear, "1.0")
    window = f"{arch}.attention.sliding_window"
    if arch == "qwen2" and fields.has(window):
        context = fields.positive_int(f"{arch}.context_length")
        if fields.positive_int(window) < context:
            raise fields.bad(window, f"absent or at least the context length ({context})")


def _theta(fields: ConfigFields, arch: str) -> float:
    key = f"{arch}.rope.freq_base"
    return _decimal(fields.positive_float(key)) if fields.has(key) else DEFAULT_THETA


def _kv_heads(fields: ConfigFields, arch: str, heads: int) -> int:
    key = f"{arch}.attention.head_count_kv"
    return _uniform(fields, key) if fields.has(key) else heads


def _head_dim(fields: ConfigFields, arch: str, heads: int) -> int:
    hidden = fields.positive_int(f"{arch}.embedding_length")
    head_dim = fields.optional_positive_int(f"{arch}.attention.key_length")
    if head_dim is None:
        if hidden % heads:
            raise fields.bad(f"{arch}.embedding_length", f"a multiple of the heads ({heads})")
        head_dim = hidden // heads
    for name in ("attention.value_length", "rope.dimension_count"):
        if (fields.optional_positive_int(f"{arch}.{name}") or head_dim) != head_dim:
            raise fields.bad(f"{arch}.{name}", f"the size of a head ({head_dim})")
    return head_dim


def _uniform(fields: ConfigFields, key: str) -> int:
    """A size that may be given layer by layer; the layers must agree."""
    values = fields.values.get(key)
    if not isinstance(values, list):
        return fields.positive_int(key)
    if not values or any(type(v) is not int or v < 1 or v != values[0] for v in values):
        raise fields.bad(key, "one positive integer, the same in every layer")
    return int(values[0])


def _decimal(value: float) -> float:
    """The shortest decimal that gives the same float32: GGUF turned 1e-05 into 9.99999975e-06."""
    return float(str(np.float32(value)))


def _scaling(
    factors: npt.NDArray[np.float32], theta: float, head_dim: int
) -> dict[str, object] | None:
    """The Llama-3 scaling whose divisors are these, None when nothing is scaled."""
    if np.all(factors == 1):
        return None
    factor = _decimal(float(factors.max()))
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    slope = _LLAMA3_HIGH - _LLAMA3_LOW
    smooth = np.clip((_LLAMA3_CONTEXT / wavelengths - _LLAMA3_LOW) / slope, 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise ConfigError(
            f"{ROPE_FACTORS} holds a rotary scaling that is not Llama 3's, expected factors for "
            f"low {_LLAMA3_LOW}, high {_LLAMA3_HIGH}, original context {_LLAMA3_CONTEXT}"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }
