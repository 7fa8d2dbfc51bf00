"""Run a plan on a GPU: cuBLAS and the kernels of `kernels/`, recorded as one CUDA graph."""

from .program import Program

__all__ = ["Program"]
