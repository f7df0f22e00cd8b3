"""The chain's iterates ``X_k`` of some wide matrices, and what inner products it gives away."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from schattor import ops
from schattor.theory import chains

__all__ = ["DEPTH", "Direct", "Factors", "Shorter", "factors", "iterates", "traces"]

DEPTH = 6
"""Steps of the chain that is looked at: what is below 0.3 % of the largest value has little say."""


class Direct:
    """The chain by its iterates: ``X <- S X``, ``A = X X'``, on the right ``X S`` and ``X' X``."""

    def __init__(self, x: Tensor, right: bool = False) -> None:
        """``x`` is ``[batch, rows, cols]``."""
        self._right = right
        self._gram: Tensor | None
        self.found, self._gram = _scaled(x, right)
        """X_k."""

    @property
    def gram(self) -> Tensor:
        """A of the iterate."""
        if self._gram is None:
            self._gram = _gram(self.found, self._right)
        return self._gram

    def advance(self, step: Tensor) -> None:
        """To the next iterate; ``step`` is S."""
        pair = (self.found, step) if self._right else (step, self.found)
        self.found, self._gram = torch.bmm(*pair), None


class Shorter:
    """The chain by matrices of the shorter side: ``X_k = P_k X_0``, polynomials of ``X_0 X_0'``.

    The Gram matrix follows by itself, ``A <- S A S``, by which its rounding grows tenfold a step:
    halfway it is formed anew.
    """

    def __init__(self, x: Tensor) -> None:
        """``x`` is ``[batch, rows, cols]``."""
        self.first, self._gram = _scaled(x, False)
        """X_0."""
        self.found = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(self._gram)
        """P_k."""
        self._taken = 0
        self._step: Tensor | None = None

    @property
    def gram(self) -> Tensor:
        """A of the iterate."""
        step, self._step = self._step, None
        if step is not None and self._taken == DEPTH // 2:
            self._gram = _gram(torch.bmm(self.found, self.first), False)
        elif step is not None:
            self._gram = torch.bmm(torch.bmm(step, self._gram), step)
        return self._gram

    def advance(self, step: Tensor) -> None:
        """To the next iterate; ``step`` is S."""
        self.found = torch.bmm(step, self.found) if self._taken else step
        self._step = step
        self._taken += 1


class Factors(NamedTuple):
    """The chain of some wide matrices: ``X_k = P_k X_0``."""

    first: Tensor  # [batch, rows, cols] X_0
    gram: Tensor  # [batch, rows, rows] X_0 X_0'
    found: Tensor  # [batch, K+1, rows, rows] P_k


def iterates(x: Tensor) -> Tensor:
    """``X_0 .. X_K`` ``[batch, K+1, rows, cols]``."""
    return _all_found(Direct(x))


def factors(x: Tensor) -> Factors:
    """What the iterates of `iterates` are made of, by matrices of the shorter side."""
    chain = Shorter(x)
    gram = chain.gram
    return Factors(chain.first, gram, _all_found(chain))


def _all_found(chain: Direct | Shorter) -> Tensor:
    found = [chain.found]
    for a, b, c in chains.steps("schattor", DEPTH):
        chain.advance(_plus(_step(chain.gram, b, c), a))
        found.append(chain.found)
    return torch.stack(found, 1)


def traces(
    chain: Direct | Shorter, moment: Tensor, others: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Inner products with what the chain passes, which keeps nothing of it.

    Args:
        chain: of ``[batch, rows, cols]``, at its beginning.
        moment: ``[batch, n, n]`` E, symmetric, on the side of the chain's Gram matrices.
        others: matrices Y of the shape of the chain's ``found``.

    Returns:
        ``[batch, 2 K + 1]``: ``<A_0, E> .. <A_K, E>``, then ``<b A_k + c A_k^2, E>`` of the K
        steps; and ``<found_k, Y>`` ``[batch, K+1]`` of each Y.
    """
    grams, squares = [_trace(chain.gram, moment)], []
    passed = [[_trace(chain.found, other)] for other in others]
    for a, b, c in chains.steps("schattor", DEPTH):
        step = _step(chain.gram, b, c)
        squares.append(_trace(step, moment))
        chain.advance(_plus(step, a))
        grams.append(_trace(chain.gram, moment))
        for each, other in zip(passed, others, strict=True):
            each.append(_trace(chain.found, other))
    return torch.stack(grams + squares, 1), [torch.stack(each, 1) for each in passed]


def _trace(x: Tensor, y: Tensor) -> Tensor:
    """Inner products ``[batch]`` of matrices, in float64."""
    return ops.inner_products(x.contiguous(), y.contiguous())


def _step(gram: Tensor, b: float, c: float) -> Tensor:
    """``b A + c A^2``."""
    return torch.baddbmm(gram, gram, gram, beta=b, alpha=c)


def _plus(matrices: Tensor, a: float) -> Tensor:
    """``a I`` more, in place."""
    matrices.diagonal(dim1=1, dim2=2).add_(a)
    return matrices


def _gram(x: Tensor, right: bool) -> Tensor:
    return torch.bmm(x.mT, x) if right else torch.bmm(x, x.mT)


def _scaled(x: Tensor, right: bool) -> tuple[Tensor, Tensor]:
    """Matrices over their Schatten-4 norm, and their Gram matrices; zeros stay."""
    gram = _gram(x, right)
    square = torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True)
    square = torch.where(square > 0, square, torch.ones_like(square))
    return x / square.sqrt(), gram / square
