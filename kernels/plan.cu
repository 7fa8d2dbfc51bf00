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

template <int V>
__device__ inline void finish_channels(int i, const T *x, const float *bias, const T *other, T *y, int C, int P, int Co, int Po,
                                       int ldx, int ldo, int ldy, int before, int join, float eps, float slope, int after) {
    int c = i % (C / V) * V, m = i / (C / V);
    float v[V], o[V];
    load<V>(x + m * ldx + c, v);
    if (bias) add_bias<V>(bias + c, v);
    activate<V>(before, v);
    if (join != NOTHING) {
        other += (Po == 1 ? m / P : m) * ldo;
        if (Co == 1) {
#pragma unroll
            for (int k = 0; k < V; k++) o[k] = other[0];
        } else {
            load<V>(other + c, o);
        }
#pragma unroll
        for (int k = 0; k < V; k++) {
            if (join == ADD) v[k] += o[k];
            if (join == SORT) v[k] += o[k] + sqrtf(fmaxf(rectify(v[k], slope) * rectify(o[k], slope), 0) + eps);
            if (join == MULTIPLY) v[k] *= o[k];
        }
    }
    activate<V>(after, v);
    store<V>(y + m * ldy + c, v);
}

// Finish a step: x (N, P, C) -> y (N, P, C) = after(join(before(x + bias), other)); x may be y. bias (C) may be null. join 1
// adds other, 2 adds it and the SORT term sqrt(max(R(a) R(b), 0) + eps), R(x) = x where x > 0, else slope * x, 3 multiplies
// by it; other is (N, Po, Co) with Po = P or 1, Co = C or 1. n = N*P * C, or C / WIDE.
extern "C" __global__ void finish(const T *x, const float *bias, const T *other, T *y, int n, int C, int P, int Co, int Po,
                                  int ldx, int ldo, int ldy, int before, int join, float eps, float slope, int after, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        finish_channels<WIDE>(i, x, bias, other, y, C, P, Co, Po, ldx, ldo, ldy, before, join, eps, slope, after);
    else
        finish_channels<1>(i, x, bias, other, y, C, P, Co, Po, ldx, ldo, ldy, before, join, eps, slope, after);
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

template <int V>
__device__ inline void finish_block(int i, const T *x, const float *bias, T *y, int C, int OH, int OW, int ldx, int ldy, int kind) {
    int c = i % (C / V) * V, m = i / (C / V), corner = (m / OW * 2 * OW + m % OW) * 2;
    float best[V], v[V];
    load<V>(x + corner * ldx + c, best);
#pragma unroll
    for (int tap = 1; tap < 4; tap++) {
        load<V>(x + (corner + tap / 2 * 2 * OW + tap % 2) * ldx + c, v);
#pragma unroll
        for (int k = 0; k < V; k++)
            if (v[k] > best[k] || v[k] != v[k]) best[k] = v[k];  // a NaN stays
    }
    add_bias<V>(bias + c, best);
    activate<V>(kind, best);
    store<V>(y + m * ldy + c, best);
}

// Keep the maximum of each 2 x 2 block, then add the bias and activate: x (N, 2*OH, 2*OW, C) -> y (N, OH, OW, C).
// n = N*OH*OW * C, or C / WIDE.
extern "C" __global__ void finish_blocks(const T *x, const float *bias, T *y, int n, int C, int OH, int OW, int ldx, int ldy,
                                         int kind, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        finish_block<WIDE>(i, x, bias, y, C, OH, OW, ldx, ldy, kind);
    else
        finish_block<1>(i, x, bias, y, C, OH, OW, ldx, ldy, kind);
}

template <int V>
__device__ inline void convolve_filters(int i, const T *x, const float *weights, const float *bias, T *y, int C, int F, int H,
                                        int W, int OH, int OW, int size, int sy, int sx, int dilation, int pad, int ldx, int ldy,
                                        int kind, int pooled) {
    int f = i % (F / V) * V, m = i / (F / V), s = pooled ? 2 : 1, row = m / OW % OH * s, column = m % OW * s;
    float best[V], sum[V];
    x += m / (OW * OH) * H * W * ldx;
    for (int k = 0; k < s * s; k++) {
        int top = (row + k / 2) * sy - pad, left = (column + k % 2) * sx - pad;
        const float *w = weights + f;
#pragma unroll
        for (int j = 0; j < V; j++) sum[j] = 0;
        for (int p = 0; p < size; p++)
            for (int q = 0; q < size; q++, w += C * F) {
                int h = top + p * dilation, v = left + q * dilation;
                if (h < 0 || h >= H || v < 0 || v >= W) continue;
                const T *pixel = x + (h * W + v) * ldx;
                for (int c = 0; c < C; c++) {
                    float here = pixel[c], factors[V];
                    load<V>(w + c * F, factors);
#pragma unroll
                    for (int j = 0; j < V; j++) sum[j] += here * factors[j];
                }
            }
#pragma unroll
        for (int j = 0; j < V; j++)
            if (k == 0 || sum[j] > best[j] || sum[j] != sum[j]) best[j] = sum[j];  // a NaN stays
    }
    add_bias<V>(bias + f, best);
    activate<V>(kind, best);
    store<V>(y + m * ldy + f, best);
}

// Convolve a map of few channels, such as an image, add the bias, activate: x (N, H, W, C), weights (size, size, C, F) ->
// y (N, OH, OW, F). With `pooled`, each pixel of y is the maximum of a 2 x 2 block of the convolution's. n = N*OH*OW * F, or
// F / WIDE.
extern "C" __global__ void convolve_few(const T *x, const float *weights, const float *bias, T *y, int n, int C, int F, int H,
                                        int W, int OH, int OW, int size, int sy, int sx, int dilation, int pad, int ldx, int ldy,
                                        int kind, int pooled, int wide) {
    int i = thread_index();
    if (i >= n) return;
    if (wide)
        convolve_filters<WIDE>(i, x, weights, bias, y, C, F, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldy, kind, pooled);
    else
        convolve_filters<1>(i, x, weights, bias, y, C, F, H, W, OH, OW, size, sy, sx, dilation, pad, ldx, ldy, kind, pooled);
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
#pragma unroll
            for (int k = 0; k < V; k++)
                if (v[k] > best[k] || v[k] != v[k]) best[k] = v[k];  // a NaN stays
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

// Activate a yolo map x (N, P, A*E) -> y: sigmoid of x, y, objectness and classes, not with new_coords; then x and y become
// scale_x_y * v - (scale_x_y - 1) / 2. n = N*P*C, C = A*E.
extern "C" __global__ void yolo(const T *x, T *y, int n, int C, int E, float scale_x_y, int new_coords, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C, entry = c % E;
    float v = x[pixel * ldx + c];
    if (!new_coords && entry != 2 && entry != 3) v = sigmoid(v);
    if (entry < 2 && scale_x_y != 1) v = v * scale_x_y - 0.5f * (scale_x_y - 1);
    y[pixel * ldy + c] = v;
}
