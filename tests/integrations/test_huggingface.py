"""What Trainer is given: the pair, its groups, training and resuming, schedules and logs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tiny_llama import (  # noqa: E402
    SAVED,
    STEPS,
    Interrupt,
    Windows,
    arguments,
    assert_same_bits,
    make_model,
    make_trainer,
    schattor_of,
    weights,
)  # fmt: skip
from transformers import Trainer, TrainerCallback  # noqa: E402
from transformers.trainer_optimizer import is_optimizer_factory  # noqa: E402

from schattor import AutoP  # noqa: E402
from schattor.adaptive.auto import Statistics  # noqa: E402
from schattor.integrations.huggingface import (  # noqa: E402
    StatsCallback,
    parameter_groups,
    trainer_optimizer,
)
from schattor.optim import SOAP, Schattor  # noqa: E402

# The pair and the groups.


def test_the_pair_is_a_factory_and_no_optimizer() -> None:
    factory, keywords = trainer_optimizer(lr=1e-2, p=3.0)
    assert is_optimizer_factory(factory)
    assert isinstance(factory()(make_model(), **keywords), Schattor)


def test_members_come_by_name() -> None:
    factory, keywords = trainer_optimizer(lr=1e-2, name="soap", precondition_frequency=5)
    optimizer = factory()(make_model(), **keywords)
    assert isinstance(optimizer, SOAP)
    assert optimizer.param_groups[0]["precondition_frequency"] == 5
    factory, keywords = trainer_optimizer(lr=1e-2, name="adamw")
    groups = factory()(make_model(), **keywords).param_groups
    assert {group["rule"] for group in groups} == {"adamw"}


def test_wrong_options_fail_where_they_are_written() -> None:
    with pytest.raises(ValueError, match="got 'soup'; did you mean 'soap'"):
        trainer_optimizer(lr=1e-2, name="soup")
    with pytest.raises(ValueError, match=r"p must be in \[1, inf\], got 0.5"):
        trainer_optimizer(lr=1e-2, p=0.5)
    with pytest.raises(TypeError, match="nestrov"):
        trainer_optimizer(lr=1e-2, nestrov=True)
    with pytest.raises(TypeError, match="lr"):
        trainer_optimizer(p=2.0)  # type: ignore[call-arg]


def test_groups_claim_every_parameter_once_matrices_first_with_names() -> None:
    model = make_model()
    groups = parameter_groups(model, weight_decay=0.1)
    expected = dict(model.named_parameters())
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(expected)
    assert groups[0]["rule"] == "matrix"
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert parameter is expected[name]
            assert (group["rule"] == "matrix") == ("_proj" in name), name


def test_decay_is_where_trainer_has_it(tmp_path: Path) -> None:
    model = make_model()
    trainer_decays = make_trainer(tmp_path, model).get_decay_parameter_names(model)
    ours = {
        name
        for group in parameter_groups(model, weight_decay=0.1)
        for name in group["param_names"]
        if group["weight_decay"] == 0.1
    }
    assert ours == set(trainer_decays)


def test_vectors_of_any_name_and_biases_of_any_shape_get_no_decay() -> None:
    model = nn.Module()
    model.layer = nn.Linear(4, 4)
    model.lambdas = nn.Parameter(torch.ones(4))
    model.experts_bias = nn.Parameter(torch.ones(2, 4))
    decays = {
        name: group["weight_decay"]
        for group in parameter_groups(model, weight_decay=0.1)
        for name in group["param_names"]
    }
    assert {name for name, decay in decays.items() if decay} == {"layer.weight"}
    own = parameter_groups(model, weight_decay=0.1, rules={"lambdas": {"weight_decay": 0.3}})
    assert 0.3 in [group["weight_decay"] for group in own if "lambdas" in group["param_names"]]


def test_frozen_parameters_are_left_out_and_stay() -> None:
    model = make_model()
    model.model.layers[0].requires_grad_(False)
    names = {name for group in parameter_groups(model) for name in group["param_names"]}
    assert not any("layers.0." in name for name in names)


def test_tied_weights_are_one_parameter_and_not_a_matrix() -> None:
    model = make_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    groups = parameter_groups(model)
    tied = [g for g in groups for p in g["params"] if p is model.lm_head.weight]
    assert len(tied) == 1 and tied[0]["rule"] == "adamw"


@pytest.fixture
def gloo(tmp_path: Path) -> Any:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_one_group_per_device_mesh(gloo: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    meshes = [
        init_device_mesh("cpu", (1,), mesh_dim_names=("a",)),
        init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b")),
    ]
    for layer, mesh in zip(list(model)[:2], meshes, strict=True):
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh))
    hidden = [g for g in parameter_groups(model, rules={"*": "matrix"}) if g["rule"] == "matrix"]
    assert sorted(len(group["params"]) for group in hidden) == [1, 1, 1]


# Training, saving, resuming.


@pytest.mark.parametrize(
    "settings",
    [
        {"p": 2.0},
        {"p": 3.0},
        {"p": math.inf},
        {"p": AutoP(warmup=1, interval=2)},
        {"p": AutoP(warmup=1, interval=2, statistics="kfac")},
        {"p": AutoP(warmup=1, interval=2, statistics="gradients")},
        {"name": "soap", "precondition_frequency": 2},
        {"name": "splus", "inverse_every": 2},
        {"name": "muadam"},
        {"name": "kl_shampoo", "precondition_frequency": 3},
        {"name": "kl_soap", "precondition_frequency": 3},
        {"name": "shampoo", "grafting": "adam", "precondition_frequency": 3},
        {"name": "sgd", "momentum": 0.9},
    ],
    ids=str,
)
def test_resume_is_bit_exact(tmp_path: Path, settings: dict[str, Any]) -> None:
    pair = trainer_optimizer(lr=1e-2, weight_decay=0.1, **settings)
    whole = make_model()
    make_trainer(tmp_path / "whole", whole, pair).train()

    interrupted = make_trainer(
        tmp_path / "cut", make_model(), pair, callbacks=[Interrupt(SAVED + 1)]
    )
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = make_model(seed=5)  # other weights: all must come from the checkpoint
    make_trainer(tmp_path / "cut", resumed, pair).train(resume_from_checkpoint=True)
    assert_same_bits(weights(whole), weights(resumed))
    moved = [
        name
        for name, value in weights(make_model()).items()
        if (value != weights(whole)[name]).any()
    ]
    assert len(moved) == len(weights(whole))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_llama import *
from schattor.integrations.huggingface import trainer_optimizer

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == SAVED + 1:
            os.kill(os.getpid(), signal.SIGKILL)

pair = trainer_optimizer(lr=1e-2, p=3.0, weight_decay=0.1)
make_trainer(Path(sys.argv[1]), make_model(), pair, callbacks=[Kill()]).train()
"""


