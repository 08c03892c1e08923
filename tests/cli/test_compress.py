from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from cli_runs import Command, Outcome
from tiny import Tiny, tiny_weights, write_safetensors, write_tiny_model

from loop_singular_bit.cli.options import codec_from, codec_options
from loop_singular_bit.compress import calibrate, compressor, pipeline
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.measure.quality import Quality

SHORT = ("--tokens", 64, "--context", 64, "-q")
INT8 = ("--codec", "int8", *SHORT)
FACTS = {
    "artefact", "size_bytes", "original_bytes_16bit", "parameters", "bits_per_weight",
    "compression_ratio", "perplexity", "perplexity_original", "quality_loss",
    "quality_loss_stderr", "kl_mean", "kl_median", "kl_p999", "top1_agreement", "eval_tokens",
    "ram_peak_bytes", "seconds", "targets", "all_targets_achieved",
}  # fmt: skip


def edit_config(model: Path, **fields: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")


def missing_shard(model: Path) -> None:
    (model / "model-00002-of-00003.safetensors").unlink()


def truncated_shard(model: Path) -> None:
    path = model / "model-00003-of-00003.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def wrong_shape(model: Path) -> None:
    edit_config(model, intermediate_size=192)


def unknown_family(model: Path) -> None:
    edit_config(model, model_type="gpt_neox")


def foreign_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    document["added_tokens"][-1]["id"] = 5000
    path.write_text(json.dumps(document), "utf-8")


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": {', "utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing_shard, ("model-00002-of-00003.safetensors", "2 shards", "3 expected")),
        (truncated_shard, ("model-00003-of-00003.safetensors",)),
        (wrong_shape, ("gate_proj", "[128, 64]", "[192, 64]")),
        (unknown_family, ("model_type", "gpt_neox")),
        (foreign_tokenizer, ("tokenizer.json", "5001", "512")),
        (no_tokenizer, ("tokenizer.json",)),
        (broken_tokenizer, ("tokenizer.json",)),
    ],
)
def test_a_bad_model_is_refused_with_one_line(
    damage: Callable[[Path], None], words: tuple[str, ...], tmp_path: Path, lsb: Command
) -> None:
    model = write_tiny_model(tmp_path / "model", shards=3)
    damage(model)
    assert lsb("compress", model, "-o", tmp_path / "out", *INT8).refused(4, *words)
    assert lsb("estimate", model).refused(4, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_leaves_nothing_behind(
    value: float, tmp_path: Path, lsb: Command
) -> None:
    model = write_tiny_model(tmp_path / "model")
    weights = tiny_weights(Tiny())
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    write_safetensors(model / "model.safetensors", weights)
    outcome = lsb("compress", model, "-o", tmp_path / "out", *INT8)
    assert outcome.refused(4, "model.layers.1.mlp.down_proj.weight")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--storage-gb", "0"), ("--storage-gb", "0")),
        (("--storage-gb", "-1"), ("--storage-gb", "-1")),
        (("--storage-gb", "nan"), ("--storage-gb", "nan")),
        (("--ram-mb", "inf"), ("--ram-mb", "inf")),
        (("--ram-mb", "0"), ("--ram-mb", "0")),
        (("--max-loss", "0"), ("--max-loss", "0")),
        (("--max-loss", "nan"), ("--max-loss", "nan")),
        (("--max-loss", "-2"), ("--max-loss", "-2")),
        (("--planes", "9"), ("--planes", "9", "1..8")),
        (("--planes", "0"), ("--planes", "0", "1..8")),
        (("--planes", "two"), ("--planes", "two")),
        (("--threads", "0"), ("--threads", "0")),
        (("--threads", "-1"), ("--threads", "-1")),
        (("--outlier-ratio", "-0.1"), ("--outlier-ratio", "-0.1")),
        (("--outlier-ratio", "nan"), ("--outlier-ratio", "nan")),
        (("--outlier-ratio", "0.6"), ("--outlier-ratio", "0.6")),
        (("--outlier-ratio", "many"), ("--outlier-ratio", "'many'", "auto")),
        (("--outlier-ratio", "auto", "--planes", "3"), ("--outlier-ratio", "--planes")),
        (("--outlier-ratio", "auto", "--codec", "int8"), ("--outlier-ratio", "--codec")),
        (("--outlier-ratio", "auto", "--no-guidance"), ("--outlier-ratio", "--no-guidance")),
        (("--codec", "int4"), ("--codec", "int4", "uniform1")),
        (("--embedding", "int4"), ("--embedding", "int4")),
        (("--window", "3"), ("--window", "3", "4..10")),
        (("--block", "5"), ("--block", "5")),
        (("--seed", "-1"), ("--seed", "-1")),
        (("--seed", str(1 << 80)), ("--seed",)),
        (("--tokens", "0"), ("--tokens", "0")),
        (("--context", "1"), ("--context", "1")),
        (("--calibration-tokens", "-5"), ("--calibration-tokens", "-5", "256")),
        (("--text", "no-such-file"), ("--text", "no-such-file")),
        (("--calibration", "no-such-file"), ("--calibration", "no-such-file")),
        (("--no-such-flag",), ("--no-such-flag",)),
    ],
)
def test_a_bad_flag_is_a_usage_error_that_names_it(
    flags: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, tiny_model: Path, lsb: Command
) -> None:
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", "-q", *flags)
    assert outcome.refused(2, *words)
    assert not list(tmp_path.iterdir())


