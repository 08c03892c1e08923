"""A model larger than its memory: ours beside llama.cpp, accelerate and AirLLM under the same caps.

    python benches/memory_peers.py SHAPE DIR --caps 400,1000,4000 [--cgroup GROUP]
        [--llama-python PATH] [--offload-python PATH]

Writes into DIR what is not there yet, all of random weights: SHAPE-shape (`lsb bench make-shape`),
SHAPE-shape.gguf of as many bytes (Q3_K and IQ3_XXS) for llama.cpp, and SHAPE-shape-hf, bfloat16 and
so several times as many bytes a token, for AirLLM and accelerate's disk offload: the table says how
many. Under every cap each contender runs in a process of its own from a cold page cache: a prompt,
then tokens one by one, greedy, no drafts. A run that is killed, fails or takes longer than
--timeout is a row that says so, with what it had done. The peers' interpreters are options, since
they are no dependencies: one with llama-cpp-python, one with torch, accelerate, transformers and
airllm.

With --cgroup (a memory control group handed over for this) the kernel limits page cache too;
without it only anonymous memory is limited, and a peer that maps its file may take all there is:
the table says how much. Each contender's code is loaded once before its row, outside the group, so
that it counts for nobody: else who comes first would pay for what others share.
Writes benches/results/memory_peers.json after every row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import machine_facts, write_result
from peer_models import write_bf16, write_gguf

from loop_singular_bit.compress.shapes import known_shape
from loop_singular_bit.compress.synthetic import SyntheticOptions, companion_files, write_synthetic
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.errors import UsageError
from loop_singular_bit.measure.capped_run import Cap, Ended, run_capped
from loop_singular_bit.measure.page_cache import evict
from loop_singular_bit.measure.probe import made_up_prompt

CHILD = Path(__file__).with_name("peer_child.py")
OFFLOAD = ("accelerate", "airllm")
CONTEXT_STEP = 256  # positions, in which llama.cpp counts
NAMES = {
    "ours": "Loop Singular Bit",
    "llama-mmap": "llama.cpp, mapped",
    "llama-read": "llama.cpp, read into memory",
    "accelerate": "accelerate, disk offload",
    "airllm": "AirLLM",
}
IMPORTS = {
    "ours": "import loop_singular_bit.engine.runtime",
    "llama-mmap": "import llama_cpp",
    "llama-read": "import llama_cpp",
    "accelerate": "import accelerate; from transformers import AutoModelForCausalLM",
    "airllm": "import airllm",
}


@dataclass(frozen=True)
class Contender:
    """Who runs (a key of NAMES), by which interpreter, on what. files: its weights on disk."""

    kind: str
    python: str
    path: Path
    files: tuple[Path, ...]

    @property
    def disk_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Settings:
    """The same for every contender. timeout_seconds is of one row, start included."""

    prompt_tokens: int
    tokens: int
    context: int
    threads: int
    timeout_seconds: float
    vocab: int
    group: Path | None

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.tokens, self.threads) < 1 or self.timeout_seconds <= 0:
            raise UsageError("prompt, tokens, threads and timeout must be above 0")
        if self.prompt_tokens + self.tokens > self.context:
            raise UsageError(
                f"--prompt-tokens {self.prompt_tokens} and --tokens {self.tokens} do not fit "
                f"--context {self.context}"
            )


@dataclass(frozen=True)
class Progress:
    """What a run said that it had done, from its request on; None: not reached."""

    open_seconds: float | None
    first_token_seconds: float | None
    token_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One contender under one cap.

    cap_bytes            None: no limit
    disk_bytes           its weights
    peak_bytes           page cache included
    read_bytes           from disk, in all
    first_token_seconds  from the start of the process to the token after the prompt
    tokens_per_second    one over the median token's seconds; of the tokens there were
    """

    kind: str
    cap_bytes: int | None
    disk_bytes: int
    outcome: str
    finished: bool
    inside: bool
    peak_bytes: int
    anonymous_bytes: int
    cached_bytes: int
    oom_kills: int
    major_faults: int
    read_bytes: int
    seconds: float
    open_seconds: float | None
    first_token_seconds: float | None
    tokens: int
    tokens_per_second: float | None


