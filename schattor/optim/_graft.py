"""Grafting: a block's step is as long as SGD's or Adam's would be (the scales of that name)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from schattor import ops
from schattor.optim._preconditioned import Entered, Preconditioned
from schattor.optim._settings import Group
from schattor.portable import share_of

__all__ = ["Graft", "Grafted"]


class Grafted(NamedTuple):
    """The step of the other method, for a chunk."""

    step: Tensor  # [batch, rows, cols]
    norms: Tensor  # [batch]
    squares: Tensor | None  # [batch, rows, cols], second moments with this gradient in them


class Graft:
    """The other method of one bucket: ``M^`` (``"sgd"``) or ``M^ / (sqrt(v^) + eps)`` (``"adam"``).

    Its second moments are those of the gradients as they came, whatever a preconditioner does.
    """

    def __init__(self, method: str) -> None:
        """``method`` is the group's scale."""
        self.method = method
        self.squares: list[Tensor] = []

    def measure(
        self,
        chunk: slice,
        grads: list[Tensor],
        entered: Entered,
        momenta: list[Tensor],
        momentum: Tensor,
        inside: Preconditioned | None,
        taken: Tensor,
        dtype: torch.dtype,
        group: Group,
    ) -> Grafted:
        """The other method's step for these gradients; nothing is written."""
        ema, nesterov = group["momentum_form"] == "ema", group["nesterov"]
        shape = (len(grads), *grads[0].shape)
        wide = torch.empty(shape, dtype=dtype, device=taken.device)
        norms = torch.empty(len(grads), dtype=taken.dtype, device=taken.device)
        finite = torch.empty(len(grads), dtype=torch.bool, device=taken.device)
        ops.gather_momentum(
            entered.grads, momenta, momentum, ema, nesterov, 1.0, wide, norms, finite
        )
        corrected = group["bias_correction"] is not False
        if corrected and ema and momenta:
            norms /= share_of(momentum ** (taken[chunk] + 1 + nesterov))
        if inside is not None and inside.bases is not None:
            wide = inside.bases.rotated_back(chunk, wide)
        step = wide * norms.to(dtype)[:, None, None]
        if self.method == "sgd":
            return Grafted(step, norms, None)
        beta = float(group["betas"][1])
        met = torch.stack([grad.to(dtype) for grad in grads])
        squares = beta * torch.stack(self.squares[chunk]).to(dtype) + share_of(beta) * met.square()
        corrections = share_of(beta ** (taken[chunk] + 1))
        root = (squares / corrections.to(dtype)[:, None, None]).sqrt()
        step /= root + group["eps"]
        step.nan_to_num_(0.0, 0.0, 0.0)  # gradients that are not finite; 0/0 where eps is 0
        return Grafted(step, ops.inner_products(step, step).sqrt(), squares)

    def learn(self, chunk: slice, grafted: Grafted, moving: Tensor) -> None:
        """Write the second moments of blocks that moved."""
        if grafted.squares is not None:
            kept = torch.stack(self.squares[chunk])
            new = torch.where(moving[:, None, None], grafted.squares.to(kept.dtype), kept)
            torch._foreach_copy_(self.squares[chunk], list(new.unbind()))