def test_resume_after_a_killed_process_is_bit_exact(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "cut"), here],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    pair = trainer_optimizer(lr=1e-2, p=3.0, weight_decay=0.1)
    whole, resumed = make_model(), make_model(seed=5)
    make_trainer(tmp_path / "whole", whole, pair, save_strategy="no").train()
    make_trainer(tmp_path / "cut", resumed, pair).train(resume_from_checkpoint=True)
    assert_same_bits(weights(whole), weights(resumed))


def test_optimizers_argument_trains_and_resumes_bit_exactly(tmp_path: Path) -> None:
    def trainer(model: nn.Module, out: str, **changes: Any) -> Trainer:
        optimizer = Schattor(model, lr=1e-2, p=4.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return make_trainer(tmp_path / out, model, optimizers=(optimizer, schedule), **changes)

    whole, resumed = make_model(), make_model(seed=5)
    trainer(whole, "whole").train()
    with pytest.raises(KeyboardInterrupt):
        trainer(make_model(), "cut", callbacks=[Interrupt(SAVED + 2)]).train()
    trainer(resumed, "cut").train(resume_from_checkpoint=True)
    assert_same_bits(weights(whole), weights(resumed))


def test_optimizers_argument_with_trainers_own_schedule(tmp_path: Path) -> None:
    model = make_model()
    optimizer = Schattor(model, lr=1e-2, p=3.0)
    trainer = make_trainer(tmp_path, model, optimizers=(optimizer, None), save_strategy="no")
    trainer.train()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0] * len(optimizer.param_groups)


