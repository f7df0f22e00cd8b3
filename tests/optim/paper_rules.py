"""The published update rules as straight-line float64 code, one tensor each: the oracle of tests.

Written from the formulas, sharing nothing with the library. ``step(w, g)`` returns the new weights,
in float64, and keeps the state of the rule as attributes; neither argument is written to. ``bases``
of a rule, left and right, may be set before any step (before the first too), since the basis of a
null space is arbitrary. EMA(g; b): ``x <- b x + (1 - b) g``. Decay is decoupled unless called L2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

F64 = torch.float64
ZERO = torch.zeros((), dtype=F64, device="cpu")  # what averages start from
Factors = list[Tensor | None]  # None: this side has no basis of its own, but the identity


def schatten(x: Tensor, power: float) -> Tensor:
    """``U diag(s^power) V'`` of ``x = U diag(s) V'``; singular values of rounding stay zero."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    present = s > 1e-13 * s[0]
    return (u[:, present] * s[present] ** power) @ vh[present]


def polar(x: Tensor) -> Tensor:
    return schatten(x, 0.0)


def ema(average: Tensor, new: Tensor, beta: float) -> Tensor:
    return beta * average + (1 - beta) * new


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=F64)


def rotate(x: Tensor, bases: list[Tensor]) -> Tensor:
    return bases[0].mT @ x @ bases[1]


def rotate_back(x: Tensor, bases: list[Tensor]) -> Tensor:
    return bases[0] @ x @ bases[1].mT


def eigenbases(factors: Factors, shape: Sequence[int]) -> list[Tensor]:
    """Eigenvectors as columns, of the largest eigenvalue first."""
    pairs = zip(factors, shape, strict=True)
    return [eye(d) if f is None else torch.linalg.eigh(f)[1].flip(1) for f, d in pairs]


def averaged(factors: Factors, g: Tensor, beta: float) -> Factors:
    """EMA of ``g g'`` and ``g' g`` (their sum where beta is 1), where there is a factor."""
    pairs = zip(factors, (g @ g.mT, g.mT @ g), strict=True)
    share = 1 - beta if beta < 1 else 1.0
    return [None if f is None else beta * f + share * product for f, product in pairs]


def power_step(factor: Tensor, basis: Tensor) -> Tensor:
    """One step of the power iteration: the basis of ``qr(factor basis)``."""
    return torch.linalg.qr(factor @ basis)[0]


