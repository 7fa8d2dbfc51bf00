// Appended to a kernel's source: C functions with which modules.cpp launches its kernels.
#include <tuple>
#include <type_traits>
#include <utility>

template <typename T, int ndim, bool contiguous, bool small> class CArray;

namespace emulated {

// Whether an argument is an address, or begins with one like CuPy's arrays.
template <class A> struct points : std::is_pointer<A> {};
template <class T, int ndim, bool contiguous, bool small> struct points<CArray<T, ndim, contiguous, small>> : std::true_type {};

template <class... A, size_t... I> int run(void (*kernel)(A...), unsigned blocks, unsigned threads, unsigned shared, void **p, std::index_sequence<I...>) {
    return host::launch(blocks, threads, shared, false, [&] { kernel(*(std::remove_const_t<A> *)p[I]...); });
}
template <class... A> int run(void (*kernel)(A...), unsigned blocks, unsigned threads, unsigned shared, void **p) { return run(kernel, blocks, threads, shared, p, std::index_sequence_for<A...>()); }
template <class... A> int arguments(void (*)(A...), int *sizes, char *addresses) {
    int s[] = {(int)sizeof(A)..., 0}, a[] = {points<std::remove_const_t<A>>::value..., 0};
    for (size_t i = 0; i < sizeof...(A); i++) sizes[i] = s[i], addresses[i] = a[i];
    return sizeof...(A);
}

}  // namespace emulated

#define EMULATED_ENTRY(name)                                                                                                                      \
    extern "C" int emulated_run_##name(unsigned blocks, unsigned threads, unsigned shared, void **arguments) { return emulated::run(name, blocks, threads, shared, arguments); } \
    extern "C" int emulated_arguments_##name(int *sizes, char *addresses) { return emulated::arguments(name, sizes, addresses); }
