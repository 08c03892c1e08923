"""Tokens a second of artefacts beside llama.cpp and ik_llama.cpp on the same machine and threads.

    python benches/peers.py ARTEFACT... --peer llama_cpp PYTHON FILE.gguf... \\
        --peer ik_llama_cpp PYTHON FILE.gguf... [--rounds 3] [--unpack]

Peers are Python packages (llama-cpp-python, ik-llama-cpp-python), each in an environment of its
own, whose interpreter is PYTHON; build both from source with CMAKE_ARGS=-DGGML_NATIVE=ON. A round
runs each contender once in a process of its own, taking turns: a prompt of 512 tokens, then 64
tokens one by one, greedy, weights in memory. Prints every artefact's ratio to the file of each peer
that is nearest in bits per weight, of the files with as many parameters. Writes
benches/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from machine import machine_facts, write_result

PROMPT, GENERATE = 512, 64
LSB = [sys.executable, "-m", "loop_singular_bit"]
CHILD = Path(__file__).with_name("speed_child.py")


@dataclass(frozen=True)
class Contender:
    """peer: "ours" or a module; command: prints an object with both rates."""

    name: str
    peer: str
    bytes: int
    parameters: int
    command: list[str]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.parameters


@dataclass(frozen=True)
class Row:
    """Tokens a second, medians over the rounds."""

    name: str
    peer: str
    bytes: int
    parameters: int
    bits_per_weight: float
    prompt_per_second: float
    generated_per_second: float


def output(command: Sequence[str]) -> dict[str, Any]:
    """The JSON object that a command's output ends with."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def ours(artefact: Path, threads: int, *more: str) -> Contender:
    info = output([*LSB, "info", str(artefact), "--json"])
    flags = ["--prompt", str(PROMPT), "--generate", str(GENERATE), "--repeats", "1", "--json"]
    command = [*LSB, "bench", "speed", str(artefact), *flags, "--threads", str(threads), *more]
    name = " ".join([f"ours {artefact.name}", *(flag.removeprefix("--") for flag in more)])
    return Contender(name, "ours", info["size_bytes"], info["parameters"], command)


def theirs(module: str, python: str, file: Path, threads: int) -> Contender:
    numbers = [str(number) for number in (threads, PROMPT, GENERATE)]
    weights = sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
    command = [python, str(CHILD), module, str(file), *numbers]
    return Contender(f"{module} {file.stem}", module, file.stat().st_size, weights, command)


def race(contenders: Sequence[Contender], rounds: int) -> list[Row]:
    """Every contender once a round, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            runs[contender.name].append(output(contender.command))

    def median(name: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[name])

    return [
        Row(
            c.name, c.peer, c.bytes, c.parameters, c.bits_per_weight,
            median(c.name, "prompt_per_second"), median(c.name, "generated_per_second"),
        )
        for c in contenders
    ]  # fmt: skip


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Ours over the file of each peer that is nearest in bits per weight, of the same model."""
    found = []
    for own in (row for row in rows if row.peer == "ours"):
        for peer in sorted({row.peer for row in rows} - {"ours"}):
            same = [
                row
                for row in rows
                if row.peer == peer and abs(row.parameters / own.parameters - 1) < 0.01
            ]
            if not same:
                continue
            near = min(same, key=lambda row: abs(row.bits_per_weight - own.bits_per_weight))
            found.append(
                {
                    "name": own.name,
                    "peer": near.name,
                    "prompt": own.prompt_per_second / near.prompt_per_second,
                    "generated": own.generated_per_second / near.generated_per_second,
                }
            )
    return found


def show(
    rows: Sequence[Row], compared: Sequence[dict[str, Any]], say: Callable[[str], Any]
) -> None:
    for row in rows:
        say(
            f"{row.name:44} {row.bits_per_weight:5.2f} bits, {row.bytes / 1e6:7.1f} MB, "
            f"prompt {row.prompt_per_second:7.1f}/s, generation {row.generated_per_second:6.2f}/s"
        )
    for ratio in compared:
        say(
            f"{ratio['name']} / {ratio['peer']}: prompt {ratio['prompt']:.2f}, "
            f"generation {ratio['generated']:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefacts", type=Path, nargs="+")
    parser.add_argument("--peer", nargs="+", action="append", default=[], metavar="MODULE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unpack", action="store_true", help="artefacts with --unpack, too")
    options = parser.parse_args()
    contenders = [ours(path, options.threads) for path in options.artefacts]
    if options.unpack:
        contenders += [ours(path, options.threads, "--unpack") for path in options.artefacts]
    for module, python, *files in options.peer:
        contenders += [theirs(module, python, Path(file), options.threads) for file in files]
    rows = race(contenders, options.rounds)
    compared = ratios(rows)
    show(rows, compared, print)
    facts = {"threads": options.threads, "prompt": PROMPT, "generate": GENERATE}
    command = "python benches/peers.py ARTEFACT... --peer MODULE PYTHON FILE.gguf..."
    write_result(
        "peers",
        {
            "command": command, **facts, "rounds": options.rounds,
            "rows": [asdict(row) for row in rows], "ratios": compared, "machine": machine_facts(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
