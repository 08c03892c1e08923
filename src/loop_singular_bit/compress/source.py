"""Where original weights come from: one tensor at a time, never the whole model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loop_singular_bit.errors import InputRefusedError
from loop_singular_bit.models.spec import ModelSpec, TensorSpec


@dataclass(frozen=True)
class SourceTensor:
    """A tensor exactly as stored: 16-bit patterns or float32.

    dtype  "f16" | "bf16" | "f32"
    data   uint16 (the bit pattern) for f16 and bf16, float32 for f32; shape as in the network
    """

    dtype: str
    data: npt.NDArray[np.uint16] | npt.NDArray[np.float32]


class Source(Protocol):
    """A model a person has: a Hugging Face directory or a GGUF file."""

    @property
    def path(self) -> Path: ...

    @property
    def spec(self) -> ModelSpec: ...

    def dtype(self, tensor: TensorSpec) -> str:
        """ "f16", "bf16" or "f32" of a tensor without reading it."""
        ...

    def read(
        self, tensor: TensorSpec, row_start: int = 0, row_stop: int | None = None
    ) -> SourceTensor:
        """Rows [row_start, row_stop) of a tensor. Raises TensorError on NaN or infinity."""
        ...

    def companion_files(self) -> Mapping[str, bytes]:
        """Files of the Hugging Face shape that inference needs beside the weights, by file name:
        config.json, generation_config.json, tokenizer.json, tokenizer_config.json, and
        chat_template.jinja where there is one."""
        ...


def open_source(model: str) -> Source:
    """Open a model by what a person calls it, with every check that needs no weights.

    model  a Hugging Face directory, a .gguf file, or a hub id "org/name[@revision]"

    Raises ConfigError, TensorError, TokenizerError, InputRefusedError (no such path or hub model)
    and ResourceError (I/O, or the Hub cannot be reached).
    """
    # Imported here: these modules need SourceTensor from this one, and gguf is slow to import.
    from loop_singular_bit.compress.hf_source import open_hf_directory
    from loop_singular_bit.compress.hub import fetch, is_hub_id

    path = Path(model)
    if path.is_dir():
        return open_hf_directory(path)
    if path.is_file() and path.suffix == ".gguf":
        from loop_singular_bit.compress.gguf_source import open_gguf_file

        return open_gguf_file(path)
    if path.exists():
        raise InputRefusedError(f"{model} is a file, expected a directory or a .gguf file")
    if is_hub_id(model) and path.suffix != ".gguf":
        return open_hf_directory(fetch(model))
    raise InputRefusedError(
        f"{model} does not exist, expected a model directory, a .gguf file or a hub id org/name"
    )
