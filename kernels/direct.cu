// Convolutions that are not worth a product: of few channels, and of each channel by itself. Launched by
// gpudarknet/plan/cuda/convolution.py.

#include "nhwc.cuh"

// What a number of an image counts. Bytes count v / 255, rounded as the division would be.
__device__ inline float value(float v) { return v; }
__device__ inline float value(half_t v) { return v; }
__device__ inline float value(unsigned char v) {
    const float part = 1 / 255.0f;
    float q = v * part;
    return fmaf(fmaf(-q, 255, v), part, q);
}

// How a convolution goes over its input, whose number (c, h, w) of an image lies at image * per_image + c * per_channel +
// (h * W + w) * per_pixel.
struct Windows {
    int per_image, per_channel, per_pixel, C, H, W, OH, OW, size, sy, sx, dilation, pad;
};

template <int V, class S>
__device__ inline void convolve_filters(int i, const S *x, const float *weights, const float *bias, T *y, int F,
                                        const Windows &over, int ldy, int kind, int pooled) {
    int OH = over.OH, OW = over.OW, f = i % (F / V) * V, m = i / (F / V), s = pooled ? 2 : 1;
    int row = m / OW % OH * s, column = m % OW * s;
    float best[V], sum[V];
#pragma unroll
    for (int j = 0; j < V; j++) best[j] = MINUS_INFINITY;
    x += m / (OW * OH) * over.per_image;
    for (int k = 0; k < s * s; k++) {
        int top = (row + k / 2) * over.sy - over.pad, left = (column + k % 2) * over.sx - over.pad;
        const float *w = weights + f;
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] = 0;
        for (int p = 0; p < over.size; p++)
            for (int q = 0; q < over.size; q++, w += over.C * F) {
                int h = top + p * over.dilation, v = left + q * over.dilation;
                if (h < 0 || h >= over.H || v < 0 || v >= over.W) continue;
                const S *pixel = x + (h * over.W + v) * over.per_pixel;
                for (int c = 0; c < over.C; c++) {
                    float here = value(pixel[c * over.per_channel]), factors[V];
                    load<V>(w + c * F, factors);
#pragma unroll
                    for (int j = 0; j < V; j++) sum[j] += here * factors[j];
                }
            }
        keep_larger<V>(best, sum);
    }
    add_bias<V>(bias + f, best);
    activate<V>(kind, best);
    store<V>(y + m * ldy + f, best);
}

template <class S>
__device__ inline void convolve_each(const S *x, const float *weights, const float *bias, T *y, int n, int F, const Windows &over,
                                     int ldy, int kind, int pooled, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        convolve_filters<WIDE>(i, x, weights, bias, y, F, over, ldy, kind, pooled);
    else
        convolve_filters<1>(i, x, weights, bias, y, F, over, ldy, kind, pooled);
}

// Convolve a map of few channels, such as an image, add the bias, activate: x (N, H, W, C), which lies as Windows says, weights
// (size, size, C, F) -> y (N, OH, OW, F). With `pooled`, each pixel of y is the maximum of a 2 x 2 block of the convolution's.
// n = N*OH*OW * F, or F / WIDE.
extern "C" __global__ void convolve_few(const T *x, const float *weights, const float *bias, T *y, int n, int F, int per_image,
                                        int per_channel, int per_pixel, int C, int H, int W, int OH, int OW, int size, int sy,
                                        int sx, int dilation, int pad, int ldy, int kind, int pooled, int wide) {
    Windows over{per_image, per_channel, per_pixel, C, H, W, OH, OW, size, sy, sx, dilation, pad};
    convolve_each(x, weights, bias, y, n, F, over, ldy, kind, pooled, wide);
}

// As `convolve_few`, straight from a caller's float32 (N, C, H, W).
extern "C" __global__ void convolve_floats(const float *x, const float *weights, const float *bias, T *y, int n, int F,
                                           int per_image, int per_channel, int per_pixel, int C, int H, int W, int OH, int OW,
                                           int size, int sy, int sx, int dilation, int pad, int ldy, int kind, int pooled,
                                           int wide) {
    Windows over{per_image, per_channel, per_pixel, C, H, W, OH, OW, size, sy, sx, dilation, pad};
    convolve_each(x, weights, bias, y, n, F, over, ldy, kind, pooled, wide);
}

// As `convolve_few`, straight from pictures (N, H, W, C), whose bytes count v / 255.
extern "C" __global__ void convolve_bytes(const unsigned char *x, const float *weights, const float *bias, T *y, int n, int F,
                                          int per_image, int per_channel, int per_pixel, int C, int H, int W, int OH, int OW,
                                          int size, int sy, int sx, int dilation, int pad, int ldy, int kind, int pooled,
                                          int wide) {
    Windows over{per_image, per_channel, per_pixel, C, H, W, OH, OW, size, sy, sx, dilation, pad};
    convolve_each(x, weights, bias, y, n, F, over, ldy, kind, pooled, wide);
}

template <int V>
__device__ inline void channelwise(int i, const T *x, const T *weights, T *y, int C, int H, int W, int OH, int OW, int size,
                                   int sy, int sx, int dilation, int pad, int ldx, int ldy) {
    int c = i % (C / V) * V, m = i / (C / V), top = m / OW % OH * sy - pad, left = m % OW * sx - pad;
    float sum[V] = {}, v[V], w[V];
    for (int p = 0; p < size; p++)
        for (int q = 0; q < size; q++) {
            int row = top + p * dilation, column = left + q * dilation;
            if (row < 0 || row >= H || column < 0 || column >= W) continue;
            load<V>(x + ((m / (OW * OH) * H + row) * W + column) * ldx + c, v);
            load<V>(weights + (p * size + q) * C + c, w);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += v[k] * w[k];
        }
    store<V>(y + m * ldy + c, sum);
}

// Convolve every channel with a kernel of its own: x (N, H, W, C), weights (size, size, C) -> y (N, OH, OW, C).
// n = N*OH*OW * C, or C / WIDE.
extern "C" __global__ void depthwise(const T *x, const T *weights, T *y, int n, int C, int H, int W, int OH, int OW, int size,
                                     int sy, int sx, int dilation, int pad, int ldx, int ldy, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        channelwise<WIDE>(i, x, weights, y, C, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldy);
    else
        channelwise<1>(i, x, weights, y, C, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldy);
}
