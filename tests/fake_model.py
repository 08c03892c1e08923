"""A language model without weights: the next token is a hash of all tokens before it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tiny import write_tiny_model

from loop_singular_bit.engine.text import Text

END_ID = 2


def write_tokenizer(directory: Path) -> Path:
    return write_tiny_model(directory, layers=1, hidden=8, intermediate=8, heads=1, kv_heads=1)


class FakeSession:
    """Records what it was asked; logits are a function of the ids it holds."""

    def __init__(self, model: FakeModel) -> None:
        self.ids: list[int] = []
        self.advances: list[tuple[int, ...]] = []
        self.rewinds: list[int] = []
        self._model = model

    @property
    def position(self) -> int:
        return len(self.ids)

    @property
    def context(self) -> int:
        return self._model.context

    def advance(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        assert len(ids) > 0
        assert self.position + len(ids) <= self.context
        self._model.before_advance(self)
        self.ids.extend(ids)
        self.advances.append(tuple(ids))
        return self._model.logits(self.ids)

    def rewind(self, position: int) -> None:
        assert position <= self.position
        del self.ids[position:]
        self.rewinds.append(position)


class FakeModel:
    """`script` fixes the generated ids (by count of generated tokens); else they are hashed."""

    def __init__(
        self, text: Text, *, context: int = 256, script: Sequence[int] | None = None
    ) -> None:
        self.name = "fake"
        self.text = text
        self.context = context
        self.sessions: list[FakeSession] = []
        self.free = threading.Semaphore(1)
        self.before_advance: Callable[[FakeSession], None] = lambda session: None
        self.script = script

    @contextmanager
    def session(self) -> Iterator[FakeSession]:
        assert self.free.acquire(blocking=False), "two sequences at once"
        self.sessions.append(FakeSession(self))
        try:
            yield self.sessions[-1]
        finally:
            self.free.release()

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        digest = hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        logits = rng.standard_normal(self.text.vocab).astype(np.float32) * 3
        logits[END_ID] = -20
        if self.script is not None:
            done = sum(len(advance) == 1 for advance in self.sessions[-1].advances[1:])
            logits[self.script[done]] = 50
        return logits
