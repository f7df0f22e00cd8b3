"""Preconditioners of a norm by name: which coordinates, which weights, when they are learned.

A preconditioned norm is ``|| (Q_L' X Q_R) / w ||`` with orthogonal ``Q_L``, ``Q_R`` and positive
weights ``w``, entry by entry; its oracle is ``Q_L (w * lmo(w * (Q_L' M Q_R))) Q_R'``. At p = 2,
regularized, the step is ``Q_L (w^2 * (Q_L' M Q_R)) Q_R'``: Adam where ``w^2 = v^-1/2``.
Source: Preconditioned matrix norms (arXiv 2510.10777), and the members' own papers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from schattor.theory import exponents

__all__ = ["PRECONDITIONERS", "Preconditioner"]


class Preconditioner(NamedTuple):
    """One row of the table.

    weights: ``"moments"``: ``w = ((v/c)^root + eps)^-exponent`` of squared gradients ``v`` in the
    coordinates; ``"roots"``: of the factors' eigenvalues; ``"tracked"``: of eigenvalues that are
    tracked beside the factors; empty: 1. exponent: None is ``1/(2p)``. basis: how the eigenbases of
    the Kronecker factors are refreshed, every `frequency` steps: ``"qr"`` (one power step) or
    ``"eigh"``; empty: none. whitens: factors take in gradients that are whitened on their other
    side, by tracked eigenvalues. warm: calls that only gather statistics. learns_first: factors
    take a gradient in before it is used. eps_first: eps joins before the bias correction.
    decay_last: weights decay after the step. corrects: momentum is corrected for its start at zero.
    """

    weights: Literal["moments", "roots", "tracked", ""]
    basis: Literal["qr", "eigh", ""] = ""
    root: float = 0.5
    exponent: float | None = 0.5
    frequency: int = 1
    whitens: bool = False
    warm: int = 0
    learns_first: bool = False
    eps_first: bool = False
    decay_last: bool = False
    corrects: bool = True

    def exponent_at(self, power: float) -> float:
        """The exponent of the weights for a power of the singular values.

        >>> PRECONDITIONERS["padam"].exponent_at(1.0), PRECONDITIONERS["padam"].exponent_at(0.0)
        (0.25, 0.0)
        """
        if self.exponent is not None:
            return self.exponent
        return max(0.0, exponents.inverse_p(power) / 2)

    def is_due(self, taken: int, frequency: int, start: int | None, offset: int = 0) -> bool:
        """Whether the bases are refreshed in the call after `taken` calls.

        The member's own count begins at 0 where its first call only gathers statistics, else at 1.
        The first refresh is at `start`: None is the first call, and where factors learn first the
        first multiple of `frequency`. `offset` shifts those that follow.

        >>> [t for t in range(7) if PRECONDITIONERS["soap"].is_due(t, 3, None)]
        [0, 3, 6]
        """
        own = taken + 1 - self.warm
        first = start if start is not None else frequency if self.learns_first else 1 - self.warm
        return own == first or (own > first and (own + offset) % frequency == 0)


PRECONDITIONERS: dict[str, Preconditioner] = {
    "adam": Preconditioner("moments"),
    "sania": Preconditioner("moments", root=1.0, eps_first=True),
    "padam": Preconditioner("moments", root=1.0, exponent=None),
    "shampoo": Preconditioner("roots", "eigh", learns_first=True),
    "kl_shampoo": Preconditioner(
        "tracked", "qr", frequency=10, whitens=True, warm=1, decay_last=True, corrects=False
    ),
    "kl_soap": Preconditioner(
        "moments", "qr", frequency=10, whitens=True, warm=1, decay_last=True, corrects=False
    ),
    "soap": Preconditioner("moments", "qr", frequency=10, warm=1, eps_first=True, decay_last=True),
    "splus": Preconditioner("", "eigh", frequency=100, decay_last=True, corrects=False),
}
"""Every value of the key ``preconditioner``."""
