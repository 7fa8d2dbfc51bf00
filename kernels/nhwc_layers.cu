// Layers without a plan step, on NHWC maps as in nhwc.cuh: (N, P, C) with P = H*W. Launched by gpudarknet/plan/cuda/layers.py.
//
// Where Darknet counts the elements of an image in memory order, that is NCHW order: (C, P).

// The index of element k of an image, counted in NCHW order:
__device__ inline int nchw_index(int k, int image, int P, int ld) { return (image * P + k % P) * ld + k / P; }

// Global average pooling: x (N, P, C) -> y (N, 1, C). One thread per element of y: n = N*C.
extern "C" __global__ void avgpool(const T *x, T *y, int n, int C, int P, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, image = i / C;
    float sum = 0;
    for (int p = 0; p < P; p++) sum += x[(image * P + p) * ldx + c];
    y[image * ldy + c] = sum / P;
}

// Average pooling over the positions inside x: (N, H, W, C) -> y (N, OH, OW, C). The first window begins at -pad_before.
// n = N*OH*OW*C.
extern "C" __global__ void local_avgpool(const T *x, T *y, int n, int C, int H, int W, int OH, int OW, int size, int sy,
                                         int sx, int pad_before, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, m = i / C, h = m / OW % OH * sy - pad_before, w = m % OW * sx - pad_before;
    int top = max(h, 0), bottom = min(h + size, H), left = max(w, 0), right = min(w + size, W);
    float sum = 0;
    for (h = top; h < bottom; h++)
        for (w = left; w < right; w++) sum += x[((m / (OW * OH) * H + h) * W + w) * ldx + c];
    y[m * ldy + c] = sum / ((bottom - top) * (right - left));
}

// Maximum over channels: x (N*P, C) -> y (N*P, F), output f over inputs f, f+F, f+2F... n = N*P*F.
extern "C" __global__ void maxpool_depth(const T *x, T *y, int n, int C, int F, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int f = i % F, pixel = i / F;
    float best = MINUS_INFINITY;
    for (int c = f; c < C; c += F) {
        float v = x[pixel * ldx + c];
        if (v > best || v != v) best = v;  // a NaN stays
    }
    y[pixel * ldy + f] = best;
}

// Zero all but the maximum of each window: x, y (N*P, C), where y holds the maxima. n = N*P*C.
extern "C" __global__ void zero_nonmax(const T *x, T *y, int n, int C, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C;
    if (x[pixel * ldx + c] != y[pixel * ldy + c]) y[pixel * ldy + c] = 0;
}

// Crop x (N, H, W, C) from (top, left) on -> y (N, OH, OW, C) = factor * x + shift. n = N*OH*OW*C.
extern "C" __global__ void crop(const T *x, T *y, int n, int C, int H, int W, int OH, int OW, int top, int left,
                                float factor, float shift, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, m = i / C, h = top + m / OW % OH, w = left + m % OW;
    y[m * ldy + c] = factor * x[((m / (OW * OH) * H + h) * W + w) * ldx + c] + shift;
}

// Space to depth in NCHW order: x's elements are seen as (C, H, W), y's as (s, s, C, H/s, W/s),
// y[p, q, c, i, j] = x[c, i*s + p, j*s + q]; back: the inverse. y is then stored as a map of F channels and OP pixels, x as one
// of P pixels. n = N*F*OP.
extern "C" __global__ void reorg(const T *x, T *y, int n, int F, int OP, int P, int C, int H, int W, int s, int back,
                                 int ldx, int ldy) {
    int e = thread_index();
    if (e >= n) return;
    int f = e % F, image = e / (F * OP), k = f * OP + e / F % OP, h = H / s, w = W / s, from;
    if (back) {
        int column = k % W, row = k / W % H;
        from = (((row % s * s + column % s) * C + k / (W * H)) * h + row / s) * w + column / s;
    } else {
        int j = k % w, i = k / w % h, c = k / (w * h) % C, q = k / (w * h * C) % s, p = k / (w * h * C * s);
        from = (c * H + i * s + p) * W + j * s + q;
    }
    y[e / F * ldy + f] = x[nchw_index(from, image, P, ldx)];
}

