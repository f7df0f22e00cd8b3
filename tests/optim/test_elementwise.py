"""The rules beside matrices: torch's own AdamW and SGD, bit for bit, and sign."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import problem, run
from torch import nn

from schattor.optim import Schattor


def parity(group: dict[str, Any], theirs: type[torch.optim.Optimizer], **keys: Any) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        ours, twin = problem(dtype=dtype), problem(dtype=dtype)
        run(Schattor([{"params": ours.params, **group}], lr=0.1, **keys), ours, 4)
        names = {key: value for key, value in group.items() if key != "rule"}
        run(theirs(twin.params, lr=0.1, **names, **keys), twin, 4)
        assert all(torch.equal(a, b) for a, b in zip(ours.params, twin.params, strict=True))


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs(maximize: bool, weight_decay: float) -> None:
    group = {"rule": "adamw", "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": weight_decay}
    parity(group, torch.optim.AdamW, maximize=maximize)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "dampening"),
    [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, True, 0.0), (0.9, False, 0.5)],
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_torchs(
    momentum: float, nesterov: bool, dampening: float, weight_decay: float
) -> None:
    group = {"rule": "sgd", "dampening": dampening, "weight_decay": weight_decay}
    parity(group, torch.optim.SGD, momentum=momentum, nesterov=nesterov)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("form", "nesterov", "maximize"),
    [*itertools.product(("ema", "heavy_ball"), (False, True), (False, True))],
)
def test_sign_follows_its_formula(
    form: Any, nesterov: bool, maximize: bool, momentum: float
) -> None:
    param = nn.Parameter(torch.randn(7, dtype=torch.float64))
    truth, moment = param.detach().clone(), torch.zeros(7, dtype=torch.float64)
    optimizer = Schattor(
        [{"params": [param], "rule": "sign"}], lr=0.1, momentum=momentum, momentum_form=form,
        nesterov=nesterov, maximize=maximize, weight_decay=0.2,
    )  # fmt: skip
    share = 1 - momentum if form == "ema" else 1.0
    for _ in range(3):
        param.grad = torch.randn(7, dtype=torch.float64)
        grad = -param.grad if maximize else param.grad
        moment = momentum * moment + share * grad
        applied = momentum * moment + share * grad if nesterov else moment
        truth = (1 - 0.1 * 0.2) * truth - 0.1 * applied.sign()
        optimizer.step()
    torch.testing.assert_close(param.detach(), truth, rtol=1e-14, atol=1e-14)


def test_numpy_learning_rates_step() -> None:
    numpy = pytest.importorskip("numpy")
    for rule in ("matrix", "adamw", "sgd", "sign"):
        param = nn.Parameter(torch.zeros(3, 3))
        param.grad = torch.eye(3)
        Schattor([{"params": [param], "rule": rule}], lr=numpy.float32(0.1)).step()
        assert float(param.detach().abs().max()) > 0
