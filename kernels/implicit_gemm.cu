// Convolution as an implicit matrix multiplication on tensor cores, with its epilogue. Launched by
// gpudarknet/plan/cuda/implicit_gemm.py.
//
// A block has STAGES buffers: while tensor cores multiply one, cp.async fills the others.

#include "implicit_gemm.cuh"
#include "split_k.cuh"

// Copies what a block multiplies, a buffer at a time: each thread always the same chunk of the rows `row`, `row` + Tile::ROWS, ...
// C: channels of a group; Cp: with the zeros between taps in the weights, whose rows are (size, size, Cp). Beyond an image's border,
// after the last channel of a tap, and after the last tap it writes zeros. RAGGED: C may differ from Cp.
template <class Tile, bool RAGGED> struct Loader {
    static constexpr int A = Tile::BM / Tile::ROWS, B = Tile::BN / Tile::ROWS;  // rows per thread
    static_assert(Tile::ROWS / 2 % CHUNKS == 0, "all rows of a thread have the same swizzle");
    const Geometry &g;
    const T *x, *weights;
    int C, Cp, ldx, ldw, target, filters, offset[A], h[A], w[A], p, q, c;

    __device__ Loader(const Geometry &g, const T *x, const T *weights, int C, int Cp, int ldx, int ldw, int N, const Part &part,
                      int step)
        : g(g), x(x), C(C), Cp(Cp), ldx(ldx), ldw(ldw) {
        int row = threadIdx.x / CHUNKS, k = step * BK + threadIdx.x % CHUNKS * VECTOR;
        target = in_register(swizzle(row, threadIdx.x % CHUNKS));
        filters = in_register(N - part.n0 - row);
        this->weights = weights + (part.group * N + part.n0 + row) * ldw + k;
#pragma unroll
        for (int i = 0; i < A; i++) {
            int image = g.window(part.m0 + row + i * Tile::ROWS, h[i], w[i]);
            offset[i] = int((unsigned(image * g.H + h[i]) * g.W + w[i]) * ldx) + part.group * C;  // wraps if there is no such row
        }
        p = k / Cp / g.size, q = k / Cp % g.size, c = k % Cp;
    }

    // Start to copy the next buffer.
    __device__ void load(SharedAddress buffer) {
        bool tap = p < g.size;
        int dh = p * g.dilation, dw = q * g.dilation;
        const T *at = x + ((dh * g.W + dw) * ldx + c);
        int bytes = RAGGED ? max(min(C - c, VECTOR), 0) * (int)sizeof(T) : 16;
#pragma unroll
        for (int i = 0; i < A; i++) {
            bool exists = tap && g.inside(h[i] + dh, w[i] + dw);
            cp_async(buffer + target + i * Tile::ROWS * ROW_BYTES, at + offset[i], exists ? bytes : 0);
        }
#pragma unroll
        for (int i = 0; i < B; i++) {
            bool exists = tap && i * Tile::ROWS < filters;
            cp_async(buffer + Tile::BM * ROW_BYTES + target + i * Tile::ROWS * ROW_BYTES, weights + i * Tile::ROWS * ldw,
                     exists ? 16 : 0);
        }
        weights += BK;
        for (c += BK; c >= Cp; c -= Cp)
            if (++q == g.size) q = 0, p++;
    }
};