// Convolution with separate weights for each output position: x (N, H, W, C), weights (OH*OW, size, size, C, F), bias (OH*OW, F)
// -> y (N, OH, OW, F), activated. One thread per element of y: n = N*OH*OW*F.
extern "C" __global__ void local(const T *x, const T *weights, const float *bias, T *y, int n, int C, int F, int H, int W,
                                 int OH, int OW, int size, int stride, int pad, int ldx, int ldy, int kind) {
    int i = thread_index();
    if (i >= n) return;
    int f = i % F, m = i / F, spot = m % (OW * OH), top = m / OW % OH * stride - pad, left = m % OW * stride - pad;
    float sum = 0;
    weights += spot * size * size * C * F + f;
    for (int p = 0; p < size; p++)
        for (int q = 0; q < size; q++, weights += C * F) {
            int h = top + p, w = left + q;
            if (h < 0 || h >= H || w < 0 || w >= W) continue;
            const T *pixel = x + ((m / (OW * OH) * H + h) * W + w) * ldx;
            for (int c = 0; c < C; c++) sum += pixel[c] * weights[c * F];
        }
    y[m * ldy + f] = function(kind, sum + bias[spot * F + f]);
}

// Local response normalization across channels: x (n, C), windows (C, C) -> y = x * (kappa + alpha * windows x^2)^-beta.
// n = N*P*C.
extern "C" __global__ void lrn(const T *x, const float *windows, T *y, int n, int C, float alpha, float beta, float kappa,
                               int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C;
    float sum = 0;
    x += pixel * ldx;
    for (int k = 0; k < C; k++) sum += windows[c * C + k] * (x[k] * x[k]);
    y[pixel * ldy + c] = x[c] * powf(kappa + alpha * sum, -beta);
}

// Normalize each pixel over its channels: x (n, C) -> y = r / (1e-4 + sum of r), r = max(x, 0) in mode 0, exp(x) in mode 1,
// exp(x - maximum) in mode 2. One warp per pixel.
extern "C" __global__ void normalize_channels(const T *x, T *y, int n, int C, int mode, int ldx, int ldy) {
    int i = thread_index() / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    x += i * ldx;
    y += i * ldy;
    float shift = MINUS_INFINITY, sum = 0;
    for (int c = lane; c < C; c += 32) shift = fmaxf(shift, x[c]);
    shift = mode == 2 ? warp_max(shift) : 0;
    for (int c = lane; c < C; c += 32) sum += mode == 0 ? fmaxf(x[c], 0) : expf(x[c] - shift);
    sum = 1e-4f + warp_sum(sum);
    for (int c = lane; c < C; c += 32) y[c] = (mode == 0 ? fmaxf(x[c], 0) : expf(x[c] - shift)) / sum;
}

// Weighted sum of two maps: a (N, P, C), b (N, Pb, Cb) -> y (N, P, C) = va a + vb b. Elements are paired in NCHW order as far as
// both maps have any. va (null: 1) and vb are V factors each: one per channel of y, or one. n = N*P*C.
extern "C" __global__ void add_weighted(const T *a, const T *b, const float *va, const float *vb, T *y, int n, int C, int P,
                                        int Cb, int Pb, int V, int lda, int ldb, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, m = i / C, k = c * P + m % P, v = V == 1 ? 0 : c;
    float sum = a[m * lda + c] * (va ? va[v] : 1);
    if (k < Cb * Pb) sum += b[nchw_index(k, m / P, Pb, ldb)] * vb[v];
    y[m * ldy + c] = sum;
}

