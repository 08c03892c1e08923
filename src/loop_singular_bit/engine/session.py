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

    def session(self) -> AbstractContextManager[Session]:
        """Take a sequence slot, empty; it is given back on exit."""
        ...
