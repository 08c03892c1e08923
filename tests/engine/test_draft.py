from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from fake_model import FakeModel, FakeSession, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from loop_singular_bit.engine.draft import (
    CANDIDATES_MAX,
    DRAFT_MAX,
    DRAFT_MIN,
    MATCH_MAX,
    MATCH_MIN,
    DraftedSession,
    NgramDraft,
    Speculation,
    draft_bytes,
)
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import ResourceError


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text.open(write_tokenizer(tmp_path_factory.mktemp("draft")))


def drafted(ids: Sequence[int], count: int) -> list[int]:
    lookup = NgramDraft(len(ids))
    lookup.extend(ids)
    return lookup.propose(count)


def by_scanning(ids: list[int], count: int) -> list[int]:
    """The same, from its definition."""
    for length in range(MATCH_MAX, MATCH_MIN - 1, -1):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                draft = list(ids)
                for at in range(end, end + count):
                    draft.append(draft[at])
                return draft[len(ids) :]
    return []


@pytest.mark.parametrize(
    ("ids", "count", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 1, [3]),
        ([1, 2, 3, 4, 1, 2], 0, []),
        ([1, 2, 3, 4, 1, 2], 6, [3, 4, 1, 2, 3, 4]),  # goes on into its own copy
        ([1, 2, 8, 1, 2, 9, 1, 2], 1, [9]),  # the latest of equals
        ([5, 1, 2, 8, 6, 1, 2, 9, 5, 1, 2], 1, [8]),  # the longest before the latest
        ([7, 7, 7], 4, [7, 7, 7, 7]),
        ([1, 2, 3, 4], 5, []),
        ([1, 2, 3, 2], 5, []),  # one token is no match
        ([1], 5, []),
        ([], 5, []),
    ],
)
def test_what_followed_the_longest_match_is_drafted(
    ids: list[int], count: int, expected: list[int]
) -> None:
    assert drafted(ids, count) == expected


@given(st.lists(st.integers(0, 3), max_size=CANDIDATES_MAX), st.integers(0, DRAFT_MAX))
def test_a_draft_equals_a_scan_of_all_tokens(ids: list[int], count: int) -> None:
    assert drafted(ids, count) == by_scanning(ids, count)


def test_ids_of_any_vocabulary_do_not_collide_into_wrong_matches() -> None:
    ids = [int(i) for i in np.random.default_rng(0).permutation(200_000)[:3000]]
    lookup = NgramDraft(len(ids))
    for token in ids:
        lookup.append(token)
        assert lookup.propose(DRAFT_MAX) == []  # no token comes twice


@pytest.mark.parametrize("context", [5000, 8191, 8192])
def test_memory_is_taken_once_and_as_planned(context: int) -> None:
    tracemalloc.start()
    lookup = NgramDraft(context)
    made = tracemalloc.get_traced_memory()[0]
    lookup.extend(i * i % 311 for i in range(context))
    filled = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    planned = draft_bytes(0, context)
    assert 12 * context <= planned <= 16 * context + 8
    assert planned <= made <= planned + 1000
    assert filled - made < 1000


def start(model: FakeModel, prompt: Sequence[int], draft_max: int) -> tuple[FakeSession, int]:
    """A session that has read the prompt, and the token after it."""
    session = FakeSession(model)
    model.sessions.append(session)
    return session, int(session.advance(prompt).argmax())


def test_a_text_that_repeats_takes_fewer_sweeps_and_the_same_logits(text: Text) -> None:
    model = FakeModel(text, order=1)
    prompt = [10, 11, 12]
    plain, token = start(model, prompt, 0)
    session, _ = start(model, prompt, DRAFT_MAX)
    ahead = DraftedSession(session, prompt, DRAFT_MAX)
    for left in range(199, -1, -1):
        found, expected = ahead.advance(token, left), plain.advance([token])
        assert np.array_equal(found, expected)
        assert session.ids == plain.ids  # at every token, not only after a sweep
        token = int(expected.argmax())
    result = ahead.speculation
    assert result.sweeps + result.accepted == 200
    assert result.sweeps == len(session.advances) - 1 + len(session.looks)
    assert result.drafted == sum(len(look) - 1 for look in session.looks)
    assert result.sweeps < 100
    assert max(map(len, session.looks)) == DRAFT_MAX + 1


def test_drafts_that_fail_become_short(text: Text) -> None:
    model = FakeModel(text)
    session, _ = start(model, [1, 2], DRAFT_MAX)
    ahead = DraftedSession(session, [1, 2], DRAFT_MAX)
    for token in [3, 1, 2, 4, 1, 2, 5, 1, 2, 6, 1, 2, 7]:
        ahead.advance(token, 99)
    # 1 2 is always followed by something new.
    assert [len(look) - 1 for look in session.looks] == [DRAFT_MAX, 7, DRAFT_MIN, DRAFT_MIN]
    assert ahead.speculation.accepted == 0


def test_a_draft_that_comes_true_makes_the_next_one_longer(text: Text) -> None:
    session, _ = start(FakeModel(text), [1, 2], DRAFT_MAX)
    ahead = DraftedSession(session, [1, 2], DRAFT_MAX)
    for token in [3, 1, 2, 4, *[1, 2, 4] * 13]:
        ahead.advance(token, 999)
    assert [len(look) - 1 for look in session.looks] == [DRAFT_MAX, 7, 14, DRAFT_MAX]
    assert session.ids == [1, 2, 3, 1, 2, 4, *[1, 2, 4] * 13]


@pytest.mark.parametrize("left", [0, 1, 3])
def test_no_more_is_drafted_than_is_wanted(text: Text, left: int) -> None:
    session, _ = start(FakeModel(text), [1, 2, 3, 1], DRAFT_MAX)
    DraftedSession(session, [1, 2, 3, 1], DRAFT_MAX).advance(2, left)
    assert [len(look) for look in session.looks] == ([left + 1] if left else [])
    assert session.ids == [1, 2, 3, 1, 2]


def test_a_draft_stays_within_the_context(text: Text) -> None:
    session, _ = start(FakeModel(text, context=7), [1, 2, 3, 1], DRAFT_MAX)
    ahead = DraftedSession(session, [1, 2, 3, 1], DRAFT_MAX)
    for token in (2, 3, 1):
        ahead.advance(token, 99)
    assert session.looks == [(2, 3, 1)]
    assert ahead.speculation == Speculation(drafted=2, accepted=2, sweeps=1)
    assert session.ids == [1, 2, 3, 1, 2, 3, 1]


def test_without_drafts_every_token_is_a_sweep(text: Text) -> None:
    session, _ = start(FakeModel(text), [1, 2], 0)
    ahead = DraftedSession(session, [1, 2], 0)
    for token in [1, 2] * 4:
        ahead.advance(token, 99)
    assert session.looks == []
    assert ahead.speculation == Speculation(drafted=0, accepted=0, sweeps=8)


def test_a_sweep_that_fails_leaves_the_session_where_it_was(text: Text) -> None:
    model = FakeModel(text)
    session, _ = start(model, [1, 2, 3, 1], DRAFT_MAX)

    def fail(session: FakeSession) -> None:
        raise ResourceError("the disk is gone")

    model.before_advance = fail
    with pytest.raises(ResourceError):
        DraftedSession(session, [1, 2, 3, 1], DRAFT_MAX).advance(2, 99)
    assert session.ids == [1, 2, 3, 1]
