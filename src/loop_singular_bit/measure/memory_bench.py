"""`lsb bench memory`: one run under a memory limit, and how near it comes to what is possible."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from loop_singular_bit import _native
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.kv import KV_BITS_DEFAULT
from loop_singular_bit.engine.memory_plan import Setting, as_plans
from loop_singular_bit.engine.runtime import plan_run, usable_cores
from loop_singular_bit.errors import BudgetError, ResourceError, UsageError
from loop_singular_bit.measure.capped_run import Cap, Ended, MemoryUse, run_capped
from loop_singular_bit.measure.memory_child import FLOOR_EVERY, ChildFigures, ChildRequest
from loop_singular_bit.measure.page_cache import evict
from loop_singular_bit.measure.predict import Prediction, kernel_seconds, predict

GROWTH_NOISE_BYTES = 1_000_000  # arenas and the interpreter's own objects come and go


@dataclass(frozen=True)
class MemoryOptions:
    """ram_bytes None: no limit. group: a memory control group handed over for the run."""

    ram_bytes: int | None
    context: int = 4096
    prompt: int = 1500
    generate: int = 200
    threads: int | None = None
    kv_bits: str = KV_BITS_DEFAULT
    group: Path | None = None

    def __post_init__(self) -> None:
        if min(self.context, self.prompt) < 1 or self.generate < 2:
            raise UsageError("context and prompt must be at least 1, generated tokens 2")
        if self.prompt + self.generate > self.context:
            raise UsageError(
                f"--prompt {self.prompt} and --generate {self.generate} do not fit "
                f"--context {self.context}"
            )


@dataclass(frozen=True)
class TokenFigures:
    """Speed of a run that finished, beside what the machine allows.

    generated_per_second, generated_deviation  one over the median token's seconds; over all tokens
    token_read_bytes     that one generated token had read from disk
    disk_bytes_per_second  while generating
    reader_seconds       of a token's bytes, the reader alone taking turns with the tokens, beside
                         a core kept awake, as the multiplications of a run keep one: the median;
                         None where nothing is read
    kernel_seconds       of one token's weights at the speed of the kernel in cache
    floor_seconds        of a token: that of the reader or that of the kernel, whichever is longer
    ratio_to_floor       the median of what it is at every turn, over the tokens before that turn; 1
                         is as fast as the machine allows
    token_ids, drafted_ids  generated, and the first of them again with drafts; with spaces between
    """

    reader: str
    threads: int
    open_seconds: float
    first_token_seconds: float
    prompt_per_second: float
    generated_per_second: float
    generated_deviation: float
    token_read_bytes: float
    disk_bytes_per_second: float
    reader_seconds: float | None
    kernel_seconds: float
    floor_seconds: float
    ratio_to_floor: float
    resident_bytes: int
    growth_bytes: int
    ledger: dict[str, int]
    token_ids: str
    drafted_ids: str

    @property
    def grew(self) -> bool:
        """Memory rose after the first token, beyond noise."""
        return self.growth_bytes > GROWTH_NOISE_BYTES


@dataclass(frozen=True)
class MemoryFigures:
    """One run.

    estimated_bytes      what the engine's plan, and so `lsb estimate`, says the run takes
    predicted            tokens a second and what they follow from, as `lsb estimate` says before
    cached_before_bytes  of the artefact in the page cache when it started: 0 is a cold cache
    outcome              "finished", "killed: out of memory", or what the process said
    """

    model: str
    limit_bytes: int | None
    context: int
    prompt_tokens: int
    generated_tokens: int
    estimated_bytes: int
    predicted: Prediction
    cached_before_bytes: int
    outcome: str
    use: MemoryUse
    tokens: TokenFigures | None

    @property
    def kept(self) -> bool:
        """The run finished and its peak stayed inside the limit."""
        inside = self.limit_bytes is None or self.use.peak_bytes <= self.limit_bytes
        return self.outcome == "finished" and inside


def measure_memory(directory: Path, options: MemoryOptions) -> MemoryFigures:
    """Runs the artefact from a cold page cache in a process of its own under the limit.

    Raises BudgetError when the engine refuses the budget, ResourceError when the process fails for
    a reason other than memory.
    """
    weights = directory / WEIGHTS_FILE
    threads = usable_cores() if options.threads is None else options.threads
    setting = Setting(options.context, kv_bits=options.kv_bits, threads=threads)
    plan = plan_run(directory, setting, options.ram_bytes)
    with ContainerReader.open(weights) as reader:
        predicted = predict(as_plans(reader.records), plan, weights, threads)
    files = sorted(path for path in directory.iterdir() if path.is_file())
    cached = evict(files)
    ended = run_capped(_command(directory, options), Cap(options.ram_bytes, options.group), files)
    outcome = _outcome(ended, directory)
    tokens = None
    if outcome == "finished":
        child = ChildFigures(**json.loads(ended.stdout))
        with ContainerReader.open(weights) as reader:
            _native.set_threads(child.threads)
            kernel = kernel_seconds(as_plans(reader.records))
        tokens = _token_figures(child, kernel, options)
    return MemoryFigures(
        model=directory.resolve().name, limit_bytes=options.ram_bytes, context=options.context,
        prompt_tokens=options.prompt, generated_tokens=options.generate,
        estimated_bytes=plan.ledger.total_bytes, predicted=predicted,
        cached_before_bytes=cached, outcome=outcome, use=ended.use, tokens=tokens,
    )  # fmt: skip


def _command(directory: Path, options: MemoryOptions) -> list[str]:
    request = ChildRequest(
        str(directory), options.ram_bytes, options.context, options.prompt, options.generate,
        options.threads, options.kv_bits, time.monotonic(),
    )  # fmt: skip
    module = "loop_singular_bit.measure.memory_child"
    return [sys.executable, "-m", module, json.dumps(asdict(request))]


def _outcome(ended: Ended, directory: Path) -> str:
    if ended.returncode == 0:
        return "finished"
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    if ended.returncode == BudgetError.exit_code:
        raise BudgetError(last)
    if ended.use.oom_kills:
        return "killed: out of memory"
    if "memory" in last.lower():
        return last
    raise ResourceError(
        f"the measured run of {directory} failed with exit code {ended.returncode}: {last}"
    )


def _token_figures(child: ChildFigures, kernel: float, options: MemoryOptions) -> TokenFigures:
    seconds, turns = child.token_seconds, child.reader_seconds
    typical = statistics.median(seconds)
    alone = statistics.median(turns) if turns else None
    return TokenFigures(
        reader=child.reader, threads=child.threads, open_seconds=child.open_seconds,
        first_token_seconds=child.first_token_seconds,
        prompt_per_second=options.prompt / child.prompt_seconds,
        generated_per_second=1 / typical,
        generated_deviation=statistics.stdev(1 / each for each in seconds),
        token_read_bytes=child.generation_read_bytes / len(seconds),
        disk_bytes_per_second=child.generation_read_bytes / sum(seconds),
        reader_seconds=alone, kernel_seconds=kernel, floor_seconds=max(alone or 0.0, kernel),
        ratio_to_floor=_ratio_to_floor(seconds, turns, kernel),
        resident_bytes=child.resident_bytes,
        growth_bytes=child.growth_bytes, ledger=child.ledger,
        token_ids=" ".join(map(str, child.token_ids)),
        drafted_ids=" ".join(map(str, child.drafted_ids)),
    )  # fmt: skip


def _ratio_to_floor(seconds: list[float], turns: list[float], kernel: float) -> float:
    if not turns:
        return kernel / statistics.median(seconds)
    before = (seconds[at : at + FLOOR_EVERY] for at in range(0, len(seconds), FLOOR_EVERY))
    return statistics.median(
        max(turn, kernel) / statistics.median(tokens)
        for turn, tokens in zip(turns, before, strict=True)
    )
