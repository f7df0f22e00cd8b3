"""Optimizers whose geometry is a dial: Schatten-p steps from SGD (p = 2) to Muon (p = inf).

``schattor.Schattor(model, lr=1e-3, p=3.0)`` is the optimizer, ``schattor.functional`` has the
directions without one, ``schattor.create("soap", model, lr=3e-3)`` an optimizer by name
(``schattor.available()``), ``schattor.route(model)`` says which parameter follows which rule, and
``python -m schattor.doctor`` what is built.
"""

from schattor import functional, optim
from schattor.adaptive import AutoP
from schattor.optim import (
    KLSOAP,
    SGD,
    SOAP,
    AdamW,
    KLShampoo,
    MuAdam,
    MuAdamSania,
    Muon,
    Schattor,
    Shampoo,
    SPlus,
    available,
    create,
)
from schattor.routing import route

__all__ = [
    "SGD",
    "KLSOAP",
    "SOAP",
    "AdamW",
    "AutoP",
    "KLShampoo",
    "MuAdam",
    "MuAdamSania",
    "Muon",
    "SPlus",
    "Schattor",
    "Shampoo",
    "available",
    "create",
    "functional",
    "optim",
    "route",
]

__version__ = "0.1.0"
