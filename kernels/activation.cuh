// The derivatives of Darknet's activation functions.

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
