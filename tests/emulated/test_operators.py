"""Every CUDA operator against its twin in plain torch: the tests of the processor's, and more."""

from __future__ import annotations

import pytest
import torch
from test_ops import (  # collected again here, where the operators are the CUDA ones
    DTYPES,
    F64,
    chain_inputs,
    errors_against_float64,
    number,
    test_a_matrix_that_is_not_finite_changes_nothing,
    test_bad_arguments_are_named,
    test_chain_direction_is_as_exact_as_its_twin,
    test_gather_momentum_is_exact_for_tiny_and_huge_gradients,
    test_gather_momentum_matches_its_twin,
    test_gather_momentum_of_another_size_moves_exponents_alone,
    test_inner_products_sum_in_double,
    test_opcheck,
    test_partial_svd_leaves_small_residuals,
    test_results_do_not_depend_on_threads_or_batch,
    test_scatter_update_matches_its_twin,
    test_squarings_direction_is_as_exact_as_its_twin,
    test_zero_and_empty_batches,
    wide_batch,
)

from schattor import _C, ops, portable

__all__ = [
    "test_a_matrix_that_is_not_finite_changes_nothing",
    "test_bad_arguments_are_named",
    "test_chain_direction_is_as_exact_as_its_twin",
    "test_gather_momentum_is_exact_for_tiny_and_huge_gradients",
    "test_gather_momentum_matches_its_twin",
    "test_gather_momentum_of_another_size_moves_exponents_alone",
    "test_inner_products_sum_in_double",
    "test_opcheck",
    "test_partial_svd_leaves_small_residuals",
    "test_results_do_not_depend_on_threads_or_batch",
    "test_scatter_update_matches_its_twin",
    "test_squarings_direction_is_as_exact_as_its_twin",
    "test_zero_and_empty_batches",
]

H100 = (90, 132, 232448)


def test_operators_are_the_emulated_ones() -> None:
    steps = [1.0, 0.0, 0.0] * 17  # what the processor's own takes, and the CUDA one does not
    weights = torch.ones(1, 18, dtype=F64)
    with pytest.raises(RuntimeError, match="chain_direction: steps must be at most 16 steps here"):
        ops.chain_direction(
            torch.zeros(1, 2, 3), steps, weights, torch.zeros(1, dtype=F64), False, []
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "cols", "gram"), [(32, 40, False), (16, 128, True), (8, 200, 1)])
def test_every_kernel_of_chains(
    rows: int, cols: int, gram: bool, dtype: torch.dtype, chain_kernel: str
) -> None:
    steps, weights, powers = chain_inputs(3, 7, [0.0, 1 / 3, 1.5])
    restarts = {8: [], 4: [3], 2: [2, 4]}[dtype.itemsize] if gram else []
    wide = wide_batch(3, rows, cols, dtype)
    arguments = (steps, weights, powers, bool(gram), restarts)
    try:
        ours, theirs = errors_against_float64(
            lambda *args: ops.chain_direction(*args)[0],
            lambda *args: portable.chain_direction(*args)[0],
            wide,
            *arguments,
        )
    except RuntimeError as refused:
        assert f"chain_{chain_kernel} was forced, but does not serve this chain" in str(refused)
        assert chain_kernel != "tiles"  # which serves all
        return

    assert ours <= 2 * theirs + 1e-4
    direction, inner, square = ops.chain_direction(wide, *arguments)
    torch.testing.assert_close(inner, portable.inner_products(wide, direction), rtol=1e-6, atol=0)
    norms = portable.inner_products(direction, direction)
    torch.testing.assert_close(square, norms, rtol=1e-6, atol=0)


def test_the_chosen_kernel_and_its_workspace_are_told() -> None:
    asked = {"rows": 64, "cols": 512, "dtype": "float16", "depth": 8, "gram": True}
    kernel, one = _C.cuda_chain_kernel(batch=1, **asked, restarts=[2, 5], device=H100)
    assert kernel in ("small", "thin", "tiles", "hopper") and one >= 0
    _C.force_cuda_chain_kernel("tiles")
    try:
        kernel, few = _C.cuda_chain_kernel(batch=4, **asked, restarts=[2, 5], device=H100)
        assert kernel == "tiles" and few >= 64 * 512 * 2
        assert _C.cuda_chain_kernel(batch=8, **asked, restarts=[2, 5], device=H100)[1] > few
    finally:
        _C.force_cuda_chain_kernel(None)
    with pytest.raises(ValueError, match="kernel must be small, thin, tiles, hopper or None"):
        _C.force_cuda_chain_kernel("large")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cuda_chain_kernel: dtype must be"):
        _C.cuda_chain_kernel(batch=1, **{**asked, "dtype": "int8"}, device=H100)


@pytest.mark.parametrize(("rows", "cols"), [(33, 70), (2, 9)])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_gather_and_scatter_of_tall_views(rows: int, cols: int, grad_dtype: torch.dtype) -> None:
    """Transposed views of tall weights, with moments of another dtype: the stepper's own case."""
    grads = [torch.randn(cols, rows).to(grad_dtype).t() for _ in range(3)]
    outputs = []
    for table in (ops, portable):
        torch.manual_seed(1)
        params = [torch.randn(cols, rows).t() for _ in grads]
        momenta = [torch.randn(cols, rows).t() for _ in grads]
        wide = torch.empty(3, rows, cols)
        norms, finite = torch.empty(3, dtype=F64), torch.empty(3, dtype=torch.bool)
        rule = (number(0.9), True)
        table.gather_momentum(grads, momenta, *rule, True, 1.0, wide, norms, finite)
        scale = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
        table.scatter_update(params, grads, momenta, wide, scale, number(0.9), *rule, finite)
        outputs.append([wide, norms, *params, *momenta])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_many_matrices_in_one_call() -> None:
    """More views than one launch may carry as parameters."""
    grads = [torch.randn(3, 4) for _ in range(700)]
    wide, norms = torch.empty(700, 3, 4), torch.empty(700, dtype=F64)
    finite = torch.empty(700, dtype=torch.bool)

    ops.gather_momentum(grads, [], number(0.0), True, False, 1.0, wide, norms, finite)

    truth = torch.stack(grads)
    torch.testing.assert_close(norms, truth.double().flatten(1).norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(wide * norms.float()[:, None, None], truth, rtol=1e-5, atol=1e-6)
