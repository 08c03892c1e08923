"""The process whose memory is measured: opens an artefact, reads a prompt, writes tokens."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loop_singular_bit.engine.draft import DRAFT_MAX, DraftedSession
from loop_singular_bit.engine.runtime import Model, open_model
from loop_singular_bit.engine.session import Session
from loop_singular_bit.errors import LoopError
from loop_singular_bit.measure.disk import core_awake
from loop_singular_bit.measure.probe import made_up_prompt
from loop_singular_bit.memory import current_rss_bytes, peak_rss_bytes

Floats = npt.NDArray[np.float32]

_IO = Path("/proc/self/io")
FLOOR_EVERY = 5  # tokens between two turns of the reader alone
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
    reader_seconds       of reading what a token reads, the reader alone beside a core kept awake:
                         a turn after every FLOOR_EVERY tokens, since a disk changes its speed
    generation_read_bytes  from disk for all tokens, without those turns
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
    reader_seconds: list[float]
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
        made = _generate(model, session, logits, request.generate)
        resident = peak_rss_bytes()
        return ChildFigures(
            reader=model.reader_backend, threads=_native.threads(), open_seconds=opened - begun,
            prompt_seconds=first - opened, first_token_seconds=first - request.started,
            token_seconds=made.seconds, reader_seconds=made.reader_seconds,
            generation_read_bytes=made.read_bytes,
            resident_bytes=resident, growth_bytes=max(made.resident) - made.resident[0],
            ledger=dict(model.ledger.entries), token_ids=made.ids,
            drafted_ids=_generate_drafted(session, prompt, min(request.generate, DRAFTED_TOKENS)),
        )  # fmt: skip


@dataclass
class _Made:
    """Of every token its id, its seconds and the resident set after it [bytes]; of every turn of
    the reader its seconds; read_bytes: from disk for the tokens."""

    ids: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    reader_seconds: list[float] = field(default_factory=list)
    read_bytes: int = 0


def _generate(model: Model, session: Session, logits: Floats, count: int) -> _Made:
    made = _Made()
    for place in range(1, count + 1):
        read_before, before = disk_read_bytes(), time.perf_counter()
        made.ids.append(int(logits.argmax()))
        logits = session.advance(made.ids[-1:])
        made.seconds.append(time.perf_counter() - before)
        made.read_bytes += disk_read_bytes() - read_before
        made.resident.append(current_rss_bytes())
        if model.streamed and (place % FLOOR_EVERY == 0 or place == count):
            made.reader_seconds.append(_read_through(model))
    return made


def _read_through(model: Model) -> float:
    """Seconds of a sweep's reading alone."""
    with core_awake():
        before = time.perf_counter()
        model.read_through()
        return time.perf_counter() - before


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
