"""Optimizers: `Schattor`, presets with the names people know, and schedules of p."""

from schattor.optim.muadam import MuAdam, MuAdamSania
from schattor.optim.presets import SGD, AdamW, Muon
from schattor.optim.registry import available, create
from schattor.optim.schattor import Schattor
from schattor.optim.schedules import ParameterFree, PowerRamp, PRamp, PScheduler
from schattor.optim.shampoo import KLSOAP, SOAP, KLShampoo, Shampoo
from schattor.optim.splus import SPlus

__all__ = [
    "SGD",
    "KLSOAP",
    "SOAP",
    "AdamW",
    "KLShampoo",
    "MuAdam",
    "MuAdamSania",
    "Muon",
    "PRamp",
    "PScheduler",
    "ParameterFree",
    "PowerRamp",
    "SPlus",
    "Schattor",
    "Shampoo",
    "available",
    "create",
]
