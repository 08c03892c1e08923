"""Loop Singular Bit: compress a causal language model and run it inside stated budgets.

from loop_singular_bit import LoopCompressor
results = LoopCompressor(target_storage_gb=4.0).compress_model("path/or/hub-id")
results["compression_ratio"], results["quality_loss"], results["all_targets_achieved"]

from loop_singular_bit import open_model
with open_model("artefact") as model, model.session() as session: ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loop_singular_bit.compress.compressor import CompressionResult, LoopCompressor
    from loop_singular_bit.engine.runtime import open_model
    from loop_singular_bit.errors import LoopError

__version__ = "0.1.0"

__all__ = ["CompressionResult", "LoopCompressor", "LoopError", "__version__", "open_model"]

# Names are imported when first asked for: `lsb run` never loads what compresses.
_HOMES = {
    "CompressionResult": "loop_singular_bit.compress.compressor",
    "LoopCompressor": "loop_singular_bit.compress.compressor",
    "LoopError": "loop_singular_bit.errors",
    "open_model": "loop_singular_bit.engine.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
