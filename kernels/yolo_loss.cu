// The loss of [yolo] and [Gaussian_yolo]. Kernels of gpudarknet/ops/yolo_loss.py.
//
// An anchor has E channels: 0, stride, 2*stride, 3*stride are its box, then come objectness and the classes. Deltas are zeroed
// before: `background` acts on all slots, then `assign` lets the truths of an image act one after the other.

#include "loss.cuh"

// The scalar fields of AnchorLoss in gpudarknet/ops/yolo_loss.py, in their order.
struct Settings {
    float weighted, exact, max, scale_x_y, objectness_smooth, iou_loss, iou_thresh_kind, iou_thresh, ignore_thresh,
        truth_thresh, label_smooth_eps, max_delta, iou_normalizer, obj_normalizer, cls_normalizer, delta_normalizer, gaussian,
        new_coords, focal_loss, boxes_cost_iou, corner, uc_normalizer;

    __device__ int stride() const { return gaussian ? 2 : 1; }
    __device__ int objectness() const { return 4 * stride(); }
};

const float CLASS_THRESH = 0.25f;  // as in yolo_loss.py

// One slot: its output and delta, and where it is.
struct Slot {
    const T *y;
    float *delta;
    int step, i, j, W, H;
    float anchor_w, anchor_h;

    __device__ Box box(const Settings &s) const {
        int next = s.stride() * step;
        float w = y[2 * next], h = y[3 * next];
        w = (s.new_coords ? 4 * w * w : expf(w)) * anchor_w;
        h = (s.new_coords ? 4 * h * h : expf(h)) * anchor_h;
        return {(y[0] + i) / W + s.corner * w, (y[next] + j) / H + s.corner * h, w, h};
    }
};

// What most kernels read: y and delta (N, A*E, H, W); anchors (count, 2), relative to the network input; anchor_ids (A).
#define MAPS const T *y, float *delta, const float *anchors, const int *anchor_ids, const float *settings, int A, int E, \
             int W, int H, int channel, int pixel

// boxes (N, rows, 4), classes (N, rows), counts (N) as `list_truths` writes them; class_weights (classes).
#define TRUTHS const float *boxes, const int *classes, const int *counts, const float *class_weights, int rows

#define SLOT(image, a, i, j) slot_of(y, delta, anchors, anchor_ids[a], A, E, W, H, channel, pixel, image, a, i, j)

__device__ inline Slot slot_of(const T *y, float *delta, const float *anchors, int anchor, int A, int E, int W, int H,
                               int channel, int pixel, int image, int a, int i, int j) {
    int at = image * A * E * W * H + a * E * channel + (j * W + i) * pixel;
    return {y + at, delta + at, channel, i, j, W, H, anchors[2 * anchor], anchors[2 * anchor + 1]};
}

// Set the class deltas of a slot to class k; if another truth has set them, only that of k. One thread, or a warp whose `lanes`
// share the classes.
__device__ inline void classify(const Settings &s, const Slot &slot, int num_classes, int k, float weight, int lane,
                                int lanes) {
    int first = (s.objectness() + 1) * slot.step, step = slot.step;
    const T *y = slot.y + first;
    float *delta = slot.delta + first;
    float high = 1 - s.label_smooth_eps + 0.5f * s.label_smooth_eps, low = 0.5f * s.label_smooth_eps;
    bool set_before = delta[(s.gaussian ? 0 : k) * step] != 0;
    float gain = s.focal_loss ? focal(y[k * step]) : 1;
    if (lanes > 1) __syncwarp();  // all have read before one writes
    for (int c = lane; c < num_classes; c += lanes) {
        float out = y[c * step];
        if (set_before) {
            if (c == k) delta[c * step] = (high - out) * (s.weighted ? weight : 1);
        } else if (s.focal_loss) {
            delta[c * step] = ((c == k) - out) * gain;
        } else {
            delta[c * step] = ((c == k ? high : low) - out) * (c == k && s.weighted ? weight * s.cls_normalizer : 1);
        }
    }
    if (lanes > 1) __syncwarp();
}

