"""Second moments of what layers read, taken by forward hooks that are there only to record."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from schattor.adaptive.sums import Gram, Sum, gram_of, in_order, mean_of, reduce_all
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
        self._met = _Met(tokens)
        self._layers = {
            id(param): _Layers(param, layers[id(param)], self._met)
            for param in given
            if len({is_conv1d(module) for module in layers[id(param)]}) == 1
        }
        self._stop: weakref.finalize[Any, InputMoments] | None = None

    def covers(self, param: nn.Parameter) -> bool:
        """Whether the inputs that this parameter multiplies can be recorded."""
        return id(param) in self._layers

    def turned(self, param: nn.Parameter) -> bool:
        """Whether the layer that is covered has its inputs along the rows, as a ``Conv1D``."""
        return self._layers[id(param)].turned

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
                for each in self._layers.values()
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
        gram = self.gram(param)
        return None if gram is None else mean_of([gram])

    def gram(self, param: nn.Parameter) -> Gram | None:
        """The sum that :meth:`moment` is the mean of."""
        layers = self._layers.get(id(param))
        return None if layers is None or layers.sum.gram is None else in_order(layers.sum)

    def clear(self) -> None:
        """Forget all samples, and free their memory."""
        self._met.clear()
        for each in self._layers.values():
            each.sum.clear()

    def reduce(self) -> None:
        """Sum over the ranks of the default process group, if there is one; all must call it.

        Ranks that never called a layer take part with no samples. Once before moments are read: a
        second time would count every sample once for each rank. Waits for the device.
        """
        reduce_all([each.sum for each in self._layers.values()])


class _Layers:
    """The layers of one weight, and the sum over what they read."""

    def __init__(self, param: nn.Parameter, modules: list[nn.Module], met: _Met) -> None:
        self.turned = is_conv1d(modules[0])
        self.sum = Sum(param, param.shape[0] if self.turned else param.shape[1:].numel())
        self.modules = modules
        self._met = met

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook: adds what a layer is called with."""
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if x is None or x.layout is not torch.strided or x.is_nested or not x.is_floating_point():
            return
        if torch.is_grad_enabled():
            with torch.no_grad():
                if isinstance(module, _CONVOLUTIONS):
                    samples = _patches(module, x)
                    if samples is not None and samples.numel():
                        self.sum.add(self._met.gram(samples, len(module.kernel_size) + 1, self.sum))
                elif x.numel() and x.ndim and x.shape[-1] == self.sum.size:
                    self.sum.add(self._met.shared(x, self.sum))


class _Met:
    """What layers read; one sum for those that read the same tensor, one after the other."""

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._last: tuple[Callable[[], Tensor | None], int, Gram] | None = None

    def gram(self, samples: Tensor, leading: int, like: Sum) -> Gram:
        return gram_of(samples, leading, like.size, like.dtype, self._tokens)

    def shared(self, x: Tensor, like: Sum) -> Gram:
        """Of samples ``[..., n]``: queries, keys and values read the same, gate and up too."""
        if self._last is not None and not x.is_inference():
            read, version, found = self._last
            if read() is x and x._version == version and found.total.dtype == like.dtype:
                return found
        found = self.gram(x.unsqueeze(0), x.ndim, like)
        # Held weakly, so that no activation lives longer for it.
        self._last = None if x.is_inference() else (weakref.ref(x), x._version, found)
        return found

    def clear(self) -> None:
        self._last = None


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
