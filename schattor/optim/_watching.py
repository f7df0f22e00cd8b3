"""p chosen from data: the model that is watched, and what was chosen."""

from __future__ import annotations

from torch import nn

from schattor.adaptive.auto import AutoP
from schattor.adaptive.chooser import Chooser
from schattor.optim._checkpoint import Checkpointed
from schattor.optim._settings import Group
from schattor.theory import exponents

__all__ = ["Watching"]


class Watching(Checkpointed):
    """An optimizer whose groups may have ``p="auto"``."""

    _kept = (*Checkpointed._kept, "_auto")
    _auto: AutoP | None = None
    _chooser: Chooser | None = None

    def watch(self, model: nn.Module) -> None:
        """Watch the inputs of a model's layers, where p is chosen from data (``p="auto"``).

        A constructor that is given the module does it itself. Layers are found by their weights:
        ``nn.Linear``, HuggingFace's ``Conv1D``, convolutions; a weight whose layer is none of these
        keeps the p that it begins with. Hooks are on a forward pass only where its step records.

        Raises ValueError where no group has ``p="auto"`` or no layer can be watched.
        """
        if self._auto is None:
            raise ValueError(f'{self._who}.watch: a group must have p="auto", got none')
        params = [param for group in self._auto_groups() for param in group["params"]]
        self._chooser = Chooser(self._auto, model, params)
        if not any(self._chooser.covers(param) for param in params):
            raise ValueError(
                f'{self._who}.watch: model must have a layer whose weight has p="auto", got none'
            )
        self._stepper.forget()

    def _auto_groups(self) -> list[Group]:
        return [g for g in self.param_groups if g["rule"] == "matrix" and g["p"] == "auto"]

    def _prepare_choice(self) -> None:
        """Where p is chosen from data: which step of the recordings this is."""
        groups = self._auto_groups()
        if groups and self._chooser is None:
            raise ValueError(
                f'{self._who}: p="auto" needs the model whose inputs it watches:'
                " Schattor(model, ...), or watch(model) before the first step"
            )
        self._stepper.chooser = self._chooser if groups else None
        if groups and self._chooser is not None:
            self._chooser.start(max(self._steps_taken(group) for group in groups))

    def p_history(self) -> dict[str, list[tuple[int, float]]]:
        """p of every block as it was chosen: ``(steps taken, p)`` of each recording, by name.

        Reads from the device what recordings have left there. A power below 0, beyond p = inf, is
        given as it is.
        """
        found: dict[str, list[tuple[int, float]]] = {}
        for taken, names, powers in self._chooser.history if self._chooser is not None else []:
            for name, power in zip(names, powers.tolist(), strict=True):
                value = power if power < 0 else exponents.p_of(power)
                found.setdefault(name, []).append((taken, value))
        return found

    def _steps_taken(self, group: Group) -> int:
        states = (self.state.get(param, {}) for param in group["params"])
        return max((int(state["step"]) for state in states if "step" in state), default=0)
