"""Output heads: the layers that project to labels, a vocabulary, boxes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from schattor.routing.layouts import is_conv1d
from schattor.routing.sites import Site, class_name

# A head by the name of the layer itself, and by the name of the layer or of a module around it.
_CERTAIN = frozenset(("lm_head", "ctc_head", "classifier", "score", "qa_outputs"))
_NAMED = re.compile(
    r"^(\w*_)?(heads?|classifiers?|predictors?|predictions?|logits?|logit_fc|class_embed|bbox_embed)$"
    r"|^(score|qa_outputs|seq_relationship|classifier_\w+|unembed\w*|[Aa]ux(Logits|\d*))$"
)
_ATTENTION = frozenset(
    ("q", "k", "v", "q_proj", "query", "key", "value", "qkv", "attn", "attention", "self_attn")
)
# The outputs of a head for boxes or points: too few to tell by what other layers read.
_COORDINATES = 4


def find_heads(model: nn.Module, sites: Sequence[Site]) -> frozenset[int]:
    """Ids of the modules whose weights are output heads.

    What the model says of itself (``get_output_embeddings``, ``get_classifier``); else a layer that
    ends the model, because no layer reads as many features as it gives, outside all repeated
    blocks, and that is called a head or is as wide as the labels or the vocabulary of the config;
    and in a plain model that says nothing of itself, its last layer if it ends the model.
    """
    layers = [site for site in sites if site.param.ndim >= 2 and _has_weight(site)]
    ends = _Ends(layers)
    said = _answers(model)
    widths = _alphabet_sizes(model)
    found = {
        id(site.owner)
        for site in layers
        if site.owner in said
        or (_in_one_of(site, said) and ends(site))
        or (_is_named(site) and (ends(site) or _is_certain(site, widths)))
        or (_outputs(site) in widths and not _is_repeated(site.segments) and ends(site))
    }
    if not said and not hasattr(model, "base_model_prefix"):
        found |= _last_layer(layers, ends)
    return frozenset(found)


class _Ends:
    """Whether a layer ends the model: no other layer reads as many features as it gives."""

    def __init__(self, layers: Iterable[Site]) -> None:
        self._read: dict[int, set[int]] = {}
        for site in layers:
            self._read.setdefault(_inputs(site), set()).add(id(site.owner))

    def __call__(self, site: Site) -> bool:
        return not self._read.get(_outputs(site), set()) - {id(site.owner)}


def _answers(model: nn.Module) -> list[nn.Module]:
    """What the model and its parts give as their output embeddings and classifiers."""
    heads: list[nn.Module] = []
    for module in model.modules():
        for name in ("get_output_embeddings", "get_classifier"):
            ask = getattr(module, name, None)
            if not callable(ask):
                continue
            try:
                answer = ask()
            except (NotImplementedError, AttributeError, TypeError):
                continue
            answers = answer if isinstance(answer, tuple | list | nn.ModuleList) else [answer]
            heads += [part for part in answers if isinstance(part, nn.Module)]
    return heads


def _alphabet_sizes(model: nn.Module) -> set[int]:
    """Numbers of labels and sizes of vocabularies in the configs of a model and of its parts."""
    sizes: set[int] = set()
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        values = [getattr(config, "num_labels", None)]
        fields = getattr(config, "__dict__", {})
        values += [value for name, value in fields.items() if name.endswith("vocab_size")]
        sizes |= {value for value in values if isinstance(value, int)}
    return sizes


def _is_named(site: Site) -> bool:
    """Whether a layer or a module around it is called a head, outside repeated blocks."""
    attention = _ATTENTION & set(site.segments) or any(
        "Attention" in class_name(module) for module in site.path[1:]
    )
    return not attention and any(
        _NAMED.match(segment)
        and not _is_repeated(site.segments[:depth])
        and not _is_inside_block(site.segments[depth + 1 :])
        for depth, segment in enumerate(site.segments)
    )


def _is_certain(site: Site, widths: set[int]) -> bool:
    """Whether a layer in a head is one of its ends, though some layer reads that many features."""
    name, outputs = site.segments[-1], _outputs(site)
    return (
        name in _CERTAIN
        or outputs <= _COORDINATES
        or (_NAMED.match(name) is not None and outputs in widths)
    )


def _is_repeated(segments: Sequence[str]) -> bool:
    return any(segment.isdigit() for segment in segments)


def _is_inside_block(segments: Sequence[str]) -> bool:
    """Whether a layer lies in repeated blocks of a head, and is not just one of its layers.

    ``0.layers.2`` is layer 2 of head 0, ``layers.2.linear`` lies in block 2 of a large head.
    """
    inner = segments[1:] if segments and segments[0].isdigit() else segments
    return _is_repeated(inner[:-1])


def _in_one_of(site: Site, modules: list[nn.Module]) -> bool:
    return any(module in modules for module in site.path[1:])


def _last_layer(layers: Sequence[Site], ends: _Ends) -> set[int]:
    """The last layer of a plain model, if it hangs there directly and ends the model."""
    if len({id(site.owner) for site in layers}) < 2:
        return set()
    last = layers[-1]
    direct = all(isinstance(module, nn.Sequential) for module in last.path[1:-1])
    return {id(last.owner)} if direct and ends(last) else set()


def _has_weight(site: Site) -> bool:
    if isinstance(site.owner, nn.Embedding) or "Embed" in class_name(site.owner):
        return False
    return site.leaf == "weight"


def _outputs(site: Site) -> int:
    # Raw stacks of heads [heads, in, out] apply as matmul does.
    last = is_conv1d(site.owner) or site.param.ndim > 2
    return _said(site, "out_channels", "out_features") or site.shape[-1 if last else 0]


def _inputs(site: Site) -> int:
    first = is_conv1d(site.owner)
    return _said(site, "in_channels", "in_features") or site.shape[0 if first else 1]


def _said(site: Site, *names: str) -> int:
    """The first integer of these names on the layer, else 0."""
    values = (getattr(site.owner, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), 0)
