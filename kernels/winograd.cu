// Input and output transforms of Winograd's F(2 x 2, 3 x 3). Launched by gpudarknet/plan/cuda/convolution.py.

#include "nhwc.cuh"

constexpr int TILE_VECTOR = 4;  // channels that one thread transforms: 16 values of each in registers

template <int V>
__device__ inline void transform_input_tile(int i, const T *x, T *y, int tiles, int C, int H, int W, int TH, int TW, int ldx,
                                            int ldy) {
    int c = i % (C / V) * V, t = i / (C / V), top = t / TW % TH * 2 - 1, left = t % TW * 2 - 1;
    float d[4][V], v[4][4][V];
    x += t / (TW * TH) * H * W * ldx + c;
#pragma unroll
    for (int b = 0; b < 4; b++) {
        int w = left + b;
#pragma unroll
        for (int a = 0; a < 4; a++) {
            int h = top + a;
#pragma unroll
            for (int k = 0; k < V; k++) d[a][k] = 0;
            if (h >= 0 && h < H && w >= 0 && w < W) load<V>(x + (h * W + w) * ldx, d[a]);
        }
#pragma unroll
        for (int k = 0; k < V; k++) {
            v[0][b][k] = d[0][k] - d[2][k];
            v[1][b][k] = d[1][k] + d[2][k];
            v[2][b][k] = d[2][k] - d[1][k];
            v[3][b][k] = d[1][k] - d[3][k];
        }
    }
    y += t * ldy + c;
#pragma unroll
    for (int a = 0; a < 4; a++) {
#pragma unroll
        for (int k = 0; k < V; k++) {
            d[0][k] = v[a][0][k] - v[a][2][k];
            d[1][k] = v[a][1][k] + v[a][2][k];
            d[2][k] = v[a][2][k] - v[a][1][k];
            d[3][k] = v[a][1][k] - v[a][3][k];
        }
#pragma unroll
        for (int b = 0; b < 4; b++) store<V>(y + (a * 4 + b) * tiles * ldy, d[b]);
    }
}

// Input transform: x (N, H, W, C) -> y (16, tiles, C) = B' d B, where d is the tile of 4 x 4 pixels from (2*i - 1, 2*j - 1) on, 0
// outside the map, and tiles = N*TH*TW. n = tiles * C, or C / TILE_VECTOR.
extern "C" __global__ void winograd_input_transform(const T *x, T *y, int n, int tiles, int C, int H, int W, int TH, int TW,
                                                    int ldx, int ldy, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        transform_input_tile<TILE_VECTOR>(i, x, y, tiles, C, H, W, TH, TW, ldx, ldy);
    else
        transform_input_tile<1>(i, x, y, tiles, C, H, W, TH, TW, ldx, ldy);
}

template <int V>
__device__ inline void transform_output_tile(int i, const T *x, const Epilogue &f, T *y, int tiles, int F, int OH, int OW,
                                             int TH, int TW, int ldx, int ldy, int pooled) {
    int c = i % (F / V) * V, t = i / (F / V), row = t / TW % TH * 2, column = t % TW * 2, image = t / (TW * TH);
    float v[4][V], s[2][4][V];
    x += t * ldx + c;
#pragma unroll
    for (int b = 0; b < 4; b++) {
#pragma unroll
        for (int a = 0; a < 4; a++) load<V>(x + (a * 4 + b) * tiles * ldx, v[a]);
#pragma unroll
        for (int k = 0; k < V; k++) {
            s[0][b][k] = v[0][k] + v[1][k] + v[2][k];
            s[1][b][k] = v[1][k] - v[2][k] - v[3][k];
        }
    }
#pragma unroll
    for (int a = 0; a < 2; a++)
#pragma unroll
        for (int k = 0; k < V; k++) {
            v[2 * a][k] = s[a][0][k] + s[a][1][k] + s[a][2][k];
            v[2 * a + 1][k] = s[a][1][k] - s[a][2][k] - s[a][3][k];
        }
    if (pooled) {
#pragma unroll
        for (int a = 1; a < 4; a++) max_in_place<V>(v[0], v[a]);
    }
    // Not unrolled, so that the long `apply_epilogue` is inlined once, for v[0]; the other values shift down to it.
#pragma unroll 1
    for (int a = 0; a < (pooled ? 1 : 4); a++) {
        int h = row + a / 2, w = column + a % 2, m = pooled ? t : (image * OH + h) * OW + w;
        if (pooled || (h < OH && w < OW)) {
            apply_epilogue<V>(f, m, c, v[0]);
            store<V>(y + m * ldy + c, v[0]);
        }
#pragma unroll
        for (int k = 0; k < V; k++) v[0][k] = v[1][k], v[1][k] = v[2][k], v[2][k] = v[3][k];
    }
}

// Output transform with epilogue: x (16, tiles, F) -> y (N, OH, OW, F), each tile A' x A of 2 x 2 pixels; with `pooled`
// only their maximum, y (N, TH, TW, F). n = tiles * F, or F / TILE_VECTOR.
extern "C" __global__ void winograd_output_transform(const T *x, const float *bias, const T *other, T *y, int n, int tiles,
                                                     int F, int OH, int OW, int TH, int TW, int Co, int Po, int ldx, int ldo,
                                                     int ldy, int pre, int binary_op, float eps, float slope, int post,
                                                     int pooled, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    Epilogue f{bias, other, pooled ? TH * TW : OH * OW, Co, Po, ldo, pre, binary_op, eps, slope, post};
    if (vectorized)
        transform_output_tile<TILE_VECTOR>(i, x, f, y, tiles, F, OH, OW, TH, TW, ldx, ldy, pooled);
    else
        transform_output_tile<1>(i, x, f, y, tiles, F, OH, OW, TH, TW, ldx, ldy, pooled);
}
