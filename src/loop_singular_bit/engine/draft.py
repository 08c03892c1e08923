"""Drafted tokens: text repeats itself, so what followed the same words before is likely to follow.

A sweep that reads its weights from disk costs about as much for several rows as for one. So guess
the next tokens, run them in one sweep, and keep those that turn out to be what is picked from the
logits anyway (arXiv 2304.04487; known as prompt lookup): the guesses change how many sweeps a text
takes, never the text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loop_singular_bit.engine.session import Session

Floats = npt.NDArray[np.float32]

DRAFT_MAX = 15  # tokens of a draft: 16 rows of a sweep, one of them chosen already
DRAFT_MIN = 3  # drafts that fail do not become shorter: 4 rows cost little more than 1
_NOTHING = np.empty((0, 0), np.float32)
MATCH_MIN, MATCH_MAX = 2, 8  # tokens that have to agree, and enough of them to look no further
CANDIDATES_MAX = 64  # earlier places compared for one draft, the latest first


@dataclass(frozen=True)
class Speculation:
    """What drafting did: tokens drafted, drafts that came true, and sweeps after the prompt."""

    drafted: int
    accepted: int
    sweeps: int


def draft_bytes(vocab: int, context: int) -> int:
    """Bytes that drafting takes in one sequence: the index, and the logits of the longest draft."""
    return 8 * context + (4 << context.bit_length()) + 4 * vocab * (DRAFT_MAX + 1)


class NgramDraft:
    """The tokens so far, and for each the last place before it with the same two tokens (the hash
    chains of LZ77 compressors). Memory is 12 to 16 bytes a position, taken once."""

    def __init__(self, capacity: int) -> None:
        """capacity: tokens it may hold."""
        self._count = 0
        self._tokens = array("i", [0]) * capacity
        self._previous = array("i", [0]) * capacity
        self._latest = array("i", [-1]) * (1 << capacity.bit_length())

    def extend(self, ids: Iterable[int]) -> None:
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        at = self._count
        self._tokens[at] = token
        self._count += 1
        if at > 0:
            bucket = self._bucket(at)
            self._previous[at] = self._latest[bucket]
            self._latest[bucket] = at

    def propose(self, count: int) -> list[int]:
        """Up to `count` tokens that may come next: what followed the longest of the matches, the
        latest of several. Empty when the last two tokens are new."""
        at = self._longest_match()
        if at < 0 or count < 1:
            return []
        # A match that overlaps the end goes on into its own copy: a period repeats.
        period = self._count - 1 - at
        found = list(self._tokens[at + 1 : min(at + 1 + count, self._count)])
        return [found[i % period] for i in range(count)] if len(found) == period else found

    def _longest_match(self) -> int:
        """The place whose token and those before it agree with the last ones; -1 when none."""
        best, best_length = -1, MATCH_MIN - 1
        last = self._count - 1
        place = self._previous[last] if last > 0 else -1
        for _ in range(CANDIDATES_MAX):
            if place < 0 or best_length == MATCH_MAX:
                break
            length = self._agreement(place, last)
            if length > best_length:
                best, best_length = place, length
            place = self._previous[place]
        return best

    def _agreement(self, place: int, last: int) -> int:
        """Tokens that agree, back from both places, up to MATCH_MAX."""
        length = 0
        while length < min(MATCH_MAX, place + 1):
            if self._tokens[place - length] != self._tokens[last - length]:
                break
            length += 1
        return length

    def _bucket(self, at: int) -> int:
        pair = self._tokens[at - 1] * 0x9E3779B1 + self._tokens[at] * 0x85EBCA6B
        return (pair >> 12) % len(self._latest)


class DraftedSession:
    """Advances a session token by token, with fewer sweeps than tokens where drafts come true.

    The session's position is always that of the tokens advanced: what is drafted is looked at, and
    belongs to the sequence only when its token is.
    """

    def __init__(self, session: Session, ids: Iterable[int], draft_max: int) -> None:
        """ids: what the session holds."""
        self._session = session
        self._lookup = NgramDraft(session.context)
        self._lookup.extend(ids)
        self._draft_max = self._length = draft_max
        self._draft: list[int] = []  # looked at by the last sweep
        self._taken = 0  # so many of them came true
        self._logits = _NOTHING  # [N, vocab] after the token before them, and after each
        self._drafted = self._accepted = self._sweeps = 0

    @property
    def speculation(self) -> Speculation:
        return Speculation(self._drafted, self._accepted, self._sweeps)

    def advance(self, token: int, left: int) -> Floats:
        """Logits [vocab] after one more token, the same bits as without drafts.

        left: tokens that may still be wanted after it; a draft is not longer than that.
        """
        self._lookup.append(token)
        if self._draft[self._taken : self._taken + 1] != [token]:
            return self._sweep(token, left)
        self._session.accept(1)
        self._accepted += 1
        self._taken += 1
        return self._given()

    def _sweep(self, token: int, left: int) -> Floats:
        self._adapt()
        room = self._session.context - self._session.position - 1
        self._draft = self._lookup.propose(min(self._length, left, room))
        self._taken = 0
        self._drafted += len(self._draft)
        self._sweeps += 1
        if not self._draft:
            return self._session.advance([token])
        self._logits = _NOTHING  # gone before there are new ones
        self._logits = self._session.look_ahead([token, *self._draft])
        self._session.accept(1)
        return self._given()

    def _given(self) -> Floats:
        """A copy: what is given out must not keep the others in memory."""
        return np.array(self._logits[self._taken], np.float32)

    def _adapt(self) -> None:
        """Twice the length when all of a draft came true, half of it when not."""
        if self._draft:
            whole = self._taken == len(self._draft)
            length = 2 * self._length if whole else self._length // 2
            self._length = min(max(length, DRAFT_MIN), self._draft_max)
