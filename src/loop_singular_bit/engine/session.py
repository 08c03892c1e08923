"""What the rest of the package sees of an opened artefact: a language model and its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loop_singular_bit.engine.text import Text


class Session(Protocol):
    """One sequence in a KV cache."""

    @property
    def position(self) -> int:
        """Tokens already in the cache."""
        ...

    @property
    def context(self) -> int:
        """Positions reserved for this sequence."""
        ...

    def advance(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append at least one token; the logits after the last one, [vocab].

        Raises ResourceError when the weights cannot be read.
        """
        ...

    def look_ahead(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each of these tokens, [N, vocab], the same bits as advancing one by one
        gives. The sequence stays as it is; `accept` makes them part of it.

        At most DRAFT_MAX + 1 tokens. Raises ResourceError when the weights cannot be read.
        """
        ...

    def accept(self, count: int) -> None:
        """Append the first `count` tokens looked at and not yet accepted."""
        ...

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on."""
        ...


class LanguageModel(Protocol):
    """An opened artefact."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> Text: ...

    @property
    def context(self) -> int:
        """Positions one sequence can hold."""
        ...

    @property
    def streamed(self) -> bool:
        """Whether a sweep reads weights from disk, so that more rows cost little more than one."""
        ...

    def session(self) -> AbstractContextManager[Session]:
        """Take a sequence slot, empty; it is given back on exit."""
        ...
