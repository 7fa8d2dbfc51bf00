// The loss of [region]. Kernels of gpudarknet/ops/region_loss.py.
//
// y and delta are (N, P, A, E) in memory: E = coords + 1 + classes values for each of A anchors of P = H*W cells.

#include "loss.cuh"

// The scalar fields of RegionLoss in gpudarknet/ops/region_loss.py, in their order.
struct Settings {
    float max, coords, bias_match, rescore, thresh, classfix, focal_loss, coord_scale, object_scale, noobject_scale, class_scale;
};

const int CLASS_ONLY = 100000;  // as in region_loss.py

// anchors (A, 2) in cells; tree (3, classes): of each class its parent or -1, and the range [first, last) of its siblings; null
// without a tree. boxes (N, rows, 4), classes (N, rows), counts (N) as `list_truths` writes them.
#define ARGUMENTS const T *y, float *delta, const float *anchors, const int *tree, const float *settings, \
                  const float *boxes, const int *classes, const int *counts, int rows, int A, int E, int W, int H

__device__ inline float logistic(float x) { return 1 / (1 + expf(-x)); }
__device__ inline float slope(float y) { return (1 - y) * y; }

// The box that e predicts in a cell of a W x H grid.
__device__ inline Box predict(const T *e, const float *anchor, int i, int j, int W, int H) {
    return {(logistic(e[0]) + i) / W, (logistic(e[1]) + j) / H, expf(e[2]) * (anchor[0] / W), expf(e[3]) * (anchor[1] / H)};
}

// Set the class deltas of one box to class k, times scale; in a tree, at every level from k up to the root. One thread, or a
// warp whose `lanes` share the classes.
__device__ inline void classify(const Settings &s, const int *tree, const T *y, float *delta, int num_classes, int k,
                                float scale, int lane, int lanes) {
    float gain = s.focal_loss && !tree ? focal(y[k]) : 1;
    while (k >= 0) {
        int first = tree ? tree[num_classes + k] : 0, last = tree ? tree[2 * num_classes + k] : num_classes;
        for (int c = first + lane; c < last; c += lanes) delta[c] = scale * ((c == k) - y[c]) * gain;
        k = tree ? tree[k] : -1;
    }
}

// Train the box with the highest probability of the class of a truth without a box (truth (N, rows, 6), the first `limit` rows
// of an image): unboxed (N) says which images have one. One block of 256 threads per image.
extern "C" __global__ void class_only(const float *truth, const T *y, float *delta, const int *tree, const float *settings,
                                      int *unboxed, int rows, int limit, int A, int E, int W, int H) {
    __shared__ float highest[256];
    __shared__ int box_of[256];
    const Settings &s = *(const Settings *)settings;
    int image = blockIdx.x, lane = threadIdx.x, o = s.coords, num_classes = E - o - 1, count = W * H * A, k = -1;
    truth += image * rows * 6;
    y += image * count * E;
    for (const float *t = truth; t < truth + limit * 6 && t[0] != 0 && k < 0; t += 6)
        if (t[0] > CLASS_ONLY && t[1] > CLASS_ONLY && t[4] >= 0 && t[4] < num_classes) k = t[4];
    if (lane == 0) unboxed[image] = k >= 0;
    if (k < 0) return;
    highest[lane] = MINUS_INFINITY;
    box_of[lane] = min(lane, count - 1);
    for (int box = lane; box < count; box += 256) {
        float p = y[box * E + o];
        for (int c = k; c >= 0; c = tree[c]) p *= y[box * E + o + 1 + c];
        if (p > highest[lane]) highest[lane] = p, box_of[lane] = box;
    }
    for (int half = 128; half; half /= 2) {
        __syncthreads();
        if (lane >= half) continue;
        bool before = highest[lane + half] == highest[lane] && box_of[lane + half] < box_of[lane];
        if (highest[lane + half] > highest[lane] || before)
            highest[lane] = highest[lane + half], box_of[lane] = box_of[lane + half];
    }
    if (lane >= 32) return;
    __syncwarp();
    int first = box_of[0] * E + o + 1;
    classify(s, tree, y + first, delta + image * count * E + first, num_classes, k, s.class_scale, lane, 32);
}

