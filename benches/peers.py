"""Tokens a second of an artefact beside llama.cpp and ik_llama.cpp on the same machine and threads.

    python benches/peers.py ARTEFACT... --gguf FILE... [--peer-python PATH] [--rounds 3]

Peers are Python packages (llama-cpp-python, ik-llama-cpp-python) in an environment of their own,
whose interpreter is PEER_PYTHON; build llama-cpp-python with CMAKE_ARGS=-DGGML_NATIVE=ON. Every
round runs each contender once in a process of its own, taking turns: a prompt of 512 tokens, then
64 tokens one by one, greedy, weights in memory. Writes benches/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import machine_facts, write_result

PROMPT, GENERATE = 512, 64
PEER = """
import json, sys, time
module, path, threads, prompt, generate = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
lc = __import__(module)
model = lc.Llama(path, n_ctx=prompt + generate, n_batch=512, n_threads=threads,
                 n_threads_batch=threads, verbose=False, use_mmap=False)
ids = [(7 * i) % 1000 for i in range(prompt)]
for _round in range(2):  # the first warms up
    model.reset()
    start = time.perf_counter()
    model.eval(ids)
    middle = time.perf_counter()
    token = 1
    for _ in range(generate):
        model.eval([token])
        token = model.sample(temp=0.0)
    end = time.perf_counter()
print(json.dumps({"prompt_per_second": prompt / (middle - start),
                  "generated_per_second": generate / (end - middle)}))
"""


def output(command: list[str]) -> dict[str, Any]:
    """The JSON object on the last line of a command's output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def ours_unpacked(artefact: Path, threads: int) -> dict[str, Any]:
    return ours(artefact, threads, "--unpack")


def ours(artefact: Path, threads: int, *more: str) -> dict[str, Any]:
    flags = ["--prompt", str(PROMPT), "--generate", str(GENERATE), "--repeats", "1", "--json"]
    flags += more
    lsb = [sys.executable, "-m", "loop_singular_bit", "bench", "speed", str(artefact)]
    return output([*lsb, *flags, "--threads", str(threads)])


def peer(python: str, module: str, file: Path, threads: int) -> dict[str, Any]:
    numbers = [str(threads), str(PROMPT), str(GENERATE)]
    return output([python, "-c", PEER, module, str(file), *numbers])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefacts", type=Path, nargs="+")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--modules", nargs="*", default=["llama_cpp", "ik_llama_cpp"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    contenders = {}
    for path in options.artefacts:
        contenders[f"ours {path.name}"] = ours, path
        contenders[f"ours {path.name}, unpacked"] = ours_unpacked, path
    runs: dict[str, list[dict[str, Any]]] = {}
    sizes = {
        name: sum(file.stat().st_size for file in path.glob("model*.lsb"))
        for name, (_, path) in contenders.items()
    }
    for _ in range(options.rounds):
        for name, (run, path) in contenders.items():
            runs.setdefault(name, []).append(run(path, options.threads))
        for file in options.gguf:
            for module in options.modules:
                name = f"{module} {file.stem}"
                sizes[name] = file.stat().st_size
                found = peer(options.peer_python, module, file, options.threads)
                runs.setdefault(name, []).append(found)
    rows = []
    for name, found in runs.items():
        prompt, generated = (
            statistics.median(run[key] for run in found)
            for key in ("prompt_per_second", "generated_per_second")
        )
        row = {"name": name, "bytes": sizes[name], "prompt_per_second": prompt}
        row["generated_per_second"] = generated
        rows.append(row)
        print(
            f"{name:40} {sizes[name] / 1e6:8.1f} MB, prompt {prompt:8.1f}/s, "
            f"generation {generated:7.2f}/s"
        )
    facts = {"threads": options.threads, "prompt": PROMPT, "generate": GENERATE}
    facts["rounds"] = options.rounds
    command = "python benches/peers.py ARTEFACT... --gguf FILE... --peer-python PATH"
    write_result("peers", {"command": command, **facts, "rows": rows, "machine": machine_facts()})


if __name__ == "__main__":
    main()
