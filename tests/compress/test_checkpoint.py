"""Compressions that are stopped and go on: the artefact of one that was not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model

from loop_singular_bit import LoopCompressor
from loop_singular_bit.compress import calibrate, checkpoint, compressor, pipeline
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import EvaluationOptions
from loop_singular_bit.compress.journal import Journal, Part
from loop_singular_bit.compress.pipeline import CalibrationOptions
from loop_singular_bit.errors import (
    InputRefusedError,
    InterruptedRunError,
    ResourceError,
    UsageError,
)
from loop_singular_bit.measure.probe import RunFigures, RunRequest

OPTIONS = LoopCompressor(
    target_ram_mb=None, target_storage_gb=1.0, quality_threshold=None,
    codec=CodecOptions(outlier_ratio=0.01), calibration=CalibrationOptions(256),
    evaluation=EvaluationOptions("The miller counts 12 sacks of flour. " * 60, 64, 64), threads=1,
)  # fmt: skip
INT8 = replace(OPTIONS, codec=CodecOptions("int8"))
LAYERS = 3


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(request: RunRequest) -> RunFigures:
        return RunFigures(50_000_000, "direct", 8, 8, 100.0, 100.0)

    monkeypatch.setattr(compressor, "probe_run", probe)
    monkeypatch.setattr(pipeline, "SEQUENCE_TOKENS", 32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("m") / "model", layers=LAYERS, tied=False)


@pytest.fixture(scope="module")
def straight(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressor, "probe_run", lambda _: RunFigures(50_000_000, "d", 8, 8, 1, 1))
        patch.setattr(pipeline, "SEQUENCE_TOKENS", 32)
        return compressed(model, tmp_path_factory.mktemp("straight") / "out")


def compressed(model: Path, out: Path, options: LoopCompressor = OPTIONS) -> dict[str, Any]:
    """The artefact's bytes by file, and what its report says of the encoding."""
    options.compress_model(model, out)
    found: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    report = json.loads(found.pop("report.json"))
    found["tensors"] = list(report["tensors"].items())
    found["error"], found["planes"] = report["mean_absolute_error"], report["planes"]
    del found["README.md"]  # has the time it took
    return found


def raising(function: Callable[..., Any], at_call: int, error: type[BaseException]) -> Any:
    """The function, with an error instead of its `at_call`th call."""
    calls = iter(range(100))

    def call(*args: Any, **options: Any) -> Any:
        if next(calls) == at_call:
            raise error
        return function(*args, **options)

    return call


STOPS: dict[str, tuple[object, str, int]] = {
    "guiding": (pipeline, "guidance", 0),
    "measuring what matrices cost": (pipeline, "sensitivities", 0),
    "embedding": (pipeline._Job, "_matrices", 0),
    "layer 0": (pipeline._Job, "_write_layer", 0),
    "a matrix of layer 1": (pipeline._Job, "_matrices", 7),
    "layer 2": (pipeline._Job, "_write_layer", 2),
    "head": (pipeline._Job, "_write_top", 0),
    "journal of the head": (Journal, "add", LAYERS + 1),
    "index of the file": (pipeline.ContainerWriter, "_finish", 0),
    "evaluation": (compressor, "evaluate_written", 0),
    "report": (compressor, "model_card", 0),
    "name of the artefact": (checkpoint, "_publish", 0),
}


