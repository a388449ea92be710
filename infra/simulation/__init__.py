"""Deterministic simulation: an event loop whose time is a number, processes that can be killed at any step, clocks that lie.

The real engine, agent host and client run on it unchanged; only the ports (`Log`, `Clock`, `Rng`) and the loop are replaced. A
run is a function of its seed, provided that PYTHONHASHSEED is pinned: strings in sets are ordered by their hash.
"""

from .clock import EPOCH_MS, SimulatedClock, SimulatedRng
from .loop import Deadlock, SimulationLoop, StepsExceeded, TimeExceeded
from .process import Process, ProcessState, current_process

__all__ = [
    "EPOCH_MS",
    "Deadlock",
    "Process",
    "ProcessState",
    "SimulatedClock",
    "SimulatedRng",
    "SimulationLoop",
    "StepsExceeded",
    "TimeExceeded",
    "current_process",
]
