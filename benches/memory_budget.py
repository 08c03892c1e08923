"""One artefact under several memory limits: peak with page cache, speed, ratio to the floor.

    lsb bench make-shape mistral-7b -o SHAPE --bpw 3.35
    python benches/memory_budget.py SHAPE [--cgroup GROUP] [--runs 192:2048:200 0:4096:200]

A run is budget in MB (0: no limit) : positions : generated tokens, each from a cold page cache in a
process of its own. GROUP is a memory control group handed over for this; without one the kernel
limits anonymous memory only. Writes benches/results/NAME.json, and NAME.svg: tokens a second by
budget. Fails when the tokens are not the same under every budget, with drafts and without.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import RESULTS, machine_facts, write_result

from loop_singular_bit.measure.budgets import check_same_tokens, speed_plot


def run(directory: Path, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run; a budget that was not kept is a figure too."""
    ram, context, generate = what.split(":")
    command = [
        sys.executable, "-m", "loop_singular_bit", "bench", "memory", str(directory), "--json",
        "--ram-mb", ram, "--context", context, "--generate", generate,
        "--prompt", str(options.prompt), "--kv", options.kv,
    ]  # fmt: skip
    if options.cgroup:
        command += ["--cgroup", str(options.cgroup)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "{" not in done.stdout:
        raise SystemExit(f"{what}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    use, tokens = found["use"], found["tokens"]
    print(f"{what}: peak {use['peak_bytes'] / 1e6:.1f} MB, {found['outcome']}")
    if tokens:
        print(f"  {tokens['generated_per_second']:.3f}/s, {tokens['ratio_to_floor']:.2f} of floor")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cgroup", type=Path)
    parser.add_argument("--prompt", type=int, default=1500)
    parser.add_argument("--name", default="memory_budget", help="of the file in benches/results")
    parser.add_argument("--kv", default="4")
    parser.add_argument("--runs", nargs="*", default=["192:2048:200", "400:4096:200", "0:4096:200"])
    options = parser.parse_args()
    report = json.loads((options.directory / "report.json").read_text("utf-8"))
    facts = {key: report.get(key) for key in ("synthetic", "size_bytes", "bits_per_weight")}
    runs = [run(options.directory, what, options) for what in options.runs]
    command = f"python benches/memory_budget.py SHAPE --cgroup GROUP --prompt {options.prompt} "
    command += f"--name {options.name} --runs " + " ".join(options.runs)
    result = {"command": command, **facts, "kv_bits": options.kv, "runs": runs}
    write_result(options.name, {**result, "machine": machine_facts()})
    (RESULTS / f"{options.name}.svg").write_text(speed_plot(runs), "utf-8")
    check_same_tokens(runs)


if __name__ == "__main__":
    main()
