// Darknet's activation functions and their gradients. Kernels of gpudarknet/ops/activation.py.

#include "activation.cuh"

// Apply an elementwise activation, x of any shape -> y of the same shape.
extern "C" __global__ void activate(const T *x, T *y, int n, int kind) {
    int i = thread_index();
    if (i < n) y[i] = function(kind, x[i]);
}

// Multiply dy by f' at (x, y), all of one shape -> dx; x may be null for functions that do not need it.
extern "C" __global__ void activate_backward(const T *dy, const T *x, const T *y, T *dx, int n, int kind) {
    int i = thread_index();
    if (i < n) dx[i] = dy[i] * derivative(kind, x ? (float)x[i] : 0.0f, y[i]);
}

// Normalize each pixel over its channels, (N, C, H, W) -> same: mode 0 relu, 1 softmax, 2 softmax of x - max.
// y = r / (1e-4 + sum over C of r), r = max(x, 0) or exp(x) or exp(x - max). One thread per pixel; n = N*H*W, P = H*W.
extern "C" __global__ void normalize_channels(const T *x, T *y, int n, int C, int P, int mode) {
    int i = thread_index();
    if (i >= n) return;
    int first = i / P * C * P + i % P, last = first + C * P;
    float shift = 0, sum = 0;
    if (mode == 2) {
        shift = MINUS_INFINITY;
        for (int j = first; j < last; j += P) shift = fmaxf(shift, x[j]);
    }
    for (int j = first; j < last; j += P) sum += mode == 0 ? fmaxf(x[j], 0) : expf(x[j] - shift);
    for (int j = first; j < last; j += P) y[j] = (mode == 0 ? fmaxf(x[j], 0) : expf(x[j] - shift)) / (1e-4f + sum);
}

// Return the gradient at the input of `normalize_channels`, from dy (N, C, H, W) and its output y -> dx. One thread per pixel; n = N*H*W.
extern "C" __global__ void normalize_channels_backward(const T *dy, const T *y, T *dx, int n, int C, int P, int mode) {
    int i = thread_index();
    if (i >= n) return;
    int first = i / P * C * P + i % P, last = first + C * P;
    float sum = 0;
    if (mode != 0)
        for (int j = first; j < last; j += P) sum += dy[j] * y[j];
    for (int j = first; j < last; j += P) dx[j] = y[j] * (mode == 0 ? (float)dy[j] : dy[j] - sum);
}
