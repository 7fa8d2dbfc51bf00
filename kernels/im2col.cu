// Patches of an image as the columns of a matrix. Kernels of gpudarknet/ops/im2col.py.

// Copy patches into columns: x (N, C, H, W) -> col (N, C, size, size, OH, OW).
// col[n, c, p, q, i, j] = x[n, c, i*sy - pad + p*dilation, j*sx - pad + q*dilation], 0 outside.
// One thread per patch: n = N*C*OH*OW.
extern "C" __global__ void im2col(const T *x, T *col, int n, int H, int W, int OH, int OW, int size, int sy, int sx,
                                  int dilation, int pad) {
    int i = thread_index();
    if (i >= n) return;
    int plane = i / (OH * OW), pixel = i % (OH * OW);
    int top = pixel / OW * sy - pad, left = pixel % OW * sx - pad;
    x += plane * H * W;
    col += plane * size * size * OH * OW + pixel;
    for (int p = 0; p < size; p++)
        for (int q = 0; q < size; q++, col += OH * OW) {
            int h = top + p * dilation, w = left + q * dilation;
            if (h >= 0 && h < H && w >= 0 && w < W)
                *col = x[h * W + w];
            else
                *col = 0;
        }
}

// Add patches to the pixels that `im2col` read: col (N, C, size, size, OH, OW) -> x (N, C, H, W).
// One thread per element of x, which gathers: n = N*C*H*W.
extern "C" __global__ void col2im(const T *col, T *x, int n, int H, int W, int OH, int OW, int size, int sy, int sx,
                                  int dilation, int pad) {
    int k = thread_index();
    if (k >= n) return;
    int plane = k / (H * W), bottom = k % (H * W) / W + pad, right = k % W + pad;
    float sum = 0;
    for (int p = 0; p < size; p++) {
        int h = bottom - p * dilation, i = h / sy;  // row i of the patches reads row h in tap p
        if (h < 0 || h % sy || i >= OH) continue;
        for (int q = 0; q < size; q++) {
            int w = right - q * dilation, j = w / sx;
            if (w < 0 || w % sx || j >= OW) continue;
            sum += col[((plane * size + p) * size + q) * OH * OW + i * OW + j];
        }
    }
    x[k] = sum;
}
