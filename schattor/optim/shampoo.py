"""Shampoo, KL-Shampoo and SOAP: steps in the eigenbases of Kronecker factors."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from schattor.optim._settings import Group, check
from schattor.optim.schattor import Params, Schattor

__all__ = ["KLSOAP", "SOAP", "KLShampoo", "Shampoo"]

Grafting = Literal["sgd", "adam"] | None


class Shampoo(Schattor):
    """Shampoo: ``L^-1/4 M R^-1/4`` of the sums of ``G G'`` and ``G' G``.

    ``w <- (1 - lr decay) w - lr (L/c + eps)^-1/4 M^ (R/c + eps)^-1/4``: `Schattor` with
    ``preconditioner="shampoo"`` at p = 2, regularized. Arguments and defaults are those of
    DistributedShampoo for matrices; all else follows AdamW.

    Args:
        params: as `Schattor` takes them.
        lr: learning rate >= 0.
        betas: of the momentum, and of the factors: 1 sums them (AdaGrad), less averages.
        epsilon: added to eigenvalues, and AdamW's.
        weight_decay: decoupled, of all parameters.
        max_preconditioner_dim: longer sides are cut into blocks of this length.
        precondition_frequency: steps between eigendecompositions.
        start_preconditioning_step: the first of them; -1: the frequency. Before it, plain momentum
            (or the grafted method) moves the weights.
        use_bias_correction: whether averages are corrected for their start at zero.
        grafting: None, ``"sgd"`` or ``"adam"``: the Frobenius norm of each block's step is that of
            the method's own.
        stagger: whether matrices of one shape take turns with their decompositions.
        adamw_lr, adamw_betas: of what AdamW moves.
        maximize: ascend instead.

    Raises as `Schattor`. Source: Shampoo (arXiv 1802.09568); DistributedShampoo (2309.06497).

    >>> from torch import nn
    >>> optimizer = Shampoo(nn.Linear(4, 4), lr=1e-2)
    """

    _authors = {"epsilon": "eps", "use_bias_correction": "bias_correction"}
    _kept = (*Schattor._kept, "_most")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 1.0),
        epsilon: float = 1e-12,
        weight_decay: float = 0.0,
        max_preconditioner_dim: int = 1024,
        precondition_frequency: int = 1,
        start_preconditioning_step: int = -1,
        use_bias_correction: bool = True,
        grafting: Grafting = None,
        *,
        stagger: bool = False,
        adamw_lr: float | Tensor | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        maximize: bool = False,
    ) -> None:
        """See the class."""
        check(type(self).__name__, "betas", betas)
        if start_preconditioning_step != -1:
            self._fixed = {"start_preconditioning_step": start_preconditioning_step}
        self._most = max_preconditioner_dim
        super().__init__(
            params,
            lr,
            p=2.0,
            oracle=_oracle(grafting),
            scale=_scale(type(self).__name__, grafting),
            preconditioner="shampoo",
            shampoo_beta=betas[1],
            precondition_frequency=precondition_frequency,
            bias_correction=use_bias_correction,
            stagger=stagger,
            momentum=betas[0],
            nesterov=False,
            weight_decay=weight_decay,
            betas=adamw_betas,
            eps=epsilon,
            adamw_lr=adamw_lr,
            maximize=maximize,
        )

    def _named(self, group: Group) -> Group:
        group = super()._named(group)
        if group.get("rule") != "adamw" and "momentum" not in group and "betas" in group:
            check(self._who, "betas", group["betas"])
            group["momentum"], group["shampoo_beta"] = group.pop("betas")
        if "adamw_betas" in group:
            group["betas"] = group.pop("adamw_betas")
        if "grafting" in group:
            grafting = group.pop("grafting")
            group["scale"] = _scale(self._who, grafting)
            group["oracle"] = _oracle(grafting)
        if "max_preconditioner_dim" in group:
            most = {"most": group.pop("max_preconditioner_dim")}
            group["blocks"] = {**most, **(group.get("blocks") or {})}
        if group.get("start_preconditioning_step") == -1:
            group["start_preconditioning_step"] = None
        return group

    def _split(self, group: Group) -> list[Group]:
        cut = {"most": self._most, **(group.get("blocks") or {})}
        return [
            {**part, "blocks": cut} if part["rule"] == "matrix" else part
            for part in super()._split(group)
        ]


def _scale(who: str, grafting: Grafting) -> Grafting:
    if grafting in (None, "sgd", "adam"):
        return grafting
    raise ValueError(f'{who}: grafting must be None, "sgd" or "adam", got {grafting!r}')


def _oracle(grafting: Grafting) -> Literal["regularized", "ball"]:
    return "regularized" if grafting is None else "ball"


def _factors_beta(shampoo_beta: float | None) -> float | None:
    """None, of which `betas` has the number, for a negative one, as authors have it."""
    negative = isinstance(shampoo_beta, int | float) and shampoo_beta < 0
    return None if negative else shampoo_beta


def _with_betas(who: str, group: Group) -> Group:
    """Betas as KL-Shampoo and SOAP have them: the first is the momentum's."""
    if "betas" in group and "momentum" not in group:
        check(who, "betas", group["betas"])
        group["momentum"] = group["betas"][0]
    if "shampoo_beta" in group:
        group["shampoo_beta"] = _factors_beta(group["shampoo_beta"])
    return group


