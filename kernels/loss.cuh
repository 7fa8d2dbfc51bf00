// Ground truths and boxes, as the losses of detection heads use them.
//
// A slot is one anchor of one cell of one image. Its channel e is at y[e * step] and, of its delta, at delta[e * step]. Maps are
// NCHW or NHWC in memory: the distance from one channel to the next is `channel`, from one cell to the next `pixel`.

enum IouVariant { MSE, IOU, GIOU, DIOU, CIOU };  // the order of IOU_VARIANTS in gpudarknet/ops/box_loss.py

// Center, then size, relative to the image.
struct Box {
    float x, y, w, h;
};

__device__ inline Box load_box(const float *b) { return {b[0], b[1], b[2], b[3]}; }

__device__ inline float area_of_overlap(Box a, Box b) {
    float w = fminf(a.x + a.w / 2, b.x + b.w / 2) - fmaxf(a.x - a.w / 2, b.x - b.w / 2);
    float h = fminf(a.y + a.h / 2, b.y + b.h / 2) - fmaxf(a.y - a.h / 2, b.y - b.h / 2);
    return fmaxf(w, 0) * fmaxf(h, 0);
}

__device__ inline float iou(Box a, Box b) {
    float overlap = area_of_overlap(a, b), both = a.w * a.h + b.w * b.h - overlap;
    return both > 0 ? overlap / both : 0;
}

// IoU or one of its variants, as in gpudarknet/boxes.py; MSE means IoU.
__device__ inline float similarity(int variant, Box a, Box b) {
    float u = iou(a, b);
    if (variant <= IOU) return u;
    float w = fmaxf(a.x + a.w / 2, b.x + b.w / 2) - fminf(a.x - a.w / 2, b.x - b.w / 2);
    float h = fmaxf(a.y + a.h / 2, b.y + b.h / 2) - fminf(a.y - a.h / 2, b.y - b.h / 2);
    if (variant == GIOU) {
        float both = a.w * a.h + b.w * b.h - area_of_overlap(a, b);
        return w * h > 0 ? u - (w * h - both) / (w * h) : u;
    }
    float dx = a.x - b.x, dy = a.y - b.y, diagonal = w * w + h * h;
    float distance = diagonal > 0 ? (dx * dx + dy * dy) / diagonal : 0;
    if (variant == DIOU) return u - powf(distance, 0.6f);
    float angle = atan2f(b.w, b.h) - atan2f(a.w, a.h), v = 0.405284735f * angle * angle;  // 4 / pi^2
    return u - (distance + v * v / (1 - u + v + 1e-6f));
}

// The factor of the class deltas of a box whose true class has probability p.
__device__ inline float focal(float p) {
    p += 1e-15f;
    return -0.5f * (1 - p) * (2 * p * logf(p) + p - 1);
}

__device__ inline int cell(float position, int size) { return min(max((int)(position * size), 0), size - 1); }
