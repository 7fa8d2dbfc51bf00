"""The harness that runs kernels on a CPU must be able to fail: mistakes are planted, and each must be caught."""

from __future__ import annotations

import re

import host_cuda
import numpy as np
import pytest
from host_cuda import KernelError

from gpudarknet.backend import cuda

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def host():
    from backends import backend_for

    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler


def planted(old: str, new: str):
    """Return launch() for source in which `old` has become `new`."""

    def edit(text: str) -> str:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        return text.replace(old, new)

    return host_cuda.launcher(edit)


def check_upsample(launch, H=5, W=7, drop=0):
    """What test_ops.py does, in short: call the kernel, compare with an independent form."""
    x = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
    y = np.full((2, 3, 10, 14), np.nan, np.float32)
    args = [x, y, y.size, H, W, 2, 1.0]
    launch("upsample.upsample", y.size, *args[: len(args) - drop])
    np.testing.assert_array_equal(y, np.kron(x, np.ones((2, 2))))


def check_statistics(launch):
    x = np.random.default_rng(0).normal(3, 1, (2, 3, 31, 17)).astype(np.float32)
    mean, variance = np.full((3, 1), np.nan, np.float32), np.full((3, 1), np.nan, np.float32)
    launch("norm.statistics_parts", 3 * 256, x, mean, variance, 2 * 31 * 17, 3, 31 * 17, 1)
    np.testing.assert_allclose(mean[:, 0], x.mean(axis=(0, 2, 3)), rtol=1e-5)


def test_the_true_source_passes():
    check_upsample(host_cuda.launcher())
    check_statistics(host_cuda.launcher())


def test_a_sign_error_is_caught():
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        check_upsample(planted("y[i] = scale * x", "y[i] = -scale * x"))


def test_height_and_width_swapped_in_the_call_are_caught():
    with pytest.raises((AssertionError, KernelError)):
        check_upsample(host_cuda.launcher(), H=7, W=5)


def test_a_dropped_argument_is_caught():
    message = "upsample.upsample takes 7 arguments (x, y, n, H, W, s, scale), not 6"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_upsample(host_cuda.launcher(), drop=1)


GUARD = """if (i >= n) return;
    int WS"""


def test_one_thread_too_many_is_caught():
    message = "upsample.upsample: thread 72 of block 3 touches y[840], but y has 840 elements"
    with pytest.raises(KernelError, match=f"^{re.escape(message)}$"):
        check_upsample(planted(GUARD, GUARD.replace("i >= n", "i > n")))


def test_one_thread_too_few_is_caught():
    with pytest.raises(AssertionError, match="nan location mismatch"):
        check_upsample(planted(GUARD, GUARD.replace("i >= n", "i >= n - 1")))


BARRIER = """    __syncthreads();
    v = 0;"""


def test_a_missing_barrier_is_caught():
    with pytest.raises(KernelError, match=r"^norm\.statistics_parts: .* depends on the order in which threads run$"):
        check_statistics(planted(BARRIER, "    v = 0;"))


def test_a_barrier_that_some_threads_skip_is_caught():
    first = cuda.source("norm").split(BARRIER)[0].count("\n")
    message = (
        f"norm.statistics_parts: common.cuh:{first + 3}: __syncthreads is reached by 128 of 256 threads; "
        f"thread 1 waits at common.cuh:{first}"
    )
    with pytest.raises(KernelError, match=f"^{re.escape(message)}$"):
        check_statistics(planted(BARRIER, BARRIER.replace("__sync", "if (threadIdx.x % 2) __sync")))


def test_a_kernel_that_does_not_compile_is_reported_with_its_line():
    line = cuda.source("upsample").split("y[i] = scale * x")[0].split('#line 1 "upsample.cu"\n')[1].count("\n") + 1
    with pytest.raises(KernelError, match=rf"upsample\.cu:{line}:.* \Wscales\W"):
        check_upsample(planted("y[i] = scale * x", "y[i] = scales * x"))


