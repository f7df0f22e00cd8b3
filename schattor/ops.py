"""Typed wrappers of ``torch.ops.schattor``: the only place where Python meets the kernels.

A *wide batch* is contiguous ``[batch, rows, cols]`` with ``rows <= cols``. Lists hold 2-D views of
one shape and any strides. Numbers that differ by matrix are float64 ``[batch]``; ``finite`` is a
bool ``[batch]``. On a processor the operators are C++ (``csrc/cpu``), on a GPU CUDA
(``csrc/kernels``) where that was built and torch has CUDA; on a device without kernels of ours they
are :mod:`schattor.portable` and :mod:`schattor.portable_weighted`, which say so once.
Eigenvectors of factors are LAPACK's; on a GPU :mod:`schattor.portable_factors` has cuSOLVER's.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schattor import _C, fakes, portable, portable_factors, portable_weighted

__all__ = [
    "Direction",
    "average_grams",
    "chain_direction",
    "chain_update",
    "eigenpairs",
    "gather_momentum",
    "gather_weighted",
    "inner_products",
    "missing",
    "native",
    "partial_svd",
    "power_step",
    "rotate",
    "scatter_moments",
    "scatter_update",
    "squarings_direction",
    "weigh",
]

torch.ops.load_library(Path(__file__).with_name("_ops_cpu.so"))
fakes.register()
_ops = torch.ops.schattor

_OPERATORS: tuple[Callable[..., Any], ...] = (
    portable.chain_direction,
    portable.gather_momentum,
    portable.inner_products,
    portable.partial_svd,
    portable.scatter_update,
    portable.squarings_direction,
    portable_weighted.average_grams,
    portable_weighted.gather_weighted,
    portable_weighted.scatter_moments,
    portable_weighted.weigh,
)
# Those that are torch's own wherever kernels of ours are not for processors alone.
_TORCHS_OWN: tuple[Callable[..., Any], ...] = (
    portable_factors.eigenpairs,
    portable_factors.power_step,
    portable_factors.rotate,
)


def _load_cuda(library: Path, torch_cuda: str | None, built: str) -> str:
    """Load the operators' CUDA library; why there is none, or "" where CUDA tensors take it.

    A library that was built but does not load is said at once: that is a fault to be mended.
    """
    if torch_cuda is None:
        return "this torch is built without CUDA"
    if not library.exists():
        return f"the CUDA kernels are {built}"
    try:
        torch.ops.load_library(library)
        _C.attach_cuda(str(library))
    except (OSError, RuntimeError, ValueError) as error:
        why = f"the CUDA kernels are built ({built}) but do not load: {error}"
        warnings.warn(f"schattor: {why}", stacklevel=2)
        return why
    return ""


_without_cuda = _load_cuda(
    Path(__file__).with_name("_ops_cuda.so"), torch.version.cuda, _C.build_info()["cuda"]
)

# Dispatch keys without kernels of ours, which schattor.portable serves.
_PORTABLE_KEYS = (*(("CUDA",) if _without_cuda else ()), "MPS", "XPU", "PrivateUse1")

# A direction, its inner product with the input, its squared Frobenius norm.
Direction = tuple[Tensor, Tensor, Tensor]


def gather_momentum(
    grads: list[Tensor],
    momenta: list[Tensor],
    momentum: Tensor,
    ema: bool,
    nesterov: bool,
    size: float,
    wide: Tensor,
    norms: Tensor,
    finite: Tensor,
) -> None:
    """Write ``wide = size M / |M|_F``, ``norms = |M|_F / size`` and ``finite``; moments are read.

    ``m' = momentum m + c g`` with ``c = 1 - momentum`` if ``ema`` else 1; ``M = momentum m' + c g``
    if ``nesterov`` else ``m'``; ``M = g`` where ``momenta`` is empty. A matrix with an entry that
    is not finite counts as zero. ``size`` is a power of two, 1 but for float16: see `Plan.size`.
    """
    _ops.gather_momentum(grads, momenta, momentum, ema, nesterov, size, wide, norms, finite)


def chain_direction(
    wide: Tensor,
    steps: list[float],
    weights: Tensor,
    powers: Tensor,
    gram: bool,
    restarts: list[int],
) -> Direction:
    """``U s^power V'`` of each ``wide = U s V'`` by a chain of quintic steps and a mixture.

    ``steps`` holds three coefficients a step, ``weights`` ``[batch, depth + 1]`` the mixture of the
    iterates. ``gram`` iterates rows x rows matrices, reading ``wide`` again after ``restarts``.
    """
    direction: Direction = _ops.chain_direction(wide, steps, weights, powers, gram, restarts)
    return direction


def chain_update(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    rule: tuple[Tensor, bool, bool, float, Tensor],
    chain: tuple[list[float], Tensor, Tensor, bool, list[int]],
    length: tuple[Tensor, Tensor, Tensor, Tensor, bool, bool],
    decay: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`gather_momentum`, `chain_direction` and `scatter_update` of one matrix after the other.

    On a processor alone: each matrix is in one core's cache all the while. ``rule``: momentum, ema,
    nesterov, size, and scratch ``[2 workers, rows, cols]`` of the chain's dtype. ``chain``: steps,
    weights, powers, gram, restarts. ``length``: lr, factors, lengths, corrections, frobenius,
    regularized, of ``scale = lr factors lengths / |direction|``, by the norm of p or, if frobenius,
    of the entries, times ``dual = |M|_q / corrections`` if regularized; 0 where the direction is.
    Returns ``finite``, ``dual``, ``|direction|_F^2`` and ``scale`` of each.
    """
    updated: tuple[Tensor, Tensor, Tensor, Tensor] = _ops.chain_update(
        params, grads, momenta, *rule, *chain, *length, decay
    )
    return updated


