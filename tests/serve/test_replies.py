from __future__ import annotations

import msgspec
import pytest

from loop_singular_bit.engine.generate import ContextLengthError, Finish, Generated
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import InputRefusedError, LoopError, ResourceError, UsageError
from loop_singular_bit.serve.replies import ChatReply, CompletionReply, Reply, problem_of
from loop_singular_bit.serve.scheduler import QueueFullError, ShutdownError
from loop_singular_bit.serve.schema import RequestError


def reply(
    text: Text, kind: type[Reply] = ChatReply, logprobs: bool = False, include_usage: bool = False
) -> Reply:
    return kind("fake", text, logprobs=logprobs, include_usage=include_usage)


def finish(text: str = "") -> Finish:
    return Finish("stop", text, 3, 1, 0.0, 0.0)


def builtins(value: object) -> list[dict[str, object]]:
    decoded: list[dict[str, object]] = msgspec.json.decode(msgspec.json.encode(value))
    return decoded


@pytest.mark.parametrize("kind", [ChatReply, CompletionReply])
def test_held_back_text_is_no_chunk(text: Text, kind: type[Reply]) -> None:
    assert list(reply(text, kind).chunks(Generated(9, "", -1.0))) == []


@pytest.mark.parametrize("kind", [ChatReply, CompletionReply])
def test_token_with_logprobs_is_a_chunk_even_without_text(text: Text, kind: type[Reply]) -> None:
    assert len(list(reply(text, kind, logprobs=True).chunks(Generated(9, "", -1.0)))) == 1


@pytest.mark.parametrize("kind", [ChatReply, CompletionReply])
def test_rest_of_the_text_comes_before_the_reason(text: Text, kind: type[Reply]) -> None:
    chunks = builtins(list(reply(text, kind, include_usage=True).chunks(finish("rest"))))
    reasons = [[choice["finish_reason"] for choice in chunk["choices"]] for chunk in chunks]  # type: ignore[attr-defined]
    assert reasons == [[None], ["stop"], []]
    assert "rest" in str(chunks[0]["choices"])
    assert [chunk["usage"] for chunk in chunks] == [
        None,
        None,
        {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    ]


def test_bytes_of_half_a_character_are_unknown(text: Text) -> None:
    half = text.encode("😀", special=False)[0]
    whole = reply(text, logprobs=True).whole([Generated(half, "", -1.0)], finish())
    entry = whole.choices[0].logprobs.content[0]  # type: ignore[union-attr]
    assert (entry.token, entry.bytes) == ("\ufffd", None)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (RequestError("a", param="n"), 400, "invalid_request_error", None),
        (RequestError("a", status=413, code="big"), 413, "invalid_request_error", "big"),
        (ContextLengthError(9, 8), 400, "invalid_request_error", "context_length_exceeded"),
        (InputRefusedError("a"), 400, "invalid_request_error", None),
        (UsageError("a"), 400, "invalid_request_error", None),
        (QueueFullError(3, 3, 7), 429, "rate_limit_error", "queue_full"),
        (ShutdownError(), 503, "server_error", "shutting_down"),
        (ResourceError("a"), 500, "server_error", "engine_failed"),
        (LoopError("a"), 500, "server_error", "engine_failed"),
        (KeyError("a"), 500, "server_error", "engine_failed"),
    ],
)
def test_problem_of(error: Exception, status: int, kind: str, code: str | None) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.body.error.type, problem.body.error.code) == (
        status,
        kind,
        code,
    )
    assert problem.body.error.message
    assert problem.retry_seconds == (7 if status == 429 else None)
