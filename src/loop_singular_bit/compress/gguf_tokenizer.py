"""GGUF tokenizer metadata -> tokenizer.json, tokenizer_config.json and chat_template.jinja.

Two kinds of vocabulary: "gpt2", byte-level BPE with its merges in the file, and "llama",
SentencePiece BPE, whose merges follow from the scores of its pieces. How llama.cpp splits text
before the merges (tokenizer.ggml.pre) is the convention followed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from gguf.constants import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

from loop_singular_bit.compress.gguf_config import token_ids
from loop_singular_bit.errors import TokenizerError
from loop_singular_bit.models.config_fields import ConfigFields
from loop_singular_bit.models.spec import ModelSpec

_Kind = TypeVar("_Kind", str, int, float)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before the merges: each pattern isolates its matches in turn.

    whole_words  a piece that is a token is taken as it is, whatever the merges would give
    add_bos      whether a text starts with the begin token, where the file does not say
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_LLAMA3 = PreTokenizer(
    (rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}|{_REST}",), whole_words=True, add_bos=True
)
_QWEN2 = PreTokenizer((rf"{_CONTRACTIONS}|\p{{N}}|{_REST}",), nfc=True)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
}


@dataclass(frozen=True)
class _Vocabulary:
    """tokens in the order of their ids; types as in gguf's TokenType."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def of_type(self, *types: TokenType) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def tokenizer_files(metadata: Mapping[str, object], spec: ModelSpec) -> dict[str, bytes]:
    """The tokenizer's files of the Hugging Face shape, by file name.

    Raises TokenizerError for a kind of tokenizer that we do not know (named), and for lists that
    are missing or contradict each other; ConfigError for other metadata of a wrong type.
    """
    fields = ConfigFields(metadata)
    kind = fields.text("tokenizer.ggml.model", "")
    vocabulary = _vocabulary(metadata)
    if kind == "gpt2":
        scheme = _pre_tokenizer(fields)
        tokenizer, add_bos = _byte_level(metadata, vocabulary, scheme), scheme.add_bos
    elif kind == "llama":
        tokenizer, add_bos = _sentencepiece(fields, vocabulary), True
    else:
        raise TokenizerError(f'tokenizer.ggml.model is {kind!r}, expected "gpt2" or "llama"')
    add_bos = fields.flag("tokenizer.ggml.add_bos_token", add_bos)
    add_eos = fields.flag("tokenizer.ggml.add_eos_token", default=False)
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.context_max,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        **_special_tokens(metadata, vocabulary),
    }
    _add_tokens(tokenizer, vocabulary)
    _add_template(tokenizer, config, add_bos, add_eos)
    template = fields.text("tokenizer.chat_template", "")
    if template:
        config["chat_template"] = template
    files = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False).encode(),
    }
    return files | ({"chat_template.jinja": template.encode()} if template else {})


def _vocabulary(metadata: Mapping[str, object]) -> _Vocabulary:
    tokens = _list(metadata, "tokens", str)
    types = _list(metadata, "token_type", int)
    if len(types) != len(tokens):
        raise TokenizerError(
            f"tokenizer.ggml.token_type has {len(types)} entries, expected {len(tokens)} "
            "as tokenizer.ggml.tokens"
        )
    # Rows that pad the embedding to a round number are no tokens.
    while types and types[-1] == TokenType.UNUSED:
        tokens.pop()
        types.pop()
    if len(set(tokens)) != len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise TokenizerError(f"tokenizer.ggml.tokens has {twice!r} twice, expected once")
    return _Vocabulary(tuple(tokens), tuple(types))


def _list(metadata: Mapping[str, object], name: str, kind: type[_Kind]) -> list[_Kind]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise TokenizerError(
            f"tokenizer.ggml.{name} is {'missing' if values is None else 'of another type'}, "
            f"expected a list of {kind.__name__}"
        )
    return list(values)


def _pre_tokenizer(fields: ConfigFields) -> PreTokenizer:
    """Files from before tokenizer.ggml.pre existed: only Qwen2's is known from the architecture."""
    known = ", ".join(PRE_TOKENIZERS)
    name = fields.text("tokenizer.ggml.pre", "")
    if not name and fields.values.get("general.architecture") == "qwen2":
        return _QWEN2
    if not name:
        raise TokenizerError(
            f"tokenizer.ggml.pre is missing, expected one of: {known}; convert the model again"
        )
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(f"tokenizer.ggml.pre is {name!r}, expected one of: {known}")
    return PRE_TOKENIZERS[name]


