"""`lsb compress`: a model into an artefact, under budgets, with what was measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from loop_singular_bit.cli.options import (
    budget_options,
    codec_from,
    codec_options,
    evaluation_options,
    json_flag,
    quiet_flag,
    read_text,
    threads_option,
)
from loop_singular_bit.cli.show import print_json, print_table, progress_on_stderr, size_text
from loop_singular_bit.errors import TargetMissedError, UsageError

if TYPE_CHECKING:
    from loop_singular_bit.compress.pipeline import Progress


@click.command("compress")
@click.argument("model", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--from",
    "cut_from",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Cut this artefact to --storage-gb instead: planes are left out, nothing is encoded.",
)
@click.option("--against", metavar="MODEL", help="With --from: measure quality against this.")
@budget_options
@codec_options
@click.option("--calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Calibration text [default: sampled from the model itself].")  # fmt: skip
@click.option("--calibration-tokens", default=16384, show_default=True, help="Tokens to use.")
@click.option(
    "--no-guidance",
    is_flag=True,
    help="No backward sweep: all tokens count alike, planes follow a fixed order.",
)
@click.option("--seed", default=0, show_default=True, help="Of signs and sampling.")
@click.option(
    "--restart", is_flag=True, help="Discard what a stopped run with this output has finished."
)
@evaluation_options
@threads_option
@quiet_flag
@json_flag
def compress(model: str | None, output: Path | None, **flags: Any) -> None:
    """Compress MODEL: a Hugging Face directory, a GGUF file or a hub id.

    The same command again goes on where a stopped one was (OUTPUT.partial).

    \b
    lsb compress ./SmolLM2-135M-Instruct -o smol --planes 4
    lsb compress mistralai/Mistral-7B-v0.1 -o m7b --storage-gb 4 --ram-mb 400 --max-loss 1
    lsb compress --from m7b -o m7b-small --storage-gb 3
    """
    with progress_on_stderr(flags["quiet"]) as progress:
        if flags["cut_from"] is not None:
            result = _cut(model, output, flags, progress)
        else:
            result = _encode(model, output, flags, progress)
    if flags["as_json"]:
        print_json(result)
    else:
        show_result(result)
    if not result["all_targets_achieved"]:
        raise TargetMissedError(missed(result))


def _refuse_given(names: tuple[str, ...], why: str) -> None:
    """Refuses flags that would be ignored."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')}: {why}")


_ENCODING = (
    "codec", "planes", "window", "block", "outlier_ratio", "embedding", "calibration",
    "calibration_tokens", "no_guidance", "seed", "restart",
)  # fmt: skip


def _cut(
    model: str | None, output: Path | None, flags: Mapping[str, Any], progress: Progress
) -> Mapping[str, Any]:
    """An artefact into a smaller one."""
    from loop_singular_bit.budget import Budgets
    from loop_singular_bit.compress.compressor import EvaluationOptions
    from loop_singular_bit.compress.recut import RecutOptions, recut

    if model is not None:
        raise UsageError(
            f"MODEL {model} and --from {flags['cut_from']}: name one of them; --against {model} "
            "measures what is cut"
        )
    _refuse_given(_ENCODING, "has no meaning with --from, which encodes nothing")
    if flags["against"] is None:
        why = "quality is measured against the original: add --against MODEL"
        _refuse_given(("text", "context", "tokens"), why)
    if output is None:
        raise UsageError("--from needs -o, the directory to write")
    options = RecutOptions(
        Budgets(flags["storage_gb"], flags["ram_mb"], flags["max_loss"]),
        flags["against"],
        EvaluationOptions(read_text(flags["text"]), flags["context"], flags["tokens"]),
        flags["threads"],
    )
    return recut(flags["cut_from"], output, options, progress)


def _encode(
    model: str | None, output: Path | None, flags: Mapping[str, Any], progress: Progress
) -> Mapping[str, Any]:
    """A model into an artefact."""
    from loop_singular_bit.compress.compressor import EvaluationOptions, LoopCompressor
    from loop_singular_bit.compress.pipeline import CalibrationOptions

    if model is None:
        raise UsageError("name a MODEL to compress, or --from DIR to cut an artefact that is there")
    _refuse_given(("against",), "only with --from; MODEL is what its artefact is measured against")
    compressor = LoopCompressor(
        outlier_ratio=flags["outlier_ratio"],
        target_ram_mb=flags["ram_mb"],
        target_storage_gb=flags["storage_gb"],
        quality_threshold=flags["max_loss"],
        codec=codec_from(flags),
        calibration=CalibrationOptions(
            flags["calibration_tokens"],
            read_text(flags["calibration"]),
            flags["seed"],
            guided=not flags["no_guidance"],
        ),
        evaluation=EvaluationOptions(read_text(flags["text"]), flags["context"], flags["tokens"]),
        threads=flags["threads"],
        progress=progress,
        restart=flags["restart"],
    )
    return compressor.compress_model(model, output)


def missed(result: Mapping[str, Any]) -> str:
    """Which targets were missed, by how much."""
    parts = []
    for name, target in result["targets"].items():
        if not target["met"]:
            measured = target["measured"]
            found = result["run"]["refused"] if measured is None else f"measured {measured:.3f}"
            parts.append(f"{name}: limit {target['limit']}, {found}")
    return f"target missed ({'; '.join(parts)}); the artefact {result['artefact']} is kept"


def show_result(result: Mapping[str, Any]) -> None:
    """The figures of an artefact for people."""
    peak = result["ram_peak_bytes"]
    rows = [
        ("size", f"{size_text(result['size_bytes'])} ({result['size_bytes']:,} bytes)"),
        ("bits per weight", f"{result['bits_per_weight']:.3f}"),
        ("compression ratio", f"{result['compression_ratio']:.2f}x of 16-bit"),
        *_quality(result),
        ("peak memory of a run", "refused" if peak is None else size_text(peak)),
        ("generation", _speed(result["run"])),
        ("time", f"{result['seconds']:.0f} s"),
    ]
    print_table(str(result["artefact"]), ("measured", ""), rows)


def _quality(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "quality_loss" in result:
        return quality_rows(result)
    return [("quality", f"{result['quality']}: add --against MODEL")]


def _speed(run: Mapping[str, Any]) -> str:
    if "refused" in run:
        return "refused"
    return f"{run['generated_per_second']:.1f} tokens/s"


def quality_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows for the figures of a comparison."""
    loss, error = result["quality_loss"], result["quality_loss_stderr"]
    return [
        ("perplexity", f"{result['perplexity']:.3f} ({result['perplexity_original']:.3f} before)"),
        ("quality loss", f"{loss:+.2f} % ± {error:.2f}"),
        ("KL mean / median / 99.9 %",
         f"{result['kl_mean']:.4f} / {result['kl_median']:.4f} / {result['kl_p999']:.4f}"),
        ("top-1 agreement", f"{100 * result['top1_agreement']:.2f} %"),
        ("evaluated on", f"{result['eval_tokens']} tokens"),
    ]  # fmt: skip
