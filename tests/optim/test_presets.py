"""Presets against the optimizers whose names they bear."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import paper_step, problem, run, unit_ball, weights_of
from torch import Tensor, nn

from schattor.optim import SGD, AdamW, Muon, Schattor
from schattor.theory import chains

SHAPES = ((12, 12), (8, 20), (20, 8))


def polar_step(before: Tensor, grad: Tensor, lr: float, decay: float, adjust: str | None) -> Tensor:
    """Muon's first step with the exact polar factor."""
    unit, _ = unit_ball(grad, 0.0)
    m, n = grad.shape
    size = 0.2 * max(m, n) ** 0.5 if adjust == "match_rms_adamw" else max(1, m / n) ** 0.5
    return (1 - lr * decay) * before.double() - lr * size * unit


@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
def test_muon_is_nearer_to_the_polar_factor_than_torchs(adjust: Any) -> None:
    ours, theirs = problem(SHAPES, torch.float32), problem(SHAPES, torch.float32)
    before, grads = weights_of(ours), [param.grad for param in ours.params]
    truth = [polar_step(w, g, 0.1, 0.1, adjust) for w, g in zip(before, grads, strict=True)]
    Muon(ours.params, lr=0.1, adjust_lr_fn=adjust).step()
    torch.optim.Muon(theirs.params, lr=0.1, adjust_lr_fn=adjust).step()
    for a, b, t, w in zip(ours.params, theirs.params, truth, before, strict=True):
        step = (t - w.double()).norm()
        error, theirs_error = ((x.detach().double() - t).norm() / step for x in (a, b))
        assert error < 3 * chains.band(0.0, 5) + 1e-3
        assert error < theirs_error


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
@pytest.mark.parametrize("row", ["jordan", "torch"])
def test_muon_with_jordans_row_is_torchs_within_its_error(
    nesterov: bool, adjust: Any, row: str
) -> None:
    ours, theirs = problem(SHAPES, torch.float32), problem(SHAPES, torch.float32)
    keys: dict[str, Any] = {"lr": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    theirs_optimizer = torch.optim.Muon(theirs.params, **keys)
    triple = theirs_optimizer.param_groups[0]["ns_coefficients"]
    chosen = "jordan" if row == "jordan" else triple
    ours_optimizer = Muon(ours.params, ns_coefficients=chosen, **keys)
    start = weights_of(ours)
    truth, momenta = [w.double() for w in start], [torch.zeros_like(w) for w in start]
    for step in range(3):
        ours.next_gradients(step)
        truth, momenta = paper_step(
            truth,
            [param.grad for param in ours.params],
            momenta,
            lr=0.1,
            power=0.0,
            scale="rms" if adjust else "spectral",
            momentum=0.95,
            nesterov=nesterov,
            decay=0.1,
        )
        ours_optimizer.step()
    run(theirs_optimizer, theirs, 3)
    # Five steps of this row do not converge, and ours begin at the Schatten-4 norm, torch's at the
    # Frobenius norm: they are held to one distance from the polar factor, and to one direction.
    for a, b, t, w in zip(ours.params, theirs.params, truth, start, strict=True):
        a, b, w = a.detach().double(), b.detach().double(), w.double()
        assert (a - t).norm() < 2 * (b - t).norm()
        assert torch.nn.functional.cosine_similarity((a - w).flatten(), (b - w).flatten(), 0) > 0.97


def test_muon_takes_the_defaults_of_torchs() -> None:
    params = [nn.Parameter(torch.zeros(2, 2))]
    ours, theirs = Muon(params).param_groups[0], torch.optim.Muon(params).param_groups[0]
    for key in ("lr", "weight_decay", "momentum", "nesterov"):
        assert ours[key] == theirs[key]
    assert ours["steps"] == theirs["ns_steps"]


def test_muon_gives_the_rest_to_adamw() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 9))
    optimizer = Muon(net, lr=0.02, adamw_lr=1e-3, betas=(0.8, 0.9))
    rules = {name: g["rule"] for g in optimizer.param_groups for name in g["param_names"]}
    assert [name for name, rule in rules.items() if rule == "matrix"] == ["1.weight"]
    assert {g["lr"] for g in optimizer.param_groups if g["rule"] == "adamw"} == {1e-3}
    net(torch.zeros(1, dtype=torch.long)).sum().backward()
    before = [param.detach().clone() for param in net.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"adjust_lr_fn": "moonshot"}, 'adjust_lr_fn must be None, "original" or "match_rms'),
        ({"ns_coefficients": (1.0, 2.0, 3.0)}, "Muon: ns_coefficients must be one of schattor, j"),
        ({"ns_coefficients": "quick"}, "Muon: ns_coefficients must be"),
        ({"ns_steps": 3}, "Muon: steps must be in [4, 10], got 3"),
    ],
)
def test_muon_refuses(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Muon([nn.Parameter(torch.zeros(2, 2))], **keys)


SGD_KEYS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
]


@pytest.mark.parametrize("keys", SGD_KEYS, ids=str)
def test_sgd_is_torchs(keys: dict[str, Any]) -> None:
    ours, theirs = problem(dtype=torch.float32), problem(dtype=torch.float32)
    run(SGD(ours.params, 0.1, **keys), ours, 4)
    run(torch.optim.SGD(theirs.params, 0.1, **keys), theirs, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours.params, theirs.params, strict=True))


@pytest.mark.parametrize("keys", [{"nesterov": True}, {"nesterov": True, "dampening": 0.1}])
def test_sgd_refuses_nesterov_without_momentum(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SGD: nesterov needs momentum > 0 and dampening 0"):
        SGD([nn.Parameter(torch.zeros(2))], **keys)


@pytest.mark.parametrize("keys", [{}, {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3}])
def test_adamw_is_torchs(keys: dict[str, Any]) -> None:
    ours, theirs = problem(dtype=torch.float32), problem(dtype=torch.float32)
    run(AdamW(ours.params, 0.01, **keys), ours, 4)
    run(torch.optim.AdamW(theirs.params, 0.01, **keys), theirs, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours.params, theirs.params, strict=True))


@pytest.mark.parametrize("preset", [SGD, AdamW])
def test_presets_of_one_rule_take_modules_names_and_groups(preset: type[Schattor]) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    rule = preset.__name__.lower()
    for params in (net, net.parameters(), net.named_parameters(), [{"params": net.parameters()}]):
        groups = preset(params, lr=0.1).param_groups
        assert {group["rule"] for group in groups} == {rule}
        assert sum(len(group["params"]) for group in groups) == 4
