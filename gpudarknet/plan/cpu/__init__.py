"""Run a plan with NumPy on all cores."""

from .program import Program

__all__ = ["Program"]
