"""An array module that has what CuPy has and nothing more, computed by NumPy: code that runs on it runs on CuPy.

    be = Backend("cupy", cupy_api.xp)
    be = cupy_api.backend(launch, cublas)       # with kernels and cuBLAS that are run elsewhere

Names and keyword arguments are those of CuPy 14 (signatures.json). As on a GPU, an array of the host is refused wherever
it meets one of the device, and NumPy's own functions refuse arrays of the device.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from gpudarknet.backend import Backend

from . import streams
from .signatures import TABLE

CUPY = json.loads(TABLE.read_text(encoding="utf-8"))
FROM_HOST = {"asarray", "array", "ascontiguousarray"}
VIEWS = {"__getitem__", "__len__", "__repr__", "__iter__", "ndarray.reshape", "ndarray.transpose", "ndarray.view",
         "ndarray.ravel"}  # fmt: skip
FREE = {"__class__", "__doc__", "__module__", "__hash__", "__slots__", "__new__", "__init__", "__init_subclass__",
        "__subclasshook__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__reduce__", "__reduce_ex__",
        "__getstate__", "__class_getitem__", "__sizeof__", "__array_priority__", "__cuda_array_interface__",
        "__dlpack__", "__dlpack_device__", "__array_function__", "__array_finalize__", "__pyx_vtable__"}  # fmt: skip


class NotCuPy(TypeError):
    """The code asks for something that CuPy does not have."""


class Array:
    """An array of the device: a NumPy array behind the members of cupy.ndarray."""

    __array_ufunc__ = None  # NumPy's functions refuse it, its operators leave the work to ours
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray):
        self._host = host

    def __array__(self, *args: Any, **kw: Any) -> Any:
        raise NotCuPy("Implicit conversion to a NumPy array is not allowed; use be.to_numpy")

    @property
    def device(self) -> Any:
        """The device it lies on: there is one."""
        return streams.Device()

    @property
    def data(self) -> Any:
        """Its memory, of which only the address is wanted."""
        return SimpleNamespace(ptr=self._host.ctypes.data)

    def get(self) -> np.ndarray:
        """Copy to the host."""
        streams.refuse("ndarray.get")
        return self._host.copy()

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Copy from the host, on a stream."""
        streams.refuse("ndarray.set")
        if not isinstance(arr, np.ndarray) or (arr.shape, arr.dtype) != (self._host.shape, self._host.dtype):
            raise NotCuPy("ndarray.set: wants an array of the host of the same shape and type")
        self._host[...] = arr

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # Python and NumPy look for protocols; CuPy's are below
        if name not in CUPY["members"]:
            raise NotCuPy(f"cupy.ndarray has no {name}")
        value, wanted = getattr(self._host, name), CUPY["members"][name]
        return called(f"ndarray.{name}", value, wanted) if callable(value) else device(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        streams.refuse("ndarray.__setitem__")
        self._host[host(index, "an index")] = host(value, "a value")

    def __iter__(self) -> Any:
        return map(device, self._host)

    def __repr__(self) -> str:
        return f"device {self._host!r}"


def operator(name: str) -> Any:
    """Return NumPy's operator of that name for arrays of the device."""

    def run(self: Array, *others: Any) -> Any:
        if name not in VIEWS:
            streams.refuse(f"ndarray.{name}")
        result = getattr(self._host, name)(*(host(o, name) for o in others))
        return self if result is self._host else result if result is NotImplemented else device(result)

    return run


for _name in CUPY["members"]:
    if _name.startswith("__") and _name not in FREE and _name not in vars(Array) and hasattr(np.ndarray, _name):
        setattr(Array, _name, operator(_name))


class Namespace:
    """What stands for the module cupy."""

    ndarray = Array
    __name__ = "cupy"
    cuda = streams.cuda
    get_default_memory_pool = staticmethod(lambda: streams.pool)

    @staticmethod
    def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> Array:
        """Take memory of CUDA only, as CuPy does; what says that it has some has the host's here."""
        kind, _ = array.__dlpack_device__()
        if kind == 1:
            raise TypeError(
                "CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))`."
            )
        if kind not in (2, 13):
            raise TypeError(f"Unsupported array type: {kind}")
        return Array(array.array)

    @property
    def lib(self) -> Any:
        """cupy.lib.stride_tricks, which has one function."""
        strided = called("as_strided", np.lib.stride_tricks.as_strided, ["x", "shape", "strides"])
        return SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=strided))

    def __getattr__(self, name: str) -> Any:
        if name not in CUPY["functions"]:
            raise NotCuPy(f"cupy has no {name}")
        value, wanted = getattr(np, name), CUPY["functions"][name]
        if isinstance(value, type) or not callable(value):  # dtypes and constants are NumPy's own
            return value
        return Function(called(name, value, wanted), value)