def test_bfloat16_weights_keep_the_dtype_of_their_state_through_a_resume(tmp_path: Path) -> None:
    pair = trainer_optimizer(lr=1e-2, p=3.0, momentum_dtype=torch.float32)
    whole, resumed = make_model(dtype=torch.bfloat16), make_model(5, torch.bfloat16)
    first = make_trainer(tmp_path / "whole", whole, pair)
    first.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(
            tmp_path / "cut",
            make_model(dtype=torch.bfloat16),
            pair,
            callbacks=[Interrupt(SAVED + 1)],
        ).train()
    second = make_trainer(tmp_path / "cut", resumed, pair)
    second.train(resume_from_checkpoint=True)
    assert_same_bits(weights(whole), weights(resumed))
    matrices = schattor_of(second).param_groups[0]["params"]
    assert matrices[0].dtype == torch.bfloat16
    for parameter in matrices:
        tensors = [v for v in schattor_of(second).state[parameter].values() if torch.is_tensor(v)]
        assert tensors and all(
            t.dtype == torch.float32 for t in tensors if t.shape == parameter.shape
        )


def test_bf16_autocast(tmp_path: Path) -> None:
    model = make_model()
    before = weights(model)
    trainer = make_trainer(
        tmp_path, model, trainer_optimizer(lr=1e-2, p=3.0), bf16=True, save_strategy="no"
    )
    trainer.train()
    after = weights(model)
    assert all(
        torch.isfinite(value).all() and value.dtype == torch.float32 for value in after.values()
    )
    assert all((after[name] != before[name]).any() for name in after)


def test_gradient_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    def trained(out: str, dtype: torch.dtype, **changes: Any) -> dict[str, Tensor]:
        model = make_model(dtype=dtype)
        pair = trainer_optimizer(lr=1e-3, p=3.0, method="exact")
        make_trainer(
            tmp_path / out, model, pair, save_strategy="no", max_steps=3, **changes
        ).train()
        return weights(model)

    # In float64 only the order of a sum differs, so the weights differ by rounding alone.
    large = trained("large", torch.float64)
    small = trained(
        "small", torch.float64, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("statistics", get_args(Statistics))
def test_p_from_data_is_that_of_the_large_batch(tmp_path: Path, statistics: Any) -> None:
    """In micro-batches, with gradient checkpointing."""

    def trained(out: str, **changes: Any) -> dict[str, Any]:
        auto = AutoP(warmup=1, interval=1, statistics=statistics)
        trainer = make_trainer(
            tmp_path / out,
            make_model(dtype=torch.float64),
            trainer_optimizer(lr=1e-3, p=auto),
            save_strategy="no",
            max_steps=3,
            **changes,
        )
        trainer.train()
        return schattor_of(trainer).p_history()

    large = trained("large")
    small = trained(
        "small",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
    )
    assert large and small == large and {len(chosen) for chosen in large.values()} == {2}


def test_max_grad_norm_does_not_change_the_first_direction(tmp_path: Path) -> None:
    def stepped(out: str, norm: float) -> dict[str, Tensor]:
        model = make_model()
        make_trainer(
            tmp_path / out, model, trainer_optimizer(lr=1e-2, p=3.0), save_strategy="no",
            max_steps=1, max_grad_norm=norm,
        ).train()  # fmt: skip
        return weights(model)

    start, free, clipped = weights(make_model()), stepped("free", 0.0), stepped("clip", 1e-3)
    for name in free:
        if "_proj" in name:
            step = (free[name] - start[name]).norm()
            assert (free[name] - clipped[name]).norm() <= 1e-3 * step, name


def test_model_init_builds_the_optimizer_anew(tmp_path: Path) -> None:
    trainer = Trainer(
        model_init=lambda: make_model(),
        args=arguments(tmp_path, save_strategy="no", max_steps=2),
        train_dataset=Windows(),
        optimizer_cls_and_kwargs=trainer_optimizer(lr=1e-2, p=3.0),
    )
    trainer.train()
    first = weights(trainer.model)
    trainer.train()
    assert_same_bits(first, weights(trainer.model))


# Schedules and logs.


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "constant_with_warmup", "reduce_lr_on_plateau"]
)
def test_learning_rate_schedules_reach_every_group(tmp_path: Path, name: str) -> None:
    changes: dict[str, Any] = {"lr_scheduler_type": name, "warmup_steps": 2, "save_strategy": "no"}
    if name == "reduce_lr_on_plateau":
        changes |= {"eval_strategy": "steps", "eval_steps": 2, "warmup_steps": 0}
    trainer = Trainer(
        model=make_model(),
        args=arguments(tmp_path, **changes),
        train_dataset=Windows(),
        eval_dataset=Windows(8),
        optimizer_cls_and_kwargs=trainer_optimizer(lr=1e-2, p=3.0),
    )
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert len(rates) == STEPS and max(rates) == pytest.approx(1e-2)
    final = {float(group["lr"]) for group in schattor_of(trainer).param_groups}
    expected = {"linear": 0.0, "cosine": 0.0}.get(name, 1e-2)
    assert len(final) == 1 and final.pop() == pytest.approx(expected, abs=1e-12)


