// What every kernel file shares. This text is put before each of them; after it stands `using T = float;` or
// `using T = half_t;`, the type in which arrays declared `T *` are stored. Arithmetic is always float.
//
// Sizes are upper case (N C H W F OH OW), arrays lower case, gradients d + name. `n` is the number of elements, and of
// threads that have work: threads beyond it return. Indices are int, so no array has 2^31 elements or more.

#ifndef HOST_CUDA  // where a CPU runs this text, it brings its own two conversions
__device__ inline float half_to_float(unsigned short h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ inline unsigned short float_to_half(float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
#endif

// float16 in memory: reads as float, rounds to nearest even when a float is assigned. It needs no CUDA header.
struct half_t {
    unsigned short bits;

    half_t() = default;
    __device__ half_t(float f) : bits(float_to_half(f)) {}
    __device__ operator float() const { return half_to_float(bits); }
};

// The number of this thread in the whole launch.
__device__ inline int thread_index() {
    return blockIdx.x * blockDim.x + threadIdx.x;
}
