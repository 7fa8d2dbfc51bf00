// Gradients of pooling, upsampling and sums of NHWC maps. Launched by gpudarknet/plan/cuda/training/gradients.py.
//
// A kernel stores the gradient of an input, or adds it to what is there if `accumulate`: that of another reader of the input.

#include "nhwc.cuh"

template <int V> __device__ inline void store_gradient(T *dx, float (&v)[V], int accumulate) {
    if (accumulate) {
        float sum[V];
        load<V>(dx, sum);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] += sum[k];
    }
    store<V>(dx, v);
}

template <int V>
__device__ inline void add_channels(int i, const T *dy, T *dx, int C, float factor, int lddy, int lddx, int accumulate) {
    int c = i % (C / V) * V, m = i / (C / V);
    float v[V];
    load<V>(dy + m * lddy + c, v);
#pragma unroll
    for (int k = 0; k < V; k++) v[k] *= factor;
    store_gradient<V>(dx + m * lddx + c, v, accumulate);
}

// Gradient of a map that was copied or added: dx = factor * dy, both (M, C). n = M*C, or M*C / VECTOR.
extern "C" __global__ void copy_gradient(const T *dy, T *dx, int n, int C, float factor, int lddy, int lddx, int accumulate,
                                         int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        add_channels<VECTOR>(i, dy, dx, C, factor, lddy, lddx, accumulate);
    else
        add_channels<1>(i, dy, dx, C, factor, lddy, lddx, accumulate);
}

template <int V>
__device__ inline void maxpool_channels_gradient(int i, const T *dy, const T *x, const T *y, T *dx, int C, int H, int W, int OH, int OW,
                                                 int size, int sy, int sx, int pad_before, int lddy, int ldx, int ldy, int lddx,
                                                 int accumulate) {
    int c = i % (C / V) * V, m = i / (C / V), image = m / (H * W), h = m / W % H, w = m % W;
    float own[V], sum[V] = {}, best[V], d[V], other[V];
    x += image * H * W * ldx + c;
    load<V>(x + (h * W + w) * ldx, own);
    int reach_h = h + pad_before - size + 1, reach_w = w + pad_before - size + 1;
    int top = reach_h > 0 ? (reach_h + sy - 1) / sy : 0, left = reach_w > 0 ? (reach_w + sx - 1) / sx : 0;
    for (int oh = top; oh <= min((h + pad_before) / sy, OH - 1); oh++)
        for (int ow = left; ow <= min((w + pad_before) / sx, OW - 1); ow++) {
            int out = (image * OH + oh) * OW + ow;
            load<V>(y + out * ldy + c, best);
            bool first[V], any = false;
#pragma unroll
            for (int k = 0; k < V; k++) any |= first[k] = own[k] == best[k];
            if (!any) continue;
            int h0 = max(oh * sy - pad_before, 0), w0 = max(ow * sx - pad_before, 0), w1 = min(ow * sx - pad_before + size, W);
            for (int p = h0; p <= h; p++)
                for (int q = w0; q < (p == h ? w : w1); q++) {  // the pixels before this one
                    load<V>(x + (p * W + q) * ldx, other);
#pragma unroll
                    for (int k = 0; k < V; k++) first[k] &= other[k] != best[k];
                }
            load<V>(dy + out * lddy + c, d);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += first[k] ? d[k] : 0.0f;
        }
    store_gradient<V>(dx + m * lddx + c, sum, accumulate);
}

// Gradient of max pooling y (N, OH, OW, C) of x (N, H, W, C): each dy goes to the first pixel of its window that is the maximum. The
// first window begins at -pad_before. n = N*H*W * C, or C / VECTOR.
extern "C" __global__ void maxpool_gradient(const T *dy, const T *x, const T *y, T *dx, int n, int C, int H, int W, int OH, int OW,
                                            int size, int sy, int sx, int pad_before, int lddy, int ldx, int ldy, int lddx,
                                            int accumulate, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        maxpool_channels_gradient<VECTOR>(i, dy, x, y, dx, C, H, W, OH, OW, size, sy, sx, pad_before, lddy, ldx, ldy, lddx, accumulate);
    else
        maxpool_channels_gradient<1>(i, dy, x, y, dx, C, H, W, OH, OW, size, sy, sx, pad_before, lddy, ldx, ldy, lddx, accumulate);
}

