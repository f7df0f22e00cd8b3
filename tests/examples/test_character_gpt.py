"""The demo: its text, rivals, store of finished runs, report, and one tiny whole run."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"
for package in ("transformers", "accelerate", "rich", "matplotlib"):
    pytest.importorskip(package)

import data  # noqa: E402
import report  # noqa: E402
import run as demo  # noqa: E402
import store  # noqa: E402
from members import canonical, is_rival, optimizer_pair, rates  # noqa: E402
from model import build_model  # noqa: E402
from rivals import BETAS, MOMENTUM, MuonFactory  # noqa: E402
from settings import FAST, FULL, OPTIMIZERS, Settings  # noqa: E402
from training import Outcome, Run  # noqa: E402

import schattor  # noqa: E402

OURS = [f"schattor.{name}" if is_rival(name) else name for name in schattor.available()]

TINY = Settings(
    name="tiny",
    width=16,
    layers=1,
    heads=2,
    context=8,
    batch=4,
    steps=4,
    warmup=1,
    evaluate_every=2,
    held_out=8,
    rates=(1e-3, 1e-2),
    other_rate=1e-2,
)


# The text.


def test_text_is_known_or_says_why_not() -> None:
    text = data.load_text()
    assert len(text.characters) > 300_000
    assert text.digest in data.KNOWN_TOPICS or text.origin.startswith("standard-library sources")


def test_other_topics_fall_back_to_library_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydoc_data import topics

    monkeypatch.setattr(topics, "topics", {"assert": "another text"})
    text = data.load_text()
    assert "standard-library sources" in text.origin and "unknown digest" in text.origin
    assert len(text.characters) > 300_000
    assert text.characters.isascii()


def test_training_and_held_out_text_are_disjoint_and_complete() -> None:
    characters = "".join(chr(33 + i % 90) for i in range(25 * data.PIECE))
    corpus = data.Corpus.of(data.Text(characters, "made up", ""))
    assert len(corpus.train) == 23 * data.PIECE and len(corpus.held_out) == 2 * data.PIECE
    window = corpus.held_out[: data.PIECE]
    decoded = "".join(corpus.vocabulary[i] for i in window)
    assert decoded == characters[9 * data.PIECE : 10 * data.PIECE]


def test_windows_follow_the_seed_alone() -> None:
    corpus = data.Corpus.of(data.Text("abcdefgh" * 9 * data.PIECE, "made up", ""))
    same = [corpus.training_windows(5, 8, seed=s).offsets.tolist() for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]
    last = corpus.held_out_windows(7, 8)[6]["input_ids"]
    assert torch.equal(last, corpus.held_out[-8:])


# The rivals.


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_with_adamw_is_exactly_the_two_of_torch() -> None:
    ours, theirs = build_model(TINY, 11, seed=0), build_model(TINY, 11, seed=0)
    optimizer = MuonFactory()(ours, lr=1e-2, other_lr=3e-3, weight_decay=0.1)
    named = dict(theirs.named_parameters())
    hidden = [p for name, p in named.items() if "_proj" in name]
    tables = [p for name, p in named.items() if "embed" in name or "lm_head" in name]
    norms = [p for p in named.values() if p.ndim == 1]
    assert len(hidden) + len(tables) + len(norms) == len(named)
    references = [
        torch.optim.Muon(
            hidden, 1e-2, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(tables, 3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
        torch.optim.AdamW(norms, 3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(4):
        if step == 2:  # what accelerate and a resume do
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        gradients(ours, step), gradients(theirs, step)
        optimizer.step()
        schedule.step()
        for reference in references:
            reference.param_groups[0]["lr"] = (1e-2 if reference is references[0] else 3e-3) / (
                1 + step
            )
            reference.step()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, named[name]), name


# Names of the demo.


@pytest.mark.parametrize(
    "name",
    [
        "adagrad", "sopa:p=3", "muon:p=3", "adamw:lr=1", "schattor:p", "schattor:p=0.5",
        "soap:lr=1", "soap:frequency=5", "soap:precondition_frequency=0", "torch.adamw",
        "schattor.", ":p=3",
    ],
)  # fmt: skip
def test_unknown_optimizers_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse_arguments(["--optimizers", f"adamw {name}"])
    message = capsys.readouterr().err
    assert any(word in message for word in ("required", "must be", "unexpected keyword argument"))


def test_an_unknown_name_is_answered_with_all_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse_arguments(["--optimizers", "sopa"])
    message = capsys.readouterr().err
    for name in ("adamw", "muon", *OURS, "did you mean 'soap'"):
        assert name in message


def test_a_bare_name_is_a_rivals_and_one_spelling_stands_for_all() -> None:
    assert optimizer_pair("muon", 1e-3, TINY)[0] is MuonFactory
    model = build_model(TINY, 11, seed=0)
    factory, keywords = optimizer_pair("Schattor.Muon:ns_steps=4", 1e-3, TINY)
    assert type(factory()(model, **keywords)) is schattor.Muon
    assert is_rival("adamw") and not is_rival("schattor.adamw")
    names = "soap Schattor.SOAP MuAdam-SANIA muadam_sania muon schattor.muon"
    options = demo.parse_arguments(["--optimizers", names])
    assert options.optimizers == ["soap", "muadam_sania", "muon", "schattor.muon"]


@pytest.mark.parametrize("name", OURS)
def test_every_member_takes_a_step_and_has_a_grid(name: str) -> None:
    model = build_model(TINY, 11, seed=0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    factory, keywords = optimizer_pair(name, 1e-3, TINY)
    optimizer = factory()(model, **keywords)
    expected = name.removeprefix("schattor.").replace("_", "")
    assert type(optimizer).__name__.lower() == expected
    for step in range(2):  # the first call of some only gathers statistics
        gradients(model, step)
        optimizer.step()
    for key, value in model.named_parameters():
        assert not torch.equal(value, before[key]), key
    assert canonical(name) == name
    for settings in (FULL, FAST):
        grid = rates(name, settings)
        assert len(grid) == len(settings.rates) >= 3 and list(grid) == sorted(set(grid))


def test_optimizer_names_carry_keywords() -> None:
    _, keywords = optimizer_pair("schattor:power=-0.1,scale=spectral,steps=5", 1e-3, TINY)
    assert keywords["power"] == -0.1 and keywords["scale"] == "spectral" and keywords["steps"] == 5
    assert optimizer_pair("schattor:p=inf", 1e-3, TINY)[1]["p"] == math.inf
    _, keywords = optimizer_pair("shampoo:grafting=none,use_bias_correction=False", 1e-3, TINY)
    assert keywords["grafting"] is None and keywords["use_bias_correction"] is False


def test_steps_as_long_as_the_gradient_have_the_grid_of_sgd() -> None:
    regularized = "schattor:p=2,oracle=regularized"
    assert rates(regularized, FULL) == rates("sgd", FULL) == (0.1, 0.3, 1.0, 3.0)
    assert rates(f"{regularized},preconditioner=soap", FULL) == rates("soap", FULL) == FULL.rates


@pytest.mark.parametrize("name", [*OPTIMIZERS, *(name for name in OURS if name != "sgd")])
def test_all_sweep_the_matrices_alone_and_decay_the_same(name: str) -> None:
    model = build_model(TINY, 11, seed=0)
    factory, keywords = optimizer_pair(name, 5e-3, TINY)
    groups = factory()(model, **keywords).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            matrix = "_proj" in names.pop(id(parameter))
            # SPlus moves all but matrices by the sign, at a fifth of AdamW's rate.
            other = 0.2 * TINY.other_rate if name == "splus" else TINY.other_rate
            rate = group["lr"] * group.get("nonstandard_constant", 1.0)
            assert rate == pytest.approx(5e-3 if matrix else other)
            if not matrix and name != "splus":
                assert tuple(group["betas"]) == BETAS
            assert group["weight_decay"] == (TINY.weight_decay if parameter.ndim > 1 else 0.0)
    assert not names


@pytest.mark.parametrize("name", ["sgd", "schattor:p=2,oracle=regularized"])
def test_steps_as_long_as_the_gradient_let_weights_fade_as_others_do(name: str) -> None:
    """Their rates are a hundred times AdamW's, and what decays is their product with the decay."""
    _, keywords = optimizer_pair(name, 1.0, TINY)
    faded = [rate * keywords["weight_decay"] for rate in rates(name, TINY)]
    assert faded == pytest.approx([rate * TINY.weight_decay for rate in TINY.rates])


