// The steps of a plan on maps that lie pixel by pixel. Launched by gpudarknet/plan/cuda.py.
//
// A map (N, H, W, C) has its channels side by side and `ld` numbers from one pixel to the next: maps that are joined lie in
// one larger map, each with its channels and that map's ld. P = H*W. With `wide`, every thread does the 16 bytes of channels
// that one access moves, where Python has seen that pointers, C and ld allow it; else it does one channel.

constexpr int WIDE = 16 / sizeof(T);

template <int V, class S> struct alignas(V * sizeof(S) < 16 ? V * sizeof(S) : 16) Pack { S v[V]; };

template <int V, class S> __device__ inline void load(const S *p, float (&v)[V]) {
    Pack<V, S> pack = *(const Pack<V, S> *)p;
#pragma unroll
    for (int k = 0; k < V; k++) v[k] = pack.v[k];
}

template <int V> __device__ inline void store(T *p, const float (&v)[V]) {
    Pack<V, T> pack;
#pragma unroll
    for (int k = 0; k < V; k++) pack.v[k] = v[k];
    *(Pack<V, T> *)p = pack;
}

template <int V> __device__ inline void add_bias(const float *bias, float (&v)[V]) {
    float b[V];
    load<V>(bias, b);
#pragma unroll
    for (int k = 0; k < V; k++) v[k] += b[k];
}

// Put an image into the plan's form: x (N, C, P) float32 -> y (N, P, C). One thread per element: n = N*P*C.
extern "C" __global__ void from_nchw(const float *x, T *y, int n, int C, int P, int ld) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C;
    y[pixel * ld + c] = x[(pixel / P * C + c) * P + pixel % P];
}

// Give a map the form of results: x (N, P, C) -> y (N, C, P) float32. A block of 256 threads turns a tile of 32 x 32;
// tiles along C first, then along P, then images.
extern "C" __global__ void to_nchw(const T *x, float *y, int C, int P, int ld) {
    __shared__ float tile[32][33];  // 33: a column lies in 32 different banks
    int across = (C + 31) / 32, down = (P + 31) / 32, image = blockIdx.x / (across * down);
    int c0 = blockIdx.x % across * 32, p0 = blockIdx.x / across % down * 32, lane = threadIdx.x % 32, row = threadIdx.x / 32;
    for (int r = row; r < 32; r += 8)
        if (p0 + r < P && c0 + lane < C) tile[r][lane] = x[(image * P + p0 + r) * ld + c0 + lane];
    __syncthreads();
    for (int r = row; r < 32; r += 8)
        if (c0 + r < C && p0 + lane < P) y[(image * C + c0 + r) * P + p0 + lane] = tile[lane][r];
}

// Close the gaps between pixels: x (N, P, C) -> y (N, P, C) float32. n = N*P*C.
extern "C" __global__ void to_rows(const T *x, float *y, int n, int C, int ld) {
    int i = thread_index();
    if (i < n) y[i] = x[i / C * ld + i % C];
}

