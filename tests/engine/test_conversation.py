from __future__ import annotations

from pathlib import Path

import pytest
from fake_model import END_ID, FakeModel, FakeSession, write_tokenizer

from loop_singular_bit.engine.conversation import Conversation
from loop_singular_bit.engine.draft import DRAFT_MAX
from loop_singular_bit.engine.generate import ContextLengthError, Finish, GenerateOptions
from loop_singular_bit.engine.template import Message
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import ResourceError

SHORT = GenerateOptions(max_tokens=4)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text.open(Path(write_tokenizer(tmp_path_factory.mktemp("conversation"))))


def say(conversation: Conversation, content: str) -> str:
    return "".join(event.text for event in conversation.answer(content))


def test_second_turn_reads_only_what_is_new(text: Text) -> None:
    model = FakeModel(text, script=[*text.encode("Hello", special=False), END_ID])
    session = FakeSession(model)
    model.sessions.append(session)
    conversation = Conversation(model, session, GenerateOptions(max_tokens=9))
    assert say(conversation, "Hi there") == "Hello"
    first = list(session.ids)
    model.script = None
    say(conversation, "And now?")
    expected = text.render_chat(
        [Message("user", "Hi there"), Message("assistant", "Hello"), Message("user", "And now?")]
    )
    assert session.ids[: len(expected)] == expected
    assert session.rewinds == []
    assert expected[: len(first)] == first
    second = next(a for a in session.advances[1:] if len(a) > 1)
    assert list(second) == expected[len(first) :]


def test_answers_do_not_depend_on_the_cache(text: Text) -> None:
    model = FakeModel(text)
    kept = Conversation(model, FakeSession(model), SHORT)
    first, second = say(kept, "one"), say(kept, "two")
    fresh = Conversation(model, session := FakeSession(model), SHORT)
    assert say(fresh, "one") == first
    session.rewind(0)
    fresh._cached = []
    assert say(fresh, "two") == second


def test_reset_keeps_the_system_message_and_its_cache(text: Text) -> None:
    model = FakeModel(text)
    session = FakeSession(model)
    conversation = Conversation(model, session, SHORT, "Be brief.")
    first = say(conversation, "one")
    say(conversation, "two")
    conversation.reset()
    assert conversation.messages == (Message("system", "Be brief."),)
    assert say(conversation, "one") == first
    assert session.rewinds[-1] > 0


def test_message_that_does_not_fit_is_forgotten(text: Text) -> None:
    model = FakeModel(text, context=60)
    conversation = Conversation(model, FakeSession(model), SHORT)
    with pytest.raises(ContextLengthError):
        say(conversation, "long " * 60)
    assert conversation.messages == ()
    assert say(conversation, "one")


def test_interrupted_answer_is_kept_as_far_as_it_goes(text: Text) -> None:
    model = FakeModel(text)
    conversation = Conversation(model, session := FakeSession(model), GenerateOptions())
    events = []
    for event in conversation.answer("one"):
        events.append(event)
        if len(events) == 2:
            conversation.interrupt()
    assert len(events) == 2
    assert not any(isinstance(event, Finish) for event in events)
    answer = "".join(event.text for event in events)
    assert conversation.messages[-1] == Message("assistant", answer)
    assert conversation._cached == session.ids


def test_turns_with_drafts_are_the_turns_without(text: Text) -> None:
    answers, looks = [], []
    for draft in (0, 5):
        model = FakeModel(text, order=1, context=512)
        session = FakeSession(model)
        conversation = Conversation(model, session, GenerateOptions(40, draft=draft))
        turns = []
        for content in ("one", "two", "one"):
            turns.append(say(conversation, content))
            assert conversation._cached == session.ids
        answers.append(turns)
        looks.append(session.looks)
    assert answers[0] == answers[1]
    assert looks[0] == []
    assert looks[1] != []


def test_drafts_quote_earlier_turns(text: Text) -> None:
    written = [*text.encode("Hello to the three of you", special=False), END_ID]
    model = FakeModel(text, script=written)
    model.sessions.append(session := FakeSession(model))
    conversation = Conversation(model, session, GenerateOptions(draft=DRAFT_MAX))
    first = say(conversation, "one")
    second_prompt = text.render_chat([*conversation.messages, Message("user", "two")])
    # A script is counted from behind the first prompt on.
    model.script = [0] * (len(second_prompt) - len(session.advances[0])) + written
    *_, finish = conversation.answer("two")
    assert conversation.messages[-1].content == first
    assert isinstance(finish, Finish)
    assert finish.speculation is not None
    assert finish.speculation.accepted >= len(written) - 3


def test_after_an_engine_failure_the_turn_can_be_repeated(text: Text) -> None:
    model = FakeModel(text)
    expected = say(Conversation(model, FakeSession(model), SHORT), "one")

    def fail(session: FakeSession) -> None:
        if session.position > 0:
            raise ResourceError("the disk is gone")

    conversation = Conversation(model, FakeSession(model), SHORT)
    model.before_advance = fail
    with pytest.raises(ResourceError):
        say(conversation, "one")
    model.before_advance = lambda session: None
    assert conversation.messages == ()
    assert say(conversation, "one") == expected
