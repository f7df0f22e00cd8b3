"""The examples that show p as it is chosen from data: deep linear networks, and p by layer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("transformers", "accelerate", "rich", "matplotlib"):
    pytest.importorskip(package)

import deep_linear  # noqa: E402
import deep_linear_report as report  # noqa: E402
import p_by_layer  # noqa: E402


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_best_power_is_that_of_the_farthest_fall_of_the_loss_itself() -> None:
    """Of a layer W between fixed ones, by stepping and not by the formula."""
    root, weight, behind, teacher = (normal(6, 6, seed=seed) for seed in range(4))

    def loss(middle: torch.Tensor) -> float:
        return float(((behind @ middle - teacher) @ root).square().sum() / 2)

    grad = behind.T @ (behind @ weight - teacher) @ root @ root.T
    left, values, right = torch.linalg.svd(grad + 0.1 * normal(6, 6, seed=4))
    momentum = (left * values) @ right

    def fall(power: float) -> float:
        step = (left * values**power) @ right
        near, far = loss(weight - 1e-3 * step), loss(weight + 1e-3 * step)
        slope, bend = (far - near) / 2e-3, (far + near - 2 * loss(weight)) / 1e-6
        return loss(weight) - loss(weight - slope / bend * step)

    found = deep_linear.best_power(momentum, grad, root @ root.T, behind.T @ behind)
    falls = [fall(i / 64) for i in range(65)]
    assert fall(found) == pytest.approx(max(falls), rel=1e-6)
    one_sided = deep_linear.best_power(momentum, grad, root @ root.T, torch.eye(6).double())
    assert fall(one_sided) < fall(found)


def test_the_teacher_and_the_inputs_have_the_spectra_that_are_said() -> None:
    inverse = 1 / torch.arange(1, 9)
    for inputs, expected in (("white", torch.ones(8)), ("power-law", inverse)):
        problem = deep_linear.Problem(inputs=inputs, depth=1, width=8)
        teacher, root = deep_linear.task(problem)
        assert torch.allclose(torch.linalg.svdvals(teacher), inverse, atol=1e-5)
        assert torch.allclose(torch.linalg.svdvals(root @ root.T), expected, atol=1e-5)


def test_deep_linear_networks_are_tuned_kept_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, train = [], deep_linear.train

    def counted(problem: Any, run: Any, on_step: Any) -> Any:
        trained.append((problem, run))
        return train(problem, run, on_step)

    monkeypatch.setattr(deep_linear, "train", counted)
    monkeypatch.setattr("store.package_digest", lambda: "the same")
    command = ["--fast", "--depths", "1", "2", "--inputs", "power-law", "--out", str(tmp_path)]
    deep_linear.main(command)
    printed = capsys.readouterr().out
    first = (tmp_path / "deep_linear.json").read_text()
    count = len(trained)
    assert len(set(trained)) == count
    deep_linear.main(command)
    assert len(trained) == count  # all runs were kept
    document = json.loads((tmp_path / "deep_linear.json").read_text())
    assert document["rows"] == json.loads(first)["rows"]
    assert {"device", "torch"} <= document["environment"].keys()

    for row in document["rows"]:
        assert 0 < row["loss"] < row["curve"][0][1]
        sweep = dict(row["sweep"])
        assert row["lr"] == min(sweep, key=lambda lr: sweep[lr] or math.inf)
        chosen = row["method"].startswith("auto") or row["method"] == report.BOTH_SIDES
        assert [len(row["powers"][0]) if chosen else 0] == [row["depth"] if chosen else 0]
        assert len(row["powers"]) == (2 if chosen else 0)
        assert all(0 <= power <= 1 for powers in row["powers"] for power in powers)
        assert all(1 <= rank <= 12 for ranks in row["ranks"] for rank in ranks)
    assert printed.count("| power-law | 2 |") == 3  # a line of losses, two of layers
    assert printed.count("**") == 4  # the best fixed p of both depths
    assert (tmp_path / "deep_linear.png").read_bytes().startswith(b"\x89PNG")


def test_diverged_runs_are_shown_as_such() -> None:
    assert report.geometric_mean([1e-2, 1e-4]) == pytest.approx(1e-3)
    assert report.geometric_mean([1e-2, None]) is None
    assert report.reached({"loss": None}) == math.inf
    assert [report.name_of(power) for power in (1.0, 0.5, 0.04, 1e-3, 0.0)] == [
        "2.0", "3.0", "26", "> 100", "inf",
    ]  # fmt: skip


def test_p_by_layer_is_drawn_in_the_order_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    p_by_layer.main(["--fast", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "p_by_layer.json").read_text())
    names = list(document["powers"])
    assert len(names) == 14 and names[0] == "model.layers.0.self_attn.q_proj.weight"
    assert [int(name.split(".")[2]) for name in names] == [0] * 7 + [1] * 7
    for chosen in document["powers"].values():
        assert [step for step, _ in chosen] == [10, 20]
        assert all(0 <= power <= 1 for _, power in chosen)
    assert "| step 10 | step 20 |\n" in printed and printed.count("_proj |") == 7
    assert document["held_out_loss"] < math.log(128)
    assert (tmp_path / "p_by_layer.png").read_bytes().startswith(b"\x89PNG")


def test_any_history_can_be_drawn(tmp_path: Path) -> None:
    history = {"a": [(10, math.inf), (110, -0.1)], "b": [(10, 2.0)], "c": [(10, 3.0), (60, 4.0)]}
    p_by_layer.plot_history(history, tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
