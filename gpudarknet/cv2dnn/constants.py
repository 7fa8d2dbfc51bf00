"""OpenCV's numbers for backends and targets, and which of them this machine has."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import missing_package, why_no_cupy
from .arguments import integer
from .errors import opencv_errors

DNN_BACKEND_DEFAULT, DNN_BACKEND_HALIDE, DNN_BACKEND_INFERENCE_ENGINE, DNN_BACKEND_OPENCV = range(4)
DNN_BACKEND_VKCOM, DNN_BACKEND_CUDA, DNN_BACKEND_WEBNN, DNN_BACKEND_TIMVX, DNN_BACKEND_CANN = range(4, 9)
DNN_TARGET_CPU, DNN_TARGET_OPENCL, DNN_TARGET_OPENCL_FP16, DNN_TARGET_MYRIAD, DNN_TARGET_VULKAN = range(5)
DNN_TARGET_FPGA, DNN_TARGET_CUDA, DNN_TARGET_CUDA_FP16, DNN_TARGET_HDDL, DNN_TARGET_NPU = range(5, 10)
DNN_TARGET_CPU_FP16 = 10

NAMES = {name: value for name, value in globals().items() if name.startswith("DNN_")}
BACKENDS = range(DNN_BACKEND_CANN + 1)
TARGETS = range(DNN_TARGET_CPU_FP16 + 1)
CUDA_TARGETS = DNN_TARGET_CUDA, DNN_TARGET_CUDA_FP16


@opencv_errors
def getAvailableTargets(be: int) -> Any:
    """Return the targets of a backend on this machine, int32 (K,); an empty tuple if the backend is not available."""
    openvino = [DNN_BACKEND_INFERENCE_ENGINE] * (missing_package("openvino") is None)
    if integer(be) in (DNN_BACKEND_DEFAULT, DNN_BACKEND_OPENCV, *openvino):
        return np.array([DNN_TARGET_CPU], np.int32)
    if be == DNN_BACKEND_CUDA and why_no_cupy() is None:
        return np.array(CUDA_TARGETS, np.int32)
    return ()
