// Shared by all kernel files. This text is prepended to each of them, followed by `using T = float;` or `using T = half_t;`,
// the storage type of arrays declared `T *`. Arithmetic is always float.
//
// Sizes are upper case (N C H W F OH OW), arrays lower case, gradients d + name. `n` is the number of elements, and of
// threads that have work: threads beyond it return. Indices are int, so no array has 2^31 elements or more.

#ifndef HOST_CUDA  // a CPU that runs this text defines these functions
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

// 2^x, one instruction. At most 2 ulp from the exact value, says the PTX ISA; a result below 2^-126 is 0.
__device__ inline float ex2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x, one instruction: a division is about ten, and a call where they do not suffice. At most 1 ulp from the exact
// value, says the PTX ISA; a result below 2^-126 is 0.
__device__ inline float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

// float16 in memory. It reads as float and rounds to nearest even where a float is assigned; it needs no CUDA header.
// In `a ? b : c` with a half_t, write 0.0f and not 0: the common type of half_t and int is int.
struct half_t {
    unsigned short bits;

    __device__ operator float() const { return half_to_float(bits); }
    __device__ half_t &operator=(float f) {
        bits = float_to_half(f);
        return *this;
    }
};

#define ALL_LANES 0xffffffffu
#define MINUS_INFINITY __int_as_float(0xff800000)

// The number of this thread in the whole launch.
__device__ inline int thread_index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// e^x with a relative error of at most (4 + 1.3 |x|) 2^-24: that of ex2_approx, and the rounding of its argument.
__device__ inline float exp_approx(float x) { return ex2_approx(1.44269504f * x); }

// Logistic, swish and mish are at most 1e-6 (absolute up to |f| = 1, relative above) from the exact functions, and as
// float16 at most 0.51 ulp. At the infinities they are 0, 1 or infinite; a NaN stays. tests/test_fast_math.py checks
// this with instructions as inexact as the PTX ISA allows.
__device__ inline float sigmoid(float x) { return rcp_approx(1 + exp_approx(-x)); }

// Darknet's activation functions, in the order of FUNCTIONS in gpudarknet/ops/activation.py.
enum Kind {
    LINEAR, LOGISTIC, LOGGY, RELU, RELU6, LEAKY, REVLEAKY, RELIE, RAMP, ELU, SELU, GELU, TANH, PLSE, STAIR, HARDTAN, LHTAN,
    SWISH, MISH, HARD_MISH
};

// tanh(log(1 + e^x)) without the logarithm. From x = 10 on it is 1 in float; n overflows from 44 on.
__device__ inline float tanh_softplus(float x) {
    float e = exp_approx(x), n = e * (e + 2);
    return x > 10 ? 1 : n * rcp_approx(n + 2);
}

__device__ inline float function(int kind, float x) {
    switch (kind) {
        case LOGISTIC: return sigmoid(x);
        case LOGGY: return 2 * sigmoid(x) - 1;
        case RELU: return x < 0 ? 0 : x;
        case RELU6: return x < 0 ? 0 : x > 6 ? 6 : x;
        case LEAKY: case REVLEAKY: return x > 0 ? x : 0.1f * x;
        case RELIE: return x > 0 ? x : 0.01f * x;
        case RAMP: return (x < 0 ? 0 : x) + 0.1f * x;
        case ELU: return x >= 0 ? x : expm1f(x);
        case SELU: return 1.0507f * (x >= 0 ? x : 1.6732f * expm1f(x));
        case GELU: return 0.5f * x * (1 + tanhf(0.797885f * x + 0.035677f * x * x * x));
        case TANH: return tanhf(x);
        case PLSE: return x < -4 ? 0.01f * (x + 4) : x > 4 ? 0.01f * (x - 4) + 1 : 0.125f * x + 0.5f;
        case STAIR: {
            float m = floorf(x);
            return m - 2 * floorf(m / 2) == 0 ? floorf(x / 2) : (x - m) + floorf(x / 2);
        }
        case HARDTAN: return x < -1 ? -1 : x > 1 ? 1 : x;
        case LHTAN: return x < 0 ? 0.001f * x : x > 1 ? 0.001f * (x - 1) + 1 : x;
        case SWISH: return fmaxf(x, -100) * sigmoid(x);  // -100: minus infinity times 0 is NaN
        case MISH: return fmaxf(x, -100) * tanh_softplus(x);
        case HARD_MISH: return x > 0 ? x : x > -2 ? x * x / 2 + x : 0;
        default: return x;
    }
}

// Sum over the 32 lanes of a warp, always in the same order; every lane gets the sum. All lanes must call it.
__device__ inline float warp_sum(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(ALL_LANES, v, lanes);
    return v;
}

// Maximum over the 32 lanes of a warp; every lane gets it. All lanes must call it.
__device__ inline float warp_max(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, lanes));
    return v;
}

// Sum over the threads of a block, always in the same order; every thread gets the sum. All threads must call it.
__device__ inline float block_sum(float v) {
    __shared__ float sums[32];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int warp = 0; warp < blockDim.x / 32; warp++) v += sums[warp];
    __syncthreads();  // all have read these sums before the next call writes others
    return v;
}
