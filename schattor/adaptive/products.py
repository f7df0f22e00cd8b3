"""What weights multiply, seen where it is computed: in modules whose inputs do not say it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.hooks import RemovableHandle

from schattor.adaptive.layers import NeverCalled
from schattor.adaptive.origins import Origins, is_plain, sides
from schattor.adaptive.own import OwnMoments, Widths
from schattor.adaptive.places import Part, Side
from schattor.adaptive.recording import Hook, Recorder
from schattor.adaptive.samples import ALONE, samples_between, samples_of, unfolded
from schattor.routing.layouts import is_layer

__all__ = ["Products"]

_aten = torch.ops.aten

# Products of two matrices, or batches of them, and where the two stand among the arguments.
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.mv.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.addmv.default: 1,
    _aten.baddbmm.default: 1,
}
_GROUPED = _aten._grouped_mm.default
_CONVOLUTION = _aten.convolution.default
_CAST = _aten._to_copy.default
_PICK = _aten.index.Tensor
_OF_INTEREST = frozenset((*_PRODUCTS, _GROUPED, _CONVOLUTION, _CAST, _PICK))

# Modules that are never called: what they hold belongs to the module around them.
_HOLDERS = (nn.ParameterList, nn.ParameterDict, NeverCalled)


class Products(Recorder):
    """Samples of what weights multiply in modules whose inputs do not say it.

    Such are experts in one tensor, ``nn.MultiheadAttention``, grouped convolutions, and a user's
    own modules. While one of them runs forward, each matrix product and convolution that PyTorch
    computes is looked at: where one side is part of a weight, or a batch of parts, the other side
    holds samples for the blocks in it. A part is known by its place in memory; a copy, if it is one
    in another dtype, or of some experts by their numbers. Nothing is seen in kernels that are no
    products to PyTorch, such as fused recurrent ones and those of Triton, nor in depthwise
    convolutions.

    What :class:`~schattor.adaptive.statistics.InputMoments` says of its hooks holds here too. Of
    rows in groups each group shows at most twice the mean number.
    """

    def __init__(
        self, model: nn.Module, params: Sequence[Widths], to: OwnMoments, tokens: int | None
    ) -> None:
        """``params`` are those that are looked for; samples are added ``to`` what has them all."""
        super().__init__()
        given = {id(each.param): each for each in params}
        held: set[int] = set()
        self._modules: dict[nn.Module, list[Home]] = {}
        for module in model.modules():
            homes = [
                Home(holder, name, given[id(param)])
                for holder, name, param in _held_by(module)
                if id(param) in given
            ]
            if homes:
                self._modules[module] = homes
                held |= {id(home.of.param) for home in homes}
        self._params = {key: each for key, each in given.items() if key in held}
        self._looking = _Looking(to, tokens, self._modules)

    def covers(self, param: nn.Parameter) -> bool:
        """Whether products with this parameter are looked for."""
        return id(param) in self._params

    def record(self, on: bool) -> None:
        """Begin or end, as :meth:`Recorder.record`."""
        super().record(on)
        if on:
            self._looking.start([*self._params.values()])
        else:
            self._looking.stop()

    def _attach(self) -> list[RemovableHandle]:
        looking, handles = self._looking, []
        for module in self._modules:
            handles.append(module.register_forward_pre_hook(Hook(looking.enter)))
            handles.append(module.register_forward_hook(Hook(looking.leave), always_call=True))
        return handles


def _held_by(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter | None]]:
    """The parameters that a module, when it is called, may multiply something with, and where."""
    if is_layer(module):  # of others it computes its weight
        yield module, "weight", module._parameters.get("weight")
    elif not isinstance(module, (ParametrizationList, *_HOLDERS)):
        for each in (module, *module.children()):
            if each is module or isinstance(each, _HOLDERS):
                for name, param in each._parameters.items():
                    yield each, name, param


class Home(NamedTuple):
    """Where a module keeps a parameter."""

    module: nn.Module
    name: str
    of: Widths


class _Looking:
    """What hooks call: each thread has a mode of its own, and what runs in it."""

    def __init__(
        self, to: OwnMoments, tokens: int | None, homes: Mapping[nn.Module, Sequence[Home]]
    ) -> None:
        self._to, self._tokens, self._homes = to, tokens, homes
        self.start([])

    def start(self, params: Sequence[Widths]) -> None:
        """Look for these parameters, where they lie now."""
        # An interrupt ends a forward pass without a call of any hook.
        while isinstance(left := _get_current_dispatch_mode(), _Seeing):
            left.__exit__(None, None, None)
        self._origins = Origins(params)
        self._here = _Running(self._to, self._tokens, self._origins)

    def stop(self) -> None:
        """End what an interrupted forward pass left on, and nobody else's."""
        if _get_current_dispatch_mode() is self._here.mode:
            self._here.mode.__exit__(None, None, None)
            self._here.modules.clear()

    def enter(self, module: nn.Module, args: Any) -> None:
        """The hook before a module runs forward."""
        if not self._here.modules:
            self._here.mode.__enter__()
        self._here.modules.append(module)
        for home in self._homes.get(module, ()):  # a replica on another device has none
            now = home.module._parameters.get(home.name)
            # Shards are together while their module runs, in a tensor that takes their place.
            if now is not None and now is not home.of.param and now.shape == home.of.param.shape:
                with ALONE:
                    self._origins.add(now, home.of)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook after it, whether it ended well or not."""
        modules = self._here.modules
        # Where the hook of another failed before `enter`, what ends here never began.
        if modules[-1:] == [module]:
            modules.pop()
            if not modules:
                self._here.mode.__exit__(None, None, None)


class _Running(threading.local):
    """What runs in a thread; each makes its own at its first look."""

    def __init__(self, to: OwnMoments, tokens: int | None, origins: Origins) -> None:
        self.modules: list[nn.Module] = []
        self.mode = _Seeing(to, tokens, origins)


class _Seeing(TorchDispatchMode):
    """Sees products while a module runs forward."""

    def __init__(self, to: OwnMoments, tokens: int | None, origins: Origins) -> None:
        super().__init__()
        self._to, self._tokens, self._origins = to, tokens, origins

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an operation; if it is a product with a weight, see what that multiplies."""
        result = func(*args, **(kwargs or {}))
        if func in _OF_INTEREST and torch.is_grad_enabled():
            with torch.no_grad():
                if func in _PRODUCTS:
                    self._see(*args[_PRODUCTS[func] :][:2])
                elif func is _GROUPED:
                    self._see_grouped(*args[:3])
                elif func is _CONVOLUTION:
                    self._see_convolution(*args)
                elif func is _PICK:
                    self._origins.pick(args[0], args[1], result)
                else:
                    self._origins.cast(args[0], result)
        return result

    def _see(self, left: Tensor, right: Tensor) -> None:
        """A product of matrices, or of batches of them."""
        if not (is_plain(left) and is_plain(right)):
            return
        right = right.unsqueeze(-1) if right.ndim == 1 else right
        if left.ndim == 2:
            left, right = left.unsqueeze(0), right.unsqueeze(0)
        of_left, of_right = (self._origins.parts(x, *sides(x)) for x in (left.mT, right))
        if of_right and not of_left:
            x, of_matrices = left, of_right
        elif of_left and not of_right:  # the same product, transposed
            x, of_matrices = right.mT, of_left
        else:
            self._see_picked(left, right)
            self._see_picked(right.mT, left.mT)
            return
        for samples, parts in zip(x, of_matrices, strict=True):
            self._add(samples.unsqueeze(0), 2, parts)

    def _see_picked(self, x: Tensor, weights: Tensor) -> None:
        """Tokens ``[tokens, 1, inputs]``, each with a matrix that was copied for it."""
        picked = self._origins.picked(weights)
        if picked is not None and x.shape[1] == 1:
            which, order = picked.which.sort(stable=True)
            every = torch.arange(len(picked.of_matrices), device=which.device)
            ends = torch.searchsorted(which, every, right=True)
            self._add_groups(x[order, 0], picked.of_matrices, ends)

    def _see_grouped(self, x: Tensor, weights: Tensor, ends: Tensor | None = None) -> None:
        """Rows in groups that end at ``ends``, and a matrix for each group."""
        if ends is None:
            self._see(x, weights)
        elif x.ndim == 2 and weights.ndim == 3 and is_plain(x) and is_plain(weights):
            self._add_groups(x, self._origins.parts(weights, *sides(weights)), ends)

    def _see_convolution(
        self,
        x: Tensor,
        weights: Tensor,
        bias: Tensor | None,
        strides: Sequence[int],
        padding: Sequence[int],
        dilations: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> None:
        """A convolution with kernels ``[out, in, k...]`` in groups, none of a single channel."""
        if not (is_plain(x) and is_plain(weights)):
            return
        if transposed:
            self._see_transposed(x, weights, groups)
            return
        if weights.shape[1] == 1:
            return
        # Columns in the order of memory, as `block_views` has them.
        order = sorted(range(1, weights.ndim), key=weights.stride, reverse=True)
        kernel, (outputs, *_) = weights.permute(0, *order)[0], sides(weights)
        count = outputs.size // groups
        of_groups = self._origins.parts(
            weights,
            Side(groups, count * outputs.stride),
            Side(kernel.numel(), 1),
            Side(count, outputs.stride),
        )
        if not any(of_groups) or not kernel.is_contiguous():
            return
        padded = pad(x, [each for each in reversed(padding) for _ in range(2)])
        seen = unfolded(padded, weights.shape[2:], strides, dilations)
        assert seen is not None  # the convolution has been computed
        leading = weights.ndim - 1
        seen = seen.unflatten(leading, (groups, -1)).movedim(leading, 0)
        seen = seen.permute(*range(1 + leading), *(leading + dim for dim in order))
        for patches, parts in zip(seen, of_groups, strict=True):
            self._add(patches, leading, parts)

    def _see_transposed(self, x: Tensor, weights: Tensor, groups: int) -> None:
        """A transposed one, ``[in, out, k...]``: each place of its input multiplies all kernels."""
        inputs, kernels = sides(weights)[0], weights[0].numel()
        count = inputs.size // groups
        of_groups = self._origins.parts(
            weights,
            Side(groups, count * inputs.stride),
            Side(count, inputs.stride),
            Side(kernels, 1),
        )
        if not any(of_groups) or inputs.stride != kernels:
            return
        places = x.movedim(1, -1).unflatten(-1, (groups, count)).movedim(-2, 0)
        for samples, parts in zip(places, of_groups, strict=True):
            self._add(samples, x.ndim - 1, parts)

    def _add_groups(self, x: Tensor, of_groups: list[list[Part]], ends: Tensor) -> None:
        """Add rows ``[rows, n]`` in groups, whose ends stay on the device."""
        if not of_groups or not x.numel():
            return
        most = len(x)
        if self._tokens is not None:
            most = min(most, self._tokens, -(-2 * most // len(of_groups)))
        bounds = [ends.new_zeros(()), *ends.long().unbind()]
        for (start, end), parts in zip(pairwise(bounds), of_groups, strict=True):
            for param, blocks, inputs in parts:
                like = self._to.like(param, blocks[0])
                found = samples_between(x[:, inputs], start, end, like, most)
                self._to.share(param, blocks, found)

    def _add(self, x: Tensor, leading: int, parts: list[Part]) -> None:
        """Add samples ``[leading dimensions..., features...]`` of what some blocks multiply."""
        for param, blocks, inputs in parts if x.numel() else []:
            like = self._to.like(param, blocks[0])
            every = like.size == x.shape[leading:].numel()
            mine = x if every else x.flatten(leading)[..., inputs]
            self._to.share(param, blocks, samples_of(mine, leading, like, self._tokens))
