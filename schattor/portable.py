"""The operators of ``torch.ops.schattor`` in plain torch, for devices without our kernels.

Same names, arguments and results as the kernels, on any device and dtype that torch has: the
slow, obviously right twin that the kernels are tested against. Everything works on a *wide
batch* ``[batch, rows, cols]`` with ``rows <= cols``. Iterates are stored in the dtype of the wide
batch and products are summed in float32 (float64 for float64), as the kernels do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def scalar_dtype(device: torch.device) -> torch.dtype:
    """Dtype of one number per matrix: float64, or float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _sum_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: what sums over the tensors' entries are kept in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Batched ``x @ y``, summed and returned in float32 (float64 for float64)."""
    if x.dtype in (torch.float16, torch.bfloat16):
        if x.is_cuda:
            return torch.bmm(x, y, out_dtype=torch.float32)
        x, y = x.float(), y.float()
    return torch.bmm(x, y)


def _gram(x: Tensor) -> Tensor:
    return _product(x, x.mT)


def _mirrored(x: Tensor) -> Tensor:
    """``x`` with its lower triangle mirrored: rounding leaves no skew part to grow."""
    return x.tril() + x.tril(-1).mT


def _per_matrix(values: Tensor, like: Tensor) -> Tensor:
    """``[batch]`` scalars as ``[batch, 1, 1]`` in the dtype of ``like``."""
    return values.to(like.dtype)[:, None, None]


def _reciprocal(x: Tensor) -> Tensor:
    """``1 / x``, and 0 where ``x`` is 0: a zero matrix has a zero direction."""
    return torch.where(x > 0, 1 / x, torch.zeros_like(x))


def _frobenius(x: Tensor) -> Tensor:
    return x.to(scalar_dtype(x.device)).square().sum((-2, -1)).sqrt()


def _restored(scale: Tensor, powers: Tensor) -> Tensor:
    """``scale^power``, and 0 where ``scale`` is 0."""
    return torch.where(scale > 0, scale, torch.ones_like(scale)).pow(powers) * (scale > 0)


