"""A GGUF file as a source of original weights.

Stored F16, BF16 and F32 tensors are handed out as stored. Quantized ones have no 16-bit pattern of
their own: their blocks are decoded to the float32 values that they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from loop_singular_bit.compress.gguf_config import ROPE_FACTORS, generation_config, model_config
from loop_singular_bit.compress.gguf_file import read_header
from loop_singular_bit.compress.gguf_tokenizer import tokenizer_files
from loop_singular_bit.compress.source import SourceTensor
from loop_singular_bit.compress.stored_tensor import (
    NUMPY_DTYPES,
    FiniteRows,
    StoredTensor,
    read_rows,
    refuse_nonfinite,
    row_range,
)
from loop_singular_bit.compress.tensor_check import check_tensors
from loop_singular_bit.compress.tokenizer_check import check_tokenizer
from loop_singular_bit.errors import TensorError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.names import gguf_name
from loop_singular_bit.models.spec import ModelSpec, Role, TensorSpec, all_tensors

_PLAIN: Mapping[str, str] = {"F16": "f16", "BF16": "bf16", "F32": "f32"}
QUANTIZED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)


@dataclass(frozen=True)
class GgufSource:
    """An opened GGUF file; see compress.source.Source.

    stored      where each tensor lies, by GGUF name
    files       the files of the Hugging Face shape, made from the metadata
    interleaved whether rows of q and k are in the rotary order of GGUF's "llama" architecture
    """

    path: Path
    spec: ModelSpec
    stored: Mapping[str, StoredTensor]
    files: Mapping[str, bytes]
    interleaved: bool
    finite: FiniteRows = field(default_factory=FiniteRows, compare=False, repr=False)

    def dtype(self, tensor: TensorSpec) -> str:
        """ "f16" and "bf16" where stored so, else "f32": stored so or decoded to it."""
        return _PLAIN.get(self.stored[gguf_name(tensor)].kind, "f32")

    def read(
        self, tensor: TensorSpec, row_start: int = 0, row_stop: int | None = None
    ) -> SourceTensor:
        """Rows [row_start, row_stop); of q and k, rows of the heads these lie in are read.

        Raises TensorError on NaN, infinity and a file that ends early, ResourceError on I/O.
        """
        name = gguf_name(tensor)
        stored = self.stored[name]
        start, stop = row_range(tensor.shape, row_start, row_stop)
        row_bytes = stored.size_bytes // tensor.shape[0]
        if self.interleaved and tensor.role in (Role.Q, Role.K):
            first, order = half_split_rows(start, stop, self.spec.head_dim)
            last = -(-stop // self.spec.head_dim) * self.spec.head_dim
            blocks = read_rows(stored, first, last, np.uint8, row_bytes)[order]
        else:
            blocks = read_rows(stored, start, stop, np.uint8, row_bytes)
        values = _decoded(blocks, stored.kind).reshape(stop - start, *tensor.shape[1:])
        result = SourceTensor(self.dtype(tensor), values)
        self.finite.check(name, start, stop, result)
        return result

    def companion_files(self) -> Mapping[str, bytes]:
        """The files of the Hugging Face shape, made from the metadata."""
        return self.files


def open_gguf_file(path: Path) -> GgufSource:
    """Open and check a GGUF file of architecture "llama" (Llama, Mistral) or "qwen2".

    Raises ConfigError (header and metadata), TensorError (a missing, unexpected, misshapen or
    truncated tensor, a type we cannot decode), TokenizerError and ResourceError.
    """
    header = read_header(path)
    factors = header.tensors.get(ROPE_FACTORS)
    config = model_config(header, None if factors is None else _rope_factors(factors))
    spec = spec_from_config(config)
    expected = {gguf_name(tensor): tensor for tensor in all_tensors(spec)}
    relevant = {name: t for name, t in header.tensors.items() if name != ROPE_FACTORS}
    check_tensors(expected, relevant, (*_PLAIN, *QUANTIZED), "the metadata")
    tokenizer = tokenizer_files(header.metadata, spec)
    check_tokenizer(tokenizer["tokenizer.json"], spec)
    files = {
        "config.json": _json(config),
        "generation_config.json": _json(generation_config(header.metadata)),
        **tokenizer,
    }
    interleaved = header.metadata["general.architecture"] == "llama"
    return GgufSource(path, spec, header.tensors, files, interleaved)


def half_split_rows(start: int, stop: int, head_dim: int) -> tuple[int, npt.NDArray[np.intp]]:
    """Where rows [start, stop) in half-split rotary order lie among interleaved rows.

    Row (half j, pair i) of a head is row 2 i + j of the interleaved head. Returns the first row of
    the first head touched and, for each wanted row, its place counted from there.
    """
    first = start // head_dim * head_dim
    rows = np.arange(start, stop)
    half, pair = np.divmod(rows % head_dim, head_dim // 2)
    return first, rows // head_dim * head_dim + 2 * pair + half - first


def _decoded(blocks: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[Any]:
    """Bytes [rows, bytes] -> bit patterns or float32 [rows, columns]."""
    if kind in _PLAIN:
        return blocks.view(NUMPY_DTYPES[_PLAIN[kind]])
    return np.asarray(dequantize(blocks, GGMLQuantizationType[kind]), dtype=np.float32)


def _rope_factors(stored: StoredTensor) -> npt.NDArray[np.float32]:
    if stored.kind != "F32":
        raise TensorError(f"tensor {stored.name} is stored as {stored.kind}, expected F32")
    factors = read_rows(stored, 0, stored.shape[0], NUMPY_DTYPES["f32"])
    refuse_nonfinite(stored.name, SourceTensor("f32", factors))
    return factors


def _json(document: object) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode()
