"""p from data: statistics of a model's inputs, criteria, and the choice."""

from schattor.adaptive.auto import AutoP

__all__ = ["AutoP"]
