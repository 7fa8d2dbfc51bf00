// Shared by convolutions as an implicit matrix multiplication on tensor cores, with their epilogues.
//
// The product is y (M, N) = im2col(x) (M, K) @ weights (N, K).T: M output pixels, N filters, K = (tap, channel). No im2col matrix
// exists: a block copies the pixels that its rows need from x to a buffer in shared memory, 64 bytes of K at a time, multiplies them
// there, and computes a tile of BM x BN. Sums are float32.
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

// What a lane loads for the first fragments of a warp: offsets in a buffer.
__device__ inline int a_fragment(int warp_m, int lane) { return swizzle(warp_m + lane % 16, lane / 16); }

template <class Tile> __device__ inline int b_fragment(int warp_n, int lane) {
    return swizzle(Tile::BM + warp_n + lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

// sums += the product of the rows of a buffer that belong to a warp.
template <class Tile>
__device__ inline void multiply(SharedAddress buffer, int a_offset, int b_offset, float (&sums)[Tile::DOWN][Tile::ACROSS][4]) {
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

template <class Tile> __device__ inline void clear(float (&sums)[Tile::DOWN][Tile::ACROSS][4]) {
#pragma unroll
    for (int i = 0; i < Tile::DOWN; i++)
#pragma unroll
        for (int j = 0; j < Tile::ACROSS; j++) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0;
}

// The result y (pixels, channels), `ld` elements from pixel to pixel, and what is applied to it: a 2 x 2 max pool, an epilogue, the
// activation of a YOLO head with E channels per anchor (0: none). vectorized: y can be stored 16 bytes at a time.
struct Result {
    T *y;
    int ld, pooled, E, new_coords, vectorized;
    float scale_x_y;
};

// The pixel of y that a row of the product is.
struct SamePixel {
    __device__ int operator()(int m) const { return m; }
};

// Apply the epilogue and store the sums of a warp, a fragment of 16 rows at a time, through shared memory: there a thread finds
// 16 bytes of a pixel's channels.
template <class Tile, class ToPixel = SamePixel>
__device__ inline void store_sums(char *shared, const float (&sums)[Tile::DOWN][Tile::ACROSS][4], const Epilogue &f,
                                  const Result &result, const Part &part, int M, int N, int warp_m, int warp_n,
                                  const ToPixel &to_pixel = {}) {
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
            int c = part.group * N + n, pixel = to_pixel(m);
            apply_epilogue<VECTOR>(f, pixel, c, v);
            if (result.E)
#pragma unroll
                for (int k = 0; k < VECTOR; k++) v[k] = yolo_activation(v[k], c + k, result.E, result.scale_x_y, result.new_coords);
            T *y = result.y + pixel * result.ld + c;
            if (result.vectorized && n + VECTOR <= N)
                store<VECTOR>(y, v);
            else
#pragma unroll
                for (int k = 0; k < VECTOR; k++)
                    if (n + k < N) y[k] = v[k];
        }
    }
}

#define EPILOGUE_PARAMETERS                                                                                             \
    const float *bias, const T *other, T *y, int Co, int Po, int ldo, int pre, int binary_op, float eps, float slope,   \
        int post, int E, float scale_x_y, int new_coords, int pooled, int ldy, int vectorized

#define GEOMETRY Geometry{M, H, W, OH, OW, size, sy, sx, dilation, pad, pooled}
#define EPILOGUE Epilogue{bias, other, OH * OW / (pooled ? 4 : 1), Co, Po, ldo, pre, binary_op, eps, slope, post}
#define RESULT Result{y, ldy, pooled, E, new_coords, vectorized, scale_x_y}
