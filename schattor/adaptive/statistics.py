"""Second moments of what layers read, taken by forward hooks that are there only to record."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from schattor.blocks import block_views
from schattor.routing.layouts import is_conv1d

__all__ = ["InputMoments"]


class InputMoments:
    """The mean of ``x x'`` over the inputs x of the layers whose weights are given.

    Layers are ``nn.Linear``, HuggingFace's ``Conv1D`` and ``nn.Conv1d/2d/3d`` of one group, whose
    samples are the patches that the kernel sees; classes derived from them too. A weight of several
    layers, or of one that is called several times, sums over all calls. All else is not covered:
    grouped and transposed convolutions, lookups of embeddings, stacked experts, parametrised
    weights, and what a ``Linear`` and a ``Conv1D`` share, since these read it by different sides.

    While recording, a hook on every layer adds the samples of each call that has gradients enabled:
    evaluation under ``torch.no_grad`` stays out, whatever ``module.training`` says; micro-batches
    add up. Calls that checkpointing repeats count twice, which a mean does not notice. Rows that
    are not finite, or whose squares are not, are left out; so are calls whose input is no dense
    tensor of the layer's width. A layer that is never called, such as ``out_proj`` of
    ``nn.MultiheadAttention``, has no moment. Kept are a sum ``[n, n]`` and a count for each weight,
    no activations; nothing waits for the device. A captured CUDA graph replays what it captured.

    Compiled code does not see hooks that come later, so while anything records, whatever the
    process has compiled runs eagerly (``torch.compiler.set_stance``). A recorded step costs what an
    eager step costs, in time and memory; nothing is compiled again for it.

    Args:
        model: whose modules are searched, once: make another after changing them.
        params: those of interest, in an order that is the same on every rank.
        tokens: most samples of one call, the same ones for each shape of input: one from each of so
            many equal stretches, at places that favour no position in a sequence. None: all.

    Raises:
        TypeError, ValueError: a value outside these.

    >>> model = nn.Linear(2, 3)
    >>> moments = InputMoments(model, model.parameters())
    >>> moments.record(True)
    >>> _ = model(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> moments.record(False)
    >>> moments.moment(model.weight)
    tensor([[ 5.,  7.],
            [ 7., 10.]])
    """

    def __init__(
        self, model: nn.Module, params: Iterable[nn.Parameter], *, tokens: int | None = 4096
    ) -> None:
        """See the class."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"InputMoments: model must be an nn.Module, got {type(model).__name__}")
        if tokens is not None and (type(tokens) is not int or tokens < 1):
            raise ValueError(f"InputMoments: tokens must be an int >= 1 or None, got {tokens!r}")
        given = _checked(params)
        layers: dict[int, list[nn.Module]] = {id(param): [] for param in given}
        for module in model.modules():
            # A weight that a parametrisation computes is no parameter of the module's own.
            weight = module._parameters.get("weight")
            if weight is not None and id(weight) in layers and _is_known(module, weight.ndim):
                layers[id(weight)].append(module)
        self._sums = {
            id(param): _Sum(param, layers[id(param)], tokens)
            for param in given
            if len({is_conv1d(module) for module in layers[id(param)]}) == 1
        }
        self._stop: weakref.finalize[Any, InputMoments] | None = None

    def covers(self, param: nn.Parameter) -> bool:
        """Whether the inputs that this parameter multiplies can be recorded."""
        return id(param) in self._sums

    @property
    def recording(self) -> bool:
        """Whether hooks are attached."""
        return self._stop is not None

    def record(self, on: bool) -> None:
        """Attach the hooks, or remove them; between a backward pass and the next forward.

        A checkpointed layer must find the same hooks when it is recomputed.
        """
        if not isinstance(on, bool):
            raise TypeError(f"InputMoments.record: on must be a bool, got {on!r}")
        if on and self._stop is None:
            _COMPILED.pause()
            handles = [
                module.register_forward_pre_hook(each.see, with_kwargs=True)
                for each in self._sums.values()
                for module in each.modules
            ]
            # Runs by itself if this object goes away while it records.
            self._stop = weakref.finalize(self, _stop, handles)
        elif not on and self._stop is not None:
            self._stop()
            self._stop = None

    def moment(self, param: nn.Parameter) -> Tensor | None:
        """``[n, n]``, the mean of ``x x'`` since the last :meth:`clear`; None without samples.

        n counts the layer's inputs in the order that the weight as a matrix has them: its columns,
        or the rows of a ``Conv1D``; for a convolution see :func:`schattor.blocks.block_views`. A
        new symmetric tensor on the parameter's device, float64 for a float64 weight, else float32.
        Zero if no row was finite.
        """
        return self._sums[id(param)].mean() if id(param) in self._sums else None

    def clear(self) -> None:
        """Forget all samples, and free their memory."""
        for each in self._sums.values():
            each.clear()

    def reduce(self) -> None:
        """Sum over the ranks of the default process group, if there is one; all must call it.

        Ranks that never called a layer take part with no samples. Once before moments are read: a
        second time would count every sample once for each rank. Waits for the device.
        """
        sums = [*self._sums.values()]
        if not (sums and dist.is_available() and dist.is_initialized()):
            return
        calls = torch.tensor([each.calls for each in sums], device=sums[0].param.device)
        dist.all_reduce(calls)
        for each, total in zip(sums, calls.tolist(), strict=True):
            if total:
                for part in each.parts(each.param.device):
                    dist.all_reduce(part)


class _Sum:
    """The sum of ``x x'`` over the samples of one weight, and their number."""

    def __init__(self, param: nn.Parameter, modules: list[nn.Module], tokens: int | None) -> None:
        self.param = param
        self.modules = modules
        self._size = param.shape[0] if is_conv1d(modules[0]) else param.shape[1:].numel()
        self._tokens = tokens
        self.clear()

    def clear(self) -> None:
        self.calls = 0
        self._parts: tuple[Tensor, Tensor] | None = None

    def parts(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Sum and count; zeros on this device at first."""
        if self._parts is None:
            dtype = torch.float64 if self.param.dtype == torch.float64 else torch.float32
            total = torch.zeros(self._size, self._size, dtype=dtype, device=device)
            self._parts = total, torch.zeros((), dtype=torch.int64, device=device)
        return self._parts

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook: adds what a layer is called with."""
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if x is None or x.layout is not torch.strided or x.is_nested or not x.is_floating_point():
            return
        if torch.is_grad_enabled():
            with torch.no_grad():
                if isinstance(module, _CONVOLUTIONS):
                    self._add(_patches(module, x), len(module.kernel_size) + 1)
                elif x.ndim and x.shape[-1] == self._size:
                    self._add(x.unsqueeze(0), x.ndim)

    def _add(self, samples: Tensor | None, leading: int) -> None:
        """Add samples ``[..., features...]`` with this many leading dimensions."""
        if samples is None or samples.numel() == 0:
            return
        self.calls += 1
        total, count = self.parts(samples.device)
        sizes = samples.shape[:leading]
        if self._tokens is not None and sizes.numel() > self._tokens:
            samples = samples[_places(sizes, self._tokens, samples.device)]
        rows = samples.reshape(-1, self._size).to(total)
        finite = torch.linalg.vector_norm(rows, dim=1).isfinite()
        rows = torch.where(finite[:, None], rows, 0.0)
        total.addmm_(rows.mT, rows)  # in place, which autocast leaves alone
        count += finite.sum().to(count.device)

    def mean(self) -> Tensor | None:
        if self._parts is None:
            return None
        total, count = self._parts
        mean = torch.add(total, total.mT).div_(2 * count.clamp(min=1)).to(self.param.device)
        if self.param.ndim > 2 and not self.param.is_contiguous():
            order = _order(self.param)
            mean = mean[order][:, order]
        return mean


class _Compiled:
    """Keeps compiled code from running while anything records, in whatever order it ends."""

    def __init__(self) -> None:
        self._recordings = 0
        self._stance = contextlib.ExitStack()

    def pause(self) -> None:
        if not self._recordings:
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        self._recordings += 1

    def resume(self) -> None:
        self._recordings -= 1
        if not self._recordings:
            self._stance.close()


_COMPILED = _Compiled()
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _stop(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    _COMPILED.resume()


def _checked(params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    words = "InputMoments: params must be an iterable of parameters, got"
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise TypeError(f"{words} {type(params).__name__}")
    found = list(params)
    for param in found:
        if not isinstance(param, Tensor):
            raise TypeError(f"{words} one of {type(param).__name__}")
    return found


def _is_known(module: nn.Module, ndim: int) -> bool:
    """Whether this is a layer that is covered, whose weight is whole and no flat shard of it."""
    if isinstance(module, _CONVOLUTIONS):
        return module.groups == 1 and ndim == len(module.kernel_size) + 2
    return (isinstance(module, nn.Linear) or is_conv1d(module)) and ndim == 2


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor | None:
    """What the kernel sees at each place, ``[batch, places..., in, k...]``: a view of the input.

    None for an input of another shape, which a derived class may take and change.
    """
    sizes, dilation = module.kernel_size, module.dilation
    depth = len(sizes)
    x = x.unsqueeze(0) if x.ndim == depth + 1 else x
    if x.ndim != depth + 2 or x.shape[1] != module.in_channels:
        return None
    spans = [step * (size - 1) + 1 for size, step in zip(sizes, dilation, strict=True)]
    if isinstance(module.padding, str):
        both = [span - 1 if module.padding == "same" else 0 for span in spans]
    else:
        both = [2 * each for each in module.padding]
    if any(both):
        pads = [part for whole in reversed(both) for part in (whole // 2, whole - whole // 2)]
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = nn.functional.pad(x, pads, mode=mode)
    for dim in range(depth):
        if x.shape[2 + dim] < spans[dim]:
            return None
        x = x.unfold(2 + dim, spans[dim], module.stride[dim])[..., :: dilation[dim]]
    return x.movedim(1, 1 + depth)


def _places(sizes: torch.Size, tokens: int, device: torch.device) -> tuple[Tensor, ...]:
    """Indices of so many of the samples ``[sizes...]``, one from each of as many equal stretches.

    At the same place of every stretch they would meet the same positions of every sequence whose
    length is a multiple of a stretch, the first among them, whose activations are unlike all
    others. Multiples of the golden ratio modulo one are spread evenly over any such sequence.
    """
    total = sizes.numel()
    which = torch.arange(tokens + 1, device=device)
    edges = which * total // tokens
    golden = which[:-1] * 0x9E3779B9 & 0xFFFFFFFF
    flat = edges[:-1] + (golden * edges.diff() >> 32)
    places: list[Tensor] = []
    for size in reversed(sizes):
        places.append(flat % size)
        flat = flat // size
    return tuple(reversed(places))


def _order(param: nn.Parameter) -> Tensor:
    """Which column of ``weight.flatten(1)`` each column of its matrix in ``block_views`` is."""
    like = param.detach()[:1]
    numbers = torch.empty_like(like, dtype=torch.int64)
    numbers.copy_(torch.arange(like.numel(), device=like.device).view(like.shape))
    return block_views(numbers, like=like)[0][0]
