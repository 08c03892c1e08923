"""Mistral (`model_type: mistral`): Llama's shape, attention to a sliding window."""

from __future__ import annotations

from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.decoder import decoder_spec, refuse_biases
from loop_singular_bit.models.spec import ModelSpec

# The Hugging Face class assumes this window when the field is absent; null means no window.
DEFAULT_WINDOW = 4096


def read_config(fields: ConfigFields) -> ModelSpec:
    """ModelSpec of a Mistral config.json. Raises ConfigError naming the field."""
    refuse_biases(fields)
    if "sliding_window" in fields.values:
        window = fields.optional_positive_int("sliding_window")
    else:
        window = DEFAULT_WINDOW
    return decoder_spec(fields, "mistral", attention_bias=False, sliding_window=window)
