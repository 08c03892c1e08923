"""How self-sampled calibration texts begin: a model says more different things when it is asked to.

Left to itself after its first token, a chat model says one kind of thing. A third of the sequences
begin so, a third with the opening of a text, a third with a question in the model's own chat
format (openings of texts where it has none).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from loop_singular_bit.engine.template import Message
from loop_singular_bit.engine.text import Text
from loop_singular_bit.errors import ConfigError

TEXTS = (
    "The history of", "= = Early life = =\n", "def ", "Chapter 1\n\n", "import os\nimport sys\n\n",
    "In 18", "class ", "Abstract\n\nWe", "#include <stdio.h>\n\nint ", "The city is",
    "// Copyright", "He was born in", "\"\"\"", "According to the", "SELECT ", "<!DOCTYPE html>\n",
    "Question: ", "{\n  \"name\": \"", "The battle", "#!/bin/bash\n", "Once upon a time",
    "Theorem 1. ", "    def test_", "| Name | ", "La ville de", "Der Fluss", "public class ",
    "Dear Sir,\n\n", "from typing import", "The game was", "Ingredients:\n- ", "第一章\n",
    "const ", "\"I don't", "El presidente", "В 19", "The species", "package main\n\nimport (",
    "The film", "    for ", "Breaking news: ", "# Installation\n\n",
)  # fmt: skip
QUESTIONS = (
    "Write a Python function that parses a log file and counts errors by hour.",
    "Explain how photosynthesis works to a curious teenager.",
    "What were the main causes of the First World War?",
    "Solve step by step: a train travels 240 km in 3 hours, then 150 km in 2 hours. Average speed?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Refactor this code: for i in range(len(a)):\n    if a[i] > 0:\n        b.append(a[i])",
    "Translate into French: The museum is closed on Mondays, but the garden is open.",
    "Give me a JSON object describing three books with title, author and year.",
    "Compare TCP and UDP in a table.",
    "Write a C function that reverses a linked list.",
    "¿Cuáles son los ingredientes de una paella?",
    "Summarize the plot of Romeo and Juliet in five sentences.",
    "How do I undo the last commit in git without losing my changes?",
    "请介绍一下长城的历史。",
    "Draft a polite email asking for a delay of one week.",
    "Write unit tests for a function that checks whether a string is a palindrome.",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "Prove that the square root of 2 is irrational.",
    "Write an SQL query for the ten customers who spent most last year.",
    "List the planets of the solar system with one fact about each.",
)  # fmt: skip


def first_id(files: Mapping[str, bytes], vocab: int) -> int:
    """The token a text starts with: beginning of text, else end of text, else 0.

    Raises ConfigError when config.json names a token that has no row in the embedding.
    """
    config = json.loads(files["config.json"])
    for name in ("bos_token_id", "eos_token_id"):
        found = config.get(name)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            if not 0 <= found < vocab:
                raise ConfigError(f"config.json {name} is {found}: must be 0..{vocab - 1}")
            return found
    return 0


def openings(text: Text, first: int, sequences: int) -> list[list[int]]:
    """Ids that each of `sequences` sampled sequences begins with, the kinds taking turns."""
    found = []
    for index in range(sequences):
        turn, kind = divmod(index, 3)
        found.append([first] if kind == 0 else (_text, _question)[kind - 1](text, turn))
    return found


def _text(text: Text, number: int) -> list[int]:
    return text.encode(TEXTS[number % len(TEXTS)], special=True)


def _question(text: Text, number: int) -> list[int]:
    if not text.has_chat_template:
        return _text(text, number + len(TEXTS) // 2)
    return text.render_chat([Message("user", QUESTIONS[number % len(QUESTIONS)])])
