"""Coefficients of every matrix polynomial that the library runs; read from one committed table.

One chain of odd quintic steps `X <- X (a I + b A + c A^2)`, `A = X'X`, serves every power in
[MIN_POWER, 1]: the direction is a weighted sum of its iterates, `O(power) = sum_k w_k(power) X_k`.
Sharper directions (1 < power) are one polynomial in the singular values. The numbers are made by
`python -m schattor.theory.fit` and lie in `chains_table.json`. Derived.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from importlib import resources
from typing import Any

__all__ = [
    "MIN_POWER",
    "CHAIN_MAX_POWER",
    "SQUARINGS_MAX_POWER",
    "UPPER",
    "WARN_BELOW_POWER",
    "band",
    "depths",
    "final_weights",
    "names",
    "quintic",
    "smallest",
    "squarings",
    "steps",
    "weights",
]

Step = tuple[float, float, float]

MIN_POWER = -0.3
"""Least power that the shared chain approximates."""
WARN_BELOW_POWER = -0.2
"""Powers below this one are accepted, but their band is wide."""
CHAIN_MAX_POWER = 2.15
"""`quintic` serves 1 < power <= QUINTIC_MAX_POWER."""
SQUARINGS_MAX_POWER = 33.0
"""`squarings` serves QUINTIC_MAX_POWER < power <= SQUARINGS_MAX_POWER."""
UPPER = 1.01
"""Largest singular value that every band covers: 1 and the rounding of a half-precision input."""

_FIRST_DEPTH, _LAST_DEPTH = 4, 10


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    text = resources.files("schattor.theory").joinpath("chains_table.json").read_text("utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _series(coefficients: list[float], x: float) -> float:
    """Chebyshev series at x in [-1, 1] (Clenshaw)."""
    before, last = 0.0, 0.0
    for c in reversed(coefficients[1:]):
        before, last = last, 2.0 * x * last - before + c
    return x * last - before + coefficients[0]


def _number(who: str, power: float, low: float, high: float, interval: str) -> float:
    value = float(power)
    inside = low < value <= high if interval[0] == "(" else low <= value <= high
    if not inside:
        raise ValueError(f"{who}: power must be in {interval}, got {power}")
    return value


def _depth(who: str, depth: int, low: int = _FIRST_DEPTH, high: int | None = _LAST_DEPTH) -> str:
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise TypeError(f"{who}: depth must be an int, got {type(depth).__name__}")
    if depth < low or (high is not None and depth > high):
        bound = f"in [{low}, {high}]" if high is not None else f"at least {low}"
        raise ValueError(f"{who}: depth must be {bound}, got {depth}")
    return str(depth)


def depths() -> range:
    """Numbers of steps for which the shared chain has weights.

    >>> list(depths())
    [4, 5, 6, 7, 8, 9, 10]
    """
    return range(_FIRST_DEPTH, _LAST_DEPTH + 1)


def names() -> tuple[str, ...]:
    """Names of the coefficient rows that `steps` knows; the first is the default.

    >>> names()
    ('schattor', 'jordan', 'polar_express', 'newton_schulz')
    """
    return ("schattor", *_table()["published"])


def smallest(depth: int) -> float:
    """Least singular value, relative to the scale, that a chain of `depth` steps treats exactly.

    >>> smallest(5)
    0.01
    """
    low: float = _table()["chain"]["depths"][_depth("smallest", depth)]["smallest"]
    return low


@lru_cache(maxsize=256)
def steps(coefficients: str, depth: int) -> tuple[Step, ...]:
    """The `depth` triples (a, b, c) of the steps `X <- X (a I + b A + c A^2)`, `A = X'X`.

    `coefficients`: "schattor" (the shared chain, depth in `depths()`), "jordan", "polar_express"
    (its last row repeated) or "newton_schulz" (any depth >= 1; these three are for power 0).
    Raises ValueError for another name or depth, TypeError for a depth that is not an int.
    Source: Jordan et al. 2024 (Muon); Amsel et al. arXiv 2505.16932; "schattor" derived.

    >>> steps("jordan", 2)
    ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315))
    """
    if coefficients not in names():
        raise ValueError(
            f"steps: coefficients must be one of {', '.join(names())}, got {coefficients!r}"
        )
    if coefficients == "schattor":
        _depth("steps", depth)
        chain = _table()["chain"]
        rows = [chain["step"]] * (depth - len(chain["finish"])) + chain["finish"]
    else:
        _depth("steps", depth, low=1, high=None)
        published = _table()["published"][coefficients]
        safety = published["safety"]
        last = published["rows"][-1]
        rows = [[v / safety**e for v, e in zip(r, (1, 3, 5))] for r in published["rows"][:-1]]
        rows = (rows + [last] * depth)[:depth]
    return tuple((a, b, c) for a, b, c in rows)


def final_weights(depth: int) -> tuple[float, ...]:
    """Weights (0, ..., 0, 1) that take a chain's last iterate: for published rows, power 0.

    >>> final_weights(2)
    (0.0, 0.0, 1.0)
    """
    _depth("final_weights", depth, low=1, high=None)
    return (0.0,) * depth + (1.0,)


@lru_cache(maxsize=4096)
def weights(power: float, depth: int) -> tuple[float, ...]:
    """Weights w of the iterates: `sum_k w_k X_k ~ U diag(s^power) V'`, with X_0 scaled to s <= 1.

    `power` in [MIN_POWER, 1], `depth` in `depths()`; depth + 1 numbers. Power 1 gives exactly
    (1, 0, ..., 0). Continuous in the power. The relative error on [smallest(depth), UPPER] is at
    most `band(power, depth)`. Raises ValueError outside these ranges. Derived.

    >>> weights(1.0, 4)
    (1.0, 0.0, 0.0, 0.0, 0.0)
    >>> [round(w, 2) for w in weights(0.5, 5)]
    [0.71, 0.19, 0.11, 0.06, 0.03, 0.03]
    """
    row = _table()["chain"]["depths"][_depth("weights", depth)]
    value = _number("weights", power, MIN_POWER, 1.0, f"[{MIN_POWER}, 1]")
    # Each series multiplies a factor that vanishes where the weights are pinned: at power 1 to the
    # matrix itself, and at power 0 the negative branch to the positive one.
    positive = max(value, 0.0)
    result = [(1.0 - positive) * _series(c, 2.0 * positive - 1.0) for c in row["weights"]]
    result[0] += 1.0
    if value < 0.0:
        x = 2.0 * value / -MIN_POWER + 1.0
        result = [w + value * _series(c, x) for w, c in zip(result, row["negative_weights"])]
    return tuple(result)


def band(power: float, depth: int) -> float:
    """Largest relative error that the chain's scalar function has on [smallest(depth), UPPER].

    A bound for exact arithmetic; `power` in [MIN_POWER, 1], `depth` in `depths()`. Raises
    ValueError outside these ranges. Derived.

    >>> band(0.0, 5) < 0.006
    True
    """
    row = _table()["chain"]["depths"][_depth("band", depth)]
    value = _number("band", power, MIN_POWER, 1.0, f"[{MIN_POWER}, 1]")
    if value == 1.0:
        return 0.0
    edges: list[float] = _table()["chain"]["band_edges"]
    cell = max(i for i, edge in enumerate(edges[:-1]) if edge <= value)
    bound: float = row["band"][cell]
    return bound


@lru_cache(maxsize=1024)
def quintic(power: float) -> Step:
    """The step (a, b, c) with `a s + b s^3 + c s^5 ~ s^power`, s relative to the Schatten-4 norm.

    `power` in (1, QUINTIC_MAX_POWER]. Raises ValueError outside. Derived.

    >>> [abs(round(c, 6)) for c in quintic(3.0)]
    [0.0, 1.0, 0.0]
    """
    high = QUINTIC_MAX_POWER
    value = _number("quintic", power, 1.0, high, f"(1, {high:g}]")
    a, b, c = _sharpening("quintic", value)
    return a, b, c


@lru_cache(maxsize=1024)
def squarings(power: float) -> tuple[float, ...]:
    """Coefficients of s^1, s^3, s^5, s^9, s^17, ... whose sum is near s^power for s in [0, 1].

    s is relative to an upper bound of the largest singular value, taken from the highest power of
    the Gram matrix that is used. `power` in (QUINTIC_MAX_POWER, SQUARINGS_MAX_POWER]. Raises
    ValueError outside. Derived.

    >>> [abs(round(c, 6)) for c in squarings(9.0)]
    [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    """
    low, high = QUINTIC_MAX_POWER, SQUARINGS_MAX_POWER
    value = _number("squarings", power, low, high, f"({low:g}, {high:g}]")
    return _sharpening("squarings", value)


def _sharpening(route: str, power: float) -> tuple[float, ...]:
    rule = _table()[route]
    low, high = (math.log(edge) for edge in rule["range"])
    x = (2.0 * math.log(power) - low - high) / (high - low)
    return tuple(_series(c, x) for c in rule["coefficients"])