@dataclass(kw_only=True)
class Rule:
    """Settings and state that many rules have; ``t`` is the number of calls so far."""

    lr: float
    decay: float = 0.0
    t: int = field(default=0, init=False)
    m: Tensor = field(default=ZERO, init=False)
    v: Tensor = field(default=ZERO, init=False)
    factors: Factors = field(default_factory=list, init=False)
    bases: list[Tensor] = field(default_factory=list, init=False)

    def step(self, w: Tensor, g: Tensor) -> Tensor:
        self.t += 1
        return self.new_weights(w.to(F64, copy=True), g.to(F64, copy=True))

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(kw_only=True)
class SGD(Rule):
    """``g <- g + decay w`` (L2); ``m <- momentum m + (1 - dampening) g``, first ``m = g``.

    ``w <- w - lr m``, with nesterov ``w <- w - lr (g + momentum m)``; any shape. torch.optim.SGD.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        g = g + self.decay * w
        self.m = g if self.t == 1 else self.momentum * self.m + (1 - self.dampening) * g
        if self.momentum == 0:
            return w - self.lr * g
        return w - self.lr * (g + self.momentum * self.m if self.nesterov else self.m)


@dataclass(kw_only=True)
class AdamW(Rule):
    """``w <- (1 - lr decay) w - lr (m / c1) / (sqrt(v / c2) + eps)``, ``c = 1 - b^t``; any shape.

    Loshchilov, Hutter (arXiv 1711.05101). Without ``eps_on_corrected`` the division is
    ``(m / c1) sqrt(c2) / (sqrt(v) + eps)``: SOAP's, and what MuAdam's code gives to vectors.
    """

    lr: float = 1e-3
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_on_corrected: bool = True

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        c1, c2 = (1 - beta**self.t for beta in self.betas)
        self.m, self.v = ema(self.m, g, self.betas[0]), ema(self.v, g * g, self.betas[1])
        eps = self.eps if self.eps_on_corrected else self.eps / math.sqrt(c2)
        direction = (self.m / c1) / ((self.v / c2).sqrt() + eps)
        return (1 - self.lr * self.decay) * w - self.lr * direction


@dataclass(kw_only=True)
class Muon(Rule):
    """``m <- EMA(g; momentum)``; ``w <- (1 - lr decay) w - lr a polar(z)`` of ``z``; matrices.

    ``z = momentum m + (1 - momentum) g`` with nesterov, else ``m``; ``a = sqrt(max(1, rows/cols))``
    ("original") or ``0.2 sqrt(max(rows, cols))`` ("match_rms_adamw"). Jordan et al. 2024 and
    arXiv 2502.16982, as torch.optim.Muon, with the exact polar factor.
    """

    lr: float = 1e-3
    decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    adjust: Literal["original", "match_rms_adamw"] = "original"

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        rows, cols = w.shape
        self.m = ema(self.m, g, self.momentum)
        z = ema(g, self.m, 1 - self.momentum) if self.nesterov else self.m
        original, rms = math.sqrt(max(1, rows / cols)), 0.2 * math.sqrt(max(rows, cols))
        size = self.lr * (original if self.adjust == "original" else rms)
        return (1 - self.lr * self.decay) * w - size * polar(z)


@dataclass(kw_only=True)
class MuAdam(Rule):
    """``w <- w - lr a polar(m^ / sqrt(D)) / sqrt(D)``, ``D = (sqrt(v) + eps) / sqrt(1 - b2^k)``.

    ``m <- EMA(g; b1)``, ``v <- EMA(g^2; b2)``, ``m^ = m / (1 - b1^k)``, ``k = t``,
    ``a = sqrt(max(1, rows/cols))``; matrices. Veprikov et al. (arXiv 2510.10777) and their code
    (class TAIA), whose counter is always 1. For matrices no decay is published.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        rows, cols = w.shape
        k = self.counter()
        self.m, self.v = ema(self.m, g, self.betas[0]), ema(self.v, g * g, self.betas[1])
        weights = self.norm_weights(1 - self.betas[1] ** k).sqrt()
        direction = polar(self.m / (1 - self.betas[0] ** k) / weights)
        update = math.sqrt(max(1, rows / cols)) * direction / weights
        return (1 - self.lr * self.decay) * w - self.lr * update

    def counter(self) -> int:
        return self.t

    def norm_weights(self, correction: float) -> Tensor:
        return (self.v.sqrt() + self.eps) / math.sqrt(correction)


@dataclass(kw_only=True)
class MuAdamSania(MuAdam):
    """MuAdam with ``D = (v + eps) / (1 - b2^k)``, without the root (same sources)."""

    def norm_weights(self, correction: float) -> Tensor:
        return (self.v + self.eps) / correction


