"""Members of the preconditioned family against their published rules, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import paper_rules as rules
import pytest
import torch
from cases import F64
from streams import gradients, run
from torch import Tensor, nn

from schattor.optim import KLSOAP, SOAP, KLShampoo, MuAdam, MuAdamSania, Schattor, Shampoo, SPlus

STEPS = 24
SHAPES = [(16, 16), (8, 5), (5, 8), (12, 30)]


class Member(NamedTuple):
    ours: Callable[[Any], Schattor]
    published: Callable[[], rules.Rule]
    float32: float  # the largest error of a weight after all steps in float32


EPS = 1e-12  # where ours and the paper's stand on different sides of the bias correction
EXACT: dict[str, Any] = {"preconditioner": "adam", "scale": "spectral", "method": "exact"}
MEMBERS = {
    "muadam": Member(
        lambda p: Schattor(
            p, 1e-2, **EXACT, momentum=0.9, nesterov=False, betas=(0.9, 0.999), eps=EPS
        ),
        lambda: rules.MuAdam(lr=1e-2, eps=EPS),
        1e-5,
    ),
    "shampoo_sum": Member(
        lambda p: Shampoo(p, precondition_frequency=3, weight_decay=0.1),
        lambda: rules.Shampoo(period=3, decay=0.1),
        1e-5,
    ),
    "shampoo_average": Member(
        lambda p: Shampoo(p, betas=(0.9, 0.99), precondition_frequency=1, epsilon=1e-4),
        lambda: rules.Shampoo(period=1, betas=(0.9, 0.99), eps=1e-4),
        1e-4,
    ),
    "shampoo_uncorrected": Member(
        lambda p: Shampoo(
            p, betas=(0.9, 0.99), precondition_frequency=1, epsilon=1e-4, use_bias_correction=False
        ),
        lambda: rules.Shampoo(period=1, betas=(0.9, 0.99), eps=1e-4, bias_correction=False),
        1e-4,
    ),
    "shampoo_sgd": Member(
        lambda p: Shampoo(
            p, precondition_frequency=2, start_preconditioning_step=7, grafting="sgd", epsilon=1e-10
        ),
        lambda: rules.Shampoo(period=2, start=7, grafting="sgd", eps=1e-10),
        1e-5,
    ),
    "shampoo_adam": Member(
        lambda p: Shampoo(p, precondition_frequency=3, grafting="adam", epsilon=1e-10),
        lambda: rules.Shampoo(period=3, grafting="adam", eps=1e-10),
        1e-5,
    ),
    "kl_shampoo": Member(
        lambda p: KLShampoo(p, lr=1e-3, precondition_frequency=3, weight_decay=0.1),
        lambda: rules.KLShampoo(lr=1e-3, period=3, decay=0.1),
        5e-6,
    ),
    "kl_soap": Member(
        lambda p: KLSOAP(p, lr=1e-3, precondition_frequency=3, weight_decay=0.1),
        lambda: rules.KLSOAP(lr=1e-3, period=3, decay=0.1),
        5e-6,
    ),
    "soap_1": Member(
        lambda p: SOAP(p, precondition_frequency=1), lambda: rules.SOAP(period=1), 5e-6
    ),
    "soap_3": Member(
        lambda p: SOAP(p, precondition_frequency=3, weight_decay=0.1),
        lambda: rules.SOAP(period=3, decay=0.1),
        5e-6,
    ),
    "soap_never": Member(
        lambda p: SOAP(p, shampoo_beta=0.9, correct_bias=False, precondition_frequency=100),
        lambda: rules.SOAP(shampoo_beta=0.9, correct_bias=False, period=100),
        1e-4,
    ),
    "splus": Member(lambda p: SPlus(p, inverse_every=4), lambda: rules.SPlus(period=4), 1e-5),
}


def bases_of(optimizer: Schattor, param: Tensor) -> list[Tensor]:
    """Left and right eigenbases; a state's rows are the shorter side."""
    entry = optimizer.state[param]
    sides = [entry[key].to(F64, copy=True) for key in ("basis_rows", "basis_cols")]
    return sides[::-1] if param.shape[0] > param.shape[1] else sides


