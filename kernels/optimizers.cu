// Optimizer steps on one array of weights, in place. Kernels of gpudarknet/ops/optimizers.py.

// Make a step of SGD with momentum: buf -= decay * w; w += rate * buf; buf *= momentum.
extern "C" __global__ void sgd(float *w, float *buf, int n, float rate, float momentum, float decay) {
    int i = thread_index();
    if (i >= n) return;
    float step = buf[i] - decay * w[i];
    w[i] += rate * step;
    buf[i] = step * momentum;
}

// Make a step of Adam on w along g; m and v are its moments. Sets g to 0. c1 = 1 - beta1^t, c2 = 1 - beta2^t.
extern "C" __global__ void adam(float *w, float *g, float *m, float *v, int n, float rate, float beta1, float beta2,
                                float eps, float decay, float c1, float c2) {
    int i = thread_index();
    if (i >= n) return;
    float step = g[i] - decay * w[i];
    m[i] = beta1 * m[i] + (1 - beta1) * step;
    v[i] = beta2 * v[i] + (1 - beta2) * step * step;
    w[i] += rate * (m[i] / c1) / (sqrtf(v[i] / c2) + eps);
    g[i] = 0;
}
