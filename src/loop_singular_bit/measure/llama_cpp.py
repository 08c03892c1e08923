"""llama.cpp as a peer, where the package llama-cpp-python is installed: its types of quantization
and what the models they make predict. Never a dependency."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit.errors import InputRefusedError, ResourceError, UsageError

Floats = npt.NDArray[np.float32]

_MODULE = "llama_cpp"
_PREFIX = "LLAMA_FTYPE_MOSTLY_"
EXACT = "F16"  # the file as it is given


def available() -> bool:
    return find_spec(_MODULE) is not None


@cache
def _llama() -> Any:
    """The package, silenced. Raises UsageError where it is not installed."""
    if not available():
        raise UsageError(
            "llama.cpp's types need its Python package: pip install llama-cpp-python, "
            "or name other --points"
        )
    module: Any = import_module(_MODULE)
    # Held by the module: a callback must outlive every call.
    module.lsb_silence = module.llama_log_callback(lambda level, text, data: None)
    module.llama_log_set(module.lsb_silence, None)
    return module


def known_types() -> list[str]:
    """Names such as "Q4_K_M"."""
    names = (name for name in dir(_llama()) if name.startswith(_PREFIX))
    return sorted(name.removeprefix(_PREFIX) for name in names)


def require_type(name: str) -> None:
    """Raises UsageError for a type that the installed package does not have."""
    if name not in (known := known_types()):
        raise UsageError(f"{name!r} is no type of llama.cpp: must be one of {', '.join(known)}")


def quantize(
    source: Path, target: Path, kind: str, importance: Mapping[str, Floats], threads: int
) -> None:
    """A 16-bit GGUF file into one of type `kind`.

    importance: mean squared activation of each input [cols], by the tensor's name in the file.
    """
    llama = _llama()
    require_type(kind)
    entries = (llama.llama_model_imatrix_data * (len(importance) + 1))()  # the last one ends it
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(llama, _PREFIX + kind), threads
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
    code = llama.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if code != 0:
        raise ResourceError(f"llama.cpp could not make {kind} of {source}: code {code}")


class LlamaCppScorer:
    """A GGUF file run by llama.cpp, on windows of up to `context` tokens."""

    def __init__(self, path: Path, context: int, vocab: int, threads: int) -> None:
        self._model = _llama().Llama(
            str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False,
            n_threads=threads, n_threads_batch=threads,
        )  # fmt: skip
        if self._model.n_vocab() != vocab:
            found = self._model.n_vocab()
            self.close()
            raise InputRefusedError(f"{path}: vocabulary of {found}, the model has {vocab}")

    def scores(self, ids: list[int], parts: Sequence[slice]) -> Iterator[Floats]:
        """As NetworkScorer.scores."""
        self._model.reset()
        self._model.eval(ids)
        for part in parts:
            yield np.array(self._model.scores[part], np.float32)

    def close(self) -> None:
        self._model.close()