def run(contender: Contender, cap_bytes: int | None, settings: Settings) -> Row:
    """One row: its weights are not in the page cache, its code is."""
    load_code(contender)
    evict(contender.files)
    started = time.monotonic()
    request = {
        "kind": contender.kind, "path": str(contender.path), "limit_bytes": cap_bytes,
        "context": settings.context, "threads": settings.threads, "tokens": settings.tokens,
        "prompt_ids": made_up_prompt(settings.prompt_tokens, settings.vocab), "started": started,
    }  # fmt: skip
    cap = Cap(cap_bytes, settings.group, settings.timeout_seconds)
    command = [contender.python, str(CHILD), json.dumps(request)]
    ended = run_capped(command, cap, contender.files)
    return row_of(contender, cap_bytes, ended, time.monotonic() - started)


def load_code(contender: Contender) -> None:
    """Raises UsageError where the interpreter lacks the contender's packages."""
    command = [contender.python, "-c", IMPORTS[contender.kind]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{contender.python} cannot run {NAMES[contender.kind]}: {last}")


def row_of(contender: Contender, cap_bytes: int | None, ended: Ended, seconds: float) -> Row:
    """What a run that has ended comes to."""
    done, use = progress(ended.stdout), ended.use
    speed = 1 / statistics.median(done.token_seconds) if done.token_seconds else None
    # An error names the file it failed on; the result must not say where that lies.
    outcome = outcome_of(ended, done, seconds).replace(f"{contender.path.parent}/", "")
    return Row(
        kind=contender.kind, cap_bytes=cap_bytes, disk_bytes=contender.disk_bytes, outcome=outcome,
        finished=ended.returncode == 0,
        inside=cap_bytes is None or use.peak_bytes <= cap_bytes, peak_bytes=use.peak_bytes,
        anonymous_bytes=use.anonymous_bytes, cached_bytes=use.file_bytes, oom_kills=use.oom_kills,
        major_faults=use.major_faults, read_bytes=use.read_bytes, seconds=seconds,
        open_seconds=done.open_seconds, first_token_seconds=done.first_token_seconds,
        tokens=len(done.token_seconds), tokens_per_second=speed,
    )  # fmt: skip


def progress(stdout: str) -> Progress:
    """The steps among the lines of a run's output, where libraries write too."""
    found: dict[str, list[float]] = {"opened": [], "first": [], "token": []}
    for line in stdout.splitlines():
        if line.startswith('{"step"') and line.endswith("}"):  # a killed run may end mid-line
            step = json.loads(line)
            found[step["step"]].append(step["seconds"])
    opened, first = ((found[name] or [None])[0] for name in ("opened", "first"))
    return Progress(opened, first, tuple(found["token"]))


def outcome_of(ended: Ended, done: Progress, seconds: float) -> str:
    """How it ended, and where if that was not the end."""
    if ended.returncode == 0:
        return "finished"
    if done.open_seconds is None:
        where = "while opening"
    elif done.first_token_seconds is None:
        where = "in the prompt"
    else:
        where = f"after {len(done.token_seconds)} tokens"
    if ended.timed_out:
        return f"stopped after {seconds:.0f} s, {where}"
    if ended.killed and ended.use.oom_kills:
        return f"killed {where}: out of memory"
    if ended.returncode < 0:
        return f"killed by signal {-ended.returncode} {where}"
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    return f"failed {where}: {last.removeprefix('loop_singular_bit.errors.')}"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| cap | contender | on disk | peak with page cache | read | first token | tokens/s "
        "| inside | outcome |",
        "|---:|---|---:|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        first, speed = (
            "-" if value is None else f"{value:.3g}{unit}"
            for value, unit in ((row.first_token_seconds, " s"), (row.tokens_per_second, ""))
        )
        lines.append(
            f"| {cap_text(row.cap_bytes)} | {NAMES[row.kind]} | {row.disk_bytes / 1e9:.3f} GB | "
            f"{row.peak_bytes / 1e6:.0f} MB | {row.read_bytes / 1e9:.2f} GB | {first} | {speed} | "
            f"{'yes' if row.inside else 'NO'} | {row.outcome} |"
        )
    return "\n".join(lines)


def cap_text(cap_bytes: int | None) -> str:
    return "none" if cap_bytes is None else f"{cap_bytes / 1e6:g} MB"


