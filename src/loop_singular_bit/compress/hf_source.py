"""A Hugging Face model directory: config.json, safetensors (one file or shards) and a tokenizer.

Everything that can be known without reading weights is checked on opening: the files, their sizes,
and the presence, shape and element type of every tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loop_singular_bit.compress.safetensors_file import read_header
from loop_singular_bit.compress.source import SourceTensor
from loop_singular_bit.compress.stored_tensor import (
    NUMPY_DTYPES,
    FiniteRows,
    StoredTensor,
    opened,
    read_rows,
    row_range,
)
from loop_singular_bit.compress.tensor_check import check_tensors
from loop_singular_bit.compress.tokenizer_check import check_tokenizer
from loop_singular_bit.errors import ConfigError, LoopError, TensorError, TokenizerError
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.names import hf_name
from loop_singular_bit.models.spec import ModelSpec, TensorSpec, all_tensors

COMPANION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DTYPES: Mapping[str, str] = {"F16": "f16", "BF16": "bf16", "F32": "f32"}


@dataclass(frozen=True)
class HfSource:
    """An opened Hugging Face directory; see compress.source.Source.

    stored  where each tensor lies, by Hugging Face name
    """

    path: Path
    spec: ModelSpec
    stored: Mapping[str, StoredTensor]
    finite: FiniteRows = field(default_factory=FiniteRows, compare=False, repr=False)

    def dtype(self, tensor: TensorSpec) -> str:
        """ "f16", "bf16" or "f32": the type the tensor is stored in."""
        return _DTYPES[self.stored[hf_name(tensor)].kind]

    def read(
        self, tensor: TensorSpec, row_start: int = 0, row_stop: int | None = None
    ) -> SourceTensor:
        """Rows [row_start, row_stop) as stored; memory and reading are those of the rows asked.

        Raises TensorError on NaN, infinity and a file that ends early, ResourceError on I/O.
        """
        name, dtype = hf_name(tensor), self.dtype(tensor)
        start, stop = row_range(tensor.shape, row_start, row_stop)
        rows = read_rows(self.stored[name], start, stop, NUMPY_DTYPES[dtype])
        result = SourceTensor(dtype, rows)
        self.finite.check(name, start, stop, result)
        return result

    def companion_files(self) -> Mapping[str, bytes]:
        """The directory's own files, unchanged; those that do not exist are left out."""
        return {
            name: _read_file(self.path / name)
            for name in COMPANION_FILES
            if (self.path / name).is_file()
        }


def open_hf_directory(path: Path) -> HfSource:
    """Open and check a Hugging Face directory.

    Raises ConfigError (config.json), TensorError (a missing, truncated or contradictory file; a
    missing, unexpected, misshapen or unsupported tensor), TokenizerError and ResourceError.
    """
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} has no config.json, expected a Hugging Face model directory")
    spec = spec_from_config(_read_object(path / "config.json", ConfigError))
    stored = _stored_tensors(path)
    _check_tensors(spec, stored)
    if not (path / "tokenizer.json").is_file():
        raise TokenizerError(f"{path} has no tokenizer.json, expected one beside config.json")
    check_tokenizer(_read_file(path / "tokenizer.json"), spec)
    return HfSource(path, spec, stored)


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    if (path / WEIGHTS_FILE).is_file():
        return read_header(path / WEIGHTS_FILE)
    if (path / INDEX_FILE).is_file():
        return _sharded_tensors(path)
    others = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if others:
        raise TensorError(
            f"{path} has its weights in {others[0]}, expected {WEIGHTS_FILE}: "
            "convert them to safetensors"
        )
    raise TensorError(f"{path} has no weights, expected {WEIGHTS_FILE} or {INDEX_FILE}")


def _sharded_tensors(path: Path) -> dict[str, StoredTensor]:
    weight_map = _read_object(path / INDEX_FILE, TensorError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TensorError(f"{INDEX_FILE} has no weight_map, expected tensor names and their shards")
    for shard in weight_map.values():
        # A plain name only: a path could lead out of the directory.
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise TensorError(f"{INDEX_FILE} names shard {shard!r}, expected a plain file name")
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise TensorError(
            f"{missing[0]} is missing: {len(shards) - len(missing)} shards found, "
            f"{len(shards)} expected by {INDEX_FILE}; download the model again"
        )
    headers = {shard: read_header(path / shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise TensorError(f"tensor {name} is not in {shard}, where {INDEX_FILE} says it is")
    return {name: headers[shard][name] for name, shard in weight_map.items()}


def _is_plain_name(name: str) -> bool:
    return name not in ("", "..") and Path(name).name == name and "\\" not in name


def _check_tensors(spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> None:
    # A tied head may be there again, and old checkpoints keep the rotary frequencies.
    relevant = {
        name: tensor
        for name, tensor in stored.items()
        if not name.endswith("rotary_emb.inv_freq")
        and not (spec.tied_head and name == "lm_head.weight")
    }
    expected = {hf_name(tensor): tensor for tensor in all_tensors(spec)}
    check_tensors(expected, relevant, _DTYPES, "config.json")


def _read_file(path: Path) -> bytes:
    with opened(path) as file:
        return file.read()


def _read_object(path: Path, error_class: type[LoopError]) -> dict[str, object]:
    try:
        document = json.loads(_read_file(path))
    except (ValueError, RecursionError) as error:
        raise error_class(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise error_class(f"{path.name} is not a JSON object")
    return document
