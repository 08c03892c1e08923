"""What a run takes, by holder, before anything is reserved: all in memory, or streamed.

Sizes come from the records of an artefact, or of one that is only planned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from loop_singular_bit.budget import Ledger
from loop_singular_bit.container import PAGE_BYTES, Record, RecordPlan
from loop_singular_bit.engine.draft import draft_bytes
from loop_singular_bit.engine.kv import KV_BITS_DEFAULT, attention_bytes, cache_bytes
from loop_singular_bit.engine.ring import SLOTS_MIN
from loop_singular_bit.engine.rows_on_disk import KINDS as ROW_KINDS
from loop_singular_bit.engine.spill import spill_bytes
from loop_singular_bit.engine.stream import cut, streamed_extents
from loop_singular_bit.engine.workspace import head_bytes, workspace_bytes
from loop_singular_bit.models.spec import ModelSpec

# Peak resident sets of fresh processes on Linux x86-64 with Python 3.11: interpreter, numpy
# and this package after the first tokens 47 MB, chat template and command line 7 MB more; of
# tokenizers of 32000 to 151936 tokens 340 to 400 bytes a token stay, of 810 to 870 while they are
# read.
PROCESS_BYTES = 54_000_000
TOKENIZER_BYTES_PER_TOKEN = 450
READING_BYTES_PER_TOKEN = 900
EXTENT_BYTES = 1000  # of the objects that say where an extent lies

# Rows of one sweep, best first: a weight is read and decoded once for all.
SWEEP_ROWS = (256, 192, 128, 96, 64, 48, 32, 16)
HEAD_ROWS_MAX = 16  # rows whose logits are computed together
SLOTS_MAX = 6
PLANES_PER_BYTE = 4  # of decoded weights


@dataclass(frozen=True)
class Setting:
    """What is asked of a run: sequences of `context` tokens each, bits of what the cache holds,
    and whether planes are decoded once and for all."""

    context: int
    sequences: int = 1
    kv_bits: str = KV_BITS_DEFAULT
    threads: int = 1
    unpack: bool = False


@dataclass(frozen=True)
class RunPlan:
    """rows: of one sweep. slots, pinned: of the ring; none where everything is in memory.
    sweep_bytes: read from disk for each sweep of the layers and the head.
    spilled: layers whose keys and values are on disk."""

    ledger: Ledger
    rows: int
    slots: int = 0
    pinned: frozenset[int] = frozenset()
    sweep_bytes: int = 0
    spilled: int = 0

    @property
    def streamed(self) -> bool:
        return self.slots > 0


def as_plans(records: Iterable[Record]) -> list[RecordPlan]:
    """Records of a file as those of a plan."""
    return [
        RecordPlan(r.name, r.kind, r.attributes, {e.name: e.size_bytes for e in r.extents})
        for r in records
    ]


def kept_bytes(record: RecordPlan) -> int:
    """What of a record stays in memory when its matrix streams, as float32."""
    stored = record.extents
    if record.kind == "vector":
        return stored["data"] * (1 if record.attributes["dtype"] == "f32" else 2)
    if record.kind == "input":
        return 4 * stored["scale"]  # the scale, and the scale with its signs
    kept = 2 * stored["scale"] if record.kind == "planes" else 0
    if record.name == "embed" and record.kind not in ROW_KINDS:
        return sum(stored.values())
    if record.name == "embed":
        kept += sum(size for name, size in stored.items() if name.startswith("outlier"))
    return kept


def span_bytes(spec: ModelSpec, records: Sequence[RecordPlan]) -> list[int]:
    """Bytes of every span of a sweep: the layers', then the head's."""

    def run_of(record: RecordPlan) -> str:
        return ".".join(record.name.split(".")[:2])

    matrices = [r for r in records if r.kind not in ("vector", "input")]
    layers = (r for r in matrices if r.name.startswith("layers."))
    runs = [list(run) for _, run in groupby(layers, run_of)]
    head = "embed" if spec.tied_head else "head"
    spans: list[int] = []
    for run in [*runs, [r for r in matrices if r.name == head]]:
        sizes = [
            sum(record.extents[name] for name in group)
            for record in run
            for group in streamed_extents(record.kind, record.extents)
        ]
        spans += [sum(sizes[start:stop]) for start, stop in cut(sizes)]
    return spans


def activation_bytes(spec: ModelSpec, rows: int) -> int:
    """Bytes of the memory that the layers and, after them, the head work in."""
    return max(workspace_bytes(spec, rows), head_bytes(spec, min(rows, HEAD_ROWS_MAX)))


def _fixed(spec: ModelSpec, setting: Setting, extents: int, rows: int, spilled: int = 0) -> Ledger:
    ledger = Ledger()
    ledger.reserve("process", PROCESS_BYTES + TOKENIZER_BYTES_PER_TOKEN * spec.vocab)
    ledger.reserve("file index", EXTENT_BYTES * extents)
    cache = (spec, setting.sequences, setting.context, setting.kv_bits)
    ledger.reserve("kv", cache_bytes(*cache, layers=spec.layers - spilled))
    if spilled:
        ledger.reserve("kv on disk: buffers", spill_bytes(*cache, spilled))
    ledger.reserve("attention", attention_bytes(spec, setting.context, setting.threads))
    ledger.reserve("activations", activation_bytes(spec, rows))
    ledger.reserve("drafts", setting.sequences * draft_bytes(spec.vocab, setting.context))
    ledger.reserve("rotary", 4 * setting.context * spec.head_dim)
    return ledger


def _with_opening(spec: ModelSpec, ledger: Ledger) -> Ledger:
    """Reading the tokenizer, before all else is there, may take more than all of it."""
    opening = PROCESS_BYTES + READING_BYTES_PER_TOKEN * spec.vocab
    ledger.reserve("opening", max(0, opening - ledger.total_bytes))
    return ledger


def resident_plan(spec: ModelSpec, records: Sequence[RecordPlan], setting: Setting) -> RunPlan:
    """Everything in memory."""
    rows = min(SWEEP_ROWS[0], setting.context)
    ledger = _fixed(spec, setting, sum(len(r.extents) for r in records), rows)
    stored = sum(sum(r.extents.values()) for r in records)
    if setting.unpack:
        stored = _unpacked_bytes(spec, records)
    ledger.reserve("weights", stored + sum(map(kept_bytes, records)))
    return RunPlan(_with_opening(spec, ledger), rows)


def product_bytes(record: RecordPlan, unpacked: bool) -> int:
    """Bytes in memory of what a record's products read."""
    stored = sum(record.extents.values())
    if record.kind != "planes" or not unpacked:
        return stored
    planes = int(record.attributes["planes"])
    groups = -(-planes // PLANES_PER_BYTE)
    return stored + _tile_bytes(record) * (8 * groups - planes) // planes


def _tile_bytes(record: RecordPlan) -> int:
    return sum(size for name, size in record.extents.items() if name.startswith("tiles"))


def _unpacked_bytes(spec: ModelSpec, records: Sequence[RecordPlan]) -> int:
    """Bytes of every record when the planes of products are decoded, and of the largest before; an
    embedding keeps its planes, for rows that are looked up."""
    total = sum(product_bytes(r, r.name != "embed" or spec.tied_head) for r in records)
    embedding = sum(_tile_bytes(r) for r in records if r.name == "embed" and spec.tied_head)
    return total + embedding + max(map(_tile_bytes, records))


def streamed_plan(
    spec: ModelSpec, records: Sequence[RecordPlan], setting: Setting, ram_bytes: int | None = None
) -> RunPlan:
    """Layers and head streamed: as many rows as fit, then slots, then spans that stay. Keys and
    values of some layers are on disk only if that is what it takes. Without a budget the least
    that runs with all of them in memory. The plan may still not fit: see Ledger.require."""
    every = [min(rows, setting.context) for rows in SWEEP_ROWS]
    plans = [_with_ring(spec, records, setting, rows, ram_bytes or 0) for rows in every]
    if ram_bytes is None:
        return plans[-1]
    plans += [_with_spill(spec, records, setting, rows, ram_bytes) for rows in every]
    fitting = (p for p in plans if p.ledger.total_bytes <= ram_bytes)
    return next(fitting, min(plans, key=lambda p: p.ledger.total_bytes))


def _with_spill(
    spec: ModelSpec, records: Sequence[RecordPlan], setting: Setting, rows: int, ram_bytes: int
) -> RunPlan:
    """Keys and values of as many layers in memory as fit, of one fewer than all at the most."""
    least = _with_ring(spec, records, setting, rows, 0, spec.layers)
    layer = cache_bytes(spec, setting.sequences, setting.context, setting.kv_bits, layers=1)
    needed = least.ledger.total_bytes - least.ledger.entries["opening"]  # which is over by then
    kept = min(max(ram_bytes - needed, 0) // layer, spec.layers - 1)
    return _with_ring(spec, records, setting, rows, ram_bytes, spec.layers - kept)


def _with_ring(
    spec: ModelSpec, records: Sequence[RecordPlan], setting: Setting, rows: int, ram_bytes: int,
    spilled: int = 0,
) -> RunPlan:  # fmt: skip
    ledger = _fixed(spec, setting, sum(len(r.extents) for r in records), rows, spilled)
    ledger.reserve("small weights", sum(map(kept_bytes, records)))
    spans = span_bytes(spec, records)
    slot = max(spans) + 3 * PAGE_BYTES  # what lies between extents, and both ends
    left = ram_bytes - ledger.total_bytes
    slots = min(max(left // slot, SLOTS_MIN), SLOTS_MAX)
    pinned, pinned_bytes = spread([size + 3 * PAGE_BYTES for size in spans], left - slots * slot)
    ledger.reserve("slots", slots * slot)
    ledger.reserve("weights that stay", pinned_bytes)
    read = sum(size for number, size in enumerate(spans) if number not in pinned)
    return RunPlan(_with_opening(spec, ledger), rows, slots, pinned, read, spilled)


def spread(sizes: Sequence[int], most: int) -> tuple[frozenset[int], int]:
    """Which of consecutive items stay, evenly among the bytes of all, and then whatever still fits;
    and their bytes: at most `most`."""
    chosen: set[int] = set()
    kept, passed, total = 0, 0, max(sum(sizes), 1)
    for number, size in enumerate(sizes):
        passed += size
        if (kept + size) * total <= most * passed:
            chosen.add(number)
            kept += size
    for number, size in enumerate(sizes):
        if number not in chosen and kept + size <= most:
            chosen.add(number)
            kept += size
    return frozenset(chosen), kept


def best_plan(
    spec: ModelSpec, records: Sequence[RecordPlan], setting: Setting, ram_bytes: int | None
) -> RunPlan:
    """In memory where that fits the budget, else streamed. Raises BudgetError with the table."""
    resident = resident_plan(spec, records, setting)
    if ram_bytes is None or resident.ledger.total_bytes <= ram_bytes:
        return resident
    if setting.unpack:
        resident.ledger.require(ram_bytes, "leave out --unpack or raise --ram-mb")
    streamed = streamed_plan(spec, records, setting, ram_bytes)
    streamed.ledger.require(ram_bytes, f"lower --context {setting.context} or raise --ram-mb")
    return streamed
