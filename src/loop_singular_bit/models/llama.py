"""Llama (`model_type: llama`): Llama 1-3, SmolLM2, TinyLlama and the many models in its shape."""

from __future__ import annotations

from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.decoder import decoder_spec, refuse_biases
from loop_singular_bit.models.spec import ModelSpec


def read_config(fields: ConfigFields) -> ModelSpec:
    """ModelSpec of a Llama config.json. Raises ConfigError naming the field."""
    refuse_biases(fields)
    return decoder_spec(fields, "llama", attention_bias=False, sliding_window=None)
