// Pictures to network input. Twin of gpudarknet/ops/resize.py.

// Resize a picture uint8 (h, w, C) to new_w x new_h, bilinear, and centre it on grey -> y (C, H, W) in 0..1.
// low, part (new_h + new_w): for every row and then every column the pixel before it, and how far it is from that (0..1).
extern "C" __global__ void network_input(const unsigned char *picture, const int *low, const float *part, T *y, int n, int C,
                                         int h, int w, int H, int W, int new_h, int new_w) {
    int k = thread_index();
    if (k >= n) return;
    int i = k / W % H - (H - new_h) / 2, j = k % W - (W - new_w) / 2;
    if (i < 0 || i >= new_h || j < 0 || j >= new_w) {
        y[k] = 0.5f;
        return;
    }
    int top = low[i], left = low[new_h + j], bottom = min(top + 1, h - 1), right = min(left + 1, w - 1);
    float down = part[i], along = part[new_h + j];
    picture += k / (H * W);
    float above = (1 - along) * (picture[(top * w + left) * C] / 255.0f) + along * (picture[(top * w + right) * C] / 255.0f);
    float below = (1 - along) * (picture[(bottom * w + left) * C] / 255.0f) + along * (picture[(bottom * w + right) * C] / 255.0f);
    y[k] = (1 - down) * above + down * below;
}
