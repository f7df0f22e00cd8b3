"""Chooses p of blocks on recording steps, on the device, from the chain's iterates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from schattor.adaptive.auto import AutoP
from schattor.adaptive.criteria import Factors, Forms, curve, factors, iterates, powers_of_grid
from schattor.adaptive.layers import LayerMoments
from schattor.adaptive.own import OwnMoments, Widths
from schattor.adaptive.statistics import InputMoments, OutputMoments
from schattor.adaptive.sums import Gram, mean_of

__all__ = ["Chooser", "Inputs", "Moments", "forms_of", "noise_moments"]

# From this aspect on products of the shorter side are fewer.
_WIDE = 1.5


class Inputs(NamedTuple):
    """Which inputs of its layer a block multiplies, on which side of the wide batch."""

    param: nn.Parameter
    block: int  # its place among the parameter's
    chosen: Tensor | None  # indices of the layer's inputs; None: all
    right: bool  # along the columns of the wide matrix
    outputs: Tensor | None = None  # indices of the layer's outputs; None: all


class Moments(NamedTuple):
    """Second moments of the inputs of some blocks ``[rows, cols]``, one a block."""

    found: Sequence[Tensor]  # [n, n] Axx; or, as roots, [rows, cols] N of Axx = N'N
    right: bool  # n = cols
    roots: bool = False  # only to the right
    behind: Tensor | None = None  # [batch, m, m] B on the other side; None: I. Not beside roots

    def curves(self, steps: Tensor) -> Tensor:
        """``<D_k Axx, B D_l>`` of ``D_k`` ``[batch, K+1, rows, cols]``."""
        left, right = self._sides(steps)
        weighed = steps if right is None else _times(steps, right.mT)
        return _inner(weighed, weighed if self.roots else _before(left, steps))

    def curves_of(self, chain: Factors) -> Tensor:
        """The same of ``D_k = P_k X_0``, by matrices of the shorter side."""
        left, right = self._sides(chain.first)
        between = chain.gram
        if right is not None:
            weighed = torch.bmm(chain.first, right.mT)
            between = torch.bmm(weighed, (weighed if self.roots else chain.first).mT)
        return _inner(_times(chain.found, between), _before(left, chain.found))

    def _sides(self, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What weighs a step from the left and from the right; None: I."""
        found = torch.stack([*self.found]).to(like.dtype)
        return (self.behind, found) if self.right else (found, self.behind)

    def eigenvalues(self) -> Tensor:
        """``[batch, n]``, or of roots those that are not 0; once for blocks that share a moment."""
        distinct = {id(each): each for each in self.found}
        found = torch.stack([*distinct.values()])
        if self.roots:
            found = torch.bmm(found, found.mT)
        values = torch.linalg.eigvalsh(found).clamp_min(0).double()
        of = dict(zip(distinct, values.unbind(), strict=True))
        return torch.stack([of[id(each)] for each in self.found])


def noise_moments(noise: Tensor, right: bool) -> Moments:
    """Second moments of inputs, up to factors, from the noise N ``[batch, rows, cols]`` of wide
    gradients: ``N'N``.

    A gradient is a sum of ``e x'`` over samples with residuals e; where these are independent of
    the inputs x, ``E N'N`` is proportional to ``E x x'``. Of the longer side nothing is squared.
    """
    if right:
        return Moments(noise.unbind(), True, roots=True)
    return Moments(torch.bmm(noise, noise.mT).unbind(), False)


def forms_of(
    x: Tensor,
    grads: Tensor,
    moments: Moments,
    outward: Callable[[Tensor], Tensor] | None,
    spectra: bool,
) -> Forms:
    """The forms of some blocks of one shape.

    Args:
        x: ``[batch, rows, cols]``, momenta in the coordinates of the norm, up to factors.
        grads: ``[batch, rows, cols]``, gradients, up to factors.
        moments: of the inputs.
        outward: from ``[batch, K+1, rows, cols]`` in those coordinates to steps of the weights;
            None: the coordinates are those of the weights.
        spectra: whether the norms and eigenvalues of the moments are wanted.
    """
    if outward is None and x.shape[2] >= _WIDE * x.shape[1]:
        chain = factors(x)
        falls = _inner(chain.found, torch.bmm(grads, chain.first.mT)[:, None])
        norms = _inner(chain.found, chain.gram[:, None]) if spectra else None
        curves = moments.curves_of(chain)
    else:
        found = iterates(x)
        steps = found if outward is None else outward(found)
        falls = _inner(steps, grads[:, None])
        norms = _inner(found, found[:, :1]) if spectra else None
        curves = moments.curves(steps)
    return Forms(
        falls[:, :, 0].double(),
        curves.double(),
        None if norms is None else norms[:, :, 0].double(),
        moments.eigenvalues() if spectra else None,
    )


def _before(moment: Tensor | None, matrices: Tensor) -> Tensor:
    """``B D_l`` of ``[batch, count, rows, cols]``."""
    return matrices if moment is None else torch.matmul(moment[:, None], matrices)


