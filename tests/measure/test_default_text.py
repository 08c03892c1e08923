from __future__ import annotations

from loop_singular_bit.measure.default_text import default_text


def test_text_is_long_english_with_code() -> None:
    text = default_text()
    assert type(text) is str
    assert len(text) > 100_000
    assert text.isprintable() or "\n\n" in text
    for word in ("statement", "expression", ">>> ", "\n   "):
        assert text.count(word) > 20
    assert default_text() == text
