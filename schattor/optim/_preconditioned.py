"""The one place where a norm is preconditioned: gradients in, directions back, statistics learned.

A bucket with a preconditioner steps in other coordinates: its gradients are rotated into the
eigenbases of their Kronecker factors, where moments live, the oracle sees ``w * M``, and its
direction is weighed and rotated back. See :mod:`schattor.theory.preconditioners` for the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from schattor import ops
from schattor.blocks import block_shapes, column_order
from schattor.directions import Directions
from schattor.optim._bases import Bases
from schattor.optim._entries import suffixes, zeros_as
from schattor.optim._factored import Factored, Means
from schattor.optim._factors import Raw, Side
from schattor.optim._roots import Roots
from schattor.optim._settings import Group
from schattor.portable import scalar_dtype, share_of
from schattor.theory.preconditioners import PRECONDITIONERS, Preconditioner

__all__ = [
    "Entered",
    "Preconditioned",
    "create_statistics",
    "keeps_squares",
    "preconditioner_of",
    "statistics_shapes",
    "work_dtype",
]

# Beyond this norm squares of a float32 gradient may leave float32 where factors sum them.
_LARGEST_NORM = 1e18


class Entered(NamedTuple):
    """Gradients of a chunk in the coordinates of the norm."""

    grads: list[Tensor]
    raw: Raw | None = None  # as they came, where there are bases
    inside: Tensor | None = None  # the gradients in one batch, where there are bases
    means: Means | None = None  # of their squares, where second moments are factored


def preconditioner_of(group: Group) -> Preconditioner | None:
    """The row of the table that a matrix group names."""
    name = group["preconditioner"]
    return None if name is None or group["rule"] != "matrix" else PRECONDITIONERS[name]


def keeps_squares(group: Group) -> bool:
    """Whether a group has a second moment of every entry."""
    spec = preconditioner_of(group)
    return spec is not None and spec.weights == "moments" and group["second_moment"] == "full"


def statistics_shapes(shape: Sequence[int], group: Group) -> dict[str, tuple[int, ...]]:
    """Shapes of the statistics of a parameter's blocks, by key; rows are a block's shorter side."""
    spec = preconditioner_of(group)
    if spec is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    blocks = block_shapes(shape, group.get("blocks"))
    for block, suffix in zip(blocks, suffixes(len(blocks)), strict=True):
        for side, size in (("rows", min(block)), ("cols", max(block))):
            if spec.basis and size <= group["max_precond_dim"]:
                frame = "root" if spec.weights == "roots" else "basis"
                shapes[f"factor_{side}{suffix}"] = shapes[f"{frame}_{side}{suffix}"] = (size, size)
                if spec.whitens:
                    shapes[f"scale_{side}{suffix}"] = (size,)
            if spec.weights == "moments" and group["second_moment"] == "factored":
                shapes[f"square_{side}{suffix}"] = (size,)
    return shapes


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of statistics: float64 for float64 parameters, else float32, also for half ones."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def create_statistics(param: Tensor, entry: dict[str, Any], group: Group) -> None:
    """What a parameter's state holds beside its momentum, where it is not there yet."""
    dtype = work_dtype(param.dtype)
    if group["scale"] == "adam" and "graft_sq" not in entry:
        entry["graft_sq"] = zeros_as(param, dtype)
    if keeps_squares(group) and "exp_avg_sq" not in entry:
        entry["exp_avg_sq"] = zeros_as(param, dtype)
    shapes, order = statistics_shapes(param.shape, group), column_order(param, group.get("blocks"))
    if shapes and len(order) > 1 and "columns" not in entry:
        entry["columns"] = torch.tensor(order, device=param.device)
    for key, shape in shapes.items():
        if key.startswith(("basis", "root")) and key not in entry:
            entry[key] = torch.eye(shape[0], dtype=dtype, device=param.device)
        elif key not in entry:
            begin = torch.ones if key.startswith("scale") else torch.zeros
            entry[key] = begin(shape, dtype=dtype, device=param.device)


