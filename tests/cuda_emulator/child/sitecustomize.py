"""Python imports this in processes that one with an emulated CUDA starts: it is emulated there too, if CuPy is there."""

import contextlib
import os

if "CUDA_EMULATOR_BUILD" in os.environ:
    with contextlib.suppress(ImportError):
        import cuda_emulator

        with contextlib.suppress(cuda_emulator.Missing):
            cuda_emulator.install()
