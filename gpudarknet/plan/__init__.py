"""Plans: a network compiled for one input shape and batch. `Network.predict` runs them; docs/plan.md explains how.

compile.py         layers -> steps (lower.py, builder.py, steps.py), fused (fuse.py), placed in one arena (memory.py)
cpu/               runs a plan with NumPy
cuda/              runs a plan on a GPU
tuning.py          the tuning file: the fastest algorithms measured, by device
program_cache.py   the compiled programs of one network
"""

from . import tuning
from .compile import compile
from .cpu.program import Program
from .cuda.upload import ImageBatch
from .program_cache import ProgramCache
from .steps import Plan

__all__ = ["ImageBatch", "Plan", "Program", "ProgramCache", "compile", "tuning"]
