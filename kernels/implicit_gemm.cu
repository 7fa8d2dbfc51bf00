// Convolution as an implicit matrix multiplication on tensor cores, with its epilogue. Launched by
// gpudarknet/plan/cuda/implicit_gemm.py.
//
// The product is y (M, N) = im2col(x) (M, K) @ weights (N, K).T: M output pixels, N filters, K = (tap, channel). No im2col matrix
// exists: a block copies the pixels that its rows need from x to shared memory, 64 bytes of K at a time. A block computes a tile
// of BM x BN with STAGES buffers: while tensor cores multiply one, cp.async fills the others. Sums are float32.
//
// A row of a buffer has 4 chunks of 16 bytes. Chunk j of row r is stored at j ^ (r / 2 % 4), so that the 8 lanes that ldmatrix or
// cp.async serves at a time access different banks.

#include "nhwc.cuh"
#include "mma.cuh"

constexpr int CHUNKS = 4, ROW_BYTES = 16 * CHUNKS, BK = CHUNKS * VECTOR;  // of a buffer's row; BK: its elements

// The offset of a chunk in a buffer.
__device__ inline int swizzle(int row, int j) { return row * ROW_BYTES + (j ^ (row / 2 % CHUNKS)) * 16; }

// The tile of a block, BM x BN, and of a warp, WM x WN. A buffer holds BM rows of x, then BN rows of the weights.
template <int M, int N, int WARP_M, int WARP_N, int BUFFERS> struct Tile {
    static constexpr int BM = M, BN = N, WM = WARP_M, WN = WARP_N, STAGES = BUFFERS;
    static constexpr int THREADS = 32 * (BM / WM) * (BN / WN), BUFFER = (BM + BN) * ROW_BYTES;
    static constexpr int ROWS = THREADS / CHUNKS;                    // that the threads copy at once, a chunk each
    static constexpr int DOWN = WM / 16, ACROSS = WN / 8;            // fragments of a warp
};

// The part of a launch that a block computes: rows from m0 on, filters from n0 on, a group, and one of the splits of K.
struct Part {
    int tile, m0, n0, group, split;

    template <class Tile> __device__ static Part of_block(int M, int N, int groups) {
        int across = (N + Tile::BN - 1) / Tile::BN, tiles = (M + Tile::BM - 1) / Tile::BM * across * groups;
        int tile = blockIdx.x % tiles, m = tile / across;
        return {tile, m / groups * Tile::BM, tile % across * Tile::BN, m % groups, int(blockIdx.x) / tiles};
    }
};

// The geometry of a convolution. If it is pooled, 4 rows of the product are the 2 x 2 block that becomes one pixel of y.
struct Geometry {
    int M, H, W, OH, OW, size, sy, sx, dilation, pad, pooled;

    // Return the image of row m of the product, and where in x its window begins; far outside for a row that does not exist.
    __device__ int window(int m, int &h, int &w) const {
        if (m >= M) {
            h = w = -(1 << 20);
            return 0;
        }
        int s = pooled ? 2 : 1, i = m % (s * s), pixel = m / (s * s), across = OW / s, image = pixel / (OH / s * across);
        pixel -= image * (OH / s * across);
        h = (pixel / across * s + i / 2) * sy - pad;
        w = (pixel % across * s + i % 2) * sx - pad;
        return image;
    }
    __device__ bool inside(int h, int w) const { return (unsigned)h < (unsigned)H && (unsigned)w < (unsigned)W; }
};

// sums += the product of the rows of a buffer that belong to a warp.
template <class Tile>
__device__ inline void multiply(const char *buffer, int warp_m, int warp_n, float (&sums)[Tile::DOWN][Tile::ACROSS][4]) {
    int lane = threadIdx.x % 32;
    int a_offset = swizzle(warp_m + lane % 16, lane / 16);
    int b_offset = swizzle(Tile::BM + warp_n + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < ROW_BYTES; k += 32) {  // an mma is two chunks deep
        unsigned a[Tile::DOWN][4], b[Tile::ACROSS / 2][4];
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++) {
            ldmatrix(a[i], buffer + (a_offset ^ k) + i * 16 * ROW_BYTES);
            if (sizeof(T) == 4)  // the weights are rounded already
#pragma unroll
                for (int r = 0; r < 4; r++) a[i][r] = to_tf32(a[i][r]);
        }
#pragma unroll
        for (int j = 0; j < Tile::ACROSS / 2; j++) ldmatrix(b[j], buffer + (b_offset ^ k) + j * 16 * ROW_BYTES);
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
            for (int j = 0; j < Tile::ACROSS; j++) mma(sums[i][j], a[i], {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]});
    }
}

