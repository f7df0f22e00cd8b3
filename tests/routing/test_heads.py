from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from schattor.routing import route


class Net(nn.Module):
    """A plain model of named layers."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def heads(model: nn.Module) -> list[str]:
    return [entry.name for entry in route(model) if entry.reason == "output head"]


def body() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10)), ["2.weight"]),
        (Net(body=body(), fc=nn.Linear(8, 10)), ["fc.weight"]),
        (Net(body=body(), out=nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10))), ["out.1.weight"]),
        (Net(body=body(), conv=nn.Conv2d(8, 10, 1)), ["conv.weight"]),
        (Net(lm_head=nn.Linear(8, 10), body=body()), ["lm_head.weight"]),
        (Net(lm_head=nn.Linear(8, 16), body=body()), ["lm_head.weight"]),
        (Net(body=body(), classifier=nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 5))),
         ["classifier.1.weight"]),
        (Net(body=body(), head=Net(dense=nn.Linear(8, 8), out_proj=nn.Linear(8, 5))),
         ["head.out_proj.weight"]),
        (Net(body=body(), AuxLogits=nn.Linear(8, 5), fc=nn.Linear(8, 5)),
         ["AuxLogits.weight", "fc.weight"]),
        (Net(body=body(), class_embed=nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)])),
         ["class_embed.0.weight", "class_embed.1.weight"]),
        (Net(bbox_embed=nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), points=nn.Linear(4, 8)),
         ["bbox_embed.1.weight"]),
    ],
)  # fmt: skip
def test_heads_of_plain_models(model: nn.Module, expected: list[str]) -> None:
    assert heads(model) == expected


class Attention(nn.Module):
    """One of several attention heads, as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(8, 2) for _ in range(3))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(8, 10),
        nn.Sequential(nn.Linear(8, 10)),
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)),
        nn.TransformerEncoderLayer(8, 2, 16),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
        Net(blocks=nn.ModuleList([Net(heads=nn.ModuleList([Attention()]))]), fc=nn.Linear(8, 8)),
        Net(sa_head=Attention(), proj=nn.Linear(8, 8)),
        Net(pre_classifier=nn.Linear(8, 8), body=body()),
        Net(head=Net(blocks=nn.ModuleList([Net(shift=nn.Linear(8, 24))])), proj=nn.Linear(8, 8)),
    ],
)
def test_no_head_where_there_is_none(model: nn.Module) -> None:
    assert heads(model) == []


class Says(Net):
    """A model that knows its classifier, as timm's do."""

    def __init__(self, answer: Any, **layers: nn.Module) -> None:
        super().__init__(**layers)
        self.answer = answer

    def get_classifier(self) -> Any:
        """The layer, or the names of several."""
        if isinstance(self.answer, tuple):
            return tuple(self.get_submodule(name) for name in self.answer)
        return self.get_submodule(self.answer) if self.answer else nn.Identity()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a", ["a.weight"]),
        (("a", "b"), ["a.weight", "b.weight"]),
        (None, []),
    ],
)
def test_what_a_model_says_of_itself_counts(answer: Any, expected: list[str]) -> None:
    layers = {name: nn.Linear(8, 8) for name in ("a", "b", "c")} | {"d": nn.Linear(8, 5)}

    assert heads(Says(answer, **layers)) == expected


class Shy(Net):
    """A model whose accessor is not implemented."""

    def get_output_embeddings(self) -> nn.Module:
        """As many models of transformers do it."""
        raise NotImplementedError


def test_a_model_that_does_not_say() -> None:
    assert heads(Shy(body=body(), fc=nn.Linear(8, 5))) == ["fc.weight"]


class Config:
    num_labels, vocab_size = 5, 77

    def __init__(self) -> None:
        self.text_vocab_size = 99


@pytest.mark.parametrize(("outputs", "found"), [(5, True), (99, True), (6, False)])
def test_widths_of_the_config(outputs: int, found: bool) -> None:
    model = Net(final=Net(layer=nn.Linear(8, outputs)), body=body())
    model.config = Config()
    model.base_model_prefix = "body"

    assert heads(model) == (["final.layer.weight"] if found else [])
