"""The optimizers by name, each as the pair that HuggingFace's Trainer takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

BETAS = (0.9, 0.95)  # of every AdamW here: the rival and the part that serves Muon and Schattor
MOMENTUM = 0.95  # of Muon and Schattor


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon for hidden matrices and torch.optim.AdamW for the rest, as one optimizer.

    The inner optimizers work on this one's groups and state, so a scheduler, zero_grad and
    state_dict see a single ordinary optimizer.
    """

    def __init__(self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], lr: float):
        """Groups of matrices and of all else; a group may set its own weight decay."""
        self._muon = Muon(matrices, lr, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(others, lr, betas=BETAS, fused=True)
        self._muon_groups = len(self._muon.param_groups)
        super().__init__(self._muon.param_groups + self._adamw.param_groups, {})
        self._share()

    def _share(self) -> None:
        self._muon.param_groups = self.param_groups[: self._muon_groups]
        self._adamw.param_groups = self.param_groups[self._muon_groups :]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as any optimizer; torch then replaces groups and state, so share them anew."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss


class MuonFactory:
    """Not an Optimizer, so Trainer hands over the whole model: Llama's rule of which goes where."""

    def __call__(self, model: nn.Module, *, lr: float, weight_decay: float) -> Optimizer:
        """Hidden matrices to Muon; embedding, head and norms to AdamW, norms without decay."""
        matrices, embeddings, vectors = [], [], []
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif "embed_tokens" in name or "lm_head" in name:
                embeddings.append(parameter)
            else:
                matrices.append(parameter)
        return MuonWithAdamW(
            [{"params": matrices, "weight_decay": weight_decay}],
            [
                {"params": embeddings, "weight_decay": weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr,
        )


def optimizer_pair(name: str, lr: float, weight_decay: float) -> tuple[Any, dict[str, Any]]:
    """(class or factory, keyword arguments) for `Trainer(optimizer_cls_and_kwargs=...)`.

    `name` is "adamw", "muon" or "schattor:key=value,..." with any keyword of schattor.Schattor.
    """
    kind, _, options = name.partition(":")
    if kind == "adamw" and not options:
        return AdamW, {"lr": lr, "betas": BETAS, "fused": True}
    if kind == "muon" and not options:
        return MuonFactory, {"lr": lr, "weight_decay": weight_decay}
    if kind == "schattor":
        from schattor.integrations.huggingface import trainer_optimizer

        return trainer_optimizer(
            lr=lr,
            weight_decay=weight_decay,
            betas=BETAS,
            momentum=MOMENTUM,
            **_keywords(name, options),
        )
    raise ValueError(
        f'demo: --optimizers: "adamw", "muon" or "schattor:p=NUMBER" is required, got {name!r}'
    )


def _keywords(name: str, options: str) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"demo: --optimizers: {name!r}: key=value is required, got {option!r}")
        try:
            keywords[key] = float(value)
        except ValueError:
            keywords[key] = value
    return keywords
