"""What criteria are made of, from momenta, gradients and moments of blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from schattor.adaptive.chain import Direct, Shorter, factors, iterates, traces
from schattor.adaptive.criteria import Forms
from schattor.adaptive.moments import Moments, inner

__all__ = ["forms_of"]

# From this aspect on products of the shorter side are fewer.
_WIDE = 1.5

_Found = tuple[Tensor, Tensor, Tensor | None]  # falls, curves and norms of `Forms`


def forms_of(
    x: Tensor,
    grads: Tensor,
    moments: Moments,
    outward: Callable[[Tensor], Tensor] | None,
    spectra: bool,
    least: float,
) -> Forms:
    """The forms of some blocks of one shape.

    Args:
        x: ``[batch, rows, cols]``, momenta in the coordinates of the norm, up to factors.
        grads: ``[batch, rows, cols]``, gradients, up to factors.
        moments: of the inputs, and of what lies behind.
        outward: from ``[batch, K+1, rows, cols]`` in those coordinates to steps of the weights;
            None: the coordinates are those of the weights.
        spectra: whether the norms and eigenvalues of the moments are wanted.
        least: the least power that will be compared.
    """
    long = x.shape[2] >= _WIDE * x.shape[1]
    beside_gram = moments.behind is None and not (long and moments.right)
    # Below power 0 the sums of `schattor.adaptive.squares` are not near enough.
    if outward is None and beside_gram and least >= 0:
        found = _of_traces(x, grads, moments, long, spectra)
    elif outward is None and long:
        found = _of_factors(x, grads, moments, spectra)
    else:
        found = _of_iterates(x, grads, moments, outward, spectra)
    falls, curves, norms = found
    return Forms(
        falls.double(),
        curves.double(),
        None if norms is None else norms.double(),
        moments.inputs.eigenvalues() if spectra else None,
    )


def _of_traces(x: Tensor, grads: Tensor, moments: Moments, long: bool, spectra: bool) -> _Found:
    """Where the moments stand beside the chain's Gram matrices."""
    chain: Direct | Shorter
    if long:
        chain = Shorter(x)
        first, grads = chain.gram, torch.bmm(grads, chain.first.mT)
    else:
        chain = Direct(x, moments.right)
        first = chain.found
    others = [grads, first] if spectra else [grads]
    curves, (falls, *norms) = traces(chain, moments.inputs.squared(x.dtype), others)
    return falls, curves, norms[0] if spectra else None


def _of_factors(x: Tensor, grads: Tensor, moments: Moments, spectra: bool) -> _Found:
    """By matrices of the shorter side."""
    chain = factors(x)
    falls = inner(chain.found, torch.bmm(grads, chain.first.mT)[:, None])[:, :, 0]
    norms = inner(chain.found, chain.gram[:, None])[:, :, 0] if spectra else None
    return falls, moments.curves_of(chain).flatten(1), norms


def _of_iterates(
    x: Tensor,
    grads: Tensor,
    moments: Moments,
    outward: Callable[[Tensor], Tensor] | None,
    spectra: bool,
) -> _Found:
    """By all iterates, or the steps that are made of them."""
    found = iterates(x)
    steps = found if outward is None else outward(found)
    falls = inner(steps, grads[:, None])[:, :, 0]
    norms = inner(found, found[:, :1])[:, :, 0] if spectra else None
    return falls, moments.curves(steps).flatten(1), norms
