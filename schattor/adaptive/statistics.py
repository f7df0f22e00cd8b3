"""Second moments of what layers read, and of the gradients of what they give."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from schattor.adaptive.layers import CONVOLUTIONS, LayerMoments, Layers
from schattor.adaptive.recording import Hook, has_numbers, is_counted
from schattor.adaptive.samples import ALONE, Collection, Samples, samples_of, unfolded, whole_of

__all__ = ["InputMoments", "OutputMoments"]


class InputMoments(LayerMoments):
    """The mean of ``x x'`` over the inputs x of the layers whose weights are given.

    The samples of a convolution are the patches that the kernel sees. n counts a layer's inputs in
    the order that the weight as a matrix has them: its columns, or the rows of a ``Conv1D``; for a
    convolution see :func:`schattor.blocks.block_views`.

    While recording, a hook on every layer adds the samples of each call that has gradients enabled:
    evaluation under ``torch.no_grad`` stays out, whatever ``module.training`` says; micro-batches
    add up. Calls that checkpointing repeats count twice, which a mean does not notice. Rows that
    are not finite, or whose squares are not, are left out; so are calls whose input is no dense
    tensor of the layer's width. What is covered, arguments: :class:`LayerMoments`.

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
        self._met = _Met(tokens)
        super().__init__(model, params, tokens=tokens)

    def _layers_of(self, param: nn.Parameter, modules: list[nn.Module]) -> Layers:
        return _Reading(param, modules, self._met)

    def clear(self) -> None:
        """Forget all samples, and free their memory."""
        self._met.clear()
        super().clear()


class OutputMoments(LayerMoments):
    """The mean of ``e e'`` over the loss's gradients e at the outputs of layers.

    m counts a layer's outputs: the rows of its weight, the columns of a ``Conv1D``; the samples of
    a convolution are the places of its output. A loss that is a mean makes gradients smaller by the
    size of the batch, so that moments are known up to a factor, the same for all layers.

    While recording, a hook on every layer waits for the backward pass of each call, whose gradient
    it adds; calls without one stay out. Rows that are not finite, or whose squares are not, are
    left out. What is covered, arguments: :class:`LayerMoments`.

    >>> model = nn.Linear(3, 2)
    >>> moments = OutputMoments(model, model.parameters())
    >>> moments.record(True)
    >>> (model(torch.ones(1, 3)) * torch.tensor([1.0, 2.0])).sum().backward()
    >>> moments.record(False)
    >>> moments.moment(model.weight)
    tensor([[1., 2.],
            [2., 4.]])
    """

    def _layers_of(self, param: nn.Parameter, modules: list[nn.Module]) -> Layers:
        return _Giving(param, modules, self._tokens)


class _Reading(Layers):
    """Layers of which the inputs are seen."""

    def __init__(self, param: nn.Parameter, modules: list[nn.Module], met: _Met) -> None:
        super().__init__(param, modules)
        self._met = met

    def size(self, param: nn.Parameter) -> int:
        return param.shape[0] if self.turned else param.shape[1:].numel()

    def attach(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(Hook(self._see), with_kwargs=True)

    def samples(self) -> Samples:
        return self.seen.in_order()

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook: adds what a layer is called with."""
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        if x is None or not _is_dense(x):
            return
        if torch.is_grad_enabled():
            with torch.no_grad():
                if isinstance(module, CONVOLUTIONS):
                    samples = _patches(module, whole_of(x))
                    if samples is not None and samples.numel():
                        self._met.add_new(samples, len(module.kernel_size) + 1, self.seen)
                elif x.numel() and x.ndim and x.shape[-1] == self.seen.size:
                    self._met.add(x, self.seen)


class _Giving(Layers):
    """Layers of whose outputs the gradients are seen."""

    def __init__(self, param: nn.Parameter, modules: list[nn.Module], tokens: int | None) -> None:
        super().__init__(param, modules)
        self._tokens = tokens

    def size(self, param: nn.Parameter) -> int:
        return param.shape[1 if self.turned else 0]

    def attach(self, module: nn.Module) -> RemovableHandle:
        # Of a convolution's output features are that many dimensions from the end.
        depth = len(module.kernel_size) if isinstance(module, CONVOLUTIONS) else 0

        def wait(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad and _is_dense(output):
                output.register_hook(see)  # type: ignore[no-untyped-call]

        def see(grad: Tensor | None) -> None:
            # There is none where what is derived twice is linear; of a Jacobian there are many.
            if grad is None or not (is_counted() and has_numbers(grad)):
                return
            with torch.no_grad():
                samples = grad.unsqueeze(0)
                if samples.numel() and samples.ndim > depth + 1:
                    samples = samples.movedim(-1 - depth, -1)
                    if samples.shape[-1] == self.seen.size:
                        own = samples_of(samples, samples.ndim - 1, self.seen, self._tokens)
                        self.seen.add(own)

        return module.register_forward_hook(Hook(wait))

    def samples(self) -> Samples:
        return self.seen.at_home()


class _Met:
    """What layers read, the same for those that read one tensor, one after the other."""

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self.clear()

    def clear(self) -> None:
        self._last: tuple[Callable[[], Tensor | None], int, Samples] | None = None
        self._joined: tuple[Samples, Samples, Samples] | None = None

    def add_new(self, x: Tensor, leading: int, to: Collection) -> None:
        """Samples ``[leading dimensions..., features...]`` that no other layer has seen."""
        to.add(samples_of(x, leading, to, self._tokens))

    def add(self, x: Tensor, to: Collection) -> None:
        """Samples ``[..., n]``: queries, keys and values read the same, gate and up too.

        So they do at the next call, and what two calls come to is one more thing to share.
        """
        found = self._found(x, to)
        with ALONE:
            before, last = to.samples, self._joined
            if last is not None and last[0] is before and last[1] is found:
                to.samples = last[2]
                return
            to.add(found)
            if before is not None and to.samples is not None:
                self._joined = before, found, to.samples

    def _found(self, x: Tensor, like: Collection) -> Samples:
        last = self._last  # once: another thread may put its own there
        if last is not None and not x.is_inference():
            read, version, found = last
            if read() is x and x._version == version and found.dtype == like.dtype:
                return found
        found = samples_of(x.unsqueeze(0), x.ndim, like, self._tokens)
        # Held weakly, so that no activation lives longer for it.
        self._last = None if x.is_inference() else (weakref.ref(x), x._version, found)
        return found


def _is_dense(x: Tensor) -> bool:
    dense = x.layout is torch.strided and not x.is_nested
    return dense and x.is_floating_point() and has_numbers(x)


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor | None:
    """What the kernel sees at each place, ``[batch, places..., in, k...]``: a view of the input.

    None for an input of another shape, which the layer itself refuses then.
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
    return unfolded(x, sizes, module.stride, dilation)
