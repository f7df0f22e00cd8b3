"""Coordinates that turn: gradients and moments in the eigenbases of Kronecker factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from schattor import ops
from schattor.optim._factors import Factors, Index, Raw, Side, eigenpairs, index_of
from schattor.optim._settings import Group
from schattor.theory.preconditioners import Preconditioner

__all__ = ["Bases"]

# Entries of a rotated matrix below this many roundings of its norm are those of a zero.
_ROUNDING = 4

Turn = tuple[Tensor | None, Tensor | None]


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

    def rotated(self, chunk: slice, wide: Tensor) -> Tensor:
        """``Q_L' X Q_R`` of matrices of norm 1; what is only rounding is 0.

        A weight or a sign would make of it an entry like any other.
        """
        if self.rows is not None:
            wide = torch.bmm(self.rows.frame[chunk].mT, wide)
        if self.cols is not None:
            wide = torch.bmm(wide, self.cols.frame[chunk])
        return hardshrink(wide, _ROUNDING * torch.finfo(wide.dtype).eps)

    def rotated_back(self, chunk: slice, x: Tensor) -> Tensor:
        """``Q_L X Q_R'``."""
        x = x.to(self.dtype)
        if self.rows is not None:
            x = torch.bmm(self.rows.frame[chunk], x)
        return x if self.cols is None else torch.bmm(x, self.cols.frame[chunk].mT)

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
        if self.spec.weights == "tracked":
            self._track(chunk, raw, inside, taken[chunk], group)
        else:
            self.average(chunk, raw, group)
        due = self.due(chunk, group)
        fresh = [i for i in due if self.spec.basis == "eigh" or self.is_first(i)]
        stepped = [i for i in due if not (self.spec.basis == "eigh" or self.is_first(i))]
        for blocks in (fresh, stepped):
            if blocks:
                index = index_of(blocks, chunk, taken.device)
                places = [i - chunk.start for i in blocks]
                kept = raw.finite.logical_not()[places][:, None, None]
                sides = (self.rows, self.cols)
                turns = [self._turned(side, index, kept, blocks is fresh) for side in sides]
                _turn([momenta[i] for i in places] if momenta else [], kept, turns)
                self._permute(index, [squares[i] for i in places] if squares else [], kept, turns)

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
            return scale[:, :, None] * torch.bmm(basis.mT, wide), scale[:, :, None] * inside
        return torch.bmm(wide, basis) * scale[:, None, :], inside * scale[:, None, :]

    def _turned(self, side: Side | None, index: Index, kept: Tensor, fresh: bool) -> Turn:
        """Refresh a side's basis: ``Q_new' Q_old``, and the order that the old columns were put in.

        Fresh ones are all eigenvectors, others one power step ``qr(F Q)``, before which SOAP sorts
        the columns by ``diag(Q' F Q)``. Where ``kept``, for a gradient that is not finite, the
        basis stays.
        """
        if side is None:
            return None, None
        old, factor, order = side.frame[index], side.factor[index], None
        if fresh:
            _, new, failed = eigenpairs(factor)
            self.failed += len(failed)
            new[failed] = old[failed]
        else:
            product = torch.bmm(factor, old)
            if self.spec.weights == "moments":
                values = (old * product).sum(-2)
                order = values.argsort(dim=-1, descending=True, stable=True)
                product = product.gather(-1, order[:, None, :].expand_as(product))
            new = torch.linalg.qr(product)[0]
        turn = torch.bmm(new.mT, old)  # before `old`, a view, is written
        side.frame[index] = torch.where(kept, old, new)
        return turn, order

    def _permute(
        self, index: Index, squares: list[Tensor], kept: Tensor, turns: list[Turn]
    ) -> None:
        """Second moments in the order of their sorted bases; they do not turn."""
        (_, rows), (_, cols) = turns
        for i, each in enumerate(squares):
            moved = each if rows is None else each.index_select(0, rows[i])
            moved = moved if cols is None else moved.index_select(1, cols[i])
            each.copy_(torch.where(kept[i], each, moved))
        for mean, order in zip(self._means, (rows, cols), strict=True):
            if mean is not None and order is not None:
                old = mean[index]
                mean[index] = torch.where(kept[:, 0], old, old.gather(-1, order))


def _turn(x: list[Tensor], kept: Tensor, turns: list[Turn]) -> None:
    """``T_L x T_R'`` in place of moments whose bases have turned."""
    (rows, _), (cols, _) = turns
    like = cols if rows is None else rows
    if x and like is not None:
        old = torch.stack([each.to(like.dtype) for each in x])
        new = old if rows is None else torch.bmm(rows, old)
        new = new if cols is None else torch.bmm(new, cols.mT)
        noise = _ROUNDING * torch.finfo(new.dtype).eps * new.norm(dim=(1, 2), keepdim=True)
        new = new * (new.abs() > noise)
        torch._foreach_copy_(x, list(torch.where(kept, old, new).unbind()))
