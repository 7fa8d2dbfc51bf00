// Update of all weights in one launch per optimizer, without the host: the learning rate, the loss scale and whether the gradients are
// finite are in device memory. Kernels of gpudarknet/plan/cuda/training/update.py; ops/optimizers.py and train/loss_scale.py define
// what they compute.
//
// Weights and all that belongs to them are flat float32 buffers with the same offsets. grads: of this step, times the loss scale;
// momentum: Darknet's accumulated negative gradient. loss_scale (1). status (4) as in enum Status.

#include "segments.cuh"

enum Status { FINITE, GROWTH_TRACKER, SKIPPED, FAILED };

// One array of weights. An inactive one keeps its gradient as momentum. grad_clip: infinite if there is none; clip: 0 if none.
struct Segment {
    int first_block, offset, size, active;
    float rate, decay, grad_clip, clip;
};

// The elements of this block: first to end, of its segment.
struct Elements {
    const Segment &segment;
    int first, end;

    __device__ Elements(const int *segments, int count)
        : segment(((const Segment *)segments)[find_segment(segments, count, sizeof(Segment) / 4)]) {
        int begin = (blockIdx.x - segment.first_block) * SEGMENT_BLOCK;
        first = segment.offset + begin + threadIdx.x;
        end = segment.offset + min(begin + SEGMENT_BLOCK, segment.size);
    }
};

__device__ inline float clip(float v, float limit) { return v > limit ? limit : v < -limit ? -limit : v; }

// Clear status[FINITE] if a gradient or a cost (null: none) is infinite or NaN; it is 1 before. Many blocks may store the same 0.
// n elements, SEGMENT_BLOCK of a block.
extern "C" __global__ void check_finite(const float *grads, const float *costs, int *status, int n, int count) {
    int first = blockIdx.x * SEGMENT_BLOCK, end = min(first + SEGMENT_BLOCK, n);
    bool finite = true;
    for (int i = first + threadIdx.x; i < end; i += blockDim.x) finite &= fabsf(grads[i]) < -MINUS_INFINITY;
    if (blockIdx.x == 0 && costs)
        for (int i = threadIdx.x; i < count; i += blockDim.x) finite &= fabsf(costs[i]) < -MINUS_INFINITY;
    if (!finite) status[FINITE] = 0;
}

// Add the gradients to the momentum; then SGD of Darknet: momentum -= decay * w; w += rate * momentum; momentum *= factor. rates: the
// learning rate of the step, over the batch size. segments (count, 8), four int and four float each.
extern "C" __global__ void sgd(float *w, float *momentum, const float *grads, const float *rates, const float *loss_scale,
                               const int *status, const int *segments, int count, float factor) {
    if (!status[FINITE]) return;
    Elements own(segments, count);
    const Segment &s = own.segment;
    float rate = rates[0] * s.rate, scale = loss_scale[0];
    for (int i = own.first; i < own.end; i += blockDim.x) {
        float step = momentum[i] + grads[i] / scale;
        if (s.active) {
            step = clip(step, s.grad_clip) - s.decay * w[i];
            float next = w[i] + rate * step;
            w[i] = s.clip ? clip(next, s.clip) : next;
            step *= factor;
        }
        momentum[i] = step;
    }
}

// Add the gradients to the momentum; then Adam along it, which is 0 afterwards. m, v: the moments. rates: the learning rate of the step,
// 1 - beta1^t, 1 - beta2^t. segments as in sgd.
extern "C" __global__ void adam(float *w, float *momentum, float *m, float *v, const float *grads, const float *rates,
                                const float *loss_scale, const int *status, const int *segments, int count, float beta1, float beta2,
                                float eps) {
    if (!status[FINITE]) return;
    Elements own(segments, count);
    const Segment &s = own.segment;
    float rate = rates[0] * s.rate, scale = loss_scale[0];
    for (int i = own.first; i < own.end; i += blockDim.x) {
        float step = momentum[i] + grads[i] / scale;
        if (s.active) {
            step = clip(step, s.grad_clip) - s.decay * w[i];
            m[i] = beta1 * m[i] + (1 - beta1) * step;
            v[i] = beta2 * v[i] + (1 - beta2) * step * step;
            float next = w[i] + rate * (m[i] / rates[1]) / (sqrtf(v[i] / rates[2]) + eps);
            w[i] = s.clip ? clip(next, s.clip) : next;
            step = 0;
        }
        momentum[i] = step;
    }
}

// Adjust the loss scale after a step, one thread: halve a dynamic one after an overflow, double it after `interval` steps without. Sets
// SKIPPED to whether the step was skipped, FAILED to 1 if the scale could not be lowered, and FINITE to 1 for the next step.
extern "C" __global__ void adjust_loss_scale(float *loss_scale, int *status, int dynamic, int interval, float min_scale) {
    if (thread_index() > 0) return;
    status[SKIPPED] = !status[FINITE];
    if (status[FINITE]) {
        status[GROWTH_TRACKER] += dynamic;
        if (status[GROWTH_TRACKER] == interval) loss_scale[0] *= 2, status[GROWTH_TRACKER] = 0;
    } else if (dynamic && loss_scale[0] > min_scale) {
        loss_scale[0] /= 2, status[GROWTH_TRACKER] = 0;
    } else {
        status[FAILED] = 1;
    }
    status[FINITE] = 1;
}
