"""The operators of Kronecker factors in plain torch: decompositions and rotations, by batches.

On a processor C++ hands one matrix to each thread. On a GPU these are the operators themselves, by
cuSOLVER and cuBLAS: nothing of ours would be faster.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from schattor.portable import _per_matrix


def _require(holds: bool, message: str) -> None:
    """Raise RuntimeError with a message worded as `csrc/ops/checks.h` has it for processors."""
    if not holds:
        raise RuntimeError(message)


def _square_batch(operator: str, factors: Tensor) -> None:
    who, shape = f"{operator}: factors", tuple(factors.shape)
    precise = factors.dtype in (torch.float64, torch.float32)
    _require(precise, f"{who} must be float64 or float32, got {factors.dtype}")
    square = len(shape) == 3 and shape[1] == shape[2]
    _require(square, f"{who} must have shape (batch, n, n), got {shape}")
    strides = factors.stride()
    _require(factors.is_contiguous(), f"{who} must be contiguous, got strides {strides}")


@torch.no_grad()
def eigenpairs(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, ascending, eigenvectors, and which symmetric matrices converged.

    ``factors`` is ``[batch, n, n]``; where a matrix did not, its results are unspecified.
    """
    _square_batch("eigenpairs", factors)
    try:
        values, vectors = torch.linalg.eigh(factors)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = _one_by_one(factors)
    # cuSOLVER may leave NaN where LAPACK raises.
    sound = values.isfinite().all(-1) & vectors.isfinite().flatten(1).all(-1)
    return values, vectors.contiguous(), sound


def _one_by_one(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a batch in which one matrix or more fails: NaN for these."""
    values = torch.full_like(factors[:, 0], torch.nan)
    vectors = torch.full_like(factors, torch.nan)
    for i, factor in enumerate(factors):
        with contextlib.suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            values[i], vectors[i] = torch.linalg.eigh(factor)
    return values, vectors


@torch.no_grad()
def power_step(factors: Tensor, bases: Tensor, sort: bool) -> tuple[Tensor, Tensor]:
    """``qr(F Q)`` of each basis, and with ``sort`` the order its columns were put in before.

    Columns descend by ``diag(Q' F Q)``, NaN last. Without ``sort`` the orders are empty.
    """
    _square_batch("power_step", factors)
    who, shape = "power_step: bases", tuple(bases.shape)
    wanted = tuple(factors.shape)
    _require(shape == wanted, f"{who} must have shape {wanted}, got {shape}")
    same = bases.dtype == factors.dtype
    _require(same, f"{who} must have the dtype of factors, {factors.dtype}, got {bases.dtype}")
    _require(bases.is_contiguous(), f"{who} must be contiguous, got strides {bases.stride()}")
    product = torch.bmm(factors, bases)
    orders = product.new_empty((0, product.shape[-1]), dtype=torch.int64)
    if sort:
        values = (bases * product).sum(-2)
        values = torch.where(values.isnan(), -torch.inf, values)
        orders = values.argsort(dim=-1, descending=True, stable=True)
        product = product.gather(-1, orders[:, None, :].expand_as(product))
    # Q alone: torch.linalg.qr would form R too, which costs as much as a fifth of it.
    stepped = torch.linalg.householder_product(*torch.geqrf(product))
    return stepped.contiguous(), orders


@torch.no_grad()
def rotate(
    x: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    back: bool,
    least: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """``L' X R`` of each matrix, or ``back``, ``L X R'``; a side that is None is the identity.

    Entries of at most ``least`` become 0, and the others are multiplied by ``scale``.
    """
    rotated = x.clone()
    if left is not None:
        rotated = torch.bmm(left if back else left.mT, rotated)
    if right is not None:
        rotated = torch.bmm(rotated, right.mT if back else right)
    small = None if least is None else rotated.abs() <= _per_matrix(least, rotated)
    if scale is not None:
        rotated.mul_(_per_matrix(scale, rotated))
    return rotated if small is None else rotated.masked_fill_(small, 0)
