// Gradient of a convolution's kernel as an implicit matrix multiplication on tensor cores. Launched by
// gpudarknet/plan/cuda/training/weight_gradient.py.
//
// dw (F, taps * C) = dz (M, F).T @ im2col(x) (M, taps * C): the sum is over M output pixels. A buffer in shared memory has the
// channels of BK pixels as they are in memory, pixel by pixel: BM filters of dz, then BN columns (tap, channel) of x. Fragments
// are transposed as they are loaded: of half_t by ldmatrix, of float (TF32) word by word. A thread always copies the same
// columns, so that its tap and channels are constants; it walks through the pixels. A chunk may end in channels of others, whose
// columns are not stored.

#include "implicit_gemm.cuh"
#include "split_k.cuh"

// The offset in a buffer of 16 bytes, chunk j, of a pixel's `columns`. Chunks are exchanged so that no two of the lanes that are
// served at a time access the same banks: 8 pixels of one chunk (ldmatrix), or 8 words of 4 pixels (float).
__device__ inline int pixel_offset(int columns, int pixel, int j) {
    return pixel * columns * (int)sizeof(T) + (j ^ (sizeof(T) == 2 ? pixel % 8 : pixel % 4 * 2)) * 16;
}

// Copies BK pixels at a time. C: channels of a group; Cp: rounded up to whole chunks.
template <class Tile> struct PixelLoader {
    static constexpr int ACROSS_A = Tile::BM / VECTOR, ACROSS_B = Tile::BN / VECTOR;  // chunks of a pixel
    static constexpr int STEP_A = Tile::THREADS / ACROSS_A, STEP_B = Tile::THREADS / ACROSS_B, A = BK / STEP_A, B = BK / STEP_B;
    static_assert(STEP_A % 8 == 0 || sizeof(T) == 4, "all chunks of a thread have the same swizzle");
    static_assert(STEP_A % 4 == 0 && STEP_B % 4 == 0, "all chunks of a thread have the same swizzle");
    const Geometry &g;
    const T *dz, *x;
    int lddz, ldx, pixels, images, a_bytes, b_bytes, a_target, b_target, image[B], h[B], w[B], h_end, w_end;

    __device__ PixelLoader(const Geometry &g, const T *dz, const T *x, int F, int C, int Cp, int lddz, int ldx, const Part &part, int step)
        : g(g), lddz(lddz), ldx(ldx) {
        int pixel = step * BK + threadIdx.x / ACROSS_A, f = part.m0 + threadIdx.x % ACROSS_A * VECTOR;
        pixels = g.M - pixel, images = g.M / (g.OH * g.OW);
        a_target = in_register(pixel_offset(Tile::BM, threadIdx.x / ACROSS_A, threadIdx.x % ACROSS_A));
        a_bytes = f < F ? 16 : 0;
        this->dz = dz + (pixel * lddz + part.group * F + f);
        int row = threadIdx.x / ACROSS_B, n = part.n0 + threadIdx.x % ACROSS_B * VECTOR, tap = n / Cp, c = n % Cp;
        b_target = in_register(pixel_offset(Tile::BN, row, threadIdx.x % ACROSS_B));
        b_bytes = tap < g.size * g.size ? 16 : 0;
        this->x = x + (part.group * C + c);
        int down = tap / g.size * g.dilation - g.pad, right = tap % g.size * g.dilation - g.pad;
        h_end = g.OH * g.sy + down, w_end = g.OW * g.sx + right;
#pragma unroll
        for (int i = 0; i < B; i++) {
            int m = step * BK + row + i * STEP_B;
            image[i] = m / (g.OH * g.OW), h[i] = m / g.OW % g.OH * g.sy + down, w[i] = m % g.OW * g.sx + right;
        }
    }

    // Start to copy the next pixels.
    __device__ void load(SharedAddress buffer) {
#pragma unroll
        for (int i = 0; i < A; i++)
            cp_async(buffer + a_target + i * STEP_A * Tile::BM * (int)sizeof(T), dz + i * STEP_A * lddz,
                     i * STEP_A < pixels ? a_bytes : 0);
        dz += BK * lddz, pixels -= BK;
        buffer += BK * Tile::BM * (int)sizeof(T);
        int rest = BK % (g.OH * g.OW);
#pragma unroll
        for (int i = 0; i < B; i++) {
            bool exists = image[i] < images && g.inside(h[i], w[i]);
            cp_async(buffer + b_target + i * STEP_B * Tile::BN * (int)sizeof(T),
                     x + int((unsigned(image[i] * g.H + h[i]) * g.W + w[i]) * ldx), exists ? b_bytes : 0);  // wraps if there is none
            w[i] += rest % g.OW * g.sx, h[i] += rest / g.OW * g.sy, image[i] += BK / (g.OH * g.OW);
            if (w[i] >= w_end) w[i] -= g.OW * g.sx, h[i] += g.sy;
            if (h[i] >= h_end) h[i] -= g.OH * g.sy, image[i]++;
        }
    }
};

