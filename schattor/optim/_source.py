"""The module that an optimizer was built from: what of it no step would ever move."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator

from torch import nn

from schattor.optim._settings import Group

__all__ = ["Source"]


class Source:
    """A module, and its parameters that are in no group since they were frozen.

    It keeps neither alive.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group]) -> None:
        """``groups`` were made of the module's parameters."""
        own = {id(param) for param in _params(groups)}
        self._model = weakref.ref(model)
        self._frozen = [
            (name, weakref.ref(param))
            for name, param in model.named_parameters()
            if id(param) not in own
        ]

    def check(self, who: str, groups: Iterable[Group]) -> None:
        """Before a step: warn once of parameters that are frozen no more.

        Raises ValueError where others have taken the parameters' places in the module, as with
        ``fully_shard``, and have the gradients.
        """
        if self._frozen:
            self._tell_thawed(who, groups)
        if all(param.grad is None for param in _params(groups)):
            self._refuse_replaced(who, groups)

    def _tell_thawed(self, who: str, groups: Iterable[Group]) -> None:
        params = [(name, ref()) for name, ref in self._frozen]
        moved = {id(param): name for name, param in params if param is not None and _moves(param)}
        if not moved:
            return
        self._frozen = []
        names = sorted(
            moved[key] for key in moved.keys() - {id(param) for param in _params(groups)}
        )
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            warnings.warn(
                f"{who}: {names[0]}{more} had requires_grad=False when this optimizer was built,"
                ' and has a gradient now that no step takes; use add_param_group({"params":'
                " list(layer.named_parameters())}), or build the optimizer when it requires one",
                stacklevel=2,
            )

    def _refuse_replaced(self, who: str, groups: Iterable[Group]) -> None:
        model = self._model()
        present = {} if model is None else dict(model.named_parameters())
        for group in groups:
            for name, param in zip(group.get("param_names", ()), group["params"], strict=False):
                other = present.get(name, param)
                if other is not param and _moves(other):
                    raise ValueError(
                        f"{who}: params must be those of the module, got none with a gradient"
                        f" while {name} of the module is another tensor now, and has one: build the"
                        " optimizer after fully_shard and what else replaces parameters"
                    )


def _params(groups: Iterable[Group]) -> Iterator[nn.Parameter]:
    return (param for group in groups for param in group["params"])


def _moves(param: nn.Parameter) -> bool:
    return param.requires_grad and param.grad is not None
