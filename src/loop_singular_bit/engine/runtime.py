"""Opening an artefact: the memory plan first, then the weights, then sequences that advance."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.budget import Ledger
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.artefact import (
    WEIGHTS_FILE,
    ArtefactNetwork,
    ResidentNetwork,
    StreamedNetwork,
    check_records,
    layer_sizes,
    read_spec,
)
from loop_singular_bit.engine.draft import DRAFT_MAX, draft_bytes
from loop_singular_bit.engine.kv import KVCache, cache_bytes
from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.sweep import Batch, Head, Sweep, head_bytes, workspace_bytes
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import InputRefusedError, UsageError
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]

CONTEXT_DEFAULT = 2048
PREFILL_ROWS_MAX = 256  # rows of one sweep: enough to spread the decoding of a weight
HEAD_ROWS_MAX = 16  # rows whose logits are computed together
# Peak resident sets of fresh processes on Linux x86-64 with Python 3.11: interpreter, numpy
# and this package after the first tokens 47 MB, chat template and command line 7 MB more; the
# tokenizer of 49152 tokens 35 MB that later allocations do not take over.
PROCESS_BYTES = 54_000_000
TOKENIZER_BYTES_PER_TOKEN = 800


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """A network with its cache and buffers: rows in, logits out. Knows no text."""

    def __init__(self, network: Network, slots: int, context: int, rows_max: int) -> None:
        self.network = network
        self.context = context
        self.cache = KVCache(network.spec, slots, context)
        rotary = rotary_table(network.spec, self.cache.context)
        self._sweep = Sweep(network, self.cache, rotary, rows_max)
        self._head = Head(network, min(HEAD_ROWS_MAX, rows_max))

    def hidden(self, ids: Sequence[int], slot: int, position: int) -> Floats:
        """Final hidden states [N, hidden] of N more tokens of a sequence, in sweeps of rows_max."""
        parts = []
        for start in range(0, len(ids), self._sweep.rows_max):
            part = np.asarray(ids[start : start + self._sweep.rows_max], np.int64)
            places = np.arange(len(part), dtype=np.int32) + np.int32(position + start)
            parts.append(
                self._sweep.hidden(Batch(part, np.full(len(part), slot, np.int32), places))
            )
        return np.concatenate(parts)

    def logits(self, x: Floats) -> Floats:
        """float32 [N, vocab] of hidden states [N, hidden]."""
        return self._head.logits(x)


class SlotSession:
    """One sequence in one slot of an engine."""

    def __init__(self, engine: Engine, slot: int) -> None:
        self._engine, self._slot, self._position = engine, slot, 0
        self._looked_at = 0  # tokens in the cache behind the position

    @property
    def position(self) -> int:
        return self._position

    @property
    def context(self) -> int:
        return self._engine.context

    def advance(self, ids: Sequence[int]) -> Floats:
        """Appends ids; logits [vocab] after the last one."""
        x = self._run(ids)
        self._position += len(ids)
        last: Floats = self._engine.logits(x[-1:])[0]
        return last

    def look_ahead(self, ids: Sequence[int]) -> Floats:
        """Logits [N, vocab] after each of at most DRAFT_MAX + 1 ids, which `accept` appends."""
        if len(ids) > DRAFT_MAX + 1:
            raise InputRefusedError(f"cannot look at {len(ids)} tokens: at most {DRAFT_MAX + 1}")
        x = self._run(ids)
        self._looked_at = len(ids)
        return self._engine.logits(x)

    def accept(self, count: int) -> None:
        """Appends the first `count` ids looked at and not yet accepted."""
        if not 0 <= count <= self._looked_at:
            raise InputRefusedError(f"cannot accept {count} tokens: {self._looked_at} looked at")
        self._position += count
        self._looked_at -= count

    def _run(self, ids: Sequence[int]) -> Floats:
        """Hidden states [N, hidden] of ids behind the position."""
        vocab = self._engine.network.spec.vocab
        if not ids or min(ids) < 0 or max(ids) >= vocab:
            raise InputRefusedError(f"token ids must be at least one, each in 0..{vocab - 1}")
        if self._position + len(ids) > self.context:
            raise InputRefusedError(
                f"{self._position} + {len(ids)} tokens do not fit a context of {self.context}"
            )
        self._looked_at = 0
        return self._engine.hidden(ids, self._slot, self._position)

    def rewind(self, position: int) -> None:
        """Forgets everything from `position` on."""
        if not 0 <= position <= self._position:
            raise InputRefusedError(f"cannot rewind to {position}: position is {self._position}")
        self._position, self._looked_at = position, 0


class Model:
    """An opened artefact: text, engine and free slots."""

    def __init__(
        self, name: str, text: Text, engine: Engine, slots: int, ledger: Ledger, reader_backend: str
    ) -> None:
        self.name, self.text, self.engine, self.ledger = name, text, engine, ledger
        self.reader_backend = reader_backend
        self._free = list(range(slots))

    @property
    def context(self) -> int:
        return self.engine.context

    @property
    def streamed(self) -> bool:
        """Whether a sweep reads layers from disk."""
        return not self.engine.network.resident

    @contextmanager
    def session(self) -> Iterator[SlotSession]:
        """Takes a slot for one sequence; raises InputRefusedError when all are taken."""
        if not self._free:
            raise InputRefusedError("every sequence slot is taken: open with more sequences")
        slot = self._free.pop()
        try:
            yield SlotSession(self.engine, slot)
        finally:
            self._free.append(slot)


def choose_context(spec: ModelSpec, context: int | None) -> int:
    """The context to reserve. Raises UsageError beyond what the model was made for."""
    if context is None:
        return min(CONTEXT_DEFAULT, spec.context_max)
    if not 1 <= context <= spec.context_max:
        raise UsageError(f"--context {context}: must be 1..{spec.context_max} for this model")
    return context


def memory_plan(
    spec: ModelSpec,
    layer_bytes: Sequence[int],
    other_bytes: int,
    context: int,
    sequences: int,
    streamed: bool,
) -> Ledger:
    """What running an artefact takes, by holder.

    layer_bytes  extents of every layer; other_bytes: of embedding, head and final norm
    `process` is what a Python with the engine and this model's tokenizer holds before the weights.
    """
    ledger = Ledger()
    ledger.reserve("process", PROCESS_BYTES + TOKENIZER_BYTES_PER_TOKEN * spec.vocab)
    ledger.reserve("embedding and head", other_bytes)
    # Streaming holds the layer in use, the one ahead of it, and the buffer it is read into.
    layers = 3 * max(layer_bytes) if streamed else sum(layer_bytes) + max(layer_bytes)
    ledger.reserve("layers", layers)
    ledger.reserve("kv", cache_bytes(spec, sequences, context))
    rows = min(PREFILL_ROWS_MAX, context)
    ledger.reserve(
        "activations", workspace_bytes(spec, rows) + head_bytes(spec, min(rows, HEAD_ROWS_MAX))
    )
    ledger.reserve("drafts", sequences * draft_bytes(spec.vocab, context))
    ledger.reserve("rotary", 4 * context * spec.head_dim)
    return ledger


def _open_network(
    directory: Path, spec: ModelSpec, context: int, sequences: int, ram_bytes: int | None
) -> tuple[ArtefactNetwork, Ledger]:
    """In memory when that fits the budget, streamed otherwise."""
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        check_records(reader, spec)
        sizes = layer_sizes(reader, spec)
        other = sum(e.size_bytes for r in reader.records for e in r.extents) - sum(sizes)
    resident = memory_plan(spec, sizes, other, context, sequences, streamed=False)
    streamed = memory_plan(spec, sizes, other, context, sequences, streamed=True)
    if ram_bytes is None or resident.total_bytes <= ram_bytes:
        return ResidentNetwork(directory), resident
    streamed.require(ram_bytes, f"lower --context {context} or raise --ram-mb")
    return StreamedNetwork(directory), streamed


@contextmanager
def open_model(
    directory: Path,
    *,
    ram_bytes: int | None = None,
    context: int | None = None,
    threads: int | None = None,
    sequences: int = 1,
) -> Iterator[Model]:
    """Opens an artefact for `sequences` sequences of `context` tokens within `ram_bytes`.

    Raises BudgetError with the memory table when the budget cannot hold it.
    """
    _native.set_threads(usable_cores() if threads is None else threads)
    spec = read_spec(directory)
    text = Text.open(directory)
    positions = choose_context(spec, context)
    network, ledger = _open_network(directory, spec, positions, sequences, ram_bytes)
    try:
        engine = Engine(network, sequences, positions, min(PREFILL_ROWS_MAX, positions))
        backend = network.reader.backend.value
        yield Model(directory.resolve().name, text, engine, sequences, ledger, backend)
    finally:
        network.close()
