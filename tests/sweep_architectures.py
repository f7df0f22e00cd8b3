"""Route every architecture that transformers can build on the meta device, and judge the result.

    python tests/sweep_architectures.py [part of a class name]

The judgement knows nothing of the router's reasons: it walks the modules and counts by their types,
and by the number of labels, which is set to a number that is no other width of any model. It prints
a line for each architecture whose routing it disputes, what could not be built, and totals.
"""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.modules.conv import _ConvNd  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # noqa: E402

from schattor.routing import Routing, route  # noqa: E402

LABELS = 23
TASKS = (
    "CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "CTC",
    "IMAGE_CLASSIFICATION", "SEQUENCE_CLASSIFICATION", "AUDIO_CLASSIFICATION",
    "VIDEO_CLASSIFICATION", "IMAGE_TEXT_TO_TEXT", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION", "PRETRAINING",
)  # fmt: skip
DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers",
)  # fmt: skip

# Heads without a label for each output: boxes, scores, codes, pixels, spectra.
OTHER_HEADS = re.compile(
    r"(bbox|class)_embed|bbox_predictor|class_(labels_classifier|predictor)|_head\.|(^|\.)head\."
    r"|classifier|score|seq_relationship|discriminator_predictions|lm_heads|decoder_pred"
    r"|final_layer|logits|decoder\.output_projection"
)
# Tables and gains that are parameters of a model itself.
TABLES = re.compile(
    r"(?i)embed|^emb_|position|pos_|_pos$|token|latent|query|queries|prompt$|probe|codevector|_bias"
    r"|bias_|^bias|A_log|^D$|scale|pad_|table"
)
# Where the router and this walk disagree, and nobody is wrong.
DISPUTED = {
    "GraniteSpeech5": "an intermediate CTC head, tied to the last one",
    "Qwen3OmniMoeThinker": "by default the audio tower ends in as many features as there are words",
}


@dataclass
class Verdict:
    """Parameters by what they should be and what the router made of them."""

    hidden: int = 0
    hidden_on_matrix: int = 0
    others: int = 0
    others_on_matrix: int = 0
    wrong: list[str] = field(default_factory=list)


def kind_of(name: str, owner: nn.Module, param: nn.Parameter, heads: set[int]) -> str:
    """What a parameter is, by the type of the module that holds it."""
    shape, leaf, kind = tuple(param.shape), name.rpartition(".")[2], type(owner).__name__
    if param.numel() == 0 or max(shape, default=1) == param.numel() or "Norm" in kind:
        return "vector"
    conv1d = kind == "Conv1D"
    layer = isinstance(owner, nn.Linear | nn.Bilinear | _ConvNd) or conv1d
    if isinstance(owner, nn.Embedding) or (not layer and TABLES.search(leaf)):
        return "embedding"
    if isinstance(owner, nn.ParameterList) and TABLES.search(name.split(".")[-3]):
        return "embedding"
    if "Embedding" in kind and not layer:
        return "embedding"
    if re.search(r"Router|TopKGating", kind) or re.search(r"\.(router|mlp\.gate)\.", name):
        return "router"
    outputs = shape[1] if conv1d else shape[0]
    if id(owner) in heads or (layer and outputs == LABELS):
        return "head"
    if leaf == "original1" and shape[0] == 1:
        return "vector"
    if isinstance(owner, _ConvNd):
        if owner.out_channels == 1:
            return "vector"
        if owner.in_channels <= 4 and (owner.kernel_size == owner.stride != (1, 1)):
            return "embedding"
    return "hidden"


