"""Functions of plain values: ``torch.compile`` calls them while it traces, and keeps results."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from operator import index
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["constant", "constant_cache"]

P = ParamSpec("P")
R = TypeVar("R")


def constant(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of plain values, whose result a graph may hold.

    What one such function returns is no argument of another, unless it is a number: newer
    releases of torch cannot guard it.
    """
    inner: Callable[..., Any] = _as_it_is(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        found: R
        if torch.compiler.is_compiling():
            plain = {name: _plain(value) for name, value in kwargs.items()}
            found = inner(*[_plain(value) for value in args], **plain)
        else:
            found = function(*args, **kwargs)
        return found

    return call


def constant_cache(maxsize: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """``lru_cache(typed=True)`` of such a function; itself it would be traced into."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        cached: Callable[..., R] = lru_cache(maxsize, typed=True)(function)
        return constant(wraps(function)(cached))

    return decorate


def _as_it_is(function: Callable[..., R]) -> Callable[..., R]:
    """As ``torch.compiler.assume_constant_result``, which imports all of dynamo at once."""

    def call(*args: Any, **kwargs: Any) -> R:
        return function(*args, **kwargs)

    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call


def _plain(value: Any) -> Any:
    """A number itself where tracing has a symbol for it: a graph is for one value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return index(value)
    if isinstance(value, float):
        return value.__float__()
    return value
