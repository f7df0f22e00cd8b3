"""Which p suits a layer: criteria of a direction ``O = U diag(s^power) V'`` from spectra alone.

The surrogate is the loss of the layer on features that stay as they are: a step ``-t D`` changes it
by ``-t <G, D> + t^2 <D Axx, D> / 2``, with the gradient G and the second moment ``Axx`` of the
layer's inputs. The best t lets it fall by ``<G, D>^2 / (2 <D Axx, D>)``, which no rescaling of D
changes. All three functions are this number or a lower bound of it.
Source: From SGD to Muon (arXiv 2605.19781) and its code; `s` are singular values of the momentum
``M = U diag(s) V'`` that is applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["hoelder", "momentum_aligned", "tightness"]


def tightness(power: float, s: Sequence[float], c: Sequence[float], b: Sequence[float]) -> float:
    """The fall itself, ``N^2 / (2 D)``: ``N = sum c_i s_i^power``, ``D = sum b_i s_i^(2 power)``.

    ``c_i = u_i' G v_i``, ``b_i = v_i' Axx v_i``. 0 where N is not positive: the direction of such a
    momentum does not descend.

    >>> tightness(1.0, [2.0, 1.0], [2.0, 1.0], [1.0, 1.0])  # the gradient itself, Axx = I
    2.5
    """
    raised = [x**power if x > 0 else 0.0 for x in s]
    falls = sum(ci * r for ci, r in zip(c, raised, strict=True))
    curves = sum(bi * r * r for bi, r in zip(b, raised, strict=True))
    return max(0.0, falls) ** 2 / (2 * curves) if curves > 0 else 0.0


def momentum_aligned(
    power: float, s: Sequence[float], c: Sequence[float], a: Sequence[float]
) -> float:
    """``N^2 / (2 |A|_k^2 |O|_p^2)``, with ``a`` the eigenvalues of ``Axx`` and N as in `tightness`.

    By Hoelder's ``|O A|_F <= |O|_p |A|_k``, ``1/2 = 1/p + 1/k``. Power in [0, 1].

    >>> momentum_aligned(0.0, [2.0, 1.0], [2.0, 1.0], [1.0, 1.0])
    2.25
    """
    raised = [x**power if x > 0 else 0.0 for x in s]
    falls = sum(ci * r for ci, r in zip(c, raised, strict=True))
    total = sum(x * r for x, r in zip(s, raised, strict=True))  # |M|_q^q = |O|_p^p
    # |O|_p^2 = (sum s^q)^(2/p); at p = inf the largest entry of s^0.
    size = total ** (2 * power / (1 + power)) if total > 0 else 0.0
    bound = size * _activations(power, a)
    return max(0.0, falls) ** 2 / (2 * bound) if bound > 0 else 0.0


def hoelder(power: float, s: Sequence[float], a: Sequence[float]) -> float:
    """``|M|_q^2 / (2 |A|_k^2)``: `momentum_aligned` where the momentum is the gradient.

    >>> hoelder(1.0, [2.0, 1.0], [1.0, 1.0]), hoelder(0.0, [2.0, 1.0], [1.0, 1.0])
    (2.5, 2.25)
    """
    return momentum_aligned(power, s, s, a)


def _activations(power: float, a: Sequence[float]) -> float:
    """``|A|_k^2`` by eigenvalues of ``A A'``; ``k = 2p/(p-2) = 2 (1 + power)/(1 - power)``."""
    largest = max(a, default=0.0)
    if power >= 1 or largest <= 0:
        return largest
    half = (1 + power) / (1 - power)
    total = sum((x / largest) ** half for x in a if x > 0)
    return float(largest * math.exp(math.log(total) / half))