class KLShampoo(Schattor):
    """KL-Shampoo: Kronecker factors whitened on their other side, with tracked eigenvalues.

    ``w <- (1 - lr decay) (w - lr Q_A ((Q_A' M Q_B) * (r_a r_b')) Q_B')``: `Schattor` with
    ``preconditioner="kl_shampoo"`` at p = 2, regularized. The first call gathers statistics and
    moves no matrix. Statistics are float32 (the published default, bfloat16, loses them).

    Args:
        params: as `Schattor` takes them; what is no matrix follows AdamW.
        lr: learning rate >= 0.
        betas: of the momentum, and of the factors unless ``shampoo_beta`` says otherwise.
        shampoo_beta: of the factors; negative or None: ``betas[1]``.
        eps: damps the product of the inverse roots; AdamW's.
        weight_decay: decoupled, after the step.
        precondition_frequency: steps between refreshes of the bases, by one QR power step.
        init_factor: eigenvalues to begin with, which fade by ``shampoo_beta`` a step, uncorrected:
            take about the mean square of a gradient's entries where runs are short.
        max_clamp_value: largest inverse root, at most the side's length, at least 10.
        max_precond_dim: longer sides have no factor.
        stagger: whether matrices of one shape take turns with their refreshes.
        adamw_lr: of what AdamW moves.
        maximize: ascend instead.

    Raises as `Schattor`. Source: KL-Shampoo (arXiv 2509.03378) and its authors' code.

    >>> from torch import nn
    >>> optimizer = KLShampoo(nn.Linear(4, 4), lr=1e-3)
    """

    _preconditioner = "kl_shampoo"
    _authors = {"max_clamp_value": "max_clamp"}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.98),
        shampoo_beta: float | None = -1,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        init_factor: float = 0.1,
        max_clamp_value: float = 4000.0,
        max_precond_dim: int = 10000,
        *,
        stagger: bool = False,
        adamw_lr: float | Tensor | None = None,
        maximize: bool = False,
    ) -> None:
        """See the class."""
        check(type(self).__name__, "betas", betas)
        self._fixed = {"init_factor": init_factor, "max_clamp": max_clamp_value}
        super().__init__(
            params,
            lr,
            p=2.0,
            oracle="regularized",
            preconditioner=self._preconditioner,
            shampoo_beta=_factors_beta(shampoo_beta),
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            stagger=stagger,
            momentum=betas[0],
            nesterov=False,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
            adamw_lr=adamw_lr,
            maximize=maximize,
        )

    def _named(self, group: Group) -> Group:
        return _with_betas(self._who, super()._named(group))


class KLSOAP(KLShampoo):
    """KL-SOAP: Adam in the eigenbases of KL-Shampoo's factors, its averages uncorrected.

    ``w <- (1 - lr decay) (w - lr Q_L ((Q_L' M Q_R) / (sqrt(v) + eps)) Q_R')``: `Schattor` with
    ``preconditioner="kl_soap"`` at p = 2, regularized. Factors, their tracked eigenvalues and all
    arguments are `KLShampoo`'s; v decays by ``betas[1]``. The first call gathers statistics and
    moves no matrix.

    Source: KL-Shampoo (arXiv 2509.03378) and its authors' code, with ``using_klsoap``.

    >>> from torch import nn
    >>> optimizer = KLSOAP(nn.Linear(4, 4), lr=1e-3)
    """

    _preconditioner = "kl_soap"


class SOAP(Schattor):
    """SOAP: Adam in the eigenbasis of Shampoo's factors.

    ``w <- (1 - lr decay) (w - lr sqrt(c2)/c1 Q_L ((Q_L' M Q_R) / (sqrt(v) + eps)) Q_R')``:
    `Schattor` with ``preconditioner="soap"`` at p = 2, regularized. The first call gathers
    statistics and moves no matrix. ``Schattor(preconditioner="soap")`` alone is a polar step in
    the same coordinates.

    Args:
        params: as `Schattor` takes them; what is no matrix follows AdamW.
        lr: learning rate >= 0.
        betas: of the momentum and of the squares.
        shampoo_beta: of the factors; negative or None: ``betas[1]``.
        eps: >= 0.
        weight_decay: decoupled, after the step.
        precondition_frequency: steps between refreshes of the bases, by one QR power step.
        max_precond_dim: longer sides keep the identity for their basis.
        correct_bias: whether averages are corrected for their start at zero.
        stagger: whether matrices of one shape take turns with their refreshes, so that no step is
            slower than others; the original refreshes all at once.
        adamw_lr: of what AdamW moves.
        maximize: ascend instead.

    Raises as `Schattor`. Source: SOAP (arXiv 2409.11321) and its authors' code. Left out:
    ``merge_dims`` and ``precondition_1d`` (`schattor.blocks` says how a tensor is matrices).

    >>> from torch import nn
    >>> optimizer = SOAP(nn.Linear(4, 4), lr=3e-3)
    """

    _authors = {"correct_bias": "bias_correction"}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = -1,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        correct_bias: bool = True,
        *,
        stagger: bool = False,
        adamw_lr: float | Tensor | None = None,
        maximize: bool = False,
    ) -> None:
        """See the class."""
        check(type(self).__name__, "betas", betas)
        super().__init__(
            params,
            lr,
            p=2.0,
            oracle="regularized",
            preconditioner="soap",
            shampoo_beta=_factors_beta(shampoo_beta),
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            bias_correction=correct_bias,
            stagger=stagger,
            momentum=betas[0],
            nesterov=False,
            weight_decay=weight_decay,
            betas=betas,
            eps=eps,
            adamw_lr=adamw_lr,
            maximize=maximize,
        )

    def _named(self, group: Group) -> Group:
        return _with_betas(self._who, super()._named(group))
