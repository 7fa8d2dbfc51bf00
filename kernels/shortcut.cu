// Sums and products of feature maps. Kernels of gpudarknet/ops/shortcut.py.
//
// Elements of maps of different shapes are paired in memory order, per image, up to the shorter one. A and B are the sizes of
// an image of the first and of the second map, r is the index into it. P = H*W of the result.

// Add one map to another: a (N, A), b (N, B) -> y (N, A). va and vb are null (factor 1) or the V factors of each
// map: one per channel of the result, or a single one. b may be null.
extern "C" __global__ void add(const T *a, const T *b, const float *va, const float *vb, T *y, int n, int A, int B, int P,
                               int V) {
    int i = thread_index();
    if (i >= n) return;
    int r = i % A, v = V == 1 ? 0 : r / P;
    float sum = a[i] * (va ? va[v] : 1);
    if (r < B) sum += b[i / A * B + r] * (vb ? vb[v] : 1);
    y[i] = sum;
}

// Return dx (N, B) of a map that was added: dy (N, A) times its factors v (null: 1), 0 beyond the elements of dy.
extern "C" __global__ void add_backward(const T *dy, const float *v, T *dx, int n, int A, int B, int P, int V) {
    int i = thread_index();
    if (i >= n) return;
    int r = i % B;
    dx[i] = r < A ? dy[i / B * A + r] * (v ? v[V == 1 ? 0 : r / P] : 1) : 0;
}

// Sum dy (N, A) times x (N, B) over N and the pixels of each channel of dy -> sums (C). One block per channel.
extern "C" __global__ void channel_products(const T *dy, const T *x, float *sums, int N, int A, int B, int P) {
    float sum = 0;
    for (int j = threadIdx.x; j < N * P; j += blockDim.x) {
        int image = j / P, r = blockIdx.x * P + j % P;
        if (r < B) sum += dy[image * A + r] * x[image * B + r];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__device__ inline float rectify(float x, float slope) { return x > 0 ? x : slope * x; }

// Second-order response transform: a (N, A), b (N, B) -> y (N, A) = a + b + sqrt(max(R(a) R(b), 0) + eps).
// R(x) = x where x > 0, else slope * x; unpaired elements of a are copied. (Wang et al. 2017, arXiv 1703.06993)
extern "C" __global__ void sort_shortcut(const T *a, const T *b, T *y, int n, int A, int B, float eps, float slope) {
    int i = thread_index();
    if (i >= n) return;
    int r = i % A;
    float p = a[i];
    if (r < B) {
        float q = b[i / A * B + r];
        p += q + sqrtf(fmaxf(rectify(p, slope) * rectify(q, slope), 0) + eps);
    }
    y[i] = p;
}

// Return da (N, A) and db (N, B) of `sort_shortcut`: da = dy (1 + R'(a) R(b) / (2 sqrt(R(a) R(b) + eps))) where
// R(a) R(b) > 0, else dy; db likewise. One thread per element of the larger map: n = N * max(A, B).
extern "C" __global__ void sort_shortcut_backward(const T *dy, const T *a, const T *b, T *da, T *db, int n, int A, int B,
                                                  float eps, float slope) {
    int i = thread_index(), M = max(A, B);
    if (i >= n) return;
    int r = i % M, ia = i / M * A + r, ib = i / M * B + r;
    if (r >= A) {
        db[ib] = 0;
    } else if (r >= B) {
        da[ia] = dy[ia];
    } else {
        float d = dy[ia], p = a[ia], q = b[ib], rp = rectify(p, slope), rq = rectify(q, slope), product = rp * rq;
        float half = product > 0 ? d / (2 * sqrtf(product + eps)) : 0;
        da[ia] = d + half * rq * (p > 0 ? 1 : slope);
        db[ib] = d + half * rp * (q > 0 ? 1 : slope);
    }
}

// Multiply x (N, C, H, W) by s (N, Cs, Ps): Cs is C or 1, Ps is H*W or 1.
extern "C" __global__ void scale(const T *x, const T *s, T *y, int n, int C, int P, int Cs, int Ps) {
    int i = thread_index();
    if (i >= n) return;
    int c = Cs == 1 ? 0 : i / P % C, p = Ps == 1 ? 0 : i % P;
    y[i] = x[i] * s[(i / (P * C) * Cs + c) * Ps + p];
}

// Sum dy times x, both (N, C, H, W), over the axes that s (N, Cs, Ps) broadcasts -> ds. One warp per element: n = N*Cs*Ps.
extern "C" __global__ void scale_backward(const T *dy, const T *x, T *ds, int n, int C, int P, int Cs, int Ps) {
    int i = thread_index() / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    int first = i / (Cs * Ps) * C * P + (Cs == 1 ? 0 : i / Ps % Cs * P) + (Ps == 1 ? 0 : i % Ps);
    int channels = C / Cs, pixels = P / Ps;
    float sum = 0;
    for (int k = lane; k < channels * pixels; k += 32) {
        int j = first + k / pixels * P + k % pixels;
        sum += dy[j] * x[j];
    }
    sum = warp_sum(sum);
    if (lane == 0) ds[i] = sum;
}
