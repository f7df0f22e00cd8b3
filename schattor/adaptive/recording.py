"""Hooks that are there only to record, which passes they count, and compiled code meanwhile."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _TorchDispatchModeKey as Tracer
from torch._C._functorch import (
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
    maybe_current_level,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.hooks import RemovableHandle

__all__ = ["Hook", "Recorder", "has_numbers", "is_counted"]

_TRACERS = (Tracer.FAKE, Tracer.PROXY, Tracer.FUNCTIONAL)


def is_counted() -> bool:
    """Whether what runs now may be recorded: no trace, and no transformation by ``torch.func``.

    Tensors of those are gone, or no tensors, when the step reads what was recorded; and what is
    traced would hold the recording for ever.
    """
    return not (
        torch.compiler.is_compiling()  # first: it is all that a compiler can follow
        or torch._C._is_tracing()
        or maybe_current_level() is not None
        or any(torch._C._get_dispatch_mode(tracer) is not None for tracer in _TRACERS)
    )


def has_numbers(x: Tensor) -> bool:
    """Whether a tensor is neither a shape alone nor, inside a transformation, many in one."""
    transformed = is_functorch_wrapped_tensor(x) or is_legacy_batchedtensor(x)
    return not (x.is_meta or isinstance(x, FakeTensor) or transformed)


class Hook:
    """A hook that does nothing in a copy of its module, deep or pickled: nobody records that.

    Nor does it in a pass that is not counted.
    """

    __name__ = "recording"  # what looks at hooks takes them for functions

    def __init__(self, call: Callable[..., Any] | None) -> None:
        """``call`` is what the module calls; None: nothing."""
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """As a hook is called."""
        return self._call(*args) if self._call is not None and is_counted() else None

    def __reduce__(self) -> tuple[type[Hook], tuple[None]]:
        """What copies get."""
        return Hook, (None,)

    @property
    def __globals__(self) -> dict[str, Any]:
        """What ``torch.jit.script`` asks of a hook first, whose source it compiles."""
        when = "" if self._call else ", and make this copy of the module after that"
        raise AttributeError(
            "the next step of an optimizer records this module's inputs, by a hook that cannot be"
            f" scripted: call the optimizer's unwatch() before{when}"
        )


class Recorder:
    """Something with hooks on modules while it records."""

    def __init__(self) -> None:
        """Without hooks."""
        self._stop: weakref.finalize[Any, Recorder] | None = None

    def _attach(self) -> list[RemovableHandle]:
        """Put the hooks where they belong."""
        raise NotImplementedError

    @property
    def recording(self) -> bool:
        """Whether hooks are attached."""
        return self._stop is not None

    def record(self, on: bool) -> None:
        """Attach the hooks, or remove them; between a backward pass and the next forward.

        A checkpointed layer must find the same hooks when it is recomputed.
        """
        if not isinstance(on, bool):
            raise TypeError(f"{type(self).__name__}.record: on must be a bool, got {on!r}")
        if on and self._stop is None:
            _COMPILED.pause()
            # Runs by itself if this object goes away while it records.
            self._stop = weakref.finalize(self, _stop, self._attach())
        elif not on and self._stop is not None:
            self._stop()
            self._stop = None


class _Compiled:
    """Keeps compiled code from running while anything records, in whatever order it ends.

    A stance that others take meanwhile is theirs: it stays when the recording ends, and leads back
    to the one from before the recording when it ends later.
    """

    def __init__(self) -> None:
        self._recordings = 0
        self._ours: Any = None
        self._alone = threading.RLock()  # entered again where an object goes away inside

    def pause(self) -> None:
        with self._alone:
            if not self._recordings:
                self._ours = torch.compiler.set_stance("force_eager")
            self._recordings += 1

    def resume(self) -> None:
        with self._alone:
            self._recordings -= 1
            if not self._recordings:
                now = torch.compiler.set_stance("default")
                last = self._ours if now.prev is self._ours.stance else now
                last.__exit__(None, None, None)
                # Whoever began inside goes back to this stance: to what was there before it.
                vars(self._ours.stance).update(vars(self._ours.prev))


_COMPILED = _Compiled()


def _stop(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    _COMPILED.resume()