def worst_difference(
    member: Member, shape: tuple[int, int], dtype: torch.dtype, steps: int = STEPS
) -> float:
    w = gradients(shape, 1, seed=2)[0]
    param = nn.Parameter(w.to(dtype, copy=True))
    optimizer, rule, worst = member.ours([param]), member.published(), 0.0
    # Bases of the null space of few gradients are arbitrary: the rule is given ours.
    deficient = max(shape) // min(shape) + 1 if rule.__class__ is rules.SPlus else 1
    for t, g in enumerate(gradients(shape, steps)):
        param.grad = g.to(dtype)
        optimizer.step()
        w = rule.step(w, param.grad)
        if rule.bases and t <= deficient:
            rule.bases = bases_of(optimizer, param)
        worst = max(worst, float((param.detach() - w).abs().max()))
    return worst


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())
def test_members_follow_their_papers(member: Member, shape: tuple[int, int]) -> None:
    assert worst_difference(member, shape, F64) < 1e-9
    assert worst_difference(member, shape, torch.float32) < member.float32


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (12, 30)], ids=str)
def test_sania_follows_its_paper(shape: tuple[int, int]) -> None:
    """Relative to the weights, some of which move by the inverse of a very small gradient.

    (Of a square matrix the first step would be the polar factor of all signs, which may be any.)
    """
    w = gradients(shape, 1, seed=2)[0]
    param = nn.Parameter(w.clone())
    settings: dict[str, Any] = {**EXACT, "preconditioner": "sania", "momentum": 0.9}
    optimizer = Schattor([param], 1e-2, **settings, nesterov=False, betas=(0.9, 0.999), eps=EPS)
    rule = rules.MuAdamSania(lr=1e-2, eps=EPS)
    for g in gradients(shape, STEPS):
        param.grad = g
        optimizer.step()
        w = rule.step(w, param.grad)
        assert float((param.detach() - w).abs().max() / w.abs().max()) < 1e-8


@pytest.mark.parametrize(("preset", "name"), [(MuAdam, "adam"), (MuAdamSania, "sania")])
def test_muadam_presets_are_the_exact_rule_to_their_chain(preset: type[MuAdam], name: str) -> None:
    """Relative to the weights' own size, as the rule's step has no size of its own."""
    params = [nn.Parameter(gradients((24, 40), 1, seed=3)[0].float()) for _ in range(2)]
    settings: dict[str, Any] = {**EXACT, "preconditioner": name}
    pair = (
        preset([params[0]], lr=1e-3),
        Schattor([params[1]], 1e-3, **settings, momentum=0.9, nesterov=False, betas=(0.9, 0.999)),
    )
    starts = [param.detach().clone() for param in params]
    for g in gradients((24, 40), 5):
        for param, optimizer in zip(params, pair, strict=True):
            param.grad = g.float()
            optimizer.step()
    moved, exact = (p.detach() - s for p, s in zip(params, starts, strict=True))
    assert float((moved - exact).norm() / exact.norm()) < 0.01


def test_splus_evaluates_at_the_average_of_its_weights() -> None:
    w = gradients((16, 16), 1, seed=2)[0]
    param = nn.Parameter(w.clone())
    optimizer = SPlus([param], inverse_every=4, ema_rate=0.9, weight_decay=0.0)
    rule = rules.SPlus(period=4, ema_rate=0.9, decay=0.0)
    for g in gradients((16, 16), 9):
        param.grad = g
        optimizer.step()
        w = rule.step(w, g)
    optimizer.eval()
    assert torch.allclose(param.detach(), rule.eval_weights(), atol=1e-12)
    with pytest.raises(RuntimeError, match="step must be called in train mode"):
        optimizer.step()
    optimizer.eval()  # twice is once
    optimizer.train()
    assert torch.allclose(param.detach(), w, atol=1e-12)
    optimizer.step()


def test_splus_is_saved_at_its_average_and_resumed_where_it_was() -> None:
    """As HuggingFace's Trainer does: it evaluates, then saves, and trains on."""
    params = [nn.Parameter(torch.zeros(6, 6, dtype=F64)) for _ in range(2)]
    optimizers = [SPlus([param], inverse_every=2, ema_rate=0.5) for param in params]
    grads = gradients((6, 6), 6)
    run(optimizers[0], params[0], grads[:4])
    optimizers[0].eval()
    params[1].data.copy_(params[0])
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for optimizer, param in zip(optimizers, params, strict=True):
        optimizer.train()
        run(optimizer, param, grads[4:])
    assert torch.equal(params[0], params[1])


def test_splus_moves_vectors_by_their_sign_at_a_rate_of_their_own() -> None:
    param = nn.Parameter(torch.zeros(5, dtype=F64))
    optimizer = SPlus([param], lr=0.1, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=10)
    rule, w = rules.SPlus(lr=0.05, decay=0.0), torch.zeros(5, dtype=F64)
    for g in gradients((5,), 6):
        param.grad = g
        optimizer.step()
        w = rule.step(w, g)
    assert torch.allclose(param.detach(), w, atol=1e-15)
    assert scheduler.get_last_lr() == [0.1 * 0.5]
    assert optimizer.param_groups[0]["nonstandard_constant"] == 0.001
