"""Runs a plan's route on a wide batch: what both `functional` and the optimizers step on."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from schattor import ops, portable
from schattor._constant import constant
from schattor.devices import without_autocast
from schattor.planning import Plan, chain_steps
from schattor.portable import scalar_dtype

__all__ = [
    "OVERSAMPLING",
    "Directions",
    "Gathered",
    "gather",
    "over",
    "scalars",
    "singular_values",
    "start_block",
    "wide_direction",
]

OVERSAMPLING = 8
"""Columns iterated beyond those wanted: speed is the gap to the first one left out."""


class Gathered(NamedTuple):
    """Matrices as a wide batch of one Frobenius norm, and the way back: ``x = norms wide``."""

    wide: Tensor  # [batch, rows, cols]
    norms: Tensor  # [batch] |x|_F / size, zero where the matrix is zero or not finite
    finite: Tensor  # [batch]
    back: Callable[[Tensor], Tensor]  # [batch, rows, cols] -> [..., m, n], NaN where not finite


class Directions(NamedTuple):
    """Directions of a wide batch, each known up to a positive factor, and what fixes its size.

    ``O = U diag(s^power) V'`` of ``wide`` may lie beyond the dtype's range where power is large, so
    the factor is the route's own; it is 1 for `identity` and `chain`. The unit ball direction is
    ``direction dual / inner``, and ``O`` itself ``direction dual^q / inner``. All zero for a zero
    matrix.
    """

    direction: Tensor  # [batch, rows, cols], in the dtype of wide
    inner: Tensor  # [batch] <wide, direction>
    square: Tensor  # [batch] |direction|_F^2
    dual: Tensor  # [batch] |wide|_q, q = 1 + power


def scalars(wide: Tensor, value: float) -> Tensor:
    """``[batch]`` numbers beside a wide batch, all ``value``."""
    dtype = scalar_dtype(wide.device)
    return torch.full((wide.shape[0],), value, dtype=dtype, device=wide.device)


def gather(x: Tensor, dtype: torch.dtype, size: float = 1.0) -> Gathered:
    """``x`` ``[..., m, n]`` as a wide batch of ``dtype``; `back` returns to the dtype of ``x``.

    ``size``, a power of two, is the Frobenius norm that each matrix of the batch has.
    """
    m, n = x.shape[-2:]
    matrices = x.detach().reshape(math.prod(x.shape[:-2]), m, n)
    views = matrices.mT if m > n else matrices
    wide = torch.zeros(views.shape, dtype=dtype, device=x.device)
    norms = scalars(wide, 0.0)
    finite = torch.ones(len(wide), dtype=torch.bool, device=x.device)
    if wide.numel():
        rate = norms.new_zeros(())
        ops.gather_momentum(list(views), [], rate, False, False, size, wide, norms, finite)

    def back(result: Tensor) -> Tensor:
        # By a product, which is one pass: `where` on a whole batch takes three times as long.
        marks = finite.to(result.dtype).masked_fill_(~finite, math.nan)
        marked = result * marks[:, None, None]
        turned = marked.mT if m > n else marked
        return turned.reshape(x.shape).to(x.dtype).contiguous()

    return Gathered(wide, norms, finite, back)


@without_autocast()
def wide_direction(wide: Tensor, powers: Tensor, weights: Tensor | None, plan: Plan) -> Directions:
    """Directions of a wide batch by the plan's route, without a read-back to the host.

    Args:
        wide: contiguous ``[batch, rows, cols]`` in ``plan.dtype``, each of Frobenius norm
            ``plan.size`` or 0, and finite.
        powers: ``[batch]`` of the singular values. All equal, except on the routes `chain` and
            `exact`.
        weights: ``[batch, depth + 1]`` rows of `planning.chain_weights`, for the route `chain`;
            else None.
        plan: of `planning.plan`.

    Raises ValueError where a chain has no weights.
    """
    if plan.route == "identity":
        square = ops.inner_products(wide, wide)
        return Directions(wide, square, square, square.sqrt())
    if plan.route == "chain":
        if weights is None:
            raise ValueError("wide_direction: weights must be given for the route chain, got None")
        steps, restarts = chain_steps(plan), list(plan.restarts)
        chain = ops.chain_direction if plan.engine == "kernels" else portable.chain_direction
        direction, inner, square = chain(wide, steps, weights, powers, plan.gram, restarts)
        return Directions(direction, inner, square, _root(inner, powers))
    if plan.route == "squarings":
        return _squarings(wide, powers, plan)
    if plan.route == "entries":
        return _entries(wide, powers)
    if plan.route == "signs":
        signs = wide.sign()
        inner = ops.inner_products(wide, signs)
        return Directions(signs, inner, ops.inner_products(signs, signs), inner)
    if plan.route == "partial_svd":
        start = start_block(wide, plan.columns)
        u, s, v = ops.partial_svd(wide, plan.columns, plan.iterations, start)
        u, s, v = u[..., : plan.rank], s[..., : plan.rank], v[..., : plan.rank]
        spectrum, inner, square, dual = _spectrum(s, powers, torch.finfo(wide.dtype).eps)
        direction = torch.bmm(u * spectrum[:, None, :].to(u.dtype), v.mT)
        return Directions(direction, inner, square, dual)
    return _exact(wide, powers)


def over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is not positive."""
    positive = denominator > 0
    return numerator / torch.where(positive, denominator, 1.0) * positive