@dataclass(kw_only=True)
class Shampoo(Rule):
    """``w <- w - lr (L^-1/4 m^ R^-1/4 + decay w)``; of vectors ``L^-1/2 m^``.

    In this order: ``L <- b2 L + c g g'``, ``R <- b2 R + c g' g`` with c = 1 - b2, and 1 for b2 = 1
    (a sum); roots of ``L / (1 - b2^t)`` (undivided for a sum) at t = start and later where t mod
    period = 0, the identity until then; ``m <- EMA(g; b1)``, ``m^ = m / (1 - b1^t)``. A root is
    that of the eigenvalues of ``L + eps``, moved up to eps where the smallest is below. Grafting
    gives the step the length of that of "sgd" (``m^``) or "adam" (AdamW's, its own b2 and eps),
    which alone is the step while t < start; start None is the period. Gupta et al. (arXiv
    1802.09568), Shi et al. (2309.06497), as facebookresearch/optimizers keeps matrices matrices.
    """

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 1.0)
    eps: float = 1e-12
    period: int = 1
    start: float | None = None
    bias_correction: bool = True
    grafting: Literal["sgd", "adam"] | None = None
    grafting_beta2: float = 0.999
    grafting_eps: float = 1e-10
    roots: list[Tensor] = field(default_factory=list, init=False)

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        if w.ndim == 1:  # a column with one factor
            return self.new_matrix(w[:, None], g[:, None], [True, False], 1 / 2)[:, 0]
        return self.new_matrix(w, g, [True, True], 1 / 4)

    def new_matrix(self, w: Tensor, g: Tensor, wanted: list[bool], power: float) -> Tensor:
        start = self.start or self.period
        if self.t == 1:
            self.factors = [ZERO if want else None for want in wanted]
            self.roots = [eye(d) for d in g.shape]
        self.factors = averaged(self.factors, g, self.betas[1])
        if self.t == start or (self.t > start and self.t % self.period == 0):
            pairs = zip(self.factors, g.shape, strict=True)
            self.roots = [eye(d) if f is None else self.root(f, power) for f, d in pairs]
        self.m = ema(self.m, g, self.betas[0])
        self.v = ema(self.v, g * g, self.grafting_beta2)
        used = self.m / self.correction(self.betas[0])
        direction = self.roots[0] @ used @ self.roots[1]
        if self.grafting is not None:
            v = self.v / (1 - self.grafting_beta2**self.t)
            other = used if self.grafting == "sgd" else used / (v.sqrt() + self.grafting_eps)
            direction = direction * (other.norm() / (direction.norm() + 1e-16))
            direction = other if self.t < start else direction
        return w - self.lr * (direction + self.decay * w)

    def correction(self, beta: float) -> float:
        return 1 - beta**self.t if self.bias_correction else 1.0

    def root(self, factor: Tensor, power: float) -> Tensor:
        factor = factor / (self.correction(self.betas[1]) if self.betas[1] < 1 else 1.0)
        values, vectors = torch.linalg.eigh(factor + self.eps * eye(len(factor)))
        if values[0] < self.eps:
            values = values - values[0] + self.eps
        return (vectors * values**-power) @ vectors.mT


