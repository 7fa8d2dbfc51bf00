"""Which backend is selected, and the errors if it cannot be."""

from __future__ import annotations

import ctypes
import re
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
from backends import backend_for

import gpudarknet as gd
from gpudarknet import backend, cfg
from gpudarknet.backend import Backend, machine
from gpudarknet.errors import BackendError, BackendWarning, DataError, OutOfMemoryError


@pytest.fixture(autouse=True)
def uncached(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(machine, "gpus", list)
    backend.why_no_cupy.cache_clear()
    backend._warn_idle_gpu.cache_clear()
    yield
    backend.why_no_cupy.cache_clear()
    backend._warn_idle_gpu.cache_clear()


def fake_cupy(monkeypatch: pytest.MonkeyPatch, count: object = 1, kernel: object = None, driver: int = 12040) -> None:
    """Put a module in the place of cupy with the given device count, kernel error or driver version."""

    def answer() -> int:
        if isinstance(count, Exception):
            raise count
        return count  # type: ignore[return-value]

    class RawKernel:
        def __init__(self, *args: object):
            pass

        def compile(self) -> None:
            if isinstance(kernel, Exception):
                raise kernel

    cupy = types.ModuleType("cupy")
    runtime = types.SimpleNamespace(
        getDeviceCount=answer, driverGetVersion=lambda: driver, runtimeGetVersion=lambda: 12090
    )
    cupy.cuda = types.SimpleNamespace(runtime=runtime)  # type: ignore[attr-defined]
    cupy.RawKernel = RawKernel  # type: ignore[attr-defined]
    cupy.zeros = np.zeros  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it raises


def test_auto_without_cuda_is_numpy_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_cupy(monkeypatch)
    be = backend.get("auto")
    assert (be.name, be.xp, be.launch) == ("numpy", np, None)
    assert capsys.readouterr() == ("", "")


def test_cupy_without_a_folder_for_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """It creates the folder when it is imported: in a container, the home folder may be another user's."""

    def import_module(name: str) -> None:
        raise PermissionError(13, "Permission denied", "/.cupy")

    monkeypatch.setattr(backend.importlib, "import_module", import_module)
    assert backend.get("auto").name == "numpy"
    assert backend.why_no_cupy() == (
        "CuPy does not import ([Errno 13] Permission denied: '/.cupy'); set CUPY_CACHE_DIR to a folder that can be written"
    )


def test_argument_then_variable_then_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    monkeypatch.setenv(backend.VARIABLE, "cupy")
    assert backend.get("numpy").name == "numpy"
    with pytest.raises(BackendError, match=r"^GPUDARKNET_BACKEND: 'cupy' cannot run here: "):
        backend.get("auto")
    monkeypatch.setenv(backend.VARIABLE, "numpy")
    assert backend.get().name == "numpy"
    monkeypatch.setenv(backend.VARIABLE, "torch")
    with pytest.raises(BackendError) as e:
        backend.get()
    assert (
        str(e.value)
        == "GPUDARKNET_BACKEND: unknown backend 'torch'; choose one of auto, cupy, numpy, onnxruntime, openvino, fastest"
    )


def test_a_backend_is_passed_through() -> None:
    be = backend.Backend("mine", np)
    assert backend.get(be) is be


def test_a_backend_compiles_with_its_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_executors", {})
    be = backend.Backend("mine", np, executor="mine")
    with pytest.raises(BackendError) as e:
        be.compile_program([], [], [], (3, 4, 6), 1, "fp32", {})
    assert str(e.value) == "backend 'mine': executor 'mine' is not registered"
    backend.register_executor("mine", backend.Executor(lambda *args: args, ("fp32", "fp16")))  # type: ignore[arg-type]
    assert be.compile_program([], [], [], (3, 4, 6), 1, "fp32", {}) == (be, [], [], [], (3, 4, 6), 1, "fp32", {})
    assert [be.supported_precision(p) for p in ("fp32", "tf32", "fp16")] == ["fp32", "fp32", "fp16"]


class CUDARuntimeError(RuntimeError):
    """Named as CuPy's."""


TOO_OLD = CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")
INSTALL = backend.INSTALL
NO_DEVICE = "the driver shows no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
WHY = {
    "no working driver": (
        dict(count=CUDARuntimeError("cudaErrorUnknown: unknown error")),
        "there is no working NVIDIA driver (cudaErrorUnknown: unknown error); install one, nvidia-smi must list a GPU",
    ),
    "no driver": (
        dict(count=TOO_OLD, driver=0),
        "there is no NVIDIA driver; on a machine with an NVIDIA GPU, install it or start the container with --gpus all",
    ),
    "old driver": (
        dict(count=TOO_OLD, driver=11040),
        "the NVIDIA driver is too old for this CuPy: it supports CUDA 11.4, CuPy uses 12.9; "
        "update the driver or install a CuPy for it",
    ),
    "replaced driver": (
        dict(count=CUDARuntimeError("cudaErrorSystemDriverMismatch: unsupported combination")),
        "the NVIDIA driver was replaced while it was in use (cudaErrorSystemDriverMismatch: unsupported combination); "
        "restart the machine",
    ),
    "no device": (dict(count=CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")), NO_DEVICE),
    "zero devices": (dict(count=0), NO_DEVICE),
    "no headers": (
        dict(kernel=RuntimeError("Failed to find CUDA headers\nand more")),
        f"CuPy finds no CUDA headers, so it cannot compile kernels; {INSTALL} includes them",
    ),
    "no compiler": (
        dict(kernel=RuntimeError("nvrtc is gone\nand more")),
        f"a test kernel and gemm fail on the device (nvrtc is gone); {INSTALL}",
    ),
    "full device": (
        dict(kernel=MemoryError("Out of memory allocating 512 bytes (allocated so far: 0 bytes).")),
        "the GPU is in use by other programs (Out of memory allocating 512 bytes (allocated so far: 0 bytes).); "
        "end some, nvidia-smi lists them",
    ),
    "taken device": (
        dict(kernel=CUDARuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable")),
        "the GPU is in use by other programs (cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable); "
        "end some, nvidia-smi lists them",
    ),
}


@pytest.mark.parametrize("name", WHY)
def test_why_cupy_cannot_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, message = WHY[name]
    fake_cupy(monkeypatch, **settings)  # type: ignore[arg-type]
    with pytest.raises(BackendError) as e:
        backend.get("cupy")
    assert str(e.value) == f"backend: 'cupy' cannot run here: {message}"
    assert backend.get("auto").name == "numpy"


def test_the_real_cupy_distinguishes_no_driver_from_an_old_one() -> None:
    """Runs on machines with CuPy and without an NVIDIA driver."""
    runtime = pytest.importorskip("cupy").cuda.runtime
    if runtime.driverGetVersion() != 0:
        pytest.skip("there is a driver")
    assert backend.why_no_cupy() == backend.NO_DRIVER


def test_an_idle_gpu_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy(monkeypatch, kernel=RuntimeError("nvrtc is gone"))
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA H200", "NVIDIA T4"])
    message = (
        "backend: 'auto' uses NumPy, often 100 times slower, and leaves the NVIDIA H200 idle: a test kernel and gemm fail on "
        f"the device (nvrtc is gone); {INSTALL}; pass backend='numpy' if this is intended"
    )
    with pytest.warns(BackendWarning) as caught:
        assert backend.get().name == "numpy"
    assert [str(w.message) for w in caught] == [message]
    assert caught[0].filename == __file__
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        assert backend.get("auto").name == "numpy"
    assert again == []


def test_no_warning_without_gpu_without_cupy_or_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy(monkeypatch, count=TOO_OLD, driver=0)
    backend.get("auto")  # warnings are errors here
    monkeypatch.setattr(machine, "gpus", lambda: ["NVIDIA H200"])
    backend._warn_idle_gpu.cache_clear()
    backend.get("numpy")
    monkeypatch.setenv(backend.VARIABLE, "numpy")
    backend.get("auto")
    monkeypatch.delenv(backend.VARIABLE)
    no_cupy(monkeypatch)
    backend.why_no_cupy.cache_clear()
    backend.get("auto")


class Driver:
    """NVIDIA's libcuda with two devices, the second without a name."""

    def __init__(self, init: int = 0):
        self.cuInit = lambda flags: init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"NVIDIA H200"
        return device.value


def test_gpus_are_listed_by_the_driver_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    no_cupy(monkeypatch)
    backend.why_no_cupy.cache_clear()

    cdll = ctypes.CDLL

    def load(driver: Any) -> None:
        def answer(name: str, **options: Any) -> Any:
            if name not in ("libcuda.so.1", "nvcuda.dll"):
                return cdll(name, **options)
            if driver is None:
                raise OSError("cannot open shared object file")
            return driver

        monkeypatch.setattr(ctypes, "CDLL", answer)

    load(None)
    assert machine.gpus() == []
    load(Driver(init=100))  # CUDA_ERROR_NO_DEVICE
    assert machine.gpus() == []
    load(Driver())
    assert machine.gpus() == ["NVIDIA H200", "NVIDIA GPU"]
    assert dict(backend.diagnose())["GPU"] == (f"NVIDIA H200, NVIDIA GPU, not used: CuPy is not installed; {INSTALL}")


def test_a_missing_cupy_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    with pytest.raises(BackendError) as e:
        backend.get("cupy")
    assert 'pip install "gpudarknet[cuda12]"' in str(e.value)


def test_auto_uses_a_working_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cupy(monkeypatch)
    assert backend.why_no_cupy() is None


def test_asarray_converts_lists_and_does_not_copy_arrays() -> None:
    be = backend.get("numpy")
    a = np.zeros((2, 3), np.float32)
    assert be.asarray(a, np.float32) is a
    assert be.asarray([[1, 2]], np.float32).dtype == np.float32
    assert be.asarray(a.T).flags.c_contiguous


def test_an_object_that_is_not_an_array_is_refused() -> None:
    with pytest.raises(DataError, match=r"^cannot use a list as an array: "):
        backend.get("numpy").asarray(["a", "b"], np.float32)


GPUS = machine.gpus  # before the fixture changes it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"driver_version": 0}, "there is no NVIDIA driver; "),
        ({"driver_version": 11080}, "the NVIDIA driver is too old for this CuPy: it supports CUDA 11.8, CuPy uses 1"),
        ({"devices": 0}, "the driver shows no CUDA device; "),
    ],
)
def test_driver_errors_of_the_real_cupy(emulator: Any, settings: dict[str, int], message: str) -> None:
    with emulator.configured(**settings):
        assert str(backend.why_no_cupy()).startswith(message)
        assert backend.get("auto").name == "numpy"


def test_a_gpu_that_the_real_cupy_cannot_use_is_warned_of_once(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", GPUS)
    with emulator.failing("cuModuleLoadData", status=200), pytest.warns(BackendWarning) as warned:
        assert backend.get("auto").name == "numpy"
        assert backend.get("auto").name == "numpy"
    (warning,) = warned
    assert re.match(
        r"backend: 'auto' uses NumPy, often 100 times slower, and leaves the CUDA emulator \(no GPU\) idle: "
        r"a test kernel and gemm fail on the device \(",
        str(warning.message),
    )


class Tensor:
    """An array of another library, on a device of DLPack's numbering: 1 the CPU, 2 CUDA, 3 the CPU's pinned memory."""

    def __init__(self, array: np.ndarray, kind: int = 1):
        self.array, self.kind = array, kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, **how: Any) -> Any:
        return self.array.__dlpack__(**how)


class Gradient(Tensor):
    """Like a PyTorch tensor that requires its gradient."""

    def __array__(self, *args: Any, **kw: Any) -> Any:
        raise RuntimeError(
            "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.\nmore"
        )


class Bfloat16(Tensor):
    def __dlpack__(self, **how: Any) -> Any:
        raise BufferError("Unsupported dtype in DLTensor.")


class CudaGradient(Tensor):
    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


A = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("kind", [1, 3])
def test_asarray_accepts_cpu_arrays_of_other_libraries(be: Backend, kind: int) -> None:
    for a in (A, A[:, ::2], A.T, read_only(A)):
        got = be.asarray(Tensor(a, kind))
        assert type(got) is be.xp.ndarray and got.flags.c_contiguous
        np.testing.assert_array_equal(be.to_numpy(got), a)
    assert be.asarray(Tensor(A, kind), np.float16).dtype == np.float16


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("device", ["cuda"])
def test_gpu_memory_is_not_copied(device: str) -> None:
    be = backend_for(device)
    there = be.asarray(A)
    assert be.asarray(Tensor(there, 2)).data.ptr == there.data.ptr
    assert be.asarray(there) is there


def test_an_array_on_another_device_is_copied(emulator: Any) -> None:
    be = backend_for("cuda")
    with be.use_device(1):
        there = be.asarray(A)
    for a in (there, Tensor(there, 2)):
        got = be.asarray(a)
        assert got.device.id == 0
        np.testing.assert_array_equal(be.to_numpy(got), A)


HELP = "; detach it, and convert bfloat16 to float32"
REFUSED = {
    "gradient": (Gradient(A), "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."),
    "bfloat16": (Bfloat16(A), "Unsupported dtype in DLTensor."),
    "gradient on the GPU": (CudaGradient(A, 2), "Can't get __cuda_array_interface__ on Variable that requires grad."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_cannot_be_converted_are_refused(be: Backend, name: str) -> None:
    a, message = REFUSED[name]
    with pytest.raises(DataError) as e:
        be.asarray(a)
    assert str(e.value) == f"cannot use a {type(a).__name__} as an array: {message}{HELP}"


def test_a_gpu_array_without_cupy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    message = "it is in GPU memory, and CuPy is not installed; copy it to the host first"
    with pytest.raises(DataError) as e:
        backend.get("numpy").asarray(Tensor(A, 2))
    assert str(e.value) == f"cannot use a Tensor as an array: {message}"


def test_pytorch_tensors(be: Backend) -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(be.to_numpy(be.asarray(torch.from_numpy(A).T)), A.T)
    for wrong in (torch.zeros(2, requires_grad=True), torch.zeros(2, dtype=torch.bfloat16)):
        with pytest.raises(DataError, match=f"^cannot use a Tensor as an array: .*{HELP}$"):
            be.asarray(wrong)


class CuPyOutOfMemory(MemoryError):
    """Named as CuPy's."""


MESSAGE = "Out of memory allocating 1,843,200 bytes (allocated so far: 512 bytes)."
SIZES = "8,589,934,592 free of 17,179,869,184 on the device"  # as the fixture reports
ADVICE = "reduce batch, width or height, or end other programs on the device"
FULL = f"CUDA is out of memory: 1,843,200 bytes requested, {SIZES}; {ADVICE}"


class Full:
    """CuPy's module on a device with no free memory; its sizes are SIZES."""

    __name__ = "cupy"
    ndarray = type("ndarray", (), {"get": lambda self: self.fail()})

    def __init__(self, error: Exception):
        runtime = types.SimpleNamespace(memGetInfo=lambda: (1 << 33, 1 << 34))
        self.error, self.cuda = error, types.SimpleNamespace(runtime=runtime)

    def fail(self, *args: Any, **kw: Any) -> Any:
        raise self.error

    empty = zeros = asarray = ascontiguousarray = fail


def full(error: Exception | None = None) -> Backend:
    return Backend("cupy", Full(error or CuPyOutOfMemory(MESSAGE)))  # type: ignore[arg-type]


ALLOCATING = {
    "empty": lambda be: be.empty((3, 4)),
    "zeros": lambda be: be.zeros((3, 4)),
    "asarray": lambda be: be.asarray(A),
}


@pytest.mark.parametrize("name", ALLOCATING)
def test_out_of_memory_is_one_line(name: str) -> None:
    with pytest.raises(OutOfMemoryError) as e:
        ALLOCATING[name](full())
    assert str(e.value) == FULL
    assert isinstance(e.value, BackendError) and isinstance(e.value, MemoryError)
    assert str(e.value.__cause__) == MESSAGE


def test_out_of_memory_in_a_copy_to_the_host() -> None:
    be = full()
    with pytest.raises(OutOfMemoryError) as e:
        be.to_numpy(types.SimpleNamespace(get=be.xp.fail))  # type: ignore[attr-defined]
    assert str(e.value) == FULL


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            CuPyOutOfMemory(
                "Out of memory allocating 512 bytes (allocated so far: 64 bytes, limit set to: 100 bytes)."
            ),
            f"CUDA is out of memory: 512 bytes requested, {SIZES}, CuPy's limit is 100; {ADVICE}",
        ),
        (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), f"CUDA is out of memory: {SIZES}; {ADVICE}"),
        (CUDARuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), f"CUDA is out of memory: {SIZES}; {ADVICE}"),
    ],
)
def test_out_of_memory_from_cupy_runtime_and_driver(error: Exception, message: str) -> None:
    with pytest.raises(OutOfMemoryError) as e:
        full(error).empty((3, 4))
    assert str(e.value) == message


