"""The process whose memory is measured: opens an artefact, reads a prompt, writes tokens."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit.engine.draft import DRAFT_MAX, DraftedSession
from loop_singular_bit.engine.runtime import open_model
from loop_singular_bit.engine.session import Session
from loop_singular_bit.errors import LoopError
from loop_singular_bit.measure.probe import made_up_prompt
from loop_singular_bit.memory import current_rss_bytes, peak_rss_bytes

Floats = npt.NDArray[np.float32]

_IO = Path("/proc/self/io")
DRAFTED_TOKENS = 16  # generated again with drafts, which must give the same tokens


@dataclass(frozen=True)
class ChildRequest:
    """What to run. started: time.monotonic() when the process was asked for (the clock is the
    machine's on Linux)."""

    directory: str
    ram_bytes: int | None
    context: int
    prompt: int
    generate: int
    threads: int | None
    kv_bits: str
    started: float


@dataclass(frozen=True)
class ChildFigures:
    """What the process saw of itself.

    first_token_seconds  from the request to the logits after the prompt, interpreter included
    token_seconds        of every generated token
    generation_read_bytes  from disk while they were generated
    resident_bytes       largest resident set, pages that other processes loaded first included
    growth_bytes         resident set: most while generating, over that after the first token
    ledger               predicted bytes by holder
    token_ids            generated
    drafted_ids          the first of them, generated again with drafts
    """

    reader: str
    threads: int
    open_seconds: float
    prompt_seconds: float
    first_token_seconds: float
    token_seconds: list[float]
    generation_read_bytes: int
    resident_bytes: int
    growth_bytes: int
    ledger: dict[str, int]
    token_ids: list[int]
    drafted_ids: list[int]


def run_child(request: ChildRequest) -> ChildFigures:
    """The run itself, in this process. Greedy, and never stopped by an end token."""
    from loop_singular_bit import _native

    begun = time.monotonic()
    with open_model(
        Path(request.directory), ram_bytes=request.ram_bytes, context=request.context,
        threads=request.threads, kv_bits=request.kv_bits,
    ) as model, model.session() as session:  # fmt: skip
        opened = time.monotonic()
        prompt = made_up_prompt(request.prompt, model.text.vocab)
        logits = session.advance(prompt)
        first = time.monotonic()
        ids, tokens, read_bytes, growth = _generate(session, logits, request.generate)
        resident = peak_rss_bytes()
        return ChildFigures(
            reader=model.reader_backend, threads=_native.threads(), open_seconds=opened - begun,
            prompt_seconds=first - opened, first_token_seconds=first - request.started,
            token_seconds=tokens, generation_read_bytes=read_bytes,
            resident_bytes=resident, growth_bytes=growth,
            ledger=dict(model.ledger.entries), token_ids=ids,
            drafted_ids=_generate_drafted(session, prompt, min(request.generate, DRAFTED_TOKENS)),
        )  # fmt: skip


def _generate(
    session: Session, logits: Floats, count: int
) -> tuple[list[int], list[float], int, int]:
    """Token ids, seconds of each, bytes read from disk, and growth of the resident set."""
    ids: list[int] = []
    seconds: list[float] = []
    resident: list[int] = []
    read_before = disk_read_bytes()
    for _ in range(count):
        before = time.perf_counter()
        ids.append(int(logits.argmax()))
        logits = session.advance(ids[-1:])
        seconds.append(time.perf_counter() - before)
        resident.append(current_rss_bytes())
    return ids, seconds, disk_read_bytes() - read_before, max(resident) - resident[0]


def _generate_drafted(session: Session, prompt: list[int], count: int) -> list[int]:
    """Token ids after the prompt again, with drafts."""
    session.rewind(len(prompt) - 1)
    logits = session.advance(prompt[-1:])
    drafted = DraftedSession(session, prompt, DRAFT_MAX)
    ids: list[int] = []
    for left in reversed(range(count)):
        ids.append(int(logits.argmax()))
        if left:
            logits = drafted.advance(ids[-1], left - 1)
    return ids


def disk_read_bytes() -> int:
    """Bytes that this process has had read from disk so far."""
    fields = dict(line.split(":") for line in _IO.read_text("ascii").splitlines())
    return int(fields["read_bytes"])


def main() -> None:
    """Entry point of the process."""
    try:
        figures = run_child(ChildRequest(**json.loads(sys.argv[1])))
    except LoopError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except MemoryError as error:
        sys.stderr.write(f"MemoryError: {error}\n")
        sys.exit(5)
    sys.stdout.write(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
