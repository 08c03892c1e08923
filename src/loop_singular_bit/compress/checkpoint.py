"""`lsb compress` that was stopped goes on (docs/decisions/0014-resume.md).

OUT.partial holds the settings, the finished stages of the calibration, the artefact so far and its
journal; OUT appears when all of it is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loop_singular_bit import __version__
from loop_singular_bit.budget import Budgets
from loop_singular_bit.compress.allocate import CodecOptions, Plan
from loop_singular_bit.compress.forward import Tokens
from loop_singular_bit.compress.guidance import Guidance, Importance
from loop_singular_bit.compress.journal import Journal
from loop_singular_bit.compress.original import OriginalNetwork
from loop_singular_bit.compress.output import refuse_existing
from loop_singular_bit.compress.pipeline import (
    Calibration,
    CalibrationOptions,
    Progress,
    calibration_tokens,
    guided_calibration,
)
from loop_singular_bit.compress.source import Source
from loop_singular_bit.compress.stages import Arrays, Stages, open_stages
from loop_singular_bit.container.partial import sync_directory
from loop_singular_bit.engine.artefact import WEIGHTS_FILE
from loop_singular_bit.errors import InputRefusedError, InterruptedRunError, ResourceError
from loop_singular_bit.measure.quality import Quality
from loop_singular_bit.models.spec import LINEAR_ROLES

CHECKPOINT_VERSION = 1  # of the files that are kept; another one is refused
ARTEFACT = "artefact"
_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja")


class Work:
    """The directory OUT.partial of one compression.

    artefact  where the artefact grows, or the one of several that is finished
    """

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.artefact = stages.folder / ARTEFACT
        self.artefact.mkdir(exist_ok=True)

    def journal(self, plan: Plan) -> Journal:
        """What is finished of the artefact of that plan."""
        return Journal(self.stages.folder / f"{_plan_digest(plan)}.journal")

    def quality(self, plan: Plan, windows: Tokens) -> Quality | None:
        """What was measured on the artefact of that plan over those windows, if it was."""
        found = self.stages.load(_quality_name(plan, windows))
        return None if found is None else Quality(**{k: v.item() for k, v in found.items()})

    def keep_quality(self, plan: Plan, windows: Tokens, quality: Quality) -> None:
        """Keeps what was measured."""
        arrays = {name: np.array(value) for name, value in asdict(quality).items()}
        self.stages.save(_quality_name(plan, windows), arrays)

    def finished(self, directory: Path) -> Path:
        """Says in which directory the artefact is. Raises ResourceError when it is not."""
        if not (directory / WEIGHTS_FILE).exists():
            raise ResourceError(
                f"{directory} has no {WEIGHTS_FILE}, but was measured: start over with --restart"
            )
        self.artefact = directory
        return directory

    @property
    def empty(self) -> bool:
        """Nothing is finished."""
        folder = self.stages.folder
        return not any(path.stat().st_size for path in (*folder.glob("*.npz"), *_journals(folder)))


@contextmanager
def work_directory(
    path: Path, settings: dict[str, Any], *, restart: bool = False
) -> Iterator[Work]:
    """The work on a directory that appears at `path` complete or not at all; when it is stopped,
    what is finished of it waits in `<path>.partial`.

    Raises InputRefusedError when `path` exists and is not an empty directory, ResourceError for
    disk and memory, and what `open_stages` raises.
    """
    refuse_existing(path)
    folder = path.with_name(path.name + ".partial")
    way_out = "repeat the command it was begun with, or discard it with --restart"
    with open_stages(folder, settings, way_out, restart=restart) as stages:
        work = Work(stages)
        try:
            yield work
            _publish(work.artefact, path)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(_stopped(work)) from error
        except InputRefusedError:  # what has to change before it can go on makes all this useless
            shutil.rmtree(folder)
            raise
        except (ResourceError, OSError, MemoryError) as error:
            if work.empty or not _may_pass(error):
                raise
            raise ResourceError(_failed(work, error)) from error
        else:
            shutil.rmtree(folder)
        finally:
            if folder.exists() and work.empty:
                shutil.rmtree(folder)


def _stopped(work: Work) -> str:
    if work.empty:
        return "stopped before anything was finished; run again to start over"
    return f"stopped; {_kept(work)}"


def _may_pass(error: Exception) -> bool:
    """The system failed at something; what is kept is not at fault."""
    return not isinstance(error, ResourceError) or isinstance(error.__cause__, OSError)


def _failed(work: Work, error: Exception) -> str:
    known = isinstance(error, ResourceError)
    return f"{error if known else f'{type(error).__name__}: {error}'}; {_kept(work)}"


def _kept(work: Work) -> str:
    return (
        f"{work.stages.folder} keeps what is finished: run the same command again to go on, with "
        "--restart to start over"
    )


def _publish(artefact: Path, path: Path) -> None:
    for file in artefact.iterdir():
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_directory(artefact)
    if path.exists():
        path.rmdir()
    artefact.rename(path)
    sync_directory(path.parent)


def compress_settings(
    source: Source,
    codec: CodecOptions,
    budgets: Budgets,
    calibration: CalibrationOptions,
    windows: Tokens,
) -> dict[str, Any]:
    """Everything that the bytes of an artefact depend on, by the flags of `lsb compress`; windows:
    what it is evaluated on, which --max-loss looks at."""
    looked_at = None if budgets.loss_percent is None else _digest(repr(windows.tolist()))
    codec_flags = {f"--{name.replace('_', '-')}": value for name, value in asdict(codec).items()}
    return {
        **calibration_settings(source, calibration),
        **codec_flags,
        "--storage-gb": budgets.storage_gb,
        "--max-loss": budgets.loss_percent,
        "evaluated tokens": looked_at,
    }


def calibration_settings(source: Source, calibration: CalibrationOptions) -> dict[str, Any]:
    """Everything that a calibration depends on."""
    text = calibration.text
    return {
        "version": __version__,
        "checkpoint version": CHECKPOINT_VERSION,
        "model": str(source.path.resolve()),
        "model files": _model_files(source.path),
        "--calibration": None if text is None else f"text {_digest(text)}",
        "--calibration-tokens": calibration.tokens,
        "--no-guidance": not calibration.guided,
        "--seed": calibration.seed,
    }


def _model_files(path: Path) -> dict[str, list[int]]:
    """Size and time of change [ns] of every file a source may read, by name."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {
        file.name: [file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file == path or file.suffix in _MODEL_SUFFIXES
    }


