"""One training run through HuggingFace's Trainer, and what it measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from data import Corpus
from members import optimizer_pair
from model import build_model
from settings import Settings
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback


@dataclass(frozen=True)
class Run:
    """What distinguishes one run from the others of a demo."""

    optimizer: str
    lr: float
    seed: int


@dataclass
class Outcome:
    """What a run gave; written to disk as JSON."""

    optimizer: str
    lr: float
    seed: int
    steps: list[int] = field(default_factory=list)  # where the held-out loss was evaluated
    losses: list[float | None] = field(default_factory=list)  # held out; None: not finite
    seconds: float = 0.0  # in training steps, without data, evaluation and logging
    optimizer_seconds: float = 0.0  # of these, in optimizer.step
    parameters: int = 0

    @property
    def final_loss(self) -> float:
        """The held-out loss after the last step; infinite when the run diverged."""
        last = self.losses[-1] if self.losses else None
        return math.inf if last is None else last

    @property
    def update_share(self) -> float:
        """The share of a training step that the optimizer takes."""
        return self.optimizer_seconds / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they go to disk."""
        return asdict(self)


class Stopwatch(TrainerCallback):
    """Times training steps and, inside them, optimizer.step; keeps the held-out losses."""

    def __init__(self, outcome: Outcome, on_step: Callable[[int, float | None], None]) -> None:
        """Measurements go into `outcome`; `on_step` is told of every step."""
        self.outcome, self.on_step = outcome, on_step
        self._step_began = self._update_began = 0.0

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The batch is there: forward and backward follow."""
        self._step_began = self._now()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are there and clipped: optimizer.step follows."""
        self._update_began = self._now()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """optimizer.step has returned."""
        self.outcome.optimizer_seconds += self._now() - self._update_began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The step is complete."""
        self.outcome.seconds += self._now() - self._step_began
        last = self.outcome.losses[-1] if self.outcome.losses else None
        self.on_step(state.global_step, last)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the held-out loss."""
        loss = float(kwargs["metrics"]["eval_loss"])
        self.outcome.steps.append(state.global_step)
        self.outcome.losses.append(loss if math.isfinite(loss) else None)


def train(
    run: Run,
    settings: Settings,
    corpus: Corpus,
    folder: str,
    on_step: Callable[[int, float | None], None],
) -> Outcome:
    """Train one model from random weights; Trainer writes nothing into its `folder`.

    `on_step(step, last held-out loss)` is called after each step.
    """
    model = build_model(settings, len(corpus.vocabulary), run.seed)
    outcome = Outcome(run.optimizer, run.lr, run.seed)
    outcome.parameters = sum(p.numel() for p in model.parameters())
    trainer = Trainer(
        model=model,
        args=_arguments(run, settings, folder),
        train_dataset=corpus.training_windows(
            settings.steps * settings.batch, settings.context, run.seed
        ),
        eval_dataset=corpus.held_out_windows(settings.held_out, settings.context),
        optimizer_cls_and_kwargs=optimizer_pair(run.optimizer, run.lr, settings),
        callbacks=[Stopwatch(outcome, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return outcome


def _arguments(run: Run, settings: Settings, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=64,
        learning_rate=run.lr,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        eval_strategy="steps",
        eval_steps=settings.evaluate_every,
        eval_on_start=True,
        logging_steps=settings.evaluate_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=run.seed,
    )
