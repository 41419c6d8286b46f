"""Recurrent networks: cells that record their activity, and learners of a stream (:mod:`ojax.streams`)."""

from ojax.recurrent.cells import Cell, Network, small_uniform, unit_normal
from ojax.recurrent.learners import readout_alone, rflo, rtrl, squared_error, truncated_bptt

__all__ = [
    "Cell",
    "Network",
    "readout_alone",
    "rflo",
    "rtrl",
    "small_uniform",
    "squared_error",
    "truncated_bptt",
    "unit_normal",
]
