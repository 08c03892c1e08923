"""Sizes of well-known networks, as the config.json that the Hub has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loop_singular_bit.errors import UsageError

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2


@dataclass(frozen=True)
class Shape:
    """The sizes that tell one Llama-shaped network from another."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    sliding_window: int | None = None
    tied: bool = False

    def config(self) -> dict[str, object]:
        """config.json in the spelling of transformers 4."""
        found: dict[str, object] = {
            "architectures": [f"{self.family.capitalize()}ForCausalLM"],
            "model_type": self.family, "vocab_size": self.vocab, "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu", "rms_norm_eps": self.norm_eps, "rope_theta": self.rope_theta,
            "max_position_embeddings": self.context, "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16", "bos_token_id": BOS_ID, "eos_token_id": EOS_ID,
        }  # fmt: skip
        if self.family == "mistral":
            found["sliding_window"] = self.sliding_window
        return found


SHAPES: Mapping[str, Shape] = {
    "mistral-7b": Shape("mistral", 32, 4096, 14336, 32, 8, 32000, 32768, sliding_window=4096),
    "llama-2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-3-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128256, 8192, rope_theta=5e5),
    "qwen2.5-1.5b": Shape(
        "qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, rope_theta=1e6, norm_eps=1e-6, tied=True
    ),
    "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 49152, 8192, rope_theta=1e5, tied=True),
    "small": Shape("llama", 6, 512, 1536, 8, 2, 4096, 2048),
    "tiny": Shape("mistral", 3, 128, 448, 4, 2, 512, 512, sliding_window=64),
}


def known_shape(name: str) -> Shape:
    """A shape by name. Raises UsageError with the names there are."""
    if name not in SHAPES:
        raise UsageError(f"shape {name!r}: must be one of {', '.join(SHAPES)}")
    return SHAPES[name]
