"""Schatten-p directions, oracles and norms of tensors ``[..., m, n]``.

Symbols: ``G = U diag(s) V'``; ``p`` is the Schatten index of the step's norm, ``q = p/(p-1)`` its
dual, ``power = q - 1 = 1/(p-1)`` the exponent on the singular values. Any of float64, float32,
bfloat16, float16, wide, tall or square, batched over leading dimensions; the result has the input's
dtype. Nothing here is differentiable: an input that requires grad is refused while grad mode is on,
one with a tangent (``torch.func.jvp``) always. A matrix with an entry that is not finite has NaN as
its result, and leaves the others alone. No input is written. All but `explain` compile whole
(``torch.compile(fullgraph=True)``), a graph for each size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from schattor import ops, planning
from schattor._constant import constant
from schattor.devices import without_autocast
from schattor.directions import (
    OVERSAMPLING,
    Directions,
    gather,
    scalars,
    singular_values,
    start_block,
    wide_direction,
)
from schattor.planning import Method, Plan

__all__ = [
    "ball_oracle",
    "explain",
    "partial_svd",
    "polar",
    "regularized_oracle",
    "schatten_direction",
    "schatten_norm",
    "wide_direction",
]

NormMethod = Literal["exact", "chain"]


def _check(who: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{who}: x must be a tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{who}: x must be a dense tensor, got layout {x.layout}")
    if x.dtype not in planning.FLOATING:
        raise TypeError(f"{who}: x must be float64, float32, bfloat16 or float16, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{who}: x must have shape [..., m, n], got {tuple(x.shape)}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{who}: x must not require grad, since the result is not differentiable; "
            "got one that does: pass x.detach() or use torch.no_grad()"
        )
    if forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        raise ValueError(
            f"{who}: x must have no tangent, since the result is not differentiable; got one of"
            " forward-mode differentiation (jvp, jacfwd): pass a tensor from outside of it"
        )


def _planned(
    who: str,
    x: Tensor,
    power: float,
    method: Method = "auto",
    steps: int | None = None,
    chain_dtype: torch.dtype | None = None,
    coefficients: str = "schattor",
    device: torch.device | None = None,
) -> Plan:
    rows, cols = sorted(map(index, x.shape[-2:]))  # a graph of torch.compile plans for one size
    chain = {"steps": steps, "chain_dtype": chain_dtype, "coefficients": coefficients}
    where = device or x.device
    return _plan_on(where, power, rows, cols, x.dtype, method=method, who=who, **chain)


@constant
def _plan_on(device: torch.device, *of: Any, **settings: Any) -> Plan:
    return planning.plan(*of, planning.device_facts(device), **settings)


def _directed(wide: Tensor, power: float, plan: Plan) -> Directions:
    powers, weights = scalars(wide, power), None
    if plan.route == "chain":
        row = planning.chain_weights(power, plan)
        weights = torch.tensor(row, dtype=powers.dtype, device=wide.device)
        weights = weights.expand(len(wide), -1).contiguous()
    return wide_direction(wide, powers, weights, plan)


def _sized_direction(
    x: Tensor, power: float, plan: Plan, size: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The direction of x by the plan, sized so that ``<x / norms, result> = size(norms, dual)``.

    ``norms`` are those of `gather`, ``norms dual`` the dual norm of x.
    """
    gathered = gather(x, plan.dtype, plan.size)
    if not gathered.wide.numel():
        return torch.zeros_like(x, memory_format=torch.contiguous_format)
    found = _directed(gathered.wide, power, plan)
    factor = size(gathered.norms, found.dual) / found.inner
    factor = torch.where(found.inner > 0, factor, torch.zeros_like(factor))
    # Half precision would round the direction and lose small factors: multiply in float32.
    wider = torch.promote_types(found.direction.dtype, torch.float32)
    return gathered.back(found.direction.to(wider) * factor.to(wider)[:, None, None])


