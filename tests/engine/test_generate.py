from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from fake_model import END_ID, FakeModel, FakeSession, write_tokenizer
from tiny import TEXT

from loop_singular_bit.engine.draft import DRAFT_MAX, Speculation
from loop_singular_bit.engine.generate import (
    ContextLengthError,
    Finish,
    Generated,
    GenerateOptions,
    generate,
    rewind_to_shared,
)
from loop_singular_bit.engine.runtime import open_model
from loop_singular_bit.engine.sampler import SamplingOptions
from loop_singular_bit.engine.session import LanguageModel
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import InputRefusedError, UsageError

PROMPT = (10, 11, 12)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text.open(write_tokenizer(tmp_path_factory.mktemp("generate")))


def run(
    model: FakeModel, options: GenerateOptions, prompt: Sequence[int] = PROMPT
) -> tuple[list[Generated], Finish]:
    with model.session() as session:
        *tokens, finish = generate(model, session, prompt, options)
    assert isinstance(finish, Finish)
    assert all(isinstance(token, Generated) for token in tokens)
    return [token for token in tokens if isinstance(token, Generated)], finish


def scripted(text: Text, written: str, **sizes: int) -> FakeModel:
    """A model that writes this text, then its end token."""
    return FakeModel(text, script=[*text.encode(written, special=False), END_ID], **sizes)


def written(tokens: list[Generated], finish: Finish) -> str:
    return "".join(token.text for token in tokens) + finish.text


def test_events_up_to_max_tokens(text: Text) -> None:
    model = FakeModel(text)
    tokens, finish = run(model, GenerateOptions(max_tokens=5))
    assert len(tokens) == 5
    assert written(tokens, finish) == text.decode([token.id for token in tokens])
    assert all(token.logprob < 0 for token in tokens)
    assert (finish.reason, finish.prompt_tokens, finish.completion_tokens) == ("length", 3, 5)
    assert finish.prompt_seconds >= 0
    assert finish.generation_seconds >= 0


def test_prompt_is_one_advance_and_the_last_token_none(text: Text) -> None:
    model = FakeModel(text)
    tokens, _ = run(model, GenerateOptions(max_tokens=3))
    ids = [token.id for token in tokens]
    assert model.sessions[0].advances == [PROMPT, (ids[0],), (ids[1],)]


def test_one_token_is_one_advance(text: Text) -> None:
    model = FakeModel(text)
    run(model, GenerateOptions(max_tokens=1))
    assert model.sessions[0].advances == [PROMPT]


def test_end_token_stops_and_is_not_written(text: Text) -> None:
    tokens, finish = run(scripted(text, "Hello you"), GenerateOptions(max_tokens=99))
    assert written(tokens, finish) == "Hello you"
    assert finish.reason == "stop"
    assert finish.completion_tokens == len(tokens)
    assert END_ID not in [token.id for token in tokens]


def test_end_token_at_once_writes_nothing(text: Text) -> None:
    tokens, finish = run(scripted(text, ""), GenerateOptions())
    assert (tokens, finish.text, finish.reason, finish.completion_tokens) == ([], "", "stop", 0)


@pytest.mark.parametrize(
    ("stop", "expected", "reason"),
    [
        (("lo w",), "one hel", "stop"),
        (("world", "hello"), "one ", "stop"),
        (("one",), "", "stop"),
        (("two!",), "one hello world ", "stop"),
        (("two!?",), "one hello world two!", "stop"),  # a held back start comes out at the end
        (("absent",), "one hello world two!", "stop"),
        (("d two!", "o w"), "one hell", "stop"),
    ],
)
def test_stop_strings(text: Text, stop: tuple[str, ...], expected: str, reason: str) -> None:
    model = scripted(text, "one hello world two!")
    tokens, finish = run(model, GenerateOptions(stop=stop))
    assert (written(tokens, finish), finish.reason) == (expected, reason)


def test_nothing_of_a_stop_string_is_ever_given_out(text: Text) -> None:
    model = scripted(text, "a ENDS b END. c")
    seen = ""
    with model.session() as session:
        for event in generate(model, session, PROMPT, GenerateOptions(stop=("END.",))):
            seen += event.text
            assert "a ENDS b ".startswith(seen)
    assert seen == "a ENDS b "


def test_generation_ends_at_the_stop_string(text: Text) -> None:
    model = scripted(text, "abc def ghi jkl mno")
    tokens, finish = run(model, GenerateOptions(stop=("def",)))
    assert finish.completion_tokens == len(tokens)
    assert text.decode([token.id for token in tokens]) == "abc def"
    assert model.sessions[0].position == len(PROMPT) + len(tokens) - 1


