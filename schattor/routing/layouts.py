"""How layers store their matrices: which dimension is the output, and what is fused into one."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from schattor.blocks import BlockSpec
from schattor.routing.sites import Site, class_name


class Layout(NamedTuple):
    """The block spec of a weight (None: one matrix) and what its blocks are, in words."""

    blocks: BlockSpec | None
    note: str = ""


# Attention classes that store query, key and value of a head side by side. A matrix of all queries
# is then no strided view, and a split into thirds would mix the three.
_PER_HEAD = re.compile(r"^(GPTNeoX|Bloom|Persimmon|CodeGen)|LightningAttention")
_QKV = frozenset(
    ("c_attn", "qkv", "qkv_proj", "query_key_value", "in_proj_weight", "Wqkv", "to_qkv", "att_proj")
)
# Weights of einsum and matmul in modules of transformers: (owner, name) -> layout.
_RAW_LAYOUTS: tuple[tuple[str, str, BlockSpec], ...] = (
    (r"XLNetRelativeAttention", r"[qkvr]", {"out": 1}),
    (r"FunnelRelMultiheadAttention", r"r_kernel", {"out": 1}),
    (r"\w+MultiModalProjector", r"mm_input_projection_weight", {"out": 1}),
    (r"XCLIPModel", r"prompts_visual_projection", {"out": 1}),
    (r"RecurrentGemmaRglru", r"\w+_gate_weight", {"batch": 1, "out": 1}),
)


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is HuggingFace's ``Conv1D``: a linear layer whose weight is (in, out)."""
    return class_name(module) == "Conv1D" and hasattr(module, "nf")


def is_layer(module: nn.Module) -> bool:
    """Whether this is a layer that applies one weight as a linear map."""
    return isinstance(module, nn.Linear | nn.Bilinear | _ConvNd) or is_conv1d(module)


def layout(site: Site, *, split_fused: bool) -> Layout:
    """How the parameter of a site splits into matrices; one matrix where nothing is known.

    Grouped convolutions split into their groups, which share no inputs; filters of single channels
    (depthwise) are the rows of one matrix. A transposed convolution is stored (in, out/groups,
    k...), the weight of its adjoint, as an embedding is stored (vocabulary, out).
    """
    owner = site.owner
    if isinstance(owner, _ConvNd):
        return _convolution(owner, site, split_fused)
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        gates = site.shape[0] // owner.hidden_size
        if split_fused and gates > 1 and re.match(r"weight_[ih]h", site.leaf):
            return Layout({"rows": gates}, f"{gates} gates")
        return Layout(None)
    if isinstance(owner, nn.Embedding):
        return Layout({"out": 1})
    known = _known(site)
    if known is not None:
        return known
    if site.param.ndim == 2:
        return _matrix(site, split_fused)
    if site.param.ndim == 3 and _counts_matrices(site):
        return _experts(site, split_fused)
    return Layout(None)


def _convolution(owner: _ConvNd, site: Site, split_fused: bool) -> Layout:
    transposed = isinstance(owner, _ConvTransposeNd)
    spec: BlockSpec = {"out": 1} if transposed else {}
    if site.leaf == "weight" and site.shape[0] > owner.groups > 1 and site.shape[1] > 1:
        return Layout({"rows": owner.groups, **spec}, f"{owner.groups} groups")
    if split_fused and owner.groups == 1 and not transposed:
        return _split_layout(*_fused(site, site.shape[0], site.shape[1]), transposed=False)
    return Layout(spec or None, "filters of single channels" if owner.groups > 1 else "")


def _known(site: Site) -> Layout | None:
    """The layout of the few modules that apply a raw parameter in a way of their own."""
    kind = class_name(site.owner)
    for owner_name, leaf, spec in _RAW_LAYOUTS:
        if re.fullmatch(owner_name, kind) and re.fullmatch(leaf, site.leaf):
            return Layout(spec, "stored (in, out)")
    if kind.endswith("GroupedLinear") and _number(site.owner, "n_groups"):
        return Layout({"rows": _number(site.owner, "n_groups")}, "block-diagonal groups")
    if kind == "DbrxExpertGLU":
        experts: BlockSpec = {"rows": _number(site.owner, "moe_num_experts")}
        return Layout({**experts, "out": 1} if site.leaf == "w2" else experts, "experts")
    return None


def _matrix(site: Site, split_fused: bool) -> Layout:
    transposed = is_conv1d(site.owner)
    sizes: tuple[int, ...] = ()
    note = ""
    if split_fused:
        outputs, inputs = site.shape[::-1] if transposed else site.shape
        sizes, note = _fused(site, outputs, inputs)
    return _split_layout(sizes, note, transposed=transposed)


