from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Command
from tiny import write_tiny_model

from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.measure import disk, speed


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "KERNEL_SHAPE", (64, 256))
    monkeypatch.setattr(speed, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(disk, "PROBE_SECONDS", 0.05)


def test_json_has_sizes_and_memory_by_holder(tiny_model: Path, lsb: Command) -> None:
    outcome = lsb("estimate", tiny_model, "--planes", 3, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["planes"] == {"3": 14, "5": 1}
    assert found["bits_per_weight"] == 8 * found["size_bytes"] / found["parameters"]
    assert found["original_bytes_16bit"] == 2 * found["parameters"]
    for name in ("ram_resident", "ram_streamed", "compress_ram"):
        assert found[f"{name}_bytes"] == sum(found[name].values())


def test_an_artefact_is_estimated_as_it_lies(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("estimate", tiny_artefact, "--context", 64, "--kv", 4, "--threads", 1, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found["size_bytes"] > (tiny_artefact / WEIGHTS_FILE).stat().st_size
    assert found["run"]["rows"] == 64
    assert found["run"]["disk_bytes_per_second"] is None
    assert found["run"]["tokens_per_second"] == 1 / found["run"]["seconds"]
    assert "compress_ram" not in found
    assert "\nspeed\t" in lsb("estimate", tiny_artefact).out


def test_a_run_that_streams_is_told_by_its_disk(tmp_path: Path, lsb: Command) -> None:
    model = write_tiny_model(tmp_path / "model", layers=8)
    command = ("estimate", model, "--codec", "int8", "--embedding", "raw", "--json")
    whole = json.loads(lsb(*command).out)
    assert whole["run"]["sweep_bytes"] == 0
    ram_mb = whole["ram_streamed_bytes"] / 1e6
    run = json.loads(lsb(*command, "--ram-mb", ram_mb).out)["run"]
    assert run["sweep_bytes"] > 0
    assert run["disk_bytes_per_second"] > 0


def test_more_context_takes_more_memory(tiny_model: Path, lsb: Command) -> None:
    small, large = (
        json.loads(lsb("estimate", tiny_model, "--context", context, "--json").out)
        for context in (64, 256)
    )
    assert small["ram_streamed"]["kv"] * 4 == large["ram_streamed"]["kv"]


def test_people_get_a_table(tiny_model: Path, lsb: Command) -> None:
    outcome = lsb("estimate", tiny_model)
    assert outcome.code == 0
    for row in ("parameters", "size", "compression ratio", "memory to compress"):
        assert f"\n{row}\t" in outcome.out


def test_a_memory_budget_that_cannot_hold_is_refused_with_both_numbers(
    tiny_model: Path, lsb: Command
) -> None:
    assert lsb("estimate", tiny_model, "--ram-mb", 3).refused(
        4, "--ram-mb 3", "plan needs", "MB", "process", "kv", "--context 256"
    )
    assert lsb("estimate", tiny_model, "--ram-mb", 400).code == 0


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--context", "0"), "--context"),
        (("--context", "257"), "1..256"),
        (("--calibration-tokens", "0"), "--calibration-tokens"),
        (("--ram-mb", "nan"), "--ram-mb"),
        (("--storage-gb", "inf"), "--storage-gb"),
        (("--planes", "9"), "--planes"),
    ],
)
def test_a_bad_flag_is_a_usage_error(
    flags: tuple[str, str], word: str, tiny_model: Path, lsb: Command
) -> None:
    assert lsb("estimate", tiny_model, *flags).refused(2, word)


@pytest.mark.parametrize("kind", ["text", "empty directory"])
def test_what_is_no_model_is_refused(kind: str, tmp_path: Path, lsb: Command) -> None:
    path = tmp_path / "thing"
    if kind == "text":
        path.write_text("no model", "utf-8")
    else:
        path.mkdir()
    assert lsb("estimate", path).refused(4, "thing", "expected")


def test_the_command_prints_the_curve(tiny_model: Path, lsb: Command) -> None:
    outcome = lsb("estimate", tiny_model, "--curve", "--max-loss", 5, "-q", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    curve = json.loads(outcome.out)["curve"]
    assert any(point["loss_percent"] <= 5 for point in curve)
    table = lsb("estimate", tiny_model, "--curve", "--max-loss", 5, "-q")
    assert table.code == 0 and "predicted loss" in table.out


def test_a_curve_of_what_has_no_choice_is_a_usage_error(
    tiny_model: Path, tiny_artefact: Path, lsb: Command
) -> None:
    outcome = lsb("estimate", tiny_artefact, "--curve")
    assert outcome.code == 2 and "name the original model" in outcome.err
    outcome = lsb("estimate", tiny_model, "--curve", "--planes", 3)
    assert outcome.code == 2 and "--planes" in outcome.err