class Function:
    """A function of the namespace; add also has `at`."""

    def __init__(self, run: Any, original: Any):
        self.run, self.original = run, original

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self.run(*args, **kw)

    def at(self, a: Array, indices: Any, b: Any) -> None:
        if self.original not in (np.add, np.maximum, np.minimum):
            raise NotCuPy(f"cupy.{self.original.__name__}.at does not exist")
        self.original.at(host(a, "at"), host(indices, "at"), host(b, "at"))


def called(name: str, function: Any, wanted: list[str] | None) -> Any:
    """Return the function for arrays of the device, held to CuPy's parameters."""

    def run(*args: Any, **kw: Any) -> Any:
        if name not in VIEWS:
            streams.refuse(f"cupy.{name}")
        unknown = set(kw) - set(wanted or ())
        if unknown and wanted is not None:
            raise NotCuPy(f"cupy.{name} has no argument {', '.join(sorted(unknown))}")
        exact = wanted is not None and name not in CUPY["ufuncs"] and not any(p.startswith("*") for p in wanted)
        if exact and len(args) > len(wanted or ()):
            raise NotCuPy(f"cupy.{name} takes at most {len(wanted or ())} arguments")
        allowed = name in FROM_HOST
        args = tuple(host(a, name, allowed) for a in args)
        return device(function(*args, **{k: host(v, name, allowed) for k, v in kw.items()}))

    return run


def host(value: Any, where: str, allowed: bool = False) -> Any:
    """Return NumPy's form of an argument. Raises NotCuPy for an array of the host."""
    if isinstance(value, Array):
        return value._host
    if isinstance(value, np.ndarray) and not allowed:
        raise NotCuPy(f"{where}: Unsupported type {type(value)}; use be.asarray")
    if isinstance(value, (tuple, list)):
        return type(value)(host(v, where, allowed) for v in value)
    return value


def device(value: Any) -> Any:
    """Return the device's form of a result: CuPy's reductions give arrays without axes where NumPy's give numbers."""
    if isinstance(value, (np.ndarray, np.generic)):
        return Array(np.asarray(value))
    return type(value)(map(device, value)) if isinstance(value, (tuple, list)) and not is_shape(value) else value


def is_shape(value: Any) -> bool:
    return all(isinstance(v, int) for v in value)


xp: Any = Namespace()


def backend(launch: Any, cublas: Any = None) -> Backend:
    """Return a backend with CuPy's arrays whose kernels and products are computed by these, on arrays of NumPy."""

    def launch_here(kernel: str, threads: int, *args: Any, block: int = 256) -> None:
        taken = [host(a, kernel) for a in args]
        streams.do(lambda: launch(kernel, threads, *taken, block=block))

    def recorded(product: Any) -> Any:
        def work(*args: Any) -> None:
            with np.errstate(all="ignore"):  # a plan is first run on memory that nobody has written
                product(*args)

        return lambda *args: streams.do(lambda: work(*args))

    def open_here(stream: int, workspace: tuple[int, int]) -> Any:
        handle = cublas(stream, workspace)
        handle.gemm, handle.gemms = recorded(handle.gemm), recorded(handle.gemms)
        return handle

    return Backend("cupy", xp, launch_here, open_here if cublas else None)