template <int V>
__device__ inline void patch_row(int i, const T *x, T *col, int first, int C, int G, int H, int W, int OH, int OW, int size,
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

// Lay out patches: x (N, H, W, C) -> col (rows, C/G, size, size, G), the patches of the pixels from `first` on of (N, OH, OW).
// col[r, g, p, q, c] = x[image, i*sy - pad + p*dilation, j*sx - pad + q*dilation, g*G + c], 0 outside.
// ldcol: numbers from one patch to the next. One thread per row p of a patch: n = rows * size * C, or C / WIDE.
extern "C" __global__ void im2col(const T *x, T *col, int n, int first, int C, int G, int H, int W, int OH, int OW, int size,
                                  int sy, int sx, int dilation, int pad, int ldx, int ldcol, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        patch_row<WIDE>(i, x, col, first, C, G, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldcol);
    else
        patch_row<1>(i, x, col, first, C, G, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldcol);
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

// Only these functions are there in 16-byte form; Python takes the others one by one.
template <int V> __device__ inline void activate(int kind, float (&v)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++) {
        if (V == 1)
            v[k] = function(kind, v[k]);
        else if (kind == LEAKY)
            v[k] = function(LEAKY, v[k]);
        else if (kind == RELU)
            v[k] = function(RELU, v[k]);
        else if (kind == MISH)
            v[k] = function(MISH, v[k]);
        else if (kind == SWISH)
            v[k] = function(SWISH, v[k]);
        else if (kind == LOGISTIC)
            v[k] = function(LOGISTIC, v[k]);
    }
}

__device__ inline float rectify(float x, float slope) { return x > 0 ? x : slope * x; }

enum Join { NOTHING, ADD, SORT, MULTIPLY };

// What is done to a result: after(join(before(v + bias), other)). P: pixels of an image of the result, Po: of `other`.
struct Finish {
    const float *bias;
    const T *other;
    int P, Co, Po, ldo, before, join;
    float eps, slope;
    int after;
};

// Finish the channels c on of pixel m.
template <int V> __device__ inline void finish_values(const Finish &f, int m, int c, float (&v)[V]) {
    float o[V];
    if (f.bias) add_bias<V>(f.bias + c, v);
    activate<V>(f.before, v);
    if (f.join != NOTHING) {
        const T *other = f.other + (f.Po == 1 ? m / f.P : m) * f.ldo;
        if (f.Co == 1) {
#pragma unroll
            for (int k = 0; k < V; k++) o[k] = other[0];
        } else {
            load<V>(other + c, o);
        }
#pragma unroll
        for (int k = 0; k < V; k++) {
            if (f.join == ADD) v[k] += o[k];
            if (f.join == SORT) v[k] += o[k] + sqrtf(fmaxf(rectify(v[k], f.slope) * rectify(o[k], f.slope), 0) + f.eps);
            if (f.join == MULTIPLY) v[k] *= o[k];
        }
    }
    activate<V>(f.after, v);
}

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

// The patches of a map's channels from `first` on, `count` of them, as `im2col` lays them out: col (N, OH, OW, count/G, size, size,
// G), ld numbers from one to the next.
struct Patches {
    T *col;
    int first, count, G, OH, OW, size, sy, sx, dilation, pad, ld;
};

// Put pixel (h, w), which may lie outside the map, to every place that it has in the patches of its image.
template <int V> __device__ inline void put(const Patches &to, int image, int h, int w, int c, const float (&v)[V]) {
    c -= to.first;
    if (c < 0 || c >= to.count) return;
    T *col = to.col + c / to.G * to.size * to.size * to.G + c % to.G;
    for (int p = 0; p < to.size; p++) {
        int i = h + to.pad - p * to.dilation;
        if (i < 0 || i % to.sy || i / to.sy >= to.OH) continue;
        for (int q = 0; q < to.size; q++) {
            int j = w + to.pad - q * to.dilation;
            if (j < 0 || j % to.sx || j / to.sx >= to.OW) continue;
            store<V>(col + ((image * to.OH + i / to.sy) * to.OW + j / to.sx) * to.ld + (p * to.size + q) * to.G, v);
        }
    }
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

// Join maps of different shape: a (N, P, C), b (N, Pb, Cb) -> y (N, P, C), join 1 or 2 as above. Their numbers are paired in
// the memory order of (C, P), as far as both have any; numbers of a that b lacks are copied. n = N*P*C.
extern "C" __global__ void join_unlike(const T *a, const T *b, T *y, int n, int C, int P, int Cb, int Pb, int lda, int ldb,
                                       int ldy, int join, float eps, float slope) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, m = i / C, r = c * P + m % P;
    float v = a[m * lda + c];
    if (r < Cb * Pb) {
        float o = b[(m / P * Pb + r % Pb) * ldb + r / Pb];
        v += o + (join == SORT ? sqrtf(fmaxf(rectify(v, slope) * rectify(o, slope), 0) + eps) : 0);
    }
    y[m * ldy + c] = v;
}

template <int V> __device__ inline void keep_larger(float (&best)[V], const float (&v)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++)
        if (v[k] > best[k] || v[k] != v[k]) best[k] = v[k];  // a NaN stays
}

// Return, in best, the channels c on of pixel m of a map with OW columns: the maximum of its block of x, finished.
template <int V>
__device__ inline void finish_block(const T *x, const float *bias, int m, int c, int OW, int ldx, int kind, float (&best)[V]) {
    int corner = (m / OW * 2 * OW + m % OW) * 2;
    float v[V];
    load<V>(x + corner * ldx + c, best);
#pragma unroll
    for (int tap = 1; tap < 4; tap++) {
        load<V>(x + (corner + tap / 2 * 2 * OW + tap % 2) * ldx + c, v);
        keep_larger<V>(best, v);
    }
    add_bias<V>(bias + c, best);
    activate<V>(kind, best);
}

template <int V>
__device__ inline void finish_block_channels(int i, const T *x, const float *bias, T *y, int C, int OW, int ldx, int ldy,
                                             int kind) {
    int c = i % (C / V) * V, m = i / (C / V);
    float best[V];
    finish_block<V>(x, bias, m, c, OW, ldx, kind, best);
    store<V>(y + m * ldy + c, best);
}

// Keep the maximum of each 2 x 2 block, then add the bias and activate: x (N, 2*OH, 2*OW, C) -> y (N, OH, OW, C).
// n = N*OH*OW * C, or C / WIDE.
extern "C" __global__ void finish_blocks(const T *x, const float *bias, T *y, int n, int C, int OW, int ldx, int ldy, int kind,
                                         int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        finish_block_channels<WIDE>(i, x, bias, y, C, OW, ldx, ldy, kind);
    else
        finish_block_channels<1>(i, x, bias, y, C, OW, ldx, ldy, kind);
}