class Reporter(TrainerCallback):
    """Stands for TensorBoard or W&B: sees what Trainer logs."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append(dict(logs))


def test_stats_reach_the_log_and_every_reporter(tmp_path: Path) -> None:
    reporter = Reporter()
    trainer = make_trainer(
        tmp_path, make_model(), trainer_optimizer(lr=1e-2, p=3.0), callbacks=[reporter],
        logging_steps=2, save_strategy="no",
    )  # fmt: skip
    trainer.add_callback(StatsCallback(trainer, every=2))
    trainer.train()
    with_stats = [log for log in reporter.logs if any(key.startswith("schattor/") for key in log)]
    steps = [
        log["step"]
        for log in trainer.state.log_history
        if any(k.startswith("schattor/") for k in log)
    ]
    assert steps == [4, 8]
    assert len(with_stats) == 2
    for log in with_stats:
        values = {key: value for key, value in log.items() if key.startswith("schattor/")}
        assert values and all(type(v) is float and math.isfinite(v) for v in values.values())
    # Linear from 1e-2 to 0: the fourth step had 5/8 of it, and entries move by 0.2 lr.
    assert with_stats[0]["schattor/update_rms/median"] == pytest.approx(
        0.2 * 1e-2 * 5 / 8, rel=0.01
    )
    json.dumps(trainer.state.log_history)


def test_stats_of_every_block_and_of_spectra_on_request(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, make_model(), trainer_optimizer(lr=1e-2), max_steps=1, save_strategy="no"
    )
    trainer.add_callback(StatsCallback(trainer, spectra=True, blocks=True))
    trainer.train()
    names = {name for log in trainer.state.log_history for name in log}
    assert "schattor/polar_error/max" in names and "schattor/stable_rank/median" in names
    hidden = [name for name, _ in make_model().named_parameters() if "_proj" in name]
    assert {f"schattor/weight_rms/{name}" for name in hidden} <= names


def test_stats_callback_refuses_other_optimizers_and_intervals(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), save_strategy="no")
    with pytest.raises(ValueError, match="every must be"):
        StatsCallback(trainer, every=0)
    trainer.add_callback(StatsCallback(trainer))
    with pytest.raises(TypeError, match="StatsCallback: optimizer must be a schattor.Schattor"):
        trainer.train()