template <class Tile, bool RAGGED>
__device__ inline void implicit_gemm(const Geometry &g, const T *x, const T *weights, int N, int C, int Cp, int ldx, int ldw, int groups,
                                     int splits, float *partial, int *arrived, const Epilogue &f, const Result &result) {
    SharedAddress buffers = in_register(shared_address(dynamic_shared()));
    Part part = Part::of_block<Tile>(g.M, N, groups);
    int warp = threadIdx.x / 32, warp_m = warp % (Tile::BM / Tile::WM) * Tile::WM, warp_n = warp / (Tile::BM / Tile::WM) * Tile::WN;
    int steps = (g.size * g.size * Cp + BK - 1) / BK, first = steps * part.split / splits, end = steps * (part.split + 1) / splits;
    Loader<Tile, RAGGED> loader(g, x, weights, C, Cp, ldx, ldw, N, part, first);
    float sums[Tile::DOWN][Tile::ACROSS][4];
    clear<Tile>(sums);
#pragma unroll
    for (int i = 0; i < Tile::STAGES - 1; i++) {
        if (first + i < end) loader.load(buffers + i * Tile::BUFFER);
        cp_async_commit();
    }
    constexpr int END = Tile::STAGES * Tile::BUFFER;
    int lane = threadIdx.x % 32, read = 0, write = END - Tile::BUFFER;
    int a_row = in_register(a_fragment(warp_m, lane)), b_row = in_register(b_fragment<Tile>(warp_n, lane));
#pragma unroll 1
    for (int step = first; step < end; step++) {
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads();  // all have copied this buffer, and multiplied the one that is filled next
        if (step + Tile::STAGES - 1 < end) loader.load(buffers + write);
        cp_async_commit();
        multiply<Tile>(buffers + read, a_row, b_row, sums);
        read = read + Tile::BUFFER == END ? 0 : read + Tile::BUFFER;
        write = write + Tile::BUFFER == END ? 0 : write + Tile::BUFFER;
    }
    cp_async_wait<0>();
    if (splits > 1) {  // partial (splits, tiles, fragments, threads, 4); arrived (tiles)
        constexpr int SIZE = Tile::DOWN * Tile::ACROSS * Tile::THREADS;
        float4 *own = (float4 *)partial + part.tile * SIZE + threadIdx.x;
        if (!reduce_splits<Tile::THREADS>(own, gridDim.x / splits * SIZE, arrived + part.tile, part.split, splits, sums)) return;
    }
    __syncthreads();  // all buffers are read
    store_sums<Tile>(dynamic_shared(), sums, f, result, part, g.M, N, warp_m, warp_n);
}

#define PARAMETERS                                                                                                      \
    const T *x, const T *weights, float *partial, int *arrived, int M, int N, int C, int Cp, int H, int W, int OH,      \
        int OW, int size, int sy, int sx, int dilation, int pad, int ldx, int ldw, int groups, int splits, EPILOGUE_PARAMETERS

#define IMPLICIT_GEMM(RAGGED, ...)                                                                                      \
    implicit_gemm<Tile<__VA_ARGS__>, RAGGED>(GEOMETRY, x, weights, N, C, Cp, ldx, ldw, groups, splits, partial, arrived, EPILOGUE, RESULT)

// Convolution: x (N, H, W, groups * C), weights (groups * filters, size, size, Cp) -> y (N, OH, OW, groups * filters), or a quarter of
// its pixels if pooled. M: pixels before pooling; N: filters of a group. One block per tile, group and split. Large products:
extern "C" __global__ void __launch_bounds__(256) implicit_gemm_256x128(PARAMETERS) { IMPLICIT_GEMM(false, 256, 128, 64, 64, 3); }
// The same with half of the pixels per block.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_128x128(PARAMETERS) { IMPLICIT_GEMM(false, 128, 128, 64, 64, 3); }
// The same for up to 64 filters, and smaller products.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_128x64(PARAMETERS) { IMPLICIT_GEMM(false, 128, 64, 64, 32, 4); }
// The same for up to 32 filters.
extern "C" __global__ void __launch_bounds__(128, 4) implicit_gemm_128x32(PARAMETERS) { IMPLICIT_GEMM(false, 128, 32, 32, 32, 4); }
// The same for small maps.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_64x64(PARAMETERS) { IMPLICIT_GEMM(false, 64, 64, 32, 32, 5); }
// The same for channels that are no multiple of 8.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_64x64_ragged(PARAMETERS) { IMPLICIT_GEMM(true, 64, 64, 32, 32, 5); }