def test_out_of_memory_of_a_device_that_does_not_answer() -> None:
    be = full(CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"))
    del be.xp.cuda.runtime.memGetInfo
    with pytest.raises(OutOfMemoryError) as e:
        be.empty((3, 4))
    assert str(e.value) == f"CUDA is out of memory; {ADVICE}"


def test_other_errors_are_not_translated() -> None:
    """Also a full host memory, and other errors of CUDA."""
    for error in (MemoryError("Unable to allocate 5.00 GiB"), CUDARuntimeError("cudaErrorIllegalAddress: illegal")):
        with pytest.raises(type(error)) as e:
            full(error).empty((3, 4))
        assert e.value is error


NET = """[net]
width=6
height=4
channels=3
batch=2
max_batches=9
[convolutional]
filters=18
activation=mish
[yolo]
mask=0,1,2
anchors=1,2, 3,4, 5,6
num=3
classes=1
"""


X, TRUTH = np.zeros((2, 3, 4, 6), np.float32), np.zeros((2, 200, 6), np.float32)
USES: dict[str, Any] = {
    "weights": lambda net, be: gd.load_network(cfg.parse(NET), backend=be),
    "a plan": lambda net, be: net.predict(X),
    "the reference engine": lambda net, be: net.predict(X, engine="reference"),
    "a trace": lambda net, be: net.trace(X),
    "a detector's images": lambda net, be: gd.Detector(net).upload([np.zeros((8, 9, 3), np.uint8)]),
    "a detector's input": lambda net, be: gd.Detector(net).preprocess([np.zeros((8, 9, 3), np.uint8)]),
    "gradients": lambda net, be: gd.Trainer(net),
}


@pytest.mark.parametrize("name", [*USES, "boxes", "training"])
def test_out_of_memory_anywhere(emulator: Any, name: str) -> None:
    be = backend_for("cuda")
    net = gd.load_network(cfg.parse(NET), backend=be)
    use, trainer, outputs = (
        USES.get(name),
        gd.Trainer(net),
        net.predict(X, engine="reference"),
    )
    be.xp.get_default_memory_pool().free_all_blocks()
    with emulator.configured(memory=4096), pytest.raises(OutOfMemoryError) as e:
        if use is not None:
            use(net, be)
        elif name == "boxes":
            net.decode(outputs, 0.1)
        else:
            trainer.step(X, TRUTH)
    expected = r".*CUDA is out of memory: [\d,]+ bytes requested, 0 free of 4,096 on the device"
    assert re.fullmatch(f"{expected}; {ADVICE}|.* bytes on the device, 0 are free; .*", str(e.value)), e.value


def test_diagnosis_names_backend_blas_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cupy(monkeypatch)
    rows = dict(backend.diagnose())
    assert rows["backend"] == "numpy"
    assert rows["GPU"].startswith("not used: CuPy ")
    assert {"Python", "numpy", "BLAS", "threads"} <= rows.keys()
