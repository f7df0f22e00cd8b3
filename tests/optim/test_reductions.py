"""What members of the family become in special cases, and which changes of the data they follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import paper_rules as rules
import pytest
import torch
from cases import F64
from streams import gradients, run
from torch import Tensor, nn

from schattor.optim import SOAP, KLShampoo, MuAdam, MuAdamSania, Schattor, Shampoo, SPlus

STEPS = 24


# Reductions.


def test_adam_at_p_two_is_adamw() -> None:
    param, twin = (nn.Parameter(torch.ones(7, 4, dtype=F64)) for _ in range(2))
    grads = gradients((7, 4), STEPS)
    shared: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    dial: dict[str, Any] = {"p": 2, "oracle": "regularized", "preconditioner": "adam"}
    run(Schattor([param], **shared, **dial, momentum=0.9, nesterov=False), param, grads)
    theirs = torch.optim.AdamW([twin], **shared)
    for g in grads:
        twin.grad = g
        theirs.step()
    assert torch.allclose(param, twin, rtol=0, atol=1e-14)


@pytest.mark.parametrize("oracle", ["ball", "regularized"])
def test_padam_goes_from_adam_to_muon(oracle: str) -> None:
    def moved(preconditioner: str | None, p: float) -> Tensor:
        param = nn.Parameter(torch.zeros(6, 9, dtype=F64))
        settings: dict[str, Any] = {"oracle": oracle, "method": "exact", "bias_correction": True}
        optimizer = Schattor(
            [param], lr=0.1, p=p, preconditioner=preconditioner, eps=0.0, **settings
        )
        return run(optimizer, param, gradients((6, 9), 5))

    assert torch.allclose(moved("padam", 2.0), moved("adam", 2.0), atol=1e-13)
    assert torch.allclose(moved("padam", math.inf), moved(None, math.inf), atol=1e-12)


def test_soap_without_sides_is_adam_with_its_first_call_skipped() -> None:
    param, twin = (nn.Parameter(torch.ones(7, 4, dtype=F64)) for _ in range(2))
    grads = gradients((7, 4), STEPS)
    run(SOAP([param], lr=1e-2, max_precond_dim=1, eps=1e-15, weight_decay=0.0), param, grads)
    theirs = torch.optim.Adam([twin], lr=1e-2, betas=(0.95, 0.95), eps=1e-15)
    for g in grads[1:]:
        twin.grad = g
        theirs.step()
    assert torch.allclose(param, twin, rtol=0, atol=1e-12)


def test_shampoo_that_never_starts_with_adam_grafted_is_adamw() -> None:
    param, twin = (nn.Parameter(torch.ones(7, 4, dtype=F64)) for _ in range(2))
    grads = gradients((7, 4), STEPS)
    settings: dict[str, Any] = {"weight_decay": 0.1, "lr": 1e-3}
    ours = Shampoo(
        [param],
        **settings,
        epsilon=1e-8,
        start_preconditioning_step=10**6,
        grafting="adam",
    )
    run(ours, param, grads)
    theirs = torch.optim.AdamW([twin], **settings)
    for g in grads:
        twin.grad = g
        theirs.step()
    assert torch.allclose(param, twin, rtol=0, atol=1e-13)


def test_one_sided_shampoo_takes_the_whole_root_on_its_side() -> None:
    """``A^-1/2 G`` of one gradient is its polar factor, times c."""
    param = nn.Parameter(torch.zeros(4, 9, dtype=F64))
    (g,) = gradients((4, 9), 1)
    optimizer = Schattor(
        [param],
        lr=1.0,
        p=2,
        oracle="regularized",
        preconditioner="shampoo",
        shampoo_beta=1.0,
        max_precond_dim=4,
        momentum=0.0,
        eps=0.0,
    )
    assert torch.allclose(run(optimizer, param, [g]), -rules.polar(g), atol=1e-12)


def test_shampoo_of_one_gradient_is_its_polar_factor() -> None:
    param = nn.Parameter(torch.zeros(6, 6, dtype=F64))
    (g,) = gradients((6, 6), 1)
    optimizer = Shampoo([param], lr=1.0, betas=(0.0, 1.0), epsilon=0.0)
    assert torch.allclose(run(optimizer, param, [g]), -rules.polar(g), atol=1e-12)


def test_splus_with_identity_bases_is_sign_descent() -> None:
    param = nn.Parameter(torch.zeros(6, 9, dtype=F64))
    grads = gradients((6, 9), 5)
    optimizer = SPlus([param], lr=1.0, b1=0.0, max_dim=1, weight_decay=0.0)
    expected = -2 / 15 * sum(g.sign() for g in grads)
    assert torch.allclose(run(optimizer, param, grads), expected, atol=1e-14)


def test_factored_moments_of_separable_squares_are_the_full_ones() -> None:
    rows, cols = torch.arange(1.0, 7, dtype=F64), torch.arange(1.0, 10, dtype=F64)
    sign = gradients((6, 9), 1)[0].sign()
    grads = [t * sign * torch.outer(rows, cols) for t in (1.0, -2.0, 0.5)]
    results = []
    for kind in ("full", "factored"):
        param = nn.Parameter(torch.zeros(6, 9, dtype=F64))
        optimizer = Schattor([param], lr=0.1, preconditioner="adam", second_moment=kind)  # type: ignore[arg-type]
        results.append(run(optimizer, param, grads).clone())
    assert torch.allclose(*results, atol=1e-12)
    assert sorted(optimizer.state[param]) == [
        "momentum_buffer",
        "square_cols",
        "square_rows",
        "step",
    ]


# Equivariance.


@pytest.mark.parametrize(
    ("make", "holds"),
    [
        (lambda p: SOAP(p, precondition_frequency=2), True),
        (lambda p: KLShampoo(p, precondition_frequency=2), True),
        (lambda p: Shampoo(p, precondition_frequency=2), True),
        (lambda p: Schattor(p, method="exact"), True),
        (lambda p: SPlus(p, inverse_every=2), False),
        (lambda p: Schattor(p, preconditioner="adam", method="exact"), False),
    ],
    ids=["soap", "kl_shampoo", "shampoo", "schattor", "splus", "muadam"],
)
def test_rotations_of_all_gradients_rotate_the_weights(
    make: Callable[[Any], Schattor], holds: bool
) -> None:
    left, right = (torch.linalg.qr(g)[0] for g in gradients((8, 8), 2, seed=5))
    grads = gradients((8, 8), 7)
    moved = []
    for turned in (False, True):
        param = nn.Parameter(torch.zeros(8, 8, dtype=F64))
        run(make([param]), param, [left @ g @ right if turned else g for g in grads])
        moved.append(param.detach() if turned else left @ param.detach() @ right)
    assert torch.allclose(*moved, atol=1e-9) == holds


@pytest.mark.parametrize(("preset", "degree"), [(MuAdam, -0.5), (MuAdamSania, -1.0)])
def test_steps_scale_with_a_power_of_the_gradients(preset: type[MuAdam], degree: float) -> None:
    sizes = []
    for scale in (1.0, 16.0):
        param = nn.Parameter(torch.zeros(6, 9, dtype=F64))
        run(preset([param], adamw_eps=0.0), param, [scale * g for g in gradients((6, 9), 4)])
        sizes.append(float(param.detach().norm()))
    assert sizes[1] / sizes[0] == pytest.approx(16.0**degree, rel=1e-6)


def test_sania_alone_follows_a_rescaling_of_features() -> None:
    scales = torch.logspace(-3, 3, 9, dtype=F64)
    grads = gradients((6, 9), 6)
    for preset, holds in ((MuAdamSania, True), (MuAdam, False)):
        moved = []
        for scaled in (False, True):
            param = nn.Parameter(torch.zeros(6, 9, dtype=F64))
            optimizer = preset([param], lr=0.1, adamw_eps=0.0)
            run(optimizer, param, [g * scales if scaled else g for g in grads])
            moved.append(param.detach() * scales if scaled else param.detach())
        assert torch.allclose(*moved, rtol=1e-9) == holds
