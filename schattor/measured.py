"""What was timed on which GPU: ``measurements.json``, the committed table that planning reads.

``devices`` holds an entry for each GPU on which ``chain_direction`` was timed::

    {"level": "sm_90", "name": "...", "commit": "...", "chain": [
        {"dtype": "float16", "rows": 768, "cols": 3072, "gram": true,
         "milliseconds": {"kernels": 0.31, "torch": 0.52}}]}

``kernels`` are those of ``csrc/kernels``, ``torch`` the same formula over its products (cuBLAS).
What was not timed is absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

__all__ = ["Engine", "chain_engine", "devices", "table"]

Engine = Literal["kernels", "torch"]
"""What runs a chain's products on a GPU with kernels of ours."""


@cache
def table() -> Mapping[str, Any]:
    """The committed table."""
    path = Path(__file__).with_name("measurements.json")
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def devices(level: str) -> list[str]:
    """Names of the GPUs of this level on which anything was timed."""
    return [device["name"] for device in table()["devices"] if device["level"] == level]


def chain_engine(level: str, dtype: str, rows: int, cols: int, gram: bool) -> tuple[Engine, str]:
    """The engine that was the fastest on such a GPU at the nearest size, and why, in words.

    Nearest in the logarithms of rows and cols; with nothing timed there, our kernels.

    >>> chain_engine("sm_0", "float16", 768, 768, False)
    ('kernels', 'our kernels, never timed on sm_0')
    """
    timed = [
        entry
        for device in table()["devices"]
        if device["level"] == level
        for entry in device["chain"]
        if entry["dtype"] == dtype and entry["gram"] == gram and entry["milliseconds"]
    ]
    if not timed:
        return "kernels", f"our kernels, never timed on {level or 'such a device'}"

    def distance(entry: Mapping[str, Any]) -> float:
        return math.dist(
            (math.log(max(1, rows)), math.log(max(1, cols))),
            (math.log(entry["rows"]), math.log(entry["cols"])),
        )

    nearest = min(timed, key=distance)
    milliseconds = nearest["milliseconds"]
    engine: Engine = min(get_args(Engine), key=lambda name: milliseconds.get(name, math.inf))
    names = {"kernels": "our kernels", "torch": "torch's products"}
    return engine, (
        f"{names[engine]}, the fastest timed on {level} at {nearest['rows']} x {nearest['cols']}"
    )
