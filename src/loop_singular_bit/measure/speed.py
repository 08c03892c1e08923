"""How fast an artefact runs, beside what this machine's memory and kernels allow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loop_singular_bit import _native
from loop_singular_bit.codec.tables import native_tables
from loop_singular_bit.container.reader import ContainerReader
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.engine.kv import KV_BITS_DEFAULT
from loop_singular_bit.engine.memory_plan import as_plans, product_bytes
from loop_singular_bit.engine.runtime import Model, open_model
from loop_singular_bit.errors import UsageError
from loop_singular_bit.measure.probe import made_up_prompt, time_tokens
from loop_singular_bit.models.spec import parameter_count

MEMORY_BYTES = 1 << 28  # read to measure the memory: far beyond any cache here
KERNEL_SHAPE = (1024, 1024)  # a matrix that stays in the second-level cache
KERNEL_TILE = 256
KERNEL_GROUP = 256


@dataclass(frozen=True)
class SpeedOptions:
    """Tokens of the prompt, tokens generated after it, how often both are repeated, and the bits
    of the KV cache; unpack: planes decoded on opening."""

    prompt: int = 512
    generate: int = 128
    repeats: int = 5
    kv_bits: str = KV_BITS_DEFAULT
    unpack: bool = False


@dataclass(frozen=True)
class SpeedFigures:
    """Medians over the repetitions; tokens, bytes and weights per second.

    weight_bytes       bytes of weights that one generated token reads
    memory_bytes_per_second   reading a large array with the same threads, in the same run
    kernel_weights_per_second  one token through `planes` planes that stay in cache, same threads
    floor_seconds      of a token: weight_bytes at the memory's speed or weights at the kernel's,
                       whichever takes longer; the memory's alone where planes are unpacked
    ratio_to_floor     floor over what a token took: 1 is as fast as the machine allows
    python_share       of a generated token's time: what is outside native programs
    """

    model: str
    instruction_set: str
    threads: int
    context: int
    prompt_tokens: int
    generated_tokens: int
    prompt_per_second: float
    prompt_deviation: float
    generated_per_second: float
    generated_deviation: float
    weight_bytes: int
    bytes_per_second: float
    weights_per_second: float
    memory_bytes_per_second: float
    planes: int
    window: int
    kernel_weights_per_second: float
    floor_seconds: float
    ratio_to_floor: float
    python_share: float


def best_rate(work: Callable[[], object], amount: float, seconds: float = 0.3) -> float:
    """Units of `amount` a second in the fastest of the runs that fit `seconds`, at least three."""
    best, runs, start = float("inf"), 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - before)
        runs += 1
    return amount / best


def memory_rate() -> float:
    """Bytes a second that all threads read from memory."""
    words = np.ones(MEMORY_BYTES // 8, np.uint64)
    return best_rate(lambda: _native.sum_words(words), MEMORY_BYTES)


def kernel_rate(planes: int, window: int, tokens: int = 1) -> float:
    """Multiply-adds a second of `tokens` rows with planes that stay in cache, all threads."""
    rows, cols = KERNEL_SHAPE
    nbytes = planes * _native.plane_bytes(rows, cols)
    extents = [np.random.default_rng(planes).integers(0, 256, nbytes, np.uint8)]
    packed = _native.PackedRows(tokens, cols, KERNEL_GROUP)
    packed.pack(np.ones((tokens, cols), np.float32))
    scale, out = np.ones(rows, np.float32), np.empty((tokens, rows), np.float32)
    shape = (rows, cols, KERNEL_TILE, native_tables(window, planes))

    def multiply() -> None:
        _native.planes_matmul(extents, *shape, scale, packed, out)

    return best_rate(multiply, float(rows * cols * tokens))


def measure_speed(directory: Path, options: SpeedOptions, threads: int | None) -> SpeedFigures:
    """Runs the artefact in memory: a prompt, then tokens one by one, greedy, never stopped."""
    if min(options.prompt, options.generate, options.repeats) < 1:
        raise UsageError("prompt, generated tokens and repetitions must be at least 1")
    context = options.prompt + options.generate
    with open_model(
        directory, context=context, threads=threads, kv_bits=options.kv_bits, unpack=options.unpack
    ) as model:
        prompts, generated = _repetitions(model, options)
        outside = _outside(model, options.generate)
        weight_bytes, weights = _per_token(directory, model, options.unpack)
        name, used = model.name, _native.threads()
    planes, window = _shape(directory)
    memory, kernel = memory_rate(), kernel_rate(planes, window)
    floor = (
        weight_bytes / memory if options.unpack else max(weight_bytes / memory, weights / kernel)
    )
    speed = statistics.median(generated)
    return SpeedFigures(
        model=name, instruction_set=_native.active_tier(), threads=used, context=context,
        prompt_tokens=options.prompt, generated_tokens=options.generate,
        prompt_per_second=statistics.median(prompts), prompt_deviation=_deviation(prompts),
        generated_per_second=speed, generated_deviation=_deviation(generated),
        weight_bytes=weight_bytes, bytes_per_second=weight_bytes * speed,
        weights_per_second=weights * speed, memory_bytes_per_second=memory, planes=planes,
        window=window, kernel_weights_per_second=kernel, floor_seconds=floor,
        ratio_to_floor=floor * speed, python_share=outside,
    )  # fmt: skip


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _repetitions(model: Model, options: SpeedOptions) -> tuple[list[float], list[float]]:
    """Tokens a second of every prompt and of every generation; one round before is not counted."""
    prompt = made_up_prompt(options.prompt, model.engine.network.spec.vocab)
    prompts, generated = [], []
    for _ in range(options.repeats + 1):
        with model.session() as session:
            prompt_seconds, new_seconds = time_tokens(session, prompt, options.generate)
        prompts.append(options.prompt / prompt_seconds)
        generated.append(options.generate / new_seconds)
    return prompts[1:], generated[1:]


def _outside(model: Model, tokens: int) -> float:
    """Share of the time of `tokens` generated tokens that is not spent in native programs."""
    with model.session() as session:
        token, native = int(session.advance([0]).argmax()), _native.program_seconds()
        start = time.perf_counter()
        for _ in range(tokens):
            token = int(session.advance([token]).argmax())
        return 1 - (_native.program_seconds() - native) / (time.perf_counter() - start)


def _per_token(directory: Path, model: Model, unpacked: bool) -> tuple[int, int]:
    """Bytes and number of the weights of a token's products: all but an untied embedding."""
    spec = model.engine.network.spec
    skipped = () if spec.tied_head else ("embed", "embed.in")
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        read = [record for record in as_plans(reader.records) if record.name not in skipped]
    nbytes = sum(product_bytes(record, unpacked) for record in read)
    weights = parameter_count(spec) - (0 if spec.tied_head else spec.vocab * spec.hidden)
    return nbytes, weights


def _shape(directory: Path) -> tuple[int, int]:
    """Planes and window of the first layer's largest matrix; 1 and 7 where it has no planes."""
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        found = reader.record("layers.0.down").attributes
    return int(found.get("planes", 1)), int(found.get("window", 7))
