// Epilogue of a convolution with a fused 2 x 2 max pool: pool, bias, activation, and the im2col matrix of the next convolution.
// Launched by gpudarknet/plan/cuda/convolution.py.

#include "nhwc.cuh"

// best = the activated maximum of the 2 x 2 block of x that becomes pixel m, channels from c on; OW: the output's width.
template <int V>
__device__ inline void maxpool_pixel(const T *x, const float *bias, int m, int c, int OW, int ldx, int kind,
                                     float (&best)[V]) {
    int corner = (m / OW * 2 * OW + m % OW) * 2;
    float v[V];
    load<V>(x + corner * ldx + c, best);
#pragma unroll
    for (int tap = 1; tap < 4; tap++) {
        load<V>(x + (corner + tap / 2 * 2 * OW + tap % 2) * ldx + c, v);
        max_in_place<V>(best, v);
    }
    add_bias<V>(bias + c, best);
    activate<V>(kind, best);
}

template <int V>
__device__ inline void maxpool_epilogue_channels(int i, const T *x, const float *bias, T *y, int C, int OW, int ldx, int ldy,
                                                 int kind) {
    int c = i % (C / V) * V, m = i / (C / V);
    float best[V];
    maxpool_pixel<V>(x, bias, m, c, OW, ldx, kind, best);
    store<V>(y + m * ldy + c, best);
}

// Max pool, add the bias, activate: x (N, 2*OH, 2*OW, C) -> y (N, OH, OW, C). n = N*OH*OW * C, or C / VECTOR.
extern "C" __global__ void maxpool_epilogue(const T *x, const float *bias, T *y, int n, int C, int OW, int ldx, int ldy,
                                            int kind, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        maxpool_epilogue_channels<VECTOR>(i, x, bias, y, C, OW, ldx, ldy, kind);
    else
        maxpool_epilogue_channels<1>(i, x, bias, y, C, OW, ldx, ldy, kind);
}

template <int V>
__device__ inline void maxpool_epilogue_im2col_channels(int i, const T *x, const float *bias, T *y, const Im2col &to, int C,
                                                        int H, int W, int HP, int WP, int ldx, int ldy, int kind) {
    int c = i % (C / V) * V, at = i / (C / V), w = at % WP - to.pad, h = at / WP % HP - to.pad, image = at / (WP * HP);
    float v[V] = {};
    if (h >= 0 && h < H && w >= 0 && w < W) {
        int m = (image * H + h) * W + w;
        maxpool_pixel<V>(x, bias, m, c, W, ldx, kind, v);
        if (y) store<V>(y + m * ldy + c, v);
    }
    scatter_im2col<V>(to, image, h, w, c, v);
}

// The same with im2col, as in epilogue_im2col: x (N, 2*H, 2*W, C) -> y (N, H, W, C), which may be null, and col.
extern "C" __global__ void maxpool_epilogue_im2col(const T *x, const float *bias, T *y, T *col, int n, int C, int H, int W,
                                                   int ldx, int ldy, int kind, int HP, int WP, int first, int count, int G,
                                                   int OH, int OW, int size, int sy, int sx, int dilation, int pad,
                                                   int ldcol, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    Im2col to{col, first, count, G, OH, OW, size, sy, sx, dilation, pad, ldcol};
    if (vectorized)
        maxpool_epilogue_im2col_channels<VECTOR>(i, x, bias, y, to, C, H, W, HP, WP, ldx, ldy, kind);
    else
        maxpool_epilogue_im2col_channels<1>(i, x, bias, y, to, C, H, W, HP, WP, ldx, ldy, kind);
}
