"""The tensor-core primitives of kernels/mma.cuh: layouts of fragments, asynchronous copies, dynamic shared memory."""

from __future__ import annotations

import cuda_emulator
import host_cuda
import numpy as np
import pytest
from backends import backend_for
from host_cuda import KernelError

from gpudarknet.backend import cuda

PROBE = """
#include "mma.cuh"

// d (16, 16) = a (16, K) b (16, K)^T for rows of 32 bytes, the way a kernel does it: copies, ldmatrix, mma.
extern "C" __global__ void multiply(const T *a, const T *b, float *d) {
    char *shared = dynamic_shared();
    int lane = threadIdx.x;
    cp_async(shared + 16 * lane, a + lane * 16 / (int)sizeof(T), 16);
    cp_async(shared + 512 + 16 * lane, b + lane * 16 / (int)sizeof(T), 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    unsigned fa[4], fb[4];
    ldmatrix(fa, shared + lane % 16 * 32 + lane / 16 * 16);
    ldmatrix(fb, shared + 512 + (lane / 16 * 8 + lane % 8) * 32 + lane / 8 % 2 * 16);
    for (int half = 0; half < 2; half++) {
        float sums[4] = {};
        const unsigned columns[2] = {fb[2 * half], fb[2 * half + 1]};
        mma(sums, fa, columns);
        for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
}

// Each lane's fragments as they are: a (32, 4) and b (32, 2) words, d (32, 4).
extern "C" __global__ void mma_of_fragments(const T *type, const int *a, const int *b, float *d) {
    unsigned fa[4], fb[2];
    float sums[4];
    for (int i = 0; i < 4; i++) fa[i] = a[4 * threadIdx.x + i], sums[i] = d[4 * threadIdx.x + i];
    for (int i = 0; i < 2; i++) fb[i] = b[2 * threadIdx.x + i];
    mma(sums, fa, fb);
    for (int i = 0; i < 4; i++) d[4 * threadIdx.x + i] = sums[i];
}

// words (32, 4): row l of 16 bytes is what lane l gives the address of.
extern "C" __global__ void load_matrices(const int *words, int *r) {
    int *shared = (int *)dynamic_shared();
    unsigned words_of_lane[4];
    for (int i = 0; i < 4; i++) shared[4 * threadIdx.x + i] = words[4 * threadIdx.x + i];
    __syncthreads();
    ldmatrix(words_of_lane, shared + 4 * threadIdx.x);
    for (int i = 0; i < 4; i++) r[4 * threadIdx.x + i] = words_of_lane[i];
}

extern "C" __global__ void load_transposed_matrices(const int *words, int *r) {
    int *shared = (int *)dynamic_shared();
    unsigned words_of_lane[4];
    for (int i = 0; i < 4; i++) shared[4 * threadIdx.x + i] = words[4 * threadIdx.x + i];
    __syncthreads();
    ldmatrix_trans(words_of_lane, shared + 4 * threadIdx.x);
    for (int i = 0; i < 4; i++) r[4 * threadIdx.x + i] = words_of_lane[i];
}

// y (n): word i of shared memory.
extern "C" __global__ void load_word(const int *x, int *y) {
    char *shared = dynamic_shared();
    ((int *)shared)[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = load_shared(shared_address(shared) + 4 * (threadIdx.x ^ 5));
}

extern "C" __global__ void round_to_tf32(const float *x, int *y, int n) {
    int i = thread_index();
    if (i < n) y[i] = to_tf32(__float_as_int(x[i]));
}

// y (n, 4): each thread copies `bytes` on its own.
extern "C" __global__ void copy_bytes(const float *x, float *y, int bytes) {
    float *mine = (float *)dynamic_shared() + 4 * threadIdx.x;
    cp_async(mine, x, bytes);
    cp_async_commit();
    cp_async_wait<0>();
    for (int k = 0; k < 4; k++) y[4 * threadIdx.x + k] = mine[k];
}

// y (n, 3): groups 0, 1 and 2 of one copy each, after a wait for all but the newest N.
template <int N> __device__ inline void wait_for(const float *x, float *y) {
    float *mine = (float *)dynamic_shared() + 12 * threadIdx.x;
    for (int group = 0; group < 3; group++) {
        cp_async(mine + 4 * group, x + 4 * group, 16);
        cp_async_commit();
    }
    cp_async_wait<N>();
    for (int group = 0; group < 3; group++) y[3 * threadIdx.x + group] = mine[4 * group];
}
extern "C" __global__ void wait_but_0(const float *x, float *y) { wait_for<0>(x, y); }
extern "C" __global__ void wait_but_1(const float *x, float *y) { wait_for<1>(x, y); }
extern "C" __global__ void wait_but_2(const float *x, float *y) { wait_for<2>(x, y); }
extern "C" __global__ void no_commit(const float *x, float *y) {
    float *mine = (float *)dynamic_shared();
    cp_async(mine, x, 16);
    cp_async_wait<0>();
    y[0] = mine[0];
}

extern "C" __global__ void copy_apart(const float *x) { cp_async(dynamic_shared() + 64 * threadIdx.x, x, 16); }

// Threads read what their neighbors copied.
extern "C" __global__ void neighbor(const float *x, float *y, int barrier) {
    float *shared = (float *)dynamic_shared();
    cp_async(shared + 4 * threadIdx.x, x + 4 * threadIdx.x, 16);
    cp_async_commit();
    cp_async_wait<0>();
    if (barrier) __syncthreads();
    y[threadIdx.x] = shared[4 * (threadIdx.x ^ 32)];
}

extern "C" __global__ void shared_element(float *y, int i) {
    float *shared = (float *)dynamic_shared();
    y[0] = shared[i];
}

// The last block to finish adds up what all blocks wrote, in their order.
extern "C" __global__ void last_block_sums(const float *x, float *parts, int *counter, float *y, int blocks) {
    float4 v = load_cg((const float4 *)x + blockIdx.x);
    store_cg((float4 *)parts + blockIdx.x, v);
    __threadfence();
    if (atomicAdd(counter, 1) != blocks - 1) return;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int k = 0; k < blocks; k++) {
        v = load_cg((const float4 *)parts + k);
        sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
    store_cg((float4 *)y, sum);
}

// y (16, row): a tile of 16 rows, to shared memory and by ldmatrix back. Chunks of 16 bytes are exchanged if `swizzle`.
__device__ inline int place(int row, int chunk, int chunks, int swizzle) {
    return (row * chunks + (chunk ^ (swizzle ? chunks == 8 ? row % 8 : row / 2 % 4 : 0))) * 16;
}
extern "C" __global__ void tile(const int *x, int *y, int chunks, int swizzle, int bytes) {
    char *shared = dynamic_shared();
    int lane = threadIdx.x;
    for (int i = lane; i < 16 * chunks; i += 32)
        cp_async(shared + place(i / chunks, i % chunks, chunks, swizzle), x + 4 * i, bytes);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for (int chunk = 0; chunk < chunks; chunk += 2) {
        unsigned r[4];
        ldmatrix(r, shared + place(lane % 16, chunk + lane / 16, chunks, swizzle));
        for (int i = 0; i < 4; i++) y[((lane / 4 + i % 2 * 8) * chunks + chunk + i / 2) * 4 + lane % 4] = r[i];
    }
}

extern "C" __global__ void load_and_store(const float *x, float *y, int first, int step, int lanes) {
    if (threadIdx.x < lanes) store_cg((float4 *)y + threadIdx.x, load_cg((const float4 *)(x + first + step * threadIdx.x)));
}

extern "C" __global__ void lane_has_returned(float *y) {
    unsigned r[4];
    if (threadIdx.x == 5) return;
    ldmatrix(r, dynamic_shared());
}
extern "C" __global__ void lanes_disagree(float *y) {
    unsigned r[4];
    if (threadIdx.x < 7)
        ldmatrix(r, dynamic_shared());
    else
        ldmatrix(r, dynamic_shared());
}
extern "C" __global__ void misaligned_row(float *y) {
    unsigned r[4];
    ldmatrix(r, dynamic_shared() + 8);
}
extern "C" __global__ void row_beyond(float *y) {
    unsigned r[4];
    ldmatrix(r, dynamic_shared() + 1024);
}
extern "C" __global__ void misaligned_copy(float *y) { cp_async(dynamic_shared(), y + 1, 16); }
extern "C" __global__ void copy_to_global(float *y) { cp_async(y, y, 16); }
extern "C" __global__ void copy_too_much(float *y) { cp_async(dynamic_shared(), y, 17); }
"""