def test_a_storage_budget_below_the_least_size_is_refused_with_both_sizes(
    tmp_path: Path, tiny_model: Path, lsb: Command
) -> None:
    flags = ("--storage-gb", "0.00001")
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", "-q", *flags)
    assert outcome.refused(4, "--storage-gb", "1e-05", "smallest", "GB", "bits per weight")
    assert not list(tmp_path.iterdir())
    least = outcome.err.split("needs ")[1].split(" GB")[0]
    assert lsb("estimate", tiny_model, "--storage-gb", least).code == 0
    assert lsb("estimate", tiny_model, "--storage-gb", float(least) * 0.999).code == 4


def test_an_output_that_is_not_empty_is_left_as_it_is(
    tmp_path: Path, tiny_model: Path, lsb: Command
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine", "utf-8")
    assert lsb("compress", tiny_model, "-o", output, *INT8).refused(4, str(output), "empty")
    assert lsb("compress", tiny_model, "-o", output / "mine.txt", *INT8).refused(4, "mine.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize("inside", [".", "out", "deeper/out", "../model/out"])
def test_an_output_inside_the_model_directory_is_refused(
    inside: str, tmp_path: Path, lsb: Command
) -> None:
    model = write_tiny_model(tmp_path / "model")
    before = sorted(model.iterdir())
    outcome = lsb("compress", model, "-o", model / inside, *INT8)
    assert outcome.refused(4, str(model), "inside")
    assert sorted(model.iterdir()) == before


def test_an_empty_output_directory_is_used(
    tmp_path: Path, tiny_model: Path, lsb: Command, probed: object
) -> None:
    (tmp_path / "out").mkdir()
    assert lsb("compress", tiny_model, "-o", tmp_path / "out", *INT8).code == 0
    assert (tmp_path / "out" / "model.lsb").is_file()


def test_a_text_that_is_not_utf8_is_refused_with_the_place(
    tmp_path: Path, tiny_model: Path, lsb: Command
) -> None:
    text = tmp_path / "latin.txt"
    text.write_bytes(b"caf\xe9")
    for flag in ("--text", "--calibration"):
        outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", flag, text, "-q")
        assert outcome.refused(4, "latin.txt", "UTF-8", "3")
    assert [path.name for path in tmp_path.iterdir()] == ["latin.txt"]


def test_a_short_evaluation_text_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_model: Path, lsb: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "sample_sequences", None)  # would end the test
    text = tmp_path / "short.txt"
    text.write_text("a b c d", "utf-8")
    flags = ("--text", text, "--tokens", "64", "--context", "64", "-q")
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", *flags)
    assert outcome.refused(4, "evaluation text", "65", "--tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_short_calibration_text_is_refused(
    tmp_path: Path, tiny_model: Path, lsb: Command
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a b c d", "utf-8")
    flags = ("--calibration", text, *SHORT)
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", *flags)
    assert outcome.refused(4, "--calibration", "256")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path, lsb: Command) -> None:
    outcome = lsb("compress", tmp_path / "absent", "-o", tmp_path / "out", *INT8)
    assert outcome.refused(4, "absent", "does not exist")
    assert not list(tmp_path.iterdir())


def test_json_is_one_object_with_every_figure(
    tmp_path: Path, tiny_model: Path, lsb: Command, probed: object
) -> None:
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", *INT8, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    assert found.keys() >= FACTS
    assert (found["targets"], found["all_targets_achieved"]) == ({}, True)
    assert found["size_bytes"] == sum(
        path.stat().st_size
        for path in (tmp_path / "out").iterdir()
        if path.name not in ("README.md", "report.json")
    )
    assert found["compression_ratio"] == found["original_bytes_16bit"] / found["size_bytes"]


@pytest.fixture
def lossy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measured quality loss of 5 percent: of a random model it could be of either sign."""
    evaluate = compressor.evaluate_written

    def worse(*arguments: Any) -> list[Quality]:
        return [replace(quality, quality_loss=5.0) for quality in evaluate(*arguments)]

    monkeypatch.setattr(compressor, "evaluate_written", worse)


def test_a_missed_loss_keeps_the_artefact_and_says_why(
    tmp_path: Path, tiny_model: Path, lsb: Command, probed: object, lossy: None
) -> None:
    output = tmp_path / "out"
    flags = (*INT8, "--max-loss", "4.5", "--storage-gb", "1")
    outcome = lsb("compress", tiny_model, "-o", output, *flags, "--json")
    assert outcome.code == 3
    outcome.one_line("quality: limit 4.5, measured 5.000", str(output), "kept")
    found = json.loads(outcome.out)
    assert found.keys() >= FACTS
    assert found["all_targets_achieved"] is False
    assert {name: target["met"] for name, target in found["targets"].items()} == {
        "storage": True, "quality": False,
    }  # fmt: skip
    assert lsb("verify", output, "-q").code == 0
    assert lsb("run", output, "hello", "--max-tokens", 2).code == 0


def test_a_missed_memory_target_keeps_the_artefact(
    tmp_path: Path, tiny_model: Path, lsb: Command, probed: object
) -> None:
    flags = (*INT8, "--ram-mb", "49")
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", *flags)
    assert outcome.code == 3
    outcome.one_line("ram: limit 49.0, measured 50.000")
    assert (tmp_path / "out" / "model.lsb").is_file()


def test_a_refused_run_is_a_missed_memory_target_with_the_reason(
    tmp_path: Path, tiny_model: Path
) -> None:
    command = [sys.executable, "-m", "loop_singular_bit", "compress", str(tiny_model)]
    flags = ["-o", str(tmp_path / "out"), *map(str, INT8), "--ram-mb", "2", "--json"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "ram: limit 2.0" in done.stderr and "plan needs" in done.stderr
    found = json.loads(done.stdout)
    assert (found["ram_peak_bytes"], found["targets"]["ram"]["met"]) == (None, False)


def test_people_get_a_table(tmp_path: Path, tiny_model: Path, lsb: Command, probed: object) -> None:
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", *INT8)
    assert outcome.code == 0
    for row in ("size", "bits per weight", "perplexity", "KL mean", "50.0 MB", "100.0 tokens/s"):
        assert row in outcome.out


def test_without_guidance_there_is_no_backward_sweep(
    tmp_path: Path, tiny_model: Path, lsb: Command, probed: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "guidance", None)  # would end the test
    flags = ("-o", tmp_path / "out", *SHORT)
    assert lsb("compress", tiny_model, *flags, "--no-guidance").code == 0
    with pytest.raises(TypeError):
        lsb("compress", tiny_model, "-o", tmp_path / "guided", *SHORT)


def test_codec_flags_default_to_those_of_the_library() -> None:
    command = click.command()(codec_options(lambda **_: None))
    assert codec_from(command.make_context("", []).params) == CodecOptions()


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def stopped_at_the_head(lsb: Command, patched: pytest.MonkeyPatch, *command: object) -> Outcome:
    with patched.context() as patch:
        patch.setattr("loop_singular_bit.compress.pipeline._Job._write_top", interrupted)
        return lsb(*command)


def test_an_interrupted_command_goes_on_where_it_was(
    tmp_path: Path,
    tiny_model: Path,
    lsb: Command,
    probed: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("compress", tiny_model, "-o", tmp_path / "out", *INT8[:-1])
    outcome = stopped_at_the_head(lsb, monkeypatch, *command, "-q")
    assert outcome.refused(6, "out.partial", "run the same command again")
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert lsb(*command, "--planes", 2).code == 4
    outcome = lsb(*command)
    assert (outcome.code, "kept: encoded layers: 2/2" in outcome.err) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_restart_discards_what_is_finished(
    tmp_path: Path,
    tiny_model: Path,
    lsb: Command,
    probed: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("compress", tiny_model, "-o", tmp_path / "out", *INT8[:-1])
    assert stopped_at_the_head(lsb, monkeypatch, *command).code == 6
    outcome = lsb(*command, "--codec", "uniform1", "--restart")
    assert (outcome.code, "kept" in outcome.err) == (0, False)


def test_an_interrupt_before_anything_is_finished_leaves_nothing_behind(
    tmp_path: Path, tiny_model: Path, lsb: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loop_singular_bit.compress.pipeline._Job._write_layer", interrupted)
    outcome = lsb("compress", tiny_model, "-o", tmp_path / "out", *INT8)
    assert outcome.refused(6, "before anything was finished")
    assert not list(tmp_path.iterdir())


def test_a_signal_from_the_terminal_leaves_nothing_behind(tmp_path: Path, tiny_model: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "loop_singular_bit", "compress", str(tiny_model)]
    flags = ["-o", str(output), "--calibration-tokens", "200000", "-q"]
    with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "out.partial" / "settings.json").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err.count("\n"), "stopped" in err) == (6, 1, True)
    assert not list(tmp_path.iterdir())


def test_an_artefact_given_as_model_is_refused(
    tmp_path: Path, tiny_artefact: Path, lsb: Command
) -> None:
    outcome = lsb("compress", tiny_artefact, "-o", tmp_path / "out", *INT8)
    assert outcome.refused(4, "model.safetensors")


def test_what_an_older_version_left_is_refused_until_told(
    tmp_path: Path, tiny_model: Path, lsb: Command, probed: object
) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "model.lsb.partial").write_bytes(b"half")
    command = ("compress", tiny_model, "-o", tmp_path / "out", *INT8)
    assert lsb(*command).refused(4, "an older version", "--restart")
    assert (tmp_path / "out.partial" / "model.lsb.partial").read_bytes() == b"half"
    assert lsb(*command, "--restart").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(tmp_path / "out")