PROBE = """
extern "C" __global__ void copy(const T *x, T *y, int n) {
    int i = thread_index();
    if (i < n) y[i] = x[i];
}
extern "C" __global__ void from_next(const T *x, T *y, int n) {
    int i = thread_index();
    if (i < n) y[i] = x[i + 1];
}
extern "C" __global__ void to_previous(const T *x, T *y, int n) {
    int i = thread_index();
    if (i < n) y[i - 1] = x[i];
}
extern "C" __global__ void divide(const T *x, T *y, int n) {
    int i = thread_index();
    if (i < 7) y[i] = 7 / n;
}
extern "C" __global__ void add_up(const T *x, float *y, int n) {
    int i = thread_index();
    if (i < n) atomicAdd(y, x[i] * 1e-3f);
}
extern "C" __global__ void count(const T *x, int *y, int n) {
    int i = thread_index();
    if (i < n && x[i] > 0) atomicAdd(y, 1);
}
extern "C" __global__ void unset(const T *x, T *y, int n) {
    __shared__ float s[256];
    if (threadIdx.x > 0) s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void lanes(const T *x, float *y, int n) {
    float v = x[threadIdx.x];
    int lane = threadIdx.x % 32;
    float *out = y + 6 * threadIdx.x;
    out[0] = __shfl_sync(ALL_LANES, v, 5);
    out[1] = __shfl_down_sync(ALL_LANES, v, 3);
    out[2] = __shfl_up_sync(ALL_LANES, v, 3);
    out[3] = __shfl_xor_sync(ALL_LANES, v, 6);
    out[4] = __popc(__ballot_sync(ALL_LANES, v > 0) & ((2u << lane) - 1));
    out[5] = 2 * __any_sync(ALL_LANES, v > 1e6f) + __all_sync(ALL_LANES, v > -1e6f);
}
extern "C" __global__ void half_warp(const T *x, T *y, int n) {
    if (threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_sync(ALL_LANES, (float)x[threadIdx.x], 1);
}
extern "C" __global__ void not_my_mask(const T *x, T *y, int n) {
    y[threadIdx.x] = __shfl_sync(0xffff0000u, (float)x[threadIdx.x], 20);
}
extern "C" __global__ void early_return(const T *x, T *y, int n) {
    int i = thread_index();
    if (i >= n) return;
    __syncthreads();
    y[i] = x[i];
}
extern "C" __global__ void two_barriers(const T *x, T *y, int n) {
    if (threadIdx.x < 7)
        __syncthreads();
    else
        __syncthreads();
}
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """launch() for the kernels above."""
    (tmp_path / "common.cuh").write_text((cuda.folder() / "common.cuh").read_text())
    (tmp_path / "probe.cu").write_text(PROBE)
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)
    yield host_cuda.launcher()
    cuda.source.cache_clear()
    cuda.parameters.cache_clear()


def at(kernel: str, code: str, below: int = 0) -> str:
    """Say where the first `code` in a kernel of PROBE is, or a line below."""
    before, _, rest = PROBE.partition(f"void {kernel}(")
    return f"probe.cu:{(before + rest.partition(code)[0]).count(chr(10)) + 1 + below}"


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("from_next", "thread 243 of block 1 touches x[500], but x has 500 elements"),
        ("to_previous", "writes outside y"),
        ("divide", "thread 0 of block 0 divides by zero"),
        ("add_up", "y depends on the order in which threads run"),
        (
            "half_warp",
            f"{at('half_warp', '__shfl')}: __shfl_sync is reached by 16 of 32 threads; thread 16 has returned",
        ),
        ("not_my_mask", f"{at('not_my_mask', '__shfl')}: __shfl_sync by lane 0, which its mask lacks"),
        (
            "early_return",
            f"{at('early_return', '__sync')}: __syncthreads is reached by 244 of 256 threads; thread 244 has returned",
        ),
        (
            "two_barriers",
            f"{at('two_barriers', '__sync')}: __syncthreads is reached by 7 of 256 threads; thread 7 waits at "
            + at("two_barriers", "else", 1),
        ),
    ],
)
def test_what_cuda_does_not_allow_is_reported(probe, kernel, message):
    x = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    y, before = np.zeros_like(x), x.copy()
    with pytest.raises(KernelError, match=f"^{re.escape(f'probe.{kernel}: {message}')}$"):
        probe(f"probe.{kernel}", 500, x, y, 0 if kernel == "divide" else 500)
    np.testing.assert_array_equal(x, before)
    probe("probe.copy", 500, x, y, 500)  # the failure has left nothing behind
    np.testing.assert_array_equal(x, y)


def test_a_null_pointer_is_reported(probe):
    with pytest.raises(KernelError, match=r"^probe\.copy: thread 0 of block 0 touches address 0, in no array$"):
        probe("probe.copy", 3, None, np.zeros(3, np.float32), 3)


def test_shared_memory_that_nobody_wrote_is_nan(probe):
    x, y = np.ones(256, np.float32), np.zeros(256, np.float32)
    probe("probe.unset", 256, x, y, 256)
    assert np.isnan(y[0]) and (y[1:] == 1).all()


def test_integer_atomics_may_come_in_any_order(probe):
    x, y = np.random.default_rng(0).standard_normal(1000).astype(np.float32), np.zeros(1, np.int32)
    probe("probe.count", 1000, x, y, 1000)
    assert y[0] == (x > 0).sum()


def test_warp_functions(probe):
    x, y = np.random.default_rng(0).standard_normal(64).astype(np.float32), np.zeros((64, 6), np.float32)
    probe("probe.lanes", 64, x, y, 64, block=64)
    warps, lane = x.reshape(2, 32), np.arange(32)
    np.testing.assert_array_equal(y[:, 0], warps[:, [5] * 32].ravel())
    np.testing.assert_array_equal(y[:, 1], warps[:, np.where(lane + 3 < 32, lane + 3, lane)].ravel())
    np.testing.assert_array_equal(y[:, 2], warps[:, np.where(lane >= 3, lane - 3, lane)].ravel())
    np.testing.assert_array_equal(y[:, 3], warps[:, lane ^ 6].ravel())
    np.testing.assert_array_equal(y[:, 4], np.cumsum(warps > 0, axis=1).ravel())
    assert (y[:, 5] == 1).all()


def test_arrays_that_share_memory_share_it_in_their_copies(probe):
    memory = np.arange(700, dtype=np.float32)
    probe("probe.copy", 300, memory[100:400], memory[100:400], 300)
    np.testing.assert_array_equal(memory, np.arange(700))
    with pytest.raises(KernelError, match="depends on the order in which threads run"):
        probe("probe.copy", 300, memory[100:400], memory[101:401], 300)


def test_every_float16_is_read_and_rounded_as_numpy_does():
    x = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, 1, 256, 256)
    for scale in (1.0, 1 / 3, 1e-6, 70000.0):
        y = np.zeros_like(x)
        host_cuda.launcher()("upsample.upsample", x.size, x, y, x.size, 256, 256, 1, scale)
        with np.errstate(all="ignore"):
            want = (x.astype(np.float32) * np.float32(scale)).astype(np.float16)
        np.testing.assert_array_equal(y, want)
