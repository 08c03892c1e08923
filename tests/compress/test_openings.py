from __future__ import annotations

from pathlib import Path

import pytest

from loop_singular_bit.compress.openings import QUESTIONS, TEXTS, openings
from loop_singular_bit.engine.template import Message
from loop_singular_bit.engine.text import Text


def test_kinds_take_turns(tiny_model: Path) -> None:
    text = Text.open(tiny_model)
    found = openings(text, 3, 7)
    assert [found[0], found[3], found[6]] == [[3]] * 3
    assert [found[1], found[4]] == [text.encode(t, special=True) for t in TEXTS[:2]]
    chats = [text.render_chat([Message("user", question)]) for question in QUESTIONS[:2]]
    assert [found[2], found[5]] == chats


def test_there_are_always_enough(tiny_model: Path) -> None:
    found = openings(Text.open(tiny_model), 3, 400)
    assert len(found) == 400 and all(found)


def test_a_model_without_chat_gets_texts(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Text, "has_chat_template", False)
    text = Text.open(tiny_model)
    assert openings(text, 3, 3)[2] == text.encode(TEXTS[len(TEXTS) // 2], special=True)


def test_openings_differ() -> None:
    assert len(set(TEXTS)) == len(TEXTS) and len(set(QUESTIONS)) == len(QUESTIONS)
