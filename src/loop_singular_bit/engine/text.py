"""Text to token ids and back, exactly as the model's own tokenizer files say.

Control tokens (`<|im_end|>`, `</s>`) are what a person must not be able to type. In a chat they may
come from the template only. Each message is tokenized once by itself; wherever that meets a control
token, a private marker character is put inside it. The template is then rendered with the marked
messages (so it may trim or test them as usual), the markers are taken out, and the prompt is
tokenized as one text. A control token at a marked place came from a message: the stretch between
the template's control tokens around it is tokenized again as plain text. A chat without such text,
nearly every chat, is therefore tokenized token for token as `transformers` does.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from tokenizers import Encoding, Tokenizer

from loop_singular_bit.engine.template import ROLES, ChatTemplate, Message, check_size
from loop_singular_bit.errors import ConfigError, InputRefusedError, LoopError, TokenizerError

_PRIVATE_USE = range(0xE000, 0xF900)
_BROKEN = "\ufffd"
# Tokens held back before broken bytes are given out as they are. A whole character is at most four
# bytes, hence four tokens, so only a stream of invalid UTF-8 gets here.
_HELD_TOKENS_MAX = 64

_TokenId = Annotated[int, msgspec.Meta(ge=0)]
_EndIds = _TokenId | list[_TokenId] | None


class _Config(msgspec.Struct):
    """The fields of config.json that text needs."""

    vocab_size: Annotated[int, msgspec.Meta(ge=1)]
    eos_token_id: _EndIds = None


class _GenerationConfig(msgspec.Struct):
    eos_token_id: _EndIds = None


class _NamedToken(msgspec.Struct):
    content: str


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    bos_token: str | _NamedToken | None = None
    eos_token: str | _NamedToken | None = None
    pad_token: str | _NamedToken | None = None
    unk_token: str | _NamedToken | None = None
    add_bos_token: bool | None = None
    chat_template: str | list[_NamedTemplate] | None = None

    def token_names(self) -> dict[str, str]:
        """The control tokens a template may name, as text."""
        tokens = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "unk_token": self.unk_token,
        }
        return {
            name: token if isinstance(token, str) else token.content
            for name, token in tokens.items()
            if token is not None
        }


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def _read(path: Path, kind: type[_Struct], error: type[LoopError]) -> _Struct:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as failure:
        raise error(f"{path}: no such file") from failure
    except OSError as failure:
        raise error(f"{path}: {failure.strerror}") from failure
    except (msgspec.DecodeError, RecursionError) as failure:
        raise error(f"{path}: {failure}") from failure


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        source = path.read_bytes()  # as a str it may take four times as much
    except FileNotFoundError as failure:
        raise TokenizerError(f"{path}: no such file") from failure
    except OSError as failure:
        raise TokenizerError(f"{path}: {failure}") from failure
    try:
        tokenizer = Tokenizer.from_buffer(source)
    except Exception as failure:  # the library raises Exception itself and nothing narrower
        raise TokenizerError(f"{path}: not a tokenizer: {failure}") from failure
    # A training-time length limit in the file would cut prompts without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _end_ids(*fields: _EndIds) -> frozenset[int]:
    ids: set[int] = set()
    for field in fields:
        if field is not None:
            ids.update([field] if isinstance(field, int) else field)
    return frozenset(ids)


def _chat_template(directory: Path, config: _TokenizerConfig) -> ChatTemplate | None:
    """chat_template.jinja, else the (default) template of tokenizer_config.json, else none."""
    path = directory / "chat_template.jinja"
    source: str | None = None
    if path.exists():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise TokenizerError(f"{path}: {failure}") from failure
    elif isinstance(config.chat_template, str):
        source = config.chat_template
    elif config.chat_template is not None:
        source = next((t.template for t in config.chat_template if t.name == "default"), None)
    return None if source is None else ChatTemplate(source, config.token_names())


class Text:
    """A model's tokenizer, chat template and end-of-text ids. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocab: int,
        end_ids: frozenset[int],
        bos_id: int | None = None,
        add_bos: bool | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        """`add_bos` None leaves the matter to the tokenizer's own post-processor."""
        self.vocab = vocab
        self.end_ids = end_ids
        self._tokenizer = tokenizer
        self._bos_id = bos_id
        self._add_bos = add_bos
        self._template = template
        self._lock = threading.Lock()
        self._control_ids = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )

    @classmethod
    def open(cls, directory: Path) -> Text:
        """Read the tokenizer of a model directory in the Hugging Face shape.

        config.json and tokenizer.json are required; generation_config.json, tokenizer_config.json
        and chat_template.jinja are read where present. `end_ids` is every `eos_token_id` of
        generation_config.json and config.json, never derived from token names.
        Raises TokenizerError or ConfigError naming the file.
        """
        config = _read(directory / "config.json", _Config, ConfigError)
        generation, naming = _GenerationConfig(), _TokenizerConfig()
        if (directory / "generation_config.json").exists():
            path = directory / "generation_config.json"
            generation = _read(path, _GenerationConfig, ConfigError)
        if (directory / "tokenizer_config.json").exists():
            path = directory / "tokenizer_config.json"
            naming = _read(path, _TokenizerConfig, TokenizerError)
        tokenizer = _read_tokenizer(directory / "tokenizer.json")
        bos = naming.token_names().get("bos_token")
        bos_id = None if bos is None else tokenizer.token_to_id(bos)
        if naming.add_bos_token and bos_id is None:
            raise TokenizerError(
                f"{directory / 'tokenizer_config.json'}: add_bos_token is true but bos_token"
                f" {bos!r} is not in the vocabulary"
            )
        return cls(
            tokenizer,
            vocab=config.vocab_size,
            end_ids=_end_ids(generation.eos_token_id, config.eos_token_id),
            bos_id=bos_id,
            add_bos=naming.add_bos_token,
            template=_chat_template(directory, naming),
        )

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text, with the beginning-of-text token where the tokenizer's files ask for it.

        special  True: control tokens written in the text become control ids.
                 False: they stay plain text, as anything a person typed must.
        Raises InputRefusedError on text that is not Unicode, TokenizerError on an id the model's
        vocabulary does not have.
        """
        wrap = self._add_bos is not False
        ids = self._encoding(text, special=special, wrap=wrap).ids
        if self._add_bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids = [self._bos_id, *ids]
        return self._checked(ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """A question: one user message where there is a chat template, else text to go on from."""
        if self.has_chat_template:
            return self.render_chat([Message("user", prompt)])
        return self.encode(prompt, special=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. Control tokens have none; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def render_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the prompt that asks for the next assistant message.

        Control ids come from the model's template only, never from a message (module docstring).
        Raises InputRefusedError on an empty conversation or unknown role, TokenizerError when the
        model has no chat template, the template fails, or the chat is too long for it.
        """
        if self._template is None:
            raise TokenizerError(
                "this model has no chat template (chat_template.jinja): it completes text only"
            )
        if not messages:
            raise InputRefusedError("a chat needs at least one message, found 0")
        for message in messages:
            if message.role not in ROLES:
                expected = ", ".join(ROLES)
                raise InputRefusedError(f"role {message.role!r} is unknown: expected {expected}")
        check_size(sum(len(message.content) for message in messages))
        marker = _unused_character(message.content for message in messages)
        rendered = self._template.render(
            [Message(m.role, self._mark_controls(m.content, marker)) for m in messages]
        )
        pieces = rendered.split(marker)
        marks = list(accumulate(len(piece) for piece in pieces[:-1]))
        return self._checked(self._encode_marked("".join(pieces), marks))

    def _encoding(self, text: str, *, special: bool, wrap: bool = False) -> Encoding:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputRefusedError(
                f"the text is not Unicode: character {error.start} is half of a surrogate pair"
            ) from error
        with self._lock:  # the switch belongs to the tokenizer, not to the call
            self._tokenizer.encode_special_tokens = not special
            return self._tokenizer.encode(text, add_special_tokens=wrap)

    def _mark_controls(self, content: str, marker: str) -> str:
        """Put the marker after the first character of every control token in a message."""
        encoding = self._encoding(content, special=True)
        pieces: list[str] = []
        done = 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self._control_ids:
                # Some control tokens swallow the spaces before them; a template may trim those.
                spaces = end - start - len(content[start:end].lstrip())
                cut = start + spaces + 1
                pieces.append(content[done:cut])
                done = cut
        return marker.join([*pieces, content[done:]])

    def _encode_marked(self, text: str, marks: Sequence[int]) -> list[int]:
        """Encode a rendered chat; a control token with one of the sorted marks inside is text."""
        encoding = self._encoding(text, special=True)
        if not marks:
            return encoding.ids
        ids: list[int] = []
        section: list[int] = []
        start_section, forged = 0, False
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            nearest = bisect_right(marks, start)
            marked = nearest < len(marks) and marks[nearest] <= end
            if token_id in self._control_ids and not marked:
                plain = text[start_section:start]
                ids += self._encoding(plain, special=False).ids if forged else section
                ids.append(token_id)
                section, start_section, forged = [], end, False
            else:
                section.append(token_id)
                forged = forged or token_id in self._control_ids
        plain = text[start_section:]
        return ids + (self._encoding(plain, special=False).ids if forged else section)

    def _checked(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.vocab:
            raise TokenizerError(
                f"the tokenizer gave id {max(ids)} but the model's vocabulary ends at"
                f" {self.vocab - 1}: tokenizer.json belongs to another model"
            )
        return ids


def _unused_character(contents: Iterable[str]) -> str:
    used: set[str] = set()
    for content in contents:
        used.update(content)
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise InputRefusedError(
        f"the messages use all {len(_PRIVATE_USE)} private-use characters from U+E000 to U+F8FF:"
        " expected at least one to be free"
    )


class StreamDecoder:
    """Text of a growing sequence of ids, piece by piece, never half a character.

    The pieces together are `Text.decode` of all ids. After `prompt_ids` they continue that text,
    with the space before a first word that some tokenizers drop at the very start.
    """

    def __init__(self, text: Text, prompt_ids: Sequence[int] = ()) -> None:
        self._text = text
        self._ids = self._tail(prompt_ids)
        self._given = len(self._ids)

    def push(self, token_id: int) -> str:
        """Append one id; the text that is final now, perhaps empty."""
        self._ids.append(token_id)
        piece = self._pending()
        held = len(self._ids) - self._given
        if held < _HELD_TOKENS_MAX and (not piece or piece.endswith(_BROKEN)):
            return ""
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)
        return piece

    def flush(self) -> str:
        """Text still held back: bytes that never became a character, as U+FFFD."""
        piece = self._pending()
        self._given = len(self._ids)
        return piece

    def _tail(self, prompt_ids: Sequence[int]) -> list[int]:
        """The last few ids of the prompt, as a token's text can depend on those before it.

        They must not start inside a character (at most four ids long), or all would be broken.
        """
        for count in range(4, 8):
            tail = list(prompt_ids[-count:])
            if _BROKEN not in self._text.decode(tail):
                return tail
        return []

    def _pending(self) -> str:
        before = self._text.decode(self._ids[: self._given])
        return self._text.decode(self._ids)[len(before) :]