@dataclass(kw_only=True)
class KLShampoo(Rule):
    """``n = Q_A ((Q_A' m Q_B) s / (1 + eps s)) Q_B'``, ``s = r_a r_b'``; ``w <- w - lr n``; decay.

    The first call only sets ``A = (1 - bs) g g' / cols``, ``B = (1 - bs) g' g / rows``, their
    eigenbases and ``r = init_factor^-1/2``. Then, with the old bases and r, ``m <- EMA(g; b1)``,
    ``n``, ``A <- EMA(x x' / cols; bs)`` of ``x = g Q_B diag(r_b)``, ``B`` likewise; ``1 / r_a^2 <-
    EMA(row means of (Q_A' x)^2; bs)``, then ``r_a <- min(r_a, max(10, min(rows, clamp)))``, ``r_b``
    likewise; at k mod period = 0 (k = t - 1) ``Q_A <- qr(A Q_A)``, unsorted; last, the decay of the
    new weights. No bias corrections. bs is ``shampoo_beta``, or b2. Lin et al. (arXiv 2509.03378),
    as yorkerlin/KL-Methods, but in float64 where that code casts to bfloat16; matrices.
    """

    lr: float = 1e-4
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    shampoo_beta: float | None = None
    eps: float = 1e-8
    period: int = 10
    init_factor: float = 0.1
    clamp: float | None = 4000.0
    inverse_roots: list[Tensor] = field(default_factory=list, init=False)

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        rows, cols = g.shape
        beta = self.betas[1] if self.shampoo_beta is None else self.shampoo_beta
        if self.t == 1:
            self.factors = [(1 - beta) * g @ g.mT / cols, (1 - beta) * g.mT @ g / rows]
            self.bases = self.bases or eigenbases(self.factors, g.shape)
            self.inverse_roots = [torch.ones(d).to(g) * self.init_factor**-0.5 for d in g.shape]
            return w
        (left, right), (root_a, root_b) = self.bases, self.inverse_roots
        a, b = (factor for factor in self.factors if factor is not None)
        self.m = ema(self.m, g, self.betas[0])
        n = rotate_back(self.inside(rotate(self.m, self.bases), rotate(g, self.bases)), self.bases)
        x = (g @ right) * root_b  # g B^-1/2, but for a rotation
        y = root_a[:, None] * (left.mT @ g)  # A^-1/2 g, likewise
        self.factors = [a, b] = [ema(a, x @ x.mT / cols, beta), ema(b, y.mT @ y / rows, beta)]
        self.inverse_roots = [
            self.tracked(root_a, (left.mT @ x).square().mean(1), beta),
            self.tracked(root_b, (y @ right).square().mean(0), beta),
        ]
        if (self.t - 1) % self.period == 0:
            self.bases = [power_step(a, left), power_step(b, right)]
        return (1 - self.lr * self.decay) * (w - self.lr * n)

    def inside(self, m: Tensor, g: Tensor) -> Tensor:
        """The step of a momentum in the eigenbases."""
        s = torch.outer(*self.inverse_roots)
        return m * s / (1 + self.eps * s)

    def tracked(self, root: Tensor, values: Tensor, beta: float) -> Tensor:
        new = ema(root**-2, values, beta) ** -0.5
        return new if self.clamp is None else new.clamp(max=max(10.0, min(len(new), self.clamp)))


@dataclass(kw_only=True)
class KLSOAP(KLShampoo):
    """As KLShampoo, but ``n = Q_A (Q_A' m Q_B / (sqrt(v) + eps)) Q_B'``.

    ``v <- EMA((Q_A' g Q_B)^2; b2)`` before the step, not from the first call, not corrected, and
    left as it is where the bases are refreshed. The same code, with ``using_klsoap``.
    """

    def inside(self, m: Tensor, g: Tensor) -> Tensor:
        self.v = ema(self.v, g.square(), self.betas[1])
        return m / (self.v.sqrt() + self.eps)


