// Compiler definitions that CUDA's headers need, empty for g++. NVIDIA's file of this name comes with nvcc.
#pragma once
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__
#define __device__
#define __host__
#define __inline__ inline
#define __no_return__ __attribute__((noreturn))
#define __specialization_static static