class Preconditioned:
    """The coordinates and weights of one bucket.

    ``squares`` are views of second moments, one a block, as the bucket has them; what else a block
    has lies in batches ``[batch, ...]``, of which the entries of the state are views. ``exponents``
    of the weights ``[batch]`` belong to the blocks' powers, and are written where those are.
    """

    def __init__(self, spec: Preconditioner, device: torch.device) -> None:
        """Empty: fill ``squares``, then ``join`` the blocks."""
        self.spec = spec
        self.squares: list[Tensor] = []
        self.bases: Bases | None = None
        self.roots: Roots | None = None
        numbers = torch.zeros(2, dtype=scalar_dtype(device), device=device)
        self.beta, self._still = numbers.unbind()
        self.exponents = numbers[:0]
        self._taken = numbers[:0]
        self._factored: Factored | None = None
        self._followed = math.nan
        self._corrects = False
        self._power = math.nan

    @property
    def factors(self) -> Bases | Roots | None:
        """The Kronecker factors, where there are any."""
        return self.bases or self.roots

    def join(self, found: dict[str, Tensor], taken: Tensor, ages: list[int]) -> None:
        """Take the statistics of all blocks, side by side.

        ``taken`` are the steps that each block has taken ``[batch]``, which the caller advances;
        ``ages`` are the same when the blocks are joined.
        """
        self._taken = taken
        means = found.get("square_rows"), found.get("square_cols")
        mean_rows, mean_cols = means
        if mean_rows is not None and mean_cols is not None:
            self._factored = Factored(Means(mean_rows, mean_cols))
        rows, cols = self._side(found, "rows"), self._side(found, "cols")
        if rows is None and cols is None:
            return
        if self.spec.weights == "roots":
            self.roots = Roots(self.spec, rows, cols, ages)
        else:
            self.bases = Bases(self.spec, rows, cols, ages, means)

    def _side(self, found: dict[str, Tensor], name: str) -> Side | None:
        frame = "root" if self.spec.weights == "roots" else "basis"
        factor, frames = found.get(f"factor_{name}"), found.get(f"{frame}_{name}")
        if factor is None or frames is None:
            return None
        return Side(name == "cols", factor, frames, found.get(f"scale_{name}"))

    def follow(self, group: Group, power: float) -> None:
        """Take the group's numbers of this step."""
        beta = float(group["betas"][1])
        if beta != self._followed:
            self.beta.fill_(beta)
            self._followed = beta
        self._power = power
        wanted = group["bias_correction"]
        self._corrects = self.spec.corrects if wanted is None else wanted

    # ---- One step, in this order; the caller finds the direction and writes the weights. ----

    def enter(self, chunk: slice, grads: list[Tensor], group: Group) -> Entered:
        """Gradients in the coordinates of the norm."""
        entered = Entered(grads)
        if self.factors is not None:
            raw = self._raw(grads, self.factors.dtype)
            entered = entered._replace(raw=raw)
            if self.roots is not None:
                self.roots.learn(chunk, raw, self._taken, group)
        if self.bases is not None:
            inside = self.bases.rotated(chunk, raw)
            entered = Entered(list(inside.unbind()), raw, inside)
        if self._factored is not None:
            entered = entered._replace(means=self._factored.met(entered.grads))
        return entered

    def _raw(self, grads: list[Tensor], dtype: torch.dtype) -> Raw:
        device = self.beta.device
        wide = torch.empty((len(grads), *grads[0].shape), dtype=dtype, device=device)
        norms = torch.empty(len(grads), dtype=self.beta.dtype, device=device)
        finite = torch.empty(len(grads), dtype=torch.bool, device=device)
        ops.gather_momentum(grads, [], self._still, False, False, 1.0, wide, norms, finite)
        if dtype == torch.float32:
            finite &= norms < _LARGEST_NORM
            norms *= finite
        return Raw(wide, norms, finite)

    def gather(
        self,
        chunk: slice,
        entered: Entered,
        momenta: list[Tensor],
        momentum: Tensor,
        group: Group,
        size: float,
        wide: Tensor,
        norms: Tensor,
        finite: Tensor,
    ) -> Tensor | None:
        """``w * M`` as a wide batch, where `ops.gather_momentum` has ``M``; returns the weights."""
        rule = (momentum, group["momentum_form"] == "ema", group["nesterov"])
        weights = None
        if self.roots is not None:
            self._gather_between_roots(chunk, entered, momenta, rule, size, wide, norms, finite)
        elif self.spec.weights in ("", "roots"):
            ops.gather_momentum(entered.grads, momenta, *rule, size, wide, norms, finite)
        else:
            corrections, eps = self._corrections(chunk, group)
            lists = [each[0] for each in (entered.grads, momenta, self.squares) if each]
            weights = self._weights(chunk, entered, corrections, eps, wide.shape)
            weights = weights.to(_compute_dtype(*lists, wide))
            ops.gather_weighted(
                entered.grads,
                momenta,
                self.squares[chunk],
                *rule,
                self.beta,
                corrections,
                eps,
                self.spec.root,
                self.exponents[chunk],
                size,
                weights,
                wide,
                norms,
                finite,
            )
        if entered.raw is not None:
            finite &= entered.raw.finite
        if self._corrects and momenta and rule[1]:
            norms /= share_of(momentum ** (self._count(chunk) + rule[2]))
        return weights

    def _gather_between_roots(
        self,
        chunk: slice,
        entered: Entered,
        momenta: list[Tensor],
        rule: tuple[Tensor, bool, bool],
        size: float,
        wide: Tensor,
        norms: Tensor,
        finite: Tensor,
    ) -> None:
        """``S_L M S_R``; at p = 2 only ``M``, since both pairs of roots are applied at the end."""
        if self._power == 1:
            ops.gather_momentum(entered.grads, momenta, *rule, size, wide, norms, finite)
            return
        assert self.roots is not None
        whole = torch.empty(wide.shape, dtype=self.roots.dtype, device=wide.device)
        outside = torch.empty_like(norms)
        ops.gather_momentum(entered.grads, momenta, *rule, 1.0, whole, outside, finite)
        between = list(self.roots.applied(chunk, whole).unbind())
        sound = torch.empty_like(finite)
        ops.gather_momentum(between, [], self._still, False, False, size, wide, norms, sound)
        norms *= outside

    def moving(self, chunk: slice, finite: Tensor) -> Tensor:
        """Which blocks move: those that are finite, after calls that only gather statistics."""
        return finite & (self._taken[chunk] >= self.spec.warm) if self.spec.warm else finite

    def started(self, chunk: slice, group: Group) -> list[bool]:
        """Which blocks have weights of their own yet: Shampoo's roots come with a first refresh."""
        if self.roots is not None:
            return self.roots.started(chunk, group)
        return [True] * (chunk.stop - chunk.start)

    def leave(self, chunk: slice, found: Directions, weights: Tensor | None) -> Directions:
        """The direction in the coordinates of the weights; inner products stay those inside."""
        direction, square = found.direction, found.square
        if self.roots is not None:
            return self._leave_roots(chunk, found)
        if weights is not None:
            square, direction = ops.weigh(weights, direction), weights
        if self.bases is not None:
            direction = self.bases.rotated_back(chunk, direction)
        return found._replace(direction=direction, square=square)

    def outward(self, block: int, x: Tensor, weights: Tensor | None) -> Tensor:
        """Matrices ``[..., rows, cols]`` in the coordinates of one block's norm, as its steps."""
        x = x if weights is None else x * weights
        return x if self.factors is None else self.factors.outward(block, x)

    def _leave_roots(self, chunk: slice, found: Directions) -> Directions:
        assert self.roots is not None
        if self._power != 1:
            direction = self.roots.applied(chunk, found.direction)
            return found._replace(direction=direction, square=_squares(direction))
        # |S_L M S_R|_F^2 is the inner product of M and its direction.
        direction = self.roots.applied_twice(chunk, found.direction)
        inner = ops.inner_products(found.direction, direction)
        return Directions(direction, inner, _squares(direction), inner.clamp_min(0).sqrt())

    def learn(
        self, chunk: slice, entered: Entered, momenta: list[Tensor], finite: Tensor, group: Group
    ) -> None:
        """Take the gradients into what the next step knows."""
        if self._factored is not None and entered.means is not None:
            self._factored.learn(chunk, entered.means, self.beta, finite)
        if self.bases is not None:
            assert entered.raw is not None and entered.inside is not None
            squares = [*self.squares[chunk]]
            self.bases.learn(
                chunk, entered.raw, entered.inside, momenta, squares, self._taken, group
            )

    def advance(self) -> None:
        """One step was taken."""
        if self.factors is not None:
            self.factors.advance()

    def _count(self, chunk: slice) -> Tensor:
        """The member's own number of each block's step, from 1."""
        return (self._taken[chunk] + (1 - self.spec.warm)).clamp_min(1)

    def _corrections(self, chunk: slice, group: Group) -> tuple[Tensor, Tensor]:
        """``c = 1 - beta^t`` of each block (1 for a sum, or uncorrected), and its eps."""
        count = self._count(chunk)
        corrections = share_of(self.beta**count) if self._corrects else torch.ones_like(count)
        eps = torch.full_like(corrections, group["eps"])
        return corrections, eps / corrections**self.spec.root if self.spec.eps_first else eps

    def _weights(
        self,
        chunk: slice,
        entered: Entered,
        corrections: Tensor,
        eps: Tensor,
        shape: Sequence[int],
    ) -> Tensor:
        """Weights as a wide batch; where second moments are whole, only the memory for them."""
        if self._factored is not None and entered.means is not None:
            numbers = (self.beta, corrections, eps, self.spec.root, self.exponents[chunk])
            return self._factored.weights(chunk, entered.means, *numbers)
        if self.spec.weights == "moments":
            dtype = work_dtype(self.squares[0].dtype)
            return torch.empty(shape, dtype=dtype, device=eps.device)
        if self.bases is None:  # both sides are too long for factors
            return torch.ones(shape, device=eps.device)
        return self.bases.weights(chunk, eps, shape)


def _squares(x: Tensor) -> Tensor:
    return ops.inner_products(x, x)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    """What `ops.gather_weighted` computes in, and its weights are: float64 if any of these is."""
    doubles = any(each.dtype == torch.float64 for each in tensors)
    return torch.float64 if doubles else torch.float32