def schatten_direction(
    x: Tensor,
    p: float | None = None,
    *,
    power: float | None = None,
    method: Method = "auto",
    steps: int | None = None,
    chain_dtype: torch.dtype | None = None,
    coefficients: str = "schattor",
) -> Tensor:
    """The raw direction ``O = U diag(s^power) V'`` of each matrix.

    ``<x, O> = sum s^q = |x|_q^q``. Zero singular values stay zero, for every power. At p = 1
    (power inf) it is the leading pair ``u_1 v_1'``. Large powers may leave the dtype's range; the
    oracles below are sized and do not.

    Args:
        x: ``[..., m, n]``.
        p: Schatten index in [1, inf]; or
        power: ``1/(p-1)``, in [-0.3, inf]; below 0 lies beyond Muon. Neither: p = inf.
        method: "auto" (see `explain`), "chain", "exact" (SVD, or eigh of a float64 Gram matrix),
            "partial_svd" (leading triples alone).
        steps: of the chain, 4 to 10; each reaches 3.13 times deeper into the spectrum, 8 to 3.3e-4
            of the Schatten-4 norm. None: planned.
        chain_dtype: storage of the chain. None: planned.
        coefficients: "schattor", or a row that others published, for p = inf alone.

    Raises ValueError or TypeError for p, power or settings outside these, and for a tensor that is
    complex, of integers, sparse, 1-D, or that requires grad. Warns for power below -0.2.

    Source: Schattor (arXiv 2606.15702), section 1; the chain is derived.

    >>> x = torch.diag(torch.tensor([4.0, 1.0]))
    >>> schatten_direction(x, p=3.0, method="exact")
    tensor([[2., 0.],
            [0., 1.]])
    """
    who = "schatten_direction"
    _check(who, x)
    exponent = planning.power_of(who, p, power)
    plan = _planned(who, x, exponent, method, steps, chain_dtype, coefficients)

    def size(norms: Tensor, dual: Tensor) -> Tensor:
        return dual if math.isinf(exponent) else norms.pow(exponent) * dual.pow(1 + exponent)

    return _sized_direction(x, exponent, plan, size)


def polar(
    x: Tensor,
    *,
    method: Method = "auto",
    steps: int | None = None,
    chain_dtype: torch.dtype | None = None,
    coefficients: str = "schattor",
) -> Tensor:
    """The polar factor ``U V'``: `schatten_direction` at p = inf, Muon's direction.

    Arguments and errors are those of `schatten_direction`. Source: Schattor (arXiv 2606.15702),
    section 1.

    >>> polar(torch.diag(torch.tensor([4.0, 1.0])), method="exact")
    tensor([[1., 0.],
            [0., 1.]])
    """
    return schatten_direction(
        x,
        math.inf,
        method=method,
        steps=steps,
        chain_dtype=chain_dtype,
        coefficients=coefficients,
    )


def ball_oracle(
    x: Tensor,
    p: float,
    radius: float = 1.0,
    *,
    method: Method = "auto",
    steps: int | None = None,
    chain_dtype: torch.dtype | None = None,
    coefficients: str = "schattor",
) -> Tensor:
    """The matrix of Schatten-p norm at most ``radius`` that is most opposed to ``x``.

    ``D = argmin_(|D|_p <= radius) <x, D> = -radius O / |x|_q^(q-1)``, so that ``|D|_p = radius``
    and ``<x, D> = -radius |x|_q``. A zero matrix has D = 0.

    Args:
        x: ``[..., m, n]``.
        p: Schatten index in [1, inf].
        radius: at least 0, finite.
        method, steps, chain_dtype, coefficients: as in `schatten_direction`.

    Raises as `schatten_direction` does, and ValueError for the radius. Source: Schattor
    (arXiv 2606.15702), section 1.

    >>> ball_oracle(torch.tensor([[3.0, 4.0]]), p=2.0, radius=10.0)
    tensor([[-6., -8.]])
    """
    who = "ball_oracle"
    _check(who, x)
    if not 0 <= radius < math.inf:
        raise ValueError(f"{who}: radius must be finite and at least 0, got {radius}")
    power = planning.power_of(who, p, None)
    plan = _planned(who, x, power, method, steps, chain_dtype, coefficients)
    return _sized_direction(x, power, plan, lambda norms, dual: -radius * dual)


