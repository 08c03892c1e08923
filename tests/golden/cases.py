"""The tiny models whose log-probabilities parity.npz holds (scripts/make_golden.py makes it)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tiny import Tiny, write_tiny_model

GOLDEN_FILE = Path(__file__).with_name("parity.npz")
TOKENS = 64


@dataclass(frozen=True)
class Case:
    """One model; sizes are fields of `Tiny`."""

    name: str
    family: str
    dtype: str = "f32"
    sizes: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("llama", "llama"),
    Case("llama_bf16", "llama", "bf16", {"seed": 1, "kv_heads": 4, "tied": False}),
    # Waves of head size 16 are 6 to 20000 positions long: 32 puts them on all sides of the ramp.
    Case("llama_rope", "llama", sizes={"seed": 2, "llama3_rope": True, "rope_original": 32}),
    Case("mistral", "mistral", sizes={"seed": 3, "kv_heads": 1, "sliding_window": 24}),
    Case("qwen2_tied", "qwen2", sizes={"seed": 4, "rope_theta": 1e6}),
    Case("qwen2_untied", "qwen2", sizes={"seed": 5, "tied": False}),
)


def write_case(case: Case, directory: Path) -> Path:
    """The model of a case as a Hugging Face directory."""
    return write_tiny_model(directory, case.family, dtype=case.dtype, **case.sizes)


def case_tokens(case: Case) -> npt.NDArray[np.int64]:
    """Token ids [TOKENS], none of them special."""
    tiny = Tiny(case.family, **case.sizes)
    return np.random.default_rng(100 + tiny.seed).integers(4, tiny.vocab, TOKENS)
