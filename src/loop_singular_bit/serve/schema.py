"""OpenAI's requests as checked values. Every number has a range; what would change the answer and
is not implemented is refused, never ignored; fields unknown here never reach the engine."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from loop_singular_bit.engine.generate import GenerateOptions
from loop_singular_bit.engine.sampler import TOP_K_MAX, SamplingOptions
from loop_singular_bit.engine.template import Message
from loop_singular_bit.errors import InputRefusedError

BODY_BYTES_MAX = 16_000_000
COMPLETION_TOKENS_DEFAULT = 16  # of /v1/completions, as OpenAI documents it

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=128)]


class RequestError(InputRefusedError):
    """A request this server does not take: HTTP status, OpenAI error code, and the field."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class ResponseFormat(msgspec.Struct):
    type: str


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What both kinds of completion share. None means OpenAI's default."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=TOP_K_MAX)] | None = None
    min_p: _Share | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    n: _Count | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def refuse_unsupported(self) -> None:
        """Raises RequestError on a field that asks for something this server does not do."""
        _only("n", self.n, 1)
        _only("presence_penalty", self.presence_penalty, 0)
        _only("frequency_penalty", self.frequency_penalty, 0)
        _absent("logit_bias", self.logit_bias)

    def _options(self, max_tokens: int | None) -> GenerateOptions:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        sampling = SamplingOptions(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed % 2**64,
        )
        # One token a sweep, as the scheduler counts and cancels them.
        return GenerateOptions(max_tokens, sampling, tuple(stop), draft=0)


class ChatRequest(GenerationRequest, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: _Count | None = None
    response_format: ResponseFormat | None = None
    tools: list[msgspec.Raw] | None = None
    functions: list[msgspec.Raw] | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        _only("top_logprobs", self.top_logprobs, 0)
        _absent("tools", self.tools)
        _absent("functions", self.functions)
        if self.response_format is not None:
            _only("response_format.type", self.response_format.type, "text")

    def options(self) -> GenerateOptions:
        """Without a limit the answer may fill the context."""
        tokens = self.max_completion_tokens
        return self._options(self.max_tokens if tokens is None else tokens)

    def conversation(self) -> list[Message]:
        """The messages as a chat template takes them; text parts are joined."""
        return [
            Message("system" if m.role == "developer" else m.role, _content(m, index))
            for index, m in enumerate(self.messages)
        ]


class CompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/completions; a prompt is one text or one list of token ids."""

    prompt: str | list[int | str | list[int]]
    logprobs: _Count | None = None
    echo: bool | None = None
    best_of: _Count | None = None
    suffix: str | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        _only("logprobs", self.logprobs, 0)
        _only("best_of", self.best_of, 1)
        _absent("echo", self.echo)
        _absent("suffix", self.suffix)

    def options(self) -> GenerateOptions:
        return self._options(self.max_tokens or COMPLETION_TOKENS_DEFAULT)

    def text_or_ids(self, vocab: int) -> str | list[int]:
        """The one prompt. Raises RequestError on several, or on an id outside the vocabulary."""
        prompt: str | list[int] | list[int | str | list[int]] = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return prompt
        ids = [item for item in prompt if isinstance(item, int)]
        if len(ids) != len(prompt):
            raise RequestError(
                f"prompt holds {len(prompt)} prompts: expected 1, send one request for each",
                param="prompt",
            )
        for token_id in ids:
            if not 0 <= token_id < vocab:
                raise RequestError(
                    f"prompt holds token id {token_id}: expected 0 to {vocab - 1}", param="prompt"
                )
        return ids


_Request = TypeVar("_Request", bound=GenerationRequest)


def read_request(body: bytes, kind: type[_Request]) -> _Request:
    """Parse and check a request body. Raises RequestError naming the field."""
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        found = re.search(r" - at `\$\.?(.*)`$", str(error))
        param = found.group(1) if found else None
        raise RequestError(f"the request is not valid: {error}", param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the request body is not JSON: {error}") from error
    request.refuse_unsupported()
    return request


def _content(message: ChatMessage, index: int) -> str:
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise RequestError(
                f"a content part of type {part.type!r} cannot be read: expected 'text'",
                param=f"messages[{index}].content",
            )
        texts.append(part.text)
    return "".join(texts)


def _only(field: str, value: Any, expected: Any) -> None:
    if value is not None and value != expected:
        raise RequestError(
            f"{field} is {value!r}: this server supports {expected!r} only", param=field
        )


def _absent(field: str, value: Any) -> None:
    if value:
        raise RequestError(f"{field} is not supported by this server: leave it out", param=field)
