"""What operators return, by shape and dtype alone: for torch.compile and meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["register"]


def _numbers(like: Tensor, count: int) -> Tensor:
    return like.new_empty(count, dtype=torch.float64)


def _direction(wide: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch = len(wide)
    return torch.empty_like(wide), _numbers(wide, batch), _numbers(wide, batch)


def _partial_svd(
    wide: Tensor, rank: int, iterations: int, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, rows, cols = wide.shape
    return (
        wide.new_empty(batch, rows, rank),
        wide.new_empty(batch, rank),
        wide.new_empty(batch, cols, rank),
    )


def _per_matrix(x: Tensor, *_: Any) -> Tensor:
    return _numbers(x, len(x))


def _chain_update(params: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, like = len(params), params[0]
    finite = like.new_empty(count, dtype=torch.bool)
    return finite, _numbers(like, count), _numbers(like, count), _numbers(like, count)


def _same(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _eigenpairs(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sound = factors.new_empty(len(factors), dtype=torch.bool)
    return torch.empty_like(factors[:, 0]), torch.empty_like(factors), sound


def _power_step(factors: Tensor, bases: Tensor, sort: bool) -> tuple[Tensor, Tensor]:
    orders = bases.new_empty(len(bases) if sort else 0, bases.shape[-1], dtype=torch.int64)
    return torch.empty_like(bases), orders


def _nothing(*_: Any) -> None:
    """What an operator returns that only writes."""


_FAKES: dict[str, Callable[..., Any]] = {
    "average_grams": _nothing,
    "chain_direction": _direction,
    "chain_update": _chain_update,
    "eigenpairs": _eigenpairs,
    "gather_momentum": _nothing,
    "gather_weighted": _nothing,
    "inner_products": _per_matrix,
    "partial_svd": _partial_svd,
    "power_step": _power_step,
    "rotate": _same,
    "scatter_moments": _nothing,
    "scatter_update": _nothing,
    "squarings_direction": _direction,
    "weigh": _per_matrix,
}


def register() -> None:
    """Tell torch, once the operators' library is loaded."""
    for name, fake in _FAKES.items():
        torch.library.register_fake(f"schattor::{name}", fake)