def _with_products(wide: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    direction = direction.to(wide.dtype)
    return direction, inner_products(wide, direction), inner_products(direction, direction)


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """``<x_i, y_i>`` of two batches ``[batch, ...]``, summed in float64: ``[batch]``."""
    dtype = scalar_dtype(x.device)
    return (x.to(dtype) * y.to(dtype)).flatten(1).sum(1)


def share_of(beta: Number) -> Number:
    """``1 - beta``, the share of a new term; 1 where ``beta`` is 1, which sums. Of ``beta^t``: what
    an average of t terms that began at zero must be divided by.

    >>> share_of(0.9 ** 2), share_of(1.0)
    (0.18999999999999995, 1.0)
    """
    return 1 - beta + (beta == 1)


def applied_momentum(
    grad: Tensor, old: Tensor | None, momentum: Tensor, ema: bool, nesterov: bool
) -> tuple[Tensor, Tensor | None]:
    """``(M, m')`` of the momentum rule: what is applied, and the new moment."""
    if old is None:
        return grad, None
    rate = momentum.to(grad.dtype)
    share = 1 - rate if ema else torch.ones_like(rate)
    new = rate * old + share * grad
    return (rate * new + share * grad if nesterov else new), new


@torch.no_grad()
def gather_momentum(
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    momentum: Tensor,
    ema: bool,
    nesterov: bool,
    size: float,
    wide: Tensor,
    norms: Tensor,
    finite: Tensor,
) -> None:
    """Write ``size M / |M|_F`` into ``wide``, ``|M|_F / size`` into ``norms``; moments stay.

    ``m' = momentum m + c g`` with ``c = 1 - momentum`` (ema) or 1, and ``M = momentum m' + c g``
    (nesterov) or ``m'``; ``M = g`` where ``momenta`` is empty. Where an entry of ``M`` is not
    finite, ``finite`` is False and ``wide`` and ``norms`` are 0. ``size`` is a power of two.
    """
    if not grads:
        return
    dtype = _sum_dtype(*grads, *momenta)
    grad = torch.stack([g.to(dtype) for g in grads])
    old = torch.stack([m.to(dtype) for m in momenta]) if momenta else None
    applied, _ = applied_momentum(grad, old, momentum, ema, nesterov)
    _normalise(applied, applied.isfinite(), size, wide, norms, finite)


def _normalise(
    applied: Tensor, sound: Tensor, size: float, wide: Tensor, norms: Tensor, finite: Tensor
) -> None:
    """``wide = size M / |M|_F`` and ``norms = |M|_F / size``; 0 where an entry is not ``sound``."""
    finite.copy_(sound.flatten(1).all(1))
    applied = torch.where(finite[:, None, None], applied, torch.zeros_like(applied))
    if applied[0].numel() == 0:
        norms.zero_()
        return
    # The largest entry first: squares of entries near 1e-30 or 1e30 are not float32 numbers.
    peak = applied.abs().flatten(1).amax(1)
    applied = applied / torch.where(peak > 0, peak, torch.ones_like(peak))[:, None, None]
    norm = _frobenius(applied)
    norms.copy_(norm * peak.to(norm.dtype) / size)
    wide.copy_(applied * _per_matrix(size * _reciprocal(norm), applied))


@torch.no_grad()
def chain_direction(
    wide: Tensor,
    steps: Sequence[float],
    weights: Tensor,
    powers: Tensor,
    gram: bool,
    restarts: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """``U diag(s^power) V'`` by a chain of quintic steps: ``(direction, inner, square)``.

    ``X <- X (a I + b A + c A^2)``, ``A = X'X``, from ``X_0 = wide / |wide|_S4``; the direction is
    ``|wide|_S4^power sum_k w_k X_k``. ``steps`` holds ``a, b, c`` of every step in turn; float64
    ``weights`` are ``[batch, depth + 1]``, ``powers`` ``[batch]``. ``inner = <wide, direction>``,
    ``square = |direction|_F^2``. ``gram`` iterates on the small side, and returns to ``X`` after
    the steps listed in ``restarts``.
    """
    triples = [(steps[i], steps[i + 1], steps[i + 2]) for i in range(0, len(steps), 3)]
    first_gram = _gram(wide)
    scale = _frobenius(first_gram).sqrt()
    if gram:
        mixture = _gram_mixture(wide, first_gram, scale, triples, weights, restarts)
    else:
        mixture = _direct_mixture(wide, first_gram, scale, triples, weights)
    return _with_products(wide, mixture * _per_matrix(_restored(scale, powers), mixture))


def _direct_mixture(
    wide: Tensor,
    first_gram: Tensor,
    scale: Tensor,
    triples: Sequence[tuple[float, float, float]],
    weights: Tensor,
) -> Tensor:
    """``sum_k w_k X_k`` with every step taken on ``X``.

    ``X_0`` stays stored undivided, since a second rounding would double its noise: the first step
    divides by the scale.
    """
    dtype = first_gram.dtype
    inverse = _per_matrix(_reciprocal(scale), first_gram)
    mixture = _per_matrix(weights[:, 0], first_gram) * inverse * wide.to(dtype)
    x, unit, gram = wide, inverse, first_gram * inverse**2
    for k, (a, b, c) in enumerate(triples):
        if k:
            unit, gram = torch.ones_like(inverse), _gram(x)
        stored = gram.to(wide.dtype)
        polynomial = (b * stored.to(dtype) + c * _product(stored, stored)).to(wide.dtype)
        x = (unit * (a * x.to(dtype) + _product(polynomial, x))).to(wide.dtype)
        mixture = mixture + _per_matrix(weights[:, k + 1], mixture) * x.to(dtype)
    return mixture


def _gram_mixture(
    wide: Tensor,
    first_gram: Tensor,
    scale: Tensor,
    triples: Sequence[tuple[float, float, float]],
    weights: Tensor,
    restarts: Sequence[int],
) -> Tensor:
    """``sum_k w_k X_k`` with the steps taken on ``R = X X'``: ``X_k = Q X`` since the last restart.

    ``Z = aI + bR + cR^2``, ``Q <- Q Z``, ``R <- Z R Z``, and the mixture gathers in ``S``.
    """
    dtype, store = first_gram.dtype, wide.dtype
    identity = torch.eye(wide.shape[1], dtype=dtype, device=wide.device)
    inverse = _per_matrix(_reciprocal(scale), first_gram)
    residual = (first_gram * inverse**2).to(store)
    x, unit = wide, inverse  # the first segment's X is stored undivided
    q = identity.expand_as(first_gram).to(store)
    side = _per_matrix(weights[:, 0], first_gram) * identity
    mixture = torch.zeros_like(wide, dtype=dtype)
    for k, (a, b, c) in enumerate(triples):
        if k in restarts and k > 0:
            mixture = mixture + unit * _product(side.to(store), x)
            x = (unit * _product(q, x)).to(store)
            unit = torch.ones_like(unit)
            residual = _gram(x).to(store)
            q, side = identity.expand_as(first_gram).to(store), torch.zeros_like(side)
        z = (a * identity + b * residual.to(dtype) + c * _product(residual, residual)).to(store)
        q = _mirrored(_product(q, z)).to(store)
        if k + 1 < len(triples) and k + 1 not in restarts:
            half = _product(z, residual).to(store)
            residual = _mirrored(_product(half, z)).to(store)
        side = side + _per_matrix(weights[:, k + 1], side) * q.to(dtype)
    return mixture + unit * _product(side.to(store), x)


@torch.no_grad()
def squarings_direction(
    wide: Tensor, coefficients: Sequence[float], powers: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``X (c_0 I + c_1 A + c_2 A^2 + c_3 A^4 + c_4 A^8 + ...)``: ``(direction, inner, square)``.

    ``A = X'X`` of ``X = wide / bound``, where ``bound >= s_1`` comes from the highest power of
    ``A``; the result is multiplied by ``bound^power``. ``coefficients`` (3 to 6 of them) belong to
    the odd powers 1, 3, 5, 9, 17, 33 of the singular values.
    """
    scalar = scalar_dtype(wide.device)
    power = _gram(wide)
    # Powers of A are kept at unit Frobenius norm, and their logarithms on the side: A^16 of a
    # matrix with Frobenius norm 1 may be far below the smallest float32 number.
    stored: list[Tensor] = []
    logs: list[Tensor] = []
    for index in range(len(coefficients) - 1):
        if index:
            power = _product(stored[-1], stored[-1])
        size = _frobenius(power)
        stored.append((power * _per_matrix(_reciprocal(size), power)).to(wide.dtype))
        log = torch.where(size > 0, size, torch.ones_like(size)).log()
        logs.append(2 * logs[-1] + log if index else log)
    log_bound = logs[-1] / 2 ** len(logs)
    dtype = power.dtype
    side = coefficients[0] * torch.eye(wide.shape[1], dtype=dtype, device=wide.device)
    side = side.expand_as(power)
    for index, (matrix, log) in enumerate(zip(stored, logs, strict=True)):
        factor = coefficients[index + 1] * (log - 2 ** (index + 1) * log_bound).exp()
        side = side + _per_matrix(factor, power) * matrix.to(dtype)
    restored = ((powers.to(scalar) - 1) * log_bound).exp()
    direction = _per_matrix(restored, power) * _product(side.to(wide.dtype), wide)
    return _with_products(wide, direction)


@torch.no_grad()
def partial_svd(
    wide: Tensor, rank: int, iterations: int, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` leading singular triples by block subspace iteration: ``(u, s, v)``.

    ``start`` ``[batch, cols, rank]`` is where the iteration begins. Returns ``u``
    ``[batch, rows, rank]``, ``s`` ``[batch, rank]`` descending, ``v`` ``[batch, cols, rank]``.
    """
    left = torch.linalg.qr(torch.bmm(wide, start))[0]
    for _ in range(iterations - 1):
        right = torch.linalg.qr(torch.bmm(wide.mT, left))[0]
        left = torch.linalg.qr(torch.bmm(wide, right))[0]
    u, s, vh = torch.linalg.svd(torch.bmm(left.mT, wide), full_matrices=False)
    return torch.bmm(left, u), s, vh.mT


@torch.no_grad()
def scatter_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    direction: Tensor,
    scale: Tensor,
    decay: Tensor,
    momentum: Tensor,
    ema: bool,
    finite: Tensor,
) -> None:
    """``w <- decay w - scale direction`` and ``m <- momentum m + c g``, where ``finite``.

    ``scale`` is ``[batch]``, ``decay`` and ``momentum`` are 0-dim. Elsewhere nothing changes.
    """
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        dtype = _sum_dtype(param, direction)
        step = scale[i].to(dtype) * direction[i].to(dtype)
        updated = decay.to(dtype) * param.to(dtype) - step
        param.copy_(torch.where(finite[i], updated.to(param.dtype), param))
        if momenta:
            old = momenta[i]
            dtype = _sum_dtype(old, grad)
            _, new = applied_momentum(grad.to(dtype), old.to(dtype), momentum, ema, False)
            assert new is not None
            old.copy_(torch.where(finite[i], new.to(old.dtype), old))
