// Concatenate feature maps along channels, and split them again. Kernels of gpudarknet/ops/route.py.

// Copy F channels of each image of x (N, C, P) from channel `from` on to channels `to` on of y (N, K, P). n = N*F*P.
extern "C" __global__ void copy_channels(const T *x, T *y, int n, int P, int F, int C, int from, int K, int to) {
    int i = thread_index();
    if (i >= n) return;
    int inside = i % (F * P), image = i / (F * P);
    y[(image * K + to) * P + inside] = x[(image * C + from) * P + inside];
}

// The backward pass for one source: F channels of dy (N, K, P), from channel `from` on, -> dx (N, C, P) from channel `to` on, which
// is 0 elsewhere. n = N*C*P.
extern "C" __global__ void spread_channels(const T *dy, T *dx, int n, int P, int F, int K, int from, int C, int to) {
    int i = thread_index();
    if (i >= n) return;
    int p = i % P, c = i / P % C - to, image = i / (P * C);
    if (c >= 0 && c < F)
        dx[i] = dy[(image * K + from + c) * P + p];
    else
        dx[i] = 0;
}
