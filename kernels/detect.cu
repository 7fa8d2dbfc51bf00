// Decode the boxes of all detection heads of a plan, from their activated NHWC maps in its arena. Kernels of
// gpudarknet/plan/cuda/detect.py; ops/yolo.py and the layers define the results.
//
// A candidate is a box that a head may predict. Candidates are ordered by head, image, cell, anchor, as Darknet returns them; those
// of a head begin at a multiple of 32, so that a warp has one head. `vote` compares their scores with the threshold, and `decode`
// ranks those above it by counting votes: the order of the rows does not depend on that of the threads.

enum { YOLO, GAUSSIAN, REGION, DETECTION };

// A row of the table `heads`. first: its first candidate; count: its candidates; offset: its map in the arena; ld: elements from
// one of the map's `pixels` per image to the next; E: channels of an anchor; H, W: cells; skip: channels of an anchor before
// its objectness, beyond x, y, w, h; option: of YOLO new_coords, of GAUSSIAN the corner that is predicted (0: the center, 1: left
// and top, -1: right and bottom), of DETECTION whether w and h are square roots; anchor: its first anchor in `anchors`.
struct Head {
    int kind, first, count, offset, ld, pixels, A, E, H, W, classes, skip, option, anchor;
};

// A candidate of a head.
struct Candidate {
    int image, cell, a;
};

__device__ inline Head find_head(const int *heads, int n_heads, int i) {
    const Head *head = (const Head *)heads;
    while (n_heads-- > 1 && i >= head[1].first) head++;
    return *head;
}

__device__ inline Candidate candidate(const Head &head, int i) {
    int k = i - head.first, cells = head.H * head.W;
    return {k / (head.A * cells), k / head.A % cells, k % head.A};
}

// Entry e of a candidate: x, y, w, h, objectness, and from 5 on the classes.
__device__ inline float entry(const T *arena, const Head &head, const Candidate &c, int e) {
    const T *map = arena + head.offset + c.image * head.pixels * head.ld;
    if (head.kind == DETECTION) {  // classes, confidences, boxes of all cells, in NCHW order
        int cells = head.H * head.W, confidences = cells * head.classes, boxes = confidences + cells * head.A;
        int f = e >= 5   ? c.cell * head.classes + e - 5
                : e == 4 ? confidences + c.cell * head.A + c.a
                         : boxes + (c.cell * head.A + c.a) * 4 + e;
        return map[f % head.pixels * head.ld + f / head.pixels];
    }
    int channel = e >= 4 ? e + head.skip : head.kind == GAUSSIAN ? 2 * e : e;
    return map[c.cell * head.ld + c.a * head.E + channel];
}

// Vote for the candidates above the threshold: votes (n / 32) has a bit for each. YOLO and GAUSSIAN compare the objectness, REGION
// and DETECTION each class's probability, objectness * class. n: a multiple of 32.
extern "C" __global__ void vote(const T *arena, const int *heads, const float *thresh, int *votes, int n, int n_heads) {
    int i = thread_index();
    if (i >= n) return;
    Head head = find_head(heads, n_heads, i);
    bool above = false;
    if (i - head.first < head.count) {
        Candidate c = candidate(head, i);
        float objectness = entry(arena, head, c, 4);
        if (head.kind == YOLO || head.kind == GAUSSIAN)
            above = objectness > *thresh;
        else
            for (int k = 0; k < head.classes && !above; k++) above = objectness * entry(arena, head, c, 5 + k) > *thresh;
    }
    unsigned bits = __ballot_sync(ALL_LANES, above);
    if (i % 32 == 0) votes[i / 32] = bits;
}

// Decode the candidates with a vote -> rows (1 + capacity, 6 + classes): the first element is their number, an int; from the second
// row on: image index, objectness, box center x, y, width, height relative to the network input, and per class objectness *
// class, 0 where not above thresh. Those beyond the capacity are only counted. anchors (A, 2) are in pixels of the network
// input, of REGION in cells. One warp for 32 candidates.
extern "C" __global__ void decode(const T *arena, const int *heads, const float *anchors, const float *thresh, const int *votes,
                                  float *rows, int n, int n_heads, int capacity, int net_w, int net_h) {
    __shared__ int counts[32];
    int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * warps, words = n / 32;
    bool last = blockIdx.x == gridDim.x - 1, any = last;
    for (int k = 0; k < warps && first + k < words; k++) any = any || votes[first + k];
    if (!any) return;
    int before = 0;  // votes in earlier blocks
    for (int k = threadIdx.x; k < first; k += blockDim.x) before += __popc(votes[k]);
    for (int lanes = 16; lanes > 0; lanes /= 2) before += __shfl_xor_sync(ALL_LANES, before, lanes);
    if (lane == 0) counts[warp] = before;
    __syncthreads();
    before = 0;
    for (int k = 0; k < warps; k++) before += counts[k];
    unsigned mine = 0;
    for (int k = 0; k < warps && first + k < words; k++) {
        if (k == warp) mine = votes[first + k];
        if (k < warp) before += __popc(votes[first + k]);
    }
    if (last && warp == warps - 1 && lane == 0) *(int *)rows = before + __popc(mine);
    if (!mine) return;

    Head head = find_head(heads, n_heads, (first + warp) * 32);
    int width = 6 + head.classes;
    for (int row = before + 1; mine && row <= capacity; mine &= mine - 1, row++) {
        Candidate c = candidate(head, (first + warp) * 32 + __ffs(mine) - 1);
        float *out = rows + row * width, objectness = entry(arena, head, c, 4), certainty = 1;
        if (head.kind == GAUSSIAN) {
            const T *sigma = arena + head.offset + (c.image * head.pixels + c.cell) * head.ld + c.a * head.E + 1;
            certainty = 1 - (sigma[0] + sigma[2] + sigma[4] + sigma[6]) / 4;
        }
        for (int k = lane; k < head.classes; k += 32) {
            float p = objectness * (entry(arena, head, c, 5 + k) * certainty);
            out[6 + k] = p > *thresh ? p : 0.0f;
        }
        if (lane) continue;
        float x = entry(arena, head, c, 0), y = entry(arena, head, c, 1), w = entry(arena, head, c, 2), h = entry(arena, head, c, 3);
        const float *anchor = anchors + 2 * (head.anchor + c.a);
        int W = head.W, H = head.H;
        if (head.kind == DETECTION) {  // its definition divides in double precision
            x = ((double)x + c.cell % W) / W;
            y = ((double)y + c.cell / W) / H;
            if (head.option) w = w * w, h = h * h;
        } else if (head.kind == REGION) {
            objectness = 1;
            x = (c.cell % W + sigmoid(x)) / W;
            y = (c.cell / W + sigmoid(y)) / H;
            w = expf(w) * anchor[0] / W;
            h = expf(h) * anchor[1] / H;
        } else {
            bool new_coords = head.kind == YOLO && head.option;
            x = (c.cell % W + x) / W;
            y = (c.cell / W + y) / H;
            w = (new_coords ? 4 * w * w : expf(w)) * anchor[0] / net_w;
            h = (new_coords ? 4 * h * h : expf(h)) * anchor[1] / net_h;
            if (head.kind == GAUSSIAN) {  // the predicted point may be a corner
                x += 0.5f * head.option * w;
                y += 0.5f * head.option * h;
            }
        }
        out[0] = c.image;
        out[1] = objectness;
        out[2] = x;
        out[3] = y;
        out[4] = w;
        out[5] = h;
    }
}
