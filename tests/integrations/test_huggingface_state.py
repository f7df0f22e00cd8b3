"""What accelerate, scalers and checkpoints do to the optimizer that Trainer holds."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tiny_llama import STEPS, Windows, assert_same_bits, make_model, make_trainer, weights  # noqa: E402

from schattor.integrations.huggingface import trainer_optimizer  # noqa: E402
from schattor.optim import Schattor  # noqa: E402


def built(model: nn.Module, **keywords: Any) -> Schattor:
    factory, keywords = trainer_optimizer(**{"lr": 1e-2, "p": 3.0, **keywords})
    return factory()(model, **keywords)


def backward(model: nn.Module, scale: float = 1.0) -> Tensor:
    ids = Windows().ids[:4]
    loss = model(input_ids=ids, labels=ids).loss * scale
    loss.backward()
    return loss.detach()


def step_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    backward(model)
    optimizer.step()


def test_an_empty_state_dict_is_loaded_as_accelerate_does_before_the_first_step() -> None:
    model = make_model()
    optimizer = built(model)
    state = optimizer.state_dict()
    assert state["state"] == {}
    optimizer.load_state_dict(state)
    optimizer.load_state_dict(state_dict=state)  # the keyword that distributed checkpoints use
    step_once(model, optimizer)


def test_parameters_replaced_after_construction_are_the_ones_that_move() -> None:
    # Sharding replaces group["params"] in place, after the optimizer was built.
    model = make_model()
    optimizer = built(model)
    replaced = []
    for group in optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            new = nn.Parameter(parameter.detach().clone())
            new.grad = torch.ones_like(new)
            group["params"][index] = new
            replaced.append((new, parameter, parameter.detach().clone()))
    optimizer.step()
    for new, old, before in replaced:
        assert torch.equal(old, before)
        assert (new != before).any()


def test_step_takes_a_closure_by_position_and_by_keyword() -> None:
    model = make_model()
    optimizer = built(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward(model)

    first, second = optimizer.step(closure), optimizer.step(closure=closure)
    assert first is not None and second is not None
    assert second < first  # gradients of the closure are the ones that are applied


def test_non_finite_gradients_move_nothing() -> None:
    model = make_model()
    optimizer = built(model)
    step_once(model, optimizer)
    kept, state = weights(model), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    backward(model, scale=math.inf)
    optimizer.step()
    for name, value in weights(model).items():
        if "_proj" in name:
            assert torch.equal(value, kept[name]), name
    for group in optimizer.param_groups:
        if group["rule"] == "matrix":
            for parameter in group["params"]:
                for value in optimizer.state[parameter].values():
                    assert not torch.is_tensor(value) or torch.isfinite(value).all()
    assert state.keys() == optimizer.state_dict()["state"].keys()


def test_loss_scaler_skips_a_step_and_then_goes_on() -> None:
    model = make_model()
    optimizer, scaler = built(model), torch.amp.GradScaler("cpu", init_scale=2.0)
    before = weights(model)
    for scale in (math.inf, 1.0):
        optimizer.zero_grad()
        ids = Windows().ids[:4]
        scaler.scale(model(input_ids=ids, labels=ids).loss * scale).backward()
        scaler.step(optimizer)
        scaler.update()
        if scale == math.inf:
            assert_same_bits(before, weights(model))
    assert all((value != before[name]).any() for name, value in weights(model).items())


PLAIN = (Tensor, bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)


def assert_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert isinstance(key, (str, int))
            assert_plain(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            assert_plain(item)
    else:
        assert isinstance(value, PLAIN) and not isinstance(value, numpy.generic), repr(value)


def test_checkpoints_hold_plain_values_and_load_weights_only(tmp_path: Path) -> None:
    make_trainer(tmp_path, make_model(), trainer_optimizer(lr=1e-2, p=3.0)).train()
    saved = torch.load(tmp_path / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)
    assert_plain(saved)
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in make_model().named_parameters())


def test_a_numpy_learning_rate_still_loads_weights_only(tmp_path: Path) -> None:
    model = make_model()
    optimizer = built(model, lr=numpy.float64(1e-2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: numpy.float64(0.9) ** step)
    for _ in range(2):
        step_once(model, optimizer)
        schedule.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["lr"] == pytest.approx(1e-2 * 0.9**2)
    built(make_model()).load_state_dict(saved)


def test_checkpointed_hyperparameters_win_and_unknown_keys_survive() -> None:
    model = make_model()
    optimizer = built(model, p=4.0)
    optimizer.param_groups[0]["of_the_user"] = "kept"
    step_once(model, optimizer)
    other = built(make_model(), p=2.0, lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["p"] == 4.0
    assert other.param_groups[0]["lr"] == 1e-2
    assert other.param_groups[0]["of_the_user"] == "kept"


def test_every_save_has_the_same_keys() -> None:
    model = make_model()
    optimizer = built(model)
    step_once(model, optimizer)
    first = optimizer.state_dict()["state"]
    step_once(model, optimizer)
    second = optimizer.state_dict()["state"]
    assert {k: set(v) for k, v in first.items()} == {k: set(v) for k, v in second.items()}
    assert len(first) == len(list(model.parameters()))


def test_importing_schattor_imports_no_transformers() -> None:
    code = (
        "import sys, schattor, schattor.integrations;"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('transformers', 'accelerate')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
