"""Routes on a wide batch: what a direction comes with, and that it depends on nothing else."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from errors import cosine, relative
from matrices import F64, Decomposed, gaussian, half_rank, harmonic, rank_one, repeated
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from schattor import directions, planning
from schattor.directions import Directions, wide_direction
from schattor.planning import DeviceFacts, Plan

AVX = DeviceFacts("cpu", True, "avx512")
# power, method: every route
ROUTES = [(1.0, "auto"), (0.0, "auto"), (0.5, "auto"), (1.5, "auto"), (8.0, "auto")]
ROUTES += [(33.0, "auto"), (60.0, "auto"), (math.inf, "auto"), (0.3, "exact"), (math.inf, "exact")]


def run(wide: Tensor, power: float, method: str, **changes: object) -> tuple[Directions, Plan]:
    rows, cols = wide.shape[1:]
    plan = planning.plan(power, rows, cols, wide.dtype, AVX, method=method)  # type: ignore[arg-type]
    plan = dataclasses.replace(plan, **changes)  # type: ignore[arg-type]
    weights = None
    if plan.route == "chain":
        weights = torch.tensor([planning.chain_weights(power, plan)], dtype=F64)
        weights = weights.expand(len(wide), -1).contiguous()
    return wide_direction(wide, directions.scalars(wide, power), weights, plan), plan


def raw(found: Directions, powers: Tensor) -> Tensor:
    """``O`` itself: the factor is the route's own."""
    factor = found.dual ** (1 + powers) / found.inner
    return found.direction.double() * factor[:, None, None]


