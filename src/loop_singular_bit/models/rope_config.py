"""Rotary-embedding options of a config.json, in both spellings the Hub has.

transformers 4 writes `rope_theta` at the top and `rope_scaling` beside it; transformers 5 writes
one object `rope_parameters` with `rope_theta` and `rope_type` inside.
"""

from __future__ import annotations

from loop_singular_bit.errors import ConfigError
from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.spec import RopeScaling

# What the Hugging Face classes of all three families assume when the field is absent.
DEFAULT_THETA = 10000.0
SUPPORTED_TYPES = ("default", "llama3")


def rope_from_config(fields: ConfigFields) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of a configuration.

    Raises ConfigError for a scaling type other than "default" and "llama3", for a bad value, and
    for rotation of only a part of each head.
    """
    found = (fields.section("rope_parameters"), fields.section("rope_scaling"))
    sections = [section for section in found if section is not None]
    for holder in (*sections, fields):
        _refuse_partial_rotation(holder)
    scalings = [_scaling(section) for section in sections]
    if len(set(scalings)) > 1:
        raise ConfigError(
            "model config: rope_parameters and rope_scaling disagree, expected one of the two"
        )
    theta = next((h for h in (*sections, fields) if h.has("rope_theta")), None)
    return (
        theta.positive_float("rope_theta") if theta else DEFAULT_THETA,
        scalings[0] if scalings else None,
    )


def _refuse_partial_rotation(holder: ConfigFields) -> None:
    name = "partial_rotary_factor"
    if holder.has(name) and holder.positive_float(name) != 1.0:
        raise holder.bad(name, "1.0 (the whole head is rotated)")


def _scaling(section: ConfigFields) -> RopeScaling | None:
    name = "rope_type" if section.has("rope_type") else "type"
    kind = section.text(name, "default")
    if kind not in SUPPORTED_TYPES:
        raise section.bad(name, " or ".join(f'"{known}"' for known in SUPPORTED_TYPES))
    if kind == "default":
        return None
    low = section.positive_float("low_freq_factor")
    high = section.positive_float("high_freq_factor")
    if high <= low:
        raise section.bad("high_freq_factor", f"more than low_freq_factor ({low})")
    factor = section.positive_float("factor")
    if factor < 1:
        raise section.bad("factor", "at least 1")
    return RopeScaling(
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=section.positive_int("original_max_position_embeddings"),
    )
