"""Tokenizers from GGUF metadata against tokenizer.json, literal splits, and a plain reference."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import TokenType
from tiny import (
    CHAT_TEMPLATE,
    PRE_TOKENIZERS,
    TEXT,
    USER_TOKEN,
    Tiny,
    tiny_config,
    tiny_tokenizer,
    write_tiny_gguf,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.trainers import BpeTrainer

from loop_singular_bit.compress.gguf_file import read_header
from loop_singular_bit.compress.gguf_tokenizer import tokenizer_files
from loop_singular_bit.errors import TokenizerError
from loop_singular_bit.models.families import spec_from_config

SPEC = spec_from_config(tiny_config(Tiny()))
VARIED = (
    *TEXT,
    "",
    " ",
    "a",
    "\n",
    "  two  spaces\tand a tab \r\n\r\n  ",
    "1234567890 in 2024, 3.14159 and 1,000,000; ½ ² Ⅷ ٣٤٥ １２３",
    "if (x != y) { return x->z[0] ** 2; }  // they're THEY'RE I'Ve",
    "naïve café e\u0301 \u00a0 \u3000 ﬁ Å Å",
    "مرحبا हिन्दी 한국어 日本語 👩‍👩‍👧 😀",
    "<|im_start|>user\nhi<|im_end|> <|endoftext|>",
    f"{USER_TOKEN}{{}} x{USER_TOKEN}  <|im_start|>",
    "<|im_start|",
)


def gguf_metadata(folder: Path, family: str, **changes: Any) -> dict[str, object]:
    """Metadata of a tiny GGUF; the names of changes follow "tokenizer."; None takes a key out."""
    header = read_header(write_tiny_gguf(folder / "m.gguf", family))
    dotted = {f"tokenizer.{n.replace('__', '.')}": value for n, value in changes.items()}
    metadata = {**header.metadata, **dotted}
    return {name: value for name, value in metadata.items() if value is not None}


def build(metadata: dict[str, object]) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files(metadata, SPEC)["tokenizer.json"].decode())


def refusal(metadata: dict[str, object]) -> str:
    with pytest.raises(TokenizerError) as caught:
        tokenizer_files(metadata, SPEC)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("text", VARIED)
def test_same_ids_as_tokenizer_json(tmp_path: Path, family: str, text: str) -> None:
    expected = Tokenizer.from_str(
        tiny_tokenizer(PRE_TOKENIZERS[family], add_bos=family == "mistral")
    )
    found = build(gguf_metadata(tmp_path, family))
    assert found.encode(text).ids == expected.encode(text).ids
    plain = found.encode(text, add_special_tokens=False).ids
    assert plain == expected.encode(text, add_special_tokens=False).ids
    for skip in (True, False):
        assert found.decode(plain, skip) == expected.decode(plain, skip)


def test_same_tokens_as_tokenizer_json(tmp_path: Path) -> None:
    expected = json.loads(tiny_tokenizer("smollm"))
    document = json.loads(build(gguf_metadata(tmp_path, "llama")).to_str())
    assert document["model"]["vocab"] == expected["model"]["vocab"]
    assert document["model"]["merges"] == expected["model"]["merges"]
    assert document["added_tokens"] == expected["added_tokens"]


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "it's 2024 x", ["it", "'s", "Ġ2024", "Ġx"]),
        ("smollm", "it's 2024 x", ["it", "'s", "Ġ", "2", "0", "2", "4", "Ġx"]),
        ("qwen2", "IT'S 2024 (x)\n\n", ["IT", "'S", "Ġ", "2", "0", "2", "4", "Ġ(", "x", ")ĊĊ"]),
        ("llama-bpe", "IT'S 20245 (x)\n", ["IT", "'S", "Ġ", "202", "45", "Ġ(", "x", ")Ċ"]),
        ("tekken", "iPhone 20 a/\n", ["i", "Phone", "Ġ", "2", "0", "Ġa", "/Ċ"]),
        ("default", "a<=b 20245", ["a", "<=", "b", "Ġ", "202", "45"]),
    ],
)
def test_splits(tmp_path: Path, name: str, text: str, pieces: list[str]) -> None:
    tokenizer = build(gguf_metadata(tmp_path, "llama", ggml__pre=name))
    assert tokenizer.pre_tokenizer is not None
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(("name", "nfc"), [("qwen2", True), ("llama-bpe", False)])
def test_only_qwen2_composes_characters(tmp_path: Path, name: str, nfc: bool) -> None:
    tokenizer = build(gguf_metadata(tmp_path, "llama", ggml__pre=name, ggml__add_bos_token=False))
    text = "cafe\u0301"
    assert tokenizer.decode(tokenizer.encode(text).ids) == ("caf\u00e9" if nfc else text)


def test_whole_words_before_merges(tmp_path: Path) -> None:
    """Llama 3 takes a piece that is a token as it is, even where no merges lead to it."""
    metadata = gguf_metadata(tmp_path, "llama", ggml__add_bos_token=False)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    tokens.append("zqj")
    types.append(int(TokenType.NORMAL))
    assert build(metadata | {"tokenizer.ggml.pre": "llama-bpe"}).encode("zqj").tokens == ["zqj"]
    assert build(metadata | {"tokenizer.ggml.pre": "gpt-2"}).encode("zqj").tokens == list("zqj")


def test_rows_that_pad_the_embedding_are_no_tokens(tmp_path: Path) -> None:
    metadata = read_header(write_tiny_gguf(tmp_path / "m.gguf", vocab=800)).metadata
    tokenizer = build(dict(metadata))
    expected = json.loads(tiny_tokenizer("smollm", 800))["model"]["vocab"]
    assert 512 < len(expected) < 800
    assert tokenizer.get_vocab_size() == len(expected)


def test_qwen2_from_before_the_key_existed(tmp_path: Path) -> None:
    with_key = build(gguf_metadata(tmp_path, "qwen2"))
    assert build(gguf_metadata(tmp_path, "qwen2", ggml__pre=None)).to_str() == with_key.to_str()


def test_begin_and_end_tokens(tmp_path: Path) -> None:
    ids = build(gguf_metadata(tmp_path, "llama", ggml__add_bos_token=None)).encode("a").ids
    for bos, eos in ((True, False), (False, True), (True, True)):
        metadata = gguf_metadata(
            tmp_path, "llama", ggml__add_bos_token=bos, ggml__add_eos_token=eos
        )
        assert build(metadata).encode("a").ids == [1] * bos + ids + [2] * eos


def test_llama3_begins_with_bos_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    silent = gguf_metadata(tmp_path, "llama", ggml__pre="llama-bpe", ggml__add_bos_token=None)
    assert build(silent).encode("a").ids[0] == 1
    assert build(silent | {"tokenizer.ggml.add_bos_token": False}).encode("a").ids[0] != 1


def test_tokenizer_config_and_template(tmp_path: Path) -> None:
    files = tokenizer_files(gguf_metadata(tmp_path, "mistral"), SPEC)
    assert files["chat_template.jinja"].decode() == CHAT_TEMPLATE
    assert json.loads(files["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": CHAT_TEMPLATE,
    }


def test_no_template(tmp_path: Path) -> None:
    files = tokenizer_files(gguf_metadata(tmp_path, "llama", chat_template=None), SPEC)
    assert sorted(files) == ["tokenizer.json", "tokenizer_config.json"]
    assert "chat_template" not in json.loads(files["tokenizer_config.json"])


@pytest.mark.parametrize("kind", ["bert", None])
def test_unknown_kind_of_tokenizer(tmp_path: Path, kind: str | None) -> None:
    message = refusal(gguf_metadata(tmp_path, "llama", ggml__model=kind))
    assert f'tokenizer.ggml.model is {kind or ""!r}, expected "gpt2" or "llama"' in message


@pytest.mark.parametrize(("name", "found"), [("jais", "'jais'"), (None, "missing")])
def test_unknown_pre_tokenizer(tmp_path: Path, name: str | None, found: str) -> None:
    message = refusal(gguf_metadata(tmp_path, "llama", ggml__pre=name))
    assert f"tokenizer.ggml.pre is {found}, expected one of: default, gpt-2, smollm" in message


@pytest.mark.parametrize("name", ["tokens", "token_type", "merges"])
def test_missing_list(tmp_path: Path, name: str) -> None:
    message = refusal(gguf_metadata(tmp_path, "llama", **{f"ggml__{name}": None}))
    assert f"tokenizer.ggml.{name} is missing, expected a list of" in message
    message = refusal(gguf_metadata(tmp_path, "llama", **{f"ggml__{name}": [1.5]}))
    assert f"tokenizer.ggml.{name} is of another type" in message


@pytest.mark.parametrize("line", ["t", "t zzz", "zzz t", "t 1", ""])
def test_merge_that_is_none(tmp_path: Path, line: str) -> None:
    message = refusal(gguf_metadata(tmp_path, "llama", ggml__merges=["t h", line]))
    assert f"tokenizer.ggml.merges has {line!r}" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"token_type": [1, 1]}, "token_type has 2 entries, expected 3"),
        ({"tokens": ["a", "b", "a"]}, "tokens has 'a' twice"),
        ({"eos_token_id": 3}, "eos_token_id is 3, expected less than 3"),
        ({"add_bos_token": True}, "add_bos_token is true, expected an id"),
        ({"add_eos_token": True}, "add_eos_token is true, expected an id"),
    ],
)
def test_lists_that_contradict_each_other(changes: dict[str, object], expected: str) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
    }
    named = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    assert build(metadata).encode("abb").ids == [2, 1]
    assert expected in refusal(metadata | named)


@pytest.fixture(scope="module")
def pieces() -> dict[str, object]:
    """SentencePiece metadata: <unk>, <s>, </s>, 256 bytes, a user token, trained pieces."""
    trained = Tokenizer(BPE())
    trained.normalizer = Replace(" ", "▁")
    trained.train_from_iterator(TEXT, BpeTrainer(vocab_size=400, show_progress=False))
    vocabulary = trained.get_vocab()
    learned = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "[INST]"]
    types = [TokenType.UNKNOWN] + [TokenType.CONTROL] * 2 + [TokenType.BYTE] * 256
    types += [TokenType.USER_DEFINED] + [TokenType.NORMAL] * len(learned)
    scores = [0.0] * len(tokens) + [-float(rank) for rank in range(len(learned))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*tokens, *learned],
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def sentencepiece_ids(metadata: dict[str, Any], text: str) -> list[int]:
    """SentencePiece's BPE, plainly: join the neighbours whose union scores best, leftmost first;
    what is no piece in the end becomes its bytes."""
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores = metadata["tokenizer.ggml.scores"]
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [(a + b, place) for place, (a, b) in enumerate(pairwise(parts))]
        known = [(-scores[ids[union]], place) for union, place in unions if union in ids]
        if not known:
            break
        _, place = min(known)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [
        index
        for part in parts
        for index in ([ids[part]] if part in ids else (ids[f"<0x{b:02X}>"] for b in part.encode()))
    ]


@pytest.mark.parametrize("text", [t for t in VARIED if t and "<|" not in t])
def test_sentencepiece_ids(pieces: dict[str, object], text: str) -> None:
    tokenizer = build(pieces)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == sentencepiece_ids(pieces, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text).ids == [1, *ids]


def test_sentencepiece_special_tokens(pieces: dict[str, object]) -> None:
    tokenizer = build(pieces)
    ids = tokenizer.encode("<s>[INST] the </s>the", add_special_tokens=False).ids
    assert (ids[0], ids[1], ids.count(2)) == (1, 259, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith("[INST]")
    # A space goes before the text after each of them, as in SentencePiece and llama.cpp.
    assert ids[2:4] == sentencepiece_ids(pieces, " the ")[:2]


def test_sentencepiece_without_the_leading_space(pieces: dict[str, object]) -> None:
    tokenizer = build(pieces | {"tokenizer.ggml.add_space_prefix": False})
    ids = tokenizer.encode("the river", add_special_tokens=False).ids
    assert ids != build(pieces).encode("the river", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "the river"
    assert tokenizer.decode(tokenizer.encode(" x").ids) == " x"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("scores", None, "tokenizer.ggml.scores is missing"),
        ("scores", [0.0, -1.0], "tokenizer.ggml.scores has 2 entries, expected"),
        ("scores", [-1000.0] * 1000, "tokenizer.ggml.scores are all the same"),
    ],
)
def test_bad_scores(pieces: dict[str, object], name: str, value: object, expected: str) -> None:
    metadata = {**pieces, f"tokenizer.ggml.{name}": value}
    assert expected in refusal({n: v for n, v in metadata.items() if v is not None})


def test_no_unknown_token(pieces: dict[str, object]) -> None:
    types = pieces["tokenizer.ggml.token_type"]
    assert isinstance(types, list)
    changed = pieces | {"tokenizer.ggml.token_type": [3, *types[1:]]}
    assert "marks 0 tokens as unknown, expected 1" in refusal(changed)
