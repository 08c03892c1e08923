"""What each part of the codec is worth: one model at one size, one part changed at a time.

    python benches/ablation.py MODEL_DIR -o STUDY --text FILE [--text FILE] [--bpw 3.5]

VARIANTS is the list: a new part is a new line there. A variant is codec options and, for parts that
no option turns off, what stands in for an internal function while it is encoded and measured. What
is finished is kept in STUDY and not done again. Writes benches/results/NAME.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from machine import machine_facts, write_result

from loop_singular_bit import _native
from loop_singular_bit.budget import GIGABYTE, Budgets
from loop_singular_bit.cli.show import progress_on_stderr
from loop_singular_bit.codec import planes
from loop_singular_bit.codec.rotation import InputTransform
from loop_singular_bit.compress.allocate import CodecOptions
from loop_singular_bit.compress.compressor import (
    EvaluationOptions,
    artefact_size_bytes,
    evaluation_tokens,
)
from loop_singular_bit.compress.forward import Tokens
from loop_singular_bit.compress.original import OriginalNetwork, resident_layers
from loop_singular_bit.compress.pipeline import (
    Calibration,
    CalibrationOptions,
    Progress,
    make_calibration,
    make_plan,
    write_artefacts,
)
from loop_singular_bit.compress.shrinkage import CAUTION, shrink
from loop_singular_bit.compress.source import Source, open_source
from loop_singular_bit.engine.artefact import ResidentNetwork
from loop_singular_bit.engine.runtime import usable_cores
from loop_singular_bit.measure.quality import NetworkScorer, Scorer, compare_tokens, summary
from loop_singular_bit.models.spec import parameter_count

ENCODE = "loop_singular_bit.compress.encode"
PLANES = "loop_singular_bit.codec.planes"
SHRINK = "loop_singular_bit.compress.calibrate.shrink"
refit = planes._refit


def no_feedback(H: object, block: int) -> None:
    """Instead of feedback_panels: every column is rounded by itself."""


def no_channel_scale(matrices: Sequence[tuple[Any, Any]]) -> np.ndarray:
    """Instead of channel_scale: every input at its own size."""
    return np.ones(matrices[0][0].data.shape[1], np.float32)


def as_they_are(H: np.ndarray, samples: float) -> None:
    """Instead of shrink: the second moments of the tokens."""


def cautious(caution: float) -> Callable[[np.ndarray, float], None]:
    """Instead of shrink: with another constant."""

    def shrunk(H: np.ndarray, samples: float) -> None:
        shrink(H, samples * CAUTION / caution)

    return shrunk


def plain_refit(W: Any, decoded: Any, unit: Any, H: object) -> Any:
    """Instead of _refit: amplitudes by plain least squares."""
    return refit(W, decoded, unit, None)


@dataclass(frozen=True)
class Variant:
    """instead: stand-ins by the dotted name of what they replace. guided: tokens count by what the
    loss cares about. even: planes by a fixed priority instead of by cost."""

    name: str
    codec: CodecOptions = field(default_factory=CodecOptions)
    instead: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    rotated: bool = True
    guided: bool = True
    even: bool = False

    def calibration(self, found: Calibration) -> Calibration:
        """What the variant knows of it."""
        return replace(
            found,
            guidance=found.guidance if self.guided else None,
            sensitivity=None if self.even else found.sensitivity,
        )

    def applied(self) -> ExitStack:
        """A context in which the stand-ins stand in."""
        with ExitStack() as stack:
            for name, replacement in self.instead.items():
                stack.enter_context(patch(name, replacement))
            if not self.rotated:  # blocks of one column: signs and scales are left
                stack.enter_context(patch.object(InputTransform, "block", 1))
            return stack.pop_all()


VARIANTS = (
    Variant("all parts"),
    Variant("tokens count alike", guided=False),
    Variant("planes by a fixed priority", even=True),
    Variant("moments as they are", instead={SHRINK: as_they_are}),
    *(Variant(f"moments shrunk by {c} x the estimate", instead={SHRINK: cautious(c)})
      for c in (1, 3, 5)),
    Variant("no feedback", instead={f"{ENCODE}.feedback_panels": no_feedback}),
    *(Variant(f"feedback every {g} columns", CodecOptions(block=g)) for g in (8, 16)),
    Variant("no rotation", rotated=False),
    Variant("no channel scales", instead={f"{ENCODE}.channel_scale": no_channel_scale}),
    Variant("amplitudes without H", instead={f"{PLANES}._refit": plain_refit}),
    *(Variant(f"L={window}", CodecOptions(window=window)) for window in (4, 5, 6, 7, 9, 10)),
    *(Variant(f"{100 * r:g} % outliers", CodecOptions(outlier_ratio=r))
      for r in (0.001, 0.005, 0.02)),
    Variant("no rotation, 2 % outliers", CodecOptions(outlier_ratio=0.02), rotated=False),
    Variant("embedding and head int8", CodecOptions(embedding="int8")),
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What the variants share."""

    source: Source
    calibration: Calibration
    windows: Tokens
    reference: Scorer
    storage_gb: float
    progress: Progress

    def measure(self, variant: Variant) -> dict[str, Any]:
        """Encodes the variant, reads it back and compares it with the original."""
        with variant.applied(), TemporaryDirectory() as folder:
            found = variant.calibration(self.calibration)
            plan = make_plan(
                self.source, variant.codec, Budgets(self.storage_gb), 0, found.sensitivity
            )
            path = Path(folder)
            (written,) = write_artefacts(self.source, [(plan, path)], found, 0, self.progress)
            with closing(ResidentNetwork(path)) as network:
                scorer = NetworkScorer(network, self.windows.shape[1] - 1)
                (figures,) = compare_tokens([scorer], self.reference, self.windows)
            size = artefact_size_bytes(path)
        proxy = float(np.mean([report.proxy_loss for report in written.reports.values()]))
        return {
            "name": variant.name,
            "size_bytes": size,
            "bits_per_weight": 8 * size / parameter_count(self.source.spec),
            "planes": {str(k): v for k, v in sorted(plan.planes.items())},
            "proxy_loss_mean": proxy,
            **asdict(summary(figures)),
        }


