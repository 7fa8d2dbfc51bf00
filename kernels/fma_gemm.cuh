// Matrix multiplication in float32 without tensor cores, for kernels that fill their buffers in different ways.
//
// A block multiplies buffers a (K, BM) and b (K, BN) in shared memory; meanwhile the next K are on their way to registers.

constexpr int K = 8;

// A block's tile, BM x BN, and a thread's, TM x TN: groups of 4 rows and of 4 columns, BM / (TM / 4) and BN / (TN / 4) apart.
template <int M, int N, int THREAD_M, int THREAD_N> struct FmaTile {
    static constexpr int BM = M, BN = N, TM = THREAD_M, TN = THREAD_N, THREADS = BM / TM * (BN / TN);

    // The first row and column of this thread, and those of its element (i, j).
    __device__ static int first_row() { return threadIdx.x / (BN / TN) * 4; }
    __device__ static int first_column() { return threadIdx.x % (BN / TN) * 4; }
    __device__ static int row(int i) { return first_row() + i / 4 * 4 * (BM / TM) + i % 4; }
    __device__ static int column(int j) { return first_column() + j / 4 * 4 * (BN / TN) + j % 4; }
};

// sums += a.T b for the rows and columns of this thread.
template <class Tile, int LDA, int LDB>
__device__ inline void multiply(const float4 (&a)[K][LDA], const float4 (&b)[K][LDB], int row, int column,
                                float (&sums)[Tile::TM][Tile::TN / 4][4]) {
#pragma unroll
    for (int k = 0; k < K; k++) {
        float u[Tile::TM], v[Tile::TN];
#pragma unroll
        for (int i = 0; i < Tile::TM; i += 4) {
            float4 four = a[k][(row + i * (Tile::BM / Tile::TM)) / 4];
            u[i] = four.x, u[i + 1] = four.y, u[i + 2] = four.z, u[i + 3] = four.w;
        }
#pragma unroll
        for (int j = 0; j < Tile::TN; j += 4) {
            float4 four = b[k][(column + j * (Tile::BN / Tile::TN)) / 4];
            v[j] = four.x, v[j + 1] = four.y, v[j + 2] = four.z, v[j + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < Tile::TM; i++)
#pragma unroll
            for (int j = 0; j < Tile::TN; j++) sums[i][j / 4][j % 4] += u[i] * v[j];
    }
}
