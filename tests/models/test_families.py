"""config.json -> ModelSpec: what is accepted, and every refusal with its field."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import Tiny, tiny_config

from loop_singular_bit.errors import ConfigError
from loop_singular_bit.models.families import FAMILIES, spec_from_config
from loop_singular_bit.models.spec import ModelSpec, RopeScaling

MISSING = object()
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(family: str = "llama", **changes: Any) -> dict[str, object]:
    fields = {**tiny_config(Tiny(family=family)), **changes}
    return {name: value for name, value in fields.items() if value is not MISSING}


def refusal(fields: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        spec_from_config(fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_field_of_a_llama_config_arrives_in_the_spec() -> None:
    assert spec_from_config(config()) == ModelSpec(
        family="llama",
        vocab=512,
        hidden=64,
        intermediate=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        norm_eps=1e-5,
        rope_theta=10000.0,
        context_max=256,
        tied_head=True,
        attention_bias=False,
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_is_the_model_type_and_only_qwen2_has_biases(family: str) -> None:
    spec = spec_from_config(config(family))
    assert (spec.family, spec.attention_bias) == (family, family == "qwen2")
    assert spec.sliding_window is None


@pytest.mark.parametrize("absent", [MISSING, None])
def test_absent_fields_take_the_values_of_the_hugging_face_classes(absent: object) -> None:
    spec = spec_from_config(
        config(
            num_key_value_heads=absent,
            head_dim=absent,
            rope_theta=absent,
            hidden_act=absent,
            tie_word_embeddings=absent,
            quantization_config=absent,
        )
    )
    assert (spec.kv_heads, spec.head_dim, spec.rope_theta) == (4, 16, 10000.0)
    assert not spec.tied_head


def test_head_dim_may_differ_from_hidden_over_heads() -> None:
    spec = spec_from_config(config("mistral", head_dim=32, hidden_size=100))
    assert (spec.head_dim, spec.query_width, spec.kv_width) == (32, 128, 64)


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (MISSING, "missing"),
        (None, "null"),
        (0, "0"),
        (-5, "-5"),
        (True, "True"),
        (64.0, "64.0"),
        ("64", "'64'"),
    ],
)
def test_a_size_that_is_not_a_positive_integer(field: str, value: object, found: str) -> None:
    message = refusal(config(**{field: value}))
    assert f"{field} is {found}, expected a positive integer" in message


@pytest.mark.parametrize("field", ["num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "2"])
def test_an_optional_size_that_is_not_a_positive_integer(field: str, value: object) -> None:
    message = refusal(config(**{field: value}))
    assert f"{field} is {value!r}, expected a positive integer" in message


@pytest.mark.parametrize("field", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1e-5, True, "1e-5", float("nan"), float("inf"), 10**400])
def test_a_number_that_is_not_positive_and_finite(field: str, value: object) -> None:
    assert f"{field} is " in (message := refusal(config(**{field: value})))
    assert "expected a positive number" in message


def test_norm_epsilon_is_required() -> None:
    assert "rms_norm_eps is missing" in refusal(config(rms_norm_eps=MISSING))


def test_hidden_size_that_the_heads_do_not_divide() -> None:
    message = refusal(config(hidden_size=68, num_attention_heads=8))
    assert "hidden_size is 68, expected a multiple of num_attention_heads (8)" in message


def test_head_size_that_the_kernels_do_not_take() -> None:
    assert "hidden_size is 96, expected a multiple of 16 per head, not 24" in refusal(
        config(hidden_size=96)
    )
    assert "head_dim is 24, expected a multiple of 16" in refusal(config(head_dim=24))


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size"])
def test_width_that_is_no_multiple_of_four(name: str) -> None:
    assert f"{name} is 66, expected a multiple of 4" in refusal(config(**{name: 66}))


@pytest.mark.parametrize("kv_heads", [3, 8])
def test_kv_heads_that_do_not_divide_the_heads(kv_heads: int) -> None:
    message = refusal(config(num_key_value_heads=kv_heads))
    expected = "expected a divisor of num_attention_heads (4)"
    assert f"num_key_value_heads is {kv_heads}, {expected}" in message


@pytest.mark.parametrize(
    ("value", "found"), [("gemma", "'gemma'"), (MISSING, "missing"), ("", "''")]
)
def test_unknown_family_lists_the_known_ones(value: object, found: str) -> None:
    message = refusal(config(model_type=value))
    assert f"model_type is {found}, expected one of: llama, mistral, qwen2" in message


def test_model_type_of_another_type() -> None:
    assert "model_type is 3, expected a string" in refusal(config(model_type=3))


def test_weights_that_are_already_quantized() -> None:
    message = refusal(config(quantization_config={"quant_method": "gptq", "bits": 4}))
    assert "quantization_config is" in message
    assert "gptq" in message
    assert "expected absent (give the original 16-bit checkpoint)" in message


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("field", ["attention_bias", "mlp_bias"])
def test_biases_where_we_run_none(family: str, field: str) -> None:
    assert f"{field} is True, expected false" in refusal(config(family, **{field: True}))


@pytest.mark.parametrize("field", ["attention_bias", "tie_word_embeddings"])
def test_a_flag_that_is_no_bool(field: str) -> None:
    assert f"{field} is 1, expected true or false" in refusal(config(**{field: 1}))


def test_another_activation() -> None:
    assert "hidden_act is 'gelu', expected \"silu\"" in refusal(config(hidden_act="gelu"))


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": MISSING, "rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
    ],
    ids=["transformers 4", "transformers 5", "both keys"],
)
def test_llama3_scaling_in_each_spelling(fields: dict[str, object]) -> None:
    spec = spec_from_config(config(**fields))
    assert spec.rope_theta == 5e5
    assert spec.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}},
        {"rope_parameters": {}},
    ],
)
def test_default_scaling_is_none(fields: dict[str, object]) -> None:
    spec = spec_from_config(config(**fields))
    assert (spec.rope_scaling, spec.rope_theta) == (None, 10000.0)


@pytest.mark.parametrize("section", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_unknown_scaling_type(section: str, name: str) -> None:
    message = refusal(config(**{section: {name: "yarn", "factor": 4.0}}))
    assert f'{section}.{name} is \'yarn\', expected "default" or "llama3"' in message


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("factor", MISSING, "a positive number"),
        ("factor", 0.5, "at least 1"),
        ("low_freq_factor", 0, "a positive number"),
        ("high_freq_factor", 1.0, "more than low_freq_factor (1.0)"),
        ("original_max_position_embeddings", 8192.0, "a positive integer"),
    ],
)
def test_bad_llama3_scaling(field: str, value: object, expected: str) -> None:
    scaling = {k: v for k, v in {**LLAMA3, field: value}.items() if v is not MISSING}
    message = refusal(config(rope_scaling=scaling))
    assert f"rope_scaling.{field} is " in message
    assert f"expected {expected}" in message


def test_two_spellings_that_disagree() -> None:
    message = refusal(config(rope_scaling=LLAMA3, rope_parameters={"rope_type": "default"}))
    assert "rope_parameters and rope_scaling disagree" in message


def test_scaling_that_is_no_object() -> None:
    assert "rope_scaling is 'llama3', expected an object" in refusal(config(rope_scaling="llama3"))


def test_rotation_of_a_part_of_the_head() -> None:
    message = refusal(config(partial_rotary_factor=0.5))
    assert "partial_rotary_factor is 0.5, expected 1.0" in message


@pytest.mark.parametrize(("value", "window"), [(None, None), (32, 32), (MISSING, 4096)])
def test_mistral_window(value: object, window: int | None) -> None:
    assert spec_from_config(config("mistral", sliding_window=value)).sliding_window == window


def test_mistral_window_of_zero() -> None:
    message = refusal(config("mistral", sliding_window=0))
    assert "sliding_window is 0, expected a positive integer" in message


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 0}, None),
        ({"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0}, 32),
        ({"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}, None),
        ({"use_sliding_window": True, "sliding_window": 32}, None),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 32,
                "max_window_layers": 1,
                "layer_types": ["sliding_attention"] * 2,
            },
            32,
        ),
    ],
)
def test_qwen2_window(changes: dict[str, object], window: int | None) -> None:
    assert spec_from_config(config("qwen2", **changes)).sliding_window == window


def test_qwen2_with_both_kinds_of_attention() -> None:
    mixed = config("qwen2", use_sliding_window=True, sliding_window=32, max_window_layers=1)
    assert "max_window_layers is 1, expected one kind of attention" in refusal(mixed)
    kinds = ["full_attention", "sliding_attention"]
    assert "layer_types is" in refusal(mixed | {"layer_types": kinds})


@pytest.mark.parametrize("value", [-1, True, "1"])
def test_qwen2_bad_max_window_layers(value: object) -> None:
    fields = config("qwen2", use_sliding_window=True, max_window_layers=value)
    assert f"max_window_layers is {value!r}, expected an integer" in refusal(fields)


@pytest.mark.parametrize("value", [["full_attention"], ["x", "y"], "full_attention"])
def test_qwen2_bad_layer_types(value: object) -> None:
    fields = config("qwen2", use_sliding_window=True, layer_types=value)
    assert "layer_types is" in refusal(fields)
