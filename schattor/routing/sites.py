"""Where parameters hang in a model: name, owner, and the modules on the way to it."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

# Modules that hold another one in their place, by the attribute that holds it.
_WRAPPERS = frozenset(
    ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "base_layer")
)
# What hooks of weight_norm and spectral_norm call the tensor of the weight's shape; the
# parametrisations that took their place keep it as "original", or "original1" beside a length.
_HOOKED = frozenset(("weight_v", "weight_orig"))
_PARAMETRISED = frozenset(("original", "original1"))


@dataclass(frozen=True)
class Site:
    """One place of a model where a parameter hangs; a tied parameter has several.

    Attributes:
        name: the parameter's full name.
        param: the parameter.
        leaf: what the owner calls it; ``"weight"`` also for the direction of a weight norm.
        segments: names of the modules from the root's child down to the owner, less wrappers.
        path: the modules of ``segments``, after the root.
    """

    name: str
    param: nn.Parameter
    leaf: str
    segments: tuple[str, ...]
    path: tuple[nn.Module, ...]

    @property
    def owner(self) -> nn.Module:
        """The module that holds the parameter."""
        return self.path[-1]

    @property
    def parent(self) -> nn.Module | None:
        """The module that holds the owner; None for the root."""
        return self.path[-2] if len(self.path) > 1 else None

    @property
    def shape(self) -> torch.Size:
        """The parameter's shape."""
        return self.param.shape

    @property
    def layer_name(self) -> str:
        """What a person calls it: the layer of a plain ``weight``, else the parameter's own name.

        The entries of a ``ParameterList`` or ``ParameterDict`` take the name of the whole.
        """
        words = [segment for segment in self.segments if not segment.isdigit()]
        own = self.leaf != "weight" and not isinstance(
            self.owner, nn.ParameterList | nn.ParameterDict
        )
        return self.leaf if own or not words else words[-1]


def class_name(module: nn.Module) -> str:
    """The name of a module's class, under what FSDP2 and parametrisations make of it."""
    return re.sub(r"^(FSDP|Parametrized)+(?=.)", "", type(module).__name__)


def walk(model: nn.Module) -> list[Site]:
    """All sites of a model in the order of ``named_parameters``, each name of a tied one too."""
    modules = dict(model.named_modules(remove_duplicate=False))
    sites = []
    for prefix, owner in modules.items():
        if not any(param is not None for param in owner._parameters.values()):
            continue
        names = prefix.split(".") if prefix else []
        parametrised = isinstance(owner, ParametrizationList)
        segments, path = _unwrapped(modules, names[:-2] if parametrised else names)
        for leaf, param in owner._parameters.items():
            if param is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                if parametrised and leaf in _PARAMETRISED:
                    leaf = names[-1]
                sites.append(
                    Site(name, param, "weight" if leaf in _HOOKED else leaf, segments, path)
                )
    return sites


def storage_key(param: torch.Tensor) -> tuple[Hashable, ...]:
    """A key that parameters over the same memory share; on the meta device too."""
    try:
        storage = param.untyped_storage()
        return (storage._cdata, param.storage_offset(), param.numel())
    except (NotImplementedError, RuntimeError):
        return (id(param),)


def _unwrapped(
    modules: dict[str, nn.Module], names: list[str]
) -> tuple[tuple[str, ...], tuple[nn.Module, ...]]:
    """Segments and path below the root, where what is wrapped takes the wrapper's place."""
    segments: list[str] = []
    path = [modules[""]]
    for depth, name in enumerate(names, 1):
        module = modules[".".join(names[:depth])]
        if name in _WRAPPERS:
            path[-1] = module
        else:
            segments.append(name)
            path.append(module)
    return tuple(segments), tuple(path)
