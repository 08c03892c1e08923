"""The process that peers.py measures: one peer, a prompt, then tokens one by one, greedy.

    PYTHON speed_child.py MODULE FILE THREADS PROMPT GENERATE

It runs in the peer's own interpreter, so it imports nothing of ours. The first of two rounds warms
up.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Advance = Callable[[list[int]], int]  # token ids in, the most likely next one out


def llama_cpp(path: str, threads: int, context: int) -> tuple[Advance, Callable[[], Any]]:
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    model = llama_cpp.Llama(
        path, n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads,
        verbose=False, use_mmap=False,
    )  # fmt: skip

    def advance(ids: list[int]) -> int:
        model.eval(ids)
        return int(model.sample(temp=0.0))

    return advance, model.reset


def ik_llama_cpp(path: str, threads: int, context: int) -> tuple[Advance, Callable[[], Any]]:
    """Its wrapper makes a Python object of every logit to pick a token; numpy picks it here."""
    import numpy as np
    from ik_llama_cpp import IkLlama  # type: ignore[import-not-found, unused-ignore]
    from ik_llama_cpp._ctypes_api import (  # type: ignore[import-not-found, unused-ignore]
        llama_batch_free,
    )
    from ik_llama_cpp._internals import (  # type: ignore[import-not-found, unused-ignore]
        make_batch_range,
    )

    model = IkLlama(path, n_ctx=context, n_threads=threads, use_mmap=False, verbose=False)
    inner, position = model._context, 0

    def advance(ids: list[int]) -> int:
        nonlocal position
        batch = make_batch_range(ids, pos_start=position, logits_last=True)
        code = inner.decode(batch)
        llama_batch_free(batch)
        if code:
            raise SystemExit(f"ik_llama.cpp could not decode: code {code}")
        position += len(ids)
        logits = ctypes.cast(inner.get_logits(-1), ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(logits, (model._model.n_vocab,)).argmax())

    def reset() -> None:
        nonlocal position
        position = 0
        inner.kv_cache_clear()

    return advance, reset


PEERS = {"llama_cpp": llama_cpp, "ik_llama_cpp": ik_llama_cpp}


def main() -> None:
    module, path = sys.argv[1:3]
    threads, prompt, generate = map(int, sys.argv[3:6])
    advance, reset = PEERS[module](path, threads, prompt + generate)
    ids = [(7 * i) % 1000 for i in range(prompt)]
    for _round in range(2):
        reset()
        start = time.perf_counter()
        token = advance(ids)
        middle = time.perf_counter()
        for _ in range(generate):
            token = advance([token])
        end = time.perf_counter()
    rates = {"prompt_per_second": prompt / (middle - start)}
    rates["generated_per_second"] = generate / (end - middle)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
