"""Python imports this in processes that one with an emulated CUDA starts: it is emulated there too."""

import os

if "CUDA_EMULATOR_BUILD" in os.environ:
    import cuda_emulator

    cuda_emulator.install()