def _times(matrices: Tensor, by: Tensor) -> Tensor:
    """``[batch, count, rows, cols]`` times ``[batch, cols, n]`` from the right."""
    batch, count, _, cols = matrices.shape
    return torch.bmm(matrices.reshape(batch, -1, cols), by).view(batch, count, -1, by.shape[2])


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products ``[batch, k, l]`` of matrices ``[batch, k | l, rows, cols]``."""
    return torch.bmm(x.flatten(2), y.flatten(2).mT)


class Chooser:
    """Gathers statistics of a model's inputs for recording steps, and turns them into powers."""

    def __init__(self, auto: AutoP, params: Sequence[Widths], model: nn.Module | None) -> None:
        """``params`` are those whose p is chosen; without a model their inputs are handed over."""
        self.auto, self.model = auto, model
        self.powers = powers_of_grid(*auto.powers)
        self.history: list[tuple[int, list[str], Tensor]] = []
        self.sums: frozenset[int] = frozenset()
        """Groups whose momentum is a sum of gradients and no average."""
        self.due = False
        """Whether this step chooses."""
        self.was_fed = model is not None
        self._own = OwnMoments(params, auto.tokens)
        watched = [each.param for each in params]
        self._hooked = None if model is None else InputMoments(model, watched, tokens=auto.tokens)
        self._behind = (
            OutputMoments(model, watched, tokens=auto.tokens)
            if model is not None and self.from_both_sides
            else None
        )
        self._means: dict[Any, tuple[tuple[Gram, ...], Tensor]] = {}
        self._taken: int | None = None

    @property
    def from_gradients(self) -> bool:
        """Whether the gradients' noise takes the place of inputs."""
        return self.auto.statistics == "gradients"

    @property
    def from_both_sides(self) -> bool:
        """Whether gradients of outputs stand beside inputs."""
        return self.auto.statistics == "kfac"

    def start(self, taken: int) -> None:
        """Steps that were taken before; recordings begin, or go on from there."""
        self._taken = taken
        self._record()

    def advance(self) -> None:
        """A step was taken; watch the next, if it records."""
        assert self._taken is not None
        self._taken += 1
        self._record()

    def _record(self) -> None:
        assert self._taken is not None
        self.due = self.auto.is_due(self._taken)
        self._own.clear()
        self._means.clear()
        for each in self._all_hooked():
            each.clear()
            each.record(self.due)

    def _all_hooked(self) -> list[LayerMoments]:
        return [each for each in (self._hooked, self._behind) if each is not None]

    def covers(self, param: nn.Parameter) -> bool:
        """Whether the inputs of the parameter's layer can be watched."""
        return self._hooked is not None and self._hooked.covers(param)

    def is_turned(self, param: nn.Parameter) -> bool:
        """Whether the layer that is covered has its inputs along the rows of its weight."""
        return self._hooked is not None and self._hooked.turned(param)

    def observe(self, who: str, param: Any, inputs: Any, block: Any) -> None:
        """Add samples to what this step's choice is made from; nothing on other steps."""
        self._own.check(who, param, inputs, block)
        self.was_fed = True
        if self.due:
            self._own.add(param, inputs, block)

    def reduce(self) -> None:
        """The same moments on every rank; gradients are, as they are given."""
        if self.from_gradients:
            return
        self._own.reduce()
        for each in self._all_hooked():
            each.reduce()

    def moment(self, inputs: Inputs) -> Tensor | None:
        """``[n, n]`` of what a block multiplies; the same tensor for all that saw the same."""
        hooked = None if self._hooked is None else self._hooked.gram(inputs.param)
        grams = [gram for gram in (hooked, self._own.whole(inputs.param)) if gram is not None]
        if inputs.chosen is not None:
            grams = [Gram(total[inputs.chosen][:, inputs.chosen], count) for total, count in grams]
        own = self._own.of_block(inputs.param, inputs.block)
        grams += [] if own is None else [own]
        if not grams:
            return None
        key = tuple(id(gram.total) for gram in grams)
        if key not in self._means:  # kept with the sums, so that no other takes their place
            self._means[key] = tuple(grams), mean_of(grams)
        return self._means[key][1]

    def moment_behind(self, inputs: Inputs) -> Tensor | None:
        """``[m, m]`` of the gradients at a block's outputs."""
        gram = None if self._behind is None else self._behind.gram(inputs.param)
        if gram is None:
            return None
        if inputs.outputs is not None:
            gram = Gram(gram.total[inputs.outputs][:, inputs.outputs], gram.number)
        return mean_of([gram])

    def averages(self, group_index: int, momentum: Tensor, taken: Tensor) -> Tensor:
        """Factors ``[batch]`` that make averages of the gradients so far of momentum buffers."""
        weight = (1 - momentum) if group_index in self.sums else torch.ones_like(momentum)
        return weight / (1 - momentum**taken).clamp_min(torch.finfo(taken.dtype).tiny)

    def choose(
        self,
        x: Tensor,
        grads: Tensor,
        moments: Moments,
        outward: Callable[[Tensor], Tensor] | None,
        past: Tensor,
        index: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Smoothed curves ``[batch, powers]`` of some blocks, and their places on the grid.

        Both stay where nothing descends; ``past`` is NaN at first.
        """
        spectra = self.auto.criterion != "tightness"
        forms = forms_of(x, grads, moments, outward, spectra)
        now = curve(self.auto.criterion, forms, self.powers)
        sound = now.isfinite().any(1)
        # Curves are known up to a factor of the gradients' size: only their shape is averaged, not
        # its logarithm, in which one recording of low rank would outweigh many that follow.
        now = (now - now.amax(1, keepdim=True)).exp()
        kept = self.auto.smoothing
        smooth = torch.where(past.isnan(), now, kept * past + (1 - kept) * now)
        best = smooth.argmax(1)
        held = smooth.gather(1, index[:, None])[:, 0]
        moves = sound & (smooth.amax(1) > (1 + self.auto.hysteresis) * held)
        return torch.where(sound[:, None], smooth, past), torch.where(moves, best, index)

    def remember(self, names: list[str], powers: Tensor) -> None:
        """Keep the powers of some blocks for the history; they are read when somebody asks."""
        assert self._taken is not None
        self.history.append((self._taken, names, powers.clone()))