def open_bench(options: argparse.Namespace, progress: Progress) -> Bench:
    source = open_source(options.model)
    original = OriginalNetwork(source, resident_layers(source))
    text = options.calibration.read_text("utf-8") if options.calibration else None
    calibration = CalibrationOptions(options.calibration_tokens, text)
    windows = [
        evaluation_tokens(
            source, EvaluationOptions(path.read_text("utf-8"), options.context, options.tokens)
        )
        for path in options.text
    ]
    return Bench(
        source,
        make_calibration(source, original, calibration, options.output, progress),
        np.concatenate(windows),
        NetworkScorer(original, windows[0].shape[1] - 1, keep=True),
        options.bpw * parameter_count(source.spec) / 8 / GIGABYTE,
        progress,
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The variants as Markdown, each beside the first."""
    lines = [
        "| variant | bits/weight | loss | KL | KL ratio | top-1 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['bits_per_weight']:.3f} | {row['quality_loss']:+.2f} % "
            f"± {row['quality_loss_stderr']:.2f} | {row['kl_mean']:.4f} ± {row['kl_stderr']:.4f} "
            f"| {row['kl_mean'] / rows[0]['kl_mean']:.3f} | {100 * row['top1_agreement']:.1f} % |"
        )
    return "\n".join(lines)


def run(bench: Bench, folder: Path, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Every variant, those not yet finished in `folder` measured now."""
    for index, variant in enumerate(variants):
        path = folder / f"{variant.name}.json"
        if not path.exists():
            print(f"{index + 1}/{len(variants)} {variant.name}", flush=True)
            path.write_text(json.dumps(bench.measure(variant), indent=1) + "\n", "utf-8")
    return [json.loads((folder / f"{v.name}.json").read_text("utf-8")) for v in variants]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=4096, help="of each text")
    parser.add_argument("--bpw", type=float, default=3.5, help="every byte counted")
    parser.add_argument("--only", nargs="*", help="names of variants; the first is always there")
    parser.add_argument("--name", default="ablation", help="of the file in benches/results")
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    _native.set_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = [
        v for v in VARIANTS if not options.only or v.name in (VARIANTS[0].name, *options.only)
    ]
    with progress_on_stderr() as progress:
        rows = run(open_bench(options, progress), options.output, wanted)
    print(table(rows))
    facts = {
        "command": "python benches/ablation.py MODEL_DIR -o STUDY --text FILE...",
        "model": Path(options.model).name,
        "texts": [path.name for path in options.text],
        "calibration": options.calibration.name if options.calibration else "self-sampled",
        "calibration_tokens": options.calibration_tokens,
        "bits_per_weight_most": options.bpw,
    }
    write_result(options.name, {**facts, "rows": rows, "machine": machine_facts()})


if __name__ == "__main__":
    main()
