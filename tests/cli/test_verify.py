from __future__ import annotations

import os
from pathlib import Path

from cli_runs import Command, copied, flip_data_bit, set_version
from sharded import resharded

from loop_singular_bit.cli.show import size_text


def test_a_sound_artefact(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("verify", tiny_artefact, "-q")
    assert (outcome.code, outcome.err) == (0, "")
    assert "verified" in outcome.out and outcome.out.count("\n") == 1


def test_progress_goes_to_stderr(tiny_artefact: Path, lsb: Command) -> None:
    outcome = lsb("verify", tiny_artefact)
    assert (outcome.code, outcome.out.count("\n")) == (0, 1)


def test_a_damaged_byte_is_an_io_error(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    damaged = copied(tiny_artefact, tmp_path / "damaged")
    flip_data_bit(damaged)
    assert lsb("verify", damaged, "-q").refused(5, "model.lsb")


def test_a_damaged_index_is_refused(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    damaged = copied(tiny_artefact, tmp_path / "damaged")
    data = bytearray((damaged / "model.lsb").read_bytes())
    data[-5] ^= 1
    (damaged / "model.lsb").write_bytes(data)
    assert lsb("verify", damaged, "-q").refused(4, "model.lsb", "crc32c")


def test_a_truncated_file_is_refused(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    damaged = copied(tiny_artefact, tmp_path / "damaged")
    size = (damaged / "model.lsb").stat().st_size
    os.truncate(damaged / "model.lsb", size - 1)
    assert lsb("verify", damaged, "-q").refused(4, "model.lsb", str(size), str(size - 1))


def test_shards_are_verified_and_missed(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    shards = resharded(tiny_artefact, tmp_path / "several", 4096)[1:]
    total = sum(path.stat().st_size for path in (tmp_path / "several").glob("*.lsb"))
    assert size_text(total) in lsb("verify", tmp_path / "several", "-q").out
    data = shards[0].read_bytes()
    shards[0].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert lsb("verify", tmp_path / "several", "-q").refused(5, "model-00001.lsb", "crc32c")
    shards[0].write_bytes(data)
    shards[-1].unlink()
    assert lsb("verify", tmp_path / "several", "-q").refused(4, shards[-1].name, "no such file")


def test_a_future_version_is_refused(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    future = copied(tiny_artefact, tmp_path / "future")
    set_version(future, 2)
    assert lsb("verify", future, "-q").refused(4, "version: found 2, expected 1")


def test_a_config_of_another_model_is_refused(
    tiny_artefact: Path, tmp_path: Path, lsb: Command
) -> None:
    other = copied(tiny_artefact, tmp_path / "other")
    text = (other / "config.json").read_text("utf-8")
    (other / "config.json").write_text(text.replace("128", "192"), "utf-8")
    assert lsb("verify", other, "-q").refused(4, "layers.0.gate", "(128, 64)", "(192, 64)")


def test_a_missing_tokenizer_is_refused(tiny_artefact: Path, tmp_path: Path, lsb: Command) -> None:
    other = copied(tiny_artefact, tmp_path / "other")
    (other / "tokenizer.json").unlink()
    assert lsb("verify", other, "-q").refused(4, "tokenizer.json")


def test_a_file_is_no_artefact(tiny_artefact: Path, lsb: Command) -> None:
    assert lsb("verify", tiny_artefact / "model.lsb").refused(2, "DIRECTORY")
