"""Chooses p of blocks on recording steps, on the device, from the chain's iterates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from schattor.adaptive.auto import AutoP
from schattor.adaptive.criteria import curve, powers_of_grid
from schattor.adaptive.forms import forms_of
from schattor.adaptive.layers import LayerMoments
from schattor.adaptive.moments import Moments
from schattor.adaptive.own import OwnMoments, Widths
from schattor.adaptive.products import Products
from schattor.adaptive.samples import Samples, joined
from schattor.adaptive.statistics import InputMoments, OutputMoments

__all__ = ["Chooser", "Inputs"]


class Inputs(NamedTuple):
    """Which inputs of its layer a block multiplies, on which side of the wide batch."""

    param: nn.Parameter
    block: int  # its place among the parameter's
    chosen: Tensor | None  # indices of the layer's inputs; None: all
    right: bool  # along the columns of the wide matrix
    outputs: Tensor | None = None  # indices of the layer's outputs; None: all


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
        self._hooked: InputMoments | None = None
        self._behind: OutputMoments | None = None
        self._products: Products | None = None
        if model is not None:
            watched = [each.param for each in params]
            self._hooked = InputMoments(model, watched, tokens=auto.tokens)
            if self.from_both_sides:
                self._behind = OutputMoments(model, watched, tokens=auto.tokens)
            else:
                others = [each for each in params if not self._hooked.covers(each.param)]
                self._products = Products(model, others, self._own, auto.tokens)
        self._unseen: list[tuple[str, Tensor]] = []
        self.tells_unseen = True
        """Whether blocks whose inputs were not seen are to be told of."""
        self.taken = 0
        """Steps that were taken."""
        self.at_rest = False
        """Whether nothing is to be chosen any more."""

    @property
    def from_gradients(self) -> bool:
        """Whether the gradients' noise takes the place of inputs."""
        return self.auto.statistics == "gradients"

    @property
    def from_both_sides(self) -> bool:
        """Whether gradients of outputs stand beside inputs."""
        return self.auto.statistics == "kfac"

    def start(self, taken: int, *, wanted: bool = True) -> None:
        """Steps that were taken before; recordings begin, or go on from there, where wanted."""
        self.taken = taken
        self._record(wanted)

    def advance(self, *, wanted: bool) -> None:
        """A step was taken; watch the next, if it records and any p is to be chosen."""
        self.start(self.taken + 1, wanted=wanted)

    def pause(self) -> None:
        """Choose nothing in the next step."""
        self._record(False)

    def _record(self, wanted: bool) -> None:
        if self.due:
            for moments in self._all_moments():
                moments.clear()
        self.due = wanted and not self.at_rest and self.auto.is_due(self.taken)
        for recorder in (self._hooked, self._behind, self._products):
            if recorder is not None:
                recorder.record(self.due)

    def _all_moments(self) -> list[OwnMoments | LayerMoments]:
        return [each for each in (self._own, self._hooked, self._behind) if each is not None]

    def knows(self, param: Tensor) -> bool:
        """Whether this is one of the parameters whose p is chosen."""
        return self._own.knows(param)

    def covers(self, param: nn.Parameter) -> bool:
        """Whether what the parameter multiplies can be watched."""
        return any(each and each.covers(param) for each in (self._hooked, self._products))

    def is_turned(self, param: nn.Parameter) -> bool | None:
        """Whether the parameter's layer has its inputs along the rows; None: it has no layer."""
        return None if self._hooked is None else self._hooked.turned(param)

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
        for moments in self._all_moments():
            moments.reduce()

    def samples(self, inputs: Inputs) -> Samples | None:
        """Of what a block multiplies; the same object for all that saw the same."""
        hooked = None if self._hooked is None else self._hooked.samples(inputs.param)
        found = [each for each in (hooked, self._own.whole(inputs.param)) if each is not None]
        if inputs.chosen is not None:
            found = [each.at(inputs.chosen) for each in found]
        own = self._own.of_block(inputs.param, inputs.block)
        found += [] if own is None else [own]
        return joined(found) if found else None

    def samples_behind(self, inputs: Inputs) -> Samples | None:
        """Of the gradients at a block's outputs."""
        found = None if self._behind is None else self._behind.samples(inputs.param)
        return found if found is None or inputs.outputs is None else found.at(inputs.outputs)

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
        forms = forms_of(x, grads, moments, outward, spectra, self.powers[0])
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
        self.history.append((self.taken, names, powers.clone()))

    def miss(self, name: str, grad: Tensor) -> None:
        """A block has this gradient, but nothing was seen of what it multiplied."""
        if self.tells_unseen:
            self._unseen.append((name, grad.any()))

    def unseen(self) -> list[str]:
        """The blocks of this step that were missed and have a gradient; asked once a step."""
        missed, self._unseen = self._unseen, []
        return [name for name, moves in missed if moves]
