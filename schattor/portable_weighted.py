"""The operators of preconditioned steps in plain torch: `schattor.portable` has the others.

A preconditioned direction is ``w * lmo(w * M)``: elementwise weights ``w``, held in float32 (or
float64, where anything of the call is) as a batch of the same shape as the wide batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schattor.portable import (
    _gram,
    _mirrored,
    _normalise,
    _per_matrix,
    _sum_dtype,
    applied_momentum,
    inner_products,
    scatter_update,
    share_of,
)


def _averaged(squares: Sequence[Tensor], grad: Tensor, beta: Tensor) -> Tensor:
    """``beta v + (1 - beta) g^2``; a sum, ``v + g^2``, where ``beta`` is 1."""
    share = share_of(beta).to(grad.dtype)
    return (
        beta.to(grad.dtype) * torch.stack([v.to(grad.dtype) for v in squares])
        + share * grad.square()
    )


@torch.no_grad()
def gather_weighted(
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    squares: Sequence[Tensor],
    momentum: Tensor,
    ema: bool,
    nesterov: bool,
    beta: Tensor,
    corrections: Tensor,
    eps: Tensor,
    root: float,
    exponent: Tensor,
    size: float,
    weights: Tensor,
    wide: Tensor,
    norms: Tensor,
    finite: Tensor,
) -> None:
    """Write ``size w M / |w M|_F`` into ``wide``, ``|w M|_F / size`` into ``norms``; moments stay.

    ``M`` is that of `gather_momentum`. With second moments ``squares``, the weights are written:
    ``v = beta v + (1 - beta) g^2`` (``v + g^2`` where beta is 1) and
    ``w = ((v / correction)^root + eps)^-exponent``, 0 where ``v`` is 0; ``root`` is 1 or 0.5, and
    ``corrections``, ``eps`` and ``exponent`` are ``[batch]``. Where ``squares`` is empty they are
    read. Where an entry of ``w M`` or ``v`` is not finite, ``finite`` is False and ``wide`` and
    ``norms`` are 0.
    """
    if not grads:
        return
    dtype = _sum_dtype(*grads, *momenta, *squares, wide)
    grad = torch.stack([g.to(dtype) for g in grads])
    old = torch.stack([m.to(dtype) for m in momenta]) if momenta else None
    applied, _ = applied_momentum(grad, old, momentum, ema, nesterov)
    sound = applied.isfinite()
    if squares:
        v = _averaged(squares, grad, beta)
        corrected = (v / _per_matrix(corrections, v)).pow(root) + _per_matrix(eps, v)
        weighed = corrected.pow(-_per_matrix(exponent, v))
        weights.copy_(torch.where(v > 0, weighed, torch.zeros_like(v)))
        sound &= v.isfinite()
    applied = applied * weights.to(dtype)
    _normalise(applied, sound & applied.isfinite(), size, wide, norms, finite)


@torch.no_grad()
def weigh(weights: Tensor, direction: Tensor) -> Tensor:
    """``w <- w * direction`` in place of the weights; its squared Frobenius norms ``[batch]``."""
    weights.mul_(direction)
    return inner_products(weights, weights)


@torch.no_grad()
def scatter_moments(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    squares: Sequence[Tensor],
    direction: Tensor,
    scale: Tensor,
    decay: Tensor,
    momentum: Tensor,
    beta: Tensor,
    ema: bool,
    finite: Tensor,
) -> None:
    """`scatter_update`, and ``v <- beta v + (1 - beta) g^2`` (``v + g^2`` at 1) where finite."""
    scatter_update(params, grads, momenta, direction, scale, decay, momentum, ema, finite)
    for i, (old, grad) in enumerate(zip(squares, grads, strict=False)):
        dtype = _sum_dtype(old, grad)
        (new,) = _averaged([old], grad[None].to(dtype), beta)
        old.copy_(torch.where(finite[i], new.to(old.dtype), old))


@torch.no_grad()
def average_grams(factors: Tensor, wide: Tensor, right: bool, decay: Tensor, share: Tensor) -> None:
    """``F <- decay F + share X X'`` (``X' X`` if ``right``), exactly symmetric, in place.

    ``factors`` is ``[batch, d, d]``, d the rows (the columns if ``right``) of ``wide``; ``decay``
    and ``share`` are ``[batch]``.
    """
    gram = _gram(wide.mT) if right else _gram(wide)
    factors.mul_(_per_matrix(decay, factors))
    factors.add_(_per_matrix(share, factors) * _mirrored(gram).to(factors.dtype))