@pytest.mark.parametrize("stop", STOPS)
def test_an_interrupted_compression_goes_on_to_the_same_bytes(
    stop: str,
    model: Path,
    tmp_path: Path,
    straight: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, name, call = STOPS[stop]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, raising(getattr(owner, name), call, KeyboardInterrupt))
        with pytest.raises(InterruptedRunError, match=r"out\.partial keeps what is finished"):
            OPTIONS.compress_model(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    monkeypatch.setattr(checkpoint, "calibration_tokens", None)  # not called again
    assert compressed(model, tmp_path / "out") == straight
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_finished_is_not_done_again_and_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    encoded: list[int] = []
    with monkeypatch.context() as patch:
        write = raising(pipeline._Job._write_layer, 2, OSError)
        patch.setattr(pipeline._Job, "_write_layer", write)
        with pytest.raises(ResourceError, match=r"OSError.*out\.partial keeps what is finished"):
            OPTIONS.compress_model(model, tmp_path / "out")
    real = pipeline._Job._write_layer

    def counted(job: Any, found: calibrate.LayerStatistics, shared: Any) -> None:
        encoded.append(found.index)
        real(job, found, shared)

    monkeypatch.setattr(pipeline._Job, "_write_layer", counted)
    monkeypatch.setattr(pipeline, "guidance", None)  # not called again
    telling = replace(OPTIONS, progress=lambda *what: told.append(what))
    telling.compress_model(model, tmp_path / "out")
    assert encoded == [2]
    assert told[:4] == [
        ("kept sample", 1, 1), ("kept guide", 1, 1), ("kept layer", 2, 3), ("layer", 3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("stop", ["layer 2", "guiding"])
def test_a_full_disk_says_what_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name, call = STOPS[stop]
    failing = raising(getattr(owner, name), call, ResourceError)
    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(ResourceError) as raised:
        OPTIONS.compress_model(model, tmp_path / "out")
    assert "keeps" not in str(raised.value)  # of what is kept itself
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(ResourceError, match=r"No space left.*out\.partial keeps what is finished"):
        OPTIONS.compress_model(model, tmp_path / "out")


def test_rounds_of_a_loss_that_is_allowed_are_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, target_storage_gb=None, quality_threshold=5.0)
    evaluate = compressor.evaluate_written

    def compress_with(losses: list[float], out: Path) -> dict[str, Any]:
        def found(*args: Any) -> list[Any]:
            return [replace(quality, quality_loss=losses.pop(0)) for quality in evaluate(*args)]

        monkeypatch.setattr(compressor, "evaluate_written", found)
        return compressed(model, out, options)

    straight = compress_with([20.0, 4.9], tmp_path / "straight")
    with monkeypatch.context() as patch:
        top = raising(pipeline._Job._write_top, 1, KeyboardInterrupt)
        patch.setattr(pipeline._Job, "_write_top", top)
        with pytest.raises(InterruptedRunError):
            compress_with([20.0], tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(compressor, "probed", raising(len, 0, KeyboardInterrupt))
        with pytest.raises(InterruptedRunError):
            compress_with([4.9], tmp_path / "out")  # the first round is not measured again
    assert not (tmp_path / "out.partial" / "round-1" / "model.lsb").exists()
    assert compress_with([], tmp_path / "out") == straight


def test_a_compression_stopped_at_every_part_ends(
    model: Path, tmp_path: Path, straight: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _part in range(LAYERS + 1):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", raising(Journal.add, 1, KeyboardInterrupt))
            with pytest.raises(InterruptedRunError):
                OPTIONS.compress_model(model, tmp_path / "out")
    assert compressed(model, tmp_path / "out") == straight


KILLED = """
import os, signal, sys
from loop_singular_bit.compress import checkpoint, pipeline
from loop_singular_bit.compress.journal import Journal
from loop_singular_bit.compress.stages import Stages
pipeline.SEQUENCE_TOKENS = 32
owner, name, call = {"Journal": Journal, "Stages": Stages}[sys.argv[2]], sys.argv[3], sys.argv[4]
real, calls = getattr(owner, name), iter(range(100))
def killed(*args):
    if next(calls) == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(owner, name, killed)
sys.path.insert(0, sys.argv[5])
from test_checkpoint import OPTIONS
OPTIONS.compress_model(sys.argv[1], "out")
"""


@pytest.mark.parametrize(
    "where",
    [("Stages", "save", "1"), ("Journal", "add", "2")],
    ids=["guided, not kept", "layer written, not in the journal"],
)
def test_a_killed_compression_goes_on_to_the_same_bytes(
    where: tuple[str, str, str],
    model: Path,
    tmp_path: Path,
    straight: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tests = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(model), *where, str(tests)]
    environment = os.environ | {"PYTHONPATH": str(tests.parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    monkeypatch.setattr(checkpoint, "calibration_tokens", None)  # not called again
    assert compressed(model, tmp_path / "out") == straight
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def stopped(model: Path, out: Path, options: LoopCompressor = INT8) -> Path:
    """The directory of a compression that has all but the head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline._Job, "_write_top", raising(len, 0, KeyboardInterrupt))
        with pytest.raises(InterruptedRunError):
            options.compress_model(model, out)
    return out.with_name(out.name + ".partial")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": CodecOptions("raw")}, "--codec was int8, is raw"),
        ({"target_storage_gb": None}, "--storage-gb was 1.0, is not given"),
        ({"calibration": CalibrationOptions(512, seed=3)},
         "--calibration-tokens was 256, is 512, --seed was 0, is 3"),
        ({"calibration": CalibrationOptions(256, "text")}, "--calibration was not given, is text"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_and_nothing_is_lost(
    change: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    folder = stopped(model, tmp_path / "out")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputRefusedError, match=f"{message}.* --restart"):
        replace(INT8, **change).compress_model(model, tmp_path / "out")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    replace(INT8, **change, restart=True).compress_model(model, tmp_path / "out")
    assert not folder.exists()


def test_a_model_that_changed_is_refused(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    stopped(model, tmp_path / "out")
    os.utime(model / "model.safetensors", ns=(0, 0))
    with pytest.raises(InputRefusedError, match=r"model files \(model\.safetensors\) changed"):
        INT8.compress_model(model, tmp_path / "out")


@pytest.mark.parametrize("name", ["version", "checkpoint version"])
def test_what_another_version_has_begun_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    path = stopped(model, tmp_path / "out") / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {name: "0.0"}), "utf-8")
    with pytest.raises(InputRefusedError, match=rf"{name} was 0\.0, is .*--restart"):
        INT8.compress_model(model, tmp_path / "out")


def test_an_artefact_that_left_is_made_again(model: Path, tmp_path: Path) -> None:
    """Killed between the artefact's name and the end, and the artefact moved away since."""
    folder = stopped(model, tmp_path / "out")
    (folder / "artefact" / "model.lsb.partial").unlink()
    found = compressed(model, tmp_path / "out", INT8)
    assert found == compressed(model, tmp_path / "straight", INT8)


def test_weights_that_the_journal_does_not_have_are_refused(model: Path, tmp_path: Path) -> None:
    weights = stopped(model, tmp_path / "out") / "artefact" / "model.lsb.partial"
    weights.rename(weights.with_suffix(""))
    with pytest.raises(ResourceError, match=r"only 4 parts .*--restart"):
        INT8.compress_model(model, tmp_path / "out")


def test_weights_shorter_than_the_journal_says_are_refused(model: Path, tmp_path: Path) -> None:
    weights = stopped(model, tmp_path / "out") / "artefact" / "model.lsb.partial"
    os.truncate(weights, 1000)
    with pytest.raises(ResourceError, match=r"has 1000 bytes, expected at least .*--restart"):
        INT8.compress_model(model, tmp_path / "out")


def test_a_line_cut_short_is_encoded_again(model: Path, tmp_path: Path) -> None:
    (path,) = stopped(model, tmp_path / "out").glob("*.journal")
    os.truncate(path, path.stat().st_size - 1)
    assert Journal(path).next == LAYERS - 1
    found = compressed(model, tmp_path / "out", INT8)
    assert found == compressed(model, tmp_path / "straight", INT8)


def test_two_at_once_are_refused(model: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def second(*_: object) -> None:
        with pytest.raises(UsageError, match="another process is writing it") as error:
            replace(INT8, restart=True).compress_model(model, tmp_path / "out")
        refused.append(str(error.value))

    progress = lambda stage, done, total: second() if stage == "layer" and done == 1 else None  # noqa: E731
    replace(INT8, progress=progress).compress_model(model, tmp_path / "out")
    assert len(refused) == 1 and (tmp_path / "out" / "model.lsb").exists()


def test_a_journal_returns_its_parts(model: Path, tmp_path: Path) -> None:
    (path,) = stopped(model, tmp_path / "out").glob("*.journal")
    found = Journal(path)
    assert [part.index for part in found.parts] == [-1, 0, 1, 2]
    assert all(isinstance(part, Part) and part.mark.records for part in found.parts)
    found.clear()
    assert Journal(path).parts == []