def test_stop_string_after_max_tokens_is_not_seen(text: Text) -> None:
    ids = text.encode("abc def", special=False)
    model = scripted(text, "abc def")
    tokens, finish = run(model, GenerateOptions(max_tokens=len(ids) - 1, stop=("def",)))
    assert finish.reason == "length"
    assert written(tokens, finish) == text.decode(ids[:-1])


def test_characters_are_whole_while_streaming(text: Text) -> None:
    tokens, finish = run(scripted(text, "😀é"), GenerateOptions())
    assert written(tokens, finish) == "😀é"
    assert all("\ufffd" not in token.text for token in tokens)


def test_broken_tail_comes_with_the_last_event(text: Text) -> None:
    half = text.encode("😀", special=False)[:2]
    tokens, finish = run(FakeModel(text, script=[*half, END_ID]), GenerateOptions())
    assert [token.text for token in tokens] == ["", ""]
    assert finish.text == "\ufffd"


def test_context_end_is_length(text: Text) -> None:
    model = FakeModel(text, context=8)
    tokens, finish = run(model, GenerateOptions())
    # The last token needs no position of its own.
    assert (len(tokens), finish.reason) == (8 - 3 + 1, "length")
    assert model.sessions[0].position == 8


def test_prompt_of_exactly_the_context_gives_one_token(text: Text) -> None:
    tokens, finish = run(FakeModel(text, context=3), GenerateOptions(max_tokens=9))
    assert (len(tokens), finish.reason) == (1, "length")


def test_prompt_longer_than_the_context_is_refused_at_once(text: Text) -> None:
    model = FakeModel(text, context=2)
    with model.session() as session:
        with pytest.raises(ContextLengthError, match="3 tokens long but the context holds 2") as e:
            generate(model, session, PROMPT, GenerateOptions())
        assert (e.value.prompt_tokens, e.value.context) == (3, 2)
        assert model.sessions[0].advances == []


def test_cached_tokens_count_against_the_context(text: Text) -> None:
    model = FakeModel(text, context=5)
    with model.session() as session:
        session.advance([1, 2, 3])
        with pytest.raises(ContextLengthError, match="6 tokens long but the context holds 5"):
            generate(model, session, PROMPT, GenerateOptions())


def test_empty_prompt_is_refused(text: Text) -> None:
    model = FakeModel(text)
    with model.session() as session, pytest.raises(InputRefusedError, match="prompt is empty"):
        generate(model, session, [], GenerateOptions())


def test_engine_runs_only_while_the_iterator_is_advanced(text: Text) -> None:
    model = FakeModel(text)
    with model.session() as session:
        events = generate(model, session, PROMPT, GenerateOptions())
        assert model.sessions[0].advances == []
        next(events)
        assert len(model.sessions[0].advances) == 1
        next(events)
        assert len(model.sessions[0].advances) == 2


def test_seed_fixes_the_text(text: Text) -> None:
    def sample(seed: int) -> list[int]:
        options = GenerateOptions(12, SamplingOptions(temperature=1.0, seed=seed))
        return [token.id for token in run(FakeModel(text), options)[0]]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


WORDS = "one two three one two three four one two three four one two."
SAMPLINGS = [SamplingOptions(), *(SamplingOptions(t, seed=s) for t in (0.3, 1.0) for s in (1, 2))]


def same(
    model: LanguageModel, prompt: Sequence[int], options: GenerateOptions, draft: int
) -> Speculation:
    """Generates with drafts and without; refuses any difference but in time."""
    found, left = [], []
    for longest in (0, draft):
        with model.session() as session:
            events = list(generate(model, session, prompt, replace(options, draft=longest)))
            left.append(session.position)
        finish = events.pop()
        assert isinstance(finish, Finish)
        speculation = finish.speculation
        found.append([*events, replace(finish, prompt_seconds=0, generation_seconds=0,
                                       speculation=None)])  # fmt: skip
    assert found[0] == found[1]
    assert left[0] == left[1]
    assert speculation is not None
    assert speculation.accepted <= speculation.drafted <= speculation.sweeps * draft
    return speculation


@pytest.mark.parametrize("draft", [1, 2, 5, DRAFT_MAX])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_drafts_change_nothing_but_the_sweeps(
    text: Text, sampling: SamplingOptions, draft: int
) -> None:
    results = []
    for order in (1, 2, None):
        model = FakeModel(text, context=150, order=order)
        for first in range(8):
            limit = (None, 1, 2, 40)[first % 4]
            options = GenerateOptions(limit, sampling)
            results.append(same(model, [first, 10, 11, first, 10], options, draft))
    assert sum(result.drafted for result in results) > 0
    assert sampling.temperature > 0 or sum(result.accepted for result in results) > 100


