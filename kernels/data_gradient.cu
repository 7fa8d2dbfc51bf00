// Gradient of a convolution's input, for strides above 1, as an implicit matrix multiplication on tensor cores. Launched by
// gpudarknet/plan/cuda/training/data_gradient.py; without strides it is a convolution, of implicit_gemm.cu.

#include "implicit_gemm.cuh"
#include "phase.cuh"

// Copies what a block multiplies, as that of implicit_gemm.cu. F: filters of a group; Fp: with the zeros between taps in the weights.
template <class Tile> struct PhaseLoader {
    static constexpr int A = Tile::BM / Tile::ROWS, B = Tile::BN / Tile::ROWS;  // rows per thread
    static_assert(Tile::ROWS / 2 % CHUNKS == 0, "all rows of a thread have the same swizzle");
    const Phase &down, &across;
    const T *dz, *weights;
    int OH, OW, F, Fp, size, lddz, ldw, target, channels, offset[A], h[A], w[A], p, q, c;

    __device__ PhaseLoader(const Phase &down, const Phase &across, const T *dz, const T *weights, int OH, int OW, int F, int Fp, int size,
                           int lddz, int ldw, int M, int N, const Part &part)
        : down(down), across(across), dz(dz), OH(OH), OW(OW), F(F), Fp(Fp), size(size), lddz(lddz), ldw(ldw) {
        int row = threadIdx.x / CHUNKS, k = threadIdx.x % CHUNKS * VECTOR;
        target = in_register(swizzle(row, threadIdx.x % CHUNKS));
        channels = in_register(N - part.n0 - row);
        this->weights = weights + (part.group * N + part.n0 + row) * ldw;
#pragma unroll
        for (int i = 0; i < A; i++) {
            int m = part.m0 + row + i * Tile::ROWS, pixels = down.count * across.count, image = m / pixels;
            h[i] = m < M ? down.from + m % pixels / across.count : -(1 << 20), w[i] = across.from + m % across.count;
            offset[i] = int((unsigned(image * OH + h[i]) * OW + w[i]) * lddz) + part.group * F;  // wraps if there is no such row
        }
        c = k % Fp, q = k / Fp % max(across.taps, 1), p = k / Fp / max(across.taps, 1);
    }

    // Start to copy the next buffer.
    __device__ void load(SharedAddress buffer) {
        int dh = p * down.apart, dw = q * across.apart, tap = (down.first + p * down.step) * size + across.first + q * across.step;
        const T *at = dz + (c - (dh * OW + dw) * lddz), *row = weights + (tap * Fp + c);
        bool exists = p < down.taps;
        int bytes = exists ? max(min(F - c, VECTOR), 0) * (int)sizeof(T) : 0;
#pragma unroll
        for (int i = 0; i < A; i++) {
            bool inside = (unsigned)(h[i] - dh) < (unsigned)OH && (unsigned)(w[i] - dw) < (unsigned)OW;
            cp_async(buffer + target + i * Tile::ROWS * ROW_BYTES, at + offset[i], inside ? bytes : 0);
        }
#pragma unroll
        for (int i = 0; i < B; i++)
            cp_async(buffer + Tile::BM * ROW_BYTES + target + i * Tile::ROWS * ROW_BYTES, row + i * Tile::ROWS * ldw,
                     exists && i * Tile::ROWS < channels ? 16 : 0);
        for (c += BK; c >= Fp; c -= Fp)
            if (++q == across.taps) q = 0, p++;
    }
};

template <class Tile>
__device__ inline void data_gradient(const T *dz, const T *weights, T *dx, int images, int N, int F, int Fp, int H, int W, int OH, int OW,
                                     int size, int sy, int sx, int dilation, int pad, int lddz, int ldw, int lddx, int groups,
                                     int accumulate, int vectorized) {
    SharedAddress buffers = in_register(shared_address(dynamic_shared()));
    Phases phases(images, H, W, size, sy, sx, dilation, pad, Tile::BM, (N + Tile::BN - 1) / Tile::BN * groups);
    const Phase &down = phases.down, &across = phases.across;
    int tile = phases.tile, columns = phases.columns, M = phases.M;
    Part part = {tile, tile / columns * Tile::BM, tile % (columns / groups) * Tile::BN, tile % columns / (columns / groups), 0};
    int warp = threadIdx.x / 32, warp_m = warp % (Tile::BM / Tile::WM) * Tile::WM, warp_n = warp / (Tile::BM / Tile::WM) * Tile::WN;
    int steps = (down.taps * across.taps * Fp + BK - 1) / BK;
    PhaseLoader<Tile> loader(down, across, dz, weights, OH, OW, F, Fp, size, lddz, ldw, M, N, part);
    float sums[Tile::DOWN][Tile::ACROSS][4];
    clear<Tile>(sums);
#pragma unroll
    for (int i = 0; i < Tile::STAGES - 1; i++) {
        if (i < steps) loader.load(buffers + i * Tile::BUFFER);
        cp_async_commit();
    }
    constexpr int END = Tile::STAGES * Tile::BUFFER;
    int lane = threadIdx.x % 32, read = 0, write = END - Tile::BUFFER;
    int a_row = in_register(a_fragment(warp_m, lane)), b_row = in_register(b_fragment<Tile>(warp_n, lane));
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads();  // all have copied this buffer, and multiplied the one that is filled next
        if (step + Tile::STAGES - 1 < steps) loader.load(buffers + write);
        cp_async_commit();
        multiply<Tile>(buffers + read, a_row, b_row, sums);
        read = read + Tile::BUFFER == END ? 0 : read + Tile::BUFFER;
        write = write + Tile::BUFFER == END ? 0 : write + Tile::BUFFER;
    }
    cp_async_wait<0>();
    __syncthreads();  // all buffers are read
    Epilogue f{nullptr, dx, H * W, groups * N, H * W, lddx, LINEAR, accumulate ? ADD : NONE, 0, 0, LINEAR};
    store_sums<Tile>(dynamic_shared(), sums, f, Result{dx, lddx, 0, 0, 0, vectorized, 1}, part, M, N, warp_m, warp_n,
                     phases);
}

#define PARAMETERS                                                                                                      \
    const T *dz, const T *weights, T *dx, int images, int N, int F, int Fp, int H, int W, int OH, int OW, int size, int sy, int sx,  \
        int dilation, int pad, int lddz, int ldw, int lddx, int groups, int accumulate, int vectorized

#define DATA_GRADIENT(...)                                                                                              \
    data_gradient<Tile<__VA_ARGS__>>(dz, weights, dx, images, N, F, Fp, H, W, OH, OW, size, sy, sx, dilation, pad, lddz, ldw, lddx,  \
                                     groups, accumulate, vectorized)

// dx (N, H, W, groups * channels) of a convolution, from dz (N, OH, OW, groups * F) and weights (groups * channels, size, size, Fp),
// not rotated, zero from F on; added to what dx holds if `accumulate`. Pixels and groups of dz begin at multiples of 16 bytes, those
// of dx if `vectorized`. One block per tile of (M, channels), group and phase. Large products:
extern "C" __global__ void __launch_bounds__(128) data_gradient_128x128(PARAMETERS) { DATA_GRADIENT(128, 128, 64, 64, 3); }
// The same for up to 64 channels.
extern "C" __global__ void __launch_bounds__(128, 3) data_gradient_128x64(PARAMETERS) { DATA_GRADIENT(128, 64, 64, 32, 4); }
// The same for small maps.
extern "C" __global__ void __launch_bounds__(128) data_gradient_64x64(PARAMETERS) { DATA_GRADIENT(64, 64, 32, 32, 5); }
