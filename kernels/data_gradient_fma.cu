// Gradient of a convolution's input as an implicit matrix multiplication without tensor cores: float32 arithmetic throughout, and maps
// of any alignment. Launched by gpudarknet/plan/cuda/training/data_gradient.py.

#include "nhwc.cuh"
#include "phase.cuh"
#include "fma_gemm.cuh"

template <class Tile>
__device__ inline void data_gradient(const T *dz, const T *weights, T *dx, int images, int N, int F, int Fp, int H, int W, int OH, int OW,
                                     int size, int sy, int sx, int dilation, int pad, int lddz, int ldw, int lddx, int groups,
                                     int accumulate) {
    // + 1: the 8 filters of 4 rows are stored to different banks
    __shared__ float4 a[2][K][Tile::BM / 4 + 1], b[2][K][Tile::BN / 4 + 1];
    constexpr int ROWS = Tile::THREADS / K, A = Tile::BM / ROWS, B = Tile::BN / ROWS;  // rows at once, and of a thread
    Phases phases(images, H, W, size, sy, sx, dilation, pad, Tile::BM, (N + Tile::BN - 1) / Tile::BN * groups);
    const Phase &down = phases.down, &across = phases.across;
    int each = phases.columns / groups, group = phases.tile % phases.columns / each, pixels = down.count * across.count;
    int m0 = phases.tile / phases.columns * Tile::BM, n0 = phases.tile % each * Tile::BN;
    int k = threadIdx.x % K, first = threadIdx.x / K, steps = down.taps * across.taps * (Fp / K), p = 0, q = 0, f = k;
    dz += group * F, weights += (group * N + n0 + first) * ldw;
    int offset[A], h[A], w[A];
    float next_a[A], next_b[B], sums[Tile::TM][Tile::TN / 4][4] = {};
#pragma unroll
    for (int i = 0; i < A; i++) {
        int m = m0 + first + i * ROWS;
        h[i] = m < phases.M ? down.from + m % pixels / across.count : -(1 << 20), w[i] = across.from + m % across.count;
        offset[i] = int((unsigned(m / pixels * OH + h[i]) * OW + w[i]) * lddz);  // wraps if there is no such row
    }

    auto load = [&] {  // the next filters: all of one tap, as Fp is a multiple of K
        int dh = p * down.apart, dw = q * across.apart, back = (dh * OW + dw) * lddz;
        int tap = (down.first + p * down.step) * size + across.first + q * across.step;
#pragma unroll
        for (int i = 0; i < A; i++) {
            bool exists = f < F && (unsigned)(h[i] - dh) < (unsigned)OH && (unsigned)(w[i] - dw) < (unsigned)OW;
            next_a[i] = exists ? (float)dz[offset[i] - back + f] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < B; i++)
            next_b[i] = n0 + first + i * ROWS < N ? (float)weights[i * ROWS * ldw + tap * Fp + f] : 0.0f;
        f += K;
        if (f >= Fp) {
            f = k;
            if (++q == across.taps) q = 0, p++;
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < A; i++) ((float *)a[buffer][k])[first + i * ROWS] = next_a[i];
#pragma unroll
        for (int i = 0; i < B; i++) ((float *)b[buffer][k])[first + i * ROWS] = next_b[i];
    };

    int row = Tile::first_row(), column = Tile::first_column();
    if (steps > 0) {
        load();
        keep(0);
    }
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) load();
        multiply<Tile>(a[step % 2], b[step % 2], row, column, sums);
        if (step + 1 < steps) keep((step + 1) % 2);
        __syncthreads();  // all have multiplied this buffer and filled the other
    }
#pragma unroll
    for (int i = 0; i < Tile::TM; i++) {
        int m = m0 + Tile::row(i);
        if (m >= phases.M) continue;
        T *to = dx + phases(m) * lddx + group * N;
#pragma unroll
        for (int j = 0; j < Tile::TN; j++) {
            int n = n0 + Tile::column(j);
            if (n < N) to[n] = accumulate ? to[n] + sums[i][j / 4][j % 4] : sums[i][j / 4][j % 4];
        }
    }
}

#define PARAMETERS                                                                                                      \
    const T *dz, const T *weights, T *dx, int images, int N, int F, int Fp, int H, int W, int OH, int OW, int size, int sy, int sx,  \
        int dilation, int pad, int lddz, int ldw, int lddx, int groups, int accumulate

#define DATA_GRADIENT(...)                                                                                              \
    data_gradient<FmaTile<__VA_ARGS__>>(dz, weights, dx, images, N, F, Fp, H, W, OH, OW, size, sy, sx, dilation, pad, lddz, ldw,  \
                                        lddx, groups, accumulate)

// dx (N, H, W, groups * channels) of a convolution, from dz (N, OH, OW, groups * F) and weights (groups * channels, size, size, Fp),
// not rotated, zero from F on, Fp a multiple of 8; added to what dx holds if `accumulate`. One block per tile of (M, channels), group
// and phase.
extern "C" __global__ void __launch_bounds__(256, 1) data_gradient_fma_128x128(PARAMETERS) { DATA_GRADIENT(128, 128, 8, 8); }
// The same for few channels, and small maps.
extern "C" __global__ void __launch_bounds__(256) data_gradient_fma_64x64(PARAMETERS) { DATA_GRADIENT(64, 64, 4, 4); }
