"""What weights multiply, seen where it is computed: in modules whose inputs do not say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import pad
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.hooks import RemovableHandle

from schattor.adaptive.layers import NeverCalled, Recorder
from schattor.adaptive.own import OwnMoments, Widths
from schattor.adaptive.places import Memory, Part, Side, memories_of, name_of_memory
from schattor.adaptive.samples import samples_between, samples_of, unfolded
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
_OF_INTEREST = frozenset((*_PRODUCTS, _GROUPED, _CONVOLUTION, _CAST))

# Modules that are never called: what they hold belongs to the module around them.
_HOLDERS = (nn.ParameterList, nn.ParameterDict, NeverCalled)


class Products(Recorder):
    """Samples of what weights multiply in modules whose inputs do not say it.

    Such are experts in one tensor, ``nn.MultiheadAttention``, grouped convolutions, and a user's
    own modules. While one of them runs forward, each matrix product and convolution that PyTorch
    computes is looked at: where one side is part of a weight, or a batch of parts, the other side
    holds samples for the blocks in it. A part is known by its place in memory, a copy if it is one
    in another dtype. Nothing is seen in kernels that are no products to PyTorch, such as fused
    recurrent ones and those of Triton, nor in transposed and depthwise convolutions.

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
        self._modules: list[nn.Module] = []
        for module in model.modules():
            own = given.keys() & {id(param) for param in _held_by(module)}
            self._modules += [module] if own else []
            held |= own
        self._params = [each for key, each in given.items() if key in held]
        self._seeing = _Seeing(to, tokens)

    def covers(self, param: nn.Parameter) -> bool:
        """Whether products with this parameter are looked for."""
        return any(each.param is param for each in self._params)

    def record(self, on: bool) -> None:
        """Begin or end, as :meth:`Recorder.record`."""
        super().record(on)
        if on:
            self._seeing.start(self._params)

    def _attach(self) -> list[RemovableHandle]:
        seeing, handles = self._seeing, []
        for module in self._modules:
            handles.append(module.register_forward_pre_hook(seeing.enter))
            handles.append(module.register_forward_hook(seeing.leave, always_call=True))
        return handles


def _held_by(module: nn.Module) -> Iterator[nn.Parameter | None]:
    """The parameters that a module, when it is called, may multiply something with."""
    if is_layer(module):  # of others it computes its weight
        yield module._parameters.get("weight")
    elif not isinstance(module, (ParametrizationList, *_HOLDERS)):
        for each in (module, *module.children()):
            if each is module or isinstance(each, _HOLDERS):
                yield from each.parameters(recurse=False)


class _Copy(NamedTuple):
    """A copy of a part of a weight."""

    memory: StorageWeakRef  # as long as this is held, no other memory has its name
    source: int  # the memory of the weight
    shift: int  # from offsets in the copy's memory to offsets in the weight's