def _root(inner: Tensor, powers: Tensor) -> Tensor:
    """``inner^(1/q)``: the dual norm, since ``<G, O> = |G|_q^q``."""
    return inner.clamp_min(0).pow(1 / (1 + powers))


def _squarings(wide: Tensor, powers: Tensor, plan: Plan) -> Directions:
    # s_1 lies in size [rows^-1/2, 1]: centred on 1, its powers up to 33 are float32 numbers.
    centre = wide.shape[1] ** 0.25 / plan.size
    polynomial = list(plan.polynomial)
    direction, inner, square = ops.squarings_direction(wide * centre, polynomial, powers)
    return Directions(direction, inner / centre, square, _root(inner, powers) / centre)


def _entries(wide: Tensor, powers: Tensor) -> Directions:
    """``sign(x) (|x|/peak)^power`` of every entry; at power inf the first of the largest alone."""
    size = wide.abs().flatten(1)
    peak, where = size.max(1, keepdim=True)
    ratio = over(size, peak)
    exponents = powers.to(size.dtype)[:, None]
    first = torch.zeros_like(ratio).scatter_(1, where, 1.0)
    raised = torch.where(exponents.isinf(), first, ratio.pow(exponents)).view_as(wide)
    direction = wide.sign() * raised
    inner = ops.inner_products(wide, direction)
    largest = peak[:, 0].to(inner.dtype)
    dual = largest * over(inner, largest).pow(1 / (1 + powers))
    return Directions(direction, inner, ops.inner_products(direction, direction), dual)


def _spectrum(s: Tensor, powers: Tensor, rounding: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(s/s_1)^power`` of descending ``s`` ``[batch, rank]``, and the numbers of `Directions`.

    Values below ``rounding s_1`` count as zero, and stay zero for every power. At power inf the
    first value stands alone, also where others equal it: the direction is rank one.
    """
    s = s.to(powers.dtype)
    largest = s[:, :1]
    ratio = over(s, largest)
    exponents = powers[:, None]
    first = torch.arange(s.shape[1], device=s.device) == 0
    raised = torch.where(exponents.isinf(), first.to(s.dtype), ratio.pow(exponents))
    raised = torch.where(ratio > rounding, raised, torch.zeros_like(raised))
    sums = (ratio * raised).sum(1)
    dual = largest[:, 0] * sums.pow(1 / (1 + powers))
    return raised, largest[:, 0] * sums, raised.square().sum(1), dual


def _exact(wide: Tensor, powers: Tensor) -> Directions:
    """From all singular values: eigh of a float64 Gram matrix, or an SVD for float64 itself.

    A float32 Gram matrix would lose every singular value below 3e-4 of the first.
    """
    # Singular values of what rounding leaves of a zero: errors of one sign would be max(m, n) eps.
    rounding = 4 * torch.finfo(wide.dtype).eps * math.sqrt(max(wide.shape[1:]))
    widest = wide.to(scalar_dtype(wide.device))
    if widest.dtype != wide.dtype:
        try:
            return _from_gram(widest, powers, rounding, wide.dtype)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass  # no convergence: the SVD below takes another algorithm
    u, s, vh = torch.linalg.svd(widest, full_matrices=False)
    raised, inner, square, dual = _spectrum(s, powers, rounding)
    direction = torch.bmm(u * raised[:, None, :].to(u.dtype), vh)
    return Directions(direction.to(wide.dtype), inner, square, dual)


def _from_gram(widest: Tensor, powers: Tensor, rounding: float, dtype: torch.dtype) -> Directions:
    eigenvalues, u = torch.linalg.eigh(torch.bmm(widest, widest.mT))
    s, u = eigenvalues.clamp_min(0).sqrt().flip(-1), u.flip(-1)
    raised, inner, square, dual = _spectrum(s, powers, rounding)
    direction = torch.bmm(u * over(raised, s)[:, None, :], torch.bmm(u.mT, widest))
    return Directions(direction.to(dtype), inner, square, dual)


def singular_values(wide: Tensor) -> Tensor:
    """``[batch, rows]`` singular values, descending, in float64 where the device has it."""
    values: Tensor = torch.linalg.svdvals(wide.to(scalar_dtype(wide.device)))
    return values


@lru_cache(maxsize=16)
def _random_block(cols: int, rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with _disable_current_modes():  # what is kept must not be a mode's
        generator = torch.Generator().manual_seed(0)
        # On the processor whatever torch.set_default_device says: the generator is there.
        drawn = torch.randn(cols, rank, generator=generator, dtype=dtype, device="cpu")
        return drawn.to(device)


@constant
def _shared_block(cols: int, rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if fake is None:
        return _random_block(cols, rank, dtype, device)
    # Shapes alone are asked for, of a device that may not be there.
    block: Tensor = fake.from_tensor(_random_block(cols, rank, dtype, torch.device("cpu")))
    return block.to(device)


def start_block(wide: Tensor, columns: int, generator: torch.Generator | None = None) -> Tensor:
    """``[batch, cols, columns]`` where a subspace iteration begins, drawn by ``generator``.

    None draws the same numbers in every call and for every matrix of the batch, so that a result
    does not depend on its neighbours.
    """
    batch, _, cols = wide.shape
    if generator is None:
        block = _shared_block(cols, columns, wide.dtype, wide.device)
        return block.expand(batch, -1, -1).contiguous()
    drawn = torch.randn(
        batch, cols, columns, generator=generator, dtype=wide.dtype, device=generator.device
    )
    return drawn.to(wide.device)
