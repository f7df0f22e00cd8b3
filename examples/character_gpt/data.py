"""The text that every Python carries, as windows of character ids."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

# sha256 of CPython's reference topics, sorted by name and joined by newlines. The text changes with
# the version of Python, so a loss may be compared only with losses on the same digest.
KNOWN_TOPICS = {
    "b1882a33e8512d28c4e983e7376fdeac986c374348734197b7ac5dfcb93d6542": "3.10.13",
    "b0796031be1d1b35e6efa46b7944effd47a0c52a48087d470dde314fe2d66968": "3.11.2",
    "2a95af4ac93f5b719944030ce3769070ddf827d847cba42192afa8da989e5dc4": "3.11.7",
    "b5bb57d637a700f50d8c7309e7340f40a333fdf2cba89d3f1da81c1b74ee8952": "3.12.1",
    "4b7ff11aae42ee979a50edb5d279a88ae9d80d7216e9ba99add988136ded5fb2": "3.13.0",
}

# Modules that have long been in every Python, read until there is as much text as in the topics.
SOURCES = (
    "argparse", "ast", "calendar", "configparser", "csv", "datetime", "decimal", "difflib",
    "doctest", "fractions", "ftplib", "functools", "heapq", "inspect", "locale", "optparse",
    "os", "pathlib", "pdb", "pickle", "platform", "pprint", "random", "shutil", "socket",
    "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading",
    "tokenize", "traceback", "turtle", "typing", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip
SOURCE_CHARACTERS = 465_048

PIECE = 4096  # every tenth piece of so many characters is held out


@dataclass(frozen=True)
class Text:
    """A text and where it came from."""

    characters: str
    origin: str
    digest: str


def load_text() -> Text:
    """CPython's reference topics when their digest is a known one, else library sources."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return load_sources("this Python has no pydoc_data.topics")
    characters = "\n".join(topics[name] for name in sorted(topics))
    digest = _digest(characters)
    if digest not in KNOWN_TOPICS:
        return load_sources(f"pydoc_data.topics has the unknown digest {digest[:16]}")
    return Text(characters, f"pydoc_data.topics of Python {KNOWN_TOPICS[digest]}", digest)


def load_sources(why: str) -> Text:
    """Sources of the standard library; `why` they are read is told with the origin."""
    pieces = []
    for name in SOURCES:
        spec = importlib.util.find_spec(name)
        path = Path(spec.origin) if spec is not None and spec.origin else None
        if path is not None and path.suffix == ".py" and path.is_file():
            pieces.append(path.read_text(encoding="utf-8"))
    characters = "".join(c for c in "\n".join(pieces) if c.isascii())[:SOURCE_CHARACTERS]
    if len(characters) < 20 * PIECE:
        raise RuntimeError(
            f"demo: text: {why}, and the sources of the standard library have only "
            f"{len(characters)} characters here; at least {20 * PIECE} are required"
        )
    return Text(characters, f"standard-library sources ({why})", _digest(characters))


def _digest(characters: str) -> str:
    return hashlib.sha256(characters.encode()).hexdigest()


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of `context` ids that start at the given offsets of a text of ids."""

    def __init__(self, ids: Tensor, offsets: Tensor, context: int) -> None:
        """`offsets[i]` is where window i starts in `ids`."""
        self.ids, self.offsets, self.context = ids, offsets, context

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Window `index`; the model itself shifts the labels by one."""
        start = int(self.offsets[index])
        window = self.ids[start : start + self.context]
        return {"input_ids": window, "labels": window}


@dataclass(frozen=True)
class Corpus:
    """The ids of a text, cut into a training and a held-out part."""

    train: Tensor
    held_out: Tensor
    vocabulary: str

    @classmethod
    def of(cls, text: Text, vocabulary: str = "") -> Corpus:
        """Map characters to ids; every tenth piece of the text is held out.

        The vocabulary is that of the text, unless one of several texts is given.
        """
        vocabulary = vocabulary or "".join(sorted(set(text.characters)))
        number = {character: index for index, character in enumerate(vocabulary)}
        ids = torch.tensor([number[character] for character in text.characters])
        pieces = ids.split(PIECE)
        return cls(
            train=torch.cat([p for i, p in enumerate(pieces) if i % 10 != 9]),
            held_out=torch.cat([p for i, p in enumerate(pieces) if i % 10 == 9]),
            vocabulary=vocabulary,
        )

    def training_windows(self, count: int, context: int, seed: int) -> Windows:
        """`count` windows at random offsets: the same for every optimizer with this seed."""
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randint(len(self.train) - context, (count,), generator=generator)
        return Windows(self.train, offsets, context)

    def held_out_windows(self, count: int, context: int) -> Windows:
        """`count` windows spread evenly over the held-out text, the same in every run."""
        offsets = torch.linspace(0, len(self.held_out) - context, count).long()
        return Windows(self.held_out, offsets, context)
