// Prepended to every source that CuPy compiles: the shim of tests/host_cuda, and what CuPy's own kernels need in addition.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <type_traits>

#include "shim.h"
#include "mma.h"

#define __CUDACC_VER_MAJOR__ 12
#define __host__
#define __align__(n) __attribute__((aligned(n)))
#define __noinline__ __attribute__((noinline))

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

template <class A, class B> static A bits_of(B b) {
    static_assert(sizeof(A) == sizeof(B), "");
    A a;
    return memcpy(&a, &b, sizeof a), a;
}
static inline long long __double_as_longlong(double a) { return bits_of<long long>(a); }
static inline double __longlong_as_double(long long a) { return bits_of<double>(a); }
static inline int __popcll(unsigned long long a) { return __builtin_popcountll(a); }
static inline int __clz(int a) { return a ? __builtin_clz(a) : 32; }

#define MIN_MAX(T)                                          \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
MIN_MAX(unsigned)
MIN_MAX(long)
MIN_MAX(unsigned long)
MIN_MAX(long long)
MIN_MAX(unsigned long long)
#undef MIN_MAX
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
