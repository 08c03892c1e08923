from __future__ import annotations

import pytest
from tiny import Tiny, tiny_config, tiny_weights

from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.names import gguf_name, hf_name
from loop_singular_bit.models.spec import Role, TensorSpec, all_tensors, parameter_count


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_names_and_shapes_are_those_of_the_checkpoint(family: str, tied: bool) -> None:
    tiny = Tiny(family=family, tied=tied)
    weights = tiny_weights(tiny)
    tensors = list(all_tensors(spec_from_config(tiny_config(tiny))))
    assert {hf_name(t): t.shape for t in tensors} == {n: w.shape for n, w in weights.items()}
    spec = spec_from_config(tiny_config(tiny))
    assert parameter_count(spec) == sum(w.size for w in weights.values())


def test_names_of_a_layer() -> None:
    tensor = TensorSpec("layers.11.q_bias", (8,), Role.Q_BIAS, 11)
    assert hf_name(tensor) == "model.layers.11.self_attn.q_proj.bias"
    assert gguf_name(tensor) == "blk.11.attn_q.bias"


def test_every_role_has_one_name_in_each_format() -> None:
    tensors = [TensorSpec("", (1,), role, 0) for role in Role]
    assert len({hf_name(t) for t in tensors}) == len(Role)
    assert len({gguf_name(t) for t in tensors}) == len(Role)
