"""The study of p: adapters, the texts, and a tiny whole study of every task."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

for package in ("transformers", "accelerate", "rich", "matplotlib", "sklearn", "mlxtend"):
    pytest.importorskip(package)

with patch.dict(os.environ):  # they hide GPUs, other tests want them
    import p_study as study
    import studies


def test_adapters_begin_as_the_layer_and_alone_are_trained() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    adapted, x = study.Lora(layer), torch.randn(3, 6)
    assert torch.equal(adapted(x), layer(x))
    nn.init.ones_(adapted.lora_B.weight)
    lora = adapted.lora_B.weight @ adapted.lora_A.weight
    truth = x @ (layer.weight + study.ALPHA / study.RANK * lora).mT + layer.bias
    torch.testing.assert_close(adapted(x), truth)

    model = study.with_adapters(study.make_vit(0))
    moving = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert moving and all(name.endswith(("lora_A", "lora_B")) for name in moving)


def test_every_variant_makes_its_optimizer() -> None:
    for name in study.VARIANTS:
        model = study.make_vit(0)
        optimizer = study.make_optimizer(study.Run(name, 1e-3, 0), model, study.VIT)
        model(torch.randn(2, 1, 8, 8)).logits.sum().backward()
        optimizer.step()
    groups = study.make_optimizer(study.Run("falling", 1e-3, 0), model, study.VIT).param_groups
    assert groups[0]["power"] == 0.25


def test_images_of_mnist_are_held_out_class_by_class() -> None:
    train_x, train_y, test_x, test_y = study.load_mnist()
    assert train_x.shape == (4000, 1, 28, 28) and test_x.shape == (1000, 1, 28, 28)
    assert train_y.bincount().tolist() == [400] * 10 and test_y.bincount().tolist() == [100] * 10
    assert train_x.min() == pytest.approx(-0.13) and train_x.max() == pytest.approx(0.87)
    rows = torch.cat([train_x, test_x]).flatten(1)
    assert len(rows.unique(dim=0)) == 5000  # none is both trained on and held out


def test_a_study_of_all_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("adamw", "muon", "falling", "auto")
    monkeypatch.setattr(study, "LABELS", {name: study.LABELS[name] for name in names})
    monkeypatch.setattr(studies, "ROUNDS", 1)
    monkeypatch.setattr(studies, "WIDEST", 2)
    monkeypatch.setattr(study, "PRETRAINING", 3)
    short = {"steps": 4, "warmup": 1, "evaluate_every": 2, "rates": (1e-3, 1e-2)}
    for task in ("VIT", "MNIST", "GPT", "LORA"):
        monkeypatch.setattr(study, task, dataclasses.replace(getattr(study, task), **short))
    paths = {"json": tmp_path / "study.json", "plot": tmp_path / "study.png"}
    command = ["--out", str(tmp_path / "out")]
    for option, path in paths.items():
        command += [f"--{option}", str(path)]
    study.main(command)

    document = json.loads(paths["json"].read_text())
    for task in ("vit", "mnist", "gpt", "lora"):
        rows = document["tables"][task]
        assert {row["name"] for row in rows} == set(names)
        runs = document["runs"][task]
        for row in rows:
            assert row["seeds"] == [1, 2, 3]
            own = [run for run in runs if run["optimizer"] == row["name"]]
            assert len(own) == 2 + 3  # two rates, three fresh seeds
        # Other optimizers, other weights: after the first steps no two agree.
        assert len({run["losses"][-1] for run in runs if run["seed"] == 1}) == len(names)
        # The same weights before the first: whoever moves them begins alike.
        assert len({run["losses"][0] for run in runs if run["seed"] == 1}) == 1
    assert "| power 0.25 to -0.25 |" in capsys.readouterr().out
    assert paths["plot"].read_bytes().startswith(b"\x89PNG")
