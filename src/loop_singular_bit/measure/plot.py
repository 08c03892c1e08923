"""A line plot as SVG text, for a file beside the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 640, 360, 56
COLOURS = ("#1f6feb", "#8b949e", "#d29922", "#2da44e")
STEPS = 4  # of the vertical axis


def line_plot(title: str, places: Sequence[str], lines: Mapping[str, Sequence[float]]) -> str:
    """Named lines with one value for each place; places are evenly apart, values start at 0."""
    top = max((value for line in lines.values() for value in line), default=0.0) or 1.0

    def x(number: int) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * number / max(len(places) - 1, 1)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title),
    ]
    for step in range(STEPS + 1):
        value = top * step / STEPS
        parts.append(
            f'<path d="M{MARGIN} {y(value):.1f}H{WIDTH - MARGIN}" stroke="#d0d7de" fill="none"/>'
        )
        parts.append(_text(MARGIN - 6, y(value) + 4, f"{value:.3g}", "end"))
    parts += [_text(x(n), HEIGHT - MARGIN + 18, place) for n, place in enumerate(places)]
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in enumerate(line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = MARGIN + number * (WIDTH - 2 * MARGIN) / len(lines)
        parts.append(_text(at, HEIGHT - 14, name, "start", colour))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#1f2328") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