def _split_layout(sizes: tuple[int, ...], note: str, *, transposed: bool) -> Layout:
    """The layout of a matrix whose outputs split into these sizes; () leaves it whole."""
    spec: BlockSpec = {}
    if sizes:
        equal = len(set(sizes)) == 1
        spec["cols" if transposed else "rows"] = len(sizes) if equal else sizes
    if transposed:
        spec["out"] = 1
        note = f"{note}; stored (in, out)" if note else "stored (in, out)"
    return Layout(spec or None, note)


def _fused(site: Site, outputs: int, inputs: int) -> tuple[tuple[int, ...], str]:
    """Sizes of the parts along the outputs, () for a whole matrix, and words for the table."""
    label = site.layer_name
    block = site.parent if site.leaf == "weight" else site.owner
    if block is None:
        return (), ""
    if label == "gate_up_proj" and outputs % 2 == 0:
        return (outputs // 2,) * 2, "gate, up"
    if label == "Wi" and outputs == 2 * _number(block, "intermediate_size"):
        return (outputs // 2,) * 2, "gate, up"
    if label == "c_attn" and outputs == 2 * inputs:
        return (inputs,) * 2, "key, value"
    if label not in _QKV:
        return (), ""
    if _per_head(block, label):
        return (), "query, key, value by turns in every head: left whole"
    sizes = _qkv_sizes(block, outputs, inputs)
    return sizes, "query, key, value" if sizes else "fused, sizes unknown: left whole"


def _per_head(block: nn.Module, label: str) -> bool:
    name = class_name(block)
    if name.startswith("Falcon"):
        return bool(getattr(block, "new_decoder_architecture", True)) or not getattr(
            block, "multi_query", False
        )
    if name.startswith("GPTBigCode"):
        return not getattr(block, "multi_query", False)
    # Megatron's query_key_value has heads outermost; what else bears the name is not known here.
    return (
        label == "query_key_value"
        or _PER_HEAD.search(name) is not None
        or bool(getattr(block, "head_first", False))
    )


def _qkv_sizes(block: nn.Module, outputs: int, inputs: int) -> tuple[int, ...]:
    heads = _number(block, "num_heads", "num_attention_heads", "n_head", "n_heads")
    key_heads = _number(block, "num_key_value_heads", "num_kv_heads", "kv_heads") or heads
    width = _number(block, "head_dim", "head_size", "attention_head_size")
    if heads and not width:
        width = inputs // heads
    query, key = heads * width, key_heads * width
    if query and query + 2 * key == outputs:
        return query, key, key
    third = outputs // 3
    plausible = third == inputs or (heads > 0 and third % heads == 0)
    return (third,) * 3 if outputs == 3 * third and key_heads == heads and plausible else ()


def _number(module: nn.Module, *names: str) -> int:
    """The first positive integer of these names on a module or its config, else 0."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value: Any = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0


def _counts_matrices(site: Site) -> bool:
    """Whether the first of three dimensions counts matrices, as it does for experts."""
    kind = class_name(site.owner)
    return "Conv" not in kind and (
        re.search(r"Expert|Linear|MoE|Moe|MLP", kind) is not None
        or re.search(r"(weight|proj|projection|kernel)$", site.leaf) is not None
    )


def _experts(site: Site, split_fused: bool) -> Layout:
    owner = site.owner
    spec: BlockSpec = {"batch": 1}
    words = [f"{site.shape[0]} matrices"]
    transposed = _is_transposed(owner)
    if transposed:
        spec["out"] = 1
        words.append("stored (in, out)")
    if split_fused and site.leaf == "gate_up_proj" and getattr(owner, "has_gate", True):
        spec["cols" if transposed else "rows"] = 2
        if not getattr(owner, "is_concatenated", True):
            spec["interleaved"] = True
        words.append("gate, up by turns" if "interleaved" in spec else "gate, up")
    return Layout(spec, "; ".join(words))


def _is_transposed(owner: nn.Module) -> bool:
    """Whether experts are stored (experts, in, out): said by the module, or by its two shapes.

    Gate and up are twice as wide as what ``down_proj`` reads, so the pair has one reading only.
    """
    said = getattr(owner, "is_transposed", None)
    if isinstance(said, bool):
        return said
    up, down = (getattr(owner, name, None) for name in ("gate_up_proj", "down_proj"))
    if not (isinstance(up, nn.Parameter) and isinstance(down, nn.Parameter)):
        return False
    if up.ndim != 3 or down.ndim != 3:
        return False
    return up.shape[1] == down.shape[2] and up.shape[2] == 2 * down.shape[1]
