"""The operators of Kronecker factors in plain torch: decompositions, a batch at a time.

On a processor C++ hands one matrix to each thread. On a GPU these are the operators themselves, by
cuSOLVER: nothing of ours would be faster.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def eigenpairs(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, ascending, eigenvectors, and which symmetric matrices converged.

    ``factors`` is ``[batch, n, n]``; where a matrix did not, its results are zeros.
    """
    sound = torch.ones(len(factors), dtype=torch.bool, device=factors.device)
    try:
        values, vectors = torch.linalg.eigh(factors)
        return values, vectors.contiguous(), sound
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pass  # of one matrix or more, which are found one by one
    values, vectors = torch.zeros_like(factors[:, 0]), torch.zeros_like(factors)
    for i, factor in enumerate(factors):
        try:
            values[i], vectors[i] = torch.linalg.eigh(factor)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            sound[i] = False
    return values, vectors, sound


@torch.no_grad()
def power_step(factors: Tensor, bases: Tensor, sort: bool) -> tuple[Tensor, Tensor]:
    """``qr(F Q)`` of each basis, and with ``sort`` the order its columns were put in before.

    Columns descend by ``diag(Q' F Q)``. Without ``sort`` the orders are empty.
    """
    product = torch.bmm(factors, bases)
    orders = product.new_empty((0, product.shape[-1]), dtype=torch.int64)
    if sort:
        orders = (bases * product).sum(-2).argsort(dim=-1, descending=True, stable=True)
        product = product.gather(-1, orders[:, None, :].expand_as(product))
    # Q alone: torch.linalg.qr would form R too, which costs as much as a fifth of it.
    stepped = torch.linalg.householder_product(*torch.geqrf(product))
    return stepped.contiguous(), orders
