"""SPlus: the sign in the eigenbases of Kronecker factors, and an average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from schattor.optim._entries import zeros_as
from schattor.optim._groups import split
from schattor.optim._preconditioned import work_dtype
from schattor.optim._settings import Group, check
from schattor.optim.schattor import Params, Schattor

__all__ = ["SPlus"]


class SPlus(Schattor):
    """SPlus: the sign of the momentum in the eigenbasis of Shampoo's factors.

    ``w <- w - a Q_L sign(Q_L' M Q_R) Q_R'``, ``w <- (1 - a decay) w`` with ``a = 2 lr / (m + n)``:
    `Schattor` with ``preconditioner="splus"``, ``norm="entries"`` at p = inf and ``scale="width"``.
    What AdamW would move (vectors, embeddings, heads) follows the sign of its momentum at
    ``lr nonstandard_constant``. Evaluate with the average of the weights: :meth:`eval` before,
    :meth:`train` after.

    Args:
        params: as `Schattor` takes them.
        lr: learning rate >= 0; about Adam's times twice the width.
        b1, b2: of the momentum and of the factors.
        ema_rate: of the average of the weights.
        inverse_every: steps between eigendecompositions.
        weight_decay: decoupled, after the step.
        max_dim: longer sides keep the identity for their basis.
        nonstandard_constant: what the learning rate of all but matrices is multiplied by.
        stagger: whether matrices of one shape take turns with their decompositions.
        maximize: ascend instead.

    Raises as `Schattor`. Source: SPlus (arXiv 2506.07254) and its authors' code.

    >>> from torch import nn
    >>> optimizer = SPlus(nn.Linear(4, 4), lr=0.1)
    """

    _authors = {
        "b1": "momentum",
        "inverse_every": "precondition_frequency",
        "max_dim": "max_precond_dim",
    }
    _kept = (*Schattor._kept, "_constant")

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.1,
        b1: float = 0.9,
        b2: float = 0.999,
        ema_rate: float = 0.999,
        inverse_every: int = 100,
        weight_decay: float = 1e-2,
        max_dim: int = 10000,
        nonstandard_constant: float = 0.001,
        *,
        stagger: bool = False,
        maximize: bool = False,
    ) -> None:
        """See the class."""
        check(type(self).__name__, "ema_rate", ema_rate)
        check(type(self).__name__, "nonstandard_constant", nonstandard_constant)
        self._fixed = {"ema_rate": ema_rate, "train_mode": True}
        self._constant = nonstandard_constant
        super().__init__(
            params,
            lr,
            preconditioner="splus",
            norm="entries",
            scale="width",
            precondition_frequency=inverse_every,
            max_precond_dim=max_dim,
            stagger=stagger,
            momentum=b1,
            nesterov=False,
            weight_decay=weight_decay,
            betas=(b1, b2),
            maximize=maximize,
        )

    def _named(self, group: Group) -> Group:
        group = super()._named(group)
        if "b2" in group:
            group["betas"] = (self.defaults["betas"][0], group.pop("b2"))
        return group

    def _split(self, group: Group) -> list[Group]:
        parts = split(self._who, group)
        for part in parts:
            constant = part.pop("nonstandard_constant", self._constant)
            if part["rule"] in ("adamw", "sign"):
                part.update(rule="sign", nonstandard_constant=constant)
        return parts

    def _take_step(self) -> None:
        """As `Schattor`; then the weights, decayed, enter their average."""
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("SPlus: step must be called in train mode, got eval: call train()")
        super()._take_step()
        for group in self.param_groups:
            for param in group["params"]:
                wanted = param.requires_grad or param.grad is not None
                if wanted and "ema" not in self.state[param]:
                    self._begin(param)
            moved = [param for param in group["params"] if param.grad is not None]
            averages = [self.state[param]["ema"] for param in moved]
            if moved:
                torch._foreach_lerp_(averages, _like(averages, moved), 1 - group["ema_rate"])
                torch._foreach_add_([self.state[param]["averaged"] for param in moved], 1)

    def _begin(self, param: Tensor) -> None:
        dtype = work_dtype(param.dtype)
        self.state[param]["averaged"] = torch.zeros((), dtype=torch.float32, device="cpu")
        self.state[param]["ema"] = zeros_as(param, dtype)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average of the weights, corrected for its start at zero, in their place.

        Weights that never moved stay as they are.
        """
        for group in self.param_groups:
            if group["train_mode"]:
                group["train_mode"] = False
                for param in group["params"]:
                    entry = self.state[param]
                    averaged = float(entry.get("averaged", 0))
                    if averaged > 0:
                        share = 1 - group["ema_rate"] ** averaged
                        entry["kept"] = param.clone()
                        param.copy_(entry["ema"] / share)

    @torch.no_grad()
    def train(self) -> None:
        """Put the weights back in place."""
        for group in self.param_groups:
            if not group["train_mode"]:
                group["train_mode"] = True
                for param in group["params"]:
                    if "kept" in self.state[param]:
                        param.copy_(self.state[param].pop("kept"))


def _like(averages: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Parameters in the dtype of their averages."""
    return [p.to(average.dtype) for p, average in zip(params, averages, strict=True)]
