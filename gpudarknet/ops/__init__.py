"""The mathematics of the layers, as pairs of an array-language definition and a CUDA twin (see `op.py`)."""
