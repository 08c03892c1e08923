"""Memory that running and making an artefact take, predicted by holder."""

from __future__ import annotations

from loop_singular_bit.budget import Ledger
from loop_singular_bit.codec.codecs import STORED_BYTES
from loop_singular_bit.codec.planes import CHUNK_ROWS
from loop_singular_bit.compress.allocate import Plan, record_plans
from loop_singular_bit.compress.forward import ROWS_MAX
from loop_singular_bit.compress.guidance import HEAD_ROWS, LOGIT_ROWS
from loop_singular_bit.compress.guidance import ROWS_MAX as GRADIENT_ROWS
from loop_singular_bit.compress.original import resident_layers
from loop_singular_bit.compress.pipeline import SEQUENCE_TOKENS
from loop_singular_bit.compress.source import Source
from loop_singular_bit.container import RecordPlan
from loop_singular_bit.engine.kv import cache_bytes
from loop_singular_bit.engine.memory_plan import (
    PROCESS_BYTES,
    READING_BYTES_PER_TOKEN,
    Setting,
    resident_plan,
    streamed_plan,
)
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.engine.workspace import workspace_bytes
from loop_singular_bit.models.spec import ModelSpec, Role, all_tensors, layer_tensors


def planned_records(source: Source, plan: Plan) -> list[RecordPlan]:
    """The records that the artefact would have."""
    dtypes = {t.name: source.dtype(t) for t in all_tensors(source.spec)}
    return record_plans(source.spec, dtypes, plan.codecs)


def run_ram(
    source: Source, plan: Plan, context: int, ram_bytes: int | None = None
) -> tuple[Ledger, Ledger]:
    """Memory of a run with one sequence: everything in memory, and streamed within a budget (None:
    the least that runs)."""
    spec, records = source.spec, planned_records(source, plan)
    setting = Setting(context, threads=usable_cores())
    return (
        resident_plan(spec, records, setting).ledger,
        streamed_plan(spec, records, setting, ram_bytes).ledger,
    )


def compress_ram(source: Source, tokens: int) -> Ledger:
    """Peak memory of a compression: the worst moment of each holder, added up."""
    spec = source.spec
    ledger = Ledger()
    ledger.reserve("process", PROCESS_BYTES + 2 * READING_BYTES_PER_TOKEN * spec.vocab)
    layer = sum(t.count * STORED_BYTES[source.dtype(t)] for t in layer_tensors(spec, 0))
    top = [t for t in all_tensors(spec) if t.role in (Role.EMBEDDING, Role.HEAD)]
    stored = sum(t.count * STORED_BYTES[source.dtype(t)] for t in top)
    ledger.reserve("original weights", max(1, resident_layers(source)) * layer + stored)
    ledger.reserve("hidden states", 4 * tokens * spec.hidden)
    ledger.reserve("activations", workspace_bytes(spec, ROWS_MAX) + cache_bytes(spec, 1, ROWS_MAX))
    # Guided, each matrix has moments of its own.
    squares = 5 * spec.hidden**2 + spec.query_width**2 + spec.intermediate**2
    ledger.reserve("statistics", 4 * squares)
    ledger.reserve("gradients", _gradient_bytes(spec, tokens))
    widest = max(spec.hidden, spec.query_width, spec.intermediate)
    # The Hessian in the rotated basis, its factor, the factor's flipped copy, and the panels; the
    # factor is float64 up to 4096 columns (codec/feedback.py).
    ledger.reserve("error feedback", (24 if widest <= 4096 else 16) * widest**2)
    # The whole matrix as float32 with its outlier mask; choosing outliers takes two copies more.
    linear = max(t.count for t in layer_tensors(spec, 0))
    ledger.reserve("matrix being encoded", max(5 * max(t.count for t in top), 13 * linear))
    # Its rows in pieces: rotated, target, decoded, refitted and restored. And the planes made.
    ledger.reserve("rows being encoded", 34 * CHUNK_ROWS * widest + max(t.count for t in top))
    return ledger


def _gradient_bytes(spec: ModelSpec, tokens: int) -> int:
    """The backward sweep: a layer in float32, what it keeps of a step's rows, the gradient of all
    tokens; or some of the head's rows and logits."""
    layer = sum(t.count for t in layer_tensors(spec, 0))
    row = 12 * spec.hidden + 8 * spec.query_width + 8 * spec.intermediate
    shares = 4 * spec.heads * SEQUENCE_TOKENS
    head = HEAD_ROWS * spec.hidden + LOGIT_ROWS * spec.vocab
    head += LOGIT_ROWS * spec.vocab  # a product of all logits before it is the next array
    return 4 * (max(layer + GRADIENT_ROWS * (row + shares), head) + tokens * spec.hidden)
