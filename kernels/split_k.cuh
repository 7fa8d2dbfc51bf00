// Products whose sum is split among blocks: each computes a split of it, and their sums are added up in a fixed order.

#include "last_block.cuh"

// Add up the sums of `count` blocks, in their order, of which this is number `split`: the last that stores its own does, and returns
// true. first: of this thread, in block 0; stride: to the next block's. sums: a block's, 4 of a thread together. *arrived is zero
// before and after.
template <int THREADS, int DOWN, int ACROSS>
__device__ inline bool reduce_splits(float4 *first, int stride, int *arrived, int split, int count, float (&sums)[DOWN][ACROSS][4]) {
#pragma unroll
    for (int i = 0; i < DOWN; i++)
#pragma unroll
        for (int j = 0; j < ACROSS; j++) {
            float *s = sums[i][j];
            store_cg(first + split * stride + (i * ACROSS + j) * THREADS, make_float4(s[0], s[1], s[2], s[3]));
        }
    if (!last_block(arrived, count)) return false;
#pragma unroll
    for (int i = 0; i < DOWN; i++)
#pragma unroll
        for (int j = 0; j < ACROSS; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0;
#pragma unroll 1
    for (int k = 0; k < count; k++)
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++) {
                float4 v = load_cg(first + k * stride + (i * ACROSS + j) * THREADS);
                sums[i][j][0] += v.x, sums[i][j][1] += v.y, sums[i][j][2] += v.z, sums[i][j][3] += v.w;
            }
    return true;
}

constexpr int FAN_IN = 8;  // blocks whose sums one adds up, if many share a tile

// The same for any number of splits: the sums of FAN_IN at a time, then of these. arrived (splits).
template <int THREADS, int DOWN, int ACROSS>
__device__ inline bool reduce_many_splits(float4 *first, int stride, int *arrived, int split, int splits, float (&sums)[DOWN][ACROSS][4]) {
#pragma unroll 1
    for (int step = 1; step < splits; step *= FAN_IN, arrived++) {  // of the splits whose sums are left, every step-th
        int leader = split & -step * FAN_IN, count = (min(splits - leader, step * FAN_IN) + step - 1) / step;
        if (!reduce_splits<THREADS>(first + leader * stride, step * stride, arrived + leader, (split - leader) / step, count, sums))
            return false;
        split = leader;
    }
    return true;
}
