"""The token loop: prompt in, text out, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from loop_singular_bit.engine.draft import DRAFT_MAX, DraftedSession, Speculation
from loop_singular_bit.engine.sampler import Sampler, SamplingOptions
from loop_singular_bit.engine.session import LanguageModel, Session
from loop_singular_bit.engine.text import StreamDecoder
from loop_singular_bit.errors import InputRefusedError, UsageError

STOP_STRINGS_MAX = 16
STOP_CHARS_MAX = 256


class ContextLengthError(InputRefusedError):
    """A prompt that does not fit; it is refused, never cut."""

    def __init__(self, prompt_tokens: int, context: int) -> None:
        super().__init__(
            f"the prompt is {prompt_tokens} tokens long but the context holds {context}:"
            " shorten it, or open the model with a larger --context"
        )
        self.prompt_tokens = prompt_tokens
        self.context = context


@dataclass(frozen=True)
class GenerateOptions:
    """When to stop, and how to choose tokens.

    max_tokens  None goes on to the end of the context
    stop        generation ends before any of these strings
    draft       longest draft that one sweep verifies; it never changes the text. 0 drafts nothing,
                None drafts when the weights are streamed from disk

    Raises UsageError on a value outside its range.
    """

    max_tokens: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop: tuple[str, ...] = ()
    draft: int | None = None

    def __post_init__(self) -> None:
        if self.draft is not None and not 0 <= self.draft <= DRAFT_MAX:
            raise UsageError(f"draft is {self.draft}: expected 0 to {DRAFT_MAX} tokens")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}: expected at least 1")
        if len(self.stop) > STOP_STRINGS_MAX:
            raise UsageError(f"stop has {len(self.stop)} strings: at most {STOP_STRINGS_MAX}")
        for string in self.stop:
            if not 1 <= len(string) <= STOP_CHARS_MAX:
                raise UsageError(
                    f"a stop string has {len(string)} characters: expected 1 to {STOP_CHARS_MAX}"
                )


@dataclass(frozen=True)
class Generated:
    """One token. Its text may be empty: half a character, or the possible start of a stop string,
    is held back and comes with a later event. logprob as in `Choice`."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Finish:
    """The last event.

    reason              "stop": an end token or a stop string; "length": max_tokens or the context
    text                what was still held back
    completion_tokens   `Generated` events before this one (an end token is not counted)
    prompt_seconds      time the engine took for the prompt
    generation_seconds  time the engine took afterwards, without the time its caller took
    speculation         what drafts did; None when there were none to be
    """

    reason: Literal["stop", "length"]
    text: str
    prompt_tokens: int
    completion_tokens: int
    prompt_seconds: float
    generation_seconds: float
    speculation: Speculation | None = None


def check_prompt(prompt_tokens: int, context: int, cached_tokens: int = 0) -> None:
    """Raises InputRefusedError when a prompt is empty, ContextLengthError when it does not fit
    behind what is already cached."""
    if prompt_tokens == 0:
        raise InputRefusedError("the prompt is empty: expected at least 1 token, found 0")
    if cached_tokens + prompt_tokens > context:
        raise ContextLengthError(cached_tokens + prompt_tokens, context)


def rewind_to_shared(session: Session, cached: Sequence[int], ids: Sequence[int]) -> Sequence[int]:
    """Rewind a session that holds `cached` to its longest common prefix with `ids`.

    Returns the rest of `ids`, which is what is left to advance; at least one token, as logits exist
    only after an advance.
    """
    shared = 0
    for old, new in zip(cached, ids[:-1], strict=False):
        if old != new:
            break
        shared += 1
    if shared < session.position:
        session.rewind(shared)
    return ids[shared:]


def generate(
    model: LanguageModel,
    session: Session,
    prompt_ids: Sequence[int],
    options: GenerateOptions,
    cached: Sequence[int] = (),
) -> Iterator[Generated | Finish]:
    """Append a prompt to a session and generate from there, one event per token.

    Refuses the prompt at once (see `check_prompt`, counting what the session already holds); the
    engine runs only while the iterator is advanced, so that a caller cancels by stopping. The last
    token is not advanced: at every event the session holds every token but that one.

    cached: the ids the session holds already, where known, for drafts to quote.
    """
    check_prompt(len(prompt_ids), session.context, session.position)
    return _events(model, session, prompt_ids, options, cached)


def _events(
    model: LanguageModel,
    session: Session,
    prompt_ids: Sequence[int],
    options: GenerateOptions,
    cached: Sequence[int],
) -> Iterator[Generated | Finish]:
    sampler = Sampler(options.sampling)
    output = _Output(StreamDecoder(model.text, prompt_ids), options.stop)
    end_ids = model.text.end_ids
    draft_max = _draft_max(options, model)
    drafted = DraftedSession(session, [*cached, *prompt_ids], draft_max)
    started = perf_counter()
    logits = session.advance(prompt_ids)
    resumed = perf_counter()
    prompt_seconds, generation_seconds, count = resumed - started, 0.0, 0
    reason: Literal["stop", "length"] = "stop"
    while True:
        choice = sampler.pick(logits, session.position)
        if choice.id in end_ids:
            break
        count += 1
        piece = output.push(choice.id)
        generation_seconds += perf_counter() - resumed
        yield Generated(choice.id, piece, choice.logprob)
        resumed = perf_counter()
        if output.stopped:
            break
        if count == options.max_tokens or session.position == session.context:
            reason = "length"
            break
        logits = drafted.advance(choice.id, (options.max_tokens or session.context) - count - 1)
    rest = output.flush()
    if output.stopped:
        reason = "stop"
    generation_seconds += perf_counter() - resumed
    speculation = drafted.speculation if draft_max else None
    yield Finish(
        reason, rest, len(prompt_ids), count, prompt_seconds, generation_seconds, speculation
    )


def _draft_max(options: GenerateOptions, model: LanguageModel) -> int:
    if options.draft is not None:
        return options.draft
    return DRAFT_MAX if model.streamed else 0


class _Output:
    """Text that may be given out: whole characters, and nothing from a stop string on."""

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._decoder = decoder
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""

    def push(self, token_id: int) -> str:
        self._held += self._decoder.push(token_id)
        self._cut_at_stop()
        keep = 0 if self.stopped else self._partial()
        return self._give(len(self._held) - keep)

    def flush(self) -> str:
        if not self.stopped:
            self._held += self._decoder.flush()
            self._cut_at_stop()
        return self._give(len(self._held))

    def _give(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _cut_at_stop(self) -> None:
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = self._held[: min(found)]

    def _partial(self) -> int:
        """Length of the longest end of the held text that may be the start of a stop string."""
        for length in range(min(len(self._held), self._longest - 1), 0, -1):
            end = self._held[-length:]
            if any(string.startswith(end) for string in self._stop):
                return length
        return 0
