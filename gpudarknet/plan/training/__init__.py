"""Plans of a training step: forward, losses and backward of a part of a batch; docs/plan.md explains how.

steps.py           the steps that only training has, and the plan
lower.py           layers -> steps of the forward pass
differentiate.py   steps of the forward pass -> those of the backward pass
compile.py         both, with memory
"""

from .compile import compile_training
from .steps import TrainingPlan

__all__ = ["TrainingPlan", "compile_training"]
