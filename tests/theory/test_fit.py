"""The program that makes the table makes the committed one (a part: the whole takes minutes)."""

import json
from importlib import resources

import numpy as np
import pytest

from schattor.theory import chains, fit

COMMITTED = json.loads(resources.files("schattor.theory").joinpath("chains_table.json").read_text())


@pytest.fixture(scope="module")
def least_depth():
    return fit.fit_depth(4)


def test_steps_are_the_committed_ones():
    assert COMMITTED["chain"]["step"] == list(fit.STEP)
    assert COMMITTED["chain"]["finish"] == [list(row) for row in fit.FINISH]
    assert COMMITTED["published"] == fit.PUBLISHED
    assert COMMITTED["chain"]["band_edges"] == list(fit.BAND_EDGES)


def test_steps_are_safe_and_the_known_best_is_kept():
    assert fit.overshoot([fit.STEP, *fit.FINISH]) == 0.0
    assert fit.overshoot([(4.0, 0.0, 0.0)]) > 1.0


def test_depth_is_reproduced(least_depth):
    committed = COMMITTED["chain"]["depths"]["4"]
    assert least_depth["smallest"] == committed["smallest"]
    assert least_depth["band"] == pytest.approx(committed["band"], rel=0.1)
    assert least_depth["weight_sum"] == pytest.approx(committed["weight_sum"], rel=0.05)
    for power in np.linspace(0, chains.CHAIN_MAX_POWER, 24):
        made = chains.mixture(least_depth, power)
        assert made == pytest.approx(chains.weights(float(power), 4), abs=5e-3)


def test_squarings_are_reproduced():
    made, committed = fit.fit_squarings(*fit.SQUARINGS[1]), COMMITTED["squarings"][1]
    assert made["exponents"] == committed["exponents"] and made["range"] == committed["range"]
    assert np.array(made["coefficients"]) == pytest.approx(
        np.array(committed["coefficients"]), abs=0.01
    )


def test_refitting_the_steps_does_not_lose_them():
    step, finish = fit.fit_steps(evaluations=12)
    assert np.array([step, *finish]) == pytest.approx(np.array([fit.STEP, *fit.FINISH]), rel=0.05)


def test_command_line_writes_what_the_package_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "table", lambda step, finish: COMMITTED)
    fit.main(["--output", str(tmp_path / "table.json")])
    text = (tmp_path / "table.json").read_text()
    assert json.loads(text) == COMMITTED
    assert max(len(line) for line in text.splitlines()) < 200
