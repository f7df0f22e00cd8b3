"""Coordinates that turn: gradients and moments in the eigenbases of Kronecker factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schattor import ops
from schattor.optim._factors import Factors, Index, Raw, Side, eigenpairs, index_of
from schattor.optim._settings import Group
from schattor.portable import scalar_dtype
from schattor.theory.preconditioners import Preconditioner

__all__ = ["Bases"]

# The bases of rows and columns, or None where a side has none.
Frames = tuple[Tensor | None, Tensor | None]

# Entries of a rotated matrix below this many roundings of its norm are those of a zero.
_ROUNDING = 4


class Bases(Factors):
    """``Q_L' X Q_R``; a side that is not present stays."""

    def __init__(
        self,
        spec: Preconditioner,
        rows: Side | None,
        cols: Side | None,
        ages: list[int],
        means: tuple[Tensor | None, Tensor | None],
    ) -> None:
        """The bases are the frames of the sides; ``means`` of factored second moments, by side."""
        super().__init__(spec, rows, cols, ages)
        self._means = means

    def rotated(self, chunk: slice, raw: Raw) -> Tensor:
        """``Q_L' G Q_R``; what is only rounding is 0.

        A weight or a sign would make of it an entry like any other.
        """
        least = torch.full_like(raw.norms, _ROUNDING * torch.finfo(raw.wide.dtype).eps)
        return ops.rotate(raw.wide, *self._frames(chunk), least=least, scale=raw.norms)

    def rotated_back(self, chunk: slice, x: Tensor) -> Tensor:
        """``Q_L X Q_R'``."""
        return ops.rotate(x.to(self.dtype), *self._frames(chunk), back=True)

    def _frames(self, index: Index) -> Frames:
        rows, cols = self.rows, self.cols
        left = None if rows is None else rows.frame[index]
        return left, None if cols is None else cols.frame[index]

    def weights(self, chunk: slice, eps: Tensor, shape: Sequence[int]) -> Tensor:
        """``w^2 = s / (1 + eps s)`` of the product s of both sides' inverse roots."""
        product: Tensor | None = None
        for side in self.present:
            assert side.scale is not None
            scale = side.scale[chunk]
            scale = scale[:, None, :] if side.right else scale[:, :, None]
            product = scale if product is None else product * scale
        assert product is not None
        damped = product / (1 + eps.to(product.dtype)[:, None, None] * product)
        return damped.sqrt().expand(*shape).contiguous()

    def learn(
        self,
        chunk: slice,
        raw: Raw,
        inside: Tensor,
        momenta: list[Tensor],
        squares: list[Tensor],
        taken: Tensor,
        group: Group,
    ) -> None:
        """Take gradients into the factors, and refresh bases that are due.

        Moments live in the bases and turn with them; second moments follow their order alone.
        """
        if self.spec.whitens:
            self._track(chunk, raw, inside, taken[chunk], group)
        else:
            self.average(chunk, raw, group)
        due = self.due(chunk, group)
        fresh = [i for i in due if self.spec.basis == "eigh" or self.is_first(i)]
        stepped = [i for i in due if not (self.spec.basis == "eigh" or self.is_first(i))]
        for blocks in (fresh, stepped):
            if blocks:
                index = index_of(blocks, taken.device)
                places = [i - chunk.start for i in blocks]
                chosen = (
                    [momenta[i] for i in places] if momenta else [],
                    [squares[i] for i in places] if squares else [],
                )
                self._refresh(index, _kept(raw.finite[places]), *chosen, blocks is fresh)

    def _refresh(
        self,
        index: Index,
        kept: Tensor | None,
        momenta: list[Tensor],
        squares: list[Tensor],
        fresh: bool,
    ) -> None:
        """New bases, and the moments in them; blocks that are ``kept`` stay as they are."""
        sides = (self.rows, self.cols)
        old = self._frames(index)
        new: list[Tensor | None] = [None, None]
        orders = [*new]
        for i, (side, basis) in enumerate(zip(sides, old, strict=True)):
            if side is not None and basis is not None:
                found, orders[i] = self._turned(side, index, basis, fresh)
                new[i] = _unless(kept, basis, found)
        _turn(momenta, kept, old, (new[0], new[1]))
        self._permute(index, squares, kept, orders)
        for side, turned in zip(sides, new, strict=True):
            if side is not None and turned is not None:
                side.frame[index] = turned

    def _track(self, chunk: slice, raw: Raw, inside: Tensor, taken: Tensor, group: Group) -> None:
        """Factors of gradients whitened on their other side; running eigenvalues in the bases.

        With inverse roots r of both: ``A <- b A + (1-b) (G Q_B r_b)(...)'/n``, and
        ``1/r_a^2 <- b/r_a^2 + (1-b) mean_j (H_ij r_b,j)^2`` of ``H = Q_A' G Q_B``; B likewise.
        """
        decay, share = self.rates(raw, group)
        whitened = [self._whitened(chunk, side, raw.wide, inside) for side in self.present]
        for side, (x, h) in zip(self.present, whitened, strict=True):
            assert side.scale is not None
            length = x.shape[1] if side.right else x.shape[2]
            ops.average_grams(side.factor[chunk], x, side.right, decay, share / length)
            scale, d = side.scale[chunk], side.factor.shape[-1]
            rate = decay.to(scale.dtype)[:, None]
            met = h.square().mean(1 if side.right else 2)
            # At decay 1 (a gradient that is not finite) the mean is not looked at.
            tracked = rate / scale.square() + torch.where(rate == 1, 0.0, (1 - rate) * met)
            tracked = tracked.rsqrt().clamp_max(max(10.0, min(d, group["max_clamp"])))
            beginning = group["init_factor"] ** -0.5
            scale.copy_(torch.where(taken[:, None] == 0, beginning, tracked))

    def _whitened(
        self, chunk: slice, side: Side, wide: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``G Q_B r_b``, ``H r_b`` for the rows; ``r_a Q_A' G``, ``r_a H`` for the columns."""
        other = self.rows if side.right else self.cols
        if other is None:
            return wide, inside
        assert other.scale is not None
        scale, basis = other.scale[chunk], other.frame[chunk]
        if side.right:
            scale = scale[:, :, None]
            return scale * ops.rotate(wide, basis, None), scale * inside
        scale = scale[:, None, :]
        return ops.rotate(wide, None, basis) * scale, inside * scale

    def _turned(
        self, side: Side, index: Index, old: Tensor, fresh: bool
    ) -> tuple[Tensor, Tensor | None]:
        """A side's new basis, and the order that the old one's columns were put in.

        Fresh ones are all eigenvectors, others one power step ``qr(F Q)``, before which SOAP sorts
        the columns by ``diag(Q' F Q)``; whitened factors keep theirs in place.
        """
        factor = side.factor[index]
        if fresh:
            _, vectors, failed = eigenpairs(factor)
            self.failed += len(failed)
            new = vectors.flip(-1)
            new[failed] = old[failed]
            return new, None
        sort = self.spec.weights == "moments" and not self.spec.whitens
        new, order = ops.power_step(factor, old, sort)
        return new, order if sort else None

    def _permute(
        self,
        index: Index,
        squares: list[Tensor],
        kept: Tensor | None,
        orders: list[Tensor | None],
    ) -> None:
        """Second moments in the order of their sorted bases; they do not turn."""
        rows, cols = orders
        if rows is None and cols is None:
            return
        for i, each in enumerate(squares):
            moved = each if rows is None else each.index_select(0, rows[i])
            moved = moved if cols is None else moved.index_select(1, cols[i])
            each.copy_(_unless(None if kept is None else kept[i], each, moved))
        for mean, order in zip(self._means, orders, strict=True):
            if mean is not None and order is not None:
                old = mean[index]
                own = None if kept is None else kept[:, 0]
                mean[index] = _unless(own, old, old.gather(-1, order))


def _kept(finite: Tensor) -> Tensor | None:
    """``[batch, 1, 1]``, which blocks stay for a gradient that is not finite; None: none does.

    A GPU is not asked: every block may.
    """
    if finite.is_cpu and finite.all():
        return None
    return finite.logical_not()[:, None, None]


def _unless(kept: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    return new if kept is None else torch.where(kept, old, new)


def _turn(x: list[Tensor], kept: Tensor | None, old: Frames, new: Frames) -> None:
    """Moments in new bases, ``Q_new' Q_old x (...)'``, by way of the old coordinates, in place."""
    like = old[1] if old[0] is None else old[0]
    if not x or like is None:
        return
    stayed = torch.stack([each.to(like.dtype) for each in x])
    norms = stayed.norm(dim=(1, 2)).to(scalar_dtype(stayed.device))
    noise = _ROUNDING * torch.finfo(stayed.dtype).eps * norms
    moved = ops.rotate(ops.rotate(stayed, *old, back=True), *new, least=noise)
    torch._foreach_copy_(x, list(_unless(kept, stayed, moved).unbind()))