// Copies what a block multiplies, a buffer at a time: each thread always the same chunk of the rows `row`, `row` + Tile::ROWS, ...
// C: channels of a group; Cp: with the zeros between taps in the weights, whose rows are (size, size, Cp). Beyond an image's border,
// after the last channel of a tap, and after the last tap it writes zeros.
template <class Tile> struct Loader {
    static constexpr int A = Tile::BM / Tile::ROWS, B = Tile::BN / Tile::ROWS;  // rows per thread
    static_assert(Tile::ROWS / 2 % CHUNKS == 0, "all rows of a thread have the same swizzle");
    const Geometry &g;
    const T *x, *weights;
    int C, Cp, ldx, ldw, target, filters, offset[A], h[A], w[A], p, q, c;

    __device__ Loader(const Geometry &g, const T *x, const T *weights, int C, int Cp, int ldx, int ldw, int N, const Part &part,
                      int step)
        : g(g), x(x), C(C), Cp(Cp), ldx(ldx), ldw(ldw) {
        int row = threadIdx.x / CHUNKS, k = step * BK + threadIdx.x % CHUNKS * VECTOR;
        target = swizzle(row, threadIdx.x % CHUNKS);
        filters = N - part.n0 - row;
        this->weights = weights + (part.group * N + part.n0 + row) * ldw + k;
#pragma unroll
        for (int i = 0; i < A; i++) {
            int image = g.window(part.m0 + row + i * Tile::ROWS, h[i], w[i]);
            offset[i] = ((image * g.H + h[i]) * g.W + w[i]) * ldx + part.group * C;
        }
        p = k / Cp / g.size, q = k / Cp % g.size, c = k % Cp;
    }

    // Start to copy the next buffer.
    __device__ void load(char *buffer) {
        bool tap = p < g.size;
        int bytes = max(min(C - c, VECTOR), 0) * (int)sizeof(T), dh = p * g.dilation, dw = q * g.dilation, shift = (dh * g.W + dw) * ldx + c;
#pragma unroll
        for (int i = 0; i < A; i++) {
            bool exists = tap && g.inside(h[i] + dh, w[i] + dw);
            cp_async(buffer + target + i * Tile::ROWS * ROW_BYTES, exists ? x + offset[i] + shift : x, exists ? bytes : 0);
        }
#pragma unroll
        for (int i = 0; i < B; i++) {
            bool exists = tap && i * Tile::ROWS < filters;
            cp_async(buffer + Tile::BM * ROW_BYTES + target + i * Tile::ROWS * ROW_BYTES, exists ? weights + i * Tile::ROWS * ldw : x,
                     exists ? 16 : 0);
        }
        weights += BK;
        for (c += BK; c >= Cp; c -= Cp)
            if (++q == g.size) q = 0, p++;
    }
};

template <class Tile> __device__ inline void clear(float (&sums)[Tile::DOWN][Tile::ACROSS][4]) {
#pragma unroll
    for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
        for (int j = 0; j < Tile::ACROSS; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0;
}

// Add up the sums of all splits of K, in their order: the block that is last to store its own does, and returns true.
// partial (splits, tiles, fragments, threads, 4); arrived (tiles): zero before and after.
template <class Tile>
__device__ inline bool reduce_splits(float *partial, int *arrived, const Part &part, int splits,
                                     float (&sums)[Tile::DOWN][Tile::ACROSS][4]) {
    __shared__ bool last;
    constexpr int SIZE = Tile::DOWN * Tile::ACROSS * Tile::THREADS;
    int tiles = gridDim.x / splits;
    float4 *first = (float4 *)partial + part.tile * SIZE + threadIdx.x;
#pragma unroll
    for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
        for (int j = 0; j < Tile::ACROSS; j++) {
            float *s = sums[i][j];
            store_cg(first + part.split * tiles * SIZE + (i * Tile::ACROSS + j) * Tile::THREADS, make_float4(s[0], s[1], s[2], s[3]));
        }
    __threadfence();  // these stores before the count
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived + part.tile, 1) == splits - 1;
    __syncthreads();
    if (!last) return false;
    __threadfence();  // the count before these loads
    if (threadIdx.x == 0) arrived[part.tile] = 0;
    clear<Tile>(sums);
#pragma unroll 1
    for (int split = 0; split < splits; split++)
#pragma unroll
        for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
            for (int j = 0; j < Tile::ACROSS; j++) {
                float4 v = load_cg(first + split * tiles * SIZE + (i * Tile::ACROSS + j) * Tile::THREADS);
                sums[i][j][0] += v.x, sums[i][j][1] += v.y, sums[i][j][2] += v.z, sums[i][j][3] += v.w;
            }
    return true;
}

