"""Decompositions of Kronecker factors: C++ on threads, plain torch, and what they must satisfy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from schattor import ops, portable_factors

F64 = torch.float64
SIZES = [1, 2, 7, 33, 64]


@pytest.fixture(params=[1, 4], ids=["one thread", "four threads"])
def threads(request: Any) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def factors(batch: int, size: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(batch, size, size + 3, generator=generator, dtype=F64)
    return (x @ x.mT / size).to(dtype)


def orthonormal(batch: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.linalg.qr(factors(batch, size, dtype))[0].contiguous()


def up_to_signs(x: Tensor, y: Tensor) -> Tensor:
    """Columns of y with the signs of those of x."""
    return y * (x * y).sum(-2, keepdim=True).sign()


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("of", [ops, portable_factors], ids=["kernels", "portable"])
def test_eigenpairs(of: Any, dtype: torch.dtype, size: int, batch: int, threads: int) -> None:
    given = factors(batch, size, dtype)
    kept = given.clone()
    values, vectors, sound = of.eigenpairs(given)

    limit = 20 * size * torch.finfo(dtype).eps
    assert sound.all() and sound.shape == (batch,)
    assert vectors.is_contiguous() and values.dtype == vectors.dtype == dtype
    assert (values.diff(dim=-1) >= 0).all()
    rebuilt = (vectors.double() * values.double()[:, None, :]) @ vectors.double().mT
    torch.testing.assert_close(rebuilt, given.double(), rtol=0, atol=limit * given.norm().item())
    eye = torch.eye(size, dtype=F64).expand(batch, -1, -1)
    torch.testing.assert_close(vectors.double().mT @ vectors.double(), eye, rtol=0, atol=limit)
    assert torch.equal(given, kept)


@pytest.mark.parametrize("of", [ops, portable_factors], ids=["kernels", "portable"])
def test_a_matrix_that_does_not_converge_is_told_and_spoils_no_other(of: Any) -> None:
    given = factors(3, 6, torch.float32)
    given[1] = torch.inf
    values, _, sound = of.eigenpairs(given)
    assert sound.tolist() == [True, False, True]
    torch.testing.assert_close(values[[0, 2]], torch.linalg.eigvalsh(given[[0, 2]]))


def test_a_solver_that_leaves_nan_in_silence_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eigh = torch.linalg.eigh

    def silent(batch: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(batch)
        values[1, 0], vectors[2, 3, 4] = torch.nan, torch.inf
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", silent)
    sound = portable_factors.eigenpairs(factors(4, 6, torch.float32))[2]
    assert sound.tolist() == [True, False, False, True]


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("of", [ops, portable_factors], ids=["kernels", "portable"])
def test_power_step_is_the_q_of_the_sorted_product(
    of: Any, dtype: torch.dtype, size: int, batch: int, sort: bool, threads: int
) -> None:
    given, bases = factors(batch, size, dtype), orthonormal(batch, size, dtype)
    kept = bases.clone()
    stepped, orders = of.power_step(given, bases, sort)

    product = given.double() @ bases.double()
    if sort:
        values = (bases.double() * product).sum(-2)
        assert torch.equal(orders, values.argsort(dim=-1, descending=True, stable=True))
        product = product.gather(-1, orders[:, None, :].expand_as(product))
    else:
        assert orders.shape == (0, size)
    truth = torch.linalg.qr(product)[0]
    limit = 2e3 * size * torch.finfo(dtype).eps  # the product's condition is that of the factor
    assert stepped.is_contiguous() and stepped.dtype == dtype
    torch.testing.assert_close(up_to_signs(truth, stepped.double()), truth, rtol=0, atol=limit)
    assert torch.equal(bases, kept)


def test_equal_values_keep_their_order() -> None:
    eye = torch.eye(70)[None]
    for of in (ops, portable_factors):
        assert of.power_step(eye, eye, True)[1].tolist() == [list(range(70))]


def test_nan_comes_last_in_the_order() -> None:
    given, bases = factors(1, 5, torch.float32), orthonormal(1, 5, torch.float32)
    bases[:, :, 1::3] = torch.nan
    for of in (ops, portable_factors):
        assert of.power_step(given, bases, True)[1][0, 3:].tolist() == [1, 4]


def test_large_bases_are_about_as_orthonormal_as_lapacks(cpu_level: str) -> None:
    given, bases = factors(1, 1000, torch.float32), orthonormal(1, 1000, torch.float32)

    def off(of: Any) -> float:
        stepped = of.power_step(given, bases, True)[0].double()
        return float((stepped.mT @ stepped - torch.eye(1000, dtype=F64)).norm())

    assert off(ops) <= 2.2 * off(portable_factors)


def test_a_batch_may_be_empty() -> None:
    empty = torch.empty(0, 4, 4)
    assert [len(x) for x in ops.eigenpairs(empty)] == [0, 0, 0]
    assert [x.shape for x in ops.power_step(empty, empty, True)] == [(0, 4, 4), (0, 4)]


@pytest.mark.parametrize("sort", [False, True])
def test_opcheck(sort: bool) -> None:
    given, bases = factors(2, 4, torch.float32), orthonormal(2, 4, torch.float32)
    torch.library.opcheck(torch.ops.schattor.eigenpairs.default, (given,))
    torch.library.opcheck(torch.ops.schattor.power_step.default, (given, bases, sort))


@pytest.mark.parametrize(
    ("given", "bases", "message"),
    [
        (torch.zeros(4, 4), torch.zeros(4, 4), r"factors must have shape \(batch, n, n\), got"),
        (torch.zeros(1, 4, 5), torch.zeros(1, 4, 5), r"factors must have shape \(batch, n, n\)"),
        (torch.zeros(1, 4, 4).half(), torch.zeros(1, 4, 4), "factors must be float64 or float32"),
        (torch.zeros(1, 4, 4).mT[:, :2, :2], torch.zeros(1, 2, 2), "factors must be contiguous"),
        (torch.zeros(1, 4, 4), torch.zeros(2, 4, 4), r"bases must have shape \(1, 4, 4\)"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4).double(), "bases must have the dtype"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 8)[..., ::2], "bases must be contiguous"),
    ],
)
@pytest.mark.parametrize("of", [ops, portable_factors], ids=["kernels", "portable"])
def test_wrong_arguments_are_refused(of: Any, given: Tensor, bases: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"power_step: {message}"):
        of.power_step(given, bases, True)
    if "bases" not in message:
        with pytest.raises(RuntimeError, match=f"eigenpairs: {message}"):
            of.eigenpairs(given)
