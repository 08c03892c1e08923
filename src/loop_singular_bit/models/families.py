"""The families we know, by the Hub's model_type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from loop_singular_bit.models import llama, mistral, qwen2
from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.spec import ModelSpec

FAMILIES: Mapping[str, Callable[[ConfigFields], ModelSpec]] = {
    "llama": llama.read_config,
    "mistral": mistral.read_config,
    "qwen2": qwen2.read_config,
}


def spec_from_config(config: Mapping[str, object]) -> ModelSpec:
    """ModelSpec of a parsed config.json.

    Raises ConfigError with the field's name, what was found and what was expected: for a family
    we do not know, weights that are already quantized, and every bad or missing field.
    """
    fields = ConfigFields(config)
    model_type = fields.text("model_type", "")
    if model_type not in FAMILIES:
        raise fields.bad("model_type", f"one of: {', '.join(sorted(FAMILIES))}")
    if fields.has("quantization_config"):
        raise fields.bad("quantization_config", "absent (give the original 16-bit checkpoint)")
    return FAMILIES[model_type](fields)
