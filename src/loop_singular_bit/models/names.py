"""What the tensors of models/spec.py are called in a Hugging Face checkpoint and in a GGUF file.

The three families use the same names, so there is one table for each file format.
"""

from __future__ import annotations

from collections.abc import Mapping

from loop_singular_bit.models.spec import Role, TensorSpec

_HF_NAMES: Mapping[Role, str] = {
    Role.EMBEDDING: "model.embed_tokens.weight",
    Role.HEAD: "lm_head.weight",
    Role.FINAL_NORM: "model.norm.weight",
    Role.ATTENTION_NORM: "input_layernorm.weight",
    Role.MLP_NORM: "post_attention_layernorm.weight",
    Role.Q: "self_attn.q_proj.weight",
    Role.K: "self_attn.k_proj.weight",
    Role.V: "self_attn.v_proj.weight",
    Role.O: "self_attn.o_proj.weight",
    Role.Q_BIAS: "self_attn.q_proj.bias",
    Role.K_BIAS: "self_attn.k_proj.bias",
    Role.V_BIAS: "self_attn.v_proj.bias",
    Role.GATE: "mlp.gate_proj.weight",
    Role.UP: "mlp.up_proj.weight",
    Role.DOWN: "mlp.down_proj.weight",
}

_GGUF_NAMES: Mapping[Role, str] = {
    Role.EMBEDDING: "token_embd.weight",
    Role.HEAD: "output.weight",
    Role.FINAL_NORM: "output_norm.weight",
    Role.ATTENTION_NORM: "attn_norm.weight",
    Role.MLP_NORM: "ffn_norm.weight",
    Role.Q: "attn_q.weight",
    Role.K: "attn_k.weight",
    Role.V: "attn_v.weight",
    Role.O: "attn_output.weight",
    Role.Q_BIAS: "attn_q.bias",
    Role.K_BIAS: "attn_k.bias",
    Role.V_BIAS: "attn_v.bias",
    Role.GATE: "ffn_gate.weight",
    Role.UP: "ffn_up.weight",
    Role.DOWN: "ffn_down.weight",
}


def hf_name(tensor: TensorSpec) -> str:
    """Name of a tensor in a Hugging Face checkpoint of a causal language model."""
    name = _HF_NAMES[tensor.role]
    return name if tensor.layer is None else f"model.layers.{tensor.layer}.{name}"


def gguf_name(tensor: TensorSpec) -> str:
    """Name of a tensor in a GGUF file (architectures "llama" and "qwen2")."""
    name = _GGUF_NAMES[tensor.role]
    return name if tensor.layer is None else f"blk.{tensor.layer}.{name}"
