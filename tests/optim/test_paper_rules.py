"""The oracle `paper_rules.py` against other implementations, reductions and symmetries.

A rule that an installed package has is run beside it; the others must reduce to one of those, or
have the symmetries of their formulas.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import paper_rules as rules
import pytest
import torch
from streams import F64, STEPS, gradients, moved, normal, one_thread, steps_of  # noqa: F401
from torch import Tensor, nn

MATRICES = ((6, 6), (8, 5), (5, 8))


def beside(rule: rules.Rule, param: Tensor, other: Any, bases: str = "", until: int = 0) -> float:
    """The largest difference in 25 steps; the rule takes over the first ``until`` bases."""
    w, worst = param.detach().clone(), 0.0
    for step, g in enumerate(gradients(tuple(param.shape))):
        param.grad = g.clone()
        other.step()
        w = rule.step(w, g)
        if step < until:
            theirs = [*other.state[param][bases], None][:2]  # a vector has one
            pairs = zip(rule.bases, theirs, strict=True)
            rule.bases = [own if q is None or len(q) == 0 else q.clone() for own, q in pairs]
        worst = max(worst, float((param.detach() - w).abs().max()))
    assert float((w - normal(*w.shape)).abs().max()) > 1e-3
    return worst


# Beside other implementations.


def test_powers() -> None:
    x, lone = normal(7, 4), torch.outer(normal(7), normal(4))
    assert torch.allclose(rules.schatten(x, 3.0), x @ x.mT @ x, rtol=1e-12)
    assert torch.allclose(rules.schatten(rules.schatten(x, 0.5), 2.0), x, rtol=1e-10)
    assert torch.allclose(rules.polar(x).mT @ x, rules.schatten(x.mT @ x, 0.5), rtol=1e-10)
    assert torch.allclose(rules.polar(lone), lone / lone.norm(), rtol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "options",
    [{}, {"dampening": 0.3}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.3},
     {"momentum": 0.9, "nesterov": True}],
)  # fmt: skip
def test_sgd(options: dict[str, Any], decay: float) -> None:
    param = nn.Parameter(normal(5, 3))
    other = torch.optim.SGD([param], lr=0.1, weight_decay=decay, **options)
    assert beside(rules.SGD(lr=0.1, decay=decay, **options), param, other) < 1e-13


@pytest.mark.parametrize("shape", [(5, 3), (7,), (1, 1), (2, 3, 4)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw(shape: tuple[int, ...], decay: float) -> None:
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-2}
    param = nn.Parameter(normal(*shape))
    other = torch.optim.AdamW([param], weight_decay=decay, **options)
    assert beside(rules.AdamW(decay=decay, **options), param, other) < 1e-13


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_muon(
    shape: tuple[int, int], adjust: Any, nesterov: bool, exact: bool, monkeypatch: Any
) -> None:
    """All but Newton-Schulz is equal; its singular values are within 0.5 of one."""
    if exact:
        place = "torch.optim._muon._zeropower_via_newtonschulz"
        monkeypatch.setattr(place, lambda x, *_: rules.polar(x))
    rule = rules.Muon(lr=0.01, decay=0.1, nesterov=nesterov, adjust=adjust)
    param = nn.Parameter(normal(*shape))
    other = torch.optim.Muon([param], lr=0.01, nesterov=nesterov, adjust_lr_fn=adjust)
    error = beside(rule, param, other)
    size = math.sqrt(1.6) if adjust == "original" else 0.2 * math.sqrt(8)
    assert error < (1e-13 if exact else 0.5 * 0.01 * size * STEPS)


@pytest.fixture
def package(monkeypatch: Any) -> Any:
    """pytorch-optimizer, without its casts to float32 in front of decompositions."""
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, *a, **k: x if a == (torch.float32,) else to(x, *a, **k)
    )
    return pytest.importorskip("pytorch_optimizer")


@pytest.mark.parametrize("shape", [*MATRICES, (3, 4), (2,), (7,), (7, 1), (1, 7)])
@pytest.mark.parametrize("period", [1, 3, 50])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "options", [{}, {"max_precond_dim": 6}, {"correct_bias": False}, {"precondition_1d": True}]
)
def test_soap(
    shape: tuple[int, ...], period: int, decay: float, options: dict[str, Any], package: Any
) -> None:
    """Where two gradients do not span the space only the first bases are compared."""
    period = 50 if 7 in shape else period
    rule = rules.SOAP(lr=0.01, decay=decay, period=period, shampoo_beta=0.8, **options)
    theirs = {key.replace("precond_dim", "precondition_dim"): v for key, v in options.items()}
    theirs |= {"weight_decay": decay, "precondition_frequency": period, "shampoo_beta": 0.8}
    param = nn.Parameter(normal(*shape))
    assert beside(rule, param, package.SOAP([param], lr=0.01, **theirs), "Q", until=1) < 1e-12


@pytest.mark.parametrize("shape", [*MATRICES, (3, 4), (7,), (2, 3, 2)])
@pytest.mark.parametrize("period", [1, 3, 50])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("max_dim", [10, 8, 6])
def test_splus(
    shape: tuple[int, ...], period: int, decay: float, max_dim: int, package: Any
) -> None:
    """Also at ``max_dim``, where there is no factor, and above, where the constant is another."""
    options: dict[str, Any] = {"lr": 0.1, "ema_rate": 0.9, "max_dim": max_dim}
    rule = rules.SPlus(decay=decay, period=period, nonstandard=0.01, **options)
    options |= {"weight_decay": decay, "inverse_steps": period, "nonstandard_constant": 0.01}
    param = nn.Parameter(normal(*shape))
    other = package.SPlus([param], **options)
    until = 2 if len(shape) == 2 and shape[0] != shape[1] else 0  # null spaces of one gradient
    assert beside(rule, param, other, "q_sides", until) < 1e-12
    other.eval()
    assert float((param.detach() - rule.eval_weights()).abs().max()) < 1e-12


# Reductions.


@pytest.mark.parametrize("shape", [(5, 3), (7,)])
def test_soap_in_the_identity_is_adam_without_the_first_call(shape: tuple[int, ...]) -> None:
    for decay in (0.0, 0.1):
        soap = rules.SOAP(lr=0.01, betas=(0.9, 0.99), eps=1e-2, decay=decay, period=50)
        soap.bases = [torch.eye(d, dtype=F64) for d in (*shape, 1)[:2]]
        options: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-2}
        adam = rules.AdamW(**options, decay=0.0, eps_on_corrected=False)
        grads, w = gradients(shape), normal(*shape)
        other = w
        for step, g in enumerate(grads):
            w = soap.step(w, g)
            if step:
                other = adam.step(other, g) * (1 - 0.01 * decay)
            assert torch.allclose(w, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [*MATRICES, (7,)])
def test_shampoo_that_never_starts_is_what_it_is_grafted_to(shape: tuple[int, ...]) -> None:
    start, grads = normal(*shape), gradients(shape)
    options: dict[str, Any] = {"lr": 0.01, "start": math.inf}
    shampoo = rules.Shampoo(**options, decay=0.1, grafting="adam", grafting_eps=1e-2)
    adamw = rules.AdamW(lr=0.01, decay=0.1, eps=1e-2)
    assert torch.allclose(moved(shampoo, grads, start), moved(adamw, grads, start), rtol=1e-12)
    shampoo = rules.Shampoo(**options, grafting="sgd", bias_correction=False)
    sgd = rules.SGD(lr=0.001, momentum=0.9)
    assert torch.allclose(moved(shampoo, grads), moved(sgd, grads), rtol=1e-12)


def test_shampoo_of_diagonal_matrices_is_adagrad_or_adam() -> None:
    """Its roots, sums, averages and corrections: one entry, two factors with the power 1/4."""
    adagrad, adam = (nn.Parameter(torch.zeros(4, dtype=F64)) for _ in range(2))
    pairs: list[tuple[Any, tuple[float, float]]] = [
        (torch.optim.Adagrad([adagrad], lr=0.1, eps=0.0), (0.0, 1.0)),
        (torch.optim.Adam([adam], lr=0.1, betas=(0.9, 0.95), eps=0.0), (0.9, 0.95)),
    ]
    for other, betas in pairs:
        (param,) = other.param_groups[0]["params"]
        rule, w = rules.Shampoo(lr=0.1, betas=betas, eps=0.0), torch.zeros(4, 4, dtype=F64)
        for g in gradients((4,)):
            param.grad = g.clone()
            other.step()
            w = rule.step(w, g.diag())
            assert torch.allclose(w, param.detach().diag(), rtol=1e-11)


def test_shampoo_of_one_gradient_is_its_polar_factor() -> None:
    for shape in (*MATRICES, (7,)):
        rule = rules.Shampoo(lr=0.1, betas=(0.0, 0.0))  # factors of the last gradient alone
        for g, step in zip(gradients(shape), steps_of(rule, gradients(shape)), strict=True):
            assert torch.allclose(step, rules.polar(g.view(len(g), -1)).view(shape), atol=1e-6)


def test_shampoo_adds_eps_to_factors_and_lifts_what_is_below() -> None:
    g, rule = normal(7), rules.Shampoo(lr=0.1, betas=(0.0, 1.0), eps=0.5)
    (step,) = steps_of(rule, [g])
    assert torch.allclose(step, g / (g.square().sum() + 0.5).sqrt(), rtol=1e-12)
    for values, lifted in (([-2.0, 1.0], [0.5, 3.5]), ([1.0, 2.0], [1.5, 2.5])):
        root = rule.root(torch.tensor(values, dtype=F64).diag(), 1 / 4)
        expected = torch.tensor(lifted, dtype=F64).pow(-1 / 4)
        assert torch.allclose(root, expected.diag(), rtol=1e-12)


def test_shampoo_starts_grafts_and_refreshes_when_said() -> None:
    grads = gradients((6, 6))
    rule, seen = rules.Shampoo(lr=0.1, period=3, start=5, grafting="sgd"), []
    for t, g in enumerate(grads, 1):
        before = rule.roots[0] if rule.roots else torch.eye(6, dtype=F64)
        step = rule.step(0 * g, g) / -0.1
        plain = rule.m / (1 - 0.9**t)
        assert math.isclose(float(step.norm()), float(plain.norm()), rel_tol=1e-9)
        assert torch.allclose(step, plain) == (t < 5)
        seen += [t] if not torch.equal(rule.roots[0], before) else []
    assert seen == [5, *range(6, STEPS + 1, 3)]


def test_muadam_with_a_constant_second_moment_is_muon() -> None:
    for shape in MATRICES:
        grads = [3.0 * g.sign() for g in gradients(shape)]
        muon = rules.Muon(lr=0.01, momentum=0.9, nesterov=False, decay=0.1)
        muadam = rules.MuAdam(lr=0.01 * math.sqrt(3), eps=0.0, decay=0.1 / math.sqrt(3))
        sania = rules.MuAdamSania(lr=0.01 * 3, eps=0.0, decay=0.1 / 3)
        for rule in (muadam, sania):
            ours, theirs = moved(rule, grads), moved(copy.deepcopy(muon), grads)
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def test_muadam_adds_eps_before_the_correction() -> None:
    """Of a 1 x 1 matrix: with the polar factor 1, and the second moment ``0.001 * 9``."""
    g = torch.full((1, 1), 3.0, dtype=F64)
    (first,) = steps_of(rules.MuAdam(lr=0.1, eps=0.1), [g])
    assert float(first) == pytest.approx((3 + 0.1 / math.sqrt(0.001)) ** -0.5)
    (first,) = steps_of(rules.MuAdamSania(lr=0.1, eps=0.1), [g])
    assert float(first) == pytest.approx((9 + 0.1 / 0.001) ** -0.5)


def test_splus_in_the_identity_is_sign_descent() -> None:
    rule = rules.SPlus(lr=0.1, decay=0.2)
    w, other, m, average = (torch.zeros(5, 3, dtype=F64) for _ in range(4))
    for g in gradients((5, 3)):
        m = 0.9 * m + 0.1 * g
        other = other - 0.1 * 2 / 8 * m.sign()
        average = 0.999 * average + 0.001 * other
        other = other * (1 - 0.1 * 2 / 8 * 0.2)
        w = rule.step(w, g)
        rule.bases = [torch.eye(d, dtype=F64) for d in g.shape]
        assert torch.allclose(w, other, rtol=1e-12)
    assert torch.allclose(rule.eval_weights(), average / (1 - 0.999**STEPS), rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0, 0.05])
def test_klshampoo_of_a_constant_gradient_tends_to_its_polar_factor(scale: float) -> None:
    """``A = g B^-1 g' / n`` and ``B = g' A^-1 g / m`` make ``A^-1/2 g B^-1/2`` of length sqrt n."""
    g = scale * normal(4, 4)
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.5, 0.5), "period": 3, "decay": 0.0}
    steps = steps_of(rules.KLShampoo(eps=0.0, clamp=None, **options), [g] * 60)
    assert float(steps[0].abs().max()) == 0.0
    assert torch.allclose(steps[1], 0.5 * 10 * g, rtol=1e-12)  # 1 / init_factor, of two roots
    assert torch.allclose(steps[-1], 2 * rules.polar(g), rtol=1e-9)
    damped = steps_of(rules.KLShampoo(eps=0.1, **options), [g] * 2)[1]
    assert torch.allclose(damped, 0.5 * 10 / (1 + 0.1 * 10) * g, rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (2, 5)])
def test_klshampoo_is_its_dense_formulas(shape: tuple[int, int]) -> None:
    """``A^-1/2 m B^-1/2``, ``A <- EMA(g B^-1 g' / n)``, ``B <- EMA(g' A^-1 g / m)``."""
    rule, m = rules.KLShampoo(lr=0.1, decay=0.5, period=3, eps=0.0), torch.zeros(shape, dtype=F64)
    (rows, cols), g = shape, normal(*shape)
    assert torch.equal(rule.step(g, g), g)
    for factor, expected in zip(rule.factors, (g @ g.mT / cols, g.mT @ g / rows), strict=True):
        assert torch.allclose(factor, 0.02 * expected, rtol=1e-12)
    for k, g in enumerate(gradients(shape), 1):
        old, bases = rule.factors, rule.bases
        tracked = [root**-2 for root in rule.inverse_roots]
        roots = [(q * v**-0.5) @ q.mT for q, v in zip(bases, tracked, strict=True)]
        m = 0.9 * m + 0.1 * g
        moved_to = 0.95 * (g - 0.1 * roots[0] @ m @ roots[1])  # any weights will do: g
        assert torch.allclose(rule.step(g, g), moved_to, rtol=1e-9)
        new = [g @ roots[1] @ roots[1] @ g.mT / cols, g.mT @ roots[0] @ roots[0] @ g / rows]
        for i in range(2):
            expected = 0.98 * old[i] + 0.02 * new[i]
            assert torch.allclose(rule.factors[i], expected, rtol=1e-9)
            values = 0.98 * tracked[i] + 0.02 * (bases[i].mT @ new[i] @ bases[i]).diagonal()
            assert torch.allclose(rule.inverse_roots[i], values**-0.5, rtol=1e-9)
            turned = rule.bases[i].mT @ expected @ bases[i]  # triangular after a power step
            assert (float(turned.tril(-1).norm()) < 1e-9) == (k % 3 == 0)


@pytest.mark.parametrize(("clamp", "caps"), [(4000.0, (10.0, 14.0)), (12.0, (10.0, 12.0))])
def test_klshampoo_clamps_its_inverse_roots(clamp: float, caps: tuple[float, float]) -> None:
    rule = rules.KLShampoo(lr=0.1, betas=(0.5, 0.5), clamp=clamp)
    moved(rule, [1e-8 * g for g in gradients((6, 14))])
    assert tuple(float(root.max()) for root in rule.inverse_roots) == caps


# Symmetries.


@pytest.mark.parametrize(
    "rule",
    [
        rules.Muon(lr=0.1, decay=0.1),
        rules.Shampoo(lr=0.1, decay=0.1, period=3, grafting="sgd", eps=1e-6),
        rules.KLShampoo(lr=0.1, decay=0.1, period=3),
        rules.SOAP(lr=0.1, decay=0.1, period=3),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rotating_all_gradients_rotates_the_weights(rule: rules.Rule) -> None:
    left, right = (torch.linalg.qr(normal(6, 6, seed=seed))[0] for seed in (100, 101))
    grads, start = gradients((6, 6)), normal(6, 6)
    plain = moved(copy.deepcopy(rule), grads, start)
    turned = moved(copy.deepcopy(rule), [left @ g @ right for g in grads], left @ start @ right)
    assert torch.allclose(turned, left @ plain @ right, atol=1e-9)
    assert float((plain - start).abs().max()) > 0.1


@pytest.mark.parametrize(("kind", "degree"), [(rules.MuAdam, -0.5), (rules.MuAdamSania, -1.0)])
def test_degree_of_a_step_in_the_gradients(kind: Any, degree: float) -> None:
    for grads in map(gradients, MATRICES):
        plain = moved(kind(lr=0.1, eps=0.0), grads)
        for scale in (1e-4, 7.0):
            scaled = moved(kind(lr=0.1, eps=0.0), [scale * g for g in grads])
            assert torch.allclose(scaled, scale**degree * plain, rtol=1e-9)


def test_sania_follows_the_scale_of_every_feature() -> None:
    """Loss L(w * s) has gradients g * s; the product w * s must not notice. MuAdam's does."""
    scales = normal(8, 5, seed=99).mul(3).exp()
    errors = {}
    for kind in (rules.MuAdam, rules.MuAdamSania):
        plain = moved(kind(lr=0.1, eps=0.0), gradients((8, 5)))
        scaled = moved(kind(lr=0.1, eps=0.0), [g * scales for g in gradients((8, 5))])
        errors[kind] = float((scaled * scales - plain).norm() / plain.norm())
    assert errors[rules.MuAdamSania] < 1e-12 and errors[rules.MuAdam] > 1.0


@pytest.mark.parametrize("kind", [rules.MuAdamSania, *rules.Rule.__subclasses__()])
def test_arguments_are_not_written_to(kind: Any) -> None:
    rule, w = kind(lr=0.1), normal(5, 4).float()
    for g in gradients((5, 4), 3):
        before, narrow = w.clone(), g.float()
        new = rule.step(w, narrow)
        assert new.dtype == F64 and torch.equal(w, before) and torch.equal(narrow, g.float())
        w = new
