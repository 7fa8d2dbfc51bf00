"""Arrays of other libraries: DLPack, and the array interfaces of NumPy and CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DataError

DLPACK_CUDA = (2, 13)  # DLPack device types: CUDA and CUDA managed memory
CONVERSION_ERRORS = (TypeError, ValueError, BufferError, RuntimeError)  # raised by arrays that cannot be converted


def on_gpu(a: Any) -> bool:
    """Return whether an array of another library is in CUDA memory. Raises DataError if that cannot be read."""
    try:
        if hasattr(a, "__cuda_array_interface__"):
            return True
        return hasattr(a, "__dlpack_device__") and a.__dlpack_device__()[0] in DLPACK_CUDA
    except CONVERSION_ERRORS as e:
        raise DataError(conversion_error(a, e)) from None


def host_array(a: Any) -> np.ndarray:
    """Return any array-like object as NumPy, without a copy if it is in host memory: also DLPack and CUDA array interface.

    Raises DataError for objects that are not arrays, need their gradient, or have a type unknown to NumPy.
    """
    if isinstance(a, np.ndarray):
        return a
    device = on_gpu(a)
    try:
        if device:
            try:
                import cupy
            except ImportError:
                raise DataError(
                    f"cannot use a {type(a).__name__} as an array: it is in GPU memory, and CuPy is not installed;"
                    " copy it to the host first"
                ) from None
            return (cupy.asarray if hasattr(a, "__cuda_array_interface__") else cupy.from_dlpack)(a).get()
        if hasattr(a, "__dlpack__") and not hasattr(a, "__array__"):
            return np.from_dlpack(a)
        return np.asarray(a)
    except CONVERSION_ERRORS as e:
        raise DataError(conversion_error(a, e)) from None


def conversion_error(a: Any, error: Exception) -> str:
    """Return why an array cannot be converted and, for other libraries' arrays, the usual fix."""
    message = f"cannot use a {type(a).__name__} as an array: {first_line(error)}"
    return message + ("; detach it, and convert bfloat16 to float32" if hasattr(a, "__dlpack_device__") else "")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
