from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tiny import Tiny, tiny_config, tiny_tokenizer

from loop_singular_bit.compress.tokenizer_check import check_tokenizer
from loop_singular_bit.errors import TokenizerError
from loop_singular_bit.models.families import spec_from_config

SPEC = spec_from_config(tiny_config(Tiny()))


def refusal(document: object, vocab: int = 512) -> str:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(text, replace(SPEC, vocab=vocab))
    return str(caught.value)


def document() -> dict[str, object]:
    parsed = json.loads(tiny_tokenizer("smollm"))
    assert isinstance(parsed, dict)
    return parsed


@pytest.mark.parametrize("vocab", [512, 513, 1023])
def test_a_tokenizer_that_fits(vocab: int) -> None:
    check_tokenizer(tiny_tokenizer("smollm").encode(), replace(SPEC, vocab=vocab))


def test_unigram_vocabulary_is_a_list() -> None:
    model = {"type": "Unigram", "vocab": [["a", -1.0]] * 500}
    check_tokenizer(json.dumps({"model": model}).encode(), SPEC)
    assert "500 embedding rows, the model has 499" in refusal({"model": model}, vocab=499)


def test_ids_beyond_the_embedding() -> None:
    message = refusal(document(), vocab=511)
    assert "its ids need 512 embedding rows, the model has 511" in message


def test_added_id_beyond_the_embedding() -> None:
    changed = document() | {"added_tokens": [{"id": 600, "content": "<x>"}]}
    assert "601 embedding rows, the model has 512" in refusal(changed)


def test_vocabulary_much_smaller_than_the_embedding() -> None:
    message = refusal(document(), vocab=1024)
    assert "512 tokens, expected more than half of the model's 1024" in message


@pytest.mark.parametrize("text", [b"", b"{", b"\xff"])
def test_text_that_is_not_json(text: bytes) -> None:
    assert "not valid JSON" in refusal(text)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([1], "not a JSON object"),
        ({}, "no model.vocab"),
        ({"model": {"vocab": 3}}, "no model.vocab"),
        ({"model": {"vocab": {"a": "0"}}}, "token id that is not an integer"),
        ({"model": {"vocab": {"a": -1}}}, "token id that is not an integer"),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": {}}, "512"),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": 5}, "added_tokens is not a list"),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": ["x"]}, "not an integer"),
    ],
)
def test_documents_of_another_shape(changed: object, expected: str) -> None:
    assert expected in refusal(changed)