// What a lane loads for the first fragments of a warp, of an operand with `columns`: the offset in a buffer. Of half_t, the matrices
// of A are ordered columns first, those of B pixels first; see mma.cuh.
__device__ inline int transposed_fragment(int columns, int first, int lane, bool b) {
    if (sizeof(T) == 4) return pixel_offset(columns, lane % 4, (first + lane / 4) / 4) + lane / 4 % 4 * 4;
    int i = lane / 8, across = b ? i / 2 : i % 2, down = b ? i % 2 : i / 2;
    return pixel_offset(columns, down * 8 + lane % 8, first / 8 + across);
}

// Load a fragment of A, 16 columns wide, or two of B from the pixels of one mma. COLUMNS: of the operand.
template <int COLUMNS> __device__ inline void load_transposed(unsigned (&r)[4], SharedAddress at, int offset) {
    if constexpr (sizeof(T) == 2) {
        ldmatrix_trans(r, at + offset);
    } else {  // word by word, in the order of A's fragment: the next 8 columns, then the next 4 pixels
#pragma unroll
        for (int i = 0; i < 4; i++) r[i] = to_tf32(load_shared(at + (offset ^ i % 2 * 32) + i / 2 * 4 * COLUMNS * (int)sizeof(T)));
    }
}

// sums += the product of the columns of a buffer that belong to a warp.
template <class Tile>
__device__ inline void multiply_transposed(SharedAddress buffer, int a_offset, int b_offset, float (&sums)[Tile::DOWN][Tile::ACROSS][4]) {
    constexpr int SIZE = sizeof(T), DEEP = 32 / SIZE;  // pixels of an mma
    SharedAddress b_buffer = buffer + BK * Tile::BM * SIZE;
#pragma unroll
    for (int k = 0; k < BK; k += DEEP) {
        unsigned a[Tile::DOWN][4], b[Tile::ACROSS / 2][4];
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++) load_transposed<Tile::BM>(a[i], buffer + k * Tile::BM * SIZE, a_offset ^ i * 16 * SIZE);
#pragma unroll
        for (int j = 0; j < Tile::ACROSS / 2; j++)
            load_transposed<Tile::BN>(b[j], b_buffer + k * Tile::BN * SIZE, b_offset ^ j * 16 * SIZE);
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
            for (int j = 0; j < Tile::ACROSS; j++) {
                const unsigned(&both)[4] = b[j / 2];
                if constexpr (sizeof(T) == 2)
                    mma(sums[i][j], a[i], {both[j % 2 * 2], both[j % 2 * 2 + 1]});
                else
                    mma(sums[i][j], a[i], {both[j % 2], both[j % 2 + 2]});
            }
    }
}

