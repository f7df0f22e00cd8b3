"""Which parameter follows which rule, and as which matrix blocks: ``print(route(model))``."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from schattor.blocks import BlockSpec, block_shapes
from schattor.routing.heads import find_heads
from schattor.routing.layouts import layout
from schattor.routing.overrides import Override, Overrides, Pattern, read_rules, read_specs
from schattor.routing.roles import refuse, role, strongest
from schattor.routing.sites import Site, storage_key, walk
from schattor.routing.table import render

__all__ = ["Entry", "Routing", "route"]


@dataclass(frozen=True)
class Entry:
    """One parameter: the rule it follows, its matrix blocks, and why.

    Attributes:
        name: its name in ``named_parameters``.
        param: the parameter.
        rule: ``"matrix"``, ``"adamw"``, ``"sgd"``, ``"sign"``; ``"frozen"`` if it has no gradient.
        blocks: block spec of a matrix (``schattor.blocks``), else None.
        reason: why, in words.
        options: further keys for its parameter group, such as ``lr``.
    """

    name: str
    param: nn.Parameter
    rule: str
    blocks: BlockSpec | None
    reason: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Routing:
    """The entries of a model, trained and frozen, in the order of ``named_parameters``."""

    entries: tuple[Entry, ...]
    frozen: tuple[Entry, ...] = ()

    def __iter__(self) -> Iterator[Entry]:
        """Over the trained parameters."""
        return iter(self.entries)

    def __len__(self) -> int:
        """The number of trained parameters."""
        return len(self.entries)

    def __getitem__(self, name: str) -> Entry:
        """The entry of a parameter, trained or frozen, by its name."""
        for entry in (*self.entries, *self.frozen):
            if entry.name == name:
                return entry
        raise KeyError(name)

    def __str__(self) -> str:
        """The table, and the share of each rule."""
        return render([*self.entries, *self.frozen])

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups: one for each rule, block spec and set of options, matrices first.

        Each holds ``params``, ``param_names``, ``rule``, ``blocks`` (one spec for the group) and
        its options. The largest matrix group comes first: it is the one whose ``lr`` HuggingFace's
        Trainer logs.
        """
        groups: dict[str, dict[str, Any]] = {}
        for entry in self.entries:
            key = repr((entry.rule, _plain(entry.blocks), sorted(entry.options.items())))
            group = groups.setdefault(
                key,
                {
                    "params": [],
                    "param_names": [],
                    "rule": entry.rule,
                    "blocks": _plain(entry.blocks),
                    **entry.options,
                },
            )
            group["params"].append(entry.param)
            group["param_names"].append(entry.name)
        return sorted(groups.values(), key=_group_order)


def route(
    model: nn.Module,
    *,
    rules: Mapping[Pattern, Override] | None = None,
    blocks: Mapping[Pattern, BlockSpec | None] | None = None,
    split_fused: bool = True,
) -> Routing:
    """Say for every parameter of a model which rule it follows, and as which matrices.

    Hidden matrices follow the rule ``"matrix"``: weights of ``nn.Linear``, HuggingFace ``Conv1D``,
    convolutions, recurrent and attention layers, stacked experts, low-rank adapters. Embeddings
    (patch embeddings too), output heads, what is tied to either, routers of experts, norms, biases
    and other vectors follow ``"adamw"``.

    A pattern is a glob over the parameter's full name or that of a module it lies in (so
    ``"lm_head"`` and ``"*.layers.0"`` work), or a compiled regular expression, searched in the full
    name. The first that matches wins.

    Args:
        model: the module; wrapped (DDP, ``torch.compile``, PEFT, FSDP2) or on the meta device too.
        rules: pattern -> rule, or -> dict with ``"rule"``, ``"blocks"`` and any other key for the
            parameter group (``{"lr": 1e-4}`` alone keeps the rule).
        blocks: pattern -> block spec for what follows the matrix rule.
        split_fused: split fused weights (QKV, gate and up, the gates of an LSTM) into their parts
            where the layout is known.

    Raises:
        TypeError: ``model`` is no module, or an override has the wrong type.
        ValueError: a pattern that matches nothing that was not claimed before it, blocks that do
            not fit, the matrix rule for a vector, a flat shard of a matrix (FSDP1, ZeRO-3), sparse
            gradients, complex or uninitialised parameters.

    >>> model = nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 32), nn.Linear(32, 100))
    >>> [(entry.name, entry.rule) for entry in route(model) if entry.param.ndim == 2]
    [('0.weight', 'adamw'), ('1.weight', 'matrix'), ('2.weight', 'adamw')]
    >>> route(model, rules={"2": "sgd"})["2.weight"].rule
    'sgd'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"route: model must be a torch.nn.Module, got {type(model).__name__}")
    sites = walk(model)
    places: dict[Hashable, list[Site]] = {}
    for site in sites:
        refuse(site)
        places.setdefault(storage_key(site.param), []).append(site)
    heads = find_heads(model, sites)
    overrides = Overrides(read_rules(rules), read_specs(blocks), sites)
    entries: list[Entry] = []
    frozen: list[Entry] = []
    seen: set[int] = set()
    for site in sites:
        if id(site.param) in seen:
            continue
        seen.add(id(site.param))
        if site.param.requires_grad:
            tied = places[storage_key(site.param)]
            entries.append(_entry(site, tied, heads, overrides, split_fused))
        else:
            frozen.append(Entry(site.name, site.param, "frozen", None, "requires no gradient"))
    overrides.raise_if_unused()
    return Routing(tuple(entries), tuple(frozen))


def _entry(
    site: Site, tied: list[Site], heads: frozenset[int], overrides: Overrides, split_fused: bool
) -> Entry:
    found = strongest([role(place, heads) for place in tied])
    names = sorted({place.name for place in tied} - {site.name})
    reason = "; ".join([found.reason, *(f"tied to {name}" for name in names)])
    rule, spec, options = found.rule, None, {}
    override = overrides.rule_of(tied)
    if override is not None:
        rule, options = override.rule or rule, override.options
        reason = f"{override.why} (was: {reason})" if override.rule else f"{reason}; {override.why}"
    if rule == "matrix":
        if site.param.ndim < 2:
            raise ValueError(
                f'route: the rule "matrix" needs two dimensions, but {site.name!r} of shape'
                f" {tuple(site.shape)} got it by {reason}; name the weights alone"
            )
        spec, note = layout(site, split_fused=split_fused)
        chosen = overrides.spec_of(tied) or (override if override and override.has_blocks else None)
        if chosen is not None:
            spec, note = chosen.blocks, chosen.why
        reason = f"{reason}: {note}" if note else reason
        _check_blocks(site, spec)
    elif override is not None and override.has_blocks and site.param.ndim > 1:
        raise ValueError(
            f'route: blocks for {site.name!r} need the rule "matrix", got {rule!r} ({reason})'
        )
    return Entry(site.name, site.param, rule, spec, reason, options)


def _check_blocks(site: Site, spec: BlockSpec | None) -> None:
    try:
        block_shapes(site.shape, spec)
    except (TypeError, ValueError) as error:
        raise type(error)(f"route: parameter {site.name!r}: {error}") from None


def _plain(spec: BlockSpec | None) -> dict[str, Any] | None:
    """A spec as plain values in a fixed order: equal specs give equal groups."""
    if not spec:
        return None
    values = {key: tuple(v) if isinstance(v, list | tuple) else v for key, v in spec.items()}
    return dict(sorted(values.items()))


def _group_order(group: dict[str, Any]) -> tuple[bool, int]:
    return group["rule"] != "matrix", -sum(param.numel() for param in group["params"])
