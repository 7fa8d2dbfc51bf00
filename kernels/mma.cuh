// Tensor cores and asynchronous copies to shared memory, each one instruction, for kernels that multiply matrices. The
// instructions and the layouts of their fragments are those of the PTX ISA: "Warp-level matrix load instruction: ldmatrix",
// "Matrix fragments for mma.m16n8k16 with floating point type" and "... mma.m16n8k8", "Data movement and conversion
// instructions: cp.async". A CPU that runs this text defines all of them (tests/host_cuda/mma.h).
//
// Fragments of a warp, lane l, with row = l / 4 and word = l % 4; a word is two half_t or one float:
//   a[0], a[1]: word `word` of rows `row` and `row + 8` of A; a[2], a[3]: word `word + 4` of these rows
//   b[0], b[1]: words `word` and `word + 4` of column `row` of B, each the same k as A's word
//   d[0], d[1]: columns 2 * word and 2 * word + 1 of row `row` of D; d[2], d[3]: of row `row + 8`

#ifndef HOST_CUDA
// The block's dynamic shared memory.
__device__ inline char *dynamic_shared() {
    extern __shared__ __align__(128) char dynamic_shared_memory[];
    return dynamic_shared_memory;
}

// An address in shared memory: what a pointer is to these instructions, which also take a pointer.
using SharedAddress = unsigned;

__device__ inline SharedAddress shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ inline SharedAddress shared_address(SharedAddress address) { return address; }

// Load four matrices of 8 rows of 16 bytes from shared memory. Lane l gives the address of row l % 8 of matrix l / 8, and gets in
// r[i] word l % 4 of row l / 4 of matrix i. All lanes of the warp must call it.
template <class Address> __device__ inline void ldmatrix(unsigned (&r)[4], Address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of matrices of half_t, transposed: r[i] is column l / 4 of matrix i, rows 2 * (l % 4) and the next.
template <class Address> __device__ inline void ldmatrix_trans(unsigned (&r)[4], Address row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Load a word from shared memory.
__device__ inline unsigned load_shared(SharedAddress address) {
    unsigned word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

// d += a b: A is 16 x 16 half_t or 16 x 8 float read as tf32 (from sm_80 on), B has 8 columns. All lanes of the warp must call it.
__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (sizeof(T) == 2) {
#if __CUDA_ARCH__ >= 800
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
        for (int k = 0; k < 2; k++)
            asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                         : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                         : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
    } else {
#if __CUDA_ARCH__ >= 800
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
        __trap();
#endif
    }
}

// Round a float to tf32, ties away from zero. Without it mma ignores the low 13 bits.
__device__ inline unsigned to_tf32(unsigned bits) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(__uint_as_float(bits)));
#endif
    return bits;
}

// Copy 16 bytes to shared memory: the first `bytes`, a multiple of sizeof(T), from `global`, the rest zero. Both addresses are
// multiples of 16. The calling thread may read them after a cp_async_wait, other threads after a barrier that follows it.
template <class Address> __device__ inline void cp_async(Address shared, const void *global, int bytes) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
#else
    void *to = __cvta_shared_to_generic(shared_address(shared));
    if (bytes == 16) {
        *(uint4 *)to = *(const uint4 *)global;
    } else {
#pragma unroll
        for (int k = 0; k < 16 / sizeof(T); k++) ((T *)to)[k] = k * sizeof(T) < bytes ? ((const T *)global)[k] : T{};
    }
#endif
}

// Make a group of the thread's copies since the last group; it may be empty.
__device__ inline void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most the last N groups of the thread are unfinished.
template <int N> __device__ inline void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Access past L1, for what other blocks of the same launch write or read.
__device__ inline float4 load_cg(const float4 *p) { return __ldcg(p); }
__device__ inline void store_cg(float4 *p, float4 v) { __stcg(p, v); }
#endif

// The value, which the compiler then keeps in a register. It would compute a simple function of threadIdx, or the address of shared
// memory, again in each step of a loop. All lanes of the warp must call it.
template <class V> __device__ inline V in_register(V value) { return __shfl_sync(ALL_LANES, value, threadIdx.x % 32); }
