"""Run a training plan with NumPy on all cores."""

from .program import Part, TrainingProgram

__all__ = ["Part", "TrainingProgram"]
