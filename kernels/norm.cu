// Normalizations: batch norm, local response normalization, softmax. Kernels of gpudarknet/ops/norm.py.
//
// Channels are reduced in two stages without atomics, so that results are reproducible: each block reduces a part of PART
// values, then one block per channel reduces the parts.

const float EPS = 1e-5f;  // inside the root
const int PART = 4096;    // as PART in norm.py

// Return the index of value j of channel c in an array (N, C, P).
__device__ inline int at(int c, int j, int C, int P) { return (j / P * C + c) * P + j % P; }

// Normalize each channel: x (N, C, H, W), the others (C) -> y = (x - mean) / sqrt(variance + 1e-5) * scale + bias.
extern "C" __global__ void batch_norm(const T *x, const float *mean, const float *variance, const float *scale,
                                      const float *bias, T *y, int n, int C, int P) {
    int i = thread_index();
    if (i >= n) return;
    int c = i / P % C;
    float gain = scale[c] / sqrtf(variance[c] + EPS);
    y[i] = x[i] * gain + (bias[c] - mean[c] * gain);
}

// Return the mean of each part of x (N, C, H, W), and the sum of squared distances from it -> both (C, parts).
// One block per part; m = N*H*W values in a channel.
extern "C" __global__ void statistics_parts(const T *x, float *means, float *squares, int m, int C, int P, int parts) {
    int c = blockIdx.x / parts, first = blockIdx.x % parts * PART, last = min(first + PART, m);
    float sum = 0;
    for (int j = first + threadIdx.x; j < last; j += blockDim.x) sum += x[at(c, j, C, P)];
    float mean = block_sum(sum) / (last - first);
    sum = 0;
    for (int j = first + threadIdx.x; j < last; j += blockDim.x) {
        float distance = x[at(c, j, C, P)] - mean;
        sum += distance * distance;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        means[blockIdx.x] = mean;
        squares[blockIdx.x] = sum;
    }
}

// Combine the parts of `statistics_parts`: means, squares (C, parts) -> mean (C) and biased variance (C). One block per channel.
extern "C" __global__ void statistics(const float *means, const float *squares, float *mean, float *variance, int m,
                                      int parts) {
    int c = blockIdx.x, first = c * parts;
    float sum = 0;
    for (int k = threadIdx.x; k < parts; k += blockDim.x) sum += means[first + k] * min(PART, m - k * PART);
    float whole = block_sum(sum) / m;
    sum = 0;
    for (int k = threadIdx.x; k < parts; k += blockDim.x) {
        float distance = means[first + k] - whole;
        sum += squares[first + k] + distance * distance * min(PART, m - k * PART);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        mean[c] = whole;
        variance[c] = sum / m;
    }
}

// Sum each part of dy, and of dy times the normalized x, both (N, C, H, W) -> sums (2, C, parts). One block per part.
extern "C" __global__ void batch_norm_parts(const T *dy, const T *x, const float *mean, const float *variance, float *sums,
                                            int m, int C, int P, int parts) {
    int c = blockIdx.x / parts, first = blockIdx.x % parts * PART, last = min(first + PART, m);
    float plain = 0, normalized = 0;
    for (int j = first + threadIdx.x; j < last; j += blockDim.x) {
        int i = at(c, j, C, P);
        plain += dy[i];
        normalized += dy[i] * (x[i] - mean[c]);
    }
    plain = block_sum(plain);
    normalized = block_sum(normalized) / sqrtf(variance[c] + EPS);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = plain;
        sums[C * parts + blockIdx.x] = normalized;
    }
}

// Sum parts: (K, parts) -> sums (K). One block per sum.
extern "C" __global__ void sum_parts(const float *parts, float *sums, int count) {
    float sum = 0;
    for (int k = threadIdx.x; k < count; k += blockDim.x) sum += parts[blockIdx.x * count + k];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Return dx (N, C, H, W) of a batch norm that used the statistics of x itself; dbias, dscale (C), m = N*H*W.
extern "C" __global__ void batch_norm_backward(const T *dy, const T *x, const float *mean, const float *variance,
                                               const float *scale, const float *dbias, const float *dscale, T *dx, int n,
                                               int C, int P, int m) {
    int i = thread_index();
    if (i >= n) return;
    int c = i / P % C;
    float invstd = 1 / sqrtf(variance[c] + EPS), normalized = (x[i] - mean[c]) * invstd;
    dx[i] = (dy[i] - dbias[c] / m - normalized * dscale[c] / m) * (scale[c] * invstd);
}

// kappa + alpha * (row c of windows) . (squares of all channels of one pixel)
__device__ inline float lrn_total(const T *pixel, const float *row, int C, int P, float alpha, float kappa) {
    float sum = 0;
    for (int k = 0; k < C; k++) sum += row[k] * (pixel[k * P] * pixel[k * P]);
    return kappa + alpha * sum;
}

// Normalize over neighbouring channels: x (N, C, H, W), windows (C, C) -> x * (kappa + alpha * windows x^2)^-beta.
extern "C" __global__ void lrn(const T *x, const float *windows, T *y, int n, int C, int P, float alpha, float beta,
                               float kappa) {
    int i = thread_index();
    if (i >= n) return;
    int c = i / P % C;
    y[i] = x[i] * powf(lrn_total(x + i - c * P, windows + c * C, C, P, alpha, kappa), -beta);
}

// Return the two factors of dx of `lrn`, all (N, C, H, W): power = total^-beta, inner = dy x total^(-beta - 1).
extern "C" __global__ void lrn_factors(const T *dy, const T *x, const float *windows, float *power, float *inner, int n,
                                       int C, int P, float alpha, float beta, float kappa) {
    int i = thread_index();
    if (i >= n) return;
    int c = i / P % C;
    float total = lrn_total(x + i - c * P, windows + c * C, C, P, alpha, kappa);
    power[i] = powf(total, -beta);
    inner[i] = dy[i] * x[i] * powf(total, -beta - 1);
}

// Return dx (N, C, H, W) of `lrn`: dy power - 2 alpha beta x * (column c of windows) . inner.
extern "C" __global__ void lrn_backward(const T *dy, const T *x, const float *windows, const float *power,
                                        const float *inner, T *dx, int n, int C, int P, float alpha, float beta) {
    int i = thread_index();
    if (i >= n) return;
    int c = i / P % C;
    float sum = 0;
    for (int k = 0; k < C; k++) sum += windows[k * C + c] * inner[i + (k - c) * P];
    dx[i] = dy[i] * power[i] - 2 * alpha * beta * x[i] * sum;
}

// Softmax each group of every row: x (R, K) -> y (R, K). Group g is columns starts[g] to starts[g+1]; starts has G + 1 entries.
// One warp per row and group: n = R*G.
extern "C" __global__ void softmax(const T *x, const int *starts, T *y, int n, int K, int G, float temperature) {
    int i = thread_index() / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    int row = i / G * K, first = row + starts[i % G] + lane, last = row + starts[i % G + 1];
    float top = MINUS_INFINITY, sum = 0;
    for (int j = first; j < last; j += 32) top = fmaxf(top, x[j] / temperature);
    top = warp_max(top);
    for (int j = first; j < last; j += 32) sum += expf(x[j] / temperature - top);
    sum = warp_sum(sum);
    for (int j = first; j < last; j += 32) y[j] = expf(x[j] / temperature - top) / sum;
}
