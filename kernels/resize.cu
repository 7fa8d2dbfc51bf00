// Pictures to network input. Twin of gpudarknet/ops/resize.py.

// Where a sample lies on an axis of pixels: the pixels before and after it, and how far it is from the first (0..1).
struct Tap {
    int low, high;
    float part;
};

// The sample `at` of `wanted` ones on `size` pixels, `step` apart: first on first, last on last, as gpudarknet/image/resize.py.
__device__ inline Tap tap(int at, int wanted, int size, float step) {
    if (at == wanted - 1) return {size - 1, size - 1, 0};
    float position = __fmul_rn(at, step);  // rounded as such: joined with the subtraction below it would be another number
    int low = min((int)position, size - 1);
    return {low, min(low + 1, size - 1), position - low};
}

// Resize pictures uint8 (N, h, w, C) to new_w x new_h, bilinear, and centre them on grey -> y in 0..1, where number (c, i, j)
// of an image (C, H, W) lies at image * per_image + c * per_channel + (i * W + j) * per_pixel. n = N*H*W*C.
extern "C" __global__ void network_input(const unsigned char *pictures, T *y, int n, int C, int h, int w, int H, int W,
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
    pictures += image * h * w * C + c;
    const unsigned char *above = pictures + down.low * w * C, *below = pictures + down.high * w * C;
    float first = (1 - along.part) * (above[along.low * C] / 255.0f) + along.part * (above[along.high * C] / 255.0f);
    float second = (1 - along.part) * (below[along.low * C] / 255.0f) + along.part * (below[along.high * C] / 255.0f);
    *y = (1 - down.part) * first + down.part * second;
}
