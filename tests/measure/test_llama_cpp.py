"""The peer, where it is installed; what is said where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_gguf

from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.source import open_source
from loop_singular_bit.errors import InputRefusedError, ResourceError, UsageError
from loop_singular_bit.measure import llama_cpp
from loop_singular_bit.measure.llama_cpp import LlamaCppScorer, quantize, require_type
from loop_singular_bit.measure.quality import NetworkScorer, compare_tokens, summary, windows

TOKENS = windows([int(i) for i in np.random.default_rng(0).integers(4, 512, 200)], 64, 128)
installed = pytest.mark.skipif(not llama_cpp.available(), reason="llama-cpp-python is optional")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    llama_cpp._llama.cache_clear()
    yield
    llama_cpp._llama.cache_clear()


def test_without_the_package_it_is_named(missing: None) -> None:
    with pytest.raises(UsageError, match="pip install llama-cpp-python"):
        require_type("Q4_K_M")


@installed
def test_unknown_types_are_refused_with_the_known_ones() -> None:
    require_type("Q4_K_M")
    with pytest.raises(UsageError, match=r"'Q4_KM' is no type.*Q4_K_M"):
        require_type("Q4_KM")


@installed
def test_the_same_weights_predict_the_same(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    original = OriginalNetwork(open_source(str(path)), 2)
    q8 = tmp_path / "q8.gguf"
    importance = {"blk.0.attn_q.weight": np.ones(64, np.float32)}
    quantize(path, q8, "Q8_0", importance, 1)
    assert q8.stat().st_size < path.stat().st_size
    reference = NetworkScorer(original, 64, keep=True)
    losses = []
    for file in (path, q8):
        with closing(LlamaCppScorer(file, 64, 512, 1)) as scorer:
            (figures,) = compare_tokens([scorer], reference, TOKENS)
        losses.append(summary(figures).kl_mean)
    assert losses[0] < losses[1] < 1e-2
    assert losses[0] < 1e-4


@installed
def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(InputRefusedError, match="vocabulary of 512, the model has 520"):
        LlamaCppScorer(path, 64, 520, 1)


@installed
def test_a_file_that_cannot_be_quantized_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(ResourceError, match="Q8_0"):
        quantize(tmp_path / "no.gguf", tmp_path / "out.gguf", "Q8_0", {}, 1)
