"""What the defects of published code do, in numbers (`published_defects.py`)."""

from __future__ import annotations

import math
from typing import Any

import paper_rules as rules
import published_defects as defects
import pytest
import torch
from streams import F64, STEPS, gradients, moved, normal, one_thread, steps_of  # noqa: F401
from torch import Tensor


def sizes_beside(rule: rules.Rule, other: rules.Rule, grads: list[Tensor]) -> list[float]:
    pairs = zip(steps_of(rule, grads), steps_of(other, grads), strict=True)
    return [float(ours.norm() / theirs.norm()) for ours, theirs in pairs]


@pytest.mark.parametrize(
    ("stuck", "true", "power", "tenth", "limit"),
    [
        (defects.StuckMuAdam, rules.MuAdam, 1 / 4, 0.563, 0.178),
        (defects.StuckMuAdamSania, rules.MuAdamSania, 1 / 2, 0.317, 0.0316),
    ],
)
def test_the_stuck_counter_makes_steps_too_small(
    stuck: Any, true: Any, power: float, tenth: float, limit: float
) -> None:
    pair = stuck(lr=0.1), true(lr=0.1)
    found = sizes_beside(*pair, gradients((6, 4)))
    formula = [(0.001 / (1 - 0.999**t)) ** power for t in range(1, STEPS + 1)]
    assert found == pytest.approx(formula) and found[9] == pytest.approx(tenth, rel=3e-3)
    pair[1].t = 20000
    assert sizes_beside(*pair, gradients((6, 4), 1)) == pytest.approx([limit], rel=3e-3)


def test_weights_written_in_place_stop_sania() -> None:
    """D_t = D_1 / ((1 - b2^2) ... (1 - b2^t)), nearly: steps fall to 1/22, 1/410, 1/6500, ..."""
    grads = [normal(6, 4)] * 5
    pair = (kind(lr=0.1, eps=0.0) for kind in (defects.InPlaceSania, rules.MuAdamSania))
    found = [1 / size for size in sizes_beside(*pair, grads)]
    assert found == pytest.approx([1, 22.4, 409, 6463, 91509], rel=1e-2)


def test_the_repaired_sania_is_of_another_degree_and_sees_scales() -> None:
    scales = normal(8, 5, seed=99).mul(3).exp()
    kind, grads = defects.RepairedSania, gradients((8, 5))
    plain = moved(kind(lr=0.1, eps=0.0), grads)
    halved = moved(kind(lr=0.1, eps=0.0), [4 * g for g in grads])
    assert torch.allclose(halved, plain / 2, rtol=1e-9)  # a quarter is right
    scaled = moved(kind(lr=0.1, eps=0.0), [g * scales for g in grads])
    assert float((scaled * scales - plain).norm() / plain.norm()) > 1.0
    capped = steps_of(kind(lr=0.1, eps=1e-30), [1e-9 * normal(4, 4)])[0]
    assert torch.allclose(capped, 1000 * rules.polar(normal(4, 4).sign()), rtol=1e-6)


def test_casts_to_bfloat16_stop_the_averages_of_klshampoo() -> None:
    """With b2 = 0.999 an average moves by less than half its last bit; bases lose their angles."""
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.999), "init_factor": 1.0}
    pair = rules.KLShampoo(**options), defects.CastKLShampoo(**options)
    g = torch.full((1, 1), 1.5, dtype=F64)
    right, cast = (float(steps_of(rule, [g] * 700)[-1]) for rule in pair)
    assert 1.0 < right < 1.15  # tends to the polar factor
    assert cast == pytest.approx(1.5, rel=2e-2) and float(pair[1].inverse_roots[0]) == 1.0
    skew = {}
    for kind in (rules.KLShampoo, defects.CastKLShampoo):
        moved(rule := kind(lr=0.1, period=3), gradients((6, 6)))
        skew[kind] = float((rule.bases[0].mT @ rule.bases[0] - torch.eye(6)).norm())
    assert skew[rules.KLShampoo] < 1e-13 and skew[defects.CastKLShampoo] > 2e-3


def test_aliased_grafting_scales_its_own_average() -> None:
    """The average forgets: of a constant gradient it becomes 0.1 / (1 + 0.9 lr) of it."""
    options: dict[str, Any] = {"lr": 0.1, "start": math.inf, "grafting": "sgd"}
    options["bias_correction"] = False
    rule, right = defects.AliasedShampoo(**options), rules.Shampoo(**options)
    g = normal(4, 4)
    found, expected = steps_of(rule, [g] * 30), steps_of(right, [g] * 30)
    assert torch.allclose(expected[-1], (1 - 0.9**30) * g, rtol=1e-9)
    assert torch.allclose(found[-1], 0.1 / (1 + 0.9 * 0.1) * g, rtol=1e-6)
