"""Drafting from earlier text: what is accepted, and what it saves, by kind of text.

    python benches/draft_speed.py ARTEFACT TEXT [--tokens 64]

ARTEFACT runs in memory and, under the smallest budget that holds it, streamed from disk. It goes on
with paragraphs of TEXT and answers prompts that ask for something back: a paragraph, a function of
Python's library, JSON. Every answer is generated twice, with drafts and without, and has to be the
same. Writes benches/results/draft_speed.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine_facts, write_result

from loop_singular_bit.engine.draft import DRAFT_MAX, Speculation
from loop_singular_bit.engine.generate import Finish, GenerateOptions, generate
from loop_singular_bit.engine.runtime import Model, open_model
from loop_singular_bit.engine.sampler import SamplingOptions
from loop_singular_bit.errors import BudgetError

CONTEXT = 1024
PARAGRAPH_CHARS = 700
SAMPLINGS = (SamplingOptions(), SamplingOptions(0.8, top_p=0.95, seed=1))
RECORDS = [
    {"id": i, "name": name, "price": 3.5 * i + 1, "tags": ["new", "sale"], "stock": 7 * i}
    for i, name in enumerate(("apple", "pear", "plum", "cherry", "grape", "melon"))
]


def prompts(model: Model, text: str) -> dict[str, list[list[int]]]:
    """Prompt ids by kind, three of each."""
    found = [line[:PARAGRAPH_CHARS] for line in text.split("\n") if len(line) > PARAGRAPH_CHARS]
    functions = [inspect.getsource(f) for f in (shlex.join, textwrap.shorten, json.load)]
    table = json.dumps(RECORDS, indent=1)
    asked = {
        "quote": [f"Rewrite this text and correct its mistakes:\n\n{p}" for p in found[20:23]],
        "code": [f"Add type hints to this function, in full:\n\n```python\n{f[:1500]}```"
                 for f in functions],
        "json": [f"{task}\n\n```json\n{table}\n```" for task in (
            "Give back this JSON with every price doubled:",
            "Sort these records by name, as JSON:",
            "Give back this JSON without the tags:")],
    }  # fmt: skip
    ids = {kind: [model.text.encode_prompt(p) for p in some] for kind, some in asked.items()}
    return {"continuation": [model.text.encode(p, special=True) for p in found[:3]], **ids}


def timed(model: Model, ids: Sequence[int], options: GenerateOptions) -> tuple[list[int], Finish]:
    with model.session() as session:
        *tokens, finish = generate(model, session, ids, options)
    assert isinstance(finish, Finish)
    return [token.id for token in tokens if not isinstance(token, Finish)], finish


def compare(
    model: Model, some: Sequence[Sequence[int]], sampling: SamplingOptions, tokens: int
) -> dict[str, Any]:
    """Generates from each of some prompts with drafts and without."""
    count, seconds, results = 0, [0.0, 0.0], []
    for ids in some:
        plain, first = timed(model, ids, GenerateOptions(tokens, sampling, draft=0))
        same, second = timed(model, ids, GenerateOptions(tokens, sampling, draft=DRAFT_MAX))
        assert plain == same, "drafts changed a text"
        assert isinstance(second.speculation, Speculation)
        results.append(second.speculation)
        count += len(plain)
        seconds[0] += first.generation_seconds
        seconds[1] += second.generation_seconds
    return {
        "temperature": sampling.temperature, "prompts": len(some), "tokens": count,
        "drafted": sum(r.drafted for r in results), "accepted": sum(r.accepted for r in results),
        "sweeps": sum(r.sweeps for r in results), "seconds_plain": seconds[0],
        "seconds_drafted": seconds[1], "speed_ratio": seconds[0] / seconds[1],
    }  # fmt: skip


def row_seconds(model: Model) -> dict[int, float]:
    """Seconds of a sweep by its rows, behind 256 tokens: the fastest of nine."""
    found = {}
    with model.session() as session:
        session.advance(range(100, 356))
        for rows in (1, 2, 4, 8, 16):
            times = []
            for _ in range(9):
                start = time.perf_counter()
                session.look_ahead(range(500, 500 + rows))
                times.append(time.perf_counter() - start)
            found[rows] = min(times)
    return found


def smallest_budget(directory: Path) -> int:
    """Bytes that stream the artefact: a budget too small is refused with what would do."""
    try:
        with open_model(directory, ram_bytes=1, context=CONTEXT):
            raise AssertionError("no model runs in one byte")
    except BudgetError as error:
        words = str(error).split("needs ")[1]
        return int(float(words.split(" MB")[0]) * 1e6)


def measure(directory: Path, text: str, tokens: int, streamed: bool) -> dict[str, Any]:
    budget = smallest_budget(directory) if streamed else None
    with open_model(directory, ram_bytes=budget, context=CONTEXT) as model:
        assert model.streamed == streamed
        rows = []
        for kind, some in prompts(model, text).items():
            for sampling in SAMPLINGS[:1] if streamed else SAMPLINGS:
                chosen = some[:1] if streamed else some
                row = {"text": kind} | compare(model, chosen, sampling, tokens)
                rows.append(row)
                print(f"streamed={streamed} {json.dumps(row)}", flush=True)
        return {"budget_bytes": budget, "seconds_by_rows": row_seconds(model), "texts": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    text = options.text.read_text("utf-8")
    report = json.loads((options.artefact / "report.json").read_text("utf-8"))
    values = {
        "command": f"python benches/draft_speed.py ARTEFACT {options.text.name}"
        f" --tokens {options.tokens}",
        "bits_per_weight": report["bits_per_weight"],
        "parameters": report["parameters"],
        "draft_max": DRAFT_MAX,
        "memory": measure(options.artefact, text, options.tokens, streamed=False),
        "streamed": measure(options.artefact, text, options.tokens // 2, streamed=True),
        "machine": machine_facts(),
    }
    write_result("draft_speed", values)


if __name__ == "__main__":
    main()
