// Images to network input. Kernel of gpudarknet/ops/resize.py.

// The position of a sample on an axis: the pixels before and after it, and its distance from the first (0..1).
struct Tap {
    int low, high;
    float fraction;
};

// Return sample `at` of `count` on `size` pixels at spacing `step`, with aligned corners, as in gpudarknet/image/resize.py.
__device__ inline Tap tap(int at, int count, int size, float step) {
    if (at == count - 1) return {size - 1, size - 1, 0};
    float position = __fmul_rn(at, step);  // rounded here: fused with the subtraction below it would differ
    int low = min((int)position, size - 1);
    return {low, min(low + 1, size - 1), position - low};
}

// Resize images uint8 (N, h, w, C) to new_w x new_h, bilinear, and center them on gray -> y in 0..1, where element (c, i, j)
// of an image (C, H, W) is at image * per_image + c * per_channel + (i * W + j) * per_pixel. n = N*H*W*C.
extern "C" __global__ void network_input(const unsigned char *images, T *y, int n, int C, int h, int w, int H, int W,
                                         int new_h, int new_w, float step_h, float step_w, int per_image, int per_channel,
                                         int per_pixel) {
    int k = thread_index();
    if (k >= n) return;
    int c = k % C, pixel = k / C % (H * W), image = k / (C * H * W);
    int i = pixel / W - (H - new_h) / 2, j = pixel % W - (W - new_w) / 2;
    y += image * per_image + c * per_channel + pixel * per_pixel;
    if (i < 0 || i >= new_h || j < 0 || j >= new_w) {
        *y = 0.5f;
        return;
    }
    Tap down = tap(i, new_h, h, step_h), along = tap(j, new_w, w, step_w);
    images += image * h * w * C + c;
    const unsigned char *above = images + down.low * w * C, *below = images + down.high * w * C;
    float first = (1 - along.fraction) * (above[along.low * C] / 255.0f) + along.fraction * (above[along.high * C] / 255.0f);
    float second = (1 - along.fraction) * (below[along.low * C] / 255.0f) + along.fraction * (below[along.high * C] / 255.0f);
    *y = (1 - down.fraction) * first + down.fraction * second;
}
