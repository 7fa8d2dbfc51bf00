// Kernels on many arrays in one launch: the arrays are segments of a flat buffer, and each has blocks of its own.

constexpr int SEGMENT_BLOCK = 1024;  // elements of a block of 256 threads, as in gpudarknet/plan/cuda/training/segments.py

// Return the segment of this block: the last whose first block is not after it. first_block (count), `step` ints from one to the next.
__device__ inline int find_segment(const int *first_block, int count, int step) {
    int low = 0, high = count;  // it is in [low, high)
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (first_block[middle * step] <= (int)blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    return low;
}
