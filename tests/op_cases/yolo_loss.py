"""The loss of [yolo] and [Gaussian_yolo], as loops over cells, anchors and truths; a variant is the keys of a section."""

from __future__ import annotations

from math import atan2, exp, log, pi, sqrt

import numpy as np

from gpudarknet.layers import SECTIONS
from gpudarknet.layers.anchors import loss_settings
from gpudarknet.ops import yolo_loss
from gpudarknet.ops.box_loss import box_delta

from . import check

WIDTH, HEIGHT = 96, 64  # of the network input
ANCHORS = (8, 10, 14, 20, 22, 16, 30, 34, 40, 28, 44, 46)
HEADS = {}  # settings -> the head that they are of


def score(kind, a, b):
    """IoU or one of its variants of two boxes; Darknet's DIoU has a power of 0.6."""
    edges = [(v[c] + side * v[c + 2] / 2) for c in (0, 1) for side in (-1, 1) for v in (a, b)]
    w = max(min(edges[2], edges[3]) - max(edges[0], edges[1]), 0)
    h = max(min(edges[6], edges[7]) - max(edges[4], edges[5]), 0)
    both = a[2] * a[3] + b[2] * b[3] - w * h
    u = w * h / both if both > 0 else 0.0
    w, h = max(edges[2], edges[3]) - min(edges[0], edges[1]), max(edges[6], edges[7]) - min(edges[4], edges[5])
    if kind == "giou":
        return u - (w * h - both) / (w * h)
    apart = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (w * w + h * h)
    if kind == "diou":
        return u - apart**0.6
    if kind == "ciou":
        v = 4 / pi**2 * (atan2(b[2], b[3]) - atan2(a[2], a[3])) ** 2
        return u - apart - v * v / (1 - u + v + 1e-6)
    return u


def colliding_truths(rng, N, classes):
    """Draw (N, 10*6) truths: half repeat the box of another; in most images a row of zeros ends the list before the last."""
    t = np.zeros((N, 10, 6), np.float32)
    t[..., :2], t[..., 2:4] = rng.uniform(0.02, 0.98, (N, 10, 2)), rng.uniform(0.05, 0.8, (N, 10, 2))
    t[..., 4] = rng.integers(0, classes, (N, 10))
    for n in range(N):
        t[n, 5:, :4] = t[n, rng.integers(0, 5, 5), :4]
        t[n, 10 - 2 * ((n + 1) % N) : 9] = 0
    return t.reshape(N, -1)


