"""A model's own chat template: untrusted Jinja, run in a sandbox, bounded in size.

The environment is the one the templates were written for, that of `transformers`: trimmed blocks,
loop controls, `raise_exception`, `strftime_now`, and a `tojson` that does not escape HTML.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from loop_singular_bit.errors import TokenizerError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDERED_CHARS_MAX = 1_000_000
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; role is one of ROLES."""

    role: str
    content: str


def check_size(chars: int) -> None:
    """Raises TokenizerError when a chat is longer than RENDERED_CHARS_MAX."""
    if chars > RENDERED_CHARS_MAX:
        raise TokenizerError(
            f"the chat has {chars} characters or more: at most {RENDERED_CHARS_MAX} are taken,"
            " send fewer or shorter messages"
        )


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _environment() -> ImmutableSandboxedEnvironment:
    # Imported here: a run that never chats does not pay for Jinja's memory.
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks training targets; here its body is simply rendered."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A template's source and the names of control tokens it may use (`bos_token` and so on)."""

    def __init__(self, source: str, token_names: Mapping[str, str]) -> None:
        self._source = source
        self._token_names = dict(token_names)

    @cached_property
    def _compiled(self) -> Template:
        return _environment().from_string(self._source)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for the next assistant message.

        Raises TokenizerError when the template is malformed, refuses the messages, fails, or writes
        more than RENDERED_CHARS_MAX characters.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            return self._render(messages)
        except TemplateSyntaxError as error:
            what = f"is malformed at line {error.lineno}: {error.message}"
            failure: Exception = error
        except TemplateError as error:
            what, failure = f"refuses these messages: {error}", error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            # A template is a program, and these are the ways a sandboxed one can fail.
            what, failure = f"failed with {type(error).__name__}: {error}", error
        raise TokenizerError("the model's chat template " + " ".join(what.split())) from failure

    def _render(self, messages: Sequence[Message]) -> str:
        pieces: list[str] = []
        size = 0
        for piece in self._compiled.generate(
            messages=[asdict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._token_names,
        ):
            size += len(piece)
            check_size(size)
            pieces.append(piece)
        return "".join(pieces)
