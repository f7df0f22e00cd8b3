from types import SimpleNamespace

import numpy as np
import pytest

from schattor.theory import minimax
from schattor.theory.minimax import frobenius_minimax, relative_minimax, single_power_errors

ONE = np.ones((1, 1))


def test_relative_minimax_equioscillates():
    """The best multiple of s to stand for 1 on [1, 3] relatively: w = 1/2, error 1/2."""
    s = np.linspace(1, 3, 400)
    w = relative_minimax(s, s[None], [0.0], np.zeros((1, 1)), ONE, np.ones(1))
    assert w == pytest.approx(np.array([[0.5]]), abs=1e-6)
    assert single_power_errors(s, s[None], [0.0]) == pytest.approx([0.5], abs=1e-6)


def test_relative_minimax_joins_powers_and_keeps_the_pin():
    """s^power on [0.5, 1] from s and s^3 with weights that are linear in the power."""
    s, powers = np.geomspace(0.5, 1, 400), np.array([1.0, 1.5, 2.0, 2.5, 3.0])
    values = np.stack([s, s**3])
    pinned = np.tile([1.0, 0.0], (5, 1))
    basis = np.stack([powers - 1, (powers - 1) ** 2], axis=1)
    c = relative_minimax(s, values, powers, pinned, basis, np.ones(5))
    errors = [
        np.abs((pinned[i] + c @ basis[i]) @ values / s**power - 1).max()
        for i, power in enumerate(powers)
    ]
    alone = single_power_errors(s, values, powers)
    assert errors[0] == 0.0
    assert alone.max() - 1e-9 <= max(errors) < 1.2 * alone.max()


def test_a_failed_program_says_so(monkeypatch):
    failed = SimpleNamespace(x=None, message="numerical difficulties")
    monkeypatch.setattr(minimax, "linprog", lambda *arguments, **options: failed)
    s = np.ones(3)
    with pytest.raises(RuntimeError, match="relative_minimax: no solution: numerical difficulties"):
        relative_minimax(s, s[None], [0.0], np.zeros((1, 1)), ONE, np.ones(1))


def test_frobenius_minimax_finds_an_exact_combination():
    """s^3 itself is among the functions, so at power 3 the other has no weight."""
    powers = np.array([2.9, 3.0])
    w = frobenius_minimax(
        lambda s: np.stack([s, s**3]), 4, powers, np.zeros((2, 2)), np.eye(2), freedom=0.0
    )
    assert w[:, 1] == pytest.approx([0.0, 1.0], abs=2e-3)
    assert 0.0 < w[0, 0] < 0.1 < w[1, 0] < 1.2
