"""Tokens a second of a run, from its plan and a moment's look at the disk and the processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loop_singular_bit import _native
from loop_singular_bit.container import BLOCK_BYTES, RecordPlan
from loop_singular_bit.engine.memory_plan import RunPlan
from loop_singular_bit.measure.disk import probe_disk
from loop_singular_bit.measure.speed import best_rate, kernel_rate, memory_rate

VERIFIED_BYTES = 64 * BLOCK_BYTES  # far beyond a second-level cache, as blocks from a disk are


@dataclass(frozen=True)
class Prediction:
    """Of one token generated without a draft.

    disk_bytes_per_second  None where everything is in memory
    sweep_bytes            read from disk for a token
    memory_seconds         of reading its weights from memory, all threads
    kernel_seconds         of its planes at the speed of the kernel in cache, all threads
    verify_seconds         of the checksums of sweep_bytes, all threads
    seconds                the disk's, the memory's, or those of kernel and checksums, whichever
                           takes longest
    """

    disk_bytes_per_second: float | None
    sweep_bytes: int
    memory_seconds: float
    kernel_seconds: float
    verify_seconds: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return 1 / self.seconds


def predict(records: Sequence[RecordPlan], plan: RunPlan, path: Path, threads: int) -> Prediction:
    """Of a run by `plan`. path: a file on the disk that would be read, best the artefact's."""
    _native.set_threads(threads)
    kernel, memory = kernel_seconds(records), _product_bytes(records) / memory_rate()
    disk, disk_seconds, verify = None, 0.0, 0.0
    if plan.streamed:
        disk = probe_disk(path)
        disk_seconds = plan.sweep_bytes / disk
        verify = plan.sweep_bytes / (threads * _checksum_rate())
    seconds = max(disk_seconds, memory, kernel + verify)
    return Prediction(disk, plan.sweep_bytes, memory, kernel, verify, seconds)


def _multiplied(records: Sequence[RecordPlan]) -> Sequence[RecordPlan]:
    """Records of matrices that a token goes through: not an embedding that is only looked up."""
    untied = any(record.name == "head" for record in records)
    skipped = ("vector", "input")
    return [r for r in records if r.kind not in skipped and not (untied and r.name == "embed")]


def _product_bytes(records: Sequence[RecordPlan]) -> int:
    return sum(sum(record.extents.values()) for record in _multiplied(records))


def _checksum_rate() -> float:
    """Bytes a second that one thread verifies, block by block."""
    blocks = np.zeros((VERIFIED_BYTES // BLOCK_BYTES, BLOCK_BYTES), np.uint8)
    return best_rate(lambda: [_native.crc32c(block.data) for block in blocks], VERIFIED_BYTES, 0.1)


def kernel_seconds(records: Sequence[RecordPlan]) -> float:
    """Of one token through every matrix of planes at the speed of the kernel in cache."""
    weights: dict[tuple[int, int], int] = {}
    for record in _multiplied(records):
        if record.kind == "planes":
            get = record.attributes
            key = int(get["planes"]), int(get["window"])
            weights[key] = weights.get(key, 0) + int(get["rows"]) * int(get["cols"])
    return sum(count / kernel_rate(*key) for key, count in weights.items())