@pytest.fixture(params=["host-cuda", "cuda"])
def launch(request, tmp_path, monkeypatch):
    """Runs one of the kernels above on NumPy arrays, which get its results."""
    be = backend_for(request.param)
    for name in ("common.cuh", "mma.cuh"):
        (tmp_path / name).write_bytes((cuda.folder() / name).read_bytes())
    (tmp_path / "probe.cu").write_text(PROBE)
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)
    cuda.source.cache_clear(), cuda.parameters.cache_clear()
    run_kernel = host_cuda.launcher() if request.param == "host-cuda" else cuda.launcher()

    def launch(kernel, *args, threads=32, block=32, shared=1024):
        on = [be.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        run_kernel(f"probe.{kernel}", threads, *on, block=block, shared=shared)
        for a, result in zip(args, on, strict=True):
            if isinstance(a, np.ndarray):
                a[...] = be.to_numpy(result)

    launch.counting = host_cuda.counting if request.param == "host-cuda" else cuda_emulator.counting
    yield launch
    cuda.source.cache_clear(), cuda.parameters.cache_clear()


@pytest.fixture
def emulated(launch):
    """Skip on a real GPU, which counts nothing."""
    if launch.counting is cuda_emulator.counting and not cuda_emulator.installed():
        pytest.skip("needs --cuda-emulator")


def distinct(shape, dtype, seed):
    """Return values of 11 bits, all different, in a random order: any permutation of a product's operands changes it."""
    values = np.arange(1, 1 + np.prod(shape)) * np.random.default_rng(seed).choice([-1, 1], np.prod(shape))
    return np.random.default_rng(seed + 1).permutation(values).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_copies_ldmatrix_and_mma_multiply_matrices(launch, dtype):
    K = 32 // np.dtype(dtype).itemsize
    a, b, d = distinct((16, K), dtype, 0), distinct((16, K), dtype, 2), np.full((16, 16), np.nan, np.float32)
    launch("multiply", a, b, d)
    np.testing.assert_array_equal(d, a.astype(np.float64) @ b.T.astype(np.float64))  # sums below 2^24: exact


def test_fragments_of_m16n8k16(launch):
    """Each element of each fragment, by the formulas of "Matrix fragments for mma.m16n8k16 with floating point type"."""
    A, B, C = distinct((16, 16), np.float16, 0), distinct((16, 8), np.float16, 2), distinct((16, 8), np.float32, 4)
    a, b, d = np.zeros((32, 8), np.float16), np.zeros((32, 4), np.float16), np.zeros((32, 4), np.float32)
    places = []
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            a[lane, i] = A[row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)]
        for i in range(4):
            b[lane, i] = B[thread * 2 + (i & 1) + (8 if i >= 2 else 0), group]
        places += [(group if i < 2 else group + 8, thread * 2 + (i & 1)) for i in range(4)]
    check_fragments(launch, A, B, C, a, b, d, places)