class _Seeing(TorchDispatchMode):
    """Sees products while a module runs forward."""

    def __init__(self, to: OwnMoments, tokens: int | None) -> None:
        super().__init__()
        self._to, self._tokens = to, tokens
        self.start([])

    def start(self, params: Sequence[Widths]) -> None:
        """Look for these parameters, where they lie now."""
        # An interrupt ends a forward pass without a call of any hook.
        while isinstance(left := _get_current_dispatch_mode(), _Seeing):
            left.__exit__(None, None, None)
        self._running: list[nn.Module] = []
        self._memories: dict[int, Memory] = memories_of(params)
        self._copies: dict[int, _Copy] = {}

    def enter(self, module: nn.Module, args: Any) -> None:
        """The hook before a module runs forward."""
        if not self._running:
            self.__enter__()
        self._running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook after it, whether it ended well or not."""
        # Where the hook of another failed before `enter`, what ends here never began.
        if self._running[-1:] == [module]:
            self._running.pop()
            if not self._running:
                self.__exit__(None, None, None)

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
                    self._see_groups(*args[:3])
                elif func is _CONVOLUTION:
                    self._see_convolution(*args)
                else:
                    self._follow(args[0], result)
        return result

    def _see(self, left: Tensor, right: Tensor) -> None:
        """A product of matrices, or of batches of them."""
        if not (_is_plain(left) and _is_plain(right)):
            return
        right = right.unsqueeze(-1) if right.ndim == 1 else right
        if left.ndim == 2:
            left, right = left.unsqueeze(0), right.unsqueeze(0)
        of_left, of_right = (self._parts(each, *_sides(each)) for each in (left.mT, right))
        if of_right and not of_left:
            x, of_matrices = left, of_right
        elif of_left and not of_right:  # the same product, transposed
            x, of_matrices = right.mT, of_left
        else:
            return
        for samples, parts in zip(x, of_matrices, strict=True):
            self._add(samples.unsqueeze(0), 2, parts)

    def _see_groups(self, x: Tensor, weights: Tensor, ends: Tensor | None) -> None:
        """Rows in groups that end at ``ends``, and a matrix for each group."""
        if ends is None or x.ndim != 2 or weights.ndim != 3:  # the groups are on another side
            return
        if not (_is_plain(x) and _is_plain(weights) and x.numel()):
            return
        most = len(x)
        if self._tokens is not None:
            most = min(most, self._tokens, -(-2 * most // len(weights)))
        bounds = [ends.new_zeros(()), *ends.long().unbind()]
        of_groups = self._parts(weights, *_sides(weights))
        for (start, end), parts in zip(pairwise(bounds), of_groups, strict=False):
            for param, blocks, inputs in parts:
                like = self._to.like(param, blocks[0])
                found = samples_between(x[:, inputs], start, end, like, most)
                self._to.share(param, blocks, found)

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
        if transposed or weights.shape[1] == 1 or not (_is_plain(x) and _is_plain(weights)):
            return
        # Columns in the order of memory, as `block_views` has them.
        order = sorted(range(1, weights.ndim), key=weights.stride, reverse=True)
        kernel, (outputs, *_) = weights.permute(0, *order)[0], _sides(weights)
        count = outputs.size // groups
        of_groups = self._parts(
            weights,
            Side(groups, count * outputs.stride),
            Side(kernel.numel(), 1),
            Side(count, outputs.stride),
        )
        seen = None
        if any(of_groups) and kernel.is_contiguous():
            padded = pad(x, [each for each in reversed(padding) for _ in range(2)])
            seen = unfolded(padded, weights.shape[2:], strides, dilations)
        if seen is not None:
            leading = weights.ndim - 1
            seen = seen.unflatten(leading, (groups, -1)).movedim(leading, 0)
            seen = seen.permute(*range(1 + leading), *(leading + dim for dim in order))
            for patches, parts in zip(seen, of_groups, strict=True):
                self._add(patches, leading, parts)

    def _follow(self, x: Tensor, copy: Tensor) -> None:
        """Take a copy of a part of a weight for that part."""
        if _is_plain(x) and _is_plain(copy) and copy.stride() == x.stride():
            source, offset = self._place(x)
            if source in self._memories:
                memory = StorageWeakRef(copy.untyped_storage())
                shift = offset - int(copy.storage_offset())
                self._copies[name_of_memory(copy)] = _Copy(memory, source, shift)

    def _add(self, x: Tensor, leading: int, parts: list[Part]) -> None:
        """Add samples ``[leading dimensions..., features...]`` of what some blocks multiply."""
        for param, blocks, inputs in parts if x.numel() else []:
            like = self._to.like(param, blocks[0])
            every = like.size == x.shape[leading:].numel()
            mine = x if every else x.flatten(leading)[..., inputs]
            self._to.share(param, blocks, samples_of(mine, leading, like, self._tokens))

    def _parts(self, x: Tensor, batch: Side, inputs: Side, outputs: Side) -> list[list[Part]]:
        """The blocks in each of some matrices that a tensor is; []: it is no weight."""
        name, start = self._place(x)
        memory = self._memories.get(name)
        if memory is None:
            return []
        starts = [start + index * batch.stride for index in range(batch.size)]
        return [memory.parts(each, inputs, outputs) for each in starts]

    def _place(self, x: Tensor) -> tuple[int, int]:
        """The memory that a tensor, or what it is a copy of, lies in, and where it begins there."""
        name, offset = name_of_memory(x), int(x.storage_offset())
        copy = self._copies.get(name)
        return (name, offset) if copy is None else (copy.source, copy.shift + offset)


def _sides(x: Tensor) -> list[Side]:
    return [Side(*side) for side in zip(x.shape, x.stride(), strict=True)]


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor has memory to look into."""
    return type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided
