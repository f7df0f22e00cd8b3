"""Schatten index p, its dual q and the power of the singular values: q = p/(p-1), power = q-1."""

from __future__ import annotations

import math

__all__ = ["dual", "inverse_p", "p_of", "power_of"]


def _index(who: str, p: float) -> float:
    value = float(p)
    if not value >= 1.0:
        raise ValueError(f"{who}: p must be in [1, inf], got {p}")
    return value


def dual(p: float) -> float:
    """The dual index q = p/(p-1) of p in [1, inf]; dual(1) = inf, dual(inf) = 1.

    Raises ValueError for p < 1 or nan. Source: Schattor (arXiv 2606.15702), the oracles.

    >>> dual(3.0), dual(1.0), dual(float("inf"))
    (1.5, inf, 1.0)
    """
    value = _index("dual", p)
    if math.isinf(value):
        return 1.0
    return math.inf if value == 1.0 else value / (value - 1.0)


def power_of(p: float) -> float:
    """The power 1/(p-1) of the singular values of the direction, for p in [1, inf].

    p = 1 gives inf (rank one), p = 2 gives 1 (SGD), p = inf gives 0.0 (Muon). Raises ValueError
    for p < 1 or nan. Source: Schattor (arXiv 2606.15702), the oracles.

    >>> power_of(3.0), power_of(2.0), power_of(float("inf"))
    (0.5, 1.0, 0.0)
    """
    value = _index("power_of", p)
    return math.inf if value == 1.0 else 1.0 / (value - 1.0)


def p_of(power: float) -> float:
    """The index p = 1 + 1/power of a power in [0, inf]: the inverse of `power_of`.

    Raises ValueError for a negative power (beyond p = inf no norm has that direction) or nan.

    >>> p_of(0.5), p_of(0.0), p_of(float("inf"))
    (3.0, inf, 1.0)
    """
    value = float(power)
    if not value >= 0.0:
        raise ValueError(f"p_of: power must be in [0, inf], got {power}")
    return math.inf if value == 0.0 else 1.0 + 1.0 / value


def inverse_p(power: float) -> float:
    """1/p = power/(1+power) for a power in (-1, inf]: the exponent of the size in radii.

    Continues smoothly to negative powers, where no p exists. Raises ValueError for power <= -1 or
    nan.

    >>> inverse_p(0.5) == 1 / 3, inverse_p(0.0), inverse_p(float("inf"))
    (True, 0.0, 1.0)
    """
    value = float(power)
    if not value > -1.0:
        raise ValueError(f"inverse_p: power must be in (-1, inf], got {power}")
    return 1.0 if math.isinf(value) else value / (1.0 + value)
