"""How long a step is: one number a block, on the device, never read by the host.

With ``M = norm Z`` and what :class:`schattor.directions.Directions` knows of ``Z``, the ball
oracle's direction at radius 1 is ``direction dual/inner``, the dual norm of ``M`` is ``norm dual``,
and the regularised oracle at 1 is the product of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from schattor.directions import Directions, over
from schattor.theory import exponents

__all__ = ["GRAFTS", "RMS", "by_frobenius", "couple", "shape_factors", "unit_factors"]

RMS = 0.2
"""Root mean square of AdamW's update relative to its learning rate (Moonlight, 2502.16982)."""


GRAFTS = ("sgd", "adam")
"""Scales that take the Frobenius norm of another method's step."""

_FROBENIUS = ("rms", "pin", *GRAFTS)


def shape_factors(
    scale: str, power: float, fans: Sequence[tuple[int, int]], ratio: float
) -> list[float]:
    """What its shape does to a block's radius; ``fans`` are (out, in) of the layer that uses it.

    ``"unit"``: 1. ``"spectral"``: ``min(m,n)^(1/p) sqrt(max(1, m/n))``, which puts semi-orthogonal
    matrices on the ball's boundary for every p. ``"width"``: ``2/(m+n)``, SPlus's. For a direction
    of unit Frobenius norm, ``"rms"``: ``0.2 sqrt(m n)``; ``"pin"``: ``sqrt(min(m,n)) (ratio
    sqrt(max(m,n)))^power``, from Muon's size at power 0 to ``ratio`` times AdamW's at 1, where it
    stays for p below 2 (From SGD to Muon, arXiv 2605.19781, its code).
    """
    if scale == "unit" or scale in GRAFTS:
        return [1.0 for _ in fans]
    if scale == "width":
        return [2 / (m + n) for m, n in fans]
    if scale == "rms":
        return [RMS * math.sqrt(m * n) for m, n in fans]
    if scale == "pin":
        held = min(power, 1.0)
        return [math.sqrt(min(f)) * (ratio * math.sqrt(max(f))) ** held for f in fans]
    exponent = exponents.inverse_p(power)
    return [min(m, n) ** exponent * math.sqrt(max(1.0, m / n)) for m, n in fans]


def by_frobenius(scale: str) -> bool:
    """Whether a scale measures directions by the Frobenius norm, not by that of p."""
    return scale in _FROBENIUS


def unit_factors(scale: str, found: Directions) -> Tensor:
    """Factors ``[batch]`` that bring raw directions to unit size.

    The size is the norm of p, or the Frobenius norm for the scales that measure it.
    """
    if by_frobenius(scale):
        return over(torch.ones_like(found.square), found.square.sqrt())
    return over(found.dual, found.inner)


def couple(norms: Tensor, weights: Tensor, outer: float) -> tuple[Tensor, Tensor]:
    """Factors ``c_i = w_i (g_i/g)^(B-1)`` and the norm ``g = |(g_i)|_B``, ``g_i = w_i norms_i``.

    ``norms`` are the dual norms of all blocks, ``outer`` = A, ``B = A/(A-1)``. A = inf gives
    ``c = w``; A = 1 moves the first block of the largest ``g_i`` alone. All zero: zeros.
    Source: Schattor (arXiv 2606.15702), several blocks; closed forms derived.
    """
    scaled = weights * norms
    peak = scaled.max()
    if outer == 1:
        first = torch.zeros_like(scaled).index_fill_(0, scaled.argmax(), 1.0)
        return weights * first * (peak > 0), peak
    conjugate = exponents.dual(outer)
    relative = over(scaled, peak)  # in [0, 1]: no power of it overflows
    total = relative.pow(conjugate).sum().pow(1 / conjugate)
    balance = over(relative, total).pow(conjugate - 1)
    return weights * balance * (peak > 0), peak * total
