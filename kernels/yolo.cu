// Activations of the detection heads, and decoding of their boxes. Kernels of gpudarknet/ops/yolo.py.
//
// A map is (N, A*E, H, W): E channels for each of A anchors. P = H*W.

// Activate a yolo map x (N, A*(5 + classes), H, W) -> y: sigmoid of x, y, objectness and classes, not with new_coords;
// then x and y become scale_x_y * v - (scale_x_y - 1) / 2.
extern "C" __global__ void yolo_activate(const T *x, T *y, int n, int E, int P, float scale_x_y, int new_coords) {
    int i = thread_index();
    if (i >= n) return;
    int e = i / P % E;
    float v = x[i];
    if (!new_coords && e != 2 && e != 3) v = sigmoid(v);
    if (e < 2 && scale_x_y != 1) v = v * scale_x_y - 0.5f * (scale_x_y - 1);
    y[i] = v;
}

// Activate a Gaussian yolo map x (N, A*(9 + classes), H, W) -> y: x, x_sigma, y, y_sigma, w, w_sigma, h, h_sigma,
// objectness, classes; all but w and h get a sigmoid.
extern "C" __global__ void gaussian_activate(const T *x, T *y, int n, int E, int P, float scale_x_y) {
    int i = thread_index();
    if (i >= n) return;
    int e = i / P % E;
    float v = x[i];
    if (e != 4 && e != 6) v = sigmoid(v);
    if ((e == 0 || e == 2) && scale_x_y != 1) v = v * scale_x_y - 0.5f * (scale_x_y - 1);
    y[i] = v;
}

// Reorder a region map x (N, A*(coords + 1 + classes), H, W) by cell -> y (N, H*W, A*E), and apply a sigmoid to its
// objectness; boxes and classes are unchanged. C = A*E.
extern "C" __global__ void region_activate(const T *x, T *y, int n, int C, int E, int P, int coords) {
    int i = thread_index();
    if (i >= n) return;
    int c = i % C;
    float v = x[(i / (P * C) * C + c) * P + i / C % P];
    y[i] = c % E == coords ? sigmoid(v) : v;
}

// Rank the boxes of each image whose score is above thresh, in the order cell, anchor: rank (N, P*A), -1 for the others;
// counts (N). The score of a box is at scores[image * M + first + anchor * per_anchor + cell * per_cell]. One block per image.
extern "C" __global__ void rank_boxes(const T *scores, int *rank, int *counts, int M, int A, int P, int first, int per_anchor,
                                      int per_cell, float thresh) {
    __shared__ int in_warps[32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, total = 0;
    scores += blockIdx.x * M + first;
    rank += blockIdx.x * P * A;
    for (int start = 0; start < P * A; start += blockDim.x) {
        int i = start + threadIdx.x;  // cell i / A, anchor i % A
        bool above = i < P * A && scores[i % A * per_anchor + i / A * per_cell] > thresh;
        unsigned votes = __ballot_sync(ALL_LANES, above);
        if (lane == 0) in_warps[warp] = __popc(votes);
        __syncthreads();
        int before = total + __popc(votes & ((1u << lane) - 1));
        for (int k = 0; k < blockDim.x / 32; k++) {
            if (k < warp) before += in_warps[k];
            total += in_warps[k];
        }
        if (i < P * A) rank[i] = above ? before : -1;
        __syncthreads();
    }
    if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// Decode the boxes of an activated map y (N, A*E, H, W), E = 5 + classes -> rows (K, E + 1): image index, objectness, box center
// x, y, width, height relative to the network input, and per class objectness * class, 0 where not above thresh.
// rank (N, H*W*A) of `rank_boxes`; starts (N) is the first row of each image; anchors (A, 2) in pixels of the network input.
// One thread per box: n = N*H*W*A.
extern "C" __global__ void yolo_decode(const T *y, const int *rank, const int *starts, const float *anchors, T *rows, int n,
                                       int A, int E, int H, int W, int net_w, int net_h, float thresh, int new_coords) {
    int k = thread_index();
    if (k >= n || rank[k] < 0) return;
    int a = k % A, cell = k / A % (H * W), image = k / (A * H * W), P = H * W;
    y += (image * A + a) * E * P + cell;
    rows += (starts[image] + rank[k]) * (E + 1);
    float w = y[2 * P], h = y[3 * P], objectness = y[4 * P];
    rows[0] = image;
    rows[1] = objectness;
    rows[2] = (cell % W + y[0]) / W;
    rows[3] = (cell / W + y[P]) / H;
    rows[4] = (new_coords ? 4 * w * w : expf(w)) * anchors[2 * a] / net_w;
    rows[5] = (new_coords ? 4 * h * h : expf(h)) * anchors[2 * a + 1] / net_h;
    for (int e = 5; e < E; e++) {
        float p = objectness * y[e * P];
        rows[e + 1] = p > thresh ? p : 0.0f;
    }
}

// Return the largest class probability, objectness * class, of every box of an activated region map y (N, P, A, E) -> scores
// (N, P, A). Channel `coords` is the objectness, the classes follow.
extern "C" __global__ void region_scores(const T *y, float *scores, int n, int E, int coords) {
    int k = thread_index();
    if (k >= n) return;
    y += k * E;
    float best = MINUS_INFINITY;
    for (int e = coords + 1; e < E; e++) best = fmaxf(best, y[coords] * y[e]);
    scores[k] = best;
}

// Decode the boxes of an activated region map y (N, P, A, E), E = coords + 1 + classes -> rows (K, 6 + classes), as `yolo_decode`;
// anchors (A, 2) in cells, objectness 1. One thread per box: n = N*H*W*A.
extern "C" __global__ void region_decode(const T *y, const int *rank, const int *starts, const float *anchors, T *rows, int n,
                                         int A, int E, int H, int W, int coords, float thresh) {
    int k = thread_index();
    if (k >= n || rank[k] < 0) return;
    int a = k % A, cell = k / A % (H * W), image = k / (A * H * W);
    y += k * E;
    rows += (starts[image] + rank[k]) * (E - coords + 5);
    rows[0] = image;
    rows[1] = 1.0f;
    rows[2] = (cell % W + sigmoid(y[0])) / W;
    rows[3] = (cell / W + sigmoid(y[1])) / H;
    rows[4] = expf(y[2]) * anchors[2 * a] / W;
    rows[5] = expf(y[3]) * anchors[2 * a + 1] / H;
    for (int e = coords + 1; e < E; e++) {
        float p = y[coords] * y[e];
        rows[e - coords + 5] = p > thresh ? p : 0.0f;
    }
}
