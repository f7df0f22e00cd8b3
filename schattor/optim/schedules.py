"""Schedules that torch has none of: of p or power, and the theory's of lr and momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from schattor.theory import chains, exponents, oracles

__all__ = ["PRamp", "PScheduler", "ParameterFree", "PowerRamp"]


def _matrix_groups(who: str, optimizer: Optimizer) -> list[dict[str, Any]]:
    groups = [group for group in optimizer.param_groups if group.get("rule") == "matrix"]
    if not groups:
        raise ValueError(f'{who}: optimizer must have a group of rule "matrix", got none')
    return groups


def _check_steps(who: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{who}: steps must be at least 1, got {steps}")


@dataclass(frozen=True)
class PowerRamp:
    """The power from ``start`` to ``end`` in ``steps`` steps, on a straight line.

    A function of the step, to be given as `Schattor`'s ``power``; it can be pickled. Powers reach
    beyond p = inf, which is 0: a public record of the NanoGPT speed run falls from 0.25 to -0.25.
    ``start`` and ``end`` in [-0.3, inf), ``steps`` >= 1; ValueError otherwise.

    >>> ramp = PowerRamp(0.25, -0.25, 10)
    >>> ramp(0), ramp(5), ramp(10), ramp(99)
    (0.25, 0.0, -0.25, -0.25)
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        """Check the three numbers."""
        for name, value in (("start", self.start), ("end", self.end)):
            if not chains.MIN_POWER <= value < math.inf:
                raise ValueError(
                    f"PowerRamp: {name} must be in [{chains.MIN_POWER}, inf), got {value}"
                )
        _check_steps("PowerRamp", self.steps)

    def __call__(self, step: int) -> float:
        """The power of a step, counted from 0."""
        share = min(1.0, step / self.steps)
        return (1 - share) * self.start + share * self.end


@dataclass(frozen=True)
class PRamp:
    """p from ``start`` to ``end`` in ``steps`` steps, on a straight line of ``1/(p-1)``.

    A function of the step, to be given as `Schattor`'s ``p`` or to `PScheduler`; it can be pickled.
    ``start`` and ``end`` in (1, inf], ``steps`` >= 1; ValueError otherwise. Derived: the power on
    the singular values is the quantity that the direction depends on smoothly, also at p = inf.

    >>> ramp = PRamp(2.0, float("inf"), 10)
    >>> ramp(0), ramp(5), ramp(10), ramp(99)
    (2.0, 3.0, inf, inf)
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        """Check the three numbers."""
        for name, value in (("start", self.start), ("end", self.end)):
            if not value > 1:
                raise ValueError(f"PRamp: {name} must be in (1, inf], got {value}")
        _check_steps("PRamp", self.steps)

    def __call__(self, step: int) -> float:
        """The p of a step, counted from 0."""
        first, last = exponents.power_of(self.start), exponents.power_of(self.end)
        return exponents.p_of(PowerRamp(first, last, self.steps)(step))


class PScheduler:
    """Sets p of every matrix group to ``function(k)`` after k calls of :meth:`step`.

    ``p_k = function(k)``, k = 0 at construction. Used like a scheduler of torch: built after the
    optimizer, stepped after ``optimizer.step()``, saved beside it.

    Args:
        optimizer: a `Schattor`.
        function: number of steps -> p in [1, inf].
        last_step: steps taken before; the first value set is that of ``last_step + 1``.

    Raises ValueError for an optimizer without a group of rule ``"matrix"``, or with one whose p or
    power is a function, which would win at every step; the optimizer itself refuses a p out of
    range, at its next step.

    >>> import torch
    >>> from schattor.optim import Schattor
    >>> optimizer = Schattor([torch.nn.Parameter(torch.ones(2, 2))], p=2.0)
    >>> scheduler = PScheduler(optimizer, lambda step: 2.0 + step)
    >>> scheduler.step(); optimizer.param_groups[0]["p"]
    3.0
    """

    def __init__(
        self, optimizer: Optimizer, function: Callable[[int], float], last_step: int = -1
    ) -> None:
        """See the class."""
        _matrix_groups("PScheduler", optimizer)
        if getattr(optimizer, "_schedules", None):
            raise ValueError(
                "PScheduler: p of the optimizer must be numbers, got a function of its steps, which"
                " sets p already: leave one of the two out"
            )
        self.optimizer = optimizer
        self.function = function
        self.last_step = last_step
        self.step()

    def step(self) -> None:
        """Set p for the next step of the optimizer."""
        self.last_step += 1
        self._set()

    def get_last_p(self) -> list[float]:
        """p of every matrix group."""
        return [group["p"] for group in _matrix_groups("PScheduler", self.optimizer)]

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; the function is the caller's to give again."""
        return {"last_step": self.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved number of steps, and set its p."""
        self.last_step = int(state_dict["last_step"])
        self._set()

    def _set(self) -> None:
        p = float(self.function(self.last_step))
        for group in _matrix_groups("PScheduler", self.optimizer):
            group["p"], group["power"] = p, None


class ParameterFree(LRScheduler):
    """The theory's schedule, without constants of the problem: step size and momentum together.

    ``lr_k = lr eta_k`` in every group and ``momentum_k = 1 - gamma_k`` in matrix groups, with
    ``gamma_k = (k+1)^(-1/2)`` and ``eta_k = (k+1)^(-3/4)`` for the ball,
    ``gamma_k = eta_k = (k+1)^(-1/2)`` regularized: the gradient's dual norm falls as ``k^(-1/4)``
    in every shape. The method it is derived for is an EMA without Nesterov.

    Args:
        optimizer: a `Schattor` with ``momentum_form="ema"``.
        tail: moment of the noise that is bounded, in (1, 2]; 2 is bounded variance, and the only
            one for the regularized oracle.
        last_epoch: as in every scheduler of torch.

    Raises ValueError for heavy-ball groups, an optimizer without matrix groups, or another tail.
    Source: derived for Schattor (arXiv 2606.15702), as `schattor.theory.oracles.parameter_free`.

    >>> import torch
    >>> from schattor.optim import Schattor
    >>> optimizer = Schattor([torch.nn.Parameter(torch.ones(2, 2))], lr=1.0, nesterov=False)
    >>> scheduler = ParameterFree(optimizer)
    >>> [optimizer.param_groups[0][key] for key in ("lr", "momentum")]
    [1.0, 0.0]
    """

    def __init__(self, optimizer: Optimizer, tail: float = 2.0, last_epoch: int = -1) -> None:
        """See the class."""
        for group in _matrix_groups("ParameterFree", optimizer):
            if group["momentum_form"] != "ema":
                raise ValueError(
                    'ParameterFree: momentum_form must be "ema", whose momentum is 1 - gamma,'
                    f" got {group['momentum_form']!r}"
                )
            # Momentum begins at 0, yet its buffer is needed from the first step on.
            group.setdefault("initial_momentum", group["momentum"])
            oracles.parameter_free(0, group["oracle"], tail)
        self.tail = tail
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of the present step, one a group."""
        return [
            base * oracles.parameter_free(self.last_epoch, group["oracle"], self.tail)[1]
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def step(self, epoch: int | None = None) -> None:
        """Set learning rates and momenta for the next step of the optimizer."""
        super().step(epoch)
        for group in _matrix_groups("ParameterFree", self.optimizer):
            gamma, _ = oracles.parameter_free(self.last_epoch, group["oracle"], self.tail)
            group["momentum"] = 1 - gamma