def regularized_oracle(
    x: Tensor,
    p: float,
    eta: float = 1.0,
    *,
    method: Method = "auto",
    steps: int | None = None,
    chain_dtype: torch.dtype | None = None,
    coefficients: str = "schattor",
) -> Tensor:
    """The minimiser of the linear model with a squared Schatten-p penalty.

    ``D = argmin <x, D> + |D|_p^2 / (2 eta) = -eta |x|_q^(2-q) O``; at p = 2 it is ``-eta x``, the
    step of SGD.

    Args:
        x: ``[..., m, n]``.
        p: Schatten index in [1, inf].
        eta: at least 0, finite.
        method, steps, chain_dtype, coefficients: as in `schatten_direction`.

    Raises as `schatten_direction` does, and ValueError for eta. Source: Schattor
    (arXiv 2606.15702), section 1.

    >>> regularized_oracle(torch.tensor([[3.0, 4.0]]), p=2.0, eta=2.0)
    tensor([[-6., -8.]])
    """
    who = "regularized_oracle"
    _check(who, x)
    if not 0 <= eta < math.inf:
        raise ValueError(f"{who}: eta must be finite and at least 0, got {eta}")
    power = planning.power_of(who, p, None)
    plan = _planned(who, x, power, method, steps, chain_dtype, coefficients)
    if power == 1 and plan.route == "identity":  # exactly, not by way of x / |x|_F
        finite = x.isfinite().flatten(-2).all(-1)[..., None, None]
        return torch.where(finite, -eta * x.detach(), math.nan)
    return _sized_direction(x, power, plan, lambda norms, dual: -eta * norms * dual.square())