@dataclass(kw_only=True)
class SOAP(Rule):
    """``n = Q_L ((Q_L' m Q_R) / (sqrt(v) + eps)) Q_R'``, ``w <- w - lr sqrt(c2) / c1 n``; decay.

    The first call only sets ``L = (1 - bs) g g'``, ``R = (1 - bs) g' g`` and their eigenbases. Then
    k = t - 1: ``m <- EMA(g; b1)``, ``v <- EMA((Q_L' g Q_R)^2; b2)``, the step with c = 1 - b^k
    (both 1 without ``correct_bias``), the decay of the new weights, ``L <- EMA(g g'; bs)``, ``R``
    likewise, and at k mod period = 0 per side: columns of Q and that axis of v in the order of
    ``diag(Q' L Q)``, largest first, then ``Q <- qr(L Q)``. bs is ``shampoo_beta``, or b2. A side
    longer than ``max_precond_dim`` has no basis; vectors have none but with ``precondition_1d``.
    Vyas et al. (arXiv 2409.11321), as nikhilvyas/SOAP in float64.
    """

    lr: float = 3e-3
    decay: float = 0.01
    betas: tuple[float, float] = (0.95, 0.95)
    shampoo_beta: float | None = None
    eps: float = 1e-8
    period: int = 10
    max_precond_dim: int = 10000
    precondition_1d: bool = False
    correct_bias: bool = True

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        if w.ndim == 1:  # a column whose right side is left out
            return self.new_matrix(w[:, None], g[:, None], [self.precondition_1d, False])[:, 0]
        return self.new_matrix(w, g, [True, True])

    def new_matrix(self, w: Tensor, g: Tensor, wanted: list[bool]) -> Tensor:
        beta = self.betas[1] if self.shampoo_beta is None else self.shampoo_beta
        k = self.t - 1
        if k == 0:
            pairs = zip(wanted, g.shape, strict=True)
            kept = [ZERO if want and d <= self.max_precond_dim else None for want, d in pairs]
            self.factors = averaged(kept, g, beta)
            self.bases = self.bases or eigenbases(self.factors, g.shape)
            return w
        self.m = ema(self.m, g, self.betas[0])
        self.v = ema(self.v, rotate(g, self.bases).square(), self.betas[1])
        direction = rotate_back(rotate(self.m, self.bases) / (self.v.sqrt() + self.eps), self.bases)
        c1, c2 = (1 - beta**k if self.correct_bias else 1.0 for beta in self.betas)
        self.factors = averaged(self.factors, g, beta)
        if k % self.period == 0:
            self.refresh()
        return (1 - self.lr * self.decay) * (w - self.lr * math.sqrt(c2) / c1 * direction)

    def refresh(self) -> None:
        old, self.bases = self.bases, []
        for side, (factor, basis) in enumerate(zip(self.factors, old, strict=True)):
            if factor is not None:
                order = (basis.mT @ factor @ basis).diagonal().argsort(descending=True)
                self.v = self.v.index_select(side, order)
                basis = power_step(factor, basis[:, order])
            self.bases.append(basis)


@dataclass(kw_only=True)
class SPlus(Rule):
    """``w <- w - a Q_L sign(Q_L' m Q_R) Q_R'``, ``a = 2 lr / (rows + cols)``; decay, also times a.

    ``m <- EMA(g; b1)``; the bases, the identity at first, are of the calls before: ``L <- EMA(g g';
    b2)`` after use, and its eigenbasis at t = 1 and t mod period = 0, ``R`` likewise. ``average <-
    EMA(w; ema_rate)`` before the decay; ``eval_weights`` is ``average / (1 - ema_rate^t)``. A side
    of ``max_dim`` or more has no basis; ``a = lr nonstandard`` for all that is no matrix or has a
    side above ``max_dim``, and what is no matrix steps by ``sign(m)``. Frans et al. (arXiv
    2506.07254), as kvfrans/splus (PyTorch), whose 1e-30 I on a factor leaves its basis alone.
    """

    lr: float = 0.1
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    ema_rate: float = 0.999
    period: int = 100
    max_dim: int = 10000
    nonstandard: float = 0.001
    average: Tensor = field(default=ZERO, init=False)

    def new_weights(self, w: Tensor, g: Tensor) -> Tensor:
        self.m = ema(self.m, g, self.betas[0])
        standard = w.ndim == 2 and max(w.shape) <= self.max_dim
        size = self.lr * (2 / sum(w.shape) if standard else self.nonstandard)
        w = w - size * (self.matrix_sign(g) if w.ndim == 2 else self.m.sign())
        self.average = ema(self.average, w, self.ema_rate)
        return (1 - size * self.decay) * w

    def matrix_sign(self, g: Tensor) -> Tensor:
        if self.t == 1:
            self.factors = [0 * eye(size) if size < self.max_dim else None for size in g.shape]
            self.bases = self.bases or [eye(size) for size in g.shape]
        sign = rotate_back(rotate(self.m, self.bases).sign(), self.bases)
        self.factors = averaged(self.factors, g, self.betas[1])
        if self.t == 1 or self.t % self.period == 0:
            self.bases = eigenbases(self.factors, g.shape)
        return sign

    def eval_weights(self) -> Tensor:
        return self.average / (1 - self.ema_rate**self.t)
