// Sums over the pixels of each channel of a map (M, C) in NHWC, in a fixed order without atomics.
//
// A block of 256 threads has a part of DEPTH * 256 / lanes pixels, of `lanes` columns of V channels: thread t has column t % lanes
// and the pixels t / lanes, t / lanes + 256 / lanes, ... of its part. lanes is a power of 2, up to 32. Python (channel_sums.py)
// chooses it, so that threads of a warp read neighboring channels. The last block of a column's parts combines them.

#include "nhwc.cuh"
#include "last_block.cuh"

constexpr int BLOCK = 256, DEPTH = 8;  // threads of a block; pixels of a thread

// What a thread has: V channels from c on, of the pixels `first`, first + rows, ...
template <int V> struct ChannelPart {
    int M, C, lanes, rows, row, chunks, chunk, part, parts, c, first;

    __device__ ChannelPart(int M, int C, int lanes)
        : M(M), C(C), lanes(lanes), rows(BLOCK / lanes), row(threadIdx.x / lanes), chunks((C + lanes * V - 1) / (lanes * V)),
          chunk(blockIdx.x % chunks), part(blockIdx.x / chunks), parts(gridDim.x / chunks),
          c((chunk * lanes + threadIdx.x % lanes) * V), first(part * rows * DEPTH + row) {}
    __device__ bool has(int m) const { return c < C && m < M; }
    __device__ int pixels(int part) const { return min(rows * DEPTH, M - part * rows * DEPTH); }
    // The place of value k of a part's channel c in an array (parts, 2, C).
    __device__ int at(int part, int k) const { return (part * 2 + k) * C + c; }
};

// Sum over the threads of a block that have the same channels; each of them gets the sums. All threads must call it.
template <int V> __device__ inline void channel_sum(float (&v)[V], int lanes) {
    __shared__ float sums[BLOCK / 32][V * 32];
    int lane = threadIdx.x % 32;
    for (int bit = lanes; bit < 32; bit *= 2)
#pragma unroll
        for (int k = 0; k < V; k++) v[k] += __shfl_xor_sync(ALL_LANES, v[k], bit);
    if (lane < lanes)
#pragma unroll
        for (int k = 0; k < V; k++) sums[threadIdx.x / 32][k * 32 + lane] = v[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < V; k++) {
        v[k] = 0;
        for (int warp = 0; warp < BLOCK / 32; warp++) v[k] += sums[warp][k * 32 + lane % lanes];
    }
    __syncthreads();  // before the next call writes other sums
}
