"""Coefficients of every matrix polynomial that the library runs; read from one committed table.

One chain of odd quintic steps `X <- X (a I + b A + c A^2)`, `A = X'X`, serves every power in
[MIN_POWER, CHAIN_MAX_POWER]: the direction is a weighted sum of its iterates, `O(power) = sum_k
w_k(power) X_k`, and only the weights know the power. Sharper directions are a polynomial made by
squaring the Gram matrix. The numbers lie in `chains_table.json`, which `python -m
schattor.theory.fit` makes. Derived.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from functools import lru_cache
from importlib import resources
from typing import Any

from schattor._constant import constant, constant_cache

__all__ = [
    "MIN_POWER",
    "CHAIN_MAX_POWER",
    "SHARP_COSINE",
    "SQUARINGS_MAX_POWER",
    "UPPER",
    "WARN_BELOW_POWER",
    "band",
    "depths",
    "final_weights",
    "mixture",
    "names",
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
CHAIN_MAX_POWER = 2.3
"""The chain serves power in [MIN_POWER, CHAIN_MAX_POWER], that is p >= 1.44, and beyond p = inf."""
SQUARINGS_MAX_POWER = 33.0
"""Gram squarings serve CHAIN_MAX_POWER < power <= SQUARINGS_MAX_POWER, that is p >= 1.031."""
SHARP_COSINE = 0.999
"""For power > 1: least cosine between a direction and the exact one, over `spectra.spectra()`."""
UPPER = 1.01
"""Largest singular value that every band covers: 1 and the rounding of a half-precision input."""

_FIRST_DEPTH, _LAST_DEPTH = 4, 10

# The caches below are typed, so that depth 5.0 does not find what depth 5 left there.


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


def _number(who: str, power: float, low: float, high: float) -> float:
    value = float(power)
    if not low <= value <= high:
        raise ValueError(f"{who}: power must be in [{low:g}, {high:g}], got {power}")
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
    """Least singular value, relative to the scale, that `band` covers with `depth` steps.

    Below it directions fall off softly and never overshoot. Raises ValueError for a depth outside
    `depths()`. Derived.

    >>> smallest(5)
    0.01
    """
    low: float = _table()["chain"]["depths"][_depth("smallest", depth)]["smallest"]
    return low


@constant_cache(256)
def steps(coefficients: str, depth: int) -> tuple[Step, ...]:
    """The `depth` triples (a, b, c) of the steps `X <- X (a I + b A + c A^2)`, `A = X'X`.

    `coefficients`: "schattor" (the shared chain, depth in `depths()`), "jordan", "polar_express"
    (with its safety factor, its last row repeated) or "newton_schulz" (any depth >= 1; these three
    are for power 0 and `final_weights`). All take singular values up to 1. Raises ValueError for
    another name or depth, TypeError for a depth that is not an int.
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
        rows = [(a / safety, b / safety**3, c / safety**5) for a, b, c in published["rows"][:-1]]
        rows = (rows + [last] * depth)[:depth]
    return tuple((a, b, c) for a, b, c in rows)


@constant
def final_weights(depth: int) -> tuple[float, ...]:
    """Weights (0, ..., 0, 1) that take a chain's last iterate: for published rows, power 0.

    >>> final_weights(2)
    (0.0, 0.0, 1.0)
    """
    _depth("final_weights", depth, low=1, high=None)
    return (0.0,) * depth + (1.0,)


@constant_cache(4096)
def weights(power: float, depth: int) -> tuple[float, ...]:
    """Weights w of the iterates: `sum_k w_k X_k ~ U diag(s^power) V'`, X_0 scaled to s <= 1.

    `power` in [MIN_POWER, CHAIN_MAX_POWER], `depth` in `depths()`; returns depth + 1 numbers,
    continuous in the power; power 1 gives exactly (1, 0, ..., 0). Up to power 1 the relative error
    on [smallest(depth), UPPER] is at most `band(power, depth)`; above it the cosine to the exact
    direction is at least SHARP_COSINE. Raises ValueError outside these ranges. Derived.

    >>> weights(1.0, 4)
    (1.0, 0.0, 0.0, 0.0, 0.0)
    >>> sum(weights(0.0, 5)) > 1.0
    True
    """
    row = _table()["chain"]["depths"][_depth("weights", depth)]
    return mixture(row, _number("weights", power, MIN_POWER, CHAIN_MAX_POWER))


def mixture(row: dict[str, Any], power: float) -> tuple[float, ...]:
    """Evaluates one depth's entry of the table: `weights` for a table that is being made.

    Each branch is pinned by a factor that vanishes where it meets its neighbour: at power 1 all
    weight is on the matrix itself, at power 0 the negative branch starts from the positive one.
    """
    if power > 1.0:
        x = (2.0 * power - 1.0 - CHAIN_MAX_POWER) / (CHAIN_MAX_POWER - 1.0)
        branch, pin = row["sharp_weights"], 1.0 - power
    else:
        x, pin = 2.0 * max(power, 0.0) - 1.0, 1.0 - max(power, 0.0)
        branch = row["weights"]
    result = [pin * _series(c, x) if pin else 0.0 for c in branch]
    result[0] += 1.0
    if power < 0.0:
        x = 1.0 - 2.0 * power / MIN_POWER
        negative = (power * _series(c, x) for c in row["negative_weights"])
        result = [w + change for w, change in zip(result, negative, strict=True)]
    return tuple(result)


def band(power: float, depth: int) -> float:
    """Largest relative error of the chain's scalar function on [smallest(depth), UPPER].

    In exact arithmetic. `power` in [MIN_POWER, 1], `depth` in `depths()`; power 1 gives 0. Raises
    ValueError outside these ranges. Derived.

    >>> band(0.0, 5) < 0.006
    True
    """
    row = _table()["chain"]["depths"][_depth("band", depth)]
    value = _number("band", power, MIN_POWER, 1.0)
    if value == 1.0:
        return 0.0
    edges: list[float] = _table()["chain"]["band_edges"]
    cell = bisect_right(edges, value) - 1
    bound: float = row["band"][cell]
    return bound


@constant_cache(1024)
def squarings(power: float) -> tuple[float, ...]:
    """Coefficients of s^1, s^3, s^5, s^9, s^17 and, if six, s^33, whose sum is near s^power.

    With A = X X' these are X, A X, A^2 X, A^4 X, A^8 X, A^16 X; s is relative to the upper bound
    of the largest singular value that the highest power in use gives: `|A^8|_F^(1/16)` for five,
    `|A^16|_F^(1/32)` for six. `power` in [CHAIN_MAX_POWER, SQUARINGS_MAX_POWER]; the cosine to the
    exact direction is at least SHARP_COSINE. Raises ValueError outside. Derived.

    >>> [abs(round(c, 2)) for c in squarings(9.0)]
    [0.0, 0.0, 0.0, 1.0, 0.0]
    """
    value = _number("squarings", power, CHAIN_MAX_POWER, SQUARINGS_MAX_POWER)
    segments: list[dict[str, Any]] = _table()["squarings"]
    segment = next(row for row in segments if value <= row["range"][1])
    low, high = (math.log(edge) for edge in segment["range"])
    x = (2.0 * math.log(value) - low - high) / (high - low)
    return tuple(_series(c, x) for c in segment["coefficients"])