# The store.


def make_store(folder: Path) -> store.Store:
    return store.Store(folder, TINY, "digest", {"device": "cpu"})


def outcome(optimizer: str = "adamw", lr: float = 1e-3, seed: int = 0, last: Any = 1.0) -> Outcome:
    return Outcome(optimizer, lr, seed, [0, 2, 4], [4.0, 2.0, last], 2.0, 0.5, 99)


def test_a_finished_run_comes_back_and_a_broken_file_does_not(tmp_path: Path) -> None:
    kept, run = make_store(tmp_path), Run("adamw", 1e-3, 0)
    kept.check_writable()
    assert kept.load(run) is None
    kept.save(run, outcome())
    assert kept.load(run) == outcome()
    assert kept.load(Run("adamw", 1e-3, 1)) is None
    kept.path(run).write_text('{"optimizer": "adamw", "lr"')
    assert kept.load(run) is None


def test_other_code_of_ours_repeats_our_runs_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_store(tmp_path)
    monkeypatch.setattr(store, "package_digest", lambda: "another")
    after = make_store(tmp_path)
    rival = Run("muon", 1e-3, 0)
    for name in ("schattor:p=3", "soap", "schattor.muon"):
        assert before.path(Run(name, 1e-3, 0)) != after.path(Run(name, 1e-3, 0))
    assert before.path(rival) == after.path(rival)


