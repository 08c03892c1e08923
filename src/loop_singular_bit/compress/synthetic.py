"""An artefact with the shapes of a real network and random weights, for measuring memory and speed.

Written record by record: a 3 GB file takes as much time as the disk and the memory of one matrix.
It says nothing about quality, and says so: in its index, its report and its card.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.codec.numbers import from_bf16, to_bf16
from loop_singular_bit.codec.records import Payload, pack_transform, pack_vector, pack_weight
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.codec.tables import native_tables
from loop_singular_bit.codec.tiling import Tiling
from loop_singular_bit.codec.weights import PlanesWeight
from loop_singular_bit.compress import allocate
from loop_singular_bit.compress.allocate import CodecOptions, Plan, record_plans
from loop_singular_bit.compress.card import synthetic_card
from loop_singular_bit.compress.compressor import CARD_FILE, REPORT_FILE, artefact_size_bytes
from loop_singular_bit.compress.output import new_directory
from loop_singular_bit.compress.pipeline import Progress, silent
from loop_singular_bit.compress.shapes import BOS_ID, EOS_ID, known_shape
from loop_singular_bit.compress.synthetic_tokenizer import SPECIAL_TOKENS, synthetic_tokenizer
from loop_singular_bit.container.layout import RecordPlan
from loop_singular_bit.container.writer import ContainerWriter
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.errors import BudgetError, FormatError, UsageError
from loop_singular_bit.measure.size import size_facts
from loop_singular_bit.models.families import spec_from_config
from loop_singular_bit.models.spec import ModelSpec, all_tensors, parameter_count

Floats = npt.NDArray[np.float32]

DTYPE = "bf16"
BITS_MIN, BITS_MAX = 1.0, 8.0
SPREAD = 0.1  # relative deviation of norm gains and scales around their mean
SAMPLE_ROWS = 32  # rows decoded to learn how large random planes are
TOP_GAIN = 2.0  # deviation of the logits: neither flat nor one token for ever


@dataclass(frozen=True)
class SyntheticOptions:
    """Shape by name, bits a weight with every byte of the directory counted, seed of all draws."""

    shape: str
    bits_per_weight: float
    seed: int = 0

    def __post_init__(self) -> None:
        known_shape(self.shape)
        if not BITS_MIN <= self.bits_per_weight <= BITS_MAX:
            raise UsageError(
                f"--bpw {self.bits_per_weight:g}: must be {BITS_MIN:g} to {BITS_MAX:g}"
            )
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"--seed {self.seed}: must be 0..{(1 << 32) - 1}")


def write_synthetic(
    options: SyntheticOptions, directory: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Writes the artefact into a new `directory`; returns what report.json holds.

    Raises BudgetError when the bits asked for are fewer than one plane takes.
    """
    started = time.monotonic()
    spec = spec_from_config(known_shape(options.shape).config())
    files = companion_files(options)
    plan, records = _planned(spec, options, sum(map(len, files.values())))
    with new_directory(directory) as partial:
        expected = plan.size_bytes - sum(map(len, files.values()))
        _write_weights(partial / WEIGHTS_FILE, records, options, expected, progress)
        for name, data in files.items():
            (partial / name).write_bytes(data)
        size = artefact_size_bytes(partial)
        if size != plan.size_bytes:
            raise FormatError(f"the artefact has {size} bytes, planned were {plan.size_bytes}")
        report = _report(options, directory, plan, size_facts(size, parameter_count(spec)))
        report["seconds"] = time.monotonic() - started
        (partial / REPORT_FILE).write_text(json.dumps(report, indent=1), "utf-8")
        (partial / CARD_FILE).write_text(synthetic_card(report), "utf-8")
    return report


def _report(
    options: SyntheticOptions, directory: Path, plan: Plan, size: Mapping[str, int | float]
) -> dict[str, Any]:
    return {
        "artefact": str(directory),
        "synthetic": options.shape,
        "seed": options.seed,
        **size,
        "bits_per_weight_asked": options.bits_per_weight,
        "planes": {str(k): v for k, v in sorted(plan.planes.items())},
    }


def companion_files(options: SyntheticOptions) -> dict[str, bytes]:
    """config.json, generation_config.json and the tokenizer, by file name."""
    config = known_shape(options.shape).config()
    naming = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": SPECIAL_TOKENS[0],
        "bos_token": SPECIAL_TOKENS[BOS_ID], "eos_token": SPECIAL_TOKENS[EOS_ID],
    }  # fmt: skip
    documents: dict[str, object] = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID},
        "tokenizer_config.json": naming,
    }
    found = {name: json.dumps(each, indent=1).encode() for name, each in documents.items()}
    vocab = known_shape(options.shape).vocab
    return found | {"tokenizer.json": synthetic_tokenizer(vocab).encode()}


