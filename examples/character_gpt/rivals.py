"""The rivals, torch's own AdamW and Muon, as factories that HuggingFace's Trainer takes."""

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

    def __init__(
        self,
        matrices: list[dict[str, Any]],
        others: list[dict[str, Any]],
        lr: float,
        other_lr: float,
    ) -> None:
        """Groups of matrices and of all else, if any; a group may set its own weight decay."""
        self._muon = Muon(matrices, lr, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(others or [{"params": []}], other_lr, betas=BETAS, fused=True)
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


def split(model: nn.Module, weight_decay: float) -> tuple[list[Any], list[Any]]:
    """Groups of a Llama: its hidden matrices, and embedding, head and norms (without decay)."""
    matrices, embeddings, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif "embed_tokens" in name or "lm_head" in name:
            embeddings.append(parameter)
        else:
            matrices.append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}], [
        {"params": embeddings, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


class MuonFactory:
    """No Optimizer itself, so Trainer hands over the whole model."""

    def __call__(
        self, model: nn.Module, *, lr: float, other_lr: float, weight_decay: float
    ) -> Optimizer:
        """Hidden matrices to Muon at `lr`, all else to AdamW at `other_lr`."""
        return MuonWithAdamW(*split(model, weight_decay), lr, other_lr)


class AdamWFactory:
    """No Optimizer itself, so Trainer hands over the whole model."""

    def __call__(
        self, model: nn.Module, *, lr: float, other_lr: float, weight_decay: float
    ) -> Optimizer:
        """AdamW with hidden matrices at `lr` and all else at `other_lr`."""
        matrices, others = split(model, weight_decay)
        groups = matrices + [{**group, "lr": other_lr} for group in others]
        return AdamW(groups, lr, betas=BETAS, fused=True)
