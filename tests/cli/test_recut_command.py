"""`lsb compress --from`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Command, copied, flip_data_bit

from loop_singular_bit.compress.compressor import artefact_size_bytes


def gigabytes(artefact: Path, share: float) -> str:
    return f"{share * artefact_size_bytes(artefact) / 1e9:.9f}"


def test_an_artefact_is_cut_and_runs(
    tmp_path: Path, tiny_artefact: Path, lsb: Command, probed: object
) -> None:
    output, size = tmp_path / "small", gigabytes(tiny_artefact, 0.9)
    outcome = lsb("compress", "--from", tiny_artefact, "-o", output, "--storage-gb", size, "-q")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("size", "bits per weight", "not measured: add --against MODEL", "50.0 MB"):
        assert words in outcome.out
    assert artefact_size_bytes(output) <= float(size) * 1e9
    assert lsb("verify", output, "-q").code == 0
    assert lsb("info", output).code == 0
    assert lsb("run", output, "hello", "--max-tokens", 2).code == 0


def test_against_the_original_the_result_is_that_of_a_compression(
    tmp_path: Path, tiny_model: Path, tiny_artefact: Path, lsb: Command, probed: object
) -> None:
    flags = ("--from", tiny_artefact, "-o", tmp_path / "small", "--against", tiny_model)
    limits = ("--storage-gb", gigabytes(tiny_artefact, 0.9), "--ram-mb", 49)
    short = ("--tokens", 64, "--context", 64, "-q", "--json")
    outcome = lsb("compress", *flags, *limits, *short)
    assert outcome.code == 3
    outcome.one_line("ram: limit 49.0, measured 50.000", "small", "kept")
    found = json.loads(outcome.out)
    assert {"kl_mean", "quality_loss", "perplexity", "mean_absolute_error"} <= set(found)
    assert found["cut_from_bytes"] == artefact_size_bytes(tiny_artefact)


def test_flags_that_do_not_go_together_are_refused(
    tmp_path: Path, tiny_model: Path, tiny_artefact: Path, lsb: Command
) -> None:
    start, output = ("compress", "--from", tiny_artefact), ("-o", tmp_path / "small")
    size = ("--storage-gb", gigabytes(tiny_artefact, 0.9))
    for flags, words in (
        ((*output,), ("--storage-gb",)),
        ((*size,), ("-o",)),
        ((tiny_model, *output, *size), ("MODEL", "--against")),
        ((*output, *size, "--planes", 2), ("--planes", "--from")),
        ((*output, *size, "--calibration-tokens", 512), ("--calibration-tokens", "--from")),
        ((*output, *size, "--no-guidance"), ("--no-guidance", "--from")),
        ((*output, *size, "--seed", 0), ("--seed", "--from")),
        ((*output, *size, "--tokens", 64), ("--tokens", "--against")),
        ((*output, *size, "--max-loss", 1), ("--max-loss", "--against")),
        ((*output, "--storage-gb", 0), ("--storage-gb", "0")),
    ):
        assert lsb(*start, *flags).refused(2, *words)
    assert lsb("compress", *output).refused(2, "MODEL", "--from")
    assert lsb("compress", tiny_model, *output, "--against", tiny_model).refused(2, "--against")
    assert not list(tmp_path.iterdir())


def test_sizes_that_cannot_be_are_refused_with_both(
    tmp_path: Path, tiny_artefact: Path, lsb: Command
) -> None:
    flags = ("--from", tiny_artefact, "-o", tmp_path / "small", "-q", "--storage-gb")
    size = gigabytes(tiny_artefact, 1)
    assert lsb("compress", *flags, 1).refused(2, "--storage-gb 1:", f"{size} GB")
    assert lsb("compress", *flags, "0.00001").refused(4, "1e-05", "smallest", "GB")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacks", ["config.json", "model.lsb"])
def test_a_directory_that_is_no_artefact_is_refused(
    lacks: str, tmp_path: Path, tiny_artefact: Path, lsb: Command
) -> None:
    source = copied(tiny_artefact, tmp_path / "source")
    (source / lacks).unlink()
    flags = ("-o", tmp_path / "small", "--storage-gb", 0.0001)
    assert lsb("compress", "--from", source, *flags).refused(4, lacks)
    assert lsb("compress", "--from", tmp_path / "absent", *flags).refused(2, "absent")


def test_damage_is_found(tmp_path: Path, tiny_artefact: Path, lsb: Command) -> None:
    source = copied(tiny_artefact, tmp_path / "source")
    flip_data_bit(source)
    flags = ("-o", tmp_path / "small", "--storage-gb", gigabytes(source, 0.9), "-q")
    assert lsb("compress", "--from", source, *flags).refused(5, "layers.1.gate", "crc32c")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
