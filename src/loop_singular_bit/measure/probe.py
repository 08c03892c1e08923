"""Running an artefact in a process of its own, to see what it takes: memory and speed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from loop_singular_bit.engine.kv import KV_BITS_DEFAULT
from loop_singular_bit.engine.runtime import open_model
from loop_singular_bit.engine.session import Session
from loop_singular_bit.errors import BudgetError, ResourceError
from loop_singular_bit.memory import peak_rss_bytes

PROMPT_TOKENS = 64
NEW_TOKENS = 32


@dataclass(frozen=True)
class RunFigures:
    """One measured run.

    ram_peak_bytes      largest resident set of the process, interpreter included
    reader              how weights were read: "direct" keeps them out of the page cache
    prompt_per_second, generated_per_second   tokens
    """

    ram_peak_bytes: int
    reader: str
    prompt_tokens: int
    new_tokens: int
    prompt_per_second: float
    generated_per_second: float


@dataclass(frozen=True)
class RunRequest:
    """What to run."""

    directory: str
    ram_bytes: int | None
    context: int | None
    threads: int | None
    kv_bits: str = KV_BITS_DEFAULT


def probe_run(request: RunRequest) -> RunFigures:
    """Runs the artefact in a child process: a prompt of PROMPT_TOKENS, then NEW_TOKENS greedy.

    Raises BudgetError when the RAM budget cannot hold it, ResourceError when the child fails.
    """
    command = [sys.executable, "-m", "loop_singular_bit.measure.probe", json.dumps(asdict(request))]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    # The last line of a traceback says what went wrong; a killed process says nothing.
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    if child.returncode == BudgetError.exit_code:
        raise BudgetError(last)
    if child.returncode != 0:
        raise ResourceError(
            f"the measured run of {request.directory} failed with exit code "
            f"{child.returncode}: {last}"
        )
    return RunFigures(**json.loads(child.stdout))


def made_up_prompt(count: int, vocab: int) -> list[int]:
    """Token ids to measure with: what they say does not matter."""
    return [(7 * i) % min(1000, vocab) for i in range(count)]


def time_tokens(session: Session, prompt: list[int], new: int) -> tuple[float, float]:
    """Seconds of a prompt, and of `new` tokens after it one by one, greedy, never stopped."""
    start = time.perf_counter()
    logits = session.advance(prompt)
    middle = time.perf_counter()
    for _ in range(new):
        logits = session.advance([int(logits.argmax())])
    return middle - start, time.perf_counter() - middle


def run_here(request: RunRequest) -> RunFigures:
    """The measured run itself, in this process. Greedy, and never stopped by an end token."""
    with open_model(
        Path(request.directory), ram_bytes=request.ram_bytes, context=request.context,
        threads=request.threads, kv_bits=request.kv_bits,
    ) as model, model.session() as session:  # fmt: skip
        room = max(1, min(PROMPT_TOKENS, model.context - NEW_TOKENS))
        new = min(NEW_TOKENS, model.context - room)
        prompt = made_up_prompt(room, model.engine.network.spec.vocab)
        prompt_seconds, new_seconds = time_tokens(session, prompt, new)
        return RunFigures(
            ram_peak_bytes=peak_rss_bytes(),
            reader=model.reader_backend,
            prompt_tokens=room,
            new_tokens=new,
            prompt_per_second=room / prompt_seconds,
            generated_per_second=new / new_seconds if new else 0.0,
        )


def main() -> None:
    """Entry point of the child process."""
    try:
        figures = run_here(RunRequest(**json.loads(sys.argv[1])))
    except BudgetError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
