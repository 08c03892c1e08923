"""A model larger than its memory: ours beside llama.cpp, same shape, same limit, cold page cache.

    python benches/memory_peers.py SHAPE DIR --peer-python PATH --ram-mb 400 [--cgroup GROUP]

Writes DIR/SHAPE-lsb (random weights, `lsb bench make-shape`) and DIR/SHAPE.gguf (random blocks of
Q3_K, the head Q6_K, as Q3_K_S has them) unless they are there, then runs each in a process of its
own: a prompt, then tokens one by one, greedy. PEER_PYTHON is an interpreter with llama-cpp-python.
With --cgroup (a memory control group handed over for this) the kernel limits page cache too;
without it only anonymous memory is limited, and a peer that maps its file may take all there is:
the table says how much. Writes benches/results/memory_peers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from machine import machine_facts, write_result

from loop_singular_bit.compress.shapes import BOS_ID, EOS_ID, Shape, known_shape
from loop_singular_bit.compress.synthetic import SyntheticOptions, write_synthetic
from loop_singular_bit.compress.synthetic_tokenizer import SPECIAL_TOKENS, synthetic_tokenizer
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.errors import BudgetError
from loop_singular_bit.measure.capped_run import Cap, run_capped
from loop_singular_bit.measure.memory_bench import MemoryOptions, measure_memory
from loop_singular_bit.measure.page_cache import evict

BLOCK = 256  # weights of a block of Q3_K and Q6_K
Q3_K, Q6_K = GGMLQuantizationType.Q3_K, GGMLQuantizationType.Q6_K
BLOCK_BYTES = {Q3_K: 110, Q6_K: 210}  # the last two are the float16 scale of the block
# Deviation of a random block's values over its scale, from the ranges of its integers.
BLOCK_DEVIATION = {Q3_K: 43.0, Q6_K: 1360.0}
PEER = """
import json, sys, time
path, mapped, threads, context, prompt, generate = sys.argv[1], *map(int, sys.argv[2:7])
started = float(sys.argv[7])
import llama_cpp
model = llama_cpp.Llama(path, n_ctx=context, n_batch=256, n_threads=threads,
                        n_threads_batch=threads, verbose=False, use_mmap=bool(mapped))
opened = time.monotonic()
model.eval([(7 * i) % 1000 for i in range(prompt)])
first = time.monotonic()
seconds, token = [], 1
for _ in range(generate):
    before = time.perf_counter()
    model.eval([token])
    token = model.sample(temp=0.0)
    seconds.append(time.perf_counter() - before)
