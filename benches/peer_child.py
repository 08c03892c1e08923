"""The process that memory_peers.py measures: one contender, a prompt, tokens one by one, greedy.

    PYTHON peer_child.py '{"kind": "llama-mmap", "path": FILE, ...}'

It runs in the contender's own interpreter, so it imports nothing else before it is asked to. What
it has done it says at once, one line for each step: a run that is killed has said how far it came.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

Request = Mapping[str, Any]
Advance = Callable[[list[int]], int]  # token ids in, the most likely next one out


def ours(request: Request, stack: ExitStack) -> Advance:
    """The engine as `lsb run --ram-mb` opens it, without drafts."""
    from pathlib import Path

    from loop_singular_bit.engine.runtime import open_model

    model = stack.enter_context(
        open_model(
            Path(request["path"]), ram_bytes=request["limit_bytes"], context=request["context"],
            threads=request["threads"],
        )
    )  # fmt: skip
    session = stack.enter_context(model.session())
    return lambda ids: int(session.advance(ids).argmax())


def llama_mmap(request: Request, stack: ExitStack) -> Advance:
    return _llama_cpp(request, mapped=True)


def llama_read(request: Request, stack: ExitStack) -> Advance:
    return _llama_cpp(request, mapped=False)


def _llama_cpp(request: Request, mapped: bool) -> Advance:
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    model = llama_cpp.Llama(
        request["path"], n_ctx=request["context"], n_batch=min(256, len(request["prompt_ids"])),
        n_threads=request["threads"], n_threads_batch=request["threads"], use_mmap=mapped,
        verbose=False,
    )  # fmt: skip

    def advance(ids: list[int]) -> int:
        model.eval(ids)
        return int(model.sample(temp=0.0))

    return advance


def accelerate(request: Request, stack: ExitStack) -> Advance:
    """transformers with accelerate's disk offload, which reads the safetensors files themselves.

    All but the last norm is on disk, as little as a map of devices with a processor in it allows.
    """
    from tempfile import TemporaryDirectory

    import torch  # type: ignore[import-not-found, unused-ignore]
    from transformers import (  # type: ignore[import-not-found, unused-ignore]
        AutoConfig,
        AutoModelForCausalLM,
    )

    torch.set_num_threads(request["threads"])
    layers = AutoConfig.from_pretrained(request["path"]).num_hidden_layers
    devices = {"model.embed_tokens": "disk", "lm_head": "disk"}
    devices |= {f"model.layers.{layer}": "disk" for layer in range(layers)}
    devices |= {"model.norm": "cpu", "model.rotary_emb": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        request["path"], dtype=torch.bfloat16, device_map=devices,
        offload_folder=stack.enter_context(TemporaryDirectory()),
    )  # fmt: skip
    return _torch_advance(model)


def airllm(request: Request, stack: ExitStack) -> Advance:
    import torch
    from airllm import AutoModel  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(request["threads"])
    return _torch_advance(AutoModel.from_pretrained(request["path"], device="cpu"))


def _torch_advance(model: Any) -> Advance:
    import torch

    cache = None

    def advance(ids: list[int]) -> int:
        nonlocal cache
        with torch.inference_mode():
            out = model(
                input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        cache = out.past_key_values
        return int(out.logits[0, -1].argmax())

    return advance


KINDS: Mapping[str, Callable[[Request, ExitStack], Advance]] = {
    "ours": ours, "llama-mmap": llama_mmap, "llama-read": llama_read, "accelerate": accelerate,
    "airllm": airllm,
}  # fmt: skip


def say(step: str, seconds: float) -> None:
    """One line on stdout, where libraries write too."""
    print(json.dumps({"step": step, "seconds": seconds}), flush=True)


def main() -> None:
    request: Request = json.loads(sys.argv[1])
    with ExitStack() as stack:
        advance = KINDS[request["kind"]](request, stack)
        say("opened", time.monotonic() - request["started"])
        token = advance(request["prompt_ids"])
        say("first", time.monotonic() - request["started"])
        for _ in range(request["tokens"]):
            before = time.perf_counter()
            token = advance([token])
            say("token", time.perf_counter() - before)


if __name__ == "__main__":
    main()
