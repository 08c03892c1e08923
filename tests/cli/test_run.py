from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Command, copied, flip_data_bit, set_version

from loop_singular_bit.container import ContainerReader
from loop_singular_bit.engine import spill
from loop_singular_bit.engine.artefact import WEIGHTS_FILE, read_spec
from loop_singular_bit.engine.memory_plan import Setting, as_plans, streamed_plan

FEW = ("--max-tokens", 4)


def test_keys_and_values_on_disk_are_said_and_change_nothing(
    tiny_artefact: Path, lsb: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "PASS_BYTES", 1)  # the buffer would outweigh this small a cache
    spec = read_spec(tiny_artefact)
    with ContainerReader.open(tiny_artefact / WEIGHTS_FILE) as reader:
        plan = streamed_plan(spec, as_plans(reader.records), Setting(256, threads=1))
    flags = ("--context", 256, "--threads", 1, "--draft", 0, *FEW)
    enough, less = (
        lsb(
            "run", tiny_artefact, "hello", *flags, "--ram-mb", (plan.ledger.total_bytes - cut) / 1e6
        )
        for cut in (0, 1)
    )
    assert enough.out == less.out
    assert "on disk" not in enough.err
    assert "[keys and values of 2 of 2 layers are on disk (0.1 MB): more --ram-mb or" in less.err


def test_an_answer_on_stdout_and_its_speed_on_stderr(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("run", tiny_artefact, "hello", *FEW)
    assert outcome.code == 0
    assert outcome.out.endswith("\n")
    assert "tokens/s, peak" in outcome.err


def answer(lsb: Command, directory: Path, *flags: object) -> str:
    return str(json.loads(lsb("run", directory, "hello", "--json", *flags).out)["text"])


def test_the_same_answer_from_one_thread_and_two(tiny_artefact: Path, lsb: Command) -> None:
    one, two = (answer(lsb, tiny_artefact, *FEW, "--threads", count) for count in (1, 2))
    assert one == two


def test_a_seed_repeats_a_sampled_answer(tiny_artefact: Path, lsb: Command) -> None:
    flags = ("--raw", "--max-tokens", 12, "--temperature", 1)
    first, again, other = (answer(lsb, tiny_artefact, *flags, "--seed", s) for s in (1, 1, 2))
    assert first == again != other


def test_json_is_one_object(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("run", tiny_artefact, "hello", *FEW, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["completion_tokens"] <= 4
    assert found["finish_reason"] in ("length", "stop")


def test_drafts_change_the_statistics_and_not_the_answer(tiny_artefact: Path, lsb: Command) -> None:
    flags = ("hello hello hello", "--raw", "--max-tokens", 60)
    none, drafted = (
        json.loads(lsb("run", tiny_artefact, *flags, "--draft", n, "--json").out) for n in (0, 6)
    )
    assert none["text"] == drafted["text"]
    assert none["speculation"] is None
    assert set(drafted["speculation"]) == {"drafted", "accepted", "sweeps"}
    counts = drafted["speculation"]
    assert counts["sweeps"] + counts["accepted"] == drafted["completion_tokens"] - 1
    line = lsb("run", tiny_artefact, *flags, "--draft", 6).err
    said = f"{counts['accepted']} of {counts['drafted']} drafted tokens accepted"
    assert f"{said} in {counts['sweeps']} sweeps" in line
    assert "drafted" not in lsb("run", tiny_artefact, *flags).err  # in memory: no drafts


def test_raw_has_no_template_around_the_prompt(tiny_artefact: Path, lsb: Command) -> None:
    plain, chat = (
        json.loads(lsb("run", tiny_artefact, "hello", *FEW, *flags, "--json").out)
        for flags in (("--raw",), ())
    )
    assert plain["prompt_tokens"] < chat["prompt_tokens"]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--max-tokens", "0"), "max_tokens"),
        (("--temperature", "nan"), "temperature"),
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "1.5"), "top_p"),
        (("--top-k", "-1"), "top_k"),
        (("--min-p", "2"), "min_p"),
        (("--seed", "-1"), "seed"),
        (("--stop", ""), "stop"),
        (("--context", "0"), "--context"),
        (("--context", "1000"), "1..256"),
        (("--ram-mb", "nan"), "--ram-mb"),
        (("--threads", "0"), "--threads"),
        (("--draft", "16"), "draft is 16: expected 0 to 15"),
    ],
)
def test_a_bad_flag_is_a_usage_error(
    flags: tuple[str, str], word: str, tiny_artefact: Path, lsb: Command
) -> None:
    assert lsb("run", tiny_artefact, "hello", *flags).refused(2, word)


def test_a_budget_that_cannot_hold_is_refused(tiny_artefact: Path, lsb: Command) -> None:
    assert lsb("run", tiny_artefact, "hello", "--ram-mb", 3).refused(4, "--ram-mb 3", "needs")


def test_a_prompt_longer_than_the_context_is_refused(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("run", tiny_artefact, "hello " * 300, *FEW)
    assert outcome.refused(4, "256")


def test_a_directory_without_weights_is_refused(tiny_model: Path, lsb: Command) -> None:
    assert lsb("run", tiny_model, "hello").refused(4, "model.lsb")


def test_a_damaged_byte_is_an_io_error(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    damaged = copied(tiny_artefact, tmp_path / "damaged")
    flip_data_bit(damaged)
    assert lsb("run", damaged, "hello").refused(5, "model.lsb")


def test_an_artefact_of_a_future_version_is_refused(
    tiny_artefact: Path, tmp_path: Path, lsb: Command
) -> None:
    future = copied(tiny_artefact, tmp_path / "future")
    set_version(future, 7)
    assert lsb("run", future, "hello").refused(4, "version: found 7, expected 1")
