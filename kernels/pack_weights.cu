// Convolutions' kernels in the layouts that tensor cores read, packed from the float32 weights after every update: all in one launch.
// Launched by gpudarknet/plan/cuda/training/pack_weights.py.

#include "mma.cuh"
#include "segments.cuh"

// One packed kernel (rows, taps, padded). Element (r, t, i) is the weight source + r / group_rows * group_step + r % group_rows *
// row_step + i * inner_step + t, or tap taps - 1 - t if rotated; zero from i = inner on.
struct Packing {
    int first_block, source, target, rows, taps, inner, padded, group_rows, group_step, row_step, inner_step, rotated;
};

// Pack segments of `weights` to segments of `packed`, as `packings` (count, 12) says; tf32: round float32 to TF32. A block packs
// SEGMENT_BLOCK elements of one.
extern "C" __global__ void pack_weights(const float *weights, T *packed, const int *packings, int count, int tf32) {
    const Packing &p = ((const Packing *)packings)[find_segment(packings, count, sizeof(Packing) / 4)];
    int first = (blockIdx.x - p.first_block) * SEGMENT_BLOCK, end = min(first + SEGMENT_BLOCK, p.rows * p.taps * p.padded);
    for (int k = first + threadIdx.x; k < end; k += blockDim.x) {
        int i = k % p.padded, tap = k / p.padded % p.taps, r = k / p.padded / p.taps;
        int from = p.source + r / p.group_rows * p.group_step + r % p.group_rows * p.row_step + i * p.inner_step;
        float v = i < p.inner ? weights[from + (p.rotated ? p.taps - 1 - tap : tap)] : 0.0f;
        packed[p.target + k] = tf32 && sizeof(T) == 4 ? __uint_as_float(to_tf32(__float_as_uint(v))) : v;
    }
}
