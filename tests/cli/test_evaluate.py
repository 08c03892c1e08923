from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Command, copied, flip_data_bit, streaming_bytes
from tiny import write_tiny_gguf, write_tiny_model

from loop_singular_bit.engine import runtime
from loop_singular_bit.engine.runtime import Model

SHORT = ("--tokens", 64, "--context", 64, "-q")


def test_an_artefact_against_its_original(
    tiny_artefact: Path, tiny_model: Path, lsb: Command, probed: object
) -> None:
    outcome = lsb("eval", tiny_artefact, "--against", tiny_model, *SHORT, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    ratio = found["perplexity"] / found["perplexity_original"]
    assert found["quality_loss"] == pytest.approx(100 * (ratio - 1))
    assert 0 < found["kl_median"] <= found["kl_p999"] and 0 < found["top1_agreement"] < 1
    assert (found["eval_tokens"], found["ram_peak_bytes"]) == (64, 50_000_000)


def test_a_model_against_itself_loses_nothing(tiny_model: Path, lsb: Command) -> None:
    outcome = lsb("eval", tiny_model, "--against", tiny_model, *SHORT, "--json")
    found = json.loads(outcome.out)
    assert found["quality_loss"] == found["quality_loss_stderr"] == found["kl_p999"] == 0
    assert found["top1_agreement"] == 1
    assert "size_bytes" not in found


def test_a_gguf_file_alone(tmp_path: Path, tiny_model: Path, lsb: Command) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", quantization="F32")
    found = json.loads(lsb("eval", path, *SHORT, "--json").out)
    same = json.loads(lsb("eval", tiny_model, *SHORT, "--json").out)
    assert found["perplexity"] == pytest.approx(same["perplexity"], rel=1e-6)


def test_people_get_a_table(tiny_artefact: Path, lsb: Command, probed: object) -> None:
    outcome = lsb("eval", tiny_artefact, *SHORT)
    assert outcome.code == 0
    for row in ("perplexity", "size", "peak memory of a run", "generation"):
        assert f"\n{row}\t" in outcome.out


def test_a_text_of_ones_own_is_used(
    tmp_path: Path, tiny_artefact: Path, lsb: Command, probed: object
) -> None:
    text = tmp_path / "own.txt"
    text.write_text("The miller counts 12 sacks. " * 40, "utf-8")
    own, default = (
        json.loads(lsb("eval", tiny_artefact, *SHORT, *flags, "--json").out)["perplexity"]
        for flags in (("--text", text), ())
    )
    assert own != default


def test_a_short_text_is_refused_with_both_counts(
    tmp_path: Path, tiny_artefact: Path, lsb: Command
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("aaa", "utf-8")
    assert lsb("eval", tiny_artefact, "--text", text, *SHORT).refused(4, "has", "65", "--tokens")


def test_a_text_that_is_not_utf8_is_refused(
    tmp_path: Path, tiny_artefact: Path, lsb: Command
) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes(b"\xff\xfe")
    assert lsb("eval", tiny_artefact, "--text", text, *SHORT).refused(4, "latin.txt", "UTF-8")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--tokens", "0"), "--tokens"),
        (("--context", "-1"), "--context"),
        (("--ram-mb", "nan"), "--ram-mb"),
        (("--threads", "0"), "--threads"),
        (("--text", "absent"), "--text"),
    ],
)
def test_a_bad_flag_is_a_usage_error(
    flags: tuple[str, str], word: str, tiny_artefact: Path, lsb: Command
) -> None:
    assert lsb("eval", tiny_artefact, "-q", *flags).refused(2, word)


def test_another_vocabulary_is_refused_with_both_sizes(
    tmp_path: Path, tiny_artefact: Path, lsb: Command
) -> None:
    other = write_tiny_model(tmp_path / "other", vocab=480)
    outcome = lsb("eval", tiny_artefact, "--against", other, *SHORT)
    assert outcome.refused(4, "--against", "480", "512")


def test_a_memory_budget_that_cannot_hold_is_refused(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("eval", tiny_artefact, *SHORT, "--ram-mb", "2")
    assert outcome.refused(4, "--ram-mb 2", "needs")


def test_a_damaged_byte_is_an_io_error(tmp_path: Path, tiny_artefact: Path, lsb: Command) -> None:
    damaged = copied(tiny_artefact, tmp_path / "damaged")
    flip_data_bit(damaged)
    assert lsb("eval", damaged, *SHORT).refused(5, "model.lsb")


def test_an_artefact_streams_within_its_budget(
    deep_artefact: Path, lsb: Command, probed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the figures that it has in memory, bit for bit."""
    streamed: list[bool] = []
    opened = runtime.open_model

    def watched(*arguments: Any, **options: Any) -> Any:
        model = opened(*arguments, **options)
        return _noted(model, streamed)

    monkeypatch.setattr(runtime, "open_model", watched)
    ram_mb = streaming_bytes(deep_artefact, 64, "16") / 1e6
    flags = ("--tokens", 128, "--context", 64, "--threads", 1, "-q", "--json")
    free, bound = (
        json.loads(lsb("eval", deep_artefact, *flags, *budget).out)
        for budget in ((), ("--ram-mb", ram_mb))
    )
    assert streamed == [False, True]
    for figure in ("perplexity", "perplexity_stderr", "eval_tokens"):
        assert free[figure] == bound[figure]


@contextmanager
def _noted(model: AbstractContextManager[Model], streamed: list[bool]) -> Iterator[Model]:
    with model as found:
        streamed.append(found.streamed)
        yield found
