"""What verifying every block costs while a model streams: tokens a second with and without it.

    python benches/checksum_cost.py SHAPE [--ram-mb 400] [--tokens 3] [--rounds 8]

One process, one open model; rounds of a few tokens take turns, verified and not, so that whatever
else the machine does falls on both. The package itself cannot leave verification out: this script
puts another method in its place. Writes benches/results/checksum_cost.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.container import BLOCK_BYTES, ContainerReader
from loop_singular_bit.engine.runtime import open_model
from loop_singular_bit.engine.session import Session
from loop_singular_bit.measure.probe import made_up_prompt
from loop_singular_bit.measure.speed import best_rate

PROMPT = 16


def timed_tokens(session: Session, token: int, count: int) -> tuple[int, list[float], float]:
    """The last token, seconds of each, and seconds of processors for all of them."""
    seconds, used = [], time.process_time()
    for _ in range(count):
        before = time.perf_counter()
        token = int(session.advance([token]).argmax())
        seconds.append(time.perf_counter() - before)
    return token, seconds, time.process_time() - used


def take_turns(session: Session, options: argparse.Namespace) -> dict[bool, dict[str, Any]]:
    """Seconds of tokens, and of processors, with verification and without."""
    verify = ContainerReader._verify
    found = {checked: {"seconds": [], "processor": []} for checked in (True, False)}
    token = int(session.advance(made_up_prompt(PROMPT, 1000)).argmax())
    try:
        for turn in range(2 * options.rounds):
            checked = turn % 2 == 0
            ContainerReader._verify = verify if checked else lambda *_: None
            token, _, _ = timed_tokens(session, token, 1)  # read ahead the other way
            token, seconds, used = timed_tokens(session, token, options.tokens)
            found[checked]["seconds"] += seconds
            found[checked]["processor"].append(used / options.tokens)
    finally:
        ContainerReader._verify = verify
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ram-mb", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=3, help="of a turn")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each kind")
    options = parser.parse_args()
    context = PROMPT + 2 * options.rounds * (options.tokens + 1)
    block = np.zeros(BLOCK_BYTES, np.uint8)
    with open_model(
        options.directory, ram_bytes=options.ram_mb * 1_000_000, context=context, kv_bits=4
    ) as model:
        if not model.streamed:
            raise SystemExit(f"--ram-mb {options.ram_mb}: all is in memory, nothing streams")
        with model.session() as session:
            found = take_turns(session, options)
    rows = {
        name: {
            "tokens_per_second": 1 / statistics.median(found[checked]["seconds"]),
            "processor_seconds_per_token": statistics.median(found[checked]["processor"]),
        }
        for name, checked in (("verified", True), ("not_verified", False))
    }
    slower = 1 - rows["verified"]["tokens_per_second"] / rows["not_verified"]["tokens_per_second"]
    print(f"{rows}\nverification costs {100 * slower:.1f} % of the speed")
    values = {
        "command": f"python benches/checksum_cost.py SHAPE --ram-mb {options.ram_mb} "
        f"--tokens {options.tokens} --rounds {options.rounds}",
        "model": model.name,
        "ram_mb": options.ram_mb,
        "crc32c_bytes_per_second": best_rate(lambda: _native.crc32c(block), BLOCK_BYTES),
        **rows,
        "share_of_speed": slower,
        "machine": machine_facts(),
    }
    write_result("checksum_cost", values)


if __name__ == "__main__":
    main()