def judge(model: nn.Module, routing: Routing) -> Verdict:
    """Count what follows the matrix rule, against the types of the modules."""
    modules = dict(model.named_modules())
    heads = {
        id(head)
        for module in modules.values()
        if isinstance(module, transformers.PreTrainedModel)
        and (head := output_embeddings(module)) is not None
    }
    tied = {
        id(param)
        for module in modules.values()
        if isinstance(module, nn.Embedding) or id(module) in heads
        for param in module.parameters(recurse=False)
    }
    verdict = Verdict()
    for entry in routing:
        owner = modules[entry.name.rpartition(".")[0]]
        kind = "embedding" if id(entry.param) in tied else ""
        kind = kind or kind_of(entry.name, owner, entry.param, heads)
        on_matrix = entry.rule == "matrix"
        ambiguous = "patch" in entry.name or OTHER_HEADS.search(entry.name)
        if kind == "hidden" and (on_matrix or not ambiguous):
            verdict.hidden += entry.param.numel()
            verdict.hidden_on_matrix += entry.param.numel() * on_matrix
            if not on_matrix:
                verdict.wrong.append(f"hidden, but {entry.rule}: {describe(entry)}")
        if kind in ("embedding", "head", "vector", "router"):
            verdict.others += entry.param.numel()
            verdict.others_on_matrix += entry.param.numel() * on_matrix
            if on_matrix:
                verdict.wrong.append(f"{kind}, but matrix: {describe(entry)}")
    return verdict


def describe(entry: object) -> str:
    return f"{entry.name} {tuple(entry.param.shape)} ({entry.reason})"  # type: ignore[attr-defined]


def output_embeddings(module: nn.Module) -> nn.Module | None:
    try:
        return module.get_output_embeddings()  # type: ignore[operator, no-any-return]
    except (NotImplementedError, AttributeError):
        return None


def architectures() -> Iterator[str]:
    """Class names: for every configuration its model with a head, and the model without."""
    seen = set()
    for kind in CONFIG_MAPPING_NAMES:
        tables = [getattr(modeling_auto, f"MODEL_FOR_{t}_MAPPING_NAMES", {}) for t in TASKS]
        names = [table[kind] for table in tables if kind in table][:1]
        names += [modeling_auto.MODEL_MAPPING_NAMES.get(kind)]
        for name in names:
            for one in [name] if isinstance(name, str) else (name or ())[:1]:
                if one not in seen and hasattr(transformers, one):
                    seen.add(one)
                    yield one


def shrink(config: object) -> None:
    """Two layers of everything, in a configuration and in those inside it."""
    for name in DEPTHS:
        if isinstance(depth := getattr(config, name, None), int) and depth > 2:
            setattr(config, name, 2)
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(kinds := getattr(config, name, None), list) and len(kinds) > 2:
            setattr(config, name, kinds[:2])
    for inner in list(getattr(config, "__dict__", {}).values()):
        if isinstance(inner, transformers.PretrainedConfig):
            shrink(inner)


def build(name: str) -> nn.Module:
    """A model of its default widths on the meta device, shallow where its class allows it."""
    model_class = getattr(transformers, name)
    for shallow in (True, False):
        try:
            config = model_class.config_class()
            if re.search("Classification|Detection", name):
                config.num_labels = LABELS
            if shallow:
                shrink(config)
            with torch.device("meta"):
                return model_class(config)  # type: ignore[no-any-return]
        except Exception:
            if not shallow:
                raise
    raise AssertionError("unreachable")


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    warnings.simplefilter("ignore")
    built, unbuilt, disputed, total = 0, [], 0, Verdict()
    seconds = 0.0
    for name in architectures():
        if wanted not in name:
            continue
        try:
            model = build(name)
        except Exception as error:
            unbuilt.append(f"{name}: {type(error).__name__} {str(error).strip()[:80]!r}")
            continue
        start = time.perf_counter()
        verdict = judge(model, route(model))
        seconds += time.perf_counter() - start
        built += 1
        for key in ("hidden", "hidden_on_matrix", "others", "others_on_matrix"):
            setattr(total, key, getattr(total, key) + getattr(verdict, key))
        known = next((why for part, why in DISPUTED.items() if part in name), None)
        disputed += bool(verdict.wrong) and known is None
        for line in verdict.wrong:
            print(f"{name}: {line}" + (f"  [known: {known}]" if known else ""))
    print(f"\nnot built, {len(unbuilt)}:", *unbuilt, sep="\n  ")
    print(
        f"\n{built} architectures routed in {seconds:.1f} s, {disputed} disputed;"
        f" {100 * total.hidden_on_matrix / max(1, total.hidden):.4f} % of hidden matrices and"
        f" {100 * total.others_on_matrix / max(1, total.others):.4f} % of the rest follow the"
        " matrix rule"
    )
    return 1 if disputed else 0


if __name__ == "__main__":
    sys.exit(main())
