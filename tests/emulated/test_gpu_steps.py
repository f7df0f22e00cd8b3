"""Whole optimizer steps through the CUDA operators, beside the same steps in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OPTIMIZERS, problem, run, weights_of

from schattor import ops
from schattor.optim import Schattor
from schattor.theory.preconditioners import PRECONDITIONERS

pytestmark = pytest.mark.usefixtures("gpu_facts")
SHAPES = ((12, 12), (8, 20), (20, 8), (8, 20), (1, 7), (5, 1))
MATRIX = {name: make for name, make in OPTIMIZERS.items() if name not in ("adamw", "sign")}


def has_bases(optimizer: Schattor) -> bool:
    """Whether steps depend on eigenvectors, whose signs, and all of them in a null space, are free.

    There only weights are compared, of matrices whose factors have no null space.
    """
    name = optimizer.param_groups[0]["preconditioner"]
    return name is not None and PRECONDITIONERS[name].basis != ""


def stepped(make: Callable[[Any], Schattor], dtype: torch.dtype) -> list[torch.Tensor]:
    free = has_bases(make(problem(SHAPES, dtype).params))
    made = problem(((12, 12), (9, 9), (9, 9)) if free else SHAPES, dtype)
    optimizer = make(made.params)
    run(optimizer, made, 3)
    moments = [optimizer.state[param].get("momentum_buffer") for param in made.params]
    return weights_of(made) + [m for m in moments if m is not None and not free]


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        *[pytest.param(make, torch.float32, id=name) for name, make in MATRIX.items()],
        *[
            pytest.param(MATRIX[name], torch.bfloat16, id=f"{name}-bf16")
            for name in ("p1.1", "muon")
        ],
    ],
)
def test_steps_are_those_of_plain_torch(
    make: Callable[[Any], Schattor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = stepped(make, dtype)
    for operator in ops._OPERATORS:
        monkeypatch.setattr(ops, operator.__name__, operator)
    theirs = stepped(make, dtype)

    # Three steps of about 0.01, whose directions differ by the rounding of float16; SANIA's step is
    # longer where gradients are small.
    rounding = torch.finfo(dtype).eps
    largest = max(1.0, *(float(each.abs().max()) for each in theirs))
    torch.testing.assert_close(ours, theirs, rtol=2 * rounding, atol=2e-4 * largest)


def test_a_bad_gradient_moves_nothing_and_is_counted() -> None:
    made = problem(SHAPES, torch.float32)
    optimizer = Schattor(made.params, lr=0.1)
    made.params[1].grad[2, 3] = float("inf")
    before = weights_of(made)

    optimizer.step()

    moved = [not torch.equal(p, w) for p, w in zip(made.params, before, strict=True)]
    assert moved == [True, False, True, True, True, True]
    assert optimizer.stats()["nonfinite"] == 1


def test_statistics_know_the_size_of_the_wide_batch() -> None:
    made = problem(((24, 24), (40, 12)), torch.float32)
    optimizer = Schattor(zip(("a", "b"), made.params, strict=True), lr=0.1)
    run(optimizer, made, 2)
    blocks = optimizer.stats(spectra=True)["blocks"]
    assert {bucket.plan.size for bucket in optimizer._stepper.buckets} == {2.0}
    for name, param in zip(("a", "b"), made.params, strict=True):
        s = torch.linalg.svdvals(optimizer.state[param]["momentum_buffer"])
        stable = float((s**2).sum() / s[0] ** 2)
        assert blocks[name]["stable_rank"] == pytest.approx(stable, rel=1e-2)
        assert 0 <= blocks[name]["polar_error"] < 0.02
