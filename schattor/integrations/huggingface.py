"""HuggingFace's Trainer: the pair it builds an optimizer from, and a callback that logs statistics.

>>> from schattor.integrations.huggingface import trainer_optimizer
>>> factory, keywords = trainer_optimizer(lr=1e-3, p=3.0, weight_decay=0.1)

``Trainer(model=model, optimizer_cls_and_kwargs=(factory, keywords), ...)`` then builds one
`schattor.Schattor` of the whole model. Trainer clips gradients (``max_grad_norm``, 1.0 unless set)
before the optimizer sees them: the length of a matrix's step does not depend on it, only the weight
of this step's gradient in the momentum does.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from schattor.blocks import BlockSpec
from schattor.optim import Schattor, create
from schattor.routing import route

__all__ = ["SchattorFactory", "StatsCallback", "parameter_groups", "trainer_optimizer"]

# Names that Trainer's own optimizers leave without decay, vectors or not.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|[._])norm(?:$|\.)", re.IGNORECASE)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    rules: Mapping[Any, Any] | None = None,
    blocks: Mapping[Any, BlockSpec | None] | None = None,
    split_fused: bool = True,
) -> list[dict[str, Any]]:
    """The routed groups of a model, with weight decay where Trainer's own optimizers have it.

    One group for each rule, block spec, decay and device mesh, the largest group of matrices first:
    Trainer logs the learning rate of the first group. Norms, biases and other vectors get no decay.

    Args:
        model: any module; parameters that require no gradient are left out.
        weight_decay: decoupled decay of matrices, embeddings and heads, a number >= 0.
        rules, blocks, split_fused: as in `schattor.route`; a rule's own ``weight_decay`` wins.

    Raises:
        TypeError, ValueError: what `schattor.route` refuses.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    >>> for group in parameter_groups(model, weight_decay=0.1):
    ...     print(group["rule"], group["weight_decay"], group["param_names"])
    matrix 0.1 ['0.weight']
    adamw 0.0 ['0.bias', '1.weight', '1.bias', '2.bias']
    adamw 0.1 ['2.weight']
    """
    routing = route(model, rules=rules, blocks=blocks, split_fused=split_fused)
    parts: list[dict[str, Any]] = []
    for group in routing.groups():
        by_kind: dict[tuple[bool, Any], dict[str, Any]] = {}
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            decayed = parameter.ndim >= 2 and not _UNDECAYED.search(name)
            mesh = getattr(parameter, "device_mesh", None)
            decay = weight_decay if decayed else 0.0
            empty = {"weight_decay": decay, **group, "params": [], "param_names": []}
            part = by_kind.setdefault((decayed, mesh), empty)
            part["params"].append(parameter)
            part["param_names"].append(name)
        parts.extend(by_kind.values())
    return parts


class SchattorFactory:
    """Builds a `schattor.Schattor` of a whole model; no Optimizer itself, so Trainer calls it."""

    def __call__(
        self,
        model: nn.Module,
        *,
        weight_decay: float = 0.0,
        rules: Mapping[Any, Any] | None = None,
        blocks: Mapping[Any, BlockSpec | None] | None = None,
        split_fused: bool = True,
        name: str = "schattor",
        **keywords: Any,
    ) -> Schattor:
        """``create(name, parameter_groups(model, ...), **keywords)``."""
        groups = parameter_groups(
            model, weight_decay=weight_decay, rules=rules, blocks=blocks, split_fused=split_fused
        )
        optimizer = create(name, groups, weight_decay=weight_decay, **keywords)
        if optimizer.wants_model:
            optimizer.watch(model)
        return optimizer


def trainer_optimizer(
    *,
    lr: float,
    name: str = "schattor",
    weight_decay: float = 0.0,
    rules: Mapping[Any, Any] | None = None,
    blocks: Mapping[Any, BlockSpec | None] | None = None,
    split_fused: bool = True,
    **settings: Any,
) -> tuple[type[SchattorFactory], dict[str, Any]]:
    """The pair for ``Trainer(optimizer_cls_and_kwargs=...)``: one optimizer for the whole model.

    Trainer hands none of its arguments to such an optimizer: ``learning_rate``, ``weight_decay``
    and ``adam_*`` of TrainingArguments are not read. The schedule is (``lr_scheduler_type``, ...).

    Args:
        lr: learning rate >= 0; with the default ``scale="rms"`` one that suits AdamW.
        name: of the member of the family, one of `schattor.available()`.
        weight_decay: decoupled decay of matrices, embeddings and heads, a number >= 0.
        rules, blocks, split_fused: overrides of the routing, as in `schattor.route`.
        settings: any other argument of the member: ``p=3.0`` of `schattor.Schattor`.

    Raises:
        TypeError, ValueError: at once, as the member would: unknown names, wrong values.

    >>> factory, keywords = trainer_optimizer(lr=1e-3, p=3.0)
    >>> optimizer = factory()(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), **keywords)
    >>> optimizer.param_groups[0]["p"]
    3.0
    """
    keywords = {"lr": lr, "weight_decay": weight_decay, **settings}
    # Weights by name need the names of a model; all else is checked here, not inside Trainer.
    checked = {key: value for key, value in keywords.items() if key != "block_weights"}
    create(name, [nn.Parameter(torch.zeros(1, 1))], **checked)
    return SchattorFactory, {
        **keywords,
        "name": name,
        "rules": rules,
        "blocks": blocks,
        "split_fused": split_fused,
    }


class StatsCallback(TrainerCallback):
    """Logs `schattor.Schattor.stats` through Trainer, to its history and to every reporter.

    ``trainer.add_callback(StatsCallback(trainer, every=10))``. A callback alone cannot log in a way
    that reporters see, so it is given the trainer. Each logged record holds ``schattor/nonfinite``
    and, for every statistic, its median, smallest and largest value over all blocks:
    ``schattor/update_rms/median`` and so on. Numbers are read from the device when logged only.

    Args:
        trainer: the Trainer that the callback is added to.
        every: log with every n-th of Trainer's own logging steps, an int >= 1.
        spectra: also what needs singular values of the momentum (``stable_rank``, ``polar_error``).
        blocks: also every block's own values, as ``schattor/update_rms/<parameter>``.

    Raises:
        ValueError: ``every`` below 1.
        TypeError: when training begins, if the optimizer is no `schattor.Schattor`.
    """

    def __init__(
        self, trainer: Trainer, *, every: int = 1, spectra: bool = False, blocks: bool = False
    ) -> None:
        """See the class."""
        if every < 1:
            raise ValueError(f"StatsCallback: every must be >= 1, got {every}")
        self.every, self.spectra, self.blocks = every, spectra, blocks
        self._trainer = trainer
        self._logs = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse an optimizer that has no statistics."""
        self._logs = 0
        self._schattor(kwargs["optimizer"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log, if Trainer is about to."""
        if control.should_log:
            self._logs += 1
            if self._logs % self.every == 0 and state.is_world_process_zero:
                stats = self._schattor(kwargs["optimizer"]).stats(spectra=self.spectra)
                self._trainer.log(_flat(stats, self.blocks))

    @staticmethod
    def _schattor(optimizer: Any) -> Schattor:
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        if not isinstance(inner, Schattor):
            raise TypeError(
                "StatsCallback: optimizer must be a schattor.Schattor, "
                f"got {type(inner).__module__}.{type(inner).__qualname__}"
            )
        return inner


def _flat(stats: Mapping[str, Any], blocks: bool) -> dict[str, float]:
    """The statistics as one flat dict of floats, summarised over blocks."""
    columns: dict[str, dict[str, float]] = {}
    for block, values in stats["blocks"].items():
        for name, value in values.items():
            columns.setdefault(name, {})[block] = float(value)
    flat = {"schattor/nonfinite": float(stats["nonfinite"])}
    for name, column in columns.items():
        values = list(column.values())
        flat[f"schattor/{name}/median"] = statistics.median(values)
        flat[f"schattor/{name}/min"] = min(values)
        flat[f"schattor/{name}/max"] = max(values)
        if blocks:
            flat |= {f"schattor/{name}/{block}": value for block, value in column.items()}
    return flat
