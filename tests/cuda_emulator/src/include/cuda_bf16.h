// CUDA's bfloat16, as far as CuPy's headers name it; no kernel in the tests uses it.
#pragma once

class __nv_bfloat16 {
    unsigned short bits = 0;

  public:
    __nv_bfloat16() {}
    __nv_bfloat16(float v) : bits(bits_of<unsigned>(v) >> 16) {}
    operator float() const { return bits_of<float>((unsigned)bits << 16); }
    unsigned short raw() const { return bits; }
};

static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.raw(); }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { return __nv_bfloat16(bits_of<float>((unsigned)v << 16)); }
static inline bool __hisnan(__nv_bfloat16 v) { return isnan(float(v)); }
static inline bool __hisinf(__nv_bfloat16 v) { return isinf(float(v)); }
