"""Qwen2 and Qwen2.5 (`model_type: qwen2`): Llama's shape with biases on q, k and v."""

from __future__ import annotations

from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.decoder import decoder_spec
from loop_singular_bit.models.spec import ModelSpec

# The Hugging Face class assumes these when the fields are absent.
DEFAULT_WINDOW = 4096
DEFAULT_FULL_LAYERS = 28


def read_config(fields: ConfigFields) -> ModelSpec:
    """ModelSpec of a Qwen2 config.json. Raises ConfigError naming the field."""
    window = _window(fields) if fields.flag("use_sliding_window", default=False) else None
    return decoder_spec(fields, "qwen2", attention_bias=True, sliding_window=window)


def _window(fields: ConfigFields) -> int | None:
    """The window that every layer uses, None when every layer attends to all positions.

    Layers from max_window_layers on use the window, unless layer_types says it layer by layer.
    A model that mixes the two kinds of attention is refused.
    """
    window: int | None = DEFAULT_WINDOW
    if "sliding_window" in fields.values:
        window = fields.optional_positive_int("sliding_window")
    layers = fields.positive_int("num_hidden_layers")
    field, sliding = _sliding_layers(fields, layers)
    if window is None or sliding == 0:
        return None
    if sliding < layers:
        raise fields.bad(field, f"one kind of attention in all {layers} layers")
    return window


def _sliding_layers(fields: ConfigFields, layers: int) -> tuple[str, int]:
    """(the field that says so, how many layers attend to the window only)."""
    kinds = fields.values.get("layer_types")
    if kinds is not None:
        known = ("sliding_attention", "full_attention")
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(k not in known for k in kinds)
        ):
            raise fields.bad("layer_types", f"{layers} times one of: {', '.join(known)}")
        return "layer_types", kinds.count("sliding_attention")
    first = fields.values.get("max_window_layers", DEFAULT_FULL_LAYERS)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise fields.bad("max_window_layers", "an integer, 0 or more")
    return "max_window_layers", max(0, layers - first)