template <int V>
__device__ inline void upsample_channels_gradient(int i, const T *dy, T *dx, int C, int H, int W, int s, float scale, int lddy, int lddx,
                                                  int accumulate) {
    int c = i % (C / V) * V, m = i / (C / V), image = m / (H * W), h = m / W % H * s, w = m % W * s;
    float sum[V] = {}, d[V];
    for (int p = 0; p < s; p++)
        for (int q = 0; q < s; q++) {
            load<V>(dy + ((image * H * s + h + p) * W * s + w + q) * lddy + c, d);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += d[k];
        }
#pragma unroll
    for (int k = 0; k < V; k++) sum[k] *= scale;
    store_gradient<V>(dx + m * lddx + c, sum, accumulate);
}

// Gradient of nearest-neighbour upsampling: dx (N, H, W, C) = scale * the sum of its s x s pixels of dy (N, H*s, W*s, C). n = N*H*W * C,
// or C / VECTOR.
extern "C" __global__ void upsample_gradient(const T *dy, T *dx, int n, int C, int H, int W, int s, float scale, int lddy, int lddx,
                                             int accumulate, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        upsample_channels_gradient<VECTOR>(i, dy, dx, C, H, W, s, scale, lddy, lddx, accumulate);
    else
        upsample_channels_gradient<1>(i, dy, dx, C, H, W, s, scale, lddy, lddx, accumulate);
}

// Gradient of global average pooling: dx (N, P, C) = dy (N, 1, C) / P. n = N*P*C.
extern "C" __global__ void avgpool_gradient(const T *dy, T *dx, int n, int C, int P, int lddy, int lddx, int accumulate) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, m = i / C;
    float v[1] = {dy[m / P * lddy + c] / P};
    store_gradient<1>(dx + m * lddx + c, v, accumulate);
}

template <int V>
__device__ inline void sort_gradient(int i, const T *dy, const T *a, const T *b, T *da, T *db, int C, float eps, float slope, int lddy,
                                     int lda, int ldb, int ldda, int lddb, int accumulate_a, int accumulate_b) {
    int c = i % (C / V) * V, m = i / (C / V);
    float d[V], p[V], q[V], to_a[V], to_b[V];
    load<V>(dy + m * lddy + c, d);
    load<V>(a + m * lda + c, p);
    load<V>(b + m * ldb + c, q);
#pragma unroll
    for (int k = 0; k < V; k++) {
        float rp = leaky(p[k], slope), rq = leaky(q[k], slope), product = rp * rq;
        float half = product > 0 ? d[k] / (2 * sqrtf(product + eps)) : 0;
        to_a[k] = d[k] + half * rq * (p[k] > 0 ? 1 : slope);
        to_b[k] = d[k] + half * rp * (q[k] > 0 ? 1 : slope);
    }
    store_gradient<V>(da + m * ldda + c, to_a, accumulate_a);
    store_gradient<V>(db + m * lddb + c, to_b, accumulate_b);
}

// Gradients da, db of y = a + b + sqrt(max(R(a) R(b), 0) + eps), all maps (M, C), as in shortcut.cu; da or db may be dy. n = M*C, or
// M*C / VECTOR.
extern "C" __global__ void sort_shortcut_gradient(const T *dy, const T *a, const T *b, T *da, T *db, int n, int C, float eps, float slope,
                                                  int lddy, int lda, int ldb, int ldda, int lddb, int accumulate_a, int accumulate_b,
                                                  int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        sort_gradient<VECTOR>(i, dy, a, b, da, db, C, eps, slope, lddy, lda, ldb, ldda, lddb, accumulate_a, accumulate_b);
    else
        sort_gradient<1>(i, dy, a, b, da, db, C, eps, slope, lddy, lda, ldb, ldda, lddb, accumulate_a, accumulate_b);
}
