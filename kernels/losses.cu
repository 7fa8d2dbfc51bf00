// Parts of losses: truths that count, the cost, and the losses of [softmax], [cost] and [detection]. Kernels of
// gpudarknet/ops/losses.py.
//
// A cost is summed in double: in parts of PART elements, one block each, which `sum_parts` adds in their order.

const int PART = 4096;  // as PART in losses.py

#include "loss.cuh"

// Sum over the threads of a block, whose number is a power of 2, always in the same order; every thread gets the sum.
// A kernel calls it once.
__device__ inline double block_sum_double(double v) {
    __shared__ double sums[256];
    sums[threadIdx.x] = v;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

// Select the truths that count, in order: truth (N, rows, 6): x, y, w, h, class, track -> boxes (N, rows, 4), classes (N, rows),
// counts (N). The first row with x = 0 ends the list of an image; of its first `limit` rows count those whose class is in
// class_map (num_classes). One warp per image.
extern "C" __global__ void list_truths(const float *truth, const int *class_map, float *boxes, int *classes, int *counts,
                                       int rows, int limit, int num_classes) {
    int image = blockIdx.x, lane = threadIdx.x, count = 0;
    truth += image * rows * 6;
    boxes += image * rows * 4;
    classes += image * rows;
    for (int start = 0; start < limit; start += 32) {
        const float *t = truth + (start + lane) * 6;
        unsigned ends = __ballot_sync(ALL_LANES, start + lane >= limit || t[0] == 0);
        bool counts_here = lane < (ends ? __ffs(ends) - 1 : 32) && t[4] >= 0 && t[4] < num_classes;
        unsigned votes = __ballot_sync(ALL_LANES, counts_here);
        if (counts_here) {
            int k = count + __popc(votes & ((1u << lane) - 1));
            for (int c = 0; c < 4; c++) boxes[k * 4 + c] = t[c];
            classes[k] = class_map[(int)t[4]];
        }
        count += __popc(votes);
        if (ends) break;
    }
    if (lane == 0) counts[image] = count;
}

// Scale deltas (n) by normalizer * scale[0] -> out, and sum the squares of each part, before it is scaled -> parts. Channel
// i / inner % E counts from `first` on. One block per part.
extern "C" __global__ void scale_deltas(const float *delta, const float *scale, T *out, float *parts, int n, int inner, int E,
                                        int first, float normalizer) {
    int start = blockIdx.x * PART, end = min(start + PART, n);
    float gain = normalizer * scale[0];
    double sum = 0;
    for (int i = start + threadIdx.x; i < end; i += blockDim.x) {
        double d = delta[i];
        if (i / inner % E >= first) sum += d * d;
        out[i] = delta[i] * gain;
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Sum parts (count) -> cost (1) = gain * sum + mean_gain * mean of the IoU losses, if any: losses (N, 2) has the sum and number of
// each image. One block.
extern "C" __global__ void sum_parts(const float *parts, const float *losses, float *cost, int count, int N, float gain,
                                     float mean_gain) {
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
    sum = block_sum_double(sum);
    if (threadIdx.x) return;
    double loss = 0, number = 0;
    for (int k = 0; k < N; k++) {
        loss += losses[2 * k];
        number += losses[2 * k + 1];
    }
    cost[0] = gain * sum + (number > 0 ? mean_gain * loss / number : 0);
}

// The position in NCHW order of element i of a map: itself, or of NHWC memory with C > 1 channels and P pixels.
__device__ inline int nchw(int i, int C, int P) { return (i / (C * P) * C + i % C) * P + i / C % P; }

// Cross entropy of probabilities y and truth t, both (n) -> delta = (t - y) * scale[0], 0 without a label; parts: sums of
// -log y where t is not 0.
extern "C" __global__ void softmax_loss(const T *y, const float *truth, const float *scale, T *delta, float *parts, int n,
                                        int C, int P, float ignored) {
    int start = blockIdx.x * PART, end = min(start + PART, n);
    double sum = 0;
    for (int i = start + threadIdx.x; i < end; i += blockDim.x) {
        float t = truth[nchw(i, C, P)], p = y[i];
        if (t != ignored && t != 0) sum -= logf(p);
        delta[i] = t == ignored ? 0.0f : (t - p) * scale[0];
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Compare x with truth t, both (n) -> delta = (t - x) * scale[0], with `smooth` clipped to +-1 before, with `masked` 0 without a
// label; parts: sums of squares, with `smooth` 2 |t - x| - 1 where that is clipped.
extern "C" __global__ void cost_loss(const T *x, const float *truth, const float *scale, T *delta, float *parts, int n, int C,
                                     int P, int masked, int smooth, float ignored) {
    int start = blockIdx.x * PART, end = min(start + PART, n);
    double sum = 0;
    for (int i = start + threadIdx.x; i < end; i += blockDim.x) {
        float t = truth[nchw(i, C, P)], error = masked && t == ignored ? 0.0f : t - x[i], size = fabsf(error);
        sum += smooth && !(size < 1) ? 2 * size - 1 : error * error;
        delta[i] = (smooth ? fminf(fmaxf(error, -1), 1) : error) * scale[0];
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// The position in memory of value k of an image of C*P values in NCHW order; NHWC memory has C > 1.
__device__ inline int value(int k, int C, int P) { return k % P * C + k / P; }

// The loss of [detection]: y (N, S*S*(K + B + 4B)) as [S*S*K][S*S*B][S*S*B*4], truth (N, S*S, 1 + K + 4) -> delta of the layout of
// y. draws (N, S*S): the box of a cell, or null. One thread per cell: n = N*S*S.
extern "C" __global__ void detection_loss(const T *y, const float *truth, const int *draws, float *delta, int n, int S, int B,
                                          int K, int C, int P, int sqrt_sizes, int rescore, int forced, float coord_scale,
                                          float object_scale, float noobject_scale, float class_scale) {
    int i = thread_index(), cells = S * S, c = i % cells;
    if (i >= n) return;
    y += i / cells * cells * (K + 5 * B);
    delta += i / cells * cells * (K + 5 * B);
    truth += i * (K + 5);
    int confidence = cells * K + c * B, box = cells * (K + B) + c * B * 4;
    bool object = truth[0] != 0;
    for (int k = 0; k < K; k++) {
        int at = value(c * K + k, C, P);
        delta[at] = object ? class_scale * (truth[1 + k] - y[at]) : 0.0f;
    }
    for (int b = 0; b < B; b++) {
        int at = value(confidence + b, C, P);
        delta[at] = noobject_scale * (0 - y[at]);
        for (int e = 0; e < 4; e++) delta[value(box + 4 * b + e, C, P)] = 0;
    }
    if (!object) return;
    const float *t = truth + 1 + K;
    Box target = {t[0] / S, t[1] / S, t[2], t[3]};
    int nearest = 0, best = 0;
    float distance = 0, overlap = 0, chosen = 0;
    for (int b = 0; b < B; b++) {
        float e[4];
        for (int k = 0; k < 4; k++) e[k] = y[value(box + 4 * b + k, C, P)];
        Box pred = {e[0] / S, e[1] / S, sqrt_sizes ? e[2] * e[2] : e[2], sqrt_sizes ? e[3] * e[3] : e[3]};
        float dx = pred.x - target.x, dy = pred.y - target.y, dw = pred.w - target.w, dh = pred.h - target.h;
        float apart = dx * dx + dy * dy + dw * dw + dh * dh, u = iou(pred, target);
        if (b == 0 || apart < distance) distance = apart, nearest = b;
        if (u > overlap) overlap = u, best = b;
    }
    if (!(overlap > 0)) best = nearest;
    if (forced) best = t[2] * t[3] < 0.1f;
    if (draws) best = draws[i];
    for (int k = 0; k < 4; k++) {
        int at = value(box + 4 * best + k, C, P);
        delta[at] = coord_scale * ((sqrt_sizes && k > 1 ? sqrtf(t[k]) : t[k]) - y[at]);
    }
    if (rescore) {
        float e[4];
        for (int k = 0; k < 4; k++) e[k] = y[value(box + 4 * best + k, C, P)];
        chosen = iou({e[0] / S, e[1] / S, sqrt_sizes ? e[2] * e[2] : e[2], sqrt_sizes ? e[3] * e[3] : e[3]}, target);
    }
    int at = value(confidence + best, C, P);
    delta[at] = object_scale * ((rescore ? chosen : 1) - y[at]);
}