def least_caps(rows: Sequence[Row]) -> dict[str, int | None]:
    """The least cap under which a contender wrote a token inside it; who never did is left out."""
    found: dict[str, int | None] = {}
    limited = (row for row in rows if row.tokens and row.inside)
    for row in sorted(limited, key=lambda row: row.cap_bytes or sys.maxsize):
        found.setdefault(row.kind, row.cap_bytes)
    return found


def prepared(flags: argparse.Namespace) -> list[Contender]:
    """The contenders whose interpreters are given, their models written unless they are there."""
    start = flags.directory / f"{flags.shape}-shape"
    artefact, gguf, hf = (start.with_name(start.name + end) for end in ("", ".gguf", "-hf"))
    shape, options = known_shape(flags.shape), SyntheticOptions(flags.shape, flags.bpw)
    if not artefact.exists():
        write_synthetic(options, artefact)
    weights = artefact / WEIGHTS_FILE
    found = [Contender("ours", sys.executable, artefact, (weights,))]
    if flags.llama_python or flags.only_write:
        if not gguf.exists():
            write_gguf(shape, weights.stat().st_size, gguf)
        for kind in ("llama-mmap", "llama-read"):
            found.append(Contender(kind, flags.llama_python, gguf, (gguf,)))
    if flags.offload_python:
        if not hf.exists():
            write_bf16(shape, companion_files(options), hf)
        files = tuple(sorted(hf.glob("*.safetensors")))
        found += [Contender(kind, flags.offload_python, hf, files) for kind in OFFLOAD]
    return [each for each in found if not flags.only or each.kind in flags.only]


def caps_from(text: str) -> list[int | None]:
    """Comma-separated megabytes of 10^6 bytes; 0 or all: no limit."""
    try:
        numbers = [0.0 if word == "all" else float(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: such as 400,1000,all") from error
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a cap is not negative")
    return [int(number * 1e6) or None for number in numbers]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--caps", type=caps_from, default="400,1000", help="MB; 0 or all: none")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument(
        "--context", type=int, help="positions; default: what prompt and tokens take"
    )
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds of one row")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--bpw", type=float, default=3.35)
    parser.add_argument("--cgroup", type=Path)
    parser.add_argument("--llama-python", help="without it, no llama.cpp")
    parser.add_argument("--offload-python", help="without it, neither accelerate nor AirLLM")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="of those that could run")
    parser.add_argument("--only-write", action="store_true", help="write the models and stop")
    return parser.parse_args()


def settings_of(flags: argparse.Namespace) -> Settings:
    needed = flags.prompt_tokens + flags.tokens
    context = flags.context or -(-needed // CONTEXT_STEP) * CONTEXT_STEP
    return Settings(
        flags.prompt_tokens, flags.tokens, context, flags.threads, flags.timeout,
        known_shape(flags.shape).vocab, flags.cgroup,
    )  # fmt: skip


def write_rows(flags: argparse.Namespace, settings: Settings, rows: Sequence[Row]) -> None:
    caps = ",".join("all" if cap is None else f"{cap / 1e6:g}" for cap in flags.caps)
    command = (
        f"python benches/memory_peers.py {flags.shape} DIR --caps {caps} --cgroup GROUP "
        f"--prompt-tokens {settings.prompt_tokens} --tokens {settings.tokens} "
        "--llama-python PATH --offload-python PATH"
    )
    facts: dict[str, Any] = {"command": command, "synthetic": flags.shape}
    for name in ("prompt_tokens", "tokens", "context", "threads", "timeout_seconds"):
        facts[name] = getattr(settings, name)
    limited = "a memory control group" if settings.group else "RLIMIT_DATA: not the page cache"
    write_result(
        "memory_peers",
        facts
        | {"limited_by": limited, "rows": [asdict(row) for row in rows]}
        | {"least_cap_bytes": least_caps(rows), "machine": machine_facts()},
    )


def main() -> None:
    flags = parsed()
    settings, contenders = settings_of(flags), prepared(flags)
    if flags.only_write:
        return
    rows: list[Row] = []
    for cap in flags.caps:
        for contender in contenders:
            rows.append(run(contender, cap, settings))
            print(f"{cap_text(cap)}, {contender.kind}: {rows[-1].outcome}", file=sys.stderr)
            write_rows(flags, settings, rows)
    print(table(rows))
    for kind, least in least_caps(rows).items():
        print(f"{NAMES[kind]}: least cap of the list with a token {cap_text(least)}")


if __name__ == "__main__":
    main()
