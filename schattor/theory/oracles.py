"""Closed forms of the oracles on singular values, and of the coupling of several blocks.

Plain floats: the reference that every tensor function is held to. Symbols: p of the step's norm,
q = p/(p-1), `G = U diag(s) V'`; the oracles return the singular values of minus the step D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from schattor.theory.exponents import dual

__all__ = ["ball", "couple", "coupled_norm", "parameter_free", "regularized", "schatten_norm"]


def _values(who: str, name: str, values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    for number in numbers:
        if not 0.0 <= number < math.inf:
            raise ValueError(f"{who}: {name} must be finite and not negative, got {number}")
    return numbers


def _positive(who: str, name: str, value: float) -> float:
    number = float(value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{who}: {name} must be positive and finite, got {value}")
    return number


def _dual(who: str, p: float) -> float:
    if not float(p) >= 1.0:
        raise ValueError(f"{who}: p must be in [1, inf], got {p}")
    return dual(p)


def _norm(values: Sequence[float], p: float) -> float:
    """The l_p norm, scaled by the largest value so that no power over- or underflows."""
    largest = max(values, default=0.0)
    if largest == 0.0 or math.isinf(p):
        return largest
    total: float = math.fsum((v / largest) ** p for v in values) ** (1.0 / p)
    return largest * total


def schatten_norm(s: Sequence[float], p: float) -> float:
    """`|G|_p = (sum s_i^p)^(1/p)`; p = inf: the largest.

    `s`: singular values, any order; `p` in [1, inf]. Raises ValueError for p < 1, and for a value
    that is negative or not finite.

    >>> schatten_norm([3.0, 4.0], 2.0), schatten_norm([3.0, 4.0], float("inf"))
    (5.0, 4.0)
    """
    _dual("schatten_norm", p)
    return _norm(_values("schatten_norm", "s", s), float(p))


def ball(s: Sequence[float], p: float, radius: float = 1.0) -> list[float]:
    """Singular values of -D, `D = argmin <G, D> over |D|_p <= radius`: `r s^(q-1) / |s|_q^(q-1)`.

    `s`: of G, any order; `p` in [1, inf] (p = 1: all on the first of the largest); `radius` >= 0.
    `<G, D> = -radius |G|_q`. Zeros stay zero, G = 0 gives zeros. Raises ValueError for other p,
    radius or s. Source: Schattor (arXiv 2606.15702), ball oracle; proof by L. Cesista 2025,
    "Steepest Descent Under Schatten-p Norms".

    >>> ball([3.0, 4.0], 2.0, 10.0)
    [6.0, 8.0]
    >>> ball([3.0, 4.0], float("inf")), ball([3.0, 4.0], 1.0)
    ([1.0, 1.0], [0.0, 1.0])
    """
    q, values = _dual("ball", p), _values("ball", "s", s)
    size = float(radius)
    if not 0.0 <= size < math.inf:
        raise ValueError(f"ball: radius must be finite and not negative, got {radius}")
    norm = _norm(values, q)
    if norm == 0.0:
        return [0.0] * len(values)
    return [size * share for share in _shares(values, norm, q)]


def _shares(values: Sequence[float], norm: float, q: float) -> list[float]:
    """`(v / norm)^(q-1)`, zeros kept; at q = inf all on the first of the largest."""
    if math.isinf(q):
        first = max(range(len(values)), key=values.__getitem__)
        return [1.0 if i == first else 0.0 for i in range(len(values))]
    return [(v / norm) ** (q - 1.0) if v > 0.0 else 0.0 for v in values]


def regularized(s: Sequence[float], p: float, eta: float = 1.0) -> list[float]:
    """Singular values of -D, `D = argmin <G, D> + |D|_p^2 / (2 eta)`: `eta |s|_q^(2-q) s^(q-1)`.

    `s`: of G, any order; `p` in [1, inf]; `eta` > 0. `|D|_p = eta |G|_q`; p = 2 gives `eta s`.
    Raises ValueError for other p, eta or s. Source: Schattor (arXiv 2606.15702), regularization
    oracle; Bernstein and Newhouse, arXiv 2409.20325.

    >>> regularized([3.0, 4.0], 2.0, 0.5)
    [1.5, 2.0]
    >>> regularized([3.0, 4.0], float("inf"))
    [7.0, 7.0]
    """
    q, values = _dual("regularized", p), _values("regularized", "s", s)
    rate = _positive("regularized", "eta", eta)
    if q == 2.0:
        return [rate * v for v in values]
    return ball(values, p, rate * _norm(values, q))


def _weighted(
    who: str, norms: Sequence[float], weights: Sequence[float], outer: float
) -> tuple[list[float], list[float], float]:
    """Weights, weighted dual norms `g_i = w_i norms_i`, and the outer dual exponent B."""
    if not float(outer) >= 1.0:
        raise ValueError(f"{who}: outer must be in [1, inf], got {outer}")
    values = _values(who, "norms", norms)
    factors = [_positive(who, "weights", w) for w in weights]
    if len(values) != len(factors):
        raise ValueError(
            f"{who}: weights must have one value for each of the {len(values)} norms, "
            f"got {len(factors)}"
        )
    return factors, [w * v for w, v in zip(factors, values, strict=True)], dual(outer)


def couple(norms: Sequence[float], weights: Sequence[float], outer: float) -> list[float]:
    """Factors `c_i = w_i (g_i/g)^(B-1)` of the blocks' unit ball directions, `g_i = w_i norms_i`.

    For the norm `|(|X_i|_(p_i) / w_i)|_A` over blocks, A = `outer` in [1, inf], B = A/(A-1).
    `norms`: dual norms `|G_i|_(q_i)`; `weights` > 0. outer = inf gives w_i (every block moves its
    full radius); outer = 1 only the first block of the largest g_i moves; all norms zero give
    zeros, and so does a block of norm zero unless outer is inf. Raises ValueError for other outer,
    norms or weights, or unequal lengths. Derived from the multi-block oracle of Schattor (arXiv
    2606.15702).

    >>> couple([3.0, 4.0], [1.0, 1.0], 2.0)
    [0.6, 0.8]
    >>> couple([3.0, 4.0], [2.0, 1.0], 1.0)
    [2.0, 0.0]
    """
    factors, g, b = _weighted("couple", norms, weights, outer)
    largest = _norm(g, b)
    if largest == 0.0:
        return [0.0] * len(g)
    if b == 1.0:
        return factors
    return [w * share for w, share in zip(factors, _shares(g, largest, b), strict=True)]


def coupled_norm(norms: Sequence[float], weights: Sequence[float], outer: float) -> float:
    """The dual norm of all blocks, `g = |(w_i norms_i)|_B`, `B = outer/(outer-1)`.

    Arguments and errors as `couple`. A unit step of the coupled ball falls by g; the regularised
    step is eta g times it.

    >>> coupled_norm([3.0, 4.0], [1.0, 1.0], 2.0), coupled_norm([3.0, 4.0], [1.0, 1.0], 1.0)
    (5.0, 4.0)
    """
    _, g, b = _weighted("coupled_norm", norms, weights, outer)
    return _norm(g, b)


def parameter_free(step: int, oracle: str = "ball", tail: float = 2.0) -> tuple[float, float]:
    """`(gamma, eta)`: the share of the new gradient in the momentum, and the step size.

    Without constants of the problem, for the 0-based `step` k. ball: `gamma = (k+1)^(-a/(3a-2))`,
    `eta = (k+1)^(-(2a-1)/(3a-2))`, where a = `tail` in (1, 2] is the moment of the noise that is
    bounded (a <= q; 2: bounded variance, powers -1/2 and -3/4; the dual norm of the gradient falls
    as `k^(-1/4)`). regularized: `gamma = eta = (k+1)^(-1/2)`, for tail 2 alone, since its descent
    squares the noise. Raises ValueError for another oracle, step < 0 or such a tail; TypeError for
    a step that is not an int. Derived for Schattor (arXiv 2606.15702).

    >>> parameter_free(15)
    (0.25, 0.125)
    >>> parameter_free(15, "regularized")
    (0.25, 0.25)
    """
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"parameter_free: step must be an int, got {type(step).__name__}")
    if step < 0:
        raise ValueError(f"parameter_free: step must be at least 0, got {step}")
    if oracle not in ("ball", "regularized"):
        raise ValueError(f"parameter_free: oracle must be ball or regularized, got {oracle!r}")
    if not 1.0 < float(tail) <= 2.0:
        raise ValueError(f"parameter_free: tail must be in (1, 2], got {tail}")
    count, scale = step + 1.0, 3.0 * tail - 2.0
    gamma = count ** (-tail / scale)
    if oracle == "ball":
        return gamma, count ** (-(2.0 * tail - 1.0) / scale)
    if tail != 2.0:
        raise ValueError(f"parameter_free: tail must be 2 for oracle regularized, got {tail}")
    return gamma, gamma