__device__ inline float ratio(float a, float b) { return b == 0 ? 0 : a / b; }

// The delta d[4] of x, y, w, h that moves box p towards truth q: box_delta in gpudarknet/ops/box_loss.py.
__device__ inline void box_delta(int variant, bool exact, Box p, Box q, float *d) {
    float t = p.y - p.h / 2, b = p.y + p.h / 2, l = p.x - p.w / 2, r = p.x + p.w / 2;
    float T_ = q.y - q.h / 2, B = q.y + q.h / 2, L = q.x - q.w / 2, R = q.x + q.w / 2;
    float inter_h = fminf(b, B) - fmaxf(t, T_), inter_w = fminf(r, R) - fmaxf(l, L);
    bool disjoint = inter_w <= 0 || inter_h <= 0;
    if (exact && disjoint) inter_h = inter_w = 0;
    float inter = inter_w * inter_h, both = p.w * p.h + q.w * q.h - inter;
    float outer_h = fmaxf(b, B) - fminf(t, T_), outer_w = fmaxf(r, R) - fminf(l, L), outer = outer_h * outer_w;
    // derivatives with respect to the edges t, b, l, r
    float darea[4] = {-p.w, p.w, -p.h, p.h};
    float dinter[4] = {t > T_ ? -inter_w : 0, b < B ? inter_w : 0, l > L ? -inter_h : 0, r < R ? inter_h : 0};
    float douter[4] = {t < T_ ? -outer_w : 0, b > B ? outer_w : 0, l < L ? -outer_h : 0, r > R ? outer_h : 0};
    float g[4];
    for (int e = 0; e < 4; e++) {
        float dboth = darea[e] - dinter[e];
        g[e] = both > 0 ? ratio(both * dinter[e] - inter * dboth, both * both) : 0;
        if (variant == GIOU) {
            float penalty = outer > 0 ? ratio(outer * dboth - both * douter[e], outer * outer) : 0;
            g[e] = disjoint ? penalty : g[e] + penalty;
        }
    }
    float half = exact ? 0.5f : 1;
    d[0] = g[2] + g[3];
    d[1] = g[0] + g[1];
    d[2] = half * (g[3] - g[2]);
    d[3] = half * (g[1] - g[0]);
    if (variant < DIOU) return;
    float distance2 = (p.x - q.x) * (p.x - q.x) + (p.y - q.y) * (p.y - q.y);
    float diagonal2 = outer_w * outer_w + outer_h * outer_h, square = diagonal2 * diagonal2, sign = exact ? 1 : -1;
    float left = l < L, right = r > R, top = t < T_, low = b > B;
    float penalty[4] = {
        ratio(2 * (q.x - p.x) * diagonal2 + sign * 2 * outer_w * (right - left) * distance2, square),
        ratio(2 * (q.y - p.y) * diagonal2 + sign * 2 * outer_h * (low - top) * distance2, square),
        ratio(outer_w * (right + left) * distance2, square),
        ratio(outer_h * (low + top) * distance2, square),
    };
    if (variant == CIOU) {
        float angle = atanf(ratio(q.w, q.h)) - atanf(ratio(p.w, p.h)), v = 0.405284735f * angle * angle;  // 4 / pi^2
        float slope = v / (1 - ratio(inter, both) + v + 1e-6f) * 0.810569469f * angle;
        if (exact) slope = ratio(slope, p.w * p.w + p.h * p.h);
        penalty[2] += slope * p.h;
        penalty[3] -= slope * p.w;
    }
    for (int e = 0; e < 4; e++) d[e] = disjoint ? penalty[e] : d[e] + penalty[e];
}

// Clip to +-limit; what is not finite becomes 0.
__device__ inline float clip(float v, float limit) { return fabsf(v) <= 3.40282347e38f ? fminf(fmaxf(v, -limit), limit) : 0; }

