"""Does a tokenizer belong to a network? Asked when a model is opened, before any long work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from loop_singular_bit.errors import TokenizerError
from loop_singular_bit.models.spec import ModelSpec


def check_tokenizer(tokenizer_json: bytes, spec: ModelSpec) -> None:
    """Raise TokenizerError unless tokenizer.json can be of this network.

    Every token id must have a row in the embedding; and the base vocabulary (without added
    tokens) must be more than half of the embedding's rows, which real models pad only a little.
    """
    document = _parse(tokenizer_json)
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(vocabulary, Mapping):
        ids = list(vocabulary.values())
    elif isinstance(vocabulary, list):
        ids = list(range(len(vocabulary)))  # Unigram: a list of [piece, score]
    else:
        raise TokenizerError("tokenizer.json has no model.vocab, expected an object or a list")
    base = len(ids)
    ids.extend(_added_ids(document))
    if any(type(token) is not int or token < 0 for token in ids):
        raise TokenizerError("tokenizer.json has a token id that is not an integer of 0 or more")
    found = max(ids, default=-1) + 1
    if found > spec.vocab:
        raise TokenizerError(
            f"tokenizer.json is of another model: its ids need {found} embedding rows, "
            f"the model has {spec.vocab} (vocab_size)"
        )
    if 2 * base <= spec.vocab:
        raise TokenizerError(
            f"tokenizer.json is of another model: {base} tokens, "
            f"expected more than half of the model's {spec.vocab} (vocab_size)"
        )


def _parse(tokenizer_json: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.json is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise TokenizerError("tokenizer.json is not a JSON object")
    return document


def _added_ids(document: Mapping[str, object]) -> Iterator[object]:
    added = document.get("added_tokens") or []
    if not isinstance(added, list):
        raise TokenizerError("tokenizer.json: added_tokens is not a list")
    for token in added:
        yield token.get("id") if isinstance(token, Mapping) else None