template <class Tile>
__device__ inline void weight_gradient(const Geometry &g, const T *dz, const T *x, float *dw, float *partial, int *arrived, int F, int C,
                                       int lddz, int ldx, int groups, int splits, int accumulate) {
    SharedAddress buffers = in_register(shared_address(dynamic_shared()));
    int taps = g.size * g.size, Cp = (C + VECTOR - 1) / VECTOR * VECTOR;
    Part part = Part::of_block<Tile>(F, taps * Cp, groups);
    int warp = threadIdx.x / 32, warp_m = warp % (Tile::BM / Tile::WM) * Tile::WM, warp_n = warp / (Tile::BM / Tile::WM) * Tile::WN;
    int steps = (g.M + BK - 1) / BK, first = steps * part.split / splits, end = steps * (part.split + 1) / splits;
    PixelLoader<Tile> loader(g, dz, x, F, C, Cp, lddz, ldx, part, first);
    float sums[Tile::DOWN][Tile::ACROSS][4];
    clear<Tile>(sums);
#pragma unroll
    for (int i = 0; i < Tile::STAGES - 1; i++) {
        if (first + i < end) loader.load(buffers + i * Tile::BUFFER);
        cp_async_commit();
    }
    constexpr int END = Tile::STAGES * Tile::BUFFER;
    int lane = threadIdx.x % 32, read = 0, write = END - Tile::BUFFER;
    int a_offset = in_register(transposed_fragment(Tile::BM, warp_m, lane, false));
    int b_offset = in_register(transposed_fragment(Tile::BN, warp_n, lane, true));
#pragma unroll 1
    for (int step = first; step < end; step++) {
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads();  // all have copied this buffer, and multiplied the one that is filled next
        if (step + Tile::STAGES - 1 < end) loader.load(buffers + write);
        cp_async_commit();
        multiply_transposed<Tile>(buffers + read, a_offset, b_offset, sums);
        read = read + Tile::BUFFER == END ? 0 : read + Tile::BUFFER;
        write = write + Tile::BUFFER == END ? 0 : write + Tile::BUFFER;
    }
    if (splits > 1) {
        constexpr int SIZE = Tile::DOWN * Tile::ACROSS * Tile::THREADS;
        float4 *own = (float4 *)partial + part.tile * SIZE + threadIdx.x;
        int *counters = arrived + part.tile * splits;
        if (!reduce_many_splits<Tile::THREADS>(own, gridDim.x / splits * SIZE, counters, part.split, splits, sums)) return;
    }
#pragma unroll
    for (int j = 0; j < Tile::ACROSS; j++) {
        int n = part.n0 + warp_n + j * 8 + lane % 4 * 2, tap = n / Cp, c = n % Cp;  // and the next, of the same tap
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                int f = part.m0 + warp_m + i * 16 + lane / 4 + r / 2 * 8;
                if (f >= F || tap >= taps || c + r % 2 >= C) continue;
                float *to = dw + ((part.group * F + f) * C + c + r % 2) * taps + tap;
                *to = accumulate ? *to + sums[i][j][r] : sums[i][j][r];
            }
    }
}

#define PARAMETERS                                                                                                      \
    const T *dz, const T *x, float *dw, float *partial, int *arrived, int M, int F, int C, int H, int W, int OH, int OW, int size,  \
        int sy, int sx, int dilation, int pad, int lddz, int ldx, int groups, int splits, int accumulate

#define WEIGHT_GRADIENT(...)                                                                                            \
    weight_gradient<Tile<__VA_ARGS__>>(Geometry{M, H, W, OH, OW, size, sy, sx, dilation, pad, 0}, dz, x, dw, partial, arrived, F, C,  \
                                       lddz, ldx, groups, splits, accumulate)

// dw (groups * F, C, size, size), float32 = the sum over the pixels of dz (N, OH, OW, groups * F) times the windows of x (N, H, W,
// groups * C), added to what dw holds if `accumulate`. M = N*OH*OW; partial (splits, tiles, fragments, threads, 4); arrived (tiles,
// splits), zero before and after. Pixels and groups begin at multiples of 16 bytes. One block per tile of (F, taps * C), group
// and split of the pixels.
extern "C" __global__ void __launch_bounds__(256) weight_gradient_128x128(PARAMETERS) { WEIGHT_GRADIENT(128, 128, 64, 32, 3); }
// The same for up to 64 filters.
extern "C" __global__ void __launch_bounds__(128, 3) weight_gradient_64x128(PARAMETERS) { WEIGHT_GRADIENT(64, 128, 32, 64, 4); }
// The same for few filters and columns.
extern "C" __global__ void __launch_bounds__(128) weight_gradient_64x64(PARAMETERS) { WEIGHT_GRADIENT(64, 64, 32, 32, 5); }
