"""The rules that work entry by entry, for vectors, embeddings and heads: AdamW, SGD and sign.

AdamW and SGD are torch's own functions on our groups and states, so that they are what
``torch.optim`` computes, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.sgd import sgd as torch_sgd

from schattor.optim._settings import Group, State

__all__ = ["RULES", "Rate", "adamw", "sgd", "sign"]

# A learning rate: of one element, on the device, where a captured graph has to follow it.
Rate = float | Tensor


def _with_gradient(group: Group) -> list[Tensor]:
    return [p for p in group["params"] if p.grad is not None]


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _step_counter(group: Group, param: Tensor) -> Tensor:
    """Zero steps: on the host, unless a captured graph has to count them."""
    device = param.device if group["capturable"] else torch.device("cpu")
    return torch.zeros((), dtype=torch.float32, device=device)


def adamw(group: Group, state: State, lr: Rate) -> None:
    """One step of ``torch.optim.AdamW``: ``betas``, ``eps`` and decoupled ``weight_decay``.

    Moments exist after the first step for every parameter that requires a gradient, whether it
    had one or not, so that checkpoints of all ranks and runs hold the same keys.
    """
    for param in group["params"]:
        if (param.requires_grad or param.grad is not None) and "exp_avg" not in state[param]:
            state[param].setdefault("step", _step_counter(group, param))
            for key in ("exp_avg", "exp_avg_sq"):
                state[param][key] = torch.zeros_like(param, memory_format=torch.preserve_format)
    params = _with_gradient(group)
    beta1, beta2 = group["betas"]
    torch_adamw(
        params,
        _gradients(params),
        [state[p]["exp_avg"] for p in params],
        [state[p]["exp_avg_sq"] for p in params],
        [],
        [state[p]["step"] for p in params],
        capturable=group["capturable"],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def sgd(group: Group, state: State, lr: Rate) -> None:
    """One step of ``torch.optim.SGD``: heavy ball, and ``weight_decay`` as an L2 term of the loss.

    As in torch, a parameter's momentum begins with its first gradient, undampened.
    """
    params = _with_gradient(group)
    gradients = _gradients(params)
    if group["nesterov"] and not all(gradient.is_cpu for gradient in gradients):
        # In lists, as it takes them elsewhere, torch adds the momentum to the gradients themselves.
        gradients = list(torch._foreach_mul(gradients, 1))
    momenta: list[Tensor | None] = [state[p].get("momentum_buffer") for p in params]
    torch_sgd(
        params,
        gradients,
        momenta,
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=float(lr),
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
    )
    if group["momentum"] != 0:
        for param, momentum in zip(params, momenta, strict=True):
            state[param]["momentum_buffer"] = momentum


def sign(group: Group, state: State, lr: Rate) -> None:
    """One step along the sign of the momentum: ``w <- (1 - lr decay) w - lr sign(M)``.

    ``lr`` is the group's times its ``nonstandard_constant``.

    The ball oracle of the largest-entry norm, which is the Schatten norm (p=inf) of ``diag(g)``
    (Schattor, arXiv 2606.15702, vector blocks). ``M`` follows ``momentum``, ``momentum_form`` and
    ``nesterov`` as a matrix would.
    """
    lr = lr * group.get("nonstandard_constant", 1.0)
    momentum = group["momentum"]
    share = 1 - momentum if group["momentum_form"] == "ema" else 1.0
    for param in _with_gradient(group):
        assert param.grad is not None
        grad = -param.grad if group["maximize"] else param.grad
        applied = grad
        if momentum != 0:
            if "momentum_buffer" not in state[param]:
                state[param]["momentum_buffer"] = torch.zeros_like(param)
            buffer = state[param]["momentum_buffer"]
            buffer.mul_(momentum).add_(grad, alpha=share)
            applied = momentum * buffer + share * grad if group["nesterov"] else buffer
        param.mul_(1 - lr * group["weight_decay"]).sub_(lr * applied.sign())


RULES: dict[str, Callable[[Group, State, Rate], None]] = {"adamw": adamw, "sgd": sgd, "sign": sign}
