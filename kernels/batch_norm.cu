// Batch norm, bias and activation in training, and their gradients, on NHWC maps. Launched by
// gpudarknet/plan/cuda/training/batch_norm.py.
//
// saved (6, C) has of each channel: mean, 1 / sqrt(biased variance + 1e-5), gain = scale * the latter, shift = bias - mean * gain;
// and from the backward pass, the mean of dx and of dx times the normalized z, where x = gain * z + shift is what is activated.

#include "channel_sums.cuh"
#include "activation.cuh"

enum Saved { MEAN, INVSTD, GAIN, SHIFT, MEAN_DX, MEAN_PRODUCT };

template <int V>
__device__ inline void statistics(const T *z, const float *scale, const float *bias, float *rolling_mean, float *rolling_variance,
                                  float *saved, float *partial, int *arrived, int M, int C, int ldz, int lanes) {
    ChannelPart<V> own(M, C, lanes);
    float v[DEPTH][V] = {}, mean[V] = {}, squares[V] = {};
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        int m = own.first + i * own.rows;
        if (own.has(m)) load<V>(z + m * ldz + own.c, v[i]);
#pragma unroll
        for (int k = 0; k < V; k++) mean[k] += v[i][k];
    }
    channel_sum<V>(mean, lanes);
#pragma unroll
    for (int k = 0; k < V; k++) mean[k] /= own.pixels(own.part);
#pragma unroll
    for (int i = 0; i < DEPTH; i++)
        if (own.has(own.first + i * own.rows))
#pragma unroll
            for (int k = 0; k < V; k++) squares[k] += (v[i][k] - mean[k]) * (v[i][k] - mean[k]);
    channel_sum<V>(squares, lanes);
    if (own.row == 0 && own.c < C)
#pragma unroll
        for (int k = 0; k < V; k++) {
            partial[own.at(own.part, 0) + k] = mean[k];
            partial[own.at(own.part, 1) + k] = squares[k];
        }
    if (!last_block(arrived + own.chunk, own.parts)) return;

#pragma unroll
    for (int k = 0; k < V; k++) mean[k] = squares[k] = 0;
    for (int part = own.row; own.c < C && part < own.parts; part += own.rows)
#pragma unroll
        for (int k = 0; k < V; k++) mean[k] += load_volatile(partial + own.at(part, 0) + k) * own.pixels(part);
    channel_sum<V>(mean, lanes);
#pragma unroll
    for (int k = 0; k < V; k++) mean[k] /= M;
    for (int part = own.row; own.c < C && part < own.parts; part += own.rows)
#pragma unroll
        for (int k = 0; k < V; k++) {
            float distance = load_volatile(partial + own.at(part, 0) + k) - mean[k];
            squares[k] += load_volatile(partial + own.at(part, 1) + k) + distance * distance * own.pixels(part);
        }
    channel_sum<V>(squares, lanes);
    if (own.row > 0 || own.c >= C) return;
#pragma unroll
    for (int k = 0; k < V; k++) {
        int c = own.c + k;
        float variance = squares[k] / M, invstd = 1 / sqrtf(variance + 1e-5f), gain = scale[c] * invstd;
        saved[MEAN * C + c] = mean[k];
        saved[INVSTD * C + c] = invstd;
        saved[GAIN * C + c] = gain;
        saved[SHIFT * C + c] = bias[c] - mean[k] * gain;
        rolling_mean[c] = 0.99f * rolling_mean[c] + 0.01f * mean[k];
        rolling_variance[c] = 0.99f * rolling_variance[c] + 0.01f * (squares[k] / max(M - 1, 1));
    }
}

// Statistics of each channel of z (M, C): saved (mean, invstd, gain, shift), and the rolling mean and (unbiased) variance at rate
// 0.01. partial (parts, 2, C); arrived (chunks), zero before and after. One block per part and chunk of channels.
extern "C" __global__ void __launch_bounds__(256) batch_statistics(
    const T *z, const float *scale, const float *bias, float *mean, float *variance, float *saved, float *partial, int *arrived,
    int M, int C, int ldz, int lanes, int vectorized) {
    if (vectorized)
        statistics<VECTOR>(z, scale, bias, mean, variance, saved, partial, arrived, M, C, ldz, lanes);
    else
        statistics<1>(z, scale, bias, mean, variance, saved, partial, arrived, M, C, ldz, lanes);
}

// x = gain * z + shift. gain is null: 1, and shift is null: 0.
template <int V> __device__ inline void affine(const float *gain, const float *shift, int c, float (&x)[V]) {
    float factor[V];
    if (gain) {
        load<V>(gain + c, factor);
#pragma unroll
        for (int k = 0; k < V; k++) x[k] *= factor[k];
    }
    if (shift) add_bias<V>(shift + c, x);
}

template <int V>
__device__ inline void normalized(int i, const T *z, const float *gain, const float *shift, T *y, int C, int ldz, int ldy, int kind) {
    int c = i % (C / V) * V, m = i / (C / V);
    float x[V];
    load<V>(z + m * ldz + c, x);
    affine<V>(gain, shift, c, x);
    activate<V>(kind, x);
    store<V>(y + m * ldy + c, x);
}

