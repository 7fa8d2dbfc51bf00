"""Run Python with an emulated CUDA: python tests/cuda_emulator SCRIPT | -m MODULE | -c TEXT ..."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cuda_emulator

cuda_emulator.install()
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