def schatten_norm(x: Tensor, p: float, *, method: NormMethod = "exact") -> Tensor:
    """The Schatten-p norm ``|x|_p = (sum s^p)^(1/p)`` of each matrix, p in [1, inf].

    Args:
        x: ``[..., m, n]``.
        p: 1 is the nuclear, 2 the Frobenius, inf the spectral norm.
        method: "exact" (singular values), or "chain": from the inner product of x with its
            direction, ``|x|_p^p = <x, U diag(s^(p-1)) V'>``, without singular values.

    Returns ``[...]`` in the input's dtype, float32 for half precision; NaN for a matrix that is
    not finite. Raises as `schatten_direction` does. Source: Schattor (arXiv 2606.15702), section 1;
    the inner product is derived.

    >>> schatten_norm(torch.diag(torch.tensor([3.0, 4.0])), 1)
    tensor(7.)
    """
    who = "schatten_norm"
    _check(who, x)
    if not p >= 1:
        raise ValueError(f"{who}: p must be in [1, inf], got {p}")
    if method not in get_args(NormMethod):
        raise ValueError(
            f"{who}: method must be one of {', '.join(get_args(NormMethod))}, got {method!r}"
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    if not x.numel():
        return x.new_zeros(x.shape[:-2], dtype=dtype)
    if method == "exact":
        gathered = gather(x, dtype)
        unit = torch.linalg.vector_norm(singular_values(gathered.wide), p, dim=-1)
    else:
        plan = _planned(who, x, p - 1)
        gathered = gather(x, plan.dtype, plan.size)
        unit = _directed(gathered.wide, p - 1, plan).dual
    norms = torch.where(gathered.finite, gathered.norms * unit, math.nan)
    return norms.reshape(x.shape[:-2]).to(dtype)


@without_autocast()
def partial_svd(
    x: Tensor,
    rank: int,
    *,
    iterations: int = 16,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triples of each matrix: ``x ~ u diag(s) v'``, by subspace iteration.

    Args:
        x: ``[..., m, n]``; bfloat16 and float16 are computed in float32.
        rank: of triples, 1 to min(m, n).
        iterations: at least 1; each multiplies by ``x'x`` once. An error in the span falls by
            ``(s_k / s_i)^2`` each, ``k`` the first column left out.
        start: ``[..., n, columns]``, ``columns >= rank``: where to begin, as the ``v`` of an
            earlier call. None: random columns, eight more than ``rank``.
        generator: draws these; None: the same numbers in every call.

    Returns ``u`` ``[..., m, rank]``, ``s`` ``[..., rank]`` descending, ``v`` ``[..., n, rank]`` in
    the input's dtype; NaN for a matrix that is not finite. Raises ValueError for a rank, iterations
    or start outside these, and as `schatten_direction` for x. Source: Halko, Martinsson, Tropp
    2011, algorithm 4.4.

    >>> u, s, v = partial_svd(torch.diag(torch.tensor([1.0, 4.0, 2.0])), rank=2)
    >>> s
    tensor([4., 2.])
    """
    who = "partial_svd"
    _check(who, x)
    m, n = x.shape[-2:]
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"{who}: rank must be in [1, {min(m, n)}], got {rank}")
    if iterations < 1:
        raise ValueError(f"{who}: iterations must be at least 1, got {iterations}")
    if start is not None and generator is not None:
        raise ValueError(f"{who}: give start or generator, got both")
    gathered = gather(x, torch.promote_types(x.dtype, torch.float32))
    wide = gathered.wide
    rows = wide.shape[1]
    if start is None:
        block = start_block(wide, min(rows, rank + OVERSAMPLING), generator)
    else:
        if start.shape[:-1] != (*x.shape[:-2], n) or not rank <= start.shape[-1] <= rows:
            wanted = f"{(*x.shape[:-2], n)} and {rank} to {rows} columns"
            raise ValueError(f"{who}: start must have shape {wanted}, got {tuple(start.shape)}")
        block = start.detach().reshape(len(wide), n, -1).to(wide.dtype)
        block = torch.bmm(wide.mT, block) if m > n else block.contiguous()
    u, s, v = ops.partial_svd(wide, block.shape[-1], iterations, block)
    if m > n:
        u, v = v, u
    s = s * gathered.norms[:, None].to(s.dtype)

    def shaped(part: Tensor) -> Tensor:
        mask = gathered.finite.reshape(-1, *[1] * (part.dim() - 1))
        part = torch.where(mask, part[..., :rank], math.nan)
        return part.reshape(*x.shape[:-2], *part.shape[1:]).to(x.dtype)

    return shaped(u), shaped(s), shaped(v)


def explain(
    x: Tensor | Sequence[int],
    p: float | None = None,
    *,
    power: float | None = None,
    method: Method = "auto",
    steps: int | None = None,
    chain_dtype: torch.dtype | None = None,
    coefficients: str = "schattor",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> str:
    """Which route `schatten_direction` takes for a tensor or a shape, and why, in one line.

    Args:
        x: a tensor, or a shape ``(..., m, n)`` of one with ``dtype`` on ``device``.
        p, power, method, steps, chain_dtype, coefficients: as in `schatten_direction`.

    Raises as `schatten_direction` does.

    >>> print(explain((768, 3072), p=2))
    identity (float32): power 1 (p = 2) is the matrix itself
    """
    who = "explain"
    where = x.device if isinstance(x, Tensor) else torch.device(device)
    x = x.detach() if isinstance(x, Tensor) else torch.empty(*x, dtype=dtype, device="meta")
    _check(who, x)
    exponent = planning.power_of(who, p, power)
    return str(_planned(who, x, exponent, method, steps, chain_dtype, coefficients, where))
