"""Chooses p of each block on recording steps, on the device, from the chain's iterates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from schattor.adaptive.auto import AutoP
from schattor.adaptive.criteria import DEPTH, Forms, curve, iterates, powers_of_grid
from schattor.adaptive.statistics import InputMoments

__all__ = ["Chooser", "Inputs", "forms_of"]


# Of a logarithm relative to the best: what is below is as good as nothing.
_LEAST = -100.0


class Inputs(NamedTuple):
    """Which inputs of its layer a block multiplies, on which side of the wide batch."""

    param: nn.Parameter
    chosen: Tensor | None  # indices of the layer's inputs; None: all
    right: bool  # along the columns of the wide matrix


def forms_of(
    x: Tensor,
    grad: Tensor,
    moment: Tensor,
    right: bool,
    outward: Callable[[Tensor], Tensor],
    spectra: bool,
) -> Forms:
    """The forms of one block.

    Args:
        x: ``[rows, cols]``, the momentum in the coordinates of the norm, up to a factor.
        grad: ``[rows, cols]``, the gradient, up to a factor.
        moment: second moment of the inputs, on the side of the columns if ``right``.
        outward: from ``[K+1, rows, cols]`` in the coordinates of the norm to steps of the weights.
        spectra: whether eigenvalues of the moment are wanted.
    """
    found = iterates(x)
    steps = outward(found)
    weighed = steps @ moment if right else moment @ steps
    flat = steps.flatten(1)
    falls = flat @ grad.to(steps.dtype).flatten()
    norms = found.flatten(1) @ found[0].flatten()
    curves = weighed.flatten(1) @ flat.mT
    inputs = torch.linalg.eigvalsh(moment.double()).clamp_min(0) if spectra else None
    return Forms(falls.double(), norms.double(), curves.double(), inputs)


class Chooser:
    """Watches a model's inputs on recording steps, and turns them into powers."""

    depth = DEPTH

    def __init__(self, auto: AutoP, model: nn.Module, params: Iterable[nn.Parameter]) -> None:
        """``params`` are those whose p is chosen."""
        self.auto = auto
        self.powers = powers_of_grid(*auto.powers)
        self.history: list[tuple[int, list[str], Tensor]] = []
        self._moments = InputMoments(model, params, tokens=auto.tokens)
        self._taken: int | None = None

    @property
    def due(self) -> bool:
        """Whether this step chooses."""
        return self._moments.recording

    def covers(self, param: nn.Parameter) -> bool:
        """Whether the inputs of the parameter's layer can be watched."""
        return self._moments.covers(param)

    def start(self, taken: int) -> None:
        """Steps that were taken before; where they are known, recordings begin."""
        if self._taken is None:
            self._taken = taken
            self._record()

    def advance(self) -> None:
        """A step was taken; watch the next, if it records."""
        assert self._taken is not None
        self._taken += 1
        self._record()

    def _record(self) -> None:
        assert self._taken is not None
        self._moments.clear()
        self._moments.record(self.auto.is_due(self._taken))

    def reduce(self) -> None:
        """The same moments on every rank."""
        self._moments.reduce()

    def choose(
        self,
        inputs: Inputs,
        x: Tensor,
        grad: Tensor,
        outward: Callable[[Tensor], Tensor],
        past: Tensor,
        index: Tensor,
    ) -> None:
        """Write a block's smoothed curve into ``past``, and its place on the grid into ``index``.

        Both stay where nothing was recorded or nothing descends; ``past`` is NaN at first.
        """
        moment = self._moments.moment(inputs.param)
        if moment is None:
            return
        if inputs.chosen is not None:
            moment = moment[inputs.chosen][:, inputs.chosen]
        spectra = self.auto.criterion != "tightness"
        forms = forms_of(x, grad, moment.to(x.dtype), inputs.right, outward, spectra)
        now = curve(self.auto.criterion, forms, self.powers)
        sound = now.isfinite().any()
        # Curves are known up to a factor of the gradients' size: only their shape is averaged.
        now = (now - now.max()).clamp_min(_LEAST)
        kept = self.auto.smoothing
        smooth = torch.where(past.isnan(), now, kept * past + (1 - kept) * now)
        best = smooth.argmax()
        gain = smooth.amax() - smooth.index_select(0, index.view(1))[0]
        moves = sound & (gain > math.log1p(self.auto.hysteresis))
        past.copy_(torch.where(sound, smooth, past))
        index.copy_(torch.where(moves, best, index))

    def remember(self, names: list[str], powers: Tensor) -> None:
        """Keep the powers of some blocks for the history; they are read when somebody asks."""
        assert self._taken is not None
        self.history.append((self._taken, names, powers.clone()))