def synthetic_meta(options: SyntheticOptions) -> dict[str, Any]:
    """The index's object for the layers above: a real artefact's, and what this one is."""
    return allocate.file_meta(options.seed) | {"synthetic": options.shape}


def _planned(
    spec: ModelSpec, options: SyntheticOptions, companion_bytes: int
) -> tuple[Plan, list[RecordPlan]]:
    """The richest plan within the bits asked for, and its records in file order."""
    dtypes = {tensor.name: DTYPE for tensor in all_tensors(spec)}
    budget = int(options.bits_per_weight * parameter_count(spec) / 8)
    # The planner counts the index of a real artefact; ours says a little more, at the file's end.
    labels = (synthetic_meta(options), allocate.file_meta(options.seed))
    longer = len(json.dumps(labels[0], separators=(",", ":")))
    longer -= len(json.dumps(labels[1], separators=(",", ":")))
    try:
        plan = allocate.plan(
            spec, dtypes, companion_bytes + longer, CodecOptions(), budget, options.seed
        )
    except BudgetError as error:
        raise BudgetError(f"--bpw {options.bits_per_weight:g} is too little: {error}") from error
    return plan, record_plans(spec, dtypes, plan.codecs, options.seed)


def _write_weights(
    path: Path,
    records: list[RecordPlan],
    options: SyntheticOptions,
    expected_bytes: int,
    progress: Progress,
) -> None:
    transforms: dict[str, InputTransform] = {}
    done, total = 0, sum(sum(record.extents.values()) for record in records)
    with ContainerWriter(path, synthetic_meta(options), expected_bytes=expected_bytes) as writer:
        for number, record in enumerate(records):
            rng = np.random.Generator(np.random.SFC64([options.seed, number]))
            payload = _PAYLOADS[record.kind](record, rng, transforms)
            if record.begins_run:
                writer.begin_run()
            writer.add(record.name, payload.kind, payload.attributes, payload.extents)
            done += sum(record.extents.values())
            progress("write", done, total)


def _vector(
    record: RecordPlan, rng: np.random.Generator, transforms: dict[str, InputTransform]
) -> Payload:
    """A norm gain."""
    return pack_vector(to_bf16(_around_one(rng, int(record.attributes["count"]))), DTYPE)


def _input(
    record: RecordPlan, rng: np.random.Generator, transforms: dict[str, InputTransform]
) -> Payload:
    """A rotation, kept for the matrices that read it."""
    scale = from_bf16(to_bf16(_around_one(rng, int(record.attributes["cols"]))))
    transforms[record.name] = InputTransform(scale, int(record.attributes["seed"]))
    return pack_transform(transforms[record.name])


def _planes(
    record: RecordPlan, rng: np.random.Generator, transforms: dict[str, InputTransform]
) -> Payload:
    """Random bits: every tile is a valid one, and the levels of random windows look Gaussian."""
    get = record.attributes
    rows, cols, planes, tile_rows, extent_rows, window = (
        int(get[key]) for key in ("rows", "cols", "planes", "tile_rows", "extent_rows", "window")
    )
    tiling = Tiling(rows, cols, planes, tile_rows, extent_rows)
    extents = tuple(rng.integers(0, 256, size, np.uint8) for _, size in tiling.extent_bytes())
    gain = TOP_GAIN if record.name in ("embed", "head") else 1.0
    unit = gain / (np.sqrt(cols) * _integer_deviation(window, planes))
    scale = from_bf16(to_bf16(_around_one(rng, rows) * np.float32(unit)))
    transform = transforms[str(get["input"])]
    weight = PlanesWeight(tiling, window, extents, scale, transform)
    return pack_weight(weight, str(get["input"]))


_PAYLOADS: Mapping[
    str, Callable[[RecordPlan, np.random.Generator, dict[str, InputTransform]], Payload]
] = {"vector": _vector, "input": _input, "planes": _planes}


def _around_one(rng: np.random.Generator, count: int) -> Floats:
    """Positive numbers near 1."""
    spread = SPREAD * 3**0.5  # a uniform distribution's half width for that deviation
    return rng.uniform(1 - spread, 1 + spread, count).astype(np.float32)


def _integer_deviation(window: int, planes: int) -> float:
    """Standard deviation of the integer weights that random streams decode to."""
    rng = np.random.default_rng(0)
    cols = 1024
    nbytes = planes * _native.plane_bytes(SAMPLE_ROWS, cols)
    extents = [rng.integers(0, 256, nbytes, np.uint8)]
    out = np.empty((SAMPLE_ROWS, cols), np.int16)
    tables = native_tables(window, planes)
    _native.planes_decode(extents, SAMPLE_ROWS, cols, SAMPLE_ROWS, tables, 0, out)
    return float(out.std())
