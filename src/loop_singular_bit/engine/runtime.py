"""Opening an artefact: the memory plan first, then the weights, then sequences that advance."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit import _native
from loop_singular_bit.budget import Ledger
from loop_singular_bit.container import AlignedBuffer, ContainerReader
from loop_singular_bit.engine.artefact import (
    WEIGHTS_FILE,
    ArtefactNetwork,
    ResidentNetwork,
    StreamedNetwork,
    check_records,
    read_spec,
)
from loop_singular_bit.engine.draft import DRAFT_MAX
from loop_singular_bit.engine.kv import KV_BITS_DEFAULT, KVCache
from loop_singular_bit.engine.memory_plan import (
    HEAD_ROWS_MAX,
    RunPlan,
    Setting,
    activation_bytes,
    as_plans,
    best_plan,
)
from loop_singular_bit.engine.network import Network
from loop_singular_bit.engine.rope import rotary_table
from loop_singular_bit.engine.spill import SpilledCache
from loop_singular_bit.engine.sweep import Batch, Head, Sweep
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import InputRefusedError, UsageError
from loop_singular_bit.models.spec import ModelSpec

Floats = npt.NDArray[np.float32]

CONTEXT_DEFAULT = 2048


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Engine:
    """A network with its cache and buffers: rows in, logits out. Knows no text."""

    def __init__(
        self, network: Network, slots: int, context: int, rows_max: int, kv_bits: str = "16",
        cache: KVCache | None = None,
    ) -> None:  # fmt: skip
        """cache: where it is not all in memory; given instead of `slots` and `kv_bits`."""
        self.network = network
        self.context = context
        self.cache = cache or KVCache(network.spec, slots, context, bits=kv_bits)
        rotary = rotary_table(network.spec, self.cache.context)
        memory = AlignedBuffer(activation_bytes(network.spec, rows_max)).array
        self._sweep = Sweep(network, self.cache, rotary, rows_max, memory)
        self._head = Head(network, min(HEAD_ROWS_MAX, rows_max), memory)

    def hidden(self, ids: Sequence[int], slot: int, position: int) -> Floats:
        """Final hidden states [N, hidden] of N more tokens of a sequence, in sweeps of rows_max."""
        return np.concatenate([part.copy() for part in self._sweeps(ids, slot, position)])

    def last_hidden(self, ids: Sequence[int], slot: int, position: int) -> Floats:
        """The last of them [1, hidden], without keeping the others."""
        for part in self._sweeps(ids, slot, position):
            last = part[-1:]
        return last.copy()

    def _sweeps(self, ids: Sequence[int], slot: int, position: int) -> Iterator[Floats]:
        """Final hidden states sweep by sweep, each valid until the next."""
        for start in range(0, len(ids), self._sweep.rows_max):
            part = np.asarray(ids[start : start + self._sweep.rows_max], np.int64)
            places = np.arange(len(part), dtype=np.int32) + np.int32(position + start)
            batch = Batch(part, np.full(len(part), slot, np.int32), places)
            last = start + len(part) == len(ids)
            yield self._sweep.hidden(batch, head_follows=last)

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
        self._check(ids)
        x = self._engine.last_hidden(ids, self._slot, self._position)
        self._position += len(ids)
        last: Floats = self._engine.logits(x)[0]
        return last

    def look_ahead(self, ids: Sequence[int]) -> Floats:
        """Logits [N, vocab] after each of at most DRAFT_MAX + 1 ids, which `accept` appends."""
        if len(ids) > DRAFT_MAX + 1:
            raise InputRefusedError(f"cannot look at {len(ids)} tokens: at most {DRAFT_MAX + 1}")
        self._check(ids)
        x = self._engine.hidden(ids, self._slot, self._position)
        self._looked_at = len(ids)
        return self._engine.logits(x)

    def accept(self, count: int) -> None:
        """Appends the first `count` ids looked at and not yet accepted."""
        if not 0 <= count <= self._looked_at:
            raise InputRefusedError(f"cannot accept {count} tokens: {self._looked_at} looked at")
        self._position += count
        self._looked_at -= count

    def _check(self, ids: Sequence[int]) -> None:
        """Refuses ids that cannot follow; forgets what was looked at."""
        vocab = self._engine.network.spec.vocab
        if not ids or min(ids) < 0 or max(ids) >= vocab:
            raise InputRefusedError(f"token ids must be at least one, each in 0..{vocab - 1}")
        if self._position + len(ids) > self.context:
            raise InputRefusedError(
                f"{self._position} + {len(ids)} tokens do not fit a context of {self.context}"
            )
        self._looked_at = 0

    def rewind(self, position: int) -> None:
        """Forgets everything from `position` on."""
        if not 0 <= position <= self._position:
            raise InputRefusedError(f"cannot rewind to {position}: position is {self._position}")
        self._position, self._looked_at = position, 0


class Model:
    """An opened artefact: text, engine and free slots."""

    def __init__(
        self, name: str, text: Text, engine: Engine, network: ArtefactNetwork, plan: RunPlan
    ) -> None:
        self.name, self.text, self.engine, self.plan = name, text, engine, plan
        self.reader_backend = network.reader.backend.value
        self.read_through = network.read_through
        self.streamed = network.streamed
        self._free = list(range(engine.cache.slots))

    @property
    def ledger(self) -> Ledger:
        return self.plan.ledger

    @property
    def context(self) -> int:
        return self.engine.context

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


def plan_run(directory: Path, setting: Setting, ram_bytes: int | None) -> RunPlan:
    """What opening an artefact would reserve. Raises BudgetError when the budget cannot hold it."""
    spec = read_spec(directory)
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        check_records(reader, spec)
        return best_plan(spec, as_plans(reader.records), setting, ram_bytes)


def _open_network(directory: Path, plan: RunPlan, unpack: bool) -> ArtefactNetwork:
    if plan.streamed:
        return StreamedNetwork(directory, plan.slots, plan.pinned)
    return ResidentNetwork(directory, unpack=unpack)


def _open_cache(directory: Path, spec: ModelSpec, setting: Setting, plan: RunPlan) -> KVCache:
    if not plan.spilled:
        return KVCache(spec, setting.sequences, setting.context, bits=setting.kv_bits)
    folders = directory, Path(tempfile.gettempdir())  # the weights' disk is a large one
    return SpilledCache(
        spec, setting.sequences, setting.context, bits=setting.kv_bits, spilled=plan.spilled,
        folders=folders,
    )  # fmt: skip


@contextmanager
def open_model(
    directory: Path,
    *,
    ram_bytes: int | None = None,
    context: int | None = None,
    threads: int | None = None,
    sequences: int = 1,
    kv_bits: str = KV_BITS_DEFAULT,
    unpack: bool = False,
) -> Iterator[Model]:
    """Opens an artefact for `sequences` sequences of `context` tokens within `ram_bytes`.

    kv_bits: of the numbers in the KV cache, a key of KV_BITS. unpack: planes are decoded on
    opening, which takes 8 bits a weight of memory and gives the same bits, faster where memory
    outruns decoding.
    Raises BudgetError with the memory table when the budget cannot hold it, ResourceError when
    the disk has no room for keys and values that it must hold.
    """
    _native.set_threads(usable_cores() if threads is None else threads)
    spec = read_spec(directory)
    text = Text.open(directory)
    positions = choose_context(spec, context)
    setting = Setting(positions, sequences, kv_bits, _native.threads(), unpack)
    plan = plan_run(directory, setting, ram_bytes)
    _native.release_free_memory()  # reading a tokenizer takes twice what it then holds
    with (
        closing(_open_network(directory, plan, unpack)) as network,
        closing(_open_cache(directory, spec, setting, plan)) as cache,
    ):
        engine = Engine(network, sequences, positions, plan.rows, cache=cache)
        yield Model(directory.resolve().name, text, engine, network, plan)
