"""`lsb info`: what an artefact is, and what was measured when it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loop_singular_bit.cli.options import directory_argument, json_flag
from loop_singular_bit.cli.show import print_json, print_table, size_text

LONG = ("sensitivity", "tensors")  # of a report: a line for each matrix


@click.command("info")
@directory_argument
@click.option("--tensors", is_flag=True, help="Also every tensor.")
@json_flag
def info(directory: Path, tensors: bool, as_json: bool) -> None:
    """Describe the artefact in DIRECTORY: computed from its files, and the report it came with.

    \b
    lsb info smol
    lsb info smol --tensors
    """
    facts, rows = _facts(directory)
    if as_json:
        listed = {"tensors": [dict(zip(_HEADER, row, strict=True)) for row in rows]}
        print_json(facts | (listed if tensors else {}))
        return
    shown = {k: v for k, v in facts.items() if k != "report"}
    shown["size_bytes"] = size_text(facts["size_bytes"])
    print_table(str(directory), ("", ""), [(k, _text(v)) for k, v in shown.items()])
    report = facts["report"]
    if report is not None:
        names = ("perplexity", "perplexity_original", "quality_loss", "kl_mean", "top1_agreement")
        known = [(name, _text(report[name])) for name in names if name in report]
        if known:  # nothing was evaluated of a synthetic one
            print_table("when it was written (report.json)", ("", ""), known)
    if tensors:
        print_table("tensors", _HEADER, rows)


_HEADER = ("name", "kind", "shape", "planes", "outliers", "bits per weight")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(directory: Path) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    from loop_singular_bit.compress.compressor import (
        REPORT_FILE,
        artefact_size_bytes,
        read_report,
    )
    from loop_singular_bit.container.reader import ContainerReader
    from loop_singular_bit.engine.artefact import WEIGHTS_FILE, read_spec
    from loop_singular_bit.measure.size import size_facts
    from loop_singular_bit.models.spec import parameter_count

    spec = read_spec(directory)
    with ContainerReader.open(directory / WEIGHTS_FILE) as reader:
        rows = [_row(record) for record in reader.records]
        synthetic = reader.meta.get("synthetic")
    facts: dict[str, Any] = {} if synthetic is None else {"synthetic": f"random, {synthetic}"}
    report = read_report(directory / REPORT_FILE)
    facts |= {
        "family": spec.family, "layers": spec.layers, "hidden": spec.hidden, "vocab": spec.vocab,
        "context_max": spec.context_max,
        **size_facts(artefact_size_bytes(directory), parameter_count(spec)),
        "report": report and {k: v for k, v in report.items() if k not in LONG},
    }  # fmt: skip
    return facts, rows


def _row(record: Any) -> tuple[str, ...]:
    get = record.attributes.get
    rows, cols = get("rows"), get("cols")
    shape = f"{rows} x {cols}" if rows else str(get("count", cols))
    count = rows * cols if rows else get("count", cols)
    bits = 8 * sum(extent.size_bytes for extent in record.extents) / count
    return (
        record.name, record.kind, shape, str(get("planes", "")), str(get("outliers", "")),
        f"{bits:.3f}",
    )  # fmt: skip