// Add to the box delta of a slot, whose predicted box is p, what moves it towards a truth.
__device__ inline void move_box(const Settings &s, const Slot &slot, Box p, Box truth, float weight) {
    int next = s.stride() * slot.step;
    float out[4], error[4], d[4], scale = 2 - truth.w * truth.h;
    for (int e = 0; e < 4; e++) out[e] = slot.y[e * next];
    error[0] = (truth.x - s.corner * truth.w) * slot.W - slot.i - out[0];
    error[1] = (truth.y - s.corner * truth.h) * slot.H - slot.j - out[1];
    float w = truth.w / slot.anchor_w, h = truth.h / slot.anchor_h;
    error[2] = (s.new_coords ? sqrtf(w / 4) : logf(w)) - out[2];
    error[3] = (s.new_coords ? sqrtf(h / 4) : logf(h)) - out[3];
    for (int e = 0; e < 4; e++) {
        d[e] = scale * error[e];
        if (!s.gaussian) continue;
        float sigma = slot.y[e * next + slot.step], z = error[e] / sigma, soft = sigma + 0.3f;
        float density = expf(-z * z / 2) / (2.50662827f * soft);  // sqrt(2 pi)
        float factor = 0.5f * scale * density / (density + 1e-9f);
        d[e] = factor * z / sigma;
        slot.delta[e * next + slot.step] += clip(factor * (z * z / sigma - 1 / soft) * s.uc_normalizer, s.max_delta);
    }
    if (s.iou_loss != MSE) {
        box_delta(s.iou_loss, s.exact, {p.x, p.y, p.w == 0 ? 1 : p.w, p.h == 0 ? 1 : p.h}, truth, d);
        if (s.exact) {  // from boxes to the layer's input
            float size[2] = {d[2] + s.corner * d[0], d[3] + s.corner * d[1]}, extent[2] = {p.w, p.h};
            int cells[2] = {slot.W, slot.H};
            for (int c = 0; c < 2; c++) {
                float position = (out[c] + 0.5f * (s.scale_x_y - 1)) / s.scale_x_y;
                d[c] *= s.scale_x_y * (s.new_coords ? 1 : position * (1 - position)) / cells[c];
                d[c + 2] = size[c] * (s.new_coords ? 2 * extent[c] / out[c + 2] : extent[c]);
            }
        } else {
            for (int c = 0; c < 2; c++) {
                d[c] -= s.corner * d[c + 2];
                d[c + 2] *= s.new_coords ? 1 : expf(out[c + 2]);
            }
        }
    }
    for (int e = 0; e < 4; e++) {
        float v = d[e] * (weight * s.iou_normalizer);
        slot.delta[e * next] += s.iou_loss != MSE || s.gaussian ? clip(v, s.max_delta) : v;
    }
}

// Push the objectness of every slot towards 0, except where the predicted box already matches a truth of its image. One thread
// per slot: n = N*A*H*W.
extern "C" __global__ void background(MAPS, TRUTHS, int n) {
    int k = thread_index(), P = W * H;
    if (k >= n) return;
    const Settings &s = *(const Settings *)settings;
    int image = k / (A * P);
    Slot slot = SLOT(image, k / P % A, k % W, k % P / W);
    Box box = slot.box(s);
    int o = s.objectness() * slot.step, first = s.objectness() + 1, nearest = 0;
    float best = 0, out = slot.y[o], weight = s.obj_normalizer, push = weight * (0 - out);
    for (int t = 0; t < counts[image]; t++) {
        float u = iou(box, load_box(boxes + (image * rows + t) * 4));
        if (u > best) best = u, nearest = t;
    }
    if (best > s.ignore_thresh) {
        bool probable = false;
        for (int c = first; c < E && !probable; c++) probable = slot.y[c * slot.step] > CLASS_THRESH;
        if (probable && s.objectness_smooth && s.gaussian) {
            int c = classes[image * rows + nearest];
            push = weight * (best * best - out);
            classify(s, slot, E - first, c, class_weights[c], 0, 1);
        } else if (probable) {
            push = s.objectness_smooth ? fmaxf(push, weight * (best - out)) : 0;
        }
    }
    if (best > s.truth_thresh) {
        int c = classes[image * rows + nearest];
        float goal = s.objectness_smooth ? best * best : 1;
        push = weight * (goal - out);
        classify(s, slot, E - first, c, class_weights[c], 0, 1);
        int at = (first + c) * slot.step;
        if (s.objectness_smooth) slot.delta[at] = class_weights[c] * (goal - slot.y[at]);
        move_box(s, slot, box, load_box(boxes + (image * rows + nearest) * 4), class_weights[c]);
    }
    slot.delta[o] = push;
}