// Push the objectness of every box towards 0, except where it already matches a truth of its image; with classfix also train the
// class of those. prior: pull all boxes towards their anchors. Images that are `unboxed` (N) are left out. One thread per
// box: n = N*P*A.
extern "C" __global__ void background(ARGUMENTS, const int *unboxed, int n, int prior) {
    int k = thread_index();
    if (k >= n) return;
    const Settings &s = *(const Settings *)settings;
    int a = k % A, cell = k / A % (W * H), image = k / (A * W * H), o = s.coords, nearest = 0;
    if (unboxed && unboxed[image]) return;
    y += k * E;
    delta += k * E;
    Box box = predict(y, anchors + 2 * a, cell % W, cell / W, W, H);
    float best = 0, out = y[o];
    for (int t = 0; t < counts[image]; t++) {
        float u = iou(box, load_box(boxes + (image * rows + t) * 4));
        if (u > best) best = u, nearest = t;
    }
    bool ignored = s.classfix != -1 && best > s.thresh;
    delta[o] = ignored ? 0 : s.noobject_scale * ((s.classfix == -1 ? best : 0) - out) * slope(out);
    if (ignored && s.classfix > 0) {
        float scale = s.class_scale * (s.classfix == 2 ? out : 1);
        classify(s, tree, y + o + 1, delta + o + 1, E - o - 1, classes[image * rows + nearest], scale, 0, 1);
    }
    for (int c = 0; prior && c < 2; c++) {
        float position = logistic(y[c]);
        delta[c] = 0.01f * (0.5f - position) * slope(position);
        delta[c + 2] = 0.01f * (0 - y[c + 2]);
    }
}

// Assign the truths of an image, one after the other, to the anchor that fits best in their center's cell. One warp per image.
extern "C" __global__ void assign(ARGUMENTS, const int *unboxed) {
    const Settings &s = *(const Settings *)settings;
    int image = blockIdx.x, lane = threadIdx.x, o = s.coords;
    if (unboxed && unboxed[image]) return;
    y += image * W * H * A * E;
    delta += image * W * H * A * E;
    for (int t = 0; t < counts[image]; t++) {
        Box truth = load_box(boxes + (image * rows + t) * 4), centered = {0, 0, truth.w, truth.h};
        int i = cell(truth.x, W), j = cell(truth.y, H), first = (j * W + i) * A * E, best = 0;
        float overlap = -1;
        for (int a = 0; a < A; a++) {
            Box shape = predict(y + first + a * E, anchors + 2 * a, i, j, W, H);
            if (s.bias_match) shape.w = anchors[2 * a] / W, shape.h = anchors[2 * a + 1] / H;
            float u = iou({0, 0, shape.w, shape.h}, centered);
            if (u > overlap) overlap = u, best = a;
        }
        const T *e = y + first + best * E;
        const float *anchor = anchors + 2 * best;
        float *d = delta + first + best * E;
        classify(s, tree, e + o + 1, d + o + 1, E - o - 1, classes[image * rows + t], s.class_scale, lane, 32);
        if (lane == 0) {
            float px = logistic(e[0]), py = logistic(e[1]);
            d[0] = s.coord_scale * (truth.x * W - i - px) * slope(px);
            d[1] = s.coord_scale * (truth.y * H - j - py) * slope(py);
            d[2] = s.coord_scale * (logf(truth.w / (anchor[0] / W)) - e[2]);
            d[3] = s.coord_scale * (logf(truth.h / (anchor[1] / H)) - e[3]);
            float aim = s.rescore ? iou(predict(e, anchor, i, j, W, H), truth) : 1;
            d[o] = s.object_scale * (aim - e[o]) * slope(e[o]);
        }
        __syncwarp();
    }
}