def test_fragments_of_m16n8k8_of_tf32(launch):
    """Each element of each fragment, by the formulas of "Matrix fragments for mma.m16n8k8" for .tf32."""
    A, B, C = (distinct(shape, np.float32, seed) for shape, seed in (((16, 8), 0), ((8, 8), 2), ((16, 8), 4)))
    a, b, d = np.zeros((32, 4), np.float32), np.zeros((32, 2), np.float32), np.zeros((32, 4), np.float32)
    places = []
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(4):
            a[lane, i] = A[group if i in (0, 2) else group + 8, thread if i in (0, 1) else thread + 4]
        for i in range(2):
            b[lane, i] = B[thread if i == 0 else thread + 4, group]
        places += [(group if i < 2 else group + 8, thread * 2 + (i & 1)) for i in range(4)]
    check_fragments(launch, A, B, C, a, b, d, places)


def check_fragments(launch, A, B, C, a, b, d, places):
    """Multiply fragments a and b; compare with C + A B at the places of the elements of d."""
    rows, columns = np.array(places).T
    d[...] = C[rows, columns].reshape(32, 4)
    launch("mma_of_fragments", a[:1].copy(), a.view(np.int32), b.view(np.int32), d)
    want = C + A.astype(np.float64) @ B.astype(np.float64)
    np.testing.assert_array_equal(d, want[rows, columns].reshape(32, 4))


