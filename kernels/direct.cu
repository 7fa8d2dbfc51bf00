// Convolutions without im2col and gemm: with few input channels, and depthwise. Launched by
// gpudarknet/plan/cuda/convolution.py.

#include "nhwc.cuh"

// The geometry of a convolution. Element (c, h, w) of an image is at image * image_stride + c * channel_stride +
// (h * W + w) * pixel_stride.
struct ConvGeometry {
    int image_stride, channel_stride, pixel_stride, C, H, W, OH, OW, size, sy, sx, dilation, pad;
};

template <int V, class S>
__device__ inline void direct_filters(int i, const S *x, const float *weights, const float *bias, T *y, int F,
                                      const ConvGeometry &geometry, int ldy, int kind, int pooled) {
    int OH = geometry.OH, OW = geometry.OW, f = i % (F / V) * V, m = i / (F / V), s = pooled ? 2 : 1;
    int row = m / OW % OH * s, column = m % OW * s;
    float best[V], sum[V];
#pragma unroll
    for (int j = 0; j < V; j++) best[j] = MINUS_INFINITY;
    x += m / (OW * OH) * geometry.image_stride;
    for (int k = 0; k < s * s; k++) {
        int top = (row + k / 2) * geometry.sy - geometry.pad, left = (column + k % 2) * geometry.sx - geometry.pad;
        const float *w = weights + f;
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] = 0;
        for (int p = 0; p < geometry.size; p++)
            for (int q = 0; q < geometry.size; q++, w += geometry.C * F) {
                int h = top + p * geometry.dilation, v = left + q * geometry.dilation;
                if (h < 0 || h >= geometry.H || v < 0 || v >= geometry.W) continue;
                const S *pixel = x + (h * geometry.W + v) * geometry.pixel_stride;
                for (int c = 0; c < geometry.C; c++) {
                    float here = value(pixel[c * geometry.channel_stride]), factors[V];
                    load<V>(w + c * F, factors);
#pragma unroll
                    for (int j = 0; j < V; j++) sum[j] += here * factors[j];
                }
            }
        max_in_place<V>(best, sum);
    }
    add_bias<V>(bias + f, best);
    activate<V>(kind, best);
    store<V>(y + m * ldy + f, best);
}

template <class S>
__device__ inline void direct_convolution(const S *x, const float *weights, const float *bias, T *y, int n, int F,
                                          const ConvGeometry &geometry, int ldy, int kind, int pooled, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        direct_filters<VECTOR>(i, x, weights, bias, y, F, geometry, ldy, kind, pooled);
    else
        direct_filters<1>(i, x, weights, bias, y, F, geometry, ldy, kind, pooled);
}

// Direct convolution with few input channels, bias and activation: x in the layout of ConvGeometry, weights (size, size, C, F)
// -> y (N, OH, OW, F). With `pooled`, each pixel of y is the maximum of a 2 x 2 block of the convolution.
// n = N*OH*OW * F, or F / VECTOR.
extern "C" __global__ void convolve(const T *x, const float *weights, const float *bias, T *y, int n, int F,
                                    int image_stride, int channel_stride, int pixel_stride, int C, int H, int W, int OH,
                                    int OW, int size, int sy, int sx, int dilation, int pad, int ldy, int kind, int pooled,
                                    int vectorized) {
    ConvGeometry geometry{image_stride, channel_stride, pixel_stride, C, H, W, OH, OW, size, sy, sx, dilation, pad};
    direct_convolution(x, weights, bias, y, n, F, geometry, ldy, kind, pooled, vectorized);
}

// The same on the caller's float32 (N, C, H, W).
extern "C" __global__ void convolve_float32(const float *x, const float *weights, const float *bias, T *y, int n, int F,
                                            int image_stride, int channel_stride, int pixel_stride, int C, int H, int W,
                                            int OH, int OW, int size, int sy, int sx, int dilation, int pad, int ldy,
                                            int kind, int pooled, int vectorized) {
    ConvGeometry geometry{image_stride, channel_stride, pixel_stride, C, H, W, OH, OW, size, sy, sx, dilation, pad};
    direct_convolution(x, weights, bias, y, n, F, geometry, ldy, kind, pooled, vectorized);
}

// The same on uint8 images (N, H, W, C), scaled to 0..1.
extern "C" __global__ void convolve_uint8(const unsigned char *x, const float *weights, const float *bias, T *y, int n,
                                          int F, int image_stride, int channel_stride, int pixel_stride, int C, int H, int W,
                                          int OH, int OW, int size, int sy, int sx, int dilation, int pad, int ldy, int kind,
                                          int pooled, int vectorized) {
    ConvGeometry geometry{image_stride, channel_stride, pixel_stride, C, H, W, OH, OW, size, sy, sx, dilation, pad};
    direct_convolution(x, weights, bias, y, n, F, geometry, ldy, kind, pooled, vectorized);
}

template <int V>
__device__ inline void depthwise_channels(int i, const T *x, const T *weights, T *y, int C, int H, int W, int OH, int OW,
                                          int size, int sy, int sx, int dilation, int pad, int ldx, int ldy) {
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

// Depthwise convolution: x (N, H, W, C), weights (size, size, C) -> y (N, OH, OW, C). n = N*OH*OW * C, or C / VECTOR.
extern "C" __global__ void depthwise(const T *x, const T *weights, T *y, int n, int C, int H, int W, int OH, int OW,
                                     int size, int sy, int sx, int dilation, int pad, int ldx, int ldy, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        depthwise_channels<VECTOR>(i, x, weights, y, C, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldy);
    else
        depthwise_channels<1>(i, x, weights, y, C, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldy);
}