// Assign the truths of an image, one after the other, to their best anchor and, with iou_thresh, to similar anchors, in their
// center's cell. places (count): the first index of an anchor in anchor_ids, or -1. losses (N, 2): the sum of 1 - IoU (or GIoU)
// of the assigned boxes, and their number. One warp per image.
extern "C" __global__ void assign(MAPS, TRUTHS, const int *places, float *losses, int count) {
    const Settings &s = *(const Settings *)settings;
    int image = blockIdx.x, lane = threadIdx.x, o = s.objectness() * channel, num_classes = E - s.objectness() - 1;
    float loss = 0, number = 0;
    for (int t = 0; t < counts[image]; t++) {
        Box truth = load_box(boxes + (image * rows + t) * 4), centered = {0, 0, truth.w, truth.h};
        int k = classes[image * rows + t], best = 0;
        float overlap = -1, weight = class_weights[k];
        for (int m = 0; m < count; m++) {
            float u = iou({0, 0, anchors[2 * m], anchors[2 * m + 1]}, centered);
            if (u > overlap) overlap = u, best = m;
        }
        int i = cell(truth.x - s.corner * truth.w, W), j = cell(truth.y - s.corner * truth.h, H);
        for (int m = 0; m < count; m++) {
            if (places[m] < 0) continue;
            Box shape = {0, 0, anchors[2 * m], anchors[2 * m + 1]};
            bool similar = s.iou_thresh < 1 && similarity(s.iou_thresh_kind, shape, centered) > s.iou_thresh;
            if (m != best && !similar) continue;
            Slot slot = SLOT(image, places[m], i, j);
            Box box = slot.box(s);
            classify(s, slot, num_classes, k, weight, lane, 32);
            loss += 1 - similarity(s.iou_loss == GIOU ? GIOU : IOU, box, truth);
            number++;
            if (lane == 0) {
                if (s.gaussian || !s.objectness_smooth || slot.delta[o] == 0)
                    slot.delta[o] = weight * s.obj_normalizer * (1 - slot.y[o]);
                move_box(s, slot, box, truth, weight);
            }
        }
    }
    if (lane == 0) {
        losses[2 * image] = loss;
        losses[2 * image + 1] = number;
    }
}

// Average the box deltas of slots with several classes. One thread per slot: n = N*A*H*W.
extern "C" __global__ void average(MAPS, int n) {
    int k = thread_index(), P = W * H;
    if (k >= n) return;
    const Settings &s = *(const Settings *)settings;
    Slot slot = SLOT(k / (A * P), k / P % A, k % W, k % P / W);
    int o = s.objectness(), positive = 0;
    bool moved = false;
    for (int e = 0; e < o; e++) moved |= slot.delta[e * slot.step] != 0;
    if (!moved || (!s.gaussian && slot.delta[o * slot.step] == 0)) return;
    for (int e = o + 1; e < E; e++) positive += slot.delta[e * slot.step] > 0;
    for (int e = 0; e < o; e++) slot.delta[e * slot.step] /= max(positive, 1);
}
