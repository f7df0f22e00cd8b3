"""What a caller says of parameters by name: patterns, and the rules and blocks they choose."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schattor.blocks import BlockSpec
from schattor.routing.sites import Site

RULES = ("matrix", "adamw", "sgd", "sign")

Pattern = str | re.Pattern[str]
Override = str | Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """One override: the rule (None: keep), block spec and group options it chooses."""

    pattern: Pattern
    argument: str
    rule: str | None = None
    has_blocks: bool = False
    blocks: BlockSpec | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """The reason this override gives, for the table."""
        return f"{self.argument}[{_text(self.pattern)!r}]"


def read_rules(rules: Mapping[Pattern, Override] | None) -> list[Choice]:
    """The choices of ``route``'s argument ``rules``, checked."""
    choices = []
    for pattern, value in (rules or {}).items():
        who = f"route: rules[{_text(pattern)!r}]"
        given = {"rule": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            raise TypeError(f"{who} must be the name of a rule or a dict, got {value!r}")
        options = dict(given)
        rule = options.pop("rule", None)
        if rule is not None and rule not in RULES:
            raise ValueError(f"{who}: rule must be one of {', '.join(RULES)}, got {rule!r}")
        for key in ("params", "param_names"):
            if key in options:
                raise ValueError(f"{who}: {key} is what route says, and must not be given")
        has_blocks = "blocks" in options
        blocks = options.pop("blocks", None)
        choices.append(Choice(pattern, "rules", rule, has_blocks, blocks, options))
    return choices


def read_specs(blocks: Mapping[Pattern, BlockSpec | None] | None) -> list[Choice]:
    """The choices of ``route``'s argument ``blocks``."""
    return [Choice(pattern, "blocks", None, True, spec) for pattern, spec in (blocks or {}).items()]


class Overrides:
    """Finds the first choice for a parameter, and remembers which patterns were of use."""

    def __init__(self, rules: list[Choice], specs: list[Choice], sites: Sequence[Site]) -> None:
        """``sites`` are all places of the model: a pattern must name one of them."""
        self._rules = [(choice, _matcher(choice.pattern)) for choice in rules]
        self._specs = [(choice, _matcher(choice.pattern)) for choice in specs]
        self._used: set[int] = {
            id(choice)
            for choice, matches in (*self._rules, *self._specs)
            if any(matches(site.name) for site in sites if not site.param.requires_grad)
        }
        self._names = list(dict.fromkeys(site.name for site in sites))

    def rule_of(self, places: Sequence[Site]) -> Choice | None:
        """The first of ``rules`` that matches a name of this parameter."""
        return self._first(self._rules, places)

    def spec_of(self, places: Sequence[Site]) -> Choice | None:
        """The first of ``blocks`` that matches a name of this parameter of the matrix rule."""
        return self._first(self._specs, places)

    def raise_if_unused(self) -> None:
        """Raise ValueError if a pattern chose nothing."""
        for choice, matches in (*self._rules, *self._specs):
            if id(choice) in self._used:
                continue
            if any(matches(name) for name in self._names):
                problem = (
                    "matches only parameters that earlier patterns claim"
                    if choice.argument == "rules"
                    else "matches no parameter of the matrix rule that earlier patterns left"
                )
                raise ValueError(f"route: {choice.why} {problem}")
            raise ValueError(
                f"route: {choice.why} matches no parameter or module; the closest names are"
                f" {', '.join(_closest(_text(choice.pattern), self._names)) or 'none'}"
            )

    def _first(
        self, choices: list[tuple[Choice, Callable[[str], bool]]], places: Sequence[Site]
    ) -> Choice | None:
        for choice, matches in choices:
            if any(matches(place.name) for place in places):
                self._used.add(id(choice))
                return choice
        return None


def _text(pattern: Pattern) -> str:
    return pattern.pattern if isinstance(pattern, re.Pattern) else pattern


def _matcher(pattern: Pattern) -> Callable[[str], bool]:
    """Whether a full parameter name is meant: a glob may also name a module around it."""
    if isinstance(pattern, re.Pattern):
        return lambda name: pattern.search(name) is not None
    if not isinstance(pattern, str):
        raise TypeError(f"route: a pattern must be a str or a compiled regex, got {pattern!r}")
    full = re.compile(fnmatch.translate(pattern))
    return lambda name: any(full.match(prefix) for prefix in _prefixes(name))


def _prefixes(name: str) -> list[str]:
    """A parameter's name and those of the modules above it."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words), 0, -1)]


def _closest(text: str, names: Sequence[str]) -> list[str]:
    candidates = dict.fromkeys(prefix for name in names for prefix in _prefixes(name))
    last = text.strip("*.").rpartition(".")[2]
    return (
        difflib.get_close_matches(text, candidates, n=3, cutoff=0.5)
        or [name for name in candidates if last and last in name][:3]
        or difflib.get_close_matches(text, candidates, n=3, cutoff=0.1)
    )
