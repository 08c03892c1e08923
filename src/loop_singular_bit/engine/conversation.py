"""A chat that goes on: messages, and the one session that has read them."""

from __future__ import annotations

from collections.abc import Iterator

from loop_singular_bit.engine.generate import (
    Finish,
    Generated,
    GenerateOptions,
    check_prompt,
    generate,
    rewind_to_shared,
)
from loop_singular_bit.engine.session import LanguageModel, Session
from loop_singular_bit.engine.template import Message


class Conversation:
    """Between turns the KV cache is kept: only what the chat template renders differently from
    what the cache holds is read again."""

    def __init__(
        self,
        model: LanguageModel,
        session: Session,
        options: GenerateOptions,
        system: str | None = None,
    ) -> None:
        """`session` must be empty; `system` is the message the conversation starts with."""
        self._model = model
        self._session = session
        self._options = options
        self._system = [] if system is None else [Message("system", system)]
        self._messages = list(self._system)
        self._cached: list[int] = []
        self._interrupted = False

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    def reset(self) -> None:
        """Forget all messages but the system message."""
        self._messages = list(self._system)

    def interrupt(self) -> None:
        """End the answer being generated after its next token; what there is of it is kept."""
        self._interrupted = True

    def answer(self, content: str) -> Iterator[Generated | Finish]:
        """Events of the answer to a user's message; no `Finish` when interrupted. The turn counts
        once the iterator is exhausted.

        Raises InputRefusedError when the conversation does not fit; the message is then forgotten.
        """
        asked = [*self._messages, Message("user", content)]
        ids = self._model.text.render_chat(asked)
        check_prompt(len(ids), self._session.context)
        rest = rewind_to_shared(self._session, self._cached, ids)
        self._interrupted = False
        answer = ""
        try:
            held = ids[: self._session.position]
            for event in generate(self._model, self._session, rest, self._options, held):
                answer += event.text
                if isinstance(event, Generated):
                    ids.append(event.id)
                yield event
                if self._interrupted:
                    break
        finally:
            # The last token is not in the cache, and after a failure neither is the rest.
            self._cached = ids[: self._session.position]
        self._messages = [*asked, Message("assistant", answer)]
