"""p chosen from data: the model that is watched, and what was chosen."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from schattor.adaptive.auto import AutoP
from schattor.adaptive.chooser import Chooser
from schattor.adaptive.own import Widths
from schattor.optim._checkpoint import Checkpointed
from schattor.optim._chosen import widths_of
from schattor.optim._groups import name_of
from schattor.optim._settings import Group
from schattor.optim._state import keeps_momentum
from schattor.theory import exponents

__all__ = ["Watching"]

_COUNT = "auto_taken"  # of steps, in groups


class Watching(Checkpointed):
    """An optimizer whose groups may have ``p="auto"``."""

    _kept = (*Checkpointed._kept, "_auto")
    _auto: AutoP | None = None
    _chooser: Chooser | None = None

    def watch(self, model: nn.Module) -> None:
        """Watch the inputs of a model's layers, where p is chosen from data (``p="auto"``).

        A constructor that is given the module does it itself. Layers are found by their weights:
        ``nn.Linear``, HuggingFace's ``Conv1D``, convolutions. In other modules that hold a weight,
        such as stacked experts and ``nn.MultiheadAttention``, and in grouped or transposed
        convolutions, products with it are looked for. A weight that is met in neither way keeps the
        p that it begins with, unless its inputs are handed to :meth:`observe`. Hooks are on a
        forward pass only where its step records, and see nothing inside transformations of
        ``torch.func`` and traces.

        Raises ValueError where no group has ``p="auto"``, the model holds none of its weights,
        ``blocks`` have a layer's inputs on its other side, or statistics are those of gradients.
        """
        if self._auto is None:
            raise ValueError(f'{self._who}.watch: a group must have p="auto", got none')
        if not self.wants_model:
            raise ValueError(
                f'{self._who}.watch: statistics of AutoP must be None, "inputs" or "kfac",'
                ' got "gradients"'
            )
        self._gather(self._auto, model)

    def unwatch(self) -> None:
        """Take the hooks off a model that is watched, and choose no p any more.

        Call it when training ends: hooks for a step that never comes would stay on the model, where
        ``torch.jit.script`` refuses them, and compiled code would run eagerly for ever. Every block
        keeps its p. :meth:`watch` begins again, after as many steps as were taken. Without a
        watched model nothing changes.

        >>> import torch
        >>> from schattor import AutoP, Schattor
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> optimizer = Schattor(model, p=AutoP(warmup=0))
        >>> len(model[0]._forward_pre_hooks)
        1
        >>> optimizer.unwatch()
        >>> len(model[0]._forward_pre_hooks), optimizer.recording
        (0, False)
        """
        if self._chooser is not None and self._chooser.model is not None:
            self._chooser.at_rest = True
            self._chooser.pause()

    def observe(self, param: nn.Parameter, inputs: Tensor, *, block: int | None = None) -> None:
        """Add what a parameter multiplied to the statistics of this step's choice of p.

        For parameters that are not watched, and optimizers that were given no module (with
        ``p=AutoP(statistics="inputs")``). Call it between two steps as often as there are inputs;
        samples add up, also to those of a layer that is watched. Where :attr:`recording` is False
        nothing is added.

        Args:
            param: one with ``p="auto"``.
            inputs: samples ``[..., n]`` of a floating dtype; those that are not finite are left
                out. n counts the columns of a weight ``[out, in]``; the rows of one ``[in, out]``
                (``"out": 1`` in ``blocks``, a ``Conv1D``); of a convolution the columns of
                ``weight.flatten(1)``, as ``torch.nn.functional.unfold`` has them.
            block: index of the one block that multiplied them, where a parameter has several
                (:mod:`schattor.blocks`; the index in its name in :meth:`p_history`), such as an
                expert; n is then the number of this block's inputs. None: all blocks did, by the
                inputs that are theirs.

        Raises ValueError or TypeError for a parameter, a width, a dtype or a block that is none of
        these, inputs without numbers of their own (on meta, in a transformation of ``torch.func``),
        or with statistics other than those of inputs.

        >>> import torch
        >>> from schattor import AutoP, Schattor
        >>> w = nn.Parameter(torch.randn(4, 3))
        >>> optimizer = Schattor([w], p=AutoP(statistics="inputs", warmup=0))
        >>> x = torch.randn(10, 3)
        >>> (x @ w.T).square().sum().backward()
        >>> if optimizer.recording:
        ...     optimizer.observe(w, x)
        >>> optimizer.step()
        >>> len(optimizer.p_history())
        1
        """
        chooser, who = self._choosing(), f"{self._who}.observe"
        if chooser is None:
            raise ValueError(f'{who}: a group must have p="auto", got none')
        if chooser.auto.statistics != "inputs":
            raise ValueError(
                f'{who}: statistics of AutoP must be "inputs", got "{chooser.auto.statistics}"'
            )
        chooser.observe(who, param, inputs, block)

    @property
    def wants_model(self) -> bool:
        """Whether p is chosen from what a model's layers read, which :meth:`watch` is given."""
        return self._auto is not None and self._auto.statistics != "gradients"

    @property
    def recording(self) -> bool:
        """Whether the next step chooses p."""
        chooser = self._choosing()
        return chooser is not None and chooser.due

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its statistics too are gathered where it has ``p="auto"``."""
        by_gradients = self._auto is not None and not self.wants_model
        if by_gradients and _is_auto(param_group):
            self._refuse_without_momentum([param_group])
        param_group.pop(_COUNT, None)  # steps of another optimizer, whose group this was
        super().add_param_group(param_group)
        chooser = self._chooser
        if chooser is not None and self._auto is not None:
            self._gather(self._auto, None if by_gradients else chooser.model, chooser.at_rest)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; recordings go on from its steps."""
        super().load_state_dict(state_dict)
        if self._chooser is not None:
            self._chooser.start(self._most_taken(), wanted=bool(self._auto_groups()))

    def _before_loading(self, _: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        found = super()._before_loading(_, state_dict)
        who = f"{self._who}.load_state_dict"
        for present, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            if self._auto is None and _is_auto({**present, **saved}):
                raise ValueError(
                    f"{who}: p must be 'auto' from the constructor where it was saved so, got"
                    f" p={present['p']!r}: build the optimizer with p='auto', or write a number in"
                    " the state dict's group"
                )
            if _is_auto(present) and not _is_auto({**present, **saved}):
                # It may have been given by hand in a run that began with "auto".
                warnings.warn(
                    f"{who}: p={saved['p']!r} was saved, and is not chosen from data any more, for"
                    " which this optimizer was built; write 'auto' in the state dict's group if it"
                    " should be",
                    stacklevel=2,
                )
        return found

    def _gather(self, auto: AutoP, model: nn.Module | None, at_rest: bool = False) -> None:
        """Gather statistics from now on: those of a model, or without one as settings say."""
        if model is None:
            auto = replace(auto, statistics=auto.statistics or "gradients")
        else:  # kept when the optimizer is copied: it is not to go on with gradients then
            auto = self._auto = replace(auto, statistics=auto.statistics or "inputs")
        if auto.statistics == "gradients":
            self._refuse_without_momentum(group for _, group in self._auto_groups())
        widths = [
            widths_of(param, name_of(index, group, place), group.get("blocks"))
            for index, group in self._auto_groups()
            for place, param in enumerate(group["params"])
            if param.numel()
        ]
        chooser = Chooser(auto, widths, model)
        if model is not None:
            self._refuse_layers(chooser, widths)
        history = [] if self._chooser is None else self._chooser.history
        chooser.history, chooser.at_rest = history, at_rest
        self._chooser, self._stepper.chooser = chooser, None
        chooser.start(self._most_taken())
        self._stepper.forget()

    def _refuse_layers(self, chooser: Chooser, widths: list[Widths]) -> None:
        covered = [each for each in widths if chooser.covers(each.param)]
        if not covered:
            raise ValueError(
                f'{self._who}.watch: model must have a layer whose weight has p="auto", got none'
            )
        for each in covered:
            if chooser.is_turned(each.param) not in (None, each.turned):
                kind = "another layer" if each.turned else "a Conv1D"
                raise ValueError(
                    f'{self._who}.watch: blocks of {each.name} must hold "out": 1 for a Conv1D and'
                    f" for no other layer, got out={int(each.turned)} for {kind}"
                )

    def _choosing(self) -> Chooser | None:
        """What chooses p, where anything does; None where a model is still to be watched."""
        if self._chooser is None and self._auto is not None and self._auto_groups():
            self._gather(self._auto, None)
        return self._chooser

    def _auto_groups(self) -> list[tuple[int, Group]]:
        return [(i, group) for i, group in enumerate(self.param_groups) if _is_auto(group)]

    def _refuse_without_momentum(self, groups: Iterable[Group]) -> None:
        """Raise ValueError where gradients' noise is asked for, and nothing averages gradients."""
        for group in groups:
            if not keeps_momentum(group):
                raise ValueError(
                    f'{self._who}: momentum must be above 0 with p="auto" and statistics of'
                    " gradients, whose noise is what differs from their average, got 0"
                )

    def _prepare_choice(self) -> None:
        """Where p is chosen from data: what this step needs for it."""
        groups = self._auto_groups()
        if not self._stepper.planned:
            self._follow_parameters(groups)
        chooser = self._stepper.chooser = self._choosing() if groups else None
        if groups and chooser is None:
            raise ValueError(
                f'{self._who}: p must be "auto" from the constructor or add_param_group on, got it'
                " where neither was told"
            )
        if not groups and self._chooser is not None:  # each has had another p since the last step
            self._chooser.pause()
        if chooser is None or not chooser.due:
            return
        if chooser.from_gradients:
            self._refuse_without_momentum(group for _, group in groups)
        elif not chooser.was_fed:
            other = "" if chooser.from_both_sides else ", or inputs by observe(param, x)"
            raise ValueError(
                f'{self._who}: p="auto" with statistics="{chooser.auto.statistics}" needs the model'
                f" whose inputs it watches, Schattor(model, ...) or watch(model){other}"
            )
        chooser.sums = frozenset(i for i, group in groups if group["momentum_form"] != "ema")

    def _follow_parameters(self, groups: list[tuple[int, Group]]) -> None:
        """Gather anew where others took the parameters' places, as accelerate's FSDP2 has it."""
        chosen = [param for _, group in groups for param in group["params"] if param.numel()]
        chooser = self._chooser
        if chooser is not None and not all(map(chooser.knows, chosen)):
            self._gather(chooser.auto, chooser.model, chooser.at_rest)

    def _count_step(self) -> None:
        """A step was taken; where p is chosen from data, groups keep the number of steps.

        The steps of parameters do not tell it: where these take turns none took all. All groups
        have it, since any may be another's place when it is loaded.
        """
        if self._chooser is not None:
            self._tell_unseen(self._chooser)
            self._chooser.advance(wanted=bool(self._auto_groups()))
            for group in self.param_groups:
                group[_COUNT] = self._chooser.taken

    def _tell_unseen(self, chooser: Chooser) -> None:
        """Warn once where a weight moves whose inputs nobody has seen or handed over."""
        names = chooser.unseen()
        if names:
            chooser.tells_unseen = False
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            warnings.warn(
                f'{self._who}: p="auto" saw nothing of what {names[0]}{more} multiplied, and left p'
                " there as it was; hand it over (observe), give a weight [in, out] of your own"
                ' {"out": 1} in blocks, or another p in a group of its own',
                stacklevel=2,
            )

    def p_history(self) -> dict[str, list[tuple[int, float]]]:
        """p of every block as it was chosen: ``(steps taken, p)`` of each recording, by name.

        A block that no recording knew, which a warning tells, is not among them. Reads from the
        device what recordings have left there. A power below 0, beyond p = inf, is given as it is.
        It begins anew with each optimizer: state dicts do not hold it, nor do copies.
        """
        found: dict[str, list[tuple[int, float]]] = {}
        for taken, names, powers in self._chooser.history if self._chooser is not None else []:
            for name, power in zip(names, powers.tolist(), strict=True):
                value = power if power < 0 else exponents.p_of(power)
                found.setdefault(name, []).append((taken, value))
        return found

    def _most_taken(self) -> int:
        """Steps as they were counted; from state dicts without the count, those of parameters."""
        counts = [int(group[_COUNT]) for group in self.param_groups if _COUNT in group]
        if counts:
            return max(counts)
        return max((self._steps_taken(group) for _, group in self._auto_groups()), default=0)

    def _steps_taken(self, group: Group) -> int:
        states = (self.state.get(param, {}) for param in group["params"])
        return max((int(state["step"]) for state in states if "step" in state), default=0)


def _is_auto(group: Group) -> bool:
    return bool(group["rule"] == "matrix" and group["p"] == "auto")