def wide_of(*matrices: Decomposed, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.stack([m.scaled(1 / m.norm(2)).value for m in matrices]).to(dtype)


@pytest.mark.parametrize(("power", "method"), ROUTES)
def test_what_a_direction_comes_with(power: float, method: str) -> None:
    matrices = [gaussian(24, 40), harmonic(24, 40)]
    wide = wide_of(*matrices)

    found, _ = run(wide, power, method)

    products = (wide.double() * found.direction.double()).flatten(1).sum(1)
    assert found.inner.tolist() == pytest.approx(products.tolist(), rel=1e-4)
    squares = found.direction.double().square().flatten(1).sum(1)
    assert found.square.tolist() == pytest.approx(squares.tolist(), rel=1e-4)
    for i, matrix in enumerate(matrices):
        dual = matrix.norm(1 + power) / matrix.norm(2)
        assert float(found.dual[i]) == pytest.approx(dual, rel=0.01)
        assert cosine(found.direction[i], matrix.direction(power)) > 0.999


@pytest.mark.parametrize(("power", "method"), ROUTES)
@pytest.mark.parametrize("rows", [24, 128])
def test_unit_ball_direction(power: float, method: str, rows: int) -> None:
    """The size that the stepper gives: norm one in the Schatten-p ball, on flat spectra too."""
    matrices = [gaussian(rows, 160), repeated(rows, 160), rank_one(rows, 160)]
    if power > 33:
        matrices = matrices[::2]  # equal singular values have no leading triples

    found, _ = run(wide_of(*matrices), power, method)

    unit = found.direction.double() * (found.dual / found.inner)[:, None, None]
    p = math.inf if power == 0 else 1 + 1 / power
    sizes = torch.linalg.vector_norm(torch.linalg.svdvals(unit), p, dim=-1)
    assert sizes.tolist() == pytest.approx([1.0] * len(matrices), rel=0.02)


def test_sharp_powers_of_flat_spectra_stay_in_range() -> None:
    rows = 512
    wide = torch.eye(rows)[None] / rows**0.5  # s_1^33 is below the smallest float32 number

    found, plan = run(wide, 33.0, "auto")

    assert plan.route == "squarings"
    unit = found.direction.double() * (found.dual / found.inner)[:, None, None]
    assert relative(unit, torch.eye(rows)[None] * rows ** (-33 / 34)) < 0.01


@pytest.mark.parametrize(("power", "method"), ROUTES)
def test_zero_matrices(power: float, method: str) -> None:
    wide = wide_of(gaussian(6, 9), gaussian(6, 9))
    wide[0] = 0

    found, _ = run(wide, power, method)

    assert found.direction[0].eq(0).all()
    assert found.inner[0] == found.square[0] == found.dual[0] == 0
    assert found.direction[1].ne(0).any() and found.direction.isfinite().all()


@pytest.mark.parametrize(("power", "method"), ROUTES)
def test_neighbours_do_not_matter(power: float, method: str) -> None:
    wide = wide_of(gaussian(20, 33), harmonic(20, 33), half_rank(20, 33))

    together, _ = run(wide, power, method)

    for i in range(3):
        alone, _ = run(wide[i : i + 1].contiguous(), power, method)
        assert torch.equal(together.direction[i], alone.direction[0])


def test_one_batch_may_hold_several_powers() -> None:
    matrix = gaussian(16, 16)
    wide = wide_of(matrix, matrix, matrix)
    powers = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    for method in ("chain", "exact"):
        plan = planning.plan(0.0, 16, 16, wide.dtype, AVX, method=method)  # type: ignore[arg-type]
        weights = None
        if method == "chain":
            rows = [planning.chain_weights(float(power), plan) for power in powers]
            weights = torch.tensor(rows, dtype=F64)

        found = wide_direction(wide, powers, weights, plan)

        for i, power in enumerate(powers.tolist()):
            truth = matrix.scaled(1 / matrix.norm(2)).direction(power)
            assert relative(raw(found, powers)[i], truth) < 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("power", [-0.3, 0.0, 0.5, 2.0])
def test_exact_keeps_zero_singular_values(dtype: torch.dtype, power: float) -> None:
    matrix = half_rank(12, 12)
    matrix = matrix.scaled(1 / matrix.norm(2))

    found, _ = run(matrix.value.to(dtype)[None], power, "exact")

    result = raw(found, torch.tensor([power], dtype=F64))
    assert relative(result[0], matrix.direction(power)) < 50 * torch.finfo(dtype).eps


def test_exact_takes_another_algorithm_where_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = wide_of(gaussian(7, 11))
    expected, _ = run(wide, 0.5, "exact")

    def fail(*_: object) -> None:
        raise torch.linalg.LinAlgError("no convergence")  # type: ignore[attr-defined]

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    found, _ = run(wide, 0.5, "exact")

    assert relative(found.direction, expected.direction) < 1e-6


def test_identity_is_the_batch_itself() -> None:
    wide = wide_of(gaussian(4, 6))

    found, plan = run(wide, 1.0, "auto")

    assert plan.route == "identity" and found.direction is wide
    assert float(found.dual) == pytest.approx(1.0)


def test_chain_needs_weights() -> None:
    wide = wide_of(gaussian(4, 6))
    plan = planning.plan(0.0, 4, 6, wide.dtype, AVX)

    with pytest.raises(ValueError, match="weights must be given for the route chain, got None"):
        wide_direction(wide, directions.scalars(wide, 0.0), None, plan)


def test_gather_returns_to_shape_and_dtype() -> None:
    x = torch.randn(2, 3, 7, 5, dtype=torch.bfloat16)
    x[1, 2, 0, 0] = math.nan

    gathered = directions.gather(x, torch.float32)
    back = gathered.back(gathered.wide * gathered.norms[:, None, None])

    assert gathered.wide.shape == (6, 5, 7)
    assert back.dtype == x.dtype and back.shape == x.shape and back.is_contiguous()
    assert relative(back.flatten(0, 1)[:5], x.flatten(0, 1)[:5]) < 0.005
    assert back[1, 2].isnan().all() and gathered.finite.tolist() == [True] * 5 + [False]


def test_start_block_is_drawn_on_the_processor_whatever_the_default_device() -> None:
    wide = torch.empty(2, 4, 11, device="cpu")
    usual = directions.start_block(wide, 3)
    directions._random_block.cache_clear()
    with torch.device("meta"):
        found = directions.start_block(wide, 3)
    assert found.device == wide.device and torch.equal(found, usual)


def test_start_block_outlives_tensors_without_numbers() -> None:
    wide = torch.empty(2, 4, 13, device="cpu")
    directions._random_block.cache_clear()
    for _ in range(2):  # first and after real ones
        with FakeTensorMode():
            found = directions.start_block(torch.empty(2, 4, 13, device="cuda"), 3)
            assert found.shape == (2, 13, 3) and found.device.type == "cuda"
        assert directions.start_block(wide, 3).isfinite().all()


def test_start_block_is_the_same_in_every_call() -> None:
    first = directions.start_block(torch.empty(2, 4, 9), 3)
    second = directions.start_block(torch.empty(1, 4, 9), 3)
    drawn = directions.start_block(torch.empty(2, 4, 9), 3, torch.Generator().manual_seed(1))

    assert first.shape == drawn.shape == (2, 9, 3)
    assert torch.equal(first[0], first[1]) and torch.equal(first[:1], second)
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0, 40.0, math.inf])
def test_entries_are_the_oracle_of_the_norm_of_all_entries(power: float) -> None:
    """``|D|_p = 1`` and ``<X, D> = |X|_q``, the equality of Hoelder; zeros stay zero."""
    wide = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    wide[0, :, ::2] = 0.0
    wide[1] = 0.0
    wide /= wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-300)
    plan = planning.plan(power, 5, 8, F64, AVX, norm="entries")
    found = wide_direction(wide, directions.scalars(wide, power), None, plan)
    p = 1 + 1 / power if power else math.inf
    q = 1 + power
    for x, direction, inner, square, dual in zip(wide, *found, strict=True):
        assert float(dual) == pytest.approx(float(x.abs().flatten().norm(q)), rel=1e-12)
        assert float((x * direction).sum()) == pytest.approx(float(inner), rel=1e-12)
        assert float(direction.square().sum()) == pytest.approx(float(square), rel=1e-12)
        assert (direction[x == 0] == 0).all()
        if float(dual):
            unit = direction * dual / inner
            assert float(unit.abs().flatten().norm(p)) == pytest.approx(1.0, rel=1e-12)
