"""The CUDA operators with weights and second moments: the tests of the processor's, and more."""

from __future__ import annotations

import ctypes

import pytest
import torch
from conftest import emulator
from test_weighted_arguments import (  # collected again, where the operators are the CUDA ones
    test_bad_arguments_are_named,
    test_opcheck,
)
from test_weighted_ops import (
    test_a_moment_of_zero_weighs_nothing,
    test_a_weight_may_leave_the_range,
    test_average_grams_is_as_exact_as_its_twin,
    test_dtypes_mix,
    test_empty_lists_and_sizes,
    test_every_matrix_has_its_own_exponent,
    test_gather_weighted_matches_its_twin_and_its_formula,
    test_results_do_not_depend_on_threads_or_batch,
    test_scatter_moments_matches_its_formula,
    test_scatter_without_second_moments_is_scatter_update,
    test_weigh_multiplies_in_place,
    test_weights_are_read_where_there_are_no_squares,
    test_weights_follow_their_numbers,
    test_weights_of_ones_change_nothing,
    test_what_is_not_finite_changes_nothing,
)
from weighted_calls import F64, formula, gathered, number, random_lists

from schattor import ops

__all__ = [
    "test_a_moment_of_zero_weighs_nothing",
    "test_a_weight_may_leave_the_range",
    "test_average_grams_is_as_exact_as_its_twin",
    "test_bad_arguments_are_named",
    "test_dtypes_mix",
    "test_empty_lists_and_sizes",
    "test_every_matrix_has_its_own_exponent",
    "test_gather_weighted_matches_its_twin_and_its_formula",
    "test_opcheck",
    "test_results_do_not_depend_on_threads_or_batch",
    "test_scatter_moments_matches_its_formula",
    "test_scatter_without_second_moments_is_scatter_update",
    "test_weigh_multiplies_in_place",
    "test_weights_are_read_where_there_are_no_squares",
    "test_weights_follow_their_numbers",
    "test_weights_of_ones_change_nothing",
    "test_what_is_not_finite_changes_nothing",
]


def launches() -> int:
    """Launches since the last look."""
    count, flops = ctypes.c_int64(), ctypes.c_int64()
    emulator.schattor_emulated_counts(ctypes.byref(count), ctypes.byref(flops))
    assert emulator.schattor_emulated_reports() == 0
    return count.value


@pytest.mark.parametrize(("rows", "cols", "expected"), [(9, 20, 1), (70, 130, 2)])
def test_weights_cost_no_launch(rows: int, cols: int, expected: int) -> None:
    lists = random_lists(3, rows, cols, torch.bfloat16, torch.float32, (True, True))
    launches()
    out = gathered(ops.gather_weighted, lists, torch.float16, size=4.0)
    assert launches() == expected
    finite, params = out.finite, [torch.randn(rows, cols) for _ in range(3)]
    scale, rest = torch.ones(3, dtype=F64), (number(0.9), number(0.98), True, finite)
    ops.scatter_moments(params, *lists[:3], out.wide, scale, number(0.9), *rest)
    assert launches() == 1
    ops.weigh(out.weights, out.wide)
    assert launches() == 1
    for right in (False, True):
        factors = torch.eye(cols if right else rows).repeat(3, 1, 1)
        ops.average_grams(factors, out.wide.float(), right, scale, scale)
        assert launches() == 1 + right


def test_many_matrices_in_one_call() -> None:
    """More views than one launch may carry as parameters."""
    lists = random_lists(300, 3, 4, torch.float32, torch.float32)
    lists = lists._replace(exponents=(0.5, 0.0, 0.3))
    truth = formula(lists)

    out = gathered(ops.gather_weighted, lists, torch.float32)

    torch.testing.assert_close(out.weights.double(), truth.weights, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.wide.double(), truth.wide, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.norms, truth.norms, rtol=1e-5, atol=0)
