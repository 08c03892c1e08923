"""A byte-level BPE of any size that was trained on nothing: text in and out works, and it takes
the memory of a real one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice, product

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from loop_singular_bit.compress.shapes import BOS_ID
from loop_singular_bit.errors import UsageError

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
_SPACE = "\u0120"  # how a byte-level BPE writes a space
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
BYTES = 256
VOCAB_MIN = len(SPECIAL_TOKENS) + BYTES


def synthetic_tokenizer(vocab: int) -> str:
    """tokenizer.json with exactly `vocab` tokens: controls, bytes, then all short letter sequences.

    Raises UsageError when `vocab` has no room for controls and bytes.
    """
    if vocab < VOCAB_MIN:
        raise UsageError(f"a vocabulary of {vocab} tokens: must be at least {VOCAB_MIN}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(_merges(), vocab - VOCAB_MIN))
    tokens = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    bos = SPECIAL_TOKENS[BOS_ID]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, BOS_ID)]
    )
    return str(tokenizer.to_str())


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs whose halves are tokens already: letter sequences by length, with and without space."""
    for length in count(1):
        for head in product(_LETTERS, repeat=length):
            for start in (_SPACE, ""):
                prefix = start + "".join(head)
                if len(prefix) > 1:
                    yield prefix[:-1], prefix[-1]