print(json.dumps({"first_token_seconds": first - started,
                  "prompt_per_second": prompt / (first - opened),
                  "generated_per_second": 1 / sorted(seconds)[len(seconds) // 2]}))
"""


@dataclass(frozen=True)
class Row:
    """One contender. The speeds are None where it did not finish."""

    name: str
    file_bytes: int
    outcome: str
    kept: bool
    peak_bytes: int
    anonymous_bytes: int
    read_bytes: int
    first_token_seconds: float | None = None
    prompt_per_second: float | None = None
    generated_per_second: float | None = None


def write_gguf(shape: Shape, path: Path) -> None:
    """A file of the shape with random blocks, tensor by tensor, in the memory of one tensor."""
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    _add_sizes(writer, shape)
    _add_tokenizer(writer, shape)
    tensors = list(_tensors(shape))
    for name, dims, kind in tensors:
        if kind is None:
            writer.add_tensor_info(name, dims, np.dtype(np.float32), 4 * dims[0])
        else:
            row = dims[1] // BLOCK * BLOCK_BYTES[kind]
            writer.add_tensor_info(name, [dims[0], row], np.dtype(np.uint8), dims[0] * row, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.Generator(np.random.SFC64(0))
    for _name, dims, kind in tensors:
        data = np.ones(dims, np.float32) if kind is None else _blocks(rng, dims, kind)
        writer.write_tensor_data(data)
    writer.close()
    partial.rename(path)


def _tensors(shape: Shape) -> list[tuple[str, list[int], GGMLQuantizationType | None]]:
    """Names, [rows, columns] and block types; None for vectors, which are float32."""
    kv = shape.hidden // shape.heads * shape.kv_heads
    h, inner = shape.hidden, shape.intermediate
    found: list[tuple[str, list[int], GGMLQuantizationType | None]] = [
        ("token_embd.weight", [shape.vocab, h], Q3_K)
    ]
    for layer in range(shape.layers):
        for name, rows, cols in (
            ("attn_q", h, h), ("attn_k", kv, h), ("attn_v", kv, h), ("attn_output", h, h),
            ("ffn_gate", inner, h), ("ffn_up", inner, h), ("ffn_down", h, inner),
        ):  # fmt: skip
            found.append((f"blk.{layer}.{name}.weight", [rows, cols], Q3_K))
        found += [(f"blk.{layer}.{name}.weight", [h], None) for name in ("attn_norm", "ffn_norm")]
    return [*found, ("output_norm.weight", [h], None), ("output.weight", [shape.vocab, h], Q6_K)]


def _blocks(
    rng: np.random.Generator, dims: list[int], kind: GGMLQuantizationType
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random integers, and a scale that gives every row's product unit deviation."""
    rows, cols = dims
    size = BLOCK_BYTES[kind]
    data = rng.integers(0, 256, (rows, cols // BLOCK, size), np.uint8)
    scale = np.float16(1 / (BLOCK_DEVIATION[kind] * np.sqrt(cols)))
    data[:, :, -2:] = np.frombuffer(scale.tobytes(), np.uint8)
    return data.reshape(rows, -1)


def _add_sizes(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name("synthetic, random weights")
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _add_tokenizer(writer: GGUFWriter, shape: Shape) -> None:
    model = json.loads(synthetic_tokenizer(shape.vocab))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    controls = len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL] * controls + [TokenType.NORMAL] * (len(tokens) - controls)
    )
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)


def ours(directory: Path, options: MemoryOptions) -> Row:
    size = (directory / "model.lsb").stat().st_size
    try:
        found = measure_memory(directory, options)
    except BudgetError as error:
        return Row("ours", size, f"refused: {error}", False, 0, 0, 0)
    use, tokens = found.use, found.tokens
    row = (size, found.outcome, found.kept, use.peak_bytes, use.anonymous_bytes, use.read_bytes)
    if tokens is None:
        return Row("ours", *row)
    speeds = tokens.first_token_seconds, tokens.prompt_per_second, tokens.generated_per_second
    return Row("ours", *row, *speeds)


def llama_cpp(python: str, file: Path, options: MemoryOptions, mapped: bool) -> Row:
    threads = options.threads or usable_cores()
    numbers = (int(mapped), threads, options.context, options.prompt, options.generate)
    evict([file])
    command = [python, "-c", PEER, str(file), *map(str, numbers), str(time.monotonic())]
    ended = run_capped(command, Cap(options.ram_bytes, options.group), [file])
    use = ended.use
    outcome = "finished" if ended.returncode == 0 else f"exit code {ended.returncode}"
    if ended.killed:
        outcome = "killed: out of memory" if use.oom_kills else "killed"
    elif ended.returncode:
        outcome += f": {(ended.stderr.strip().splitlines() or ['no message'])[-1]}"
    inside = options.ram_bytes is None or use.peak_bytes <= options.ram_bytes
    name = f"llama.cpp, {'mapped' if mapped else 'read into memory'}"
    speeds = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {}
    return Row(
        name, file.stat().st_size, outcome, inside and ended.returncode == 0, use.peak_bytes,
        use.anonymous_bytes, use.read_bytes, **speeds,
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| | file | outcome | peak with page cache | first token | tokens/s | inside |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        first, speed = (
            "-" if value is None else f"{value:.3g}{unit}"
            for value, unit in ((row.first_token_seconds, " s"), (row.generated_per_second, ""))
        )
        lines.append(
            f"| {row.name} | {row.file_bytes / 1e9:.3f} GB | {row.outcome} | "
            f"{row.peak_bytes / 1e6:.0f} MB | {first} | {speed} | {'yes' if row.kept else 'NO'} |"
        )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--peer-python", help="without it, only ours runs")
    parser.add_argument("--ram-mb", type=float, default=400.0)
    parser.add_argument("--bpw", type=float, default=3.35)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--generate", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cgroup", type=Path)
    parser.add_argument("--only-write", action="store_true", help="write the two models and stop")
    return parser.parse_args()


def main() -> None:
    flags = parsed()
    shape = known_shape(flags.shape)
    artefact, file = (flags.directory / f"{flags.shape}{end}" for end in ("-lsb", ".gguf"))
    if not artefact.exists():
        write_synthetic(SyntheticOptions(flags.shape, flags.bpw), artefact)
    if not file.exists():
        write_gguf(shape, file)
    if flags.only_write:
        return
    options = MemoryOptions(
        int(flags.ram_mb * 1e6), flags.context, flags.prompt, flags.generate, flags.threads,
        group=flags.cgroup,
    )  # fmt: skip
    runs: list[Callable[[], Row]] = [lambda: ours(artefact, options)]
    if flags.peer_python:
        runs.append(lambda: llama_cpp(flags.peer_python, file, options, True))
        runs.append(lambda: llama_cpp(flags.peer_python, file, options, False))
    rows = []
    for run in runs:
        rows.append(run())
        print(f"{rows[-1].name}: {rows[-1].outcome}", file=sys.stderr)
    print(table(rows))
    names = ("shape", "ram_mb", "context", "prompt", "generate")
    command = "python benches/memory_peers.py SHAPE DIR --peer-python PATH --ram-mb N"
    settings = {name: getattr(flags, name) for name in names}
    limited = "a memory control group" if flags.cgroup else "RLIMIT_DATA: not the page cache"
    values = {"command": command, **settings, "limited_by": limited}
    write_result(
        "memory_peers",
        values | {"rows": [asdict(row) for row in rows], "machine": machine_facts()},
    )


if __name__ == "__main__":
    main()
