"""Second moments on both sides of steps, and the quadratic form that they make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from schattor.adaptive.chain import Factors
from schattor.adaptive.samples import Samples

__all__ = ["Moments", "Side", "inner", "noise_moments", "side_of"]


class Side(NamedTuple):
    """Second moments ``[n, n]`` of some blocks, one a block; as roots, N ``[count, n]`` of ``N'N``.

    Blocks that share a moment have the same tensor.
    """

    found: Sequence[Tensor]
    roots: bool = False

    def stacked(self, dtype: torch.dtype) -> Tensor:
        """``[batch, n | count, n]``."""
        return torch.stack([*self.found]).to(dtype)

    def squared(self, dtype: torch.dtype) -> Tensor:
        """The moments themselves ``[batch, n, n]``."""
        found = self.stacked(dtype)
        return torch.bmm(found.mT, found) if self.roots else found

    def eigenvalues(self) -> Tensor:
        """``[batch, n]``, or of roots ``[batch, count]``, those that are not 0 among them."""
        distinct = {id(each): each for each in self.found}
        found = torch.stack([*distinct.values()])
        if self.roots:
            found = torch.bmm(found, found.mT)
        values = torch.linalg.eigvalsh(found).clamp_min(0).double()
        of = dict(zip(distinct, values.unbind(), strict=True))
        return torch.stack([of[id(each)] for each in self.found])


class Moments(NamedTuple):
    """Second moments of the inputs of some blocks ``[rows, cols]``, and of what lies behind."""

    inputs: Side  # A
    right: bool  # inputs run along the columns
    behind: Side | None = None  # B on the other side; None: I

    def curves(self, steps: Tensor) -> Tensor:
        """``<D_k A, B D_l>`` of ``D_k`` ``[batch, K+1, rows, cols]``."""
        (before, left), (after, right) = self._sides(steps.dtype)
        steps = _times(_before(before, steps), after)
        return inner(_times(steps, right), _before(left, steps))

    def curves_of(self, chain: Factors) -> Tensor:
        """The same of ``D_k = P_k X_0``, by matrices of the shorter side."""
        (before, left), (after, right) = self._sides(chain.first.dtype)
        first, between = chain.first, chain.gram
        if after is not None:
            first = torch.bmm(first, after)
            between = torch.bmm(first, first.mT)
        elif right is not None:
            between = torch.bmm(torch.bmm(first, right), first.mT)
        found = _before(before, chain.found)
        return inner(_times(found, between), _before(left, found))

    def _sides(self, dtype: torch.dtype) -> tuple[_Factors, _Factors]:
        """What weighs steps from the left and from the right: roots both of them, else one."""
        given = (self.behind, self.inputs) if self.right else (self.inputs, self.behind)
        left, right = (_factors_of(side, dtype) for side in given)
        return left, (None if right[0] is None else right[0].mT, right[1])


# On one side of steps: a root, which goes into both of a pair, or a moment, into one; None: I.
_Factors = tuple[Tensor | None, Tensor | None]


def _factors_of(side: Side | None, dtype: torch.dtype) -> _Factors:
    if side is None:
        return None, None
    found = side.stacked(dtype)
    return (found, None) if side.roots else (None, found)


def side_of(samples: Sequence[Samples]) -> Side:
    """The moments of samples; roots of them, unless some are sums."""
    roots = all(each.total is None for each in samples)
    distinct = {id(each): each for each in samples}
    found = {key: each.root() if roots else each.mean() for key, each in distinct.items()}
    if roots:  # rows of zeros change nothing
        most = max(map(len, found.values()))
        found = {key: pad(each, (0, 0, 0, most - len(each))) for key, each in found.items()}
    return Side([found[id(each)] for each in samples], roots)


def noise_moments(noise: Tensor, right: bool) -> Moments:
    """Second moments of inputs, up to factors, from the noise N ``[batch, rows, cols]`` of wide
    gradients: ``N'N``.

    A gradient is a sum of ``e x'`` over samples with residuals e; where these are independent of
    the inputs x, ``E N'N`` is proportional to ``E x x'``. Of the longer side nothing is squared.
    """
    if right:
        return Moments(Side(noise.unbind(), roots=True), True)
    return Moments(Side(torch.bmm(noise, noise.mT).unbind()), False)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products ``[batch, k, l]`` of matrices ``[batch, k | l, rows, cols]``."""
    return torch.bmm(x.flatten(2), y.flatten(2).mT)


def _before(factor: Tensor | None, matrices: Tensor) -> Tensor:
    """``F D_k`` of ``[batch, count, rows, cols]``."""
    return matrices if factor is None else torch.matmul(factor[:, None], matrices)


def _times(matrices: Tensor, factor: Tensor | None) -> Tensor:
    """``D_k F`` of ``[batch, count, rows, cols]``."""
    if factor is None:
        return matrices
    batch, count, _, cols = matrices.shape
    return torch.bmm(matrices.reshape(batch, -1, cols), factor).view(
        batch, count, -1, factor.shape[2]
    )
