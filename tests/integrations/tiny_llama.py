"""A Llama of a few thousand parameters, its data, and a Trainer for it on one processor thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from schattor.optim import Schattor  # noqa: E402

STEPS = 8
SAVED = 4  # the checkpoint that resumed runs start from
VOCABULARY, CONTEXT = 13, 8


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(dtype)


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, count: int = 64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(VOCABULARY, (count, CONTEXT), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def arguments(out: Path, **changes: Any) -> TrainingArguments:
    values: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "save_steps": SAVED,
        "logging_steps": 1,
        "learning_rate": 1.0,  # not read when the optimizer comes as a pair
        "lr_scheduler_type": "linear",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    return TrainingArguments(**{**values, **changes})


def make_trainer(out: Path, model: nn.Module, pair: Any = None, **changes: Any) -> Trainer:
    others = {key: changes.pop(key) for key in ("optimizers", "callbacks") if key in changes}
    return Trainer(
        model=model,
        args=arguments(out, **changes),
        train_dataset=Windows(),
        optimizer_cls_and_kwargs=pair,
        **others,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def schattor_of(trainer: Trainer) -> Schattor:
    optimizer = trainer.optimizer
    return getattr(optimizer, "optimizer", optimizer)


class Interrupt(TrainerCallback):
    """Ends training in the middle of a step, as an exception in the user's code would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt
