// Epilogues in one pass: bias, activations, a binary operation, and the im2col matrix of the next convolution.
// Launched by gpudarknet/plan/cuda/epilogue.py.

#include "nhwc.cuh"

template <int V> __device__ inline void epilogue_channels(int i, const T *x, const Epilogue &f, T *y, int C, int ldx,
                                                          int ldy) {
    int c = i % (C / V) * V, m = i / (C / V);
    float v[V];
    load<V>(x + m * ldx + c, v);
    apply_epilogue<V>(f, m, c, v);
    store<V>(y + m * ldy + c, v);
}

// y (N, P, C) = post(binary_op(pre(x + bias), other)); x may be y, bias (C) may be null. binary_op ADD adds other, SORT
// adds it and sqrt(max(R(a) R(b), 0) + eps), R(x) = x if x > 0, else slope * x, MULTIPLY multiplies by it; other is (N,
// Po, Co) with Po = P or 1, Co = C or 1. n = N*P * C, or C / VECTOR.
extern "C" __global__ void epilogue(const T *x, const float *bias, const T *other, T *y, int n, int C, int P, int Co, int Po,
                                    int ldx, int ldo, int ldy, int pre, int binary_op, float eps, float slope, int post,
                                    int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    Epilogue f{bias, other, P, Co, Po, ldo, pre, binary_op, eps, slope, post};
    if (vectorized)
        epilogue_channels<VECTOR>(i, x, f, y, C, ldx, ldy);
    else
        epilogue_channels<1>(i, x, f, y, C, ldx, ldy);
}

template <int V>
__device__ inline void epilogue_im2col_channels(int i, const T *x, const Epilogue &f, T *y, const Im2col &to, int C, int H,
                                                int W, int HP, int WP, int ldx, int ldy) {
    int c = i % (C / V) * V, at = i / (C / V), w = at % WP - to.pad, h = at / WP % HP - to.pad, image = at / (WP * HP);
    float v[V] = {};
    if (h >= 0 && h < H && w >= 0 && w < W) {
        int m = (image * H + h) * W + w;
        load<V>(x + m * ldx + c, v);
        apply_epilogue<V>(f, m, c, v);
        if (y) store<V>(y + m * ldy + c, v);
    }
    scatter_im2col<V>(to, image, h, w, c, v);
}

// The same with im2col: x (N, H, W, C) -> y (N, H, W, C), which may be null, and col as `im2col` writes it, of the channels from
// `first` on, `count` of them. One thread per position of the padded map (N, HP, WP), which begins at (-pad, -pad): it writes
// that pixel, or zeros, to all its places in col. n = N*HP*WP * C, or C / VECTOR.
extern "C" __global__ void epilogue_im2col(const T *x, const float *bias, const T *other, T *y, T *col, int n, int C, int H,
                                           int W, int Co, int Po, int ldx, int ldo, int ldy, int pre, int binary_op,
                                           float eps, float slope, int post, int HP, int WP, int first, int count, int G,
                                           int OH, int OW, int size, int sy, int sx, int dilation, int pad, int ldcol,
                                           int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    Epilogue f{bias, other, H * W, Co, Po, ldo, pre, binary_op, eps, slope, post};
    Im2col to{col, first, count, G, OH, OW, size, sy, sx, dilation, pad, ldcol};
    if (vectorized)
        epilogue_im2col_channels<VECTOR>(i, x, f, y, to, C, H, W, HP, WP, ldx, ldy);
    else
        epilogue_im2col_channels<1>(i, x, f, y, to, C, H, W, HP, WP, ldx, ldy);
}

template <int V> __device__ inline void epilogue_part(const T *x, const float *bias, T *y, int kind) {
    float v[V];
    load<V>(x, v);
    add_bias<V>(bias, v);
    activate<V>(kind, v);
    store<V>(y, v);
}

template <int V>
__device__ inline void epilogue_split_channels(int i, const T *x, const float *bias1, const float *bias2, T *y1, T *y2,
                                               int C1, int C2, int start, int ldx, int ld1, int ld2, int kind1, int kind2) {
    int C = C1 + C2, c = i % (C / V) * V, m = i / (C / V);
    if (c < C1)
        epilogue_part<V>(x + m * ldx + c, bias1 + c, y1 + m * ld1 + c, kind1);
    else
        epilogue_part<V>(x + m * ldx + start + c - C1, bias2 + c - C1, y2 + m * ld2 + c - C1, kind2);
}

// Split the output of a gemm that is two convolutions: x (pixels, ldx) -> y1 (pixels, C1) = kind1(x[:, :C1] + bias1) and
// y2 (pixels, C2) = kind2(x[:, start : start + C2] + bias2). n = pixels * (C1 + C2), or (C1 + C2) / VECTOR.
extern "C" __global__ void epilogue_split(const T *x, const float *bias1, const float *bias2, T *y1, T *y2, int n, int C1,
                                          int C2, int start, int ldx, int ld1, int ld2, int kind1, int kind2,
                                          int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        epilogue_split_channels<VECTOR>(i, x, bias1, bias2, y1, y2, C1, C2, start, ldx, ld1, ld2, kind1, kind2);
    else
        epilogue_split_channels<1>(i, x, bias1, bias2, y1, y2, C1, C2, start, ldx, ld1, ld2, kind1, kind2);
}
