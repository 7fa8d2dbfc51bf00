// Sums over blocks in a fixed order: all store their parts, and the block that is last to arrive adds them up.

// Return whether this block is the last of `blocks` that arrive: it then sees what the others have stored before. *arrived is
// zero before and after. All threads must call it.
__device__ inline bool last_block(int *arrived, int blocks) {
    __shared__ bool last;
    __threadfence();  // these stores before the count
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived, 1) == blocks - 1;
    __syncthreads();
    if (!last) return false;
    __threadfence();  // the count before the loads that follow
    if (threadIdx.x == 0) *arrived = 0;
    return true;
}

// Load past L1 what another block of the same launch has stored.
__device__ inline float load_volatile(const float *p) { return *(const volatile float *)p; }
