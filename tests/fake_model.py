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

from loop_singular_bit.engine.draft import DRAFT_MAX
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
        self.looked_at: tuple[int, ...] = ()
        self.looks: list[tuple[int, ...]] = []
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
        self.looked_at = ()
        self.advances.append(tuple(ids))
        return self._model.logits(self.ids)

    def look_ahead(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        assert 0 < len(ids) <= DRAFT_MAX + 1
        assert self.position + len(ids) <= self.context
        self._model.before_advance(self)
        self.looked_at = tuple(ids)
        self.looks.append(tuple(ids))
        ends = range(1, len(ids) + 1)
        return np.stack([self._model.logits([*self.ids, *ids[:end]]) for end in ends])

    def accept(self, count: int) -> None:
        assert 0 <= count <= len(self.looked_at)
        self.ids.extend(self.looked_at[:count])
        self.looked_at = self.looked_at[count:]

    def rewind(self, position: int) -> None:
        assert position <= self.position
        del self.ids[position:]
        self.rewinds.append(position)
        self.looked_at = ()


class FakeModel:
    """`script` fixes the generated ids (by count of generated tokens); else they are hashed.

    order: tokens that the next one depends on (all when None); few of them make texts that repeat.
    """

    def __init__(
        self,
        text: Text,
        *,
        context: int = 256,
        script: Sequence[int] | None = None,
        order: int | None = None,
    ) -> None:
        self.name = "fake"
        self.text = text
        self.context = context
        self.sessions: list[FakeSession] = []
        self.free = threading.Semaphore(1)
        self.before_advance: Callable[[FakeSession], None] = lambda session: None
        self.script = script
        self.order = order
        self.streamed = False

    @contextmanager
    def session(self) -> Iterator[FakeSession]:
        assert self.free.acquire(blocking=False), "two sequences at once"
        self.sessions.append(FakeSession(self))
        try:
            yield self.sessions[-1]
        finally:
            self.free.release()

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        seen = ids if self.order is None else ids[-self.order :]
        digest = hashlib.sha256(np.array(seen, dtype=np.int64).tobytes()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        logits = rng.standard_normal(self.text.vocab).astype(np.float32) * 3
        logits[END_ID] = -20
        if self.script is not None:
            done = len(ids) - len(self.sessions[-1].advances[0])
            logits[self.script[done : done + 1]] = 50  # a draft may look beyond its end
        return logits
