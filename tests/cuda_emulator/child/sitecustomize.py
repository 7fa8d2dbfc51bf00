"""Python imports this in child processes of one with an emulated CUDA; it emulates CUDA there too if CuPy is installed."""

import contextlib
import os

if "CUDA_EMULATOR_BUILD" in os.environ:
    with contextlib.suppress(ImportError):
        import cuda_emulator

        with contextlib.suppress(cuda_emulator.Missing):
            cuda_emulator.install()