def _plan_digest(plan: Plan) -> str:
    return _digest(repr((sorted(plan.codecs.items()), plan.size_bytes)))


def _quality_name(plan: Plan, windows: Tokens) -> str:
    return f"quality-{_plan_digest(plan)}-{_digest(repr(windows.tolist()))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _journals(folder: Path) -> Iterator[Path]:
    return folder.glob("*.journal")


def kept_calibration(
    source: Source,
    network: OriginalNetwork,
    options: CalibrationOptions,
    stages: Stages,
    progress: Progress,
) -> Calibration:
    """As `make_calibration`; what is finished in `stages` is not made again."""
    tokens = _kept_tokens(source, network, options, stages, progress)
    if not options.guided:
        return Calibration(tokens)
    if (found := stages.load("guidance")) is not None:
        progress("kept guide", 1, 1)
        return _unpacked(tokens, found, source.spec.layers)
    made = guided_calibration(network, tokens, options.seed, stages.scratch(), progress)
    stages.save("guidance", _packed(made))
    return made


def _kept_tokens(
    source: Source,
    network: OriginalNetwork,
    options: CalibrationOptions,
    stages: Stages,
    progress: Progress,
) -> Tokens:
    if (found := stages.load("tokens")) is not None:
        progress("kept sample", 1, 1)
        return found["tokens"]
    tokens = calibration_tokens(source, network, options, progress)
    stages.save("tokens", {"tokens": tokens})
    return tokens


def _packed(calibration: Calibration) -> Arrays:
    """Guidance and sensitivity as arrays by name."""
    guidance, sensitivity = calibration.guidance, calibration.sensitivity
    assert guidance is not None and sensitivity is not None
    matrices = {"head": guidance.head} | {
        f"layers.{index}.{role.value}": found
        for index, of_layer in enumerate(guidance.layers)
        for role, found in of_layer.items()
    }
    arrays: dict[str, Any] = {"embedding": guidance.embedding}
    for name, found in matrices.items():
        arrays[f"{name}.weights"], arrays[f"{name}.moment"] = found.weights, found.moment
    arrays["sensitivity.names"] = np.array(list(sensitivity))
    arrays["sensitivity.nats"] = np.array(list(sensitivity.values()), np.float64)
    return arrays


def _unpacked(tokens: Tokens, arrays: Arrays, layers: int) -> Calibration:
    def importance(name: str) -> Importance:
        return Importance(arrays[f"{name}.weights"], arrays[f"{name}.moment"])

    of_layers = tuple(
        {role: importance(f"layers.{index}.{role.value}") for role in LINEAR_ROLES}
        for index in range(layers)
    )
    names, nats = arrays["sensitivity.names"].tolist(), arrays["sensitivity.nats"].tolist()
    guidance = Guidance(of_layers, importance("head"), arrays["embedding"])
    return Calibration(tokens, guidance, dict(zip(names, nats, strict=True)))
