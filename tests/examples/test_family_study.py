"""The study of the family: its rivals, its grids, and one tiny whole study that is interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

for package in ("transformers", "accelerate", "rich", "matplotlib", "sklearn"):
    pytest.importorskip(package)

with patch.dict(os.environ):  # they hide GPUs, other tests want them
    import family_study as study
    import studies


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_rivals_move_convolutions_as_torch_moves_matrices(name: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(study.digits.make_model())
    ours, theirs = models
    optimizer = study.rival(name, ours, 1e-2, study.DIGITS)
    hidden = [theirs[2], theirs[5]]  # the convolutions between the first layer and the classifier
    matrices = [nn.Parameter(layer.weight.detach().flatten(1).clone()) for layer in hidden]
    common: dict[str, Any] = {"lr": 1e-2, "weight_decay": study.DIGITS.weight_decay}
    if name == "muon":
        reference: Any = torch.optim.Muon(
            matrices, **common, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
    else:
        reference = torch.optim.AdamW(matrices, **common, betas=study.BETAS)
    for _ in range(3):
        grads = [torch.randn(layer.weight.shape) for layer in hidden]
        for parameter in ours.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for layer, grad, matrix in zip((ours[2], ours[5]), grads, matrices, strict=True):
            layer.weight.grad, matrix.grad = grad, grad.flatten(1)
        optimizer.step()
        reference.step()
    for layer, matrix in zip((ours[2], ours[5]), matrices, strict=True):
        assert torch.equal(layer.weight.flatten(1), matrix)


def test_grids_grow_by_ones_and_threes() -> None:
    assert [studies.neighbour(rate, 1) for rate in (1e-3, 3e-3, 0.3, 3.0)] == [
        3e-3,
        1e-2,
        1.0,
        10.0,
    ]
    assert [studies.neighbour(rate, -1) for rate in (1e-3, 3e-3, 1.0)] == [3e-4, 1e-3, 0.3]


def test_a_study_is_tuned_until_no_edge_is_best_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: study.OPTIMIZERS[name] for name in ("adamw", "muon", "splus")}
    monkeypatch.setattr(study, "OPTIMIZERS", names)
    monkeypatch.setattr(studies, "ROUNDS", 1)
    short = dataclasses.replace(study.DIGITS, steps=6, warmup=1, evaluate_every=3)
    monkeypatch.setattr(study, "DIGITS", short)
    trained, train = [], study.train_digits

    def counted(run: Any, on_step: Any) -> Any:
        if len(trained) == 5:
            trained.append(None)
            raise KeyboardInterrupt
        trained.append(run)
        return train(run, on_step)

    monkeypatch.setattr(study, "train_digits", counted)
    paths = {"json": tmp_path / "study.json", "plot": tmp_path / "study.png"}
    command = ["--tasks", "digits", "--out", str(tmp_path / "out")]
    for option, path in paths.items():
        command += [f"--{option}", str(path)]
    with pytest.raises(KeyboardInterrupt):
        study.main(command)
    assert not paths["json"].exists()
    study.main(command)
    runs = [run for run in trained if run is not None]
    assert len(set(runs)) == len(runs)  # none was repeated

    document = json.loads(paths["json"].read_text())
    rows = document["tables"]["digits"]
    assert {row["name"] for row in rows} == set(names)
    assert len(document["runs"]["digits"]) == len(runs)
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses)
    cost = {row["name"]: row["ms_a_step"] - row["ms_an_update"] for row in rows}
    assert max(cost.values()) == pytest.approx(min(cost.values()))  # the same passes under all
    for row in rows:
        assert 0 < row["ms_an_update"] < row["ms_a_step"]
        assert row["seeds"] == [1, 2, 3, 4, 5] and 0 < row["accuracy"] <= 1
        sweep = {
            run["lr"]: run["losses"][-1]
            for run in document["runs"]["digits"]
            if run["optimizer"] == row["name"] and run["seed"] == 0
        }
        assert row["lr"] == min(sweep, key=lambda lr: sweep[lr])
        inside = min(sweep) < row["lr"] < max(sweep)
        assert inside != row["lr_at_edge_of_grid"] and (inside or len(sweep) == studies.WIDEST)
    printed = capsys.readouterr().out
    assert printed.count("| SPlus |") == 1 and "accuracy" in printed
    assert paths["plot"].read_bytes().startswith(b"\x89PNG")
