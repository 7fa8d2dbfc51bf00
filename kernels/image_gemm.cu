// Convolution of an image as an implicit matrix multiplication on tensor cores, with its epilogue. Launched by
// gpudarknet/plan/cuda/implicit_gemm.py.
//
// With few channels no 16 bytes of K are contiguous in memory: threads gather them one by one.

#include "implicit_gemm.cuh"

#define IMAGE_PARAMETERS                                                                                                \
    const T *weights, int M, int N, int image_stride, int channel_stride, int pixel_stride, int C, int H, int W,        \
        int OH, int OW, int size, int sy, int sx, int dilation, int pad, int ldw, EPILOGUE_PARAMETERS

using ImageTile = Tile<128, 64, 32, 64, 1>;

// x is in the layout of the strides: elements from image to image, channel to channel, pixel to pixel. weights (N, size, size, C),
// rows ldw elements apart.
template <class S>
__device__ inline void image_gemm(const Geometry &g, const S *x, int image_stride, int channel_stride, int pixel_stride, const T *weights,
                                  int N, int C, int ldw, const Epilogue &f, const Result &result) {
    char *buffer = dynamic_shared();
    Part part = Part::of_block<ImageTile>(g.M, N, 1);
    int row = threadIdx.x, lane = row % 32, h, w, warp_m = threadIdx.x / 32 * ImageTile::WM, K = g.size * g.size * C, p = 0, q = 0, c = 0;
    x += g.window(part.m0 + row, h, w) * image_stride;
    float sums[ImageTile::DOWN][ImageTile::ACROSS][4];
    clear<ImageTile>(sums);
    for (int k0 = 0; k0 < K; k0 += BK) {
        __syncthreads();  // all have multiplied the last buffer
        for (int i = threadIdx.x; i < ImageTile::BN * CHUNKS; i += ImageTile::THREADS) {
            int n = part.n0 + i / CHUNKS, k = k0 + i % CHUNKS * VECTOR;
            bool exists = n < N && k < ldw;
            cp_async(buffer + swizzle(ImageTile::BM + i / CHUNKS, i % CHUNKS), exists ? weights + n * ldw + k : weights, exists ? 16 : 0);
        }
        cp_async_commit();
#pragma unroll 1  // fewer registers
        for (int j = 0; j < CHUNKS; j++) {
            float v[VECTOR];
#pragma unroll
            for (int k = 0; k < VECTOR; k++) {
                int r = h + p * g.dilation, s = w + q * g.dilation;
                bool exists = p < g.size && g.inside(r, s);
                v[k] = exists ? value(x[(r * g.W + s) * pixel_stride + c * channel_stride]) : 0.0f;
                if (++c == C) {
                    c = 0;
                    if (++q == g.size) q = 0, p++;
                }
            }
            store<VECTOR>((T *)(buffer + swizzle(row, j)), v);
        }
        cp_async_wait<0>();
        __syncthreads();
        multiply<ImageTile>(shared_address(buffer), a_fragment(warp_m, lane), b_fragment<ImageTile>(0, lane), sums);
    }
    __syncthreads();  // the buffer is read
    store_sums<ImageTile>(buffer, sums, f, result, part, g.M, N, warp_m, 0);
}

#define IMAGE_GEMM image_gemm(GEOMETRY, x, image_stride, channel_stride, pixel_stride, weights, N, C, ldw, EPILOGUE, RESULT)

// Convolution of a map with few channels.
extern "C" __global__ void __launch_bounds__(128) image_gemm_map(const T *x, IMAGE_PARAMETERS) { IMAGE_GEMM; }
// The same on the caller's float32 (N, C, H, W).
extern "C" __global__ void __launch_bounds__(128) image_gemm_float32(const float *x, IMAGE_PARAMETERS) { IMAGE_GEMM; }
// The same on uint8 images (N, H, W, C), scaled to 0..1.
extern "C" __global__ void __launch_bounds__(128) image_gemm_uint8(const unsigned char *x, IMAGE_PARAMETERS) { IMAGE_GEMM; }
