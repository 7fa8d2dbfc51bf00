"""The plan: a network compiled for one input shape, for speed. See README.md in this folder for what bounds it."""

from . import tune
from .compile import compile
from .cpu import Program
from .engine import Engine
from .steps import Plan

__all__ = ["Engine", "Plan", "Program", "compile", "tune"]
