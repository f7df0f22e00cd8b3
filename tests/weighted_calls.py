"""Arguments of the operators with weights and second moments, and what they should write."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

F64 = torch.float64


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def in_turn(values: tuple[float, ...], batch: int) -> Tensor:
    """Numbers that the matrices of a batch take in turn."""
    return torch.tensor([values[i % len(values)] for i in range(batch)], dtype=F64)


def same(values: list[Tensor], transposed: bool) -> list[Tensor]:
    """The same matrices, each in memory of its own that lies one way or the other."""
    return [x.t().contiguous().t() if transposed else x.contiguous() for x in values]


class Weighing(NamedTuple):
    """Lists of a bucket, and how its weights are made of them."""

    grads: list[Tensor]
    momenta: list[Tensor]
    squares: list[Tensor]
    beta: float = 0.98
    corrections: tuple[float, ...] = (0.3, 0.7)
    eps: float = 1e-3
    root: float = 0.5
    exponents: tuple[float, ...] = (0.5,)

    def dtype(self, wide: torch.dtype) -> torch.dtype:
        """What weights are held in."""
        lists = (self.grads, self.momenta, self.squares)
        double = wide == F64 or any(x[0].dtype == F64 for x in lists if x)
        return F64 if double else torch.float32


class Gathered(NamedTuple):
    weights: Tensor
    wide: Tensor
    norms: Tensor
    finite: Tensor


def gathered(
    function: Callable[..., None],
    lists: Weighing,
    wide: torch.dtype,
    weights: Tensor | None = None,
    size: float = 1.0,
) -> Gathered:
    """What ``gather_weighted`` writes; ``weights`` are what it reads where there are no squares."""
    shape = (len(lists.grads), *lists.grads[0].shape)
    fresh = torch.full(shape, 7.0, dtype=lists.dtype(wide))
    out = Gathered(
        fresh if weights is None else weights.clone(),
        torch.full(shape, 7.0, dtype=wide),
        torch.full(shape[:1], 7.0, dtype=F64),
        torch.empty(shape[0], dtype=torch.bool),
    )
    function(
        lists.grads,
        lists.momenta,
        lists.squares,
        number(0.9),
        True,
        True,
        number(lists.beta),
        in_turn(lists.corrections, shape[0]),
        torch.full(shape[:1], lists.eps, dtype=F64),
        lists.root,
        in_turn(lists.exponents, shape[0]),
        size,
        *out,
    )
    return out


def formula(lists: Weighing, weights: Tensor | None = None, size: float = 1.0) -> Gathered:
    """The same in float64, from the definition: for finite matrices that are not zero."""
    grad = torch.stack([g.double() for g in lists.grads])
    applied = grad
    if lists.momenta:
        applied = 0.9**2 * torch.stack([m.double() for m in lists.momenta]) + 0.19 * grad
    if lists.squares:
        v = lists.beta * torch.stack([s.double() for s in lists.squares])
        v += (1.0 if lists.beta == 1 else 1 - lists.beta) * grad**2
        corrected = v / in_turn(lists.corrections, len(grad))[:, None, None]
        exponents = in_turn(lists.exponents, len(grad))[:, None, None]
        weights = (corrected**lists.root + lists.eps) ** -exponents
        weights = torch.where(v > 0, weights, 0.0)
    assert weights is not None
    weighted = weights.double() * applied
    norm = weighted.flatten(1).norm(dim=1)
    wide = size * weighted / norm[:, None, None]
    return Gathered(weights, wide, norm / size, torch.ones(len(grad), dtype=torch.bool))


def random_lists(
    batch: int,
    rows: int,
    cols: int,
    dtype: torch.dtype,
    square: torch.dtype,
    tall: tuple[bool, bool] = (False, False),
) -> Weighing:
    """Lists of which first and second moments lie one way or the other."""
    grads, momenta = ([torch.randn(rows, cols).to(dtype) for _ in range(batch)] for _ in range(2))
    squares = [torch.rand(rows, cols).to(square) for _ in range(batch)]
    return Weighing(same(grads, tall[0]), same(momenta, tall[0]), same(squares, tall[1]))
