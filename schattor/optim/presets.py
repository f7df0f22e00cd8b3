"""Optimizers that people know, as settings of `Schattor`: Muon, SGD, AdamW."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from schattor.optim._settings import Group
from schattor.optim.schattor import Params, Schattor
from schattor.theory import chains

__all__ = ["SGD", "AdamW", "Muon"]


class _OneRule(Schattor):
    """A preset whose groups all follow one rule, whatever rule they came with: routed ones too."""

    def _split(self, group: Group) -> list[Group]:
        return super()._split({**group, "rule": self._fixed["rule"]})


class Muon(Schattor):
    """Muon: the polar factor of the momentum for matrices, AdamW for everything else.

    ``w <- (1 - lr decay) w - lr a U V'`` of the momentum ``M = U diag(s) V'``, with the ``a`` of
    ``adjust_lr_fn``: `Schattor` at p = inf with the arguments of ``torch.optim.Muon``. Where
    torch's takes five steps that leave singular values in 0.7 .. 1.2, the default takes five of the
    shared chain, at the same cost, that leave them within 1 % of one (above 1 % of the largest).

    Args:
        params: as `Schattor` takes them; parameters need not be matrices.
        lr: learning rate >= 0.
        weight_decay: decoupled decay, of all parameters.
        momentum, nesterov: as in `Schattor`; the moving average is an EMA.
        ns_coefficients: name of a row of coefficients, or the triple that torch.optim.Muon repeats,
            which is ``"jordan"``.
        eps: of AdamW. A zero momentum needs no guard here: it gives a zero step.
        ns_steps: of the chain; 4 to 10 for ``"schattor"``.
        adjust_lr_fn: None or ``"original"``: ``a = sqrt(max(1, m/n))``; ``"match_rms_adamw"``:
            entries of the update have root mean square 0.2 lr.
        adamw_lr: learning rate of what AdamW moves; None: ``lr``.
        betas: of AdamW.
        maximize, capturable: as in `Schattor`.

    Raises as `Schattor`, and ValueError for coefficients that are in no table or another
    ``adjust_lr_fn``. Source: Jordan et al. 2024; Moonlight (arXiv 2502.16982).

    >>> from torch import nn
    >>> optimizer = Muon(nn.Linear(4, 4), lr=0.02)
    >>> [group["rule"] for group in optimizer.param_groups]
    ['matrix', 'adamw']
    """

    _authors = {"ns_steps": "steps", "ns_coefficients": "coefficients"}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: str | tuple[float, float, float] = "schattor",
        eps: float = 1e-8,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        adamw_lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        """See the class."""
        super().__init__(
            params,
            lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            scale=_scale(adjust_lr_fn),
            steps=ns_steps,
            coefficients=_row(ns_coefficients),
            betas=betas,
            eps=eps,
            adamw_lr=adamw_lr,
            maximize=maximize,
            capturable=capturable,
        )

    def _named(self, group: Group) -> Group:
        group = super()._named(group)
        if "coefficients" in group:
            group["coefficients"] = _row(group["coefficients"])
        if "adjust_lr_fn" in group:
            group["scale"] = _scale(group.pop("adjust_lr_fn"))
        return group


def _scale(adjust_lr_fn: str | None) -> Literal["spectral", "rms"]:
    if adjust_lr_fn in (None, "original"):
        return "spectral"
    if adjust_lr_fn == "match_rms_adamw":
        return "rms"
    raise ValueError(
        f'Muon: adjust_lr_fn must be None, "original" or "match_rms_adamw", got {adjust_lr_fn!r}'
    )


def _row(coefficients: str | tuple[float, float, float]) -> str:
    """The name of a row of coefficients; of the one that repeats a given triple."""
    if isinstance(coefficients, str):
        return coefficients
    triple = tuple(float(value) for value in coefficients)
    for name in chains.names()[1:]:
        if all(step == triple for step in chains.steps(name, 2)):
            return name
    raise ValueError(
        f"Muon: ns_coefficients must be one of {', '.join(chains.names())} or the triple of one"
        f" that repeats a single step, got {coefficients}"
    )


class SGD(_OneRule):
    """SGD, with the arguments and the L2 decay of ``torch.optim.SGD``; every step equals torch's.

    ``g <- g + weight_decay w``; ``m <- momentum m + (1 - dampening) g`` (the first ``m`` is ``g``);
    ``w <- w - lr (g + momentum m)`` with nesterov, else ``w <- w - lr m``. All parameters follow
    the rule ``"sgd"``, which is torch's function; `Schattor` with ``p=2, oracle="regularized",
    momentum_form="heavy_ball"`` is the same method with decoupled decay.

    Args:
        params: as `Schattor` takes them.
        lr: learning rate >= 0.
        momentum: in [0, 1).
        dampening: >= 0.
        weight_decay: L2 penalty >= 0.
        nesterov: needs momentum and no dampening.
        maximize: ascend instead.

    Raises as `Schattor`, and ValueError for nesterov without momentum or with dampening.

    >>> from torch import nn
    >>> optimizer = SGD(nn.Linear(4, 4), lr=0.1, momentum=0.9)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        """See the class."""
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(
                "SGD: nesterov needs momentum > 0 and dampening 0,"
                f" got momentum={momentum} and dampening={dampening}"
            )
        self._fixed = {"rule": "sgd", "dampening": dampening}
        super().__init__(
            params,
            lr,
            p=2.0,
            oracle="regularized",
            momentum=momentum,
            momentum_form="heavy_ball",
            nesterov=nesterov,
            weight_decay=weight_decay,
            maximize=maximize,
        )
        # Schedulers that cycle momentum, such as OneCycleLR, take betas in its place where both
        # are among the defaults.
        del self.defaults["betas"]


class AdamW(_OneRule):
    """AdamW, with the arguments of ``torch.optim.AdamW``; every step equals torch's.

    ``m <- b1 m + (1-b1) g``; ``v <- b2 v + (1-b2) g^2``; ``w <- (1 - lr weight_decay) w
    - lr m^ / (sqrt(v^) + eps)`` of the bias-corrected moments. All parameters follow the rule
    ``"adamw"``, which is torch's function.

    Args:
        params: as `Schattor` takes them.
        lr: learning rate >= 0.
        betas: decay of the two moments, each in [0, 1).
        eps: >= 0.
        weight_decay: decoupled, >= 0.
        maximize, capturable: as in `Schattor`.

    Raises as `Schattor`.

    >>> from torch import nn
    >>> optimizer = AdamW(nn.Linear(4, 4), lr=1e-3)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        """See the class."""
        self._fixed = {"rule": "adamw"}
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            capturable=capturable,
        )
