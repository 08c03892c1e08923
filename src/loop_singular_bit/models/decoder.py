"""The fields that every Llama-shaped config.json shares."""

from __future__ import annotations

from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.rope_config import rope_from_config
from loop_singular_bit.models.spec import ModelSpec

HEAD_DIM_MULTIPLE = 16  # lanes of the attention kernels
WIDTH_MULTIPLE = 4  # columns that one dot product of int8 takes


def decoder_spec(
    fields: ConfigFields, family: str, *, attention_bias: bool, sliding_window: int | None
) -> ModelSpec:
    """Sizes and options of a Llama-shaped network. Raises ConfigError naming the field."""
    if fields.text("hidden_act", "silu") != "silu":
        raise fields.bad("hidden_act", '"silu"')
    hidden, heads = _width(fields, "hidden_size"), fields.positive_int("num_attention_heads")
    theta, scaling = rope_from_config(fields)
    return ModelSpec(
        family=family,
        vocab=fields.positive_int("vocab_size"),
        hidden=hidden,
        intermediate=_width(fields, "intermediate_size"),
        layers=fields.positive_int("num_hidden_layers"),
        heads=heads,
        kv_heads=_kv_heads(fields, heads),
        head_dim=_head_dim(fields, hidden, heads),
        norm_eps=fields.positive_float("rms_norm_eps"),
        rope_theta=theta,
        context_max=fields.positive_int("max_position_embeddings"),
        tied_head=fields.flag("tie_word_embeddings", default=False),
        attention_bias=attention_bias,
        rope_scaling=scaling,
        sliding_window=sliding_window,
    )


def refuse_biases(fields: ConfigFields) -> None:
    """Llama and Mistral networks with biases exist in principle; we do not run them."""
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name, default=False):
            raise fields.bad(name, "false")


def _kv_heads(fields: ConfigFields, heads: int) -> int:
    kv_heads = fields.optional_positive_int("num_key_value_heads")
    if kv_heads is None:
        return heads
    if heads % kv_heads:
        raise fields.bad("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    return kv_heads


def _width(fields: ConfigFields, name: str) -> int:
    width = fields.positive_int(name)
    if width % WIDTH_MULTIPLE:
        raise fields.bad(name, f"a multiple of {WIDTH_MULTIPLE}")
    return width


def _head_dim(fields: ConfigFields, hidden: int, heads: int) -> int:
    head_dim = fields.optional_positive_int("head_dim")
    if head_dim is None:
        if hidden % heads:
            raise fields.bad("hidden_size", f"a multiple of num_attention_heads ({heads})")
        head_dim = hidden // heads
        if head_dim % HEAD_DIM_MULTIPLE:
            raise fields.bad(
                "hidden_size", f"a multiple of {HEAD_DIM_MULTIPLE} per head, not {head_dim}"
            )
    if head_dim % HEAD_DIM_MULTIPLE:
        raise fields.bad("head_dim", f"a multiple of {HEAD_DIM_MULTIPLE}")
    return head_dim