// The result y (pixels, channels), `ld` elements from pixel to pixel, and what is applied to it: a 2 x 2 max pool, an epilogue, the
// activation of a YOLO head with E channels per anchor (0: none). vectorized: y can be stored 16 bytes at a time.
struct Result {
    T *y;
    int ld, pooled, E, new_coords, vectorized;
    float scale_x_y;
};

// Apply the epilogue and store the sums of a warp, a fragment of 16 rows at a time, through shared memory: there a thread finds
// 16 bytes of a pixel's channels.
template <class Tile>
__device__ inline void store_sums(char *shared, const float (&sums)[Tile::DOWN][Tile::ACROSS][4], const Epilogue &f,
                                  const Result &result, const Part &part, int M, int N, int warp_m, int warp_n) {
    constexpr int ACROSS = Tile::WN / VECTOR, LD = Tile::WN + 8;  // + 8: no bank conflicts when fragments are written
    int lane = threadIdx.x % 32, rows = result.pooled ? 4 : 16, s = 16 / rows;
    float *staged = (float *)shared + threadIdx.x / 32 * 16 * LD;
#pragma unroll 1  // the code of the epilogue is long
    for (int i = 0; i < Tile::DOWN; i++) {
        __syncwarp();
#pragma unroll
        for (int k = 0; k < Tile::DOWN; k++)  // registers have no index: k, a constant, in place of i
#pragma unroll
            for (int j = 0; j < Tile::ACROSS; j++)
                if (k == i) {
                    float *at = staged + lane / 4 * LD + j * 8 + lane % 4 * 2;
                    *(float2 *)at = make_float2(sums[k][j][0], sums[k][j][1]);
                    *(float2 *)(at + 8 * LD) = make_float2(sums[k][j][2], sums[k][j][3]);
                }
        __syncwarp();
#pragma unroll 1
        for (int t = lane; t < rows * ACROSS; t += 32) {
            int row = t / ACROSS, m = (part.m0 + warp_m + i * 16) / s + row, n = part.n0 + warp_n + t % ACROSS * VECTOR;
            if (m * s >= M || n >= N) continue;
            float v[VECTOR], next[VECTOR];
            load<VECTOR>(staged + row * s * LD + t % ACROSS * VECTOR, v);
            for (int tap = 1; tap < s; tap++) {
                load<VECTOR>(staged + (row * s + tap) * LD + t % ACROSS * VECTOR, next);
                max_in_place<VECTOR>(v, next);
            }
            int c = part.group * N + n;
            apply_epilogue<VECTOR>(f, m, c, v);
            if (result.E)
#pragma unroll
                for (int k = 0; k < VECTOR; k++) v[k] = yolo_activation(v[k], c + k, result.E, result.scale_x_y, result.new_coords);
            T *y = result.y + m * result.ld + c;
            if (result.vectorized && n + VECTOR <= N)
                store<VECTOR>(y, v);
            else
#pragma unroll
                for (int k = 0; k < VECTOR; k++)
                    if (n + k < N) y[k] = v[k];
        }
    }
}

template <class Tile>
__device__ inline void implicit_gemm(const Geometry &g, const T *x, const T *weights, int N, int C, int Cp, int ldx, int ldw, int groups,
                                     int splits, float *partial, int *arrived, const Epilogue &f, const Result &result) {
    char *shared = dynamic_shared();
    Part part = Part::of_block<Tile>(g.M, N, groups);
    int warp = threadIdx.x / 32, warp_m = warp % (Tile::BM / Tile::WM) * Tile::WM, warp_n = warp / (Tile::BM / Tile::WM) * Tile::WN;
    int steps = (g.size * g.size * Cp + BK - 1) / BK, first = steps * part.split / splits, end = steps * (part.split + 1) / splits;
    Loader<Tile> loader(g, x, weights, C, Cp, ldx, ldw, N, part, first);
    float sums[Tile::DOWN][Tile::ACROSS][4];
    clear<Tile>(sums);
#pragma unroll
    for (int i = 0; i < Tile::STAGES - 1; i++) {
        if (first + i < end) loader.load(shared + i * Tile::BUFFER);
        cp_async_commit();
    }
    int read = 0, write = Tile::STAGES - 1;
#pragma unroll 1
    for (int step = first; step < end; step++) {
        cp_async_wait<Tile::STAGES - 2>();
        __syncthreads();  // all have copied this buffer, and multiplied the one that is filled next
        if (step + Tile::STAGES - 1 < end) loader.load(shared + write * Tile::BUFFER);
        cp_async_commit();
        multiply<Tile>(shared + read * Tile::BUFFER, warp_m, warp_n, sums);
        read = read + 1 == Tile::STAGES ? 0 : read + 1;
        write = write + 1 == Tile::STAGES ? 0 : write + 1;
    }
    cp_async_wait<0>();
    if (splits > 1 && !reduce_splits<Tile>(partial, arrived, part, splits, sums)) return;
    __syncthreads();  // all buffers are read
    store_sums<Tile>(shared, sums, f, result, part, g.M, N, warp_m, warp_n);
}

