// The block permutations of [reorg] and [reorg3d]. Kernels of gpudarknet/ops/reorg.py.
//
// depth (N, C*s*s, H, W) and space (N, C, H*s, W*s) hold the same values:
// depth[n, (p*s + q)*C + c, i, j] = space[n, c, i*s + p, j*s + q].

// Return the index in space of element k of depth.
__device__ inline int in_space(int k, int C, int H, int W, int s) {
    int j = k % W, i = k / W % H, channel = k / (W * H) % (C * s * s), n = k / (W * H * C * s * s);
    int c = channel % C, q = channel / C % s, p = channel / C / s;
    return ((n * C + c) * H * s + i * s + p) * W * s + j * s + q;
}

// Move s x s blocks of pixels into channels: x (N, C, H*s, W*s) -> y (N, C*s*s, H, W).
extern "C" __global__ void space_to_depth(const T *x, T *y, int n, int C, int H, int W, int s) {
    int k = thread_index();
    if (k < n) y[k] = x[in_space(k, C, H, W, s)];
}

// Move channels into s x s blocks of pixels: x (N, C*s*s, H, W) -> y (N, C, H*s, W*s).
extern "C" __global__ void depth_to_space(const T *x, T *y, int n, int C, int H, int W, int s) {
    int k = thread_index();
    if (k < n) y[in_space(k, C, H, W, s)] = x[k];
}