def squarings_direction(wide: Tensor, coefficients: list[float], powers: Tensor) -> Direction:
    """Combine the odd powers 1, 3, 5, 9, 17, 33 of the singular values, scaled by their bound."""
    direction: Direction = _ops.squarings_direction(wide, coefficients, powers)
    return direction


def partial_svd(
    wide: Tensor, rank: int, iterations: int, start: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``rank`` leading singular triples by block subspace iteration from ``start``."""
    triples: tuple[Tensor, Tensor, Tensor] = _ops.partial_svd(wide, rank, iterations, start)
    return triples


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """``<x_i, y_i>`` of each pair of matrices, summed in float64."""
    inner: Tensor = _ops.inner_products(x, y)
    return inner


def scatter_update(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    direction: Tensor,
    scale: Tensor,
    decay: Tensor,
    momentum: Tensor,
    ema: bool,
    finite: Tensor,
) -> None:
    """``w <- decay w - scale direction`` and ``m <- momentum m + c g`` where ``finite``."""
    _ops.scatter_update(params, grads, momenta, direction, scale, decay, momentum, ema, finite)


def gather_weighted(
    grads: list[Tensor],
    momenta: list[Tensor],
    squares: list[Tensor],
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
    """`gather_momentum` of ``w M``; moments and ``squares`` are read.

    With ``squares``, ``v = beta v + (1 - beta) g^2`` (``v + g^2`` where beta is 1) and ``weights``
    get ``w = ((v / correction)^root + eps)^-exponent``, 0 where ``v`` is 0; ``root`` is 1 or 0.5,
    and ``corrections``, ``eps`` and ``exponent`` are ``[batch]``. Without, ``weights`` are read.
    They are float32, float64 where any list or ``wide`` is.
    """
    _ops.gather_weighted(
        grads,
        momenta,
        squares,
        momentum,
        ema,
        nesterov,
        beta,
        corrections,
        eps,
        root,
        exponent,
        size,
        weights,
        wide,
        norms,
        finite,
    )


def weigh(weights: Tensor, direction: Tensor) -> Tensor:
    """``w <- w * direction`` in place of ``weights``; squared Frobenius norms of the result."""
    square: Tensor = _ops.weigh(weights, direction)
    return square


def scatter_moments(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    squares: list[Tensor],
    direction: Tensor,
    scale: Tensor,
    decay: Tensor,
    momentum: Tensor,
    beta: Tensor,
    ema: bool,
    finite: Tensor,
) -> None:
    """`scatter_update`, and ``v <- beta v + (1 - beta) g^2`` (``v + g^2`` at 1) where finite."""
    _ops.scatter_moments(
        params, grads, momenta, squares, direction, scale, decay, momentum, beta, ema, finite
    )


def average_grams(factors: Tensor, wide: Tensor, right: bool, decay: Tensor, share: Tensor) -> None:
    """``F <- decay F + share X X'`` (``X' X`` if ``right``) of each matrix, exactly symmetric."""
    _ops.average_grams(factors, wide, right, decay, share)


def rotate(
    x: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    back: bool = False,
    least: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """``L' X R`` of each matrix, or ``back``, ``L X R'``; a side that is None is the identity.

    ``x`` is a wide batch, float64 or float32. Of the result, entries of at most ``least`` become 0,
    and the others are multiplied by ``scale``, both ``[batch]``.
    """
    rotated: Tensor = _ops.rotate(x, left, right, back, least, scale)
    return rotated


def eigenpairs(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, ascending, eigenvectors, and which of the symmetric matrices converged.

    What did not is unspecified. ``factors`` is ``[batch, n, n]``, float64 or float32.
    """
    found: tuple[Tensor, Tensor, Tensor] = _ops.eigenpairs(factors)
    return found


def power_step(factors: Tensor, bases: Tensor, sort: bool) -> tuple[Tensor, Tensor]:
    """``qr(F Q)`` of each basis ``Q``, and the order that its columns were put in before.

    With ``sort`` columns descend by ``diag(Q' F Q)``; without, the orders ``[0, n]`` are empty.
    """
    stepped: tuple[Tensor, Tensor] = _ops.power_step(factors, bases, sort)
    return stepped


def missing(device: torch.device) -> str:
    """Why operators on ``device`` are plain torch; empty where they are kernels of ours."""
    if device.type == "cuda":
        return _without_cuda
    return "" if device.type == "cpu" else f"there are no kernels of ours for {device.type}"


def native(device: torch.device) -> bool:
    """Whether operators on ``device`` are kernels of ours rather than plain torch."""
    return not missing(device)


@functools.cache
def _say_once(key: str) -> None:
    why = f": {_without_cuda}" if key == "CUDA" else ""
    message = (
        f"schattor: no kernels of ours for {key} tensors in this build{why}; they take plain torch,"
        " which gives the same results slower. `python -m schattor.doctor` shows what is built."
    )
    if os.environ.get("SCHATTOR_STRICT") == "1":
        raise RuntimeError(f"{message} SCHATTOR_STRICT=1 makes this an error.")
    warnings.warn(message, stacklevel=4)


def _announced(function: Callable[..., Any], key: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def announced(*args: Any) -> Any:
        _say_once(key)
        return function(*args)

    return announced


# Kept for the life of the process: a library takes its registrations with it when it goes.
_portable_library = torch.library.Library("schattor", "IMPL")
for _key in _PORTABLE_KEYS:
    for _operator in _OPERATORS:
        _portable_library.impl(_operator.__name__, _announced(_operator, _key), _key)
for _key in {"CUDA", *_PORTABLE_KEYS}:
    for _operator in _TORCHS_OWN:
        _portable_library.impl(_operator.__name__, _operator, _key)