def anchor_loss_by_loops(head, y, truth, exact=False):
    """forward_yolo_layer and forward_gaussian_yolo_layer, cell by cell: (cost, delta)."""
    N, C, H, W = y.shape
    A, K = len(head.anchor_ids), head.classes
    gaussian = head.section == "Gaussian_yolo"
    s, o = (2, 8) if gaussian else (1, 4)
    new_coords, focal_loss = getattr(head, "new_coords", 0), getattr(head, "focal_loss", 0)
    corner = {"center": 0, "left_top": 0.5, "right_bottom": -0.5}[getattr(head, "yolo_point", "center")]
    v = y.astype(float).reshape(N, A, C // A, H, W)
    d = np.zeros_like(v)
    sizes = [(float(w) / WIDTH, float(h) / HEIGHT) for w, h in head.anchor_sizes()]
    gain = [1.0] * K
    if head.counters_per_class:
        counts = [max(c, 1) for c in head.counters_per_class]
        gain = [min(max(counts) / c, head.max_delta) for c in counts]
    losses = []

    def clip(value):
        return min(max(value, -head.max_delta), head.max_delta)

    def box(n, a, j, i):
        (aw, ah), (x, yy, w, h) = sizes[head.anchor_ids[a]], v[n, a, 0:o:s, j, i].tolist()
        w, h = (4 * w * w * aw, 4 * h * h * ah) if new_coords else (exp(w) * aw, exp(h) * ah)
        return (i + x) / W + corner * w, (j + yy) / H + corner * h, w, h

    def box_move(n, a, j, i, t, weight):
        (aw, ah), out, dc = sizes[head.anchor_ids[a]], v[n, a, :, j, i].tolist(), d[n, a, :, j, i]
        tw, th = t[2] / aw, t[3] / ah
        tw, th = (sqrt(tw / 4), sqrt(th / 4)) if new_coords else (log(tw), log(th))
        errors = [(t[0] - corner * t[2]) * W - i, (t[1] - corner * t[3]) * H - j, tw, th]
        errors = [e - out[s * c] for c, e in enumerate(errors)]
        move = [(2 - t[2] * t[3]) * e for e in errors]
        if gaussian:
            for c, e in enumerate(errors):
                sigma = out[2 * c + 1]
                density = exp(-((e / sigma) ** 2) / 2) / sqrt(2 * pi) / (sigma + 0.3)
                f = 0.5 * (2 - t[2] * t[3]) * density / (density + 1e-9)
                move[c] = f * e / sigma / sigma
                dc[2 * c + 1] += clip(f * ((e / sigma) ** 2 / sigma - 1 / (sigma + 0.3)) * head.uc_normalizer)
        if head.iou_loss != "mse":
            pred = box(n, a, j, i)
            move = box_delta(np.array([pred]), np.array([t[:4]], float), head.iou_loss, exact)[0].tolist()
            for c, size in enumerate((W, H)):
                if exact:
                    p = (out[c * s] + (head.scale_x_y - 1) / 2) / head.scale_x_y
                    inner = head.scale_x_y * (1 if new_coords else p * (1 - p)) / size
                    grow = 2 * pred[c + 2] / out[(c + 2) * s] if new_coords else pred[c + 2]
                    move[c], move[c + 2] = move[c] * inner, (move[c + 2] + corner * move[c]) * grow
                else:
                    move[c] -= corner * move[c + 2]
                    move[c + 2] *= 1 if new_coords else exp(out[(c + 2) * s])
        for c in range(4):
            value = move[c] * head.iou_normalizer * weight
            dc[c * s] += clip(value) if gaussian or head.iou_loss != "mse" else value

    def class_move(n, a, j, i, k):
        out, dc, e = v[n, a, o + 1 :, j, i], d[n, a, o + 1 :, j, i], head.label_smooth_eps
        if dc[0 if gaussian else k] != 0:
            dc[k] = (1 - e + 0.5 * e - out[k]) * gain[k]
            return
        for c in range(K):
            if focal_loss:
                p = out[k] + 1e-15
                dc[c] = ((c == k) - out[c]) * 0.5 * -(1 - p) * (2 * p * log(p) + p - 1)
            else:
                dc[c] = (c == k) * (1 - e) + 0.5 * e - out[c]
                if c == k and head.counters_per_class:
                    dc[c] *= gain[k] * head.cls_normalizer

    for n in range(N):
        rows = []
        for row in truth[n].astype(float).reshape(-1, 6)[: head.max].tolist():
            if row[0] == 0:
                break
            if 0 <= row[4] < head.num_truth_classes:
                rows.append((row[:4], int(row[4]) if head.map is None else head.map[int(row[4])]))
        for a, j, i in np.ndindex(A, H, W):
            obj, likes = v[n, a, o, j, i], [score("iou", box(n, a, j, i), t) for t, _ in rows]
            d[n, a, o, j, i] = head.obj_normalizer * (0 - obj)
            best = max(likes, default=0)
            if best > head.ignore_thresh and (v[n, a, o + 1 :, j, i] > 0.25).any():
                near = head.obj_normalizer * (best - obj)
                if head.objectness_smooth and gaussian:
                    d[n, a, o, j, i] = head.obj_normalizer * (best * best - obj)
                    class_move(n, a, j, i, rows[likes.index(best)][1])
                else:
                    d[n, a, o, j, i] = max(d[n, a, o, j, i], near) if head.objectness_smooth else 0
            if best > head.truth_thresh:
                t, k = rows[likes.index(best)]
                aim = best * best if head.objectness_smooth else 1
                d[n, a, o, j, i] = head.obj_normalizer * (aim - obj)
                class_move(n, a, j, i, k)
                if head.objectness_smooth:
                    d[n, a, o + 1 + k, j, i] = gain[k] * (aim - v[n, a, o + 1 + k, j, i])
                box_move(n, a, j, i, t, gain[k])
        for t, k in rows:
            i, j = (min(max(int((t[c] - corner * t[c + 2]) * size), 0), size - 1) for c, size in enumerate((W, H)))
            likes = [score("iou", (0, 0, *shape), (0, 0, *t[2:])) for shape in sizes]
            best = likes.index(max(likes))
            for m, shape in enumerate(sizes):
                similar = head.iou_thresh < 1 and m != best
                similar = similar and score(head.iou_thresh_kind, (0, 0, *shape), (0, 0, *t[2:])) > head.iou_thresh
                if m not in head.anchor_ids or not (m == best or similar):
                    continue
                a = head.anchor_ids.index(m)
                losses.append(1 - score("giou" if head.iou_loss == "giou" else "iou", box(n, a, j, i), t))
                box_move(n, a, j, i, t, gain[k])
                if gaussian or not head.objectness_smooth or d[n, a, o, j, i] == 0:
                    d[n, a, o, j, i] = gain[k] * head.obj_normalizer * (1 - v[n, a, o, j, i])
                class_move(n, a, j, i, k)
        if head.iou_thresh < 1 or gaussian:
            for a, j, i in np.ndindex(A, H, W):
                if gaussian or d[n, a, o, j, i] != 0:
                    d[n, a, :o, j, i] /= max((d[n, a, o + 1 :, j, i] > 0).sum(), 1)
    cost = (d * d).sum()
    if head.iou_loss != "mse" and getattr(head, "show_details", 0):
        rest = d[:, :, o:]
        cost = head.obj_normalizer * (rest * rest).sum()
        cost += head.iou_normalizer * sum(losses) / max(len(losses), 1)
    return cost, d.reshape(y.shape) * head.delta_normalizer


YOLO = {
    "mse": {},
    "mse all anchors": dict(mask=None, iou_thresh=0.3),
    "repeated anchors": dict(mask=(3, 1, 1), iou_thresh=0.3),
    "iou": dict(iou_loss="iou", iou_thresh=0.2, scale_x_y=1.05),
    "giou": dict(iou_loss="giou", iou_normalizer=0.5, max_delta=0.3),
    "diou": dict(iou_loss="diou", iou_thresh=0.2, iou_thresh_kind="giou"),
    "ciou": dict(iou_loss="ciou", iou_thresh=0.213, iou_normalizer=0.07, max_delta=5.0),
    "kinds": dict(iou_loss="ciou", iou_thresh=0.3, iou_thresh_kind="diou", show_details=0),
    "exact": dict(iou_loss="ciou", iou_thresh=0.3, iou_thresh_kind="ciou", scale_x_y=1.2, exact=True),
    "exact giou": dict(iou_loss="giou", new_coords=1, scale_x_y=2.0, exact=True),
    "new_coords": dict(iou_loss="ciou", new_coords=1, scale_x_y=2.0, iou_thresh=0.2, objectness_smooth=1),
    "new_coords mse": dict(new_coords=1, scale_x_y=2.0, obj_normalizer=0.4),
    "smooth objectness": dict(objectness_smooth=1, ignore_thresh=0.2, truth_thresh=0.4, iou_loss="iou"),
    "truth_thresh": dict(ignore_thresh=0.2, truth_thresh=0.3, iou_thresh=0.4),
    "focal": dict(focal_loss=1, iou_thresh=0.3),
    "label smoothing": dict(label_smooth_eps=0.1, iou_thresh=0.3),
    "counters": dict(counters=True, cls_normalizer=0.5, max_delta=3.0, iou_loss="iou", delta_normalizer=0.3),
    "map": dict(map=True, max=4),
}
GAUSSIAN = {
    "gaussian": dict(uc_normalizer=0.5, max_delta=3.0),
    "gaussian ciou": dict(iou_loss="ciou", iou_thresh=0.213, yolo_point="left_top"),
    "gaussian smooth": dict(objectness_smooth=1, ignore_thresh=0.2, truth_thresh=0.4, yolo_point="right_bottom"),
    "gaussian exact": dict(iou_loss="diou", yolo_point="right_bottom", exact=True),
    "gaussian counters": dict(counters=True, iou_thresh=0.3, label_smooth_eps=0.1),
}


def head_of(name, classes):
    """Return the head of a variant, and whether its deltas are exact."""
    keys = dict(num=6, mask=(0, 1, 3), anchors=ANCHORS, max=10, classes=classes) | (YOLO | GAUSSIAN)[name]
    exact = keys.pop("exact", False)
    if keys.pop("counters", False):
        keys["counters_per_class"] = tuple(10 * (k % 4) for k in range(classes))
    if keys.get("map"):
        keys["map"] = tuple(range(classes))[::-1]
    return SECTIONS["yolo" if name in YOLO else "Gaussian_yolo"](**keys), exact


def make(rng, N, C, H, W, name):
    """Draw outputs far from thresholds, and truths that share cells."""
    head, exact = head_of(name, C)
    A, E = len(head.anchor_ids), head.box_channels + C
    v = rng.uniform(0.05, 0.9, (N, A, E, H, W))
    sizes = slice(2, 4) if E == 5 + C else slice(4, 7, 2)
    if not getattr(head, "new_coords", 0):
        v[:, :, sizes] = rng.normal(0, 0.5, v[:, :, sizes].shape)
    settings = loss_settings(head, WIDTH, HEIGHT, exact)
    HEADS[settings] = head
    scale = np.array([8.0 if C == 3 else 1.0])
    return v.reshape(N, A * E, H, W), colliding_truths(rng, N, C), scale, settings, None


# A sum of up to 30 box deltas, each a quotient of areas that may be small.
@check(yolo_loss.anchor_loss, make, *((name,) for name in YOLO | GAUSSIAN), half="y", rtol=5e-4, atol=5e-5)
def anchor_loss(y, truth, scale, settings, reject):
    cost, delta = anchor_loss_by_loops(HEADS[settings], y, truth, settings.exact)
    return np.array([cost]), delta * scale
