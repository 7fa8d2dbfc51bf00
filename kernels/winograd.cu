// Winograd's F(2 x 2, 3 x 3): what comes before and after its products. Launched by gpudarknet/plan/cuda/convolution.py.

#include "nhwc.cuh"

constexpr int QUAD = 4;  // channels of a tile that one thread transforms: its 16 numbers of each stay in registers

template <int V>
__device__ inline void cut_tile(int i, const T *x, T *y, int tiles, int C, int H, int W, int TH, int TW, int ldx, int ldy) {
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

// Cut a map into tiles for Winograd's F(2 x 2, 3 x 3), and transform them: x (N, H, W, C) -> y (16, tiles, C) = B' d B, where d is
// the 4 x 4 pixels from (2*i - 1, 2*j - 1) on, 0 outside, and tiles = N*TH*TW. n = tiles * C, or C / QUAD.
extern "C" __global__ void winograd_cut(const T *x, T *y, int n, int tiles, int C, int H, int W, int TH, int TW, int ldx, int ldy,
                                        int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        cut_tile<QUAD>(i, x, y, tiles, C, H, W, TH, TW, ldx, ldy);
    else
        cut_tile<1>(i, x, y, tiles, C, H, W, TH, TW, ldx, ldy);
}

template <int V>
__device__ inline void join_tile(int i, const T *x, const Finish &f, T *y, int tiles, int F, int OH, int OW, int TH, int TW,
                                 int ldx, int ldy, int pooled) {
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
        for (int a = 1; a < 4; a++) keep_larger<V>(v[0], v[a]);
    }
    // A loop, so that the long `finish_values` is there once. It works on v[0], and the others move up.
#pragma unroll 1
    for (int a = 0; a < (pooled ? 1 : 4); a++) {
        int h = row + a / 2, w = column + a % 2, m = pooled ? t : (image * OH + h) * OW + w;
        if (pooled || (h < OH && w < OW)) {
            finish_values<V>(f, m, c, v[0]);
            store<V>(y + m * ldy + c, v[0]);
        }
#pragma unroll
        for (int k = 0; k < V; k++) v[0][k] = v[1][k], v[1][k] = v[2][k], v[2][k] = v[3][k];
    }
}

// Transform Winograd's products back, and finish them as `finish` does: x (16, tiles, F) -> y (N, OH, OW, F), each tile A' x A of
// 2 x 2 pixels; with `pooled` their maximum, y (N, TH, TW, F). n = tiles * F, or F / QUAD.
extern "C" __global__ void winograd_join(const T *x, const float *bias, const T *other, T *y, int n, int tiles, int F, int OH,
                                         int OW, int TH, int TW, int Co, int Po, int ldx, int ldo, int ldy, int before, int join, float eps,
                                         float slope, int after, int pooled, int wide) {
    int i = thread_index();
    if (i >= n) return;
    Finish f{bias, other, pooled ? TH * TW : OH * OW, Co, Po, ldo, before, join, eps, slope, after};
    if (wide)
        join_tile<QUAD>(i, x, f, y, tiles, F, OH, OW, TH, TW, ldx, ldy, pooled);
    else
        join_tile<1>(i, x, f, y, tiles, F, OH, OW, TH, TW, ldx, ldy, pooled);
}
