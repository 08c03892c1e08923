"""The model card: what an artefact is and what was measured on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_RUN = "not run"  # in place of the reason a run was refused
NOT_MEASURED = "not measured"

_CARD = """\
---
library_name: loop-singular-bit
base_model: {model}
---
# {name}

{bits_per_weight:.3f} bits per weight, {compression_ratio:.2f}x smaller than 16 bits
({size_bytes:,} bytes, all that inference needs). {written}

| measured on this artefact | |
|---|---|
| perplexity | {perplexity:.3f} ± {perplexity_stderr:.3f} (original {perplexity_original:.3f}) |
| quality loss | {quality_loss:+.2f} % ± {quality_loss_stderr:.2f} |
| KL divergence, mean / median / 99.9 % | {kl_mean:.4f} / {kl_median:.4f} / {kl_p999:.4f} |
| same most likely token | {top1} % |
| evaluation | {eval_tokens} tokens |
| peak memory of a run | {ram} |

    lsb chat {name}

Every figure, tensor by tensor, is in `report.json`.
"""


_CUT = """\
---
library_name: loop-singular-bit{front}
---
# {name}

{bits_per_weight:.3f} bits per weight, {compression_ratio:.2f}x smaller than 16 bits
({size_bytes:,} bytes, all that inference needs). {written}
{synthetic}
**Quality was not measured**: `lsb eval {name} --against MODEL` does. Peak memory of a run: {ram}.

    lsb chat {name}

Planes of every matrix are in `report.json`.
"""


def model_card(result: Mapping[str, Any]) -> str:
    """README.md of an artefact directory."""
    peak = result["ram_peak_bytes"]
    shown = {
        "name": str(result["artefact"]).rstrip("/").rsplit("/", 1)[-1],
        "ram": _without_peak(result) if peak is None else f"{peak / 1e6:.0f} MB",
        "written": _written(result),
    }
    if "quality_loss" not in result:
        return _CUT.format(**{**result, **shown, **_origin(result)})
    top1 = f"{100 * result['top1_agreement']:.1f}"
    return _CARD.format(**result, **shown, top1=top1)


def _written(result: Mapping[str, Any]) -> str:
    if "cut_from" not in result:
        return "Written by `lsb compress`."
    return (
        f"Cut by `lsb compress --from` from an\nartefact of {result['cut_from_bytes']:,} bytes: "
        "last planes were left out, nothing was encoded again."
    )


def _origin(result: Mapping[str, Any]) -> dict[str, str]:
    """Where an artefact comes from whose original is not at hand."""
    if "synthetic" in result:
        random = f"\n**Synthetic: random weights in the shape of {result['synthetic']}.**\n"
        return {"front": "\ntags: [synthetic]", "synthetic": random}
    model = result["model"]
    return {"front": "" if model is None else f"\nbase_model: {model}", "synthetic": ""}


def _without_peak(result: Mapping[str, Any]) -> str:
    return "not run" if result["run"]["refused"] == NOT_RUN else "refused: see report.json"


_SYNTHETIC = """\
---
library_name: loop-singular-bit
tags: [synthetic]
---
# {name}

**Synthetic: random weights in the shape of {synthetic}.** It measures memory, disk and speed; what
it writes is noise, and it says nothing about quality. {bits_per_weight:.3f} bits per weight
({size_bytes:,} bytes, all that inference needs). Written by `lsb bench make-shape`, seed {seed}.

    lsb bench memory {name} --ram-mb 400
"""


def synthetic_card(report: Mapping[str, Any]) -> str:
    """README.md of an artefact with random weights."""
    name = str(report["artefact"]).rstrip("/").rsplit("/", 1)[-1]
    return _SYNTHETIC.format(**report, name=name)
