// What is done to a step's result in one pass: bias, activation, a join, and the patches of the next convolution.
// Launched by gpudarknet/plan/.

#include "nhwc.cuh"

template <int V> __device__ inline void finish_channels(int i, const T *x, const Finish &f, T *y, int C, int ldx, int ldy) {
    int c = i % (C / V) * V, m = i / (C / V);
    float v[V];
    load<V>(x + m * ldx + c, v);
    finish_values<V>(f, m, c, v);
    store<V>(y + m * ldy + c, v);
}

// Finish a step: x (N, P, C) -> y (N, P, C) = after(join(before(x + bias), other)); x may be y. bias (C) may be null. join 1
// adds other, 2 adds it and the SORT term sqrt(max(R(a) R(b), 0) + eps), R(x) = x where x > 0, else slope * x, 3 multiplies
// by it; other is (N, Po, Co) with Po = P or 1, Co = C or 1. n = N*P * C, or C / WIDE.
extern "C" __global__ void finish(const T *x, const float *bias, const T *other, T *y, int n, int C, int P, int Co, int Po,
                                  int ldx, int ldo, int ldy, int before, int join, float eps, float slope, int after, int wide) {
    int i = thread_index();
    if (i >= n) return;
    Finish f{bias, other, P, Co, Po, ldo, before, join, eps, slope, after};
    if (wide)
        finish_channels<WIDE>(i, x, f, y, C, ldx, ldy);
    else
        finish_channels<1>(i, x, f, y, C, ldx, ldy);
}

template <int V>
__device__ inline void finish_and_put(int i, const T *x, const Finish &f, T *y, const Patches &to, int C, int H, int W, int HP,
                                      int WP, int ldx, int ldy) {
    int c = i % (C / V) * V, at = i / (C / V), w = at % WP - to.pad, h = at / WP % HP - to.pad, image = at / (WP * HP);
    float v[V] = {};
    if (h >= 0 && h < H && w >= 0 && w < W) {
        int m = (image * H + h) * W + w;
        load<V>(x + m * ldx + c, v);
        finish_values<V>(f, m, c, v);
        if (y) store<V>(y + m * ldy + c, v);
    }
    put<V>(to, image, h, w, c, v);
}

// Finish a step as `finish` does, and write the patches that the next convolution reads: x (N, H, W, C) -> y (N, H, W, C), which
// may be null, and col as `im2col` lays it out. There is a thread for each place of the map with its border, (N, HP, WP),
// which begins at (-pad, -pad): it writes that pixel, or zeros, into all patches that hold it; patches are of the channels from
// `first` on, `count` of them. n = N*HP*WP * C, or C / WIDE.
extern "C" __global__ void finish_patches(const T *x, const float *bias, const T *other, T *y, T *col, int n, int C, int H, int W,
                                          int Co, int Po, int ldx, int ldo, int ldy, int before, int join, float eps, float slope,
                                          int after, int HP, int WP, int first, int count, int G, int OH, int OW, int size, int sy,
                                          int sx, int dilation, int pad, int ldcol, int wide) {
    int i = thread_index();
    if (i >= n) return;
    Finish f{bias, other, H * W, Co, Po, ldo, before, join, eps, slope, after};
    Patches to{col, first, count, G, OH, OW, size, sy, sx, dilation, pad, ldcol};
    if (wide)
        finish_and_put<WIDE>(i, x, f, y, to, C, H, W, HP, WP, ldx, ldy);
    else
        finish_and_put<1>(i, x, f, y, to, C, H, W, HP, WP, ldx, ldy);
}

template <int V> __device__ inline void finish_part(const T *x, const float *bias, T *y, int kind) {
    float v[V];
    load<V>(x, v);
    add_bias<V>(bias, v);
    activate<V>(kind, v);
    store<V>(y, v);
}

template <int V>
__device__ inline void finish_either(int i, const T *x, const float *bias1, const float *bias2, T *y1, T *y2, int C1, int C2,
                                     int start, int ldx, int ld1, int ld2, int kind1, int kind2) {
    int C = C1 + C2, c = i % (C / V) * V, m = i / (C / V);
    if (c < C1)
        finish_part<V>(x + m * ldx + c, bias1 + c, y1 + m * ld1 + c, kind1);
    else
        finish_part<V>(x + m * ldx + start + c - C1, bias2 + c - C1, y2 + m * ld2 + c - C1, kind2);
}

// Finish two convolutions that one gemm has done: x (pixels, ldx) -> y1 (pixels, C1) = kind1(x[:, :C1] + bias1) and
// y2 (pixels, C2) = kind2(x[:, start : start + C2] + bias2). n = pixels * (C1 + C2), or (C1 + C2) / WIDE.
extern "C" __global__ void finish_two(const T *x, const float *bias1, const float *bias2, T *y1, T *y2, int n, int C1, int C2,
                                      int start, int ldx, int ld1, int ld2, int kind1, int kind2, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        finish_either<WIDE>(i, x, bias1, bias2, y1, y2, C1, C2, start, ldx, ld1, ld2, kind1, kind2);
    else
        finish_either<1>(i, x, bias1, bias2, y1, y2, C1, C2, start, ldx, ld1, ld2, kind1, kind2);
}