template <int V>
__device__ inline void finish_block_and_put(int i, const T *x, const float *bias, T *y, const Patches &to, int C, int H, int W,
                                            int HP, int WP, int ldx, int ldy, int kind) {
    int c = i % (C / V) * V, at = i / (C / V), w = at % WP - to.pad, h = at / WP % HP - to.pad, image = at / (WP * HP);
    float v[V] = {};
    if (h >= 0 && h < H && w >= 0 && w < W) {
        int m = (image * H + h) * W + w;
        finish_block<V>(x, bias, m, c, W, ldx, kind, v);
        if (y) store<V>(y + m * ldy + c, v);
    }
    put<V>(to, image, h, w, c, v);
}

// Both at once, as `finish_patches` does for `finish`: x (N, 2*H, 2*W, C) -> y (N, H, W, C), which may be null, and col.
extern "C" __global__ void finish_blocks_patches(const T *x, const float *bias, T *y, T *col, int n, int C, int H, int W, int ldx,
                                                 int ldy, int kind, int HP, int WP, int first, int count, int G, int OH, int OW,
                                                 int size, int sy, int sx, int dilation, int pad, int ldcol, int wide) {
    int i = thread_index();
    if (i >= n) return;
    Patches to{col, first, count, G, OH, OW, size, sy, sx, dilation, pad, ldcol};
    if (wide)
        finish_block_and_put<WIDE>(i, x, bias, y, to, C, H, W, HP, WP, ldx, ldy, kind);
    else
        finish_block_and_put<1>(i, x, bias, y, to, C, H, W, HP, WP, ldx, ldy, kind);
}

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
        finish_values<V>(f, t, c, v[0]);
        store<V>(y + t * ldy + c, v[0]);
        return;
    }
#pragma unroll
    for (int a = 0; a < 4; a++) {
        int h = row + a / 2, w = column + a % 2, m = (image * OH + h) * OW + w;
        if (h >= OH || w >= OW) continue;
        finish_values<V>(f, m, c, v[a]);
        store<V>(y + m * ldy + c, v[a]);
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
__device__ inline void largest(int i, const T *x, T *y, int C, int H, int W, int OH, int OW, int size, int sy, int sx, int before,
                               int ldx, int ldy) {
    int c = i % (C / V) * V, m = i / (C / V), top = m / OW % OH * sy - before, left = m % OW * sx - before;
    float best[V], v[V];
#pragma unroll
    for (int k = 0; k < V; k++) best[k] = MINUS_INFINITY;
    for (int h = max(top, 0); h < min(top + size, H); h++)
        for (int w = max(left, 0); w < min(left + size, W); w++) {
            load<V>(x + ((m / (OW * OH) * H + h) * W + w) * ldx + c, v);
            keep_larger<V>(best, v);
        }
    store<V>(y + m * ldy + c, best);
}

// Take the maximum of each window: x (N, H, W, C) -> y (N, OH, OW, C); positions outside x do not count. The first window
// begins at -before. n = N*OH*OW * C, or C / WIDE.
extern "C" __global__ void maxpool(const T *x, T *y, int n, int C, int H, int W, int OH, int OW, int size, int sy, int sx,
                                   int before, int ldx, int ldy, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        largest<WIDE>(i, x, y, C, H, W, OH, OW, size, sy, sx, before, ldx, ldy);
    else
        largest<1>(i, x, y, C, H, W, OH, OW, size, sy, sx, before, ldx, ldy);
}

template <int V>
__device__ inline void repeat(int i, const T *x, T *y, int C, int H, int W, int s, float scale, int ldx, int ldy) {
    int c = i % (C / V) * V, m = i / (C / V), w = m % (W * s) / s, h = m / (W * s) % (H * s) / s, image = m / (W * s * H * s);
    float v[V];
    load<V>(x + ((image * H + h) * W + w) * ldx + c, v);
#pragma unroll
    for (int k = 0; k < V; k++) v[k] *= scale;
    store<V>(y + m * ldy + c, v);
}

// Repeat every pixel s x s times and multiply by scale: x (N, H, W, C) -> y (N, H*s, W*s, C). n = N*H*s*W*s * C, or C / WIDE.
extern "C" __global__ void upsample(const T *x, T *y, int n, int C, int H, int W, int s, float scale, int ldx, int ldy, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        repeat<WIDE>(i, x, y, C, H, W, s, scale, ldx, ldy);
    else
        repeat<1>(i, x, y, C, H, W, s, scale, ldx, ldy);
}

// Activate a yolo map x (N, P, A*E) + bias (A*E), which may be null -> y: sigmoid of x, y, objectness and classes, not with
// new_coords; then x and y become scale_x_y * v - (scale_x_y - 1) / 2. n = N*P*C, C = A*E.
extern "C" __global__ void yolo(const T *x, const float *bias, T *y, int n, int C, int E, float scale_x_y, int new_coords, int ldx,
                                int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C, entry = c % E;
    float v = x[pixel * ldx + c];
    if (bias) v += bias[c];
    if (!new_coords && entry != 2 && entry != 3) v = sigmoid(v);
    if (entry < 2 && scale_x_y != 1) v = v * scale_x_y - 0.5f * (scale_x_y - 1);
    y[pixel * ldy + c] = v;
}
