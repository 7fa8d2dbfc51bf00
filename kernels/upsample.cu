// Nearest-neighbour upsampling, and its adjoint. Kernels of gpudarknet/ops/upsample.py.

// Repeat every pixel s x s times and multiply by scale: x (N, C, H, W) -> y (N, C, H*s, W*s). One thread per element of y.
extern "C" __global__ void upsample(const T *x, T *y, int n, int H, int W, int s, float scale) {
    int i = thread_index();
    if (i >= n) return;
    int WS = W * s, w = i % WS / s, row = i / WS, h = row % (H * s) / s, plane = row / (H * s);
    y[i] = scale * x[(plane * H + h) * W + w];
}

// Sum blocks of s x s pixels and multiply by scale: x (N, C, H, W) -> y (N, C, H//s, W//s). One thread per element of y.
extern "C" __global__ void downsample(const T *x, T *y, int n, int H, int W, int s, float scale) {
    int i = thread_index();
    if (i >= n) return;
    int OW = W / s, OH = H / s, w = i % OW * s, row = i / OW, h = row % OH * s, plane = row / OH;
    float sum = 0;
    for (int p = 0; p < s; p++)
        for (int q = 0; q < s; q++) sum += x[(plane * H + h + p) * W + w + q];
    y[i] = scale * sum;
}
