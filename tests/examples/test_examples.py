"""The small examples run, and what they print and write is what they say."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def output_of(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_quickstart_learns() -> None:
    losses = [
        float(line.split()[-1])
        for line in output_of("quickstart.py").splitlines()
        if "loss" in line
    ]
    assert len(losses) == 5
    assert losses[-1] < 0.1 * losses[0]


def test_huggingface_trainer_resumes_bit_exactly(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    printed = output_of("huggingface_trainer.py", str(tmp_path))
    assert "resumed weights are bit for bit those of the whole run" in printed
    assert "schattor/update_rms/median" in printed


def test_ranks_share_a_model() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        + ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        + [str(EXAMPLES / "distributed.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.partition("%")[0]) > 95
    names = re.findall(r"rank \d computes (\S+)", done.stdout)
    assert sorted(names) == ["0.weight", "2.weight"]


def test_digits_are_learned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    digits = load("digits")
    monkeypatch.setattr(digits, "SEEDS", 1)
    monkeypatch.setattr(digits, "RATES", (1e-2,))
    digits.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith(" s")]
    accuracies = {" ".join(words[:-3]): float(words[-3]) for words in lines}
    assert accuracies.keys() == digits.OPTIMIZERS.keys()
    assert min(accuracies.values()) > 0.9


@pytest.fixture(scope="module")
def stationarity() -> ModuleType:
    module = load("stationarity")
    module.DIMENSIONS, module.STEPS = (4, 8, 16), 60
    return module


def test_smoothness_and_noise_of_the_problems_are_what_the_bound_takes(
    stationarity: ModuleType,
) -> None:
    generator = torch.Generator().manual_seed(0)
    for problem in ("decaying", "flat"):
        curvature, noise, distance = stationarity.spectra(problem, 6)
        for p in (2.0, 3.0, 8.0, math.inf):
            q = stationarity.dual(p)
            gap, smoothness, sigma = stationarity.constants(problem, 6, p)
            assert gap == pytest.approx(0.5 * float((curvature * distance * distance).sum()))
            assert sigma == pytest.approx(float((noise**q).sum() ** (1 / q)))
            ratios = []
            for _ in range(200):
                change = torch.randn(6, 6, generator=generator, dtype=torch.float64)
                above = stationarity.norm(torch.linalg.svdvals(curvature[:, None] * change), q)
                ratios.append(above / stationarity.norm(torch.linalg.svdvals(change), p))
            # The diagonal change whose norms meet Hoelder's inequality with equality.
            tight = curvature ** (1 / (p - 2)) if p > 2 else (curvature == curvature.max()).double()
            reached = stationarity.norm(curvature * tight, q) / stationarity.norm(tight, p)
            assert max(ratios) <= smoothness * (1 + 1e-9)
            assert reached == pytest.approx(smoothness)


def test_stationarity_keeps_the_bound_and_grows_only_with_the_constants(
    stationarity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    stationarity.main(tmp_path)
    assert "holds at every point" in capsys.readouterr().out
    assert (tmp_path / "stationarity.png").read_bytes().startswith(b"\x89PNG")
    points = json.loads((tmp_path / "stationarity.json").read_text())["points"]
    assert len(points) == 2 * 5 * 3
    ratio = {}
    for problem in ("decaying", "flat"):
        for p in ("p=2 (SGD)", "p=inf (Muon)"):
            own = [x["measured"] for x in points if (x["problem"], x["p"]) == (problem, p)]
            ratio[problem, p] = own[-1] / own[0]
    assert ratio["decaying", "p=2 (SGD)"] < 1.2 and ratio["flat", "p=2 (SGD)"] < 1.2
    assert ratio["decaying", "p=inf (Muon)"] < 2 < ratio["flat", "p=inf (Muon)"]


@pytest.fixture(scope="module")
def invariance() -> ModuleType:
    module = load("invariance")
    module.STEPS = 30
    return module


def test_who_is_unchanged_by_units_and_by_a_rotation(
    invariance: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    invariance.main(tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    verdicts = [(words[0], words[-1]) for words in lines if words and words[-1] in ("yes", "no")]
    assert verdicts == [
        *(("AdamW", "no"), ("Muon", "no"), ("MuAdam", "no"), ("MuAdam-SANIA", "yes")),
        *(("AdamW", "no"), ("SPlus", "no"), ("Muon", "yes"), ("Shampoo", "yes")),
        *(("KL-Shampoo", "yes"), ("SOAP", "yes")),
    ]
    deviations = [float(words[-2]) for words in lines if words and words[-1] in ("yes", "no")]
    assert all(deviation < 1e-7 or deviation > 1e-2 for deviation in deviations)
    assert (tmp_path / "invariance.png").read_bytes().startswith(b"\x89PNG")


def test_the_invariance_is_not_one_of_the_problem(invariance: ModuleType) -> None:
    with_eps = [("MuAdam-SANIA", "muadam_sania", 2e-3, {"adamw_eps": 1e-4})]
    (pair,) = invariance.compare(invariance.classification, with_eps)
    assert max(pair.deviations) > 1e-2
    soap_by_units, soap_by_rotation = (
        invariance.compare(pose, [("SOAP", "soap", 0.02, {})])[0]
        for pose in (invariance.classification, invariance.regression)
    )
    assert max(soap_by_units.deviations) > 1e-2 > 1e-6 > max(soap_by_rotation.deviations)
    (sania,) = invariance.compare(invariance.regression, [("", "muadam_sania", 2e-3, {})])
    assert max(sania.deviations) > 1e-2
    assert len(pair.given) == invariance.STEPS + 1 and pair.given[-1] < pair.given[0]


@pytest.fixture(scope="module")
def auto_statistics() -> ModuleType:
    pytest.importorskip("sklearn")
    return load("auto_statistics")


def test_statistics_of_p_are_compared(
    auto_statistics: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(auto_statistics, "EPOCHS", 2)
    monkeypatch.setattr(auto_statistics, "SEEDS", 2)
    monkeypatch.setattr(
        auto_statistics, "MODELS", {"multilayer perceptron": auto_statistics.make_mlp}
    )
    auto_statistics.main()
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.endswith("%")]
    on_features, of_network = (
        {" ".join(row[2:-2]): float(row[-2].rstrip("%")) for row in part}
        for part in (rows[:5], rows[5:])
    )
    assert on_features.keys() == of_network.keys()
    assert 0 <= on_features["inputs"] < on_features["gradients"] < 15
    assert all(0 <= lost < 100 for lost in of_network.values()) and max(of_network.values()) > 0
    assert printed.count("p = inf") == printed.count("p = 2") == 3


def test_the_fall_of_a_network_of_one_layer_is_that_on_its_features(
    auto_statistics: ModuleType,
) -> None:
    """As far as lengths a factor of two apart can tell: 8/9 of it at least."""
    x, model = torch.randn(40, 6), torch.nn.Linear(6, 5, bias=False)
    y = x @ (model.weight.detach() + 0.05 * torch.randn(5, 6)).mT

    def loss() -> torch.Tensor:
        return (model(x) - y).square().sum(1).mean() / 2

    (grad,) = torch.autograd.grad(loss(), model.weight)
    exact = auto_statistics.falls(grad, grad, x.mT @ x / len(x))
    found = auto_statistics.network_falls(model.weight, grad, loss)
    for place, fall in zip(auto_statistics.TRIED, found, strict=True):
        assert 8 / 9 - 1e-3 < fall / (exact[place] / 2) < 1 + 1e-3
