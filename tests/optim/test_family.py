"""Members of the preconditioned family against their published rules, and how they combine."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import paper_rules as rules
import pytest
import torch
from cases import F64, calls_to_move
from torch import Tensor, nn

import schattor
from schattor.optim import SOAP, KLShampoo, MuAdam, MuAdamSania, Schattor, Shampoo, SPlus
from schattor.theory.preconditioners import PRECONDITIONERS

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


def gradients(shape: tuple[int, ...], count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64) for _ in range(count)]


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
    assert scheduler.get_last_lr() == [0.1 * 0.001 * 0.5]


# Reductions.


def run(optimizer: Schattor, param: nn.Parameter, grads: list[Tensor]) -> Tensor:
    for g in grads:
        param.grad = g.to(param.dtype)
        optimizer.step()
    return param.detach()


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


# Combinations.


@pytest.mark.parametrize("name", [None, *PRECONDITIONERS])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("norm", ["schatten", "entries"])
def test_any_preconditioner_takes_any_p(name: str | None, p: float, norm: str) -> None:
    """The oracle's promise in the preconditioned norm: size 1 there, and ``-<M, D>`` dual to it."""
    param = nn.Parameter(torch.zeros(6, 9, dtype=F64))
    optimizer = Schattor(
        [param],
        lr=1.0,
        p=p,
        norm=norm,  # type: ignore[arg-type]
        preconditioner=name,
        precondition_frequency=1,
        momentum=0.0,
        scale="unit",
        eps=1e-6,
    )
    grads = gradients((6, 9), 4)
    run(optimizer, param, grads[:-1])
    before = param.detach().clone()
    run(optimizer, param, grads[-1:])
    step = before - param.detach()
    (block,) = optimizer.stats()["blocks"].values()
    # <M, D> = |M|_dual for a step D of unit norm: true of a preconditioned norm as of any other.
    expected = float((grads[-1] * step).sum())
    assert expected == pytest.approx(block["dual_norm"], rel=1e-2)


def test_blocks_have_statistics_of_their_own() -> None:
    """Fused and split, a weight takes the same steps; the state's keys say which block is whose."""
    fused = nn.Parameter(torch.zeros(12, 4, dtype=F64))
    parts = [nn.Parameter(torch.zeros(4, 4, dtype=F64)) for _ in range(3)]
    one = SOAP([{"params": [fused], "blocks": {"rows": 3}}], precondition_frequency=2)
    many = SOAP(parts, precondition_frequency=2)
    for g in gradients((12, 4), 6):
        fused.grad = g
        one.step()
        for index, part in enumerate(parts):
            part.grad = g[4 * index : 4 * index + 4]
        many.step()
    assert torch.equal(fused.detach(), torch.cat([part.detach() for part in parts]))
    assert {"factor_rows.0", "basis_cols.2"} <= set(one.state[fused])


def test_longer_sides_are_cut_for_shampoo_and_left_out_for_soap() -> None:
    param = nn.Parameter(torch.zeros(10, 3))
    param.grad = torch.ones(10, 3)
    shampoo, soap = Shampoo([param], max_preconditioner_dim=4), SOAP([param], max_precond_dim=4)
    for optimizer in (shampoo, soap):
        optimizer.step()
    sizes = {key: tuple(value.shape) for key, value in shampoo.state[param].items()}
    assert sizes["factor_cols.0"] == (4, 4) and sizes["factor_rows.2"] == (2, 2)
    assert "factor_rows" in soap.state[param] and "factor_cols" not in soap.state[param]


def test_staggered_refreshes_are_spread_over_the_period() -> None:
    params = [nn.Parameter(torch.zeros(4, 4, dtype=F64)) for _ in range(6)]
    optimizer = SOAP(params, precondition_frequency=3, stagger=True)
    turned = []
    for g in gradients((4, 4), 8):
        before = [optimizer.state[p]["basis_rows"].clone() for p in params if optimizer.state[p]]
        for index, param in enumerate(params):
            param.grad = g.roll(index, 0)
        optimizer.step()
        pairs = zip(params, before, strict=False)
        turned.append([not torch.equal(optimizer.state[p]["basis_rows"], b) for p, b in pairs])
    assert [sum(step) for step in turned[1:]] == [2] * 7


