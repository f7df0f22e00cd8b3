"""What the optimizer tells of its last step."""

from __future__ import annotations

import math

import pytest
import torch
from cases import problem, run, unit_ball, weights_of
from torch import nn

from schattor.optim import AdamW, Schattor


@pytest.mark.parametrize("coupling", [None, "l2"])
@pytest.mark.parametrize("workspace", [256, 1e-9])
def test_stats_are_those_of_the_last_step(coupling: str | None, workspace: float) -> None:
    made = problem()
    names = [f"layer{index}.weight" for index in range(5)]
    optimizer = Schattor(
        zip(names, made.params, strict=True), lr=0.1, p=3, momentum=0.0, method="exact",
        coupling=coupling, workspace_mb=workspace,
    )  # fmt: skip
    before = weights_of(made)
    optimizer.step()
    stats = optimizer.stats()
    assert stats["nonfinite"] == 0 and sorted(stats["blocks"]) == names
    for name, param, old in zip(names, made.params, before, strict=True):
        block = stats["blocks"][name]
        moved = (param.detach() - old).square().mean().sqrt()
        assert block["update_rms"] == pytest.approx(float(moved), rel=1e-9)
        assert block["weight_rms"] == pytest.approx(
            float(param.detach().square().mean().sqrt()), rel=1e-5
        )
        assert block["dual_norm"] == pytest.approx(unit_ball(param.grad, 0.5)[1], rel=1e-9)
        assert block["p"] == 3.0 and "stable_rank" not in block


def test_spectra_are_of_the_momentum() -> None:
    made = problem(((8, 8), (12, 5)))
    optimizer = Schattor(zip(("a", "b"), made.params, strict=True), lr=0.1)
    run(optimizer, made, 3)
    blocks = optimizer.stats(spectra=True)["blocks"]
    for name, param in zip(("a", "b"), made.params, strict=True):
        s = torch.linalg.svdvals(optimizer.state[param]["momentum_buffer"])
        stable = float((s**2).sum() / s[0] ** 2)
        assert blocks[name]["stable_rank"] == pytest.approx(stable, rel=1e-2)
        assert 0 < blocks[name]["polar_error"] < 0.02
    assert all(value >= 0 for block in blocks.values() for value in block.values())


def test_power_stands_for_p_beyond_muon_and_split_blocks_have_numbers() -> None:
    fused = nn.Parameter(torch.zeros(6, 4))
    fused.grad = torch.randn(6, 4)
    group = {"params": [("qkv", fused)], "rule": "matrix", "blocks": {"rows": 3}}
    optimizer = Schattor([group], power=-0.1, momentum=0.0)
    optimizer.step()
    blocks = optimizer.stats(spectra=True)["blocks"]
    assert sorted(blocks) == ["qkv[0]", "qkv[1]", "qkv[2]"]
    assert blocks["qkv[0]"]["power"] == -0.1 and "p" not in blocks["qkv[0]"]


def test_before_the_first_step_there_is_nothing_to_tell() -> None:
    optimizer = Schattor(nn.Linear(2, 2))
    assert optimizer.stats() == {"nonfinite": 0, "failed_refreshes": 0, "blocks": {}}
    assert "planned at the first step" in repr(optimizer)
    assert AdamW(nn.Linear(2, 2)).stats(spectra=True)["blocks"] == {}


def test_explain_and_repr_show_every_bucket_and_its_route() -> None:
    made = problem(((8, 8), (8, 8), (3, 9)), torch.float32)
    optimizer = Schattor(
        [{"params": made.params[:2], "p": math.inf}, {"params": made.params[2:], "p": 2.0}]
    )
    run(optimizer, made, 1)
    text, device = optimizer.explain(), made.params[0].device
    assert f"group 0: 2 x 8x8 float32 on {device}: chain" in text
    assert f"group 1: 1 x 3x9 float32 on {device}: identity" in text
    assert text in repr(optimizer) and "momentum_form: ema" in repr(optimizer)
