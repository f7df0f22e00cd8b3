"""Optimizers: `Schattor`, presets with the names people know, and schedules of p."""

from schattor.optim.presets import SGD, AdamW, Muon
from schattor.optim.schattor import Schattor
from schattor.optim.schedules import ParameterFree, PRamp, PScheduler

__all__ = ["SGD", "AdamW", "Muon", "PRamp", "PScheduler", "ParameterFree", "Schattor"]
