"""MuAdam and MuAdam-SANIA: a polar step between two weighings by second moments."""

from __future__ import annotations

from torch import Tensor

from schattor.optim.schattor import Params, Schattor

__all__ = ["MuAdam", "MuAdamSania"]


class MuAdam(Schattor):
    """MuAdam: the polar factor between two weighings by Adam's second moment.

    ``w <- w - lr sqrt(max(1, m/n)) D^-1 * polar(D^-1 * M)`` with ``D^2 = sqrt(v^) + eps`` of the
    squared gradients' corrected average: `Schattor` with ``preconditioner="adam"`` at p = inf.
    Entries whose gradients were all zero do not move. The length of a step grows with the inverse
    root of the gradients' size: unscale gradients before a step, and tune lr to the loss.

    The published code keeps its step counter at 1, which shrinks steps by ``((1-b2)/(1-b2^t))^1/4``
    (0.18 late in training at b2 = 0.999): rates tuned with it are up to 5.6 times too large here.

    Args:
        params: as `Schattor` takes them.
        lr: learning rate >= 0.
        momentum: in [0, 1).
        ns_steps: of the chain, 4 to 10; None: planned.
        adamw_lr: learning rate of what AdamW moves; None: ``lr``.
        adamw_betas: of AdamW; the second is that of ``v`` too.
        adamw_eps: of AdamW and of ``D``.
        weight_decay: decoupled, of all parameters.
        maximize, capturable: as in `Schattor`.

    Raises as `Schattor`. Source: Preconditioned matrix norms (arXiv 2510.10777), algorithm 1.

    >>> from torch import nn
    >>> optimizer = MuAdam(nn.Linear(4, 4), lr=1e-4)
    """

    _preconditioner = "adam"
    _authors = {"ns_steps": "steps", "adamw_betas": "betas", "adamw_eps": "eps"}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        momentum: float = 0.9,
        ns_steps: int | None = None,
        adamw_lr: float | Tensor | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        """See the class."""
        super().__init__(
            params,
            lr,
            preconditioner=self._preconditioner,
            scale="spectral",
            momentum=momentum,
            nesterov=False,
            weight_decay=weight_decay,
            steps=ns_steps,
            betas=adamw_betas,
            eps=adamw_eps,
            adamw_lr=adamw_lr,
            maximize=maximize,
            capturable=capturable,
        )


class MuAdamSania(MuAdam):
    """MuAdam-SANIA: as `MuAdam` with ``D^2 = v^ + eps``, which no rescaling of features changes.

    ``w <- w - lr sqrt(max(1, m/n)) D^-1 * polar(D^-1 * M)``. If every feature of the data is scaled
    by a number of its own, the weights are those of the unscaled run divided by it (eps = 0).
    Steps grow with the inverse of the gradients' size. The published code cannot run this rule.

    Args, Raises and Source as `MuAdam`.

    >>> from torch import nn
    >>> optimizer = MuAdamSania(nn.Linear(4, 4), lr=1e-4)
    """

    _preconditioner = "sania"