def test_a_basis_that_cannot_be_decomposed_stays_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = [nn.Parameter(torch.zeros(4, 4, dtype=F64)) for _ in range(2)]
    optimizer = Shampoo(params, precondition_frequency=1)
    for index, g in enumerate(gradients((4, 4), 2)):
        params[index].grad = g
    optimizer.step()
    roots = [optimizer.state[p]["root_rows"].clone() for p in params]
    real, calls = torch.linalg.eigh, []

    def broken(factor: Tensor) -> Any:
        calls.append(factor.shape)
        if factor.ndim == 3 or len(calls) == 2:
            raise torch.linalg.LinAlgError("no convergence")
        return real(factor)

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    params[1].grad = params[1].grad.flip(0)
    optimizer.step()
    assert optimizer.stats()["failed_refreshes"] == 1
    assert torch.equal(optimizer.state[params[0]]["root_rows"], roots[0])
    assert not torch.equal(optimizer.state[params[1]]["root_rows"], roots[1])
    assert all(param.isfinite().all() for param in params)


def test_statistics_stay_float32_beside_bfloat16_weights(tmp_path: Any) -> None:
    param = nn.Parameter(torch.zeros(6, 4, dtype=torch.bfloat16))
    optimizer = SOAP([param], precondition_frequency=2)
    run(optimizer, param, gradients((6, 4), 3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twin = nn.Parameter(param.detach().clone())
    again = SOAP([twin], precondition_frequency=2)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for key in ("factor_rows", "basis_cols", "exp_avg_sq"):
        assert again.state[twin][key].dtype == torch.float32
        assert torch.equal(again.state[twin][key], optimizer.state[param][key])
    for g in gradients((6, 4), 3, seed=9):
        run(optimizer, param, [g])
        run(again, twin, [g])
        assert torch.equal(param, twin)


def test_a_factor_of_another_shape_is_refused_before_anything_is_loaded() -> None:
    params = [nn.Parameter(torch.zeros(6, 4)) for _ in range(2)]
    optimizers = [SOAP([param]) for param in params]
    for optimizer, param in zip(optimizers, params, strict=True):
        run(optimizer, param, gradients((6, 4), 2))
    saved = optimizers[0].state_dict()
    saved["state"][0]["factor_rows"] = torch.zeros(5, 5)
    before = optimizers[1].state[params[1]]["factor_rows"].clone()
    with pytest.raises(ValueError, match=r"factor_rows of parameter 0 must have shape \(4, 4\)"):
        optimizers[1].load_state_dict(saved)
    assert torch.equal(optimizers[1].state[params[1]]["factor_rows"], before)


def test_the_first_call_of_soap_moves_no_matrix() -> None:
    param = nn.Parameter(torch.ones(4, 4))
    optimizer = SOAP([param])
    run(optimizer, param, gradients((4, 4), calls_to_move(optimizer) - 1))
    assert torch.equal(param.detach(), torch.ones(4, 4))


# By name.


@pytest.mark.parametrize("name", schattor.available())
def test_members_come_by_name_and_descend(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(64, 8), torch.randn(64, 3)
    optimizer = schattor.create(name, model, lr=1e-2 if name != "splus" else 0.1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_names_are_forgiving_and_wrong_ones_say_what_there_is() -> None:
    assert isinstance(schattor.create("KL-Shampoo", nn.Linear(2, 2)), KLShampoo)
    with pytest.raises(ValueError, match="got 'soup'; did you mean 'soap'"):
        schattor.create("soup", nn.Linear(2, 2))


def test_groups_added_later_follow_their_preset() -> None:
    matrix, vector = nn.Parameter(torch.zeros(10, 3)), nn.Parameter(torch.zeros(3))
    for preset, wanted in (
        (Shampoo, ("blocks", {"most": 1024})),
        (KLShampoo, ("init_factor", 0.1)),
        (schattor.SGD, ("rule", "sgd")),
        (schattor.AdamW, ("rule", "adamw")),
    ):
        optimizer = copy.deepcopy(preset([vector]))
        optimizer.add_param_group({"params": [matrix], "rule": "matrix"})
        assert optimizer.param_groups[-1][wanted[0]] == wanted[1]
