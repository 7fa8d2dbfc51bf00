// Gradient of a convolution's kernel as an implicit matrix multiplication without tensor cores: float32 arithmetic throughout, and
// maps of any alignment. Launched by gpudarknet/plan/cuda/training/weight_gradient.py.
//
// dw (F, C * taps) = dz (M, F).T @ im2col(x) (M, taps * C): the sum is over M output pixels. A buffer has K pixels: BM filters
// of dz and BN columns (tap, channel) of x.

#include "nhwc.cuh"
#include "mma.cuh"
#include "split_k.cuh"
#include "fma_gemm.cuh"

struct Geometry {
    int M, H, W, OH, OW, size, sy, sx, dilation, pad;
};

// The image of a pixel, and where its window begins; beyond the last pixel far outside.
struct Pixel {
    int image, h, w;

    __device__ static Pixel of(const Geometry &g, int m) {
        if (m >= g.M) return {0, -(1 << 20), 0};
        return {m / (g.OH * g.OW), m / g.OW % g.OH * g.sy - g.pad, m % g.OW * g.sx - g.pad};
    }
};

template <class Tile>
__device__ inline void weight_gradient(const Geometry &g, const T *dz, const T *x, float *dw, float *partial, int *arrived, int F, int C,
                                       int lddz, int ldx, int groups, int splits, int accumulate) {
    __shared__ float4 a[2][K][Tile::BM / 4], b[2][K][Tile::BN / 4];
    __shared__ Pixel pixels[2][K];
    constexpr int STEP_A = Tile::THREADS / Tile::BM, STEP_B = Tile::THREADS / Tile::BN;  // pixels that the threads load at once
    constexpr int A = K / STEP_A, B = K / STEP_B;
    static_assert(Tile::THREADS % Tile::BM == 0 && Tile::THREADS % Tile::BN == 0, "a thread always loads the same column");
    int taps = g.size * g.size, across = (taps * C + Tile::BN - 1) / Tile::BN, tiles = (F + Tile::BM - 1) / Tile::BM * across * groups;
    int tile = blockIdx.x % tiles, split = blockIdx.x / tiles, group = tile / across % groups;
    int m0 = tile / across / groups * Tile::BM, n0 = tile % across * Tile::BN;
    int steps = (g.M + K - 1) / K, first = steps * split / splits, end = steps * (split + 1) / splits;
    int a_column = threadIdx.x % Tile::BM, a_row = threadIdx.x / Tile::BM, b_column = threadIdx.x % Tile::BN, b_row = threadIdx.x / Tile::BN;
    int tap = (n0 + b_column) / C, down = tap / g.size * g.dilation, right = tap % g.size * g.dilation;
    bool has_filter = m0 + a_column < F, has_column = tap < taps;
    dz += group * F + m0 + a_column, x += group * C + (n0 + b_column) % C;
    float next_a[A], next_b[B], sums[Tile::TM][Tile::TN / 4][4] = {};

    auto decode = [&](int step) {
        if (threadIdx.x < K) pixels[step % 2][threadIdx.x] = Pixel::of(g, step * K + threadIdx.x);
    };
    auto load = [&](int step) {
#pragma unroll
        for (int i = 0; i < A; i++) {
            int m = step * K + a_row + i * STEP_A;
            next_a[i] = has_filter && m < g.M ? (float)dz[m * lddz] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < B; i++) {
            const Pixel &pixel = pixels[step % 2][b_row + i * STEP_B];
            int h = pixel.h + down, w = pixel.w + right;
            bool exists = has_column && (unsigned)h < (unsigned)g.H && (unsigned)w < (unsigned)g.W;
            next_b[i] = exists ? (float)x[((pixel.image * g.H + h) * g.W + w) * ldx] : 0.0f;
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < A; i++) ((float *)a[buffer][a_row + i * STEP_A])[a_column] = next_a[i];
#pragma unroll
        for (int i = 0; i < B; i++) ((float *)b[buffer][b_row + i * STEP_B])[b_column] = next_b[i];
    };

    int row = Tile::first_row(), column = Tile::first_column();
    decode(first);
    __syncthreads();  // the pixels of a step are decoded before it is loaded
    load(first);
    decode(first + 1);
    keep(0);
    __syncthreads();
#pragma unroll 1
    for (int step = first; step < end; step++) {
        int buffer = (step - first) % 2;
        if (step + 1 < end) load(step + 1);
        decode(step + 2);
        multiply<Tile>(a[buffer], b[buffer], row, column, sums);
        if (step + 1 < end) keep(1 - buffer);
        __syncthreads();  // all have multiplied this buffer and filled the other
    }
    if (splits > 1) {
        constexpr int SIZE = Tile::TM * (Tile::TN / 4) * Tile::THREADS;
        float4 *own = (float4 *)partial + tile * SIZE + threadIdx.x;
        if (!reduce_many_splits<Tile::THREADS>(own, tiles * SIZE, arrived + tile * splits, split, splits, sums)) return;
    }
#pragma unroll
    for (int j = 0; j < Tile::TN; j++) {
        int n = n0 + Tile::column(j);
#pragma unroll
        for (int i = 0; i < Tile::TM; i++) {
            int f = m0 + Tile::row(i);
            if (f >= F || n >= taps * C) continue;
            float *to = dw + ((group * F + f) * C + n % C) * taps + n / C;
            *to = accumulate ? *to + sums[i][j / 4][j % 4] : sums[i][j / 4][j % 4];
        }
    }
}

#define PARAMETERS                                                                                                      \
    const T *dz, const T *x, float *dw, float *partial, int *arrived, int M, int F, int C, int H, int W, int OH, int OW, int size,  \
        int sy, int sx, int dilation, int pad, int lddz, int ldx, int groups, int splits, int accumulate

#define WEIGHT_GRADIENT(...)                                                                                            \
    weight_gradient<FmaTile<__VA_ARGS__>>(Geometry{M, H, W, OH, OW, size, sy, sx, dilation, pad}, dz, x, dw, partial, arrived, F, C, lddz,  \
                                       ldx, groups, splits, accumulate)

// dw (groups * F, C, size, size), float32 = the sum over the pixels of dz (N, OH, OW, groups * F) times the windows of x (N, H, W,
// groups * C), added to what dw holds if `accumulate`. M = N*OH*OW; partial (splits, tiles, sums / 4, threads, 4); arrived (tiles,
// splits), zero before and after. One block per tile of (F, taps * C), group and split of the pixels.
extern "C" __global__ void __launch_bounds__(256, 1) weight_gradient_fma_128x128(PARAMETERS) { WEIGHT_GRADIENT(128, 128, 8, 8); }
// The same for up to 64 filters or columns.
extern "C" __global__ void __launch_bounds__(256) weight_gradient_fma_64x64(PARAMETERS) { WEIGHT_GRADIENT(64, 64, 4, 4); }
// The same for up to 32.
extern "C" __global__ void __launch_bounds__(64, 8) weight_gradient_fma_32x32(PARAMETERS) { WEIGHT_GRADIENT(32, 32, 4, 4); }
