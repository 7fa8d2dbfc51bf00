// Shared by kernels on NHWC maps: vector access to channels, epilogues, and im2col.
//
// A map (N, H, W, C) stores the channels of a pixel contiguously, `ld` elements from one pixel to the next: a part of a
// larger map has that map's ld. P = H*W. With `vectorized`, every thread processes 16 bytes of channels, which one access
// moves; Python has checked that pointers, C and ld allow it. Otherwise it processes one channel.

constexpr int VECTOR = 16 / sizeof(T);

// The value of an input element. Bytes are v / 255, correctly rounded.
__device__ inline float value(float v) { return v; }
__device__ inline float value(half_t v) { return v; }
__device__ inline float value(unsigned char v) {
    const float part = 1 / 255.0f;
    float q = v * part;
    return fmaf(fmaf(-q, 255, v), part, q);
}

template <int V, class S> struct alignas(V * sizeof(S) < 16 ? V * sizeof(S) : 16) Pack { S v[V]; };

template <int V, class S> __device__ inline void load(const S *p, float (&v)[V]) {
#ifdef HOST_CUDA
    host::count_access(host::loaded, p, V * sizeof(S));
#endif
    Pack<V, S> pack = *(const Pack<V, S> *)p;
#pragma unroll
    for (int k = 0; k < V; k++) v[k] = pack.v[k];
}

template <int V> __device__ inline void store(T *p, const float (&v)[V]) {
#ifdef HOST_CUDA
    host::count_access(host::stored, p, V * sizeof(T));
#endif
    Pack<V, T> pack;
#pragma unroll
    for (int k = 0; k < V; k++) pack.v[k] = v[k];
    *(Pack<V, T> *)p = pack;
}

template <int V> __device__ inline void add_bias(const float *bias, float (&v)[V]) {
    float b[V];
    load<V>(bias, b);
#pragma unroll
    for (int k = 0; k < V; k++) v[k] += b[k];
}

template <int V> __device__ inline void max_in_place(float (&best)[V], const float (&v)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++)
        if (v[k] > best[k] || v[k] != v[k]) best[k] = v[k];  // a NaN stays
}

template <Kind K, int V> __device__ inline void apply_function(float (&v)[V]) {
#pragma unroll
    for (int k = 0; k < V; k++) v[k] = function(K, v[k]);
}

// Only these activations are vectorized; Python runs the others one channel at a time.
template <int V> __device__ inline void activate(int kind, float (&v)[V]) {
    if (V == 1)
        v[0] = function(kind, v[0]);
    else if (kind == LEAKY)
        apply_function<LEAKY>(v);
    else if (kind == RELU)
        apply_function<RELU>(v);
    else if (kind == MISH)
        apply_function<MISH>(v);
    else if (kind == SWISH)
        apply_function<SWISH>(v);
    else if (kind == LOGISTIC)
        apply_function<LOGISTIC>(v);
}

__device__ inline float leaky(float x, float slope) { return x > 0 ? x : slope * x; }

enum BinaryOp { NONE, ADD, SORT, MULTIPLY };

// An epilogue: post(binary_op(pre(v + bias), other)). P: pixels of an image of the result, Po: of `other`.
struct Epilogue {
    const float *bias;
    const T *other;
    int P, Co, Po, ldo, pre, binary_op;
    float eps, slope;
    int post;
};

// Apply it to the channels from c on of pixel m.
template <int V> __device__ inline void apply_epilogue(const Epilogue &f, int m, int c, float (&v)[V]) {
    float o[V];
    if (f.bias) add_bias<V>(f.bias + c, v);
#pragma unroll 1  // so that the long `activate` is inlined once
    for (int pass = 0; pass < 2; pass++) {
        activate<V>(pass == 0 ? f.pre : f.post, v);
        if (pass > 0 || f.binary_op == NONE) continue;
        const T *other = f.other + (f.Po == 1 ? m / f.P : m) * f.ldo;
        if (f.Co == 1) {
#pragma unroll
            for (int k = 0; k < V; k++) o[k] = other[0];
        } else {
            load<V>(other + c, o);
        }
#pragma unroll
        for (int k = 0; k < V; k++) {
            if (f.binary_op == ADD) v[k] += o[k];
            if (f.binary_op == SORT) v[k] += o[k] + sqrtf(fmaxf(leaky(v[k], f.slope) * leaky(o[k], f.slope), 0) + f.eps);
            if (f.binary_op == MULTIPLY) v[k] *= o[k];
        }
    }
}

// Activate channel c of a YOLO map with E channels per anchor: sigmoid of x, y, objectness and classes, unless new_coords;
// then x and y become scale_x_y * v - (scale_x_y - 1) / 2.
__device__ inline float yolo_activation(float v, int c, int E, float scale_x_y, int new_coords) {
    int e = c % E;
    if (!new_coords && e != 2 && e != 3) v = sigmoid(v);
    return e < 2 && scale_x_y != 1 ? v * scale_x_y - 0.5f * (scale_x_y - 1) : v;
}

// The im2col matrix of a map's channels from `first` on, `count` of them: col (N, OH, OW, count/G, size, size, G), ld
// elements from one row to the next.
struct Im2col {
    T *col;
    int first, count, G, OH, OW, size, sy, sx, dilation, pad, ld;
};

// Write pixel (h, w), which may be in the padding, to all its places in the im2col matrix of its image.
template <int V> __device__ inline void scatter_im2col(const Im2col &to, int image, int h, int w, int c,
                                                       const float (&v)[V]) {
    c -= to.first;
    if (c < 0 || c >= to.count) return;
    T *col = to.col + c / to.G * to.size * to.size * to.G + c % to.G;
    for (int p = 0; p < to.size; p++) {
        int i = h + to.pad - p * to.dilation;
        if (i < 0 || i % to.sy || i / to.sy >= to.OH) continue;
        for (int q = 0; q < to.size; q++) {
            int j = w + to.pad - q * to.dilation;
            if (j < 0 || j % to.sx || j / to.sx >= to.OW) continue;
            store<V>(col + ((image * to.OH + i / to.sy) * to.OW + j / to.sx) * to.ld + (p * to.size + q) * to.G, v);
        }
    }
}
