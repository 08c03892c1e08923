from __future__ import annotations

import json
from typing import Any

import pytest

from loop_singular_bit.engine.sampler import SamplingOptions
from loop_singular_bit.engine.template import Message
from loop_singular_bit.errors import UsageError
from loop_singular_bit.serve.schema import (
    ChatRequest,
    CompletionRequest,
    RequestError,
    read_request,
)

USER: list[Any] = [{"role": "user", "content": "Tell me."}]
CHAT: dict[str, Any] = {"model": "fake", "messages": USER}
TEXT: dict[str, Any] = {"model": "fake", "prompt": "Once"}


def chat(**fields: Any) -> ChatRequest:
    return read_request(json.dumps(CHAT | fields).encode(), ChatRequest)


def completion(**fields: Any) -> CompletionRequest:
    return read_request(json.dumps(TEXT | fields).encode(), CompletionRequest)


def use(body: dict[str, Any]) -> None:
    """All that a handler does with a body before the engine."""
    content = json.dumps(body).encode()
    if "prompt" in body:
        request = read_request(content, CompletionRequest)
        request.options()
        request.text_or_ids(512)
    else:
        asked = read_request(content, ChatRequest)
        asked.options()
        asked.conversation()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": USER}, None),
        ({"model": "fake"}, None),
        (CHAT | {"messages": []}, "messages"),
        (CHAT | {"messages": {}}, "messages"),
        (CHAT | {"messages": [{"role": "user"}]}, "messages[0]"),
        (CHAT | {"messages": [{"role": "root", "content": "a"}]}, "messages[0].role"),
        (CHAT | {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (
            CHAT
            | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
        ),
        (CHAT | {"temperature": -0.1}, "temperature"),
        (CHAT | {"temperature": 2.1}, "temperature"),
        (CHAT | {"temperature": "hot"}, "temperature"),
        (CHAT | {"temperature": True}, "temperature"),
        (CHAT | {"top_p": 1.1}, "top_p"),
        (CHAT | {"top_k": -1}, "top_k"),
        (CHAT | {"top_k": 1.5}, "top_k"),
        (CHAT | {"min_p": -1}, "min_p"),
        (CHAT | {"seed": 2**63}, "seed"),
        (CHAT | {"max_tokens": 0}, "max_tokens"),
        (CHAT | {"max_completion_tokens": -1}, "max_completion_tokens"),
        (CHAT | {"max_tokens": 2**31}, "max_tokens"),
        (CHAT | {"n": 2}, "n"),
        (CHAT | {"n": 0}, "n"),
        (CHAT | {"stop": 3}, "stop"),
        (CHAT | {"stream": "yes"}, "stream"),
        (CHAT | {"presence_penalty": 0.5}, "presence_penalty"),
        (CHAT | {"frequency_penalty": -0.5}, "frequency_penalty"),
        (CHAT | {"logit_bias": {"5": 1}}, "logit_bias"),
        (CHAT | {"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        (CHAT | {"tools": [{"type": "function"}]}, "tools"),
        (CHAT | {"response_format": {"type": "json_object"}}, "response_format.type"),
        (TEXT | {"prompt": ["a", "b"]}, "prompt"),
        (TEXT | {"prompt": [[1], [2]]}, "prompt"),
        (TEXT | {"prompt": [1, "a"]}, "prompt"),
        (TEXT | {"prompt": [512]}, "prompt"),
        (TEXT | {"prompt": [-1]}, "prompt"),
        (TEXT | {"logprobs": 1}, "logprobs"),
        (TEXT | {"echo": True}, "echo"),
        (TEXT | {"best_of": 3}, "best_of"),
        (TEXT | {"suffix": "z"}, "suffix"),
    ],
)
def test_bad_field_is_named(body: dict[str, Any], param: str | None) -> None:
    with pytest.raises(RequestError) as refused:
        use(body)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert str(refused.value)


@pytest.mark.parametrize("stop", [[""], ["a"] * 17, "a" * 257])
def test_stop_strings_have_limits(stop: object) -> None:
    with pytest.raises(UsageError, match="stop"):
        chat(stop=stop).options()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"model": "fake", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "top_p": NaN}',
        b'{"model": "fake", "messages": [{"role": "user", "content": "a"}], "top_p": 1e999}',
    ],
)
def test_body_that_is_not_json(content: bytes) -> None:
    with pytest.raises(RequestError, match=r"not JSON|not valid"):
        read_request(content, ChatRequest)


def test_neutral_and_unknown_fields_are_accepted() -> None:
    chat(
        n=1,
        presence_penalty=0,
        frequency_penalty=None,
        logit_bias={},
        tools=[],
        response_format={"type": "text"},
        top_logprobs=0,
        user="me",
        n_discard=-1,
        chat_template="{{ 1 }}",
    )
    completion(n=None, best_of=1, echo=False, suffix="", logprobs=0)


def test_defaults_are_those_of_openai() -> None:
    options = chat().options()
    assert options.sampling == SamplingOptions(temperature=1.0)
    assert (options.max_tokens, options.stop) == (None, ())
    assert completion().options().max_tokens == 16
    assert not chat().include_usage


def test_every_option_arrives() -> None:
    options = chat(
        temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, seed=-1, stop="a", max_tokens=9
    ).options()
    assert options.sampling == SamplingOptions(0.5, 7, 0.25, 0.125, 2**64 - 1)
    assert (options.max_tokens, options.stop) == (9, ("a",))
    assert chat(max_tokens=9, max_completion_tokens=5).options().max_tokens == 5
    assert chat(stop=["a", "b"]).options().stop == ("a", "b")
    assert chat(stream_options={"include_usage": True}).include_usage


def test_conversation() -> None:
    parts = [{"type": "text", "text": "Tell"}, {"type": "text", "text": " me."}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert chat(messages=messages).conversation() == [
        Message("system", "Be brief."),
        Message("user", "Tell me."),
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", "a"), (["a"], "a"), ([5, 6], [5, 6]), ([[5, 6]], [5, 6]), ([5], [5]), ([], [])],
)
def test_one_prompt(prompt: object, expected: object) -> None:
    assert completion(prompt=prompt).text_or_ids(512) == expected
