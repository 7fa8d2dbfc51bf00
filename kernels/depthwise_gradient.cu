// Gradients of depthwise convolutions: one filter per channel, NHWC. Launched by gpudarknet/plan/cuda/training/depthwise.py.

#include "channel_sums.cuh"

template <int V>
__device__ inline void weight_gradient(const T *dz, const T *x, float *dw, float *partial, int *arrived, int M, int C, int H, int W, int OH,
                                       int OW, int size, int sy, int sx, int dilation, int pad, int lddz, int ldx, int lanes,
                                       int accumulate) {
    ChannelPart<V> own(M, C, lanes);
    int taps = size * size, h[DEPTH], w[DEPTH], image[DEPTH];
    float d[DEPTH][V] = {}, sums[V], v[V];
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        int m = own.first + i * own.rows;
        if (own.has(m)) load<V>(dz + m * lddz + own.c, d[i]);
        h[i] = own.has(m) ? m / OW % OH * sy - pad : -(1 << 20), w[i] = m % OW * sx - pad, image[i] = m / (OW * OH) * H;
    }
#pragma unroll 1
    for (int tap = 0; tap < taps; tap++) {
#pragma unroll
        for (int k = 0; k < V; k++) sums[k] = 0;
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            int down = h[i] + tap / size * dilation, right = w[i] + tap % size * dilation;
            if ((unsigned)down >= (unsigned)H || (unsigned)right >= (unsigned)W) continue;
            load<V>(x + ((image[i] + down) * W + right) * ldx + own.c, v);
#pragma unroll
            for (int k = 0; k < V; k++) sums[k] += d[i][k] * v[k];
        }
        channel_sum<V>(sums, lanes);
        if (own.row == 0 && own.c < C)
#pragma unroll
            for (int k = 0; k < V; k++) partial[(own.part * taps + tap) * C + own.c + k] = sums[k];
    }
    if (!last_block(arrived + own.chunk, own.parts)) return;
#pragma unroll 1
    for (int tap = 0; tap < taps; tap++) {
#pragma unroll
        for (int k = 0; k < V; k++) sums[k] = 0;
        for (int part = own.row; own.c < C && part < own.parts; part += own.rows)
#pragma unroll
            for (int k = 0; k < V; k++) sums[k] += load_volatile(partial + (part * taps + tap) * C + own.c + k);
        channel_sum<V>(sums, lanes);
        if (own.row > 0 || own.c >= C) continue;
#pragma unroll
        for (int k = 0; k < V; k++) {
            float *to = dw + (own.c + k) * taps + tap;
            *to = accumulate ? *to + sums[k] : sums[k];
        }
    }
}

// dw (C, 1, size, size), float32 = the sum over the pixels of dz (N, OH, OW, C) times the windows of x (N, H, W, C), added to what dw
// holds if `accumulate`. M = N*OH*OW; partial (parts, size, size, C); arrived (chunks), zero before and after. One block per part of
// the pixels and chunk of channels.
extern "C" __global__ void __launch_bounds__(256, 2) depthwise_weight_gradient(
    const T *dz, const T *x, float *dw, float *partial, int *arrived, int M, int C, int H, int W, int OH, int OW, int size, int sy, int sx,
    int dilation, int pad, int lddz, int ldx, int lanes, int accumulate, int vectorized) {
    if (vectorized)
        weight_gradient<VECTOR>(dz, x, dw, partial, arrived, M, C, H, W, OH, OW, size, sy, sx, dilation, pad, lddz, ldx, lanes, accumulate);
    else
        weight_gradient<1>(dz, x, dw, partial, arrived, M, C, H, W, OH, OW, size, sy, sx, dilation, pad, lddz, ldx, lanes, accumulate);
}

template <int V>
__device__ inline void data_gradient(int i, const T *dz, const T *weights, T *dx, int C, int H, int W, int OH, int OW, int size, int sy,
                                     int sx, int dilation, int pad, int lddz, int lddx, int accumulate) {
    int c = i % (C / V) * V, m = i / (C / V), image = m / (H * W), h = m / W % H + pad, w = m % W + pad;
    float sum[V] = {}, d[V], tap[V];
    if (accumulate) load<V>(dx + m * lddx + c, sum);
    for (int p = 0; p < size; p++) {
        int down = h - p * dilation;
        if (down < 0 || down % sy || down / sy >= OH) continue;
        for (int q = 0; q < size; q++) {
            int right = w - q * dilation;
            if (right < 0 || right % sx || right / sx >= OW) continue;
            load<V>(dz + ((image * OH + down / sy) * OW + right / sx) * lddz + c, d);
            load<V>(weights + (p * size + q) * C + c, tap);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += d[k] * tap[k];
        }
    }
    store<V>(dx + m * lddx + c, sum);
}

// dx (N, H, W, C) from dz (N, OH, OW, C) and weights (size, size, C), added to what dx holds if `accumulate`. n = N*H*W * C, or
// C / VECTOR.
extern "C" __global__ void depthwise_data_gradient(const T *dz, const T *weights, T *dx, int n, int C, int H, int W, int OH, int OW,
                                                   int size, int sy, int sx, int dilation, int pad, int lddz, int lddx, int accumulate,
                                                   int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        data_gradient<VECTOR>(i, dz, weights, dx, C, H, W, OH, OW, size, sy, sx, dilation, pad, lddz, lddx, accumulate);
    else
        data_gradient<1>(i, dz, weights, dx, C, H, W, OH, OW, size, sy, sx, dilation, pad, lddz, lddx, accumulate);
}