#define EPILOGUE_PARAMETERS                                                                                             \
    const float *bias, const T *other, T *y, int Co, int Po, int ldo, int pre, int binary_op, float eps, float slope,   \
        int post, int E, float scale_x_y, int new_coords, int pooled, int ldy, int vectorized

#define PARAMETERS                                                                                                      \
    const T *x, const T *weights, float *partial, int *arrived, int M, int N, int C, int Cp, int H, int W, int OH,      \
        int OW, int size, int sy, int sx, int dilation, int pad, int ldx, int ldw, int groups, int splits, EPILOGUE_PARAMETERS

#define IMAGE_PARAMETERS                                                                                                \
    const T *weights, int M, int N, int image_stride, int channel_stride, int pixel_stride, int C, int H, int W,        \
        int OH, int OW, int size, int sy, int sx, int dilation, int pad, int ldw, EPILOGUE_PARAMETERS

#define GEOMETRY Geometry{M, H, W, OH, OW, size, sy, sx, dilation, pad, pooled}
#define EPILOGUE Epilogue{bias, other, OH * OW / (pooled ? 4 : 1), Co, Po, ldo, pre, binary_op, eps, slope, post}
#define RESULT Result{y, ldy, pooled, E, new_coords, vectorized, scale_x_y}
#define IMPLICIT_GEMM(...)                                                                                              \
    implicit_gemm<Tile<__VA_ARGS__>>(GEOMETRY, x, weights, N, C, Cp, ldx, ldw, groups, splits, partial, arrived, EPILOGUE, RESULT)

// Convolution: x (N, H, W, groups * C), weights (groups * filters, size, size, Cp) -> y (N, OH, OW, groups * filters), or a quarter of
// its pixels if pooled. M: pixels before pooling; N: filters of a group. One block per tile, group and split. Large products:
extern "C" __global__ void __launch_bounds__(256) implicit_gemm_256x128(PARAMETERS) { IMPLICIT_GEMM(256, 128, 64, 64, 3); }
// The same with half of the pixels per block.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_128x128(PARAMETERS) { IMPLICIT_GEMM(128, 128, 64, 64, 3); }
// The same for up to 64 filters, and smaller products.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_128x64(PARAMETERS) { IMPLICIT_GEMM(128, 64, 64, 32, 4); }
// The same for up to 32 filters.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_128x32(PARAMETERS) { IMPLICIT_GEMM(128, 32, 32, 32, 4); }
// The same for small maps.
extern "C" __global__ void __launch_bounds__(128) implicit_gemm_64x64(PARAMETERS) { IMPLICIT_GEMM(64, 64, 32, 32, 5); }

using ImageTile = Tile<128, 64, 32, 64, 1>;

// The same with few input channels, such as an image's: x in the layout of the strides (elements from image to image, channel to
// channel, pixel to pixel), weights (filters, size, size, C).
template <class S>
__device__ inline void image_gemm(const Geometry &g, const S *x, int image_stride, int channel_stride, int pixel_stride, const T *weights,
                                  int N, int C, int ldw, const Epilogue &f, const Result &result) {
    char *buffer = dynamic_shared();
    Part part = Part::of_block<ImageTile>(g.M, N, 1);
    int row = threadIdx.x, h, w, warp_m = threadIdx.x / 32 * ImageTile::WM, K = g.size * g.size * C, p = 0, q = 0, c = 0;
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
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            float v[VECTOR];
#pragma unroll
            for (int k = 0; k < VECTOR; k++) {
                int i = h + p * g.dilation, j = w + q * g.dilation;
                bool exists = p < g.size && g.inside(i, j);
                v[k] = exists ? value(x[(i * g.W + j) * pixel_stride + c * channel_stride]) : 0.0f;
                if (++c == C) {
                    c = 0;
                    if (++q == g.size) q = 0, p++;
                }
            }
            store<VECTOR>((T *)(buffer + swizzle(row, j)), v);
        }
        cp_async_wait<0>();
        __syncthreads();
        multiply<ImageTile>(buffer, warp_m, 0, sums);
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
