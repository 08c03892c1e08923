"""The engine's events as OpenAI's answers, whole or in chunks, and errors in OpenAI's shape."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from loop_singular_bit.engine.generate import ContextLengthError, Finish, Generated
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import InputRefusedError, LoopError, UsageError
from loop_singular_bit.serve.scheduler import QueueFullError, ShutdownError
from loop_singular_bit.serve.schema import RequestError

Reason = Literal["stop", "length"]


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[None] = []


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(msgspec.Struct):
    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    message: AssistantMessage
    finish_reason: Reason
    logprobs: ChatLogprobs | None
    index: int = 0


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    delta: Delta
    finish_reason: Reason | None = None
    logprobs: ChatLogprobs | None = None
    index: int = 0


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    text_offset: list[int]
    top_logprobs: None = None


class CompletionChoice(msgspec.Struct):
    text: str
    finish_reason: Reason | None = None
    logprobs: CompletionLogprobs | None = None
    index: int = 0


Choice = ChatChoice | ChatChunkChoice | CompletionChoice


class Completion(msgspec.Struct):
    """The envelope of every answer and of every chunk."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[Choice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    system_fingerprint: None = None


class Reply(ABC):
    """How one endpoint words its answer, whole or as a stream of chunks."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, text: Text, *, logprobs: bool, include_usage: bool) -> None:
        self._id = f"{self.id_prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        self._text = text
        self._logprobs = logprobs
        self._include_usage = include_usage

    def start(self) -> Iterator[Completion]:
        """Chunks to send before the engine has said anything."""
        yield from ()

    def chunks(self, event: Generated | Finish) -> Iterator[Completion]:
        """Chunks that an event is worth; none while its text is held back."""
        if isinstance(event, Generated):
            if event.text or self._logprobs:
                yield self._chunk(self._piece(event.text, [event]))
            return
        if event.text:
            yield self._chunk(self._piece(event.text, []))
        yield self._chunk(self._end(event.reason))
        if self._include_usage:
            yield self._chunk(usage=_usage(event))

    def whole(self, tokens: Sequence[Generated], finish: Finish) -> Completion:
        """The answer in one."""
        content = "".join(token.text for token in tokens) + finish.text
        choice = self._all(content, tokens, finish.reason)
        return Completion(
            self._id, self.whole_object, self._created, self._model, [choice], _usage(finish)
        )

    def _chunk(self, *choices: Choice, usage: Usage | None = None) -> Completion:
        announced = usage if self._include_usage else msgspec.UNSET
        return Completion(
            self._id, self.chunk_object, self._created, self._model, choices, announced
        )

    @abstractmethod
    def _piece(self, text: str, tokens: Sequence[Generated]) -> Choice: ...

    @abstractmethod
    def _end(self, reason: Reason) -> Choice: ...

    @abstractmethod
    def _all(self, text: str, tokens: Sequence[Generated], reason: Reason) -> Choice: ...


class ChatReply(Reply):
    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def start(self) -> Iterator[Completion]:
        yield self._chunk(ChatChunkChoice(Delta(role="assistant", content="")))

    def _piece(self, text: str, tokens: Sequence[Generated]) -> Choice:
        return ChatChunkChoice(Delta(content=text), logprobs=self._scores(tokens))

    def _end(self, reason: Reason) -> Choice:
        return ChatChunkChoice(Delta(), reason)

    def _all(self, text: str, tokens: Sequence[Generated], reason: Reason) -> Choice:
        return ChatChoice(AssistantMessage(text), reason, self._scores(tokens))

    def _scores(self, tokens: Sequence[Generated]) -> ChatLogprobs | None:
        return ChatLogprobs([self._score(token) for token in tokens]) if self._logprobs else None

    def _score(self, token: Generated) -> TokenLogprob:
        text = self._text.decode([token.id])
        # Half a character has no text, so its bytes cannot be told from the text either.
        data = None if "\ufffd" in text else list(text.encode())
        return TokenLogprob(text, token.logprob, data)


class CompletionReply(Reply):
    id_prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, model: str, text: Text, *, logprobs: bool, include_usage: bool) -> None:
        super().__init__(model, text, logprobs=logprobs, include_usage=include_usage)
        self._offset = 0

    def _piece(self, text: str, tokens: Sequence[Generated]) -> Choice:
        return CompletionChoice(text, logprobs=self._scores(tokens))

    def _end(self, reason: Reason) -> Choice:
        return CompletionChoice("", reason)

    def _all(self, text: str, tokens: Sequence[Generated], reason: Reason) -> Choice:
        return CompletionChoice(text, reason, self._scores(tokens))

    def _scores(self, tokens: Sequence[Generated]) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        names = [self._text.decode([token.id]) for token in tokens]
        return CompletionLogprobs(names, [token.logprob for token in tokens], offsets)


def _usage(finish: Finish) -> Usage:
    total = finish.prompt_tokens + finish.completion_tokens
    return Usage(finish.prompt_tokens, finish.completion_tokens, total)


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(msgspec.Struct):
    error: ErrorBody


class Problem(msgspec.Struct):
    """An error as HTTP says it."""

    status: int
    body: ErrorReply
    retry_seconds: int | None = None


def problem_of(error: BaseException) -> Problem:
    """The HTTP status and OpenAI error object of any failure."""
    message = str(error)
    if isinstance(error, RequestError):
        return _refusal(message, error.status, error.code, error.param)
    if isinstance(error, ContextLengthError):
        return _refusal(message, 400, "context_length_exceeded")
    if isinstance(error, InputRefusedError | UsageError):
        return _refusal(message, 400)
    if isinstance(error, QueueFullError):
        body = ErrorReply(ErrorBody(message, "rate_limit_error", code="queue_full"))
        return Problem(429, body, error.retry_seconds)
    if isinstance(error, ShutdownError):
        return Problem(503, ErrorReply(ErrorBody(message, "server_error", code="shutting_down")))
    if not isinstance(error, LoopError):
        message = f"the engine failed with {type(error).__name__}: {message}"
    return Problem(500, ErrorReply(ErrorBody(message, "server_error", code="engine_failed")))


def _refusal(
    message: str, status: int, code: str | None = None, param: str | None = None
) -> Problem:
    return Problem(status, ErrorReply(ErrorBody(message, "invalid_request_error", param, code)))
