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
BITS_MOST = 9.0  # 16-bit files are in the table
_STYLES = {"loops": "o-", "baseline": "s", "llama.cpp": "^--"}  # and of other windows, "loops L=10"


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
    drawn = [p for p in points if p.bits_per_weight <= BITS_MOST] or points
    _draw(loss, drawn, [p.quality.quality_loss for p in drawn], LOSS_RANGE)
    loss.set_ylabel("quality loss [%]")
    loss.legend()
    _draw(divergence, drawn, [p.quality.kl_mean for p in drawn], KL_RANGE)
    divergence.set_ylabel("mean KL divergence [nats a token]")
    figure.suptitle(title)
    # The same points make the same file, with its words as words.
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(
    axes: Axes, points: Sequence[Point], values: Sequence[float], limits: tuple[float, float]
) -> None:
    """One curve for each maker; a value beyond the limits lies on them and is written out."""
    low, high = limits
    at = {p.name: (p.bits_per_weight, v) for p, v in zip(points, values, strict=True)}
    for maker in dict.fromkeys(p.maker for p in points):
        own = sorted((p for p in points if p.maker == maker), key=lambda p: p.size_bytes)
        found = [at[point.name] for point in own]
        bits, cut = [x for x, _ in found], [min(max(y, low), high) for _, y in found]
        axes.plot(bits, cut, _STYLES.get(maker, "o-"), label=maker)
        for point, (x, y), shown in zip(own, found, cut, strict=True):
            label = point.name if shown == y else f"{point.name}: {y:.2g}"
            axes.annotate(label, (x, shown), fontsize=7, xytext=(3, 4), textcoords="offset points")
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight, every byte counted")
    axes.grid(alpha=0.3)
    megabytes = points[0].size_bytes / points[0].bits_per_weight / 1e6
    left, right = axes.get_xlim()
    above = axes.twiny()
    above.set_xlim(left * megabytes, right * megabytes)
    above.set_xlabel("size [MB]")
