"""Rules of `paper_rules.py` with a defect of published code: what the library must not reproduce.

`test_published_defects.py` shows the size of every effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from paper_rules import KLShampoo, MuAdam, MuAdamSania, Shampoo, ema, polar
from torch import Tensor


class StuckMuAdam(MuAdam):
    """The key that tells whether there is a state is misspelt: the counter starts anew every call.

    Updates are ``((1 - b2) / (1 - b2^t))^1/4`` of the right size. Vepricov/LIB, class TAIA.
    """

    def counter(self) -> int:
        return 1


class StuckMuAdamSania(MuAdamSania):
    """The same counter: updates are ``((1 - b2) / (1 - b2^t))^1/2`` of the right size."""

    def counter(self) -> int:
        return 1


class InPlaceSania(MuAdamSania):
    """``D = v.add_(eps).div_(1 - b2^t)``: what remains as v is D. Vepricov/LIB, class TAIA."""

    def norm_weights(self, correction: float) -> Tensor:
        self.v = super().norm_weights(correction)
        return self.v


class RepairedSania(MuAdamSania):
    """In by ``D^-1/2`` but out by ``min(D^-1/4, 1000)``, eps after the correction.

    The students' repair in Ivan45634/hse-opt-project (``rsqrt`` of a root taken already).
    """

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        rows, cols = w.shape
        self.m, self.v = ema(self.m, g, self.betas[0]), ema(self.v, g * g, self.betas[1])
        root = (self.v / (1 - self.betas[1] ** self.t) + self.eps).sqrt()
        size = math.sqrt(max(1, rows / cols))
        return w - self.lr * size * polar(self.m / root) * root.rsqrt().clamp(max=1000)


@dataclass(kw_only=True)
class CastKLShampoo(KLShampoo):
    """The gradient and all state in bfloat16 between calls (the published code computes so too).

    yorkerlin/KL-Methods, default ``cast_dtype``.
    """

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        w = super().new_weights(w, cast(g))
        self.m = cast(self.m)
        self.factors = [None if factor is None else cast(factor) for factor in self.factors]
        self.bases = [cast(basis) for basis in self.bases]
        self.inverse_roots = [cast(root) for root in self.inverse_roots]
        return w


def cast(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).double()


class AliasedShampoo(Shampoo):
    """Grafting "sgd" without bias correction: before start the step is scaled in place, and is m.

    facebookresearch/optimizers: the direction that decay is added to and -lr multiplies is the
    buffer of the moving average itself.
    """

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        new = super().new_weights(w, g)
        if self.t < (self.start or self.period):
            self.m = (new - w) if w.ndim == 2 else (new - w)[:, None]
        return new
