"""How p is chosen from data, as an optimizer's setting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from schattor.adaptive.criteria import CRITERIA, Criterion
from schattor.theory import chains, exponents

__all__ = ["AutoP", "Statistics"]

Statistics = Literal["inputs", "kfac", "gradients"]


@dataclass(frozen=True)
class AutoP:
    """Settings of ``Schattor(model, p=AutoP(...))``; ``p="auto"`` is ``AutoP()``.

    On recording steps each layer's inputs are watched, and its p becomes the one of the largest
    criterion, smoothed over recordings.

    The second moment of a layer's inputs is ``Axx = mean x x'`` of what hooks see and
    ``optimizer.observe`` is given (``"inputs"``), or ``Axx = N'N`` of the noise ``N = G - mean G``
    of its gradient, the mean by momentum (``"gradients"``): a gradient is a sum of ``e x'``, so
    that the two are proportional on average where residuals e and inputs x are independent.
    ``"kfac"`` counts what lies behind a layer too: the criterion is ``<G, D>^2 / (2 <D Axx, B D>)``
    with ``B = mean e e'`` of the gradients e at its outputs, the curvature of K-FAC
    (arXiv 1503.05671), where ``"inputs"`` takes a layer's outputs for the network's, ``B = I``.

    Args:
        criterion: ``"tightness"`` (the fall of the loss on fixed features, by an exact line
            search), ``"momentum_aligned"`` or ``"hoelder"`` (lower bounds of it).
        interval: steps from one recording to the next.
        warmup: steps before the first recording; until then p is ``bounds[1]``.
        smoothing: weight of the past in the average of the criterion, which each recording gives
            relative to its largest value; in [0, 1).
        hysteresis: p moves only where the criterion gains more than this share.
        bounds: least and largest p, from [2, inf].
        lowest_power: the end of the search beyond p = inf, in [-0.2, 0].
        tokens: inputs per call that are looked at, evenly spaced; None: all.
        statistics: ``"inputs"``, ``"kfac"`` (for the criterion tightness) or ``"gradients"``. None:
            inputs of a model that the optimizer is given or watches, gradients without one.

    Raises ValueError for what is not in these ranges.
    Source: From SGD to Muon (arXiv 2605.19781); its code records at step 10, then every 100.

    >>> AutoP(interval=50).powers
    (0.0, 1.0)
    """

    criterion: Criterion = "tightness"
    interval: int = 100
    warmup: int = 10
    smoothing: float = 0.5
    hysteresis: float = 0.0
    bounds: tuple[float, float] = (2.0, math.inf)
    lowest_power: float = 0.0
    tokens: int | None = 512
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not allowed."""
        if self.criterion not in CRITERIA:
            names = ", ".join(CRITERIA)
            raise ValueError(f"AutoP: criterion must be one of {names}, got {self.criterion!r}")
        for name, value, least in (("interval", self.interval, 1), ("warmup", self.warmup, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"AutoP: {name} must be an int >= {least}, got {value!r}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"AutoP: smoothing must be in [0, 1), got {self.smoothing}")
        if not 0 <= self.hysteresis < math.inf:
            raise ValueError(f"AutoP: hysteresis must be a number >= 0, got {self.hysteresis}")
        low, high = self.bounds
        if not 2 <= low <= high:
            raise ValueError(f"AutoP: bounds must rise within [2, inf], got {self.bounds}")
        if not chains.WARN_BELOW_POWER <= self.lowest_power <= 0:
            raise ValueError(
                f"AutoP: lowest_power must be in [{chains.WARN_BELOW_POWER}, 0],"
                f" got {self.lowest_power}"
            )
        if self.lowest_power < 0 and (high < math.inf or self.criterion != "tightness"):
            raise ValueError(
                "AutoP: lowest_power below 0 needs bounds up to inf and the criterion tightness,"
                f" got {self.bounds} and {self.criterion!r}"
            )
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"AutoP: tokens must be None or >= 1, got {self.tokens}")
        if self.statistics not in (None, *get_args(Statistics)):
            raise ValueError(
                'AutoP: statistics must be None, "inputs", "kfac" or "gradients",'
                f" got {self.statistics!r}"
            )
        if self.statistics == "kfac" and self.criterion != "tightness":
            raise ValueError(
                f'AutoP: criterion must be "tightness" with statistics="kfac",'
                f" got {self.criterion!r}"
            )

    @property
    def powers(self) -> tuple[float, float]:
        """The least and the largest power of the search."""
        low, high = self.bounds
        least = self.lowest_power if self.lowest_power < 0 else exponents.power_of(high)
        return least, exponents.power_of(low)

    def is_due(self, step: int) -> bool:
        """Whether the step of this number, from 0, records.

        >>> [step for step in range(250) if AutoP().is_due(step)]
        [10, 110, 210]
        """
        return step >= self.warmup and (step - self.warmup) % self.interval == 0