def test_fragments_of_ldmatrix(launch):
    words, r = np.arange(128, dtype=np.int32).reshape(4, 8, 4), np.zeros((32, 4), np.int32)
    launch("load_matrices", words, r)
    for lane in range(32):
        np.testing.assert_array_equal(r[lane], words[:, lane // 4, lane % 4])


def test_fragments_of_ldmatrix_trans(launch):
    """Lane l gets rows 2 * (l % 4) and the next of column l / 4 of each matrix: words of the transposed one."""
    elements, r = np.arange(256, dtype=np.int16).reshape(4, 8, 8), np.zeros((32, 4), np.int32)
    launch("load_transposed_matrices", elements.view(np.int32), r)
    for lane in range(32):
        want = elements[:, 2 * (lane % 4) : 2 * (lane % 4) + 2, lane // 4]
        np.testing.assert_array_equal(r[lane].view(np.int16).reshape(4, 2), want)


def test_words_of_shared_memory(launch):
    x, y = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
    launch("load_word", x, y)
    np.testing.assert_array_equal(y, x[np.arange(32) ^ 5])


def test_mma_ignores_the_low_bits_of_tf32_and_adds_in_float32(launch):
    low = np.float32(1 + 2**-10 + 2**-11)  # tf32 has 10 bits after the point
    a, b, d = np.full((32, 4), low), np.ones((32, 2), np.float32), np.full((32, 4), 2**-20, np.float32)
    launch("mma_of_fragments", a, a.view(np.int32), b.view(np.int32), d)
    np.testing.assert_array_equal(d, np.float32(8 * (1 + 2**-10) + 2**-20))


def test_to_tf32_rounds_ties_away_from_zero(launch):
    x = np.array([1, 1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-23, 1 + 2**-10, 0, 1e30, np.inf, -np.inf], np.float32)
    y = np.zeros(x.size, np.int32)
    launch("round_to_tf32", x, y, x.size)
    got = (y & -8192).view(np.float32)
    np.testing.assert_array_equal(got[[0, 1, 2, 3, 4, 5]], [1, 1 + 2**-10, -1 - 2**-10, 1, 1 + 2**-10, 0])
    np.testing.assert_allclose(got[6:], x[6:], rtol=2**-11)


@pytest.mark.parametrize("bytes", [0, 4, 8, 12, 16])
def test_copies_fill_the_rest_with_zeros_and_read_nothing_beyond(launch, bytes):
    x = np.arange(1, 1 + bytes // 4, dtype=np.float32) if bytes else np.ones(1, np.float32)
    y = np.full((32, 4), np.nan, np.float32)
    launch("copy_bytes", x, y, bytes)
    np.testing.assert_array_equal(y, [[*x[: bytes // 4], *[0] * (4 - bytes // 4)]] * 32)


def test_the_last_block_adds_up_the_parts_of_all(launch):
    x, y = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32), np.zeros(4, np.float32)
    launch("last_block_sums", x, np.zeros_like(x), np.zeros(1, np.int32), y, 7, threads=7, block=1)
    want = np.zeros(4, np.float32)
    for part in x:
        want += part
    np.testing.assert_array_equal(y, want)


def test_neighbors_read_what_is_copied_after_a_barrier(launch):
    x, y = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    launch("neighbor", x, y, 1, threads=64, block=64)
    np.testing.assert_array_equal(y, x[0::4][np.arange(64) ^ 32])


@pytest.mark.parametrize("shared", [1, 1000, 48 << 10, 100 << 10, 227 << 10])
def test_dynamic_shared_memory_of_any_size(launch, shared):
    y = np.zeros(1, np.float32)
    launch("shared_element", y, (shared - 1) // 4, threads=1, block=1, shared=shared)


# What decides speed: counted on the CPU, and by the emulator.


@pytest.mark.parametrize(("chunks", "conflicts"), [(4, 3), (8, 7)])  # in each of ldmatrix's 4 passes
@pytest.mark.parametrize("swizzle", [0, 1])
def test_bank_conflicts_and_sectors_are_counted(launch, emulated, chunks, conflicts, swizzle):
    x, y = np.arange(64 * chunks, dtype=np.int32).reshape(16, chunks, 4), np.zeros((16, chunks, 4), np.int32)
    with launch.counting() as done:
        launch("tile", x, y, chunks, swizzle, 16, shared=256 * chunks)
    np.testing.assert_array_equal(x, y)
    assert done["ldmatrix"] == chunks // 2 and done["cp.async"] == chunks // 2
    assert done["ldmatrix bank conflicts"] == (0 if swizzle else 4 * conflicts * chunks // 2)
    assert done["cp.async bank conflicts"] == 0 and done["cp.async sectors"] == x.nbytes // 32


def test_copies_to_the_same_banks_are_counted(launch, emulated):
    with launch.counting() as done:
        launch("neighbor", np.zeros(256, np.float32), np.zeros(64, np.float32), 1, threads=64, block=64)
        assert done["cp.async bank conflicts"] == 0
        launch("wait_but_0", np.zeros(12, np.float32), np.zeros((32, 3), np.float32), shared=32 * 48)
        launch("copy_apart", np.zeros(4, np.float32), threads=32, shared=32 * 64)
    assert done["cp.async bank conflicts"] == 4 * 3 and done["cp.async"] == 2 + 3 + 1


def test_zeros_are_filled_in_without_reading(launch, emulated):
    with launch.counting() as done:
        launch("tile", np.ones(256, np.int32), np.zeros(256, np.int32), 4, 1, 0, shared=1024)
    assert done["cp.async"] == 2 and done["cp.async sectors"] == 0


@pytest.mark.parametrize(
    ("first", "step", "lanes", "sectors"), [(0, 4, 32, 16), (4, 4, 32, 17), (0, 8, 32, 32), (0, 0, 32, 1), (0, 4, 5, 3)]
)
def test_sectors_of_loads_and_stores_are_counted(launch, emulated, first, step, lanes, sectors):
    x, y = np.arange(512, dtype=np.float32), np.zeros((32, 4), np.float32)
    with launch.counting() as done:
        launch("load_and_store", x, y, first, step, lanes)
    np.testing.assert_array_equal(y[lanes - 1], x[first + step * (lanes - 1) :][:4])
    assert (done["loads"], done["load sectors"]) == (1, sectors)
    assert (done["stores"], done["store sectors"]) == (1, -(-lanes // 2))


def test_products_are_counted(launch, emulated):
    with launch.counting() as done:
        launch("multiply", np.ones((16, 16), np.float16), np.ones((16, 16), np.float16), np.zeros((16, 16), np.float32))
    assert (done["mma"], done["ldmatrix"], done["cp.async"], done["ldmatrix bank conflicts"]) == (2, 2, 2, 2 * 4)
    assert done["mma of multiply"] == 2


# Mistakes that a GPU may tolerate.


@pytest.mark.parametrize("launch", ["host-cuda"], indirect=True)
@pytest.mark.parametrize(("N", "known"), [(0, 3), (1, 2), (2, 1)])
def test_a_copy_is_nan_until_its_wait(launch, N, known):
    x, y = np.arange(12, dtype=np.float32), np.zeros((32, 3), np.float32)
    launch(f"wait_but_{N}", x, y, shared=32 * 48)
    np.testing.assert_array_equal(y, [[0, 4, 8][:known] + [np.nan] * (3 - known)] * 32)


@pytest.mark.parametrize("launch", ["host-cuda"], indirect=True)
def test_a_wait_does_not_cover_copies_that_were_not_committed(launch):
    y = np.zeros(1, np.float32)
    launch("no_commit", np.ones(4, np.float32), y, threads=1, block=1)
    assert np.isnan(y[0])


@pytest.mark.parametrize("launch", ["host-cuda"], indirect=True)
def test_a_missing_barrier_after_the_wait_is_reported(launch):
    x, y = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    with pytest.raises(KernelError, match="y depends on the order in which threads run"):
        launch("neighbor", x, y, 0, threads=64, block=64)


@pytest.mark.parametrize("launch", ["host-cuda"], indirect=True)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("lane_has_returned", "ldmatrix is reached by 31 of 32 threads; thread 5 has returned"),
        ("lanes_disagree", r"ldmatrix is reached by 7 of 32 threads; thread 7 waits at probe.cu:\d+"),
        ("misaligned_row", "ldmatrix of 0x[0-9a-f]+8, no multiple of 16"),
        ("row_beyond", "ldmatrix of 0x[0-9a-f]+, byte 1024 of 1024 bytes of dynamic shared memory"),
        ("misaligned_copy", "cp_async from 0x[0-9a-f]+4, no multiple of 16"),
        ("copy_to_global", "cp_async to 0x[0-9a-f]+, byte -?[0-9]+ of 1024 bytes of dynamic shared memory"),
        ("copy_too_much", "cp_async of 17 bytes"),
    ],
)
def test_wrong_calls_are_reported_with_their_line(launch, kernel, message):
    line = (
        PROBE[: PROBE.index("ldmatrix(" if "ld" in message else "cp_async(", PROBE.index(f" {kernel}("))].count("\n")
        + 1
    )
    with pytest.raises(KernelError, match=f"^probe.{kernel}: probe.cu:{line}: {message}$"):
        launch(kernel, np.zeros(8, np.float32))


@pytest.mark.parametrize("launch", ["host-cuda"], indirect=True)
def test_access_beyond_dynamic_shared_memory_is_reported(launch):
    message = "thread 0 of block 0 touches byte 64 of 64 bytes of dynamic shared memory"
    with pytest.raises(KernelError, match=message):
        launch("shared_element", np.zeros(1, np.float32), 16, threads=1, block=1, shared=64)
    with pytest.raises(KernelError, match="bytes of dynamic shared memory"):
        launch("shared_element", np.zeros(1, np.float32), 0, threads=1, block=1, shared=0)


@pytest.mark.parametrize("launch", ["host-cuda"], indirect=True)
def test_incomplete_warps_are_reported(launch):
    with pytest.raises(KernelError, match="ldmatrix in a warp of 16 threads"):
        launch("load_matrices", np.zeros((32, 4), np.int32), np.zeros((32, 4), np.int32), threads=16, block=16)


@pytest.mark.parametrize("launch", ["cuda"], indirect=True)
def test_more_shared_memory_than_a_block_can_have_is_refused(launch, emulator):
    import cupy

    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        launch("shared_element", np.zeros(1, np.float32), 0, threads=1, block=1, shared=(227 << 10) + 1)
    with emulator.configured(shared=99 << 10), pytest.raises(cupy.cuda.driver.CUDADriverError):
        launch("shared_element", np.zeros(1, np.float32), 0, threads=1, block=1, shared=100 << 10)
