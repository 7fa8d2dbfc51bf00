// CUDA's half, as far as CuPy's kernels use it.
#pragma once

struct __half_raw {
    unsigned short x;
};

class half {
    unsigned short bits;

  public:
    half() {}
    half(float v) : bits(float_to_half(v)) {}
    half(const __half_raw &v) : bits(v.x) {}
    template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>> explicit half(T v) : half(float(v)) {}
    operator float() const { return half_to_float(bits); }
    operator __half_raw() const { return {bits}; }
};
typedef half __half;

static inline unsigned short __half_as_ushort(half v) { return __half_raw(v).x; }
static inline half __ushort_as_half(unsigned short v) { return half(__half_raw{v}); }
