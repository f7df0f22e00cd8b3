"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Command:
    """What was asked for."""

    device: torch.device
    rounds: int
    sets: list[str]
    out: Path


def _rounds(text: str) -> int:
    rounds = int(text)
    if rounds < 2:
        raise argparse.ArgumentTypeError(f"{rounds} rounds have no quartiles; at least 2")
    return rounds


def read_command(
    doc: str, results: str, rounds: int, sets: Mapping[str, Iterable[str]] | None = None
) -> Command:
    """Read the command line of a benchmark that is described by ``doc``'s first line.

    ``results`` and the device name its file of results; ``sets`` are the names it can measure, by
    type of device: all are, where none is chosen. Exits with a message where one is unknown.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=_rounds, default=rounds)
    parser.add_argument("--out", type=Path)
    if sets:
        parser.add_argument("--sets", nargs="+", metavar="NAME")
    options = parser.parse_args()
    device = torch.device(options.device)
    names = list(sets[device.type]) if sets else []
    chosen = (options.sets if sets else None) or names
    if unknown := [name for name in chosen if name not in names]:
        parser.error(f"no set {unknown[0]!r}; there are {', '.join(map(repr, names))}")
    out = options.out or Path(__file__).parent / f"results/{results}_{device.type}.json"
    return Command(device, options.rounds, chosen, out)
