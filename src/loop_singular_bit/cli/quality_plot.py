"""Loss and divergence against size, as a picture. Needs the extra `bench`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from loop_singular_bit.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from loop_singular_bit.compress.points import Point

LOSS_RANGE = 0.05, 200.0  # percent: what is worse is a broken model, and what is better is noise
KL_RANGE = 5e-4, 20.0  # nats
_STYLES = {"loops": "o-", "baseline": "s", "llama.cpp": "^--"}


def require_plotting() -> None:
    """Raises UsageError where matplotlib is missing, before any long work."""
    if find_spec("matplotlib") is None:
        raise UsageError('the plot needs matplotlib: pip install "loop-singular-bit[bench]"')


def write_plot(points: Sequence[Point], title: str, path: Path) -> None:
    """Two panels over bits per weight, size on the upper axis, as an SVG file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    loss, divergence = figure.subplots(1, 2)
    _draw(loss, points, [p.quality.quality_loss for p in points], LOSS_RANGE)
    loss.set_ylabel("quality loss [%]")
    loss.legend()
    _draw(divergence, points, [p.quality.kl_mean for p in points], KL_RANGE)
    divergence.set_ylabel("mean KL divergence [nats a token]")
    figure.suptitle(title)
    with rc_context({"svg.hashsalt": title}):  # the same points, the same file
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(
    axes: Axes, points: Sequence[Point], values: Sequence[float], limits: tuple[float, float]
) -> None:
    """One curve for each maker, values cut to the limits."""
    low, high = limits
    cut = {p.name: min(max(v, low), high) for p, v in zip(points, values, strict=True)}
    for maker, style in _STYLES.items():
        own = sorted((p for p in points if p.maker == maker), key=lambda p: p.size_bytes)
        if not own:
            continue
        axes.plot([p.bits_per_weight for p in own], [cut[p.name] for p in own], style, label=maker)
        for point in own:
            axes.annotate(
                point.name, (point.bits_per_weight, cut[point.name]), fontsize=7,
                xytext=(3, 4), textcoords="offset points",
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight, every byte counted")
    axes.grid(alpha=0.3)
    megabytes = points[0].size_bytes / points[0].bits_per_weight / 1e6
    left, right = axes.get_xlim()
    above = axes.twiny()
    above.set_xlim(left * megabytes, right * megabytes)
    above.set_xlabel("size [MB]")