def _byte_level(
    metadata: Mapping[str, object], vocabulary: _Vocabulary, scheme: PreTokenizer
) -> Tokenizer:
    ids = vocabulary.ids
    merges = []
    for line in _list(metadata, "merges", str):
        # A piece may itself begin with a space, so the separator is the first one after it.
        cut = line.find(" ", 1)
        left, right = line[:cut], line[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise TokenizerError(
                f"tokenizer.ggml.merges has {line!r}, expected two tokens that join to a third"
            )
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=scheme.whole_words))
    if scheme.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre.Split(Regex(pattern), "isolated") for pattern in scheme.patterns]
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: ConfigFields, vocabulary: _Vocabulary) -> Tokenizer:
    unknown = vocabulary.of_type(TokenType.UNKNOWN)
    if len(unknown) != 1:
        raise TokenizerError(
            f"tokenizer.ggml.token_type marks {len(unknown)} tokens as unknown, expected 1"
        )
    scores = _list(fields.values, "scores", float)
    model = models.BPE(
        vocabulary.ids,
        sentencepiece_merges(vocabulary.tokens, vocabulary.types, scores),
        unk_token=unknown[0],
        fuse_unk=True,
        byte_fallback=bool(vocabulary.of_type(TokenType.BYTE)),
    )
    tokenizer = Tokenizer(model)
    escape = normalizers.Replace(" ", "▁")
    unescape = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.flag("tokenizer.ggml.add_space_prefix", default=True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), escape])
        tokenizer.decoder = decoders.Sequence([*unescape, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = escape
        tokenizer.decoder = decoders.Sequence(unescape)
    return tokenizer


def sentencepiece_merges(
    tokens: tuple[str, ...], types: tuple[int, ...], scores: list[float]
) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE: every way to join two pieces to a third, best score first.

    SentencePiece itself joins the neighbours whose union has the best score; among joins of the
    same union the one whose parts are older (lower ids) goes first.
    """
    if len(scores) < len(tokens):
        raise TokenizerError(
            f"tokenizer.ggml.scores has {len(scores)} entries, expected {len(tokens)}"
        )
    kinds = (TokenType.NORMAL, TokenType.USER_DEFINED)
    ids = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in kinds}
    normal = {scores[i] for t, i in ids.items() if types[i] == TokenType.NORMAL and len(t) > 1}
    if len(normal) == 1 and len(ids) > 2:
        raise TokenizerError("tokenizer.ggml.scores are all the same, expected one for each merge")
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, index in ids.items():
        if types[index] != TokenType.NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[index], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _special_tokens(metadata: Mapping[str, object], vocabulary: _Vocabulary) -> dict[str, str]:
    """Texts of the special tokens under the Hub's names: bos_token, eos_token, ..."""
    texts = {}
    for name, index in token_ids(metadata).items():
        if index >= len(vocabulary.tokens):
            raise TokenizerError(f"{name} is {index}, expected less than {len(vocabulary.tokens)}")
        texts[name.removesuffix("_id")] = vocabulary.tokens[index]
    return texts


def _add_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Tokens that are found in the text before anything else, under the ids they have already."""
    special = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    plain = vocabulary.of_type(TokenType.USER_DEFINED)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])


def _add_template(
    tokenizer: Tokenizer, config: Mapping[str, object], add_bos: bool, add_eos: bool
) -> None:
    """Begin and end tokens around every text, as the file asks."""
    asked = (("bos_token", add_bos), ("eos_token", add_eos))
    for name, wanted in asked:
        if wanted and name not in config:
            raise TokenizerError(
                f"tokenizer.ggml.add_{name} is true, expected an id in tokenizer.ggml.{name}_id"
            )
    bos = f"{config['bos_token']}" if add_bos else ""
    eos = f"{config['eos_token']}" if add_eos else ""
    used = [token for token in (bos, eos) if token]
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[token for token in (bos, "$A", eos) if token],
            pair=[t for t in (bos, "$A", eos, bos and f"{bos}:1", "$B:1", eos and f"{eos}:1") if t],
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in dict.fromkeys(used)],
        )
