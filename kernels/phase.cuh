// The phases of a strided convolution's input, which are gradients of their own.
//
// Row h of dx gets dz[i] * weights[p] where h + pad = i * stride + p * dilation. The rows with one value of (h + pad) % stride are a
// phase: all have the same taps, and neighbors among them read neighboring rows of dz. Columns likewise: sy * sx phases, each a
// product dx (M, N) = dz's windows (M, K) @ weights (N, K).T with K = (the phase's taps, filters). A tile belongs to one phase.

// A phase along one axis: positions start, start + stride, ... (`count` of them); taps first, first + step, ... (`taps`); position k
// and tap j read position from + k - j * apart of dz.
struct Phase {
    int start, count, first, step, taps, from, apart;

    __device__ static Phase of(int phase, int length, int size, int stride, int dilation, int pad) {
        Phase a = {(phase + stride - pad % stride) % stride, 0, 0, 0, 0, 0, 0};
        a.count = max(length - a.start + stride - 1, 0) / stride;
        for (int p = 0; p < size; p++)
            if (p * dilation % stride == phase) {
                if (a.taps == 0) a.first = p;
                if (a.taps == 1) a.step = p - a.first;
                a.taps++;
            }
        a.from = (a.start + pad - a.first * dilation) / stride, a.apart = a.step * dilation / stride;
        return a;
    }
};

// The phase of this block, whose tile is number `tile` of those of M pixels: the host launches as many blocks as all phases have tiles
// of BM pixels, times `columns`. As a function, the pixel of dx that a row of the phase's product is.
struct Phases {
    int H, W, sy, sx, columns, tile, M;
    Phase down, across;

    __device__ Phases(int images, int H, int W, int size, int sy, int sx, int dilation, int pad, int BM, int columns)
        : H(H), W(W), sy(sy), sx(sx), columns(columns), tile(blockIdx.x), M(0) {
        for (int phase = 0; phase < sy * sx; phase++) {
            down = Phase::of(phase / sx, H, size, sy, dilation, pad), across = Phase::of(phase % sx, W, size, sx, dilation, pad);
            M = images * down.count * across.count;
            int tiles = (M + BM - 1) / BM * columns;
            if (tile < tiles) break;
            tile -= tiles;
        }
    }
    __device__ int operator()(int m) const {
        int pixels = down.count * across.count;
        int h = down.start + m % pixels / across.count * sy, w = across.start + m % across.count * sx;
        return (m / pixels * H + h) * W + w;
    }
};