// y = activation(gain * z + shift): z (M, C) -> y the same; gain (null: 1) and shift (null: 0) are (C). n = M*C, or M*C / VECTOR.
extern "C" __global__ void affine_activation(const T *z, const float *gain, const float *shift, T *y, int n, int C, int ldz, int ldy,
                                             int kind, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        normalized<VECTOR>(i, z, gain, shift, y, C, ldz, ldy, kind);
    else
        normalized<1>(i, z, gain, shift, y, C, ldz, ldy, kind);
}

template <Kind K, int V> __device__ inline void apply_derivative(float (&d)[V], const float (&x)[V], const float (&y)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++) d[k] *= derivative(K, x[k], y[k]);
}

// d *= the activation's derivative at (x, y). The vectorized kinds are those of `activate`.
template <int V> __device__ inline void multiply_derivative(int kind, float (&d)[V], const float (&x)[V], const float (&y)[V]) {
    if (V == 1)
        d[0] *= derivative(kind, x[0], y[0]);
    else if (kind == LEAKY)
        apply_derivative<LEAKY>(d, x, y);
    else if (kind == RELU)
        apply_derivative<RELU>(d, x, y);
    else if (kind == MISH)
        apply_derivative<MISH>(d, x, y);
    else if (kind == SWISH)
        apply_derivative<SWISH>(d, x, y);
    else if (kind == LOGISTIC)
        apply_derivative<LOGISTIC>(d, x, y);
}

// The gradient of an activated map y = activation(gain * z + shift), where y or z may be null: y is then computed from z, and
// without z there is y alone, which suffices for most activations.
struct Activated {
    const T *z, *y;
    const float *gain, *shift;
    int ldz, ldy, kind;

    // Multiply dy of pixel m by the derivative, rounded as T stores it. z: the channels of z.
    template <int V> __device__ void gradient(int m, int c, float (&d)[V], float (&v)[V]) const {
        float x[V] = {}, out[V];
        if (z) {
            load<V>(z + m * ldz + c, v);
#pragma unroll
            for (int k = 0; k < V; k++) x[k] = v[k];
        }
        if (kind == LINEAR) return;
        if (z) affine<V>(gain, shift, c, x);
        if (y) {
            load<V>(y + m * ldy + c, out);
        } else {
#pragma unroll
            for (int k = 0; k < V; k++) out[k] = x[k];
            activate<V>(kind, out);
        }
        multiply_derivative<V>(kind, d, x, out);
#pragma unroll
        for (int k = 0; k < V; k++) {
            T stored;
            stored = d[k];
            d[k] = stored;
        }
    }
};

// NORM: with a batch norm, whose `saved` is given; else with a bias.
template <int V, bool NORM>
__device__ inline void gradient_sums(const T *dy, const Activated &f, T *dx, float *saved, float *dscale, float *dbias, float *partial,
                                     int *arrived, int M, int C, int lddy, int lddx, int lanes, int accumulate) {
    ChannelPart<V> own(M, C, lanes);
    float d[V], z[V] = {}, mean[V] = {}, sums[V] = {}, products[V] = {};
    if (NORM && own.c < C) load<V>(saved + MEAN * C + own.c, mean);
#pragma unroll 1
    for (int i = 0; i < DEPTH; i++) {
        int m = own.first + i * own.rows;
        if (!own.has(m)) break;
        load<V>(dy + m * lddy + own.c, d);
        f.gradient<V>(m, own.c, d, z);
        if (f.kind != LINEAR || dx != dy) store<V>(dx + m * lddx + own.c, d);
#pragma unroll
        for (int k = 0; k < V; k++) {
            sums[k] += d[k];
            if (NORM) products[k] += d[k] * (z[k] - mean[k]);
        }
    }
    channel_sum<V>(sums, lanes);
    if (NORM) channel_sum<V>(products, lanes);
    if (own.row == 0 && own.c < C)
#pragma unroll
        for (int k = 0; k < V; k++) {
            partial[own.at(own.part, 0) + k] = sums[k];
            if (NORM) partial[own.at(own.part, 1) + k] = products[k];
        }
    if (!last_block(arrived + own.chunk, own.parts)) return;

#pragma unroll
    for (int k = 0; k < V; k++) sums[k] = products[k] = 0;
    for (int part = own.row; own.c < C && part < own.parts; part += own.rows)
#pragma unroll
        for (int k = 0; k < V; k++) {
            sums[k] += load_volatile(partial + own.at(part, 0) + k);
            if (NORM) products[k] += load_volatile(partial + own.at(part, 1) + k);
        }
    channel_sum<V>(sums, lanes);
    if (NORM) channel_sum<V>(products, lanes);
    if (own.row > 0 || own.c >= C) return;
#pragma unroll
    for (int k = 0; k < V; k++) {
        int c = own.c + k;
        dbias[c] = accumulate ? dbias[c] + sums[k] : sums[k];
        if (NORM) {
            float product = products[k] * saved[INVSTD * C + c];
            dscale[c] = accumulate ? dscale[c] + product : product;
            saved[MEAN_DX * C + c] = sums[k] / M;
            saved[MEAN_PRODUCT * C + c] = product / M;
        }
    }
}

