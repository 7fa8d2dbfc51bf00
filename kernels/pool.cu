// Pooling. Kernels of gpudarknet/ops/pool.py. `before` is padding // 2: the first window starts at -before.

// Return the range [first, last) of window i (of `size`, at steps of `stride`) inside [0, length).
__device__ inline void window(int i, int size, int stride, int before, int length, int &first, int &last) {
    first = max(i * stride - before, 0);
    last = min(i * stride - before + size, length);
}

// Return the windows that contain position h: first to last, both included.
__device__ inline void windows(int h, int size, int stride, int before, int count, int &first, int &last) {
    int reach = h + before - size + 1;
    first = reach > 0 ? (reach + stride - 1) / stride : 0;
    last = min((h + before) / stride, count - 1);
}

// Return the maximum of each window: x (N, C, H, W) -> y (N, C, OH, OW); padding does not count.
extern "C" __global__ void maxpool(const T *x, T *y, int n, int H, int W, int OH, int OW, int size, int sy, int sx,
                                   int before) {
    int k = thread_index();
    if (k >= n) return;
    int top, bottom, left, right;
    window(k / OW % OH, size, sy, before, H, top, bottom);
    window(k % OW, size, sx, before, W, left, right);
    x += k / (OH * OW) * H * W;
    float best = MINUS_INFINITY;
    for (int h = top; h < bottom; h++)
        for (int w = left; w < right; w++) {
            float v = x[h * W + w];
            if (v > best || v != v) best = v;  // NaN propagates
        }
    y[k] = best;
}

// Return each window's (first) argmax, row * W + column: x (N, C, H, W) -> index (N, C, OH, OW).
extern "C" __global__ void maxpool_argmax(const T *x, int *index, int n, int H, int W, int OH, int OW, int size, int sy,
                                          int sx, int before) {
    int k = thread_index();
    if (k >= n) return;
    int top, bottom, left, right, where = 0;
    window(k / OW % OH, size, sy, before, H, top, bottom);
    window(k % OW, size, sx, before, W, left, right);
    x += k / (OH * OW) * H * W;
    float best = MINUS_INFINITY;
    for (int h = top; h < bottom; h++)
        for (int w = left; w < right; w++) {
            float v = x[h * W + w];
            if (v > best) {
                best = v;
                where = h * W + w;
            }
        }
    index[k] = where;
}

// Add each dy (N, C, OH, OW) to the pixel its maximum came from -> dx (N, C, H, W). One thread per element of dx, which
// gathers from the windows that contain it.
extern "C" __global__ void maxpool_backward(const T *dy, const int *index, T *dx, int n, int H, int W, int OH, int OW,
                                            int size, int sy, int sx, int before) {
    int k = thread_index();
    if (k >= n) return;
    int top, bottom, left, right, pixel = k % (H * W);
    windows(pixel / W, size, sy, before, OH, top, bottom);
    windows(pixel % W, size, sx, before, OW, left, right);
    int plane = k / (H * W) * OH * OW;
    float sum = 0;
    for (int i = top; i <= bottom; i++)
        for (int j = left; j <= right; j++)
            if (index[plane + i * OW + j] == pixel) sum += dy[plane + i * OW + j];
    dx[k] = sum;
}

// Return maxima over channels: x (N, C, H, W) -> y (N, F, H, W), output g over inputs g, g+F, g+2F, ...; P = H*W.
extern "C" __global__ void maxpool_depth(const T *x, T *y, int n, int C, int F, int P) {
    int i = thread_index();
    if (i >= n) return;
    x += i / (F * P) * C * P + i % P;
    float best = MINUS_INFINITY;
    for (int c = i / P % F; c < C; c += F) {
        float v = x[c * P];
        if (v > best || v != v) best = v;
    }
    y[i] = best;
}

// Add each dy (N, F, H, W) to the first channel of x (N, C, H, W) that equals its maximum y -> dx (N, C, H, W).
extern "C" __global__ void maxpool_depth_backward(const T *dy, const T *x, const T *y, T *dx, int n, int C, int F, int P) {
    int i = thread_index();
    if (i >= n) return;
    int c = i / P % C, out = (i / (C * P) * F + c % F) * P + i % P;
    float best = y[out];
    bool first = x[i] == best;
    for (int k = c - F; k >= 0; k -= F) first = first && x[i - (c - k) * P] != best;
    dx[i] = first ? (float)dy[out] : 0.0f;
}

// Average each window, without padding: x (N, C, H, W) -> (N, C, OH, OW).
extern "C" __global__ void local_avgpool(const T *x, T *y, int n, int H, int W, int OH, int OW, int size, int sy, int sx,
                                         int before) {
    int k = thread_index();
    if (k >= n) return;
    int top, bottom, left, right;
    window(k / OW % OH, size, sy, before, H, top, bottom);
    window(k % OW, size, sx, before, W, left, right);
    x += k / (OH * OW) * H * W;
    float sum = 0;
    for (int h = top; h < bottom; h++)
        for (int w = left; w < right; w++) sum += x[h * W + w];
    y[k] = sum / ((bottom - top) * (right - left));
}

// Distribute each dy (N, C, OH, OW) over the pixels of its window -> dx (N, C, H, W). One thread per element of dx.
extern "C" __global__ void local_avgpool_backward(const T *dy, T *dx, int n, int H, int W, int OH, int OW, int size, int sy,
                                                  int sx, int before) {
    int k = thread_index();
    if (k >= n) return;
    int top, bottom, left, right, pixel = k % (H * W);
    windows(pixel / W, size, sy, before, OH, top, bottom);
    windows(pixel % W, size, sx, before, OW, left, right);
    dy += k / (H * W) * OH * OW;
    float sum = 0;
    for (int i = top; i <= bottom; i++)
        for (int j = left; j <= right; j++) {
            int h0, h1, w0, w1;
            window(i, size, sy, before, H, h0, h1);
            window(j, size, sx, before, W, w0, w1);
            sum += dy[i * OW + j] / ((h1 - h0) * (w1 - w0));
        }
    dx[k] = sum;
}

// Average each channel: x (N, C, H, W) -> y (N, C, 1, 1). One warp per channel: n = N*C, P = H*W.
extern "C" __global__ void avgpool(const T *x, T *y, int n, int P) {
    int i = thread_index() / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    float sum = 0;
    for (int p = lane; p < P; p += 32) sum += x[i * P + p];
    sum = warp_sum(sum);
    if (lane == 0) y[i] = sum / P;
}

// Distribute dy (N, C, 1, 1) over all pixels of its channel -> dx (N, C, H, W); P = H*W.
extern "C" __global__ void avgpool_backward(const T *dy, T *dx, int n, int P) {
    int i = thread_index();
    if (i < n) dx[i] = dy[i / P] / P;
}
