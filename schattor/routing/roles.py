"""What a parameter is to its model: a matrix inside it, or one of the things AdamW keeps.

A hidden matrix maps features to features. The rest is kept from the matrix rule, as Muon's users do
it: embeddings, whose inputs are one-hot; heads, whose rows are scored against each other, and
routers of experts, which are heads in this sense; whatever is tied to one of these; and all that is
added or multiplied entry by entry. The layer that turns patches of pixels into tokens counts as an
embedding; the strided stem of a convolutional network, which slides over the image like any other
convolution, as a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from schattor.routing.layouts import is_layer
from schattor.routing.sites import Site, class_name


class Role(NamedTuple):
    """What a parameter is (``kind``), and why, in words for the table."""

    kind: str
    reason: str

    @property
    def rule(self) -> str:
        """The rule of this kind."""
        return "matrix" if self.kind == "matrix" else "adamw"


# A tied parameter takes the first of its kinds in this order, whatever the order of its names.
PRECEDENCE = ("embedding", "head", "router", "other", "vector", "matrix")

_EMBEDDING = re.compile(r"Embed|Position|Codebook|VectorQuantiz")
_NORM = re.compile(r"Norm(?!al)")
_ROUTER = re.compile(r"Router|TopK\w*Gat(e|ing)$|Mo[Ee]Gate$")
_PATCH = re.compile(
    r"(\w*_)?(patch_embed(s|der|ding|dings)?|patch_(projection|conv)|embed_patches|to_patch_embedding)"
    r"|\w*PatchEmbed(s|der|ding|dings)?"
)
_PIXEL_CHANNELS = 4

# Names of raw parameters that are looked up, added or multiplied, not applied as a map.
_TABLE = re.compile(
    r"(?i)(^|_)(emb|pos|tok|quer(y|ies)|latent|prompt|probe|code|memory|regist|mask|proto|centroid"
    r"|anchor|level|label|cls|class|null|sep|pad)|(^|_)(w?pe|wte)$|table|token|embed"
)
_ELEMENTWISE = re.compile(
    r"(?i:bias|scale|gamma|beta|alpha|(^|_)log|log$|norm|decay|mix|gain|tau|temperature|lambda|shift)"
    r"|^D$"
)
_RAW_MATRIX = re.compile(r"(weight|proj|projection|kernel)$")


def role(site: Site, heads: frozenset[int]) -> Role:
    """What the parameter of a site is; ``heads`` are the ids of the modules from ``find_heads``."""
    owner, shape = site.owner, site.shape
    kind = class_name(owner)
    if site.param.numel() == 0 or max(shape, default=1) == site.param.numel():
        return Role("vector", "vector" if site.param.ndim else "scalar")
    if isinstance(owner, _ConvNd) and shape[0] == 1:
        return Role("vector", "vector: one filter")
    if any(segment.startswith("lora_embedding") for segment in site.segments):
        return Role("embedding", "low-rank adapter of an embedding")
    if any(segment.startswith("lora_") for segment in site.segments):
        return Role("matrix", "low-rank adapter")
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return Role("embedding", "embedding")
    if _is_router(site):
        return Role("router", "router: rows are scored against each other, as in a head")
    if id(owner) in heads:
        return Role("head", "output head")
    if _is_patch_embedding(site):
        return Role("embedding", "patch embedding")
    if is_layer(owner) or isinstance(owner, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        if "weight" in site.leaf:
            return Role("matrix", f"hidden matrix ({kind})")
    return _raw(site)


def strongest(roles: Sequence[Role]) -> Role:
    """The role of a parameter that hangs in several places, in any order of the places."""
    return min(roles, key=lambda role: PRECEDENCE.index(role.kind))


def _raw(site: Site) -> Role:
    """A parameter of a module whose use of it is not known: judged by names and shape."""
    listed = isinstance(site.owner, nn.ParameterList | nn.ParameterDict) and site.parent
    kind, ndim = class_name(listed or site.owner), site.param.ndim
    leaf = "weight" if site.leaf == "weight" else site.layer_name
    named = f"{site.layer_name!r} of {kind}"
    if _NORM.search(kind):
        return Role("other", f"elementwise {named}")
    if _EMBEDDING.search(kind):
        return Role("embedding", f"table {named}")
    if not _RAW_MATRIX.search(leaf):
        if _TABLE.search(leaf):
            return Role("embedding", f"table {named}")
        if _ELEMENTWISE.search(leaf) or (ndim > 2 and min(site.shape[:2]) == 1):
            return Role("other", f"elementwise {named}")
        if ndim > 2 and not re.search(r"Expert|Linear|Conv|Attention", kind):
            return Role("other", f"{ndim}-D {named}, of unknown use")
    return Role("matrix", f"{'matrix' if ndim == 2 else 'stack of matrices'} {named}")


def _is_router(site: Site) -> bool:
    if any(_ROUTER.search(class_name(module)) for module in site.path[1:]):
        return True
    named = bool(site.segments) and site.segments[-1] in ("gate", "router", "wg")
    return named and site.parent is not None and hasattr(site.parent, "experts")


def _is_patch_embedding(site: Site) -> bool:
    """The layer that turns patches of raw pixels into tokens, the embedding of a vision model.

    A convolution must read pixel channels, not features: then it is one if its name says so or if
    its patches do not overlap. The strided stem of a ResNet is a convolution like any other.
    """
    owner = site.owner
    named = any(_PATCH.fullmatch(segment) for segment in site.segments) or any(
        _PATCH.fullmatch(class_name(module)) for module in site.path[-2:]
    )
    if isinstance(owner, _ConvNd) and not isinstance(owner, _ConvTransposeNd):
        tiles = owner.kernel_size == owner.stride and max(owner.kernel_size) > 1
        return (named or tiles) and owner.in_channels in _pixel_channels(site.path)
    return named and isinstance(owner, nn.Linear)


def _pixel_channels(path: Iterable[nn.Module]) -> set[int]:
    channels: set[Any] = set(range(1, _PIXEL_CHANNELS + 1))
    for module in path:
        channels.add(getattr(getattr(module, "config", None), "num_channels", None))
    return channels


def refuse(site: Site) -> None:
    """Raise ValueError for a parameter that no rule can train rightly; frozen ones may be any."""
    param, owner, name = site.param, site.owner, site.name
    if is_lazy(param):
        problem = "is not initialised yet: run one forward pass first"
    elif not param.requires_grad:
        return
    elif param.ndim > 1 and (kind := _without_types(site)):
        problem = (
            f"lies in {kind} module, which has lost the types of its layers: build the optimizer,"
            " or route, before, from the module itself"
        )
    elif hasattr(param, "ds_id") or hasattr(param, "ds_shape"):
        shape = tuple(getattr(param, "ds_shape", ()))
        problem = f"is a DeepSpeed ZeRO-3 partition of a weight {shape}: use ZeRO stage 0 or FSDP2"
    elif getattr(param, "_is_flat_param", False) or type(param).__name__ == "FlatParameter":
        problem = "is a flat shard of FSDP1, in which no matrix is whole: use FSDP2 (fully_shard)"
    elif (is_layer(owner) or isinstance(owner, nn.Embedding)) and (
        site.leaf == "weight" and param.ndim < 2
    ):
        problem = (
            f"is a flat shard of the weight of a {class_name(owner)}, got shape"
            f" {tuple(param.shape)}: use FSDP2 (fully_shard), which keeps whole matrices"
        )
    elif isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.sparse:
        problem = "gets sparse gradients: set sparse=False, or freeze it and train it elsewhere"
    elif not param.is_floating_point():
        problem = f"must be real and floating point, got {param.dtype}"
    else:
        return
    raise ValueError(f"route: parameter {name!r} {problem}")


def _without_types(site: Site) -> str:
    """What kind of module has made all layers one class, or "" if the owner's type is its own.

    A module that torch.fx traced keeps those of torch's layers: only what it inlined has none.
    """
    owner = site.owner
    if isinstance(owner, torch.jit.ScriptModule):
        return "a scripted or traced"
    if type(owner).__module__ == "torch.export.unflatten":
        return "an exported"
    if any(isinstance(module, torch.fx.GraphModule) for module in site.path):
        if type(owner) is nn.Module or type(owner).__name__ == "GraphModule":
            return "an exported or traced"
    return ""
