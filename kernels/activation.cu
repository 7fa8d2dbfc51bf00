// Darknet's activation functions and their gradients. Kernels of gpudarknet/ops/activation.py.

// Exact, as the derivatives multiply an error of these by x.
__device__ inline float exact_sigmoid(float x) { return 1 / (1 + expf(-x)); }

__device__ inline float exact_tanh_softplus(float x) {
    float e = expf(x > 20 ? 20 : x), n = e * (e + 2);
    return n / (n + 2);
}

__device__ inline float derivative(int kind, float x, float y) {
    switch (kind) {
        case LOGISTIC: return (1 - y) * y;
        case LOGGY: return 2 * (1 - (y + 1) / 2) * (y + 1) / 2;
        case RELU: return y > 0;
        case RELU6: return y > 0 && y < 6;
        case LEAKY: case REVLEAKY: return y > 0 ? 1 : 0.1f;
        case RELIE: return y > 0 ? 1 : 0.01f;
        case RAMP: return (y > 0) + 0.1f;
        case ELU: return y >= 0 ? 1 : y + 1;
        case SELU: return y >= 0 ? 1.0507f : y + 1.0507f * 1.6732f;  // Darknet's, not the derivative
        case GELU: {  // Darknet's: of y instead of x
            float t = tanhf(0.0356774f * y * y * y + 0.797885f * y);
            return 0.5f * t + (0.0535161f * y * y * y + 0.398942f * y) * (1 - t * t) + 0.5f;
        }
        case TANH: return 1 - y * y;
        case PLSE: return y < 0 || y > 1 ? 0.01f : 0.125f;
        case STAIR: return floorf(y) != y;
        case HARDTAN: return y > -1 && y < 1;
        case LHTAN: return y > 0 && y < 1 ? 1 : 0.001f;
        case SWISH: return y + exact_sigmoid(x) * (1 - y);
        case MISH: {
            float t = exact_tanh_softplus(x);
            return x * (1 - t * t) * exact_sigmoid(x) + t;
        }
        case HARD_MISH: return x > 0 ? 1 : x > -2 ? x + 1 : 0;
        default: return 1;
    }
}

// Apply an elementwise activation, x of any shape -> y of the same shape.
extern "C" __global__ void activate(const T *x, T *y, int n, int kind) {
    int i = thread_index();
    if (i < n) y[i] = function(kind, x[i]);
}

// Multiply dy by f' at (x, y), all of one shape -> dx; x may be null for functions that do not need it.
extern "C" __global__ void activate_backward(const T *dy, const T *x, const T *y, T *dx, int n, int kind) {
    int i = thread_index();
    if (i < n) dx[i] = dy[i] * derivative(kind, x ? (float)x[i] : 0.0f, y[i]);
}

// Normalize each pixel over its channels, (N, C, H, W) -> same: mode 0 relu, 1 softmax, 2 softmax of x - max.
// y = r / (1e-4 + sum over C of r), r = max(x, 0) or exp(x) or exp(x - max). One thread per pixel; n = N*H*W, P = H*W.
extern "C" __global__ void normalize_channels(const T *x, T *y, int n, int C, int P, int mode) {
    int i = thread_index();
    if (i >= n) return;
    int first = i / P * C * P + i % P, last = first + C * P;
    float shift = 0, sum = 0;
    if (mode == 2) {
        shift = MINUS_INFINITY;
        for (int j = first; j < last; j += P) shift = fmaxf(shift, x[j]);
    }
    for (int j = first; j < last; j += P) sum += mode == 0 ? fmaxf(x[j], 0) : expf(x[j] - shift);
    for (int j = first; j < last; j += P) y[j] = (mode == 0 ? fmaxf(x[j], 0) : expf(x[j] - shift)) / (1e-4f + sum);
}

// Return the gradient at the input of `normalize_channels`, from dy (N, C, H, W) and its output y -> dx. One thread per pixel; n = N*H*W.
extern "C" __global__ void normalize_channels_backward(const T *dy, const T *y, T *dx, int n, int C, int P, int mode) {
    int i = thread_index();
    if (i >= n) return;
    int first = i / P * C * P + i % P, last = first + C * P;
    float sum = 0;
    if (mode != 0)
        for (int j = first; j < last; j += P) sum += dy[j] * y[j];
    for (int j = first; j < last; j += P) dx[j] = y[j] * (mode == 0 ? (float)dy[j] : dy[j] - sum);
}