// Activate a Gaussian YOLO map x (N*P, A*E) -> y: sigmoid of all but attributes 4 and 6, w and h; then attributes 0 and
// 2, x and y, become scale_x_y * v - (scale_x_y - 1) / 2. n = N*P*C, C = A*E.
extern "C" __global__ void gaussian(const T *x, T *y, int n, int C, int E, float scale_x_y, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C, pixel = i / C, e = c % E;
    float v = x[pixel * ldx + c];
    if (e != 4 && e != 6) v = sigmoid(v);
    if ((e == 0 || e == 2) && scale_x_y != 1) v = v * scale_x_y - 0.5f * (scale_x_y - 1);
    y[pixel * ldy + c] = v;
}

// Activate a region map x (N, P, A*E) -> y, E = coords + 1 + classes: sigmoid of the objectness, and with `softmax` a
// softmax over the classes. One warp per box: n = N*P*A.
extern "C" __global__ void region(const T *x, T *y, int n, int A, int E, int coords, int softmax, int ldx, int ldy) {
    int i = thread_index() / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    x += i / A * ldx + i % A * E;
    y += i / A * ldy + i % A * E;
    float shift = MINUS_INFINITY, sum = 0;
    for (int e = coords + 1 + lane; e < E; e += 32) shift = fmaxf(shift, x[e]);
    shift = warp_max(shift);
    for (int e = coords + 1 + lane; e < E; e += 32) sum += expf(x[e] - shift);
    sum = warp_sum(sum);
    for (int e = lane; e < E; e += 32) {
        float v = x[e];
        y[e] = e == coords ? sigmoid(v) : e > coords && softmax ? expf(v - shift) / sum : v;
    }
}

// Softmax over groups of an image's elements: x (N, P, C) -> y the same, exp(x / temperature) over the group's sum. Group g is
// elements groups[g, 0] to groups[g, 1] in NCHW order. Elements of no group are left as they are in y, which may be x.
// One warp per image and group: n = N*G.
extern "C" __global__ void softmax(const T *x, const int *groups, T *y, int n, int G, int P, float temperature, int ldx,
                                   int ldy) {
    int i = thread_index() / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    int image = i / G, first = groups[i % G * 2] + lane, last = groups[i % G * 2 + 1];
    float shift = MINUS_INFINITY, sum = 0;
    for (int k = first; k < last; k += 32) shift = fmaxf(shift, x[nchw_index(k, image, P, ldx)] / temperature);
    shift = warp_max(shift);
    for (int k = first; k < last; k += 32) sum += expf(x[nchw_index(k, image, P, ldx)] / temperature - shift);
    sum = warp_sum(sum);
    for (int k = first; k < last; k += 32)
        y[nchw_index(k, image, P, ldy)] = expf(x[nchw_index(k, image, P, ldx)] / temperature - shift) / sum;
}

// Blend maps (n / C pixels, C): y = a b + c d, or a b + (1 - a) c if d is null.
extern "C" __global__ void blend(const T *a, const T *b, const T *c, const T *d, T *y, int n, int C, int lda, int ldb,
                                 int ldc, int ldd, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    int k = i % C, pixel = i / C;
    float part = a[pixel * lda + k], other = d ? (float)d[pixel * ldd + k] : 1 - part;
    y[pixel * ldy + k] = part * b[pixel * ldb + k] + other * c[pixel * ldc + k];
}

// Clip to +-limit: x (n / C pixels, C) -> y.
extern "C" __global__ void clip(const T *x, T *y, int n, int C, float limit, int ldx, int ldy) {
    int i = thread_index();
    if (i >= n) return;
    float v = x[i / C * ldx + i % C];
    y[i / C * ldy + i % C] = v > limit ? limit : v < -limit ? -limit : v;
}

// y = 1 where x >= 0, else -1: x (n / C pixels, C).
extern "C" __global__ void sign(const T *x, T *y, int n, int C, int ldx, int ldy) {
    int i = thread_index();
    if (i < n) y[i / C * ldy + i % C] = x[i / C * ldx + i % C] >= 0 ? 1.0f : -1.0f;
}