@pytest.mark.parametrize("draft", [1, 3, DRAFT_MAX])
@pytest.mark.parametrize("stop", [(), ("four",), ("ee f", "two."), ("absent",), ("one two.",)])
def test_drafts_stop_at_the_same_place(text: Text, stop: tuple[str, ...], draft: int) -> None:
    prompt = text.encode("one two three one", special=False)
    for limit in (None, *range(1, 40, 3)):
        same(scripted(text, WORDS), prompt, GenerateOptions(limit, stop=stop), draft)
    assert same(scripted(text, WORDS), prompt, GenerateOptions(), draft).accepted > 3


def test_a_real_model_writes_the_same_with_drafts(tiny_artefact: Path) -> None:
    accepted = 0
    with open_model(tiny_artefact, threads=1) as model:
        prompts = [model.text.encode(TEXT[n] + TEXT[n][:20], special=False) for n in (0, 2, 6)]
        for sampling in SAMPLINGS[:4]:
            for prompt, draft in zip(prompts, (2, 6, DRAFT_MAX), strict=True):
                options = GenerateOptions(60, sampling, stop=("zz", "the "))
                accepted += same(model, prompt, options, draft).accepted
                accepted += same(model, prompt, GenerateOptions(60, sampling), draft).accepted
    assert accepted > 0


def test_the_session_holds_every_token_but_the_last_at_every_event(text: Text) -> None:
    options = GenerateOptions(max_tokens=60, draft=DRAFT_MAX)
    for stop_after in range(1, 61):
        model = FakeModel(text, order=1)
        with model.session() as session:
            events = generate(model, session, PROMPT, options)
            ids = [event.id for event in islice(events, stop_after) if isinstance(event, Generated)]
            # `events` is alive: nothing but the events has put the session where it is.
            assert session.ids == [*PROMPT, *ids[:-1]]
            rest = generate(model, session, [ids[-1]], replace(options, max_tokens=5))
            again = [event.id for event in rest if isinstance(event, Generated)]
        whole, _ = run(FakeModel(text, order=1), replace(options, max_tokens=stop_after + 5))
        assert [*ids, *again] == [token.id for token in whole]


def test_drafts_quote_what_was_cached(text: Text) -> None:
    cached = [20, 21, 22, 23, 24, 25]
    looks = []
    for known in ([], cached):
        model = FakeModel(text, script=[0, 0, 22, 23, 24, 25])  # from behind the first advance on
        with model.session() as session:
            session.advance(cached)
            options = GenerateOptions(max_tokens=4, draft=3)
            list(generate(model, session, [20, 21], options, known))
            looks.append(session.looks)
    assert looks == [[], [(22, 23, 24)]]


@pytest.mark.parametrize(("streamed", "draft", "runs"), [
    (False, None, False), (True, None, True), (True, 0, False), (False, 4, True),
])  # fmt: skip
def test_drafts_by_default_only_when_streamed(
    text: Text, streamed: bool, draft: int | None, runs: bool
) -> None:
    model = FakeModel(text, order=1)
    model.streamed = streamed
    _, finish = run(model, GenerateOptions(max_tokens=60, draft=draft))
    assert (finish.speculation is not None) == runs
    assert (model.sessions[0].looks != []) == runs


@pytest.mark.parametrize(
    ("cached", "ids", "left", "position"),
    [
        ([1, 2, 3], [1, 2, 3, 4], [4], 3),
        ([1, 2, 3], [1, 9, 3, 4], [9, 3, 4], 1),
        ([1, 2, 3], [1, 2], [2], 1),  # logits need at least one token
        ([1, 2, 3], [1, 2, 3], [3], 2),
        ([], [1, 2], [1, 2], 0),
        ([1, 2], [7], [7], 0),
    ],
)
def test_rewind_to_shared(
    text: Text, cached: list[int], ids: list[int], left: list[int], position: int
) -> None:
    session = FakeSession(FakeModel(text))
    session.ids = list(cached)
    assert list(rewind_to_shared(session, cached, ids)) == left
    assert session.ids == ids[:position]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": ("",)}, "0 characters"),
        ({"stop": ("a" * 257,)}, "257 characters"),
        ({"stop": ("a",) * 17}, "17 strings"),
        ({"draft": -1}, "draft is -1: expected 0 to 15"),
        ({"draft": 16}, "draft is 16: expected 0 to 15"),
    ],
)
def test_options_out_of_range_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GenerateOptions(**fields)  # type: ignore[arg-type]
