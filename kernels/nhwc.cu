// Layout conversions, im2col, pooling, upsampling and YOLO heads on NHWC maps. Launched by gpudarknet/plan/cuda/.

#include "nhwc.cuh"

// NCHW to NHWC: x (N, C, P) float32 -> y (N, P, C). One thread per element: n = N*P*C.
extern "C" __global__ void from_nchw(const float *x, T *y, int n, int C, int P, int ld) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C;
    y[pixel * ld + c] = x[(pixel / P * C + c) * P + pixel % P];
}

// NHWC to NCHW: x (N, P, C) -> y (N, C, P) float32. A block of 256 threads transposes a tile of 32 x 32; blocks are ordered
// along C first, then along P, then by image.
extern "C" __global__ void to_nchw(const T *x, float *y, int C, int P, int ld) {
    __shared__ float tile[32][33];  // 33: the elements of a column are in different banks
    int across = (C + 31) / 32, down = (P + 31) / 32, image = blockIdx.x / (across * down);
    int c0 = blockIdx.x % across * 32, p0 = blockIdx.x / across % down * 32, lane = threadIdx.x % 32, row = threadIdx.x / 32;
    for (int r = row; r < 32; r += 8)
        if (p0 + r < P && c0 + lane < C) tile[r][lane] = x[(image * P + p0 + r) * ld + c0 + lane];
    __syncthreads();
    for (int r = row; r < 32; r += 8)
        if (c0 + r < C && p0 + lane < P) y[(image * C + c0 + r) * P + p0 + lane] = tile[lane][r];
}

// Remove the padding between pixels: x (N, P, C) -> y (N, P, C) float32. n = N*P*C.
extern "C" __global__ void pack_rows(const T *x, float *y, int n, int C, int ld) {
    int i = thread_index();
    if (i < n) y[i] = x[i / C * ld + i % C];
}

template <int V>
__device__ inline void im2col_row(int i, const T *x, T *col, int first, int C, int G, int H, int W, int OH, int OW, int size,
                                  int sy, int sx, int dilation, int pad, int ldx, int ldcol) {
    int c = i % (C / V) * V, p = i / (C / V) % size, row = i / (C / V) / size, m = first + row;
    int h = m / OW % OH * sy - pad + p * dilation, w = m % OW * sx - pad;
    x += (m / (OW * OH) * H + h) * W * ldx + c;
    col += row * ldcol + (c / G * size + p) * size * G + c % G;
    for (int q = 0; q < size; q++, w += dilation, col += G) {
        float v[V] = {};
        if (h >= 0 && h < H && w >= 0 && w < W) load<V>(x + w * ldx, v);
        store<V>(col, v);
    }
}

// im2col: x (N, H, W, C) -> col (rows, C/G, size, size, G), the rows of the output pixels from `first` on of (N, OH, OW).
// col[r, g, p, q, c] = x[image, i*sy - pad + p*dilation, j*sx - pad + q*dilation, g*G + c], 0 outside.
// ldcol: elements from one row to the next. One thread per kernel row p: n = rows * size * C, or C / VECTOR.
extern "C" __global__ void im2col(const T *x, T *col, int n, int first, int C, int G, int H, int W, int OH, int OW, int size,
                                  int sy, int sx, int dilation, int pad, int ldx, int ldcol, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        im2col_row<VECTOR>(i, x, col, first, C, G, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldcol);
    else
        im2col_row<1>(i, x, col, first, C, G, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldcol);
}

// Add maps of different shapes: a (N, P, C), b (N, Pb, Cb) -> y (N, P, C); binary_op is ADD or SORT. Elements are paired in NCHW
// order as far as both maps have any; the remaining elements of a are copied. n = N*P*C.
extern "C" __global__ void add_mismatched(const T *a, const T *b, T *y, int n, int C, int P, int Cb, int Pb, int lda,
                                          int ldb, int ldy, int binary_op, float eps, float slope) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, m = i / C, r = c * P + m % P;
    float v = a[m * lda + c];
    if (r < Cb * Pb) {
        float o = b[(m / P * Pb + r % Pb) * ldb + r / Pb];
        v += o + (binary_op == SORT ? sqrtf(fmaxf(leaky(v, slope) * leaky(o, slope), 0) + eps) : 0);
    }
    y[m * ldy + c] = v;
}

template <int V>
__device__ inline void maxpool_channels(int i, const T *x, T *y, int C, int H, int W, int OH, int OW, int size, int sy,
                                        int sx, int pad_before, int ldx, int ldy) {
    int c = i % (C / V) * V, m = i / (C / V), top = m / OW % OH * sy - pad_before, left = m % OW * sx - pad_before;
    float best[V], v[V];
#pragma unroll
    for (int k = 0; k < V; k++) best[k] = MINUS_INFINITY;
    for (int h = max(top, 0); h < min(top + size, H); h++)
        for (int w = max(left, 0); w < min(left + size, W); w++) {
            load<V>(x + ((m / (OW * OH) * H + h) * W + w) * ldx + c, v);
            max_in_place<V>(best, v);
        }
    store<V>(y + m * ldy + c, best);
}

// Max pooling: x (N, H, W, C) -> y (N, OH, OW, C); positions outside x are ignored. The first window begins at -pad_before.
// n = N*OH*OW * C, or C / VECTOR.
extern "C" __global__ void maxpool(const T *x, T *y, int n, int C, int H, int W, int OH, int OW, int size, int sy, int sx,
                                   int pad_before, int ldx, int ldy, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        maxpool_channels<VECTOR>(i, x, y, C, H, W, OH, OW, size, sy, sx, pad_before, ldx, ldy);
    else
        maxpool_channels<1>(i, x, y, C, H, W, OH, OW, size, sy, sx, pad_before, ldx, ldy);
}

template <int V>
__device__ inline void upsample_channels(int i, const T *x, T *y, int C, int H, int W, int s, float scale, int ldx,
                                         int ldy) {
    int c = i % (C / V) * V, m = i / (C / V), w = m % (W * s) / s, h = m / (W * s) % (H * s) / s, image = m / (W * s * H * s);
    float v[V];
    load<V>(x + ((image * H + h) * W + w) * ldx + c, v);
#pragma unroll
    for (int k = 0; k < V; k++) v[k] *= scale;
    store<V>(y + m * ldy + c, v);
}

// Nearest-neighbour upsampling, times scale: x (N, H, W, C) -> y (N, H*s, W*s, C). n = N*H*s*W*s * C, or C / VECTOR.
extern "C" __global__ void upsample(const T *x, T *y, int n, int C, int H, int W, int s, float scale, int ldx, int ldy,
                                    int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        upsample_channels<VECTOR>(i, x, y, C, H, W, s, scale, ldx, ldy);
    else
        upsample_channels<1>(i, x, y, C, H, W, s, scale, ldx, ldy);
}

// Activate a YOLO map x (N, P, A*E) + bias (A*E, may be null) -> y. n = N*P*C, C = A*E.
extern "C" __global__ void yolo(const T *x, const float *bias, T *y, int n, int C, int E, float scale_x_y, int new_coords,
                                int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C;
    float v = x[pixel * ldx + c];
    y[pixel * ldy + c] = yolo_activation(bias ? v + bias[c] : v, c, E, scale_x_y, new_coords);
}
