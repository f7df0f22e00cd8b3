"""The routing of a model as a table that a person can check."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from schattor.blocks import describe_blocks

if TYPE_CHECKING:
    from schattor.routing import Entry

_HEADINGS = ("", "parameter", "shape", "rule", "blocks", "reason")


def render(entries: Sequence[Entry]) -> str:
    """A line for each kind of parameter, repeated layers folded into one, and totals by rule."""
    lines = _aligned([_HEADINGS, *_folded(entries)])
    return "\n".join([*lines, "", *_totals(entries)])


def _folded(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """Rows of the table; names that differ in numbers only share one, with a count."""
    fold = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
    rows: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        blocks = describe_blocks(entry.param.shape, entry.blocks) if entry.rule == "matrix" else ""
        options = "".join(f", {key}={value}" for key, value in entry.options.items())
        row = (
            fold.sub("*", entry.name),
            "x".join(map(str, entry.param.shape)) or "scalar",
            entry.rule + options,
            blocks,
            fold.sub("*", entry.reason),
        )
        rows.setdefault(row, []).append(entry)
    return [
        (f"{len(found)} x", *row) if found[1:] else ("", found[0].name, *row[1:4], found[0].reason)
        for row, found in rows.items()
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _totals(entries: Sequence[Entry]) -> list[str]:
    """Tensors, entries and share of each rule."""
    sums: dict[str, list[int]] = {}
    for entry in entries:
        total = sums.setdefault(entry.rule, [0, 0])
        total[0] += 1
        total[1] += entry.param.numel()
    whole = max(1, sum(numel for _, numel in sums.values()))
    return [
        f"{rule:<8}{tensors:>6} tensors {numel:>16,} parameters {100 * numel / whole:6.2f} %"
        for rule, (tensors, numel) in sums.items()
    ]
