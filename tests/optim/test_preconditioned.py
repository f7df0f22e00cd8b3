"""Preconditioners with every p, their blocks and states, and members by name."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from cases import F64, calls_to_move
from streams import gradients, run
from torch import Tensor, nn

import schattor
from schattor import ops
from schattor.optim import KLSOAP, SOAP, KLShampoo, Schattor, Shampoo, SPlus, _bases
from schattor.theory.preconditioners import PRECONDITIONERS

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
        precondition_frequency=1 if name and PRECONDITIONERS[name].basis else None,
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
    real, again = ops.eigenpairs, []

    def broken(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For both together, and for the first when each is tried once more."""
        if len(factors) == 1:
            again.append(factors.shape)
            if len(again) > 1:
                return real(factors)
        unknown = torch.full_like(factors, math.nan)
        return unknown[:, 0], unknown, torch.zeros(len(factors), dtype=torch.bool)

    monkeypatch.setattr(ops, "eigenpairs", broken)
    params[1].grad = params[1].grad.flip(0)
    optimizer.step()
    assert optimizer.stats()["failed_refreshes"] == 1
    assert torch.equal(optimizer.state[params[0]]["root_rows"], roots[0])
    assert not torch.equal(optimizer.state[params[1]]["root_rows"], roots[1])
    assert all(param.isfinite().all() for param in params)


@pytest.mark.parametrize("member", [SOAP, KLShampoo, KLSOAP, Shampoo, SPlus])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_of_its_block(
    member: Any, value: float
) -> None:
    """Also where a refresh is due; its neighbours in the bucket go on."""
    every = {"inverse_every": 1} if member is SPlus else {"precondition_frequency": 1}
    params = [nn.Parameter(torch.zeros(5, 3, dtype=F64)) for _ in range(3)]
    optimizer = member(params, **every)
    for seed in range(3):
        for param, g in zip(params, gradients((5, 3), 3, seed=seed), strict=True):
            param.grad = g
        optimizer.step()
    before = copy.deepcopy([optimizer.state[param] for param in params])
    weights = [param.detach().clone() for param in params]
    assert params[1].grad is not None
    params[1].grad[2, 1] = value
    optimizer.step()
    own = {"step", "averaged", "ema"}  # counted, averaged: the weights are, whatever moved them
    for key in before[1].keys() - own:
        assert torch.equal(optimizer.state[params[1]][key], before[1][key]), key
        assert not torch.equal(optimizer.state[params[2]][key], before[2][key]), key
    moved = [not torch.equal(param, w) for param, w in zip(params, weights, strict=True)]
    assert moved == [True, False, True]


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


@pytest.mark.parametrize("after", ["adam", "factored", "shampoo", "kl_shampoo", "soap"])
@pytest.mark.parametrize("before", ["adam", "factored", "shampoo", "kl_soap", "soap", "splus"])
def test_what_an_earlier_preconditioner_left_is_not_used(before: str, after: str) -> None:
    def settings(name: str) -> dict[str, Any]:
        if name in ("adam", "factored"):
            kind = "factored" if name == "factored" else "full"
            return {"preconditioner": "adam", "second_moment": kind}
        return {"preconditioner": name, "second_moment": "full", "precondition_frequency": 2}

    def weight() -> nn.Parameter:
        return nn.Parameter(torch.zeros(4, 6, dtype=F64))

    param, fresh = weight(), weight()
    optimizer = Schattor([param], **settings(before))
    clean = Schattor([fresh], **settings(after))
    stream = gradients((4, 6), 7)
    run(optimizer, param, stream[:4])
    run(clean, fresh, stream[:1])  # makes the keys of this preconditioner
    optimizer.param_groups[0].update(settings(after))
    saved = optimizer.state_dict()
    entry = {key: value for key, value in saved["state"][0].items() if key in clean.state[fresh]}
    clean.load_state_dict({**saved, "state": {0: entry}})
    fresh.data.copy_(param)
    run(optimizer, param, stream[4:])
    run(clean, fresh, stream[4:])
    assert torch.equal(param, fresh)


@pytest.mark.parametrize("member", ["soap", "kl_soap", "kl_shampoo", "shampoo", "splus"])
def test_blocks_of_different_ages_refresh_as_each_alone(member: str) -> None:
    setting = "inverse_every" if member == "splus" else "precondition_frequency"
    together = [nn.Parameter(torch.randn(5, 8)) for _ in range(3)]
    alone = [nn.Parameter(param.detach().clone()) for param in together]
    whole = schattor.create(member, together, lr=0.1, **{setting: 3})
    singles = [schattor.create(member, [param], lr=0.1, **{setting: 3}) for param in alone]
    for step in range(12):
        for i, (param, single) in enumerate(zip(together, alone, strict=True)):
            # The one in the middle begins later: those that are due are no run of blocks.
            grad = None if i == 1 and step < 2 else torch.randn(5, 8)
            param.grad = grad
            single.grad = None if grad is None else grad.clone()
        whole.step()
        for optimizer in singles:
            optimizer.step()
        assert all(map(torch.equal, together, alone)), step


def test_what_turns_to_rounding_is_zero() -> None:
    """Momenta that in their new bases are one entry."""
    old, new, cols = (torch.linalg.qr(torch.randn(2, n, n))[0].contiguous() for n in (6, 6, 9))
    moments = list(old.mT @ new[:, :, :1] @ torch.eye(9)[:1])
    _bases._turn(moments, None, (old, cols), (new, cols))
    for moment in moments:
        assert moment.count_nonzero() == 1
        assert float(moment[0, 0]) == pytest.approx(1, rel=1e-5)


def test_shampoo_without_eps_takes_the_pseudoinverse() -> None:
    """A gradient that leaves sides out: nothing is divided by zero, nor remembered as infinite."""
    param = nn.Parameter(torch.zeros(4, 6, dtype=F64))
    optimizer = Shampoo([param], lr=0.1, epsilon=0.0, betas=(0.0, 1.0))
    first = torch.zeros(4, 6, dtype=F64)
    first[0, 0] = 3.0
    run(optimizer, param, [first])
    # L = R = 9 on the first axis: L^-1/4 G R^-1/4 is 1 there.
    assert torch.allclose(param.detach(), -0.1 * (first / 3))
    run(optimizer, param, gradients((4, 6), 3))
    state = optimizer.state[param]
    assert all(state[key].isfinite().all() for key in ("root_rows", "root_cols"))
    assert param.detach().isfinite().all() and param.detach()[3, 5] != 0
