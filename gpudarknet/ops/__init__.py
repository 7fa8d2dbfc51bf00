"""The mathematics of the layers: ops, each a reference in array code and, for most, a CUDA kernel (see base.py)."""
