"""Shampoo's coordinates: inverse roots of the factors on both sides of the momentum."""

from __future__ import annotations

import torch
from torch import Tensor

from schattor import ops
from schattor.optim._factors import Factors, Index, Raw, Side, eigenpairs, factor_beta, index_of
from schattor.optim._settings import Group
from schattor.portable import scalar_dtype, share_of
from schattor.theory.preconditioners import Preconditioner

__all__ = ["Roots"]


class Roots(Factors):
    """``S_L X S_R`` with ``S = (F/c + eps)^-1/8`` (-1/4 if one side is alone); ``S = I`` at first.

    Applied before and after the oracle, they make up the exponent -1/4 of Shampoo on each side.
    """

    def __init__(
        self, spec: Preconditioner, rows: Side | None, cols: Side | None, ages: list[int]
    ) -> None:
        """The roots are the frames of the sides."""
        super().__init__(spec, rows, cols, ages)
        self._squared = {side.right: torch.zeros_like(side.frame) for side in self.present}
        for side in self.present:
            _put_gram(self._squared[side.right], slice(None), side.frame, [])

    def applied(self, chunk: slice, x: Tensor) -> Tensor:
        """``S_L X S_R``."""
        return self._applied({side.right: side.frame[chunk] for side in self.present}, x)

    def applied_twice(self, chunk: slice, x: Tensor) -> Tensor:
        """``S_L^2 X S_R^2``."""
        return self._applied({right: root[chunk] for right, root in self._squared.items()}, x)

    def _applied(self, roots: dict[bool, Tensor], x: Tensor) -> Tensor:
        return ops.rotate(x.to(self.dtype), roots.get(False), roots.get(True))

    def learn(self, chunk: slice, raw: Raw, taken: Tensor, group: Group) -> None:
        """Take gradients into the factors, and refresh the roots that are due."""
        self.average(chunk, raw, group)
        due = self.due(chunk, group)
        if not due:
            return
        index, beta = index_of(due, taken.device), factor_beta(group)
        corrections = torch.ones_like(taken[index])
        if group["bias_correction"] is not False:
            corrections = share_of(beta ** (taken[index] + 1))
        for side in self.present:
            values, vectors, failed = eigenpairs(side.factor[index])
            self.failed += len(failed)
            values = values.clamp_min(0) / corrections.to(values)[:, None] + group["eps"]
            # Where gradients were all zero there is no direction: the pseudoinverse's 0, at eps 0.
            vectors *= torch.where(values > 0, self._half_root(values), 0.0)[:, None, :]
            _put_gram(side.frame, index, vectors, failed)
            _put_gram(self._squared[side.right], index, side.frame[index], [])

    def _half_root(self, values: Tensor) -> Tensor:
        """``values^-1/16`` (-1/8): roots round alike in every place of a batch, powers do not."""
        for _ in range(2 + len(self.present)):
            values = values.sqrt()
        return values.reciprocal()


def _put_gram(to: Tensor, index: Index, x: Tensor, failed: list[int]) -> None:
    """``X X'`` of square matrices in the places of an index; what failed keeps what it has."""
    places = to[index]
    kept = places[failed]
    zeros = torch.zeros(len(x), dtype=scalar_dtype(x.device), device=x.device)
    # Not by the average's decay of 0, which an infinite root would outlive.
    ops.average_grams(places.zero_(), x, False, zeros, zeros + 1)
    places[failed] = kept
    if isinstance(index, Tensor):
        to[index] = places