def no_room(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_directory_that_cannot_be_written_stops_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert demo.main(["--fast", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "Not a directory" in capsys.readouterr().out
    monkeypatch.setattr(store.os, "fsync", no_room)
    assert demo.main(["--fast", "--out", str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().out
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_a_disk_that_fills_up_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, run = make_store(tmp_path), Run("adamw", 1e-3, 0)
    kept.check_writable()
    kept.save(run, outcome())
    monkeypatch.setattr(store.os, "fsync", no_room)
    with pytest.raises(OSError):
        kept.save(run, outcome(last=9.0))
    assert kept.load(run) == outcome()
    assert [path.name for path in kept.folder.iterdir()] == [kept.path(run).name]


# The report.


def test_summary_takes_the_best_rate_and_averages_its_seeds() -> None:
    runs = [
        outcome(lr=1e-3, last=1.5),
        outcome(lr=1e-2, last=1.0),
        outcome(lr=1e-1, last=None),
        outcome(lr=1e-2, last=1.2, seed=1),
    ]
    (summary,) = report.summarize(runs)
    assert summary.lr == 1e-2 and not summary.at_the_edge
    assert summary.loss == pytest.approx(1.1)
    assert summary.spread == pytest.approx(math.sqrt(0.02))
    assert summary.sweep[-1].final_loss == math.inf


def test_the_edge_of_a_grid_is_reported() -> None:
    summaries = report.summarize([outcome(lr=1e-3, last=1.5), outcome(lr=1e-2, last=1.0)])
    assert summaries[0].at_the_edge
    assert any("edge of the grid for adamw" in line for line in report.remarks(summaries))


def test_steps_to_a_target_are_interpolated() -> None:
    (summary,) = report.summarize([outcome(last=1.0)])
    assert summary.steps_to(3.0) == pytest.approx(1.0)
    assert summary.steps_to(1.5) == pytest.approx(3.0)
    assert summary.steps_to(1.0) == pytest.approx(4.0)
    assert summary.steps_to(0.9) is None


def test_a_diverged_run_is_shown_as_such(tmp_path: Path) -> None:
    summaries = report.summarize([outcome(), outcome("muon", last=None)])
    assert report.target_loss(summaries) == (1.0, "AdamW's final loss")
    assert "diverged" in list(report.table(summaries).columns[2].cells)
    report.plot(tmp_path / "plot.png", TINY, "cpu", summaries)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_worse_results_of_ours_are_said_as_well() -> None:
    lines = report.remarks(report.summarize([outcome(last=1.0), outcome("soap", last=1.3)]))
    assert any("0.300 above the best rival (adamw)" in line for line in lines)


# A whole run.


def test_interrupted_demo_goes_on_and_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FAST", TINY)
    names = "adamw muon splus"  # which evaluates with averaged weights
    command = ["--fast", "--seeds", "2", "--optimizers", names, "--out"]
    assert demo.main([*command, str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole" / "results.json").read_text())

    trained, train = [], demo.train

    def train_three(run: Run, *arguments: Any) -> Outcome:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(run)
        return train(run, *arguments)

    monkeypatch.setattr(demo, "train", train_three)
    assert demo.main([*command, str(tmp_path / "cut")]) == 130
    assert "Stopped. 3 finished runs are kept" in capsys.readouterr().out
    assert not (tmp_path / "cut" / "results.json").exists()
    monkeypatch.setattr(demo, "train", train)
    assert demo.main([*command, str(tmp_path / "cut")]) == 0
    assert capsys.readouterr().out.count("kept from before") == 3

    resumed = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert [run["losses"] for run in whole["runs"]] == [run["losses"] for run in resumed["runs"]]
    assert len(whole["runs"]) == 3 * 2 + 3
    assert {"device", "torch", "threads"} <= whole["environment"].keys()
    for run in whole["runs"]:
        assert 0 < run["optimizer_seconds"] < run["seconds"]
        assert run["losses"][-1] < run["losses"][0]
    assert (tmp_path / "whole" / "results.png").exists()