// First pass of the gradient of y = activation(gain * z + shift): dx = dy * derivative, all maps (M, C), and dx may be dy; dbias and
// dscale (C), added to what they hold if `accumulate`; their means to `saved`. partial (parts, 2, C); arrived (chunks), zero
// before and after. One block per part and chunk of channels.
extern "C" __global__ void __launch_bounds__(256, 3) batch_norm_gradient_sums(
    const T *dy, const T *z, T *dx, float *saved, float *dscale, float *dbias, float *partial, int *arrived, int M, int C, int lddy,
    int ldz, int lddx, int lanes, int kind, int accumulate, int vectorized) {
    Activated f{z, nullptr, saved + GAIN * C, saved + SHIFT * C, ldz, 0, kind};
    if (vectorized)
        gradient_sums<VECTOR, true>(dy, f, dx, saved, dscale, dbias, partial, arrived, M, C, lddy, lddx, lanes, accumulate);
    else
        gradient_sums<1, true>(dy, f, dx, saved, dscale, dbias, partial, arrived, M, C, lddy, lddx, lanes, accumulate);
}

template <int V>
__device__ inline void normalization_gradient(int i, const T *z, const float *saved, T *dz, int C, int ldz, int lddz) {
    int c = i % (C / V) * V, m = i / (C / V);
    float d[V], v[V], mean[V], invstd[V], gain[V], mean_dx[V], mean_product[V];
    load<V>(z + m * ldz + c, v);
    load<V>(dz + m * lddz + c, d);
    load<V>(saved + MEAN * C + c, mean);
    load<V>(saved + INVSTD * C + c, invstd);
    load<V>(saved + GAIN * C + c, gain);
    load<V>(saved + MEAN_DX * C + c, mean_dx);
    load<V>(saved + MEAN_PRODUCT * C + c, mean_product);
#pragma unroll
    for (int k = 0; k < V; k++) d[k] = gain[k] * (d[k] - mean_dx[k] - (v[k] - mean[k]) * invstd[k] * mean_product[k]);
    store<V>(dz + m * lddz + c, d);
}

// Second pass: dx becomes dz = gain * (dx - mean(dx) - normalized * mean(dx * normalized)), in place. n = M*C, or M*C / VECTOR.
extern "C" __global__ void batch_norm_gradient(const T *z, const float *saved, T *dz, int n, int C, int ldz, int lddz,
                                               int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    if (vectorized)
        normalization_gradient<VECTOR>(i, z, saved, dz, C, ldz, lddz);
    else
        normalization_gradient<1>(i, z, saved, dz, C, ldz, lddz);
}

// Gradient of y = activation(z + bias), maps (M, C): dz = dy * derivative, and dz may be dy; dbias (C), added to what it holds if
// `accumulate`. z may be null if the derivative is a function of y, and y may be null if there is z; both for linear. The rest as
// in batch_norm_gradient_sums.
extern "C" __global__ void __launch_bounds__(256, 3) bias_gradient(
    const T *dy, const T *z, const T *y, const float *bias, T *dz, float *dbias, float *partial, int *arrived, int M, int C, int lddy,
    int ldz, int ldy, int lddz, int lanes, int kind, int accumulate, int vectorized) {
    Activated f{z, y, nullptr, bias, ldz, ldy, kind};
    if (vectorized)
        gradient_sums<VECTOR, false>(dy, f, dz, nullptr, nullptr, dbias, partial, arrived, M, C, lddy, lddz, lanes, accumulate);
    else
        gradient_sums<1, false>(dy, f, dz, nullptr, nullptr, dbias, partial, arrived, M, C, lddy, lddz, lanes, accumulate);
}

template <int V> __device__ inline void pointwise_gradient(int i, const T *dy, const Activated &f, T *dx, int C, int lddy, int lddx) {
    int c = i % (C / V) * V, m = i / (C / V);
    float d[V], z[V];
    load<V>(dy + m * lddy + c, d);
    f.gradient<V>(m, c, d, z);
    store<V>(dx + m * lddx + c, d);
}

// Gradient of y = activation(z), maps (M, C): dz = dy * derivative, and dz may be dy; z and y as in bias_gradient. n = M*C, or
// M*C / VECTOR.
extern "C" __global__ void __launch_bounds__(256, 3) activation_gradient(const T *dy, const T *z, const T *y, T *dz, int n, int C,
                                                                      int lddy, int ldz, int ldy, int lddz, int kind, int vectorized) {
    int i = thread_index();
    if (i >= n) return;
    Activated f{z, y, nullptr, nullptr, ldz, ldy, kind};
    if (vectorized)
        pointwise_gradient<VECTOR>(i, dy, f, dz, C, lddy, lddz);
    else
        pointwise_gradient<1>(i, dy, f, dz, C, lddy, lddz);
}
