"""The loss of [region], as loops over cells, anchors and truths; a variant is the keys of a section."""

from __future__ import annotations

from itertools import takewhile
from math import exp, log

import numpy as np

from gpudarknet.layers import SECTIONS
from gpudarknet.layers.class_tree import Tree
from gpudarknet.layers.region import loss_settings
from gpudarknet.ops import region_loss as region

from . import check
from .yolo_loss import colliding_truths, score

HEADS = {}  # settings -> the head that they are of


def sigmoid(x):
    return 1 / (1 + exp(-x))


def region_loss_by_loops(head, y, truth, prior):
    """forward_region_layer, cell by cell: (cost, delta)."""
    N, C, H, W = y.shape
    A, K, o = head.num, head.classes, head.coords
    v = y.astype(float).reshape(N, H, W, A, C // A)
    d, sizes = np.zeros_like(v), head.anchor_sizes().astype(float)
    parents = head.tree.parents if head.tree else ()

    def siblings(k):
        return [c for c in range(K) if any(first <= c < last and first <= k < last for first, last in head.tree.groups)]

    def box(n, j, i, a):
        e = v[n, j, i, a].tolist()
        return (
            (i + sigmoid(e[0])) / W,
            (j + sigmoid(e[1])) / H,
            exp(e[2]) * sizes[a][0] / W,
            exp(e[3]) * sizes[a][1] / H,
        )

    def box_move(n, j, i, a, t, scale):
        e, out = v[n, j, i, a], d[n, j, i, a]
        for c, wanted in enumerate((t[0] * W - i, t[1] * H - j)):
            s = sigmoid(e[c])
            out[c] = scale * (wanted - s) * s * (1 - s)
        out[2] = scale * (log(t[2] * W / sizes[a][0]) - e[2])
        out[3] = scale * (log(t[3] * H / sizes[a][1]) - e[3])

    def class_move(n, j, i, a, k, scale):
        out, dc = v[n, j, i, a, o + 1 :], d[n, j, i, a, o + 1 :]
        if head.tree is None:
            p = out[k] + 1e-15
            focal = 0.5 * -(1 - p) * (2 * p * log(p) + p - 1) if head.focal_loss else 1
            for c in range(K):
                dc[c] = scale * ((c == k) - out[c]) * focal
            return
        while k >= 0:
            for c in siblings(k):
                dc[c] = scale * ((c == k) - out[c])
            k = parents[k]

    def probability(n, j, i, a, k):
        p = v[n, j, i, a, o]
        while k >= 0:
            p *= v[n, j, i, a, o + 1 + k]
            k = parents[k]
        return p

    for n in range(N):
        rows = list(takewhile(lambda row: row[0], truth[n].astype(float).reshape(-1, 6)[: head.max].tolist()))
        only = [int(r[4]) for r in rows if r[0] > 100000 and r[1] > 100000]
        if head.tree and only:
            best = max(np.ndindex(H, W, A), key=lambda at: probability(n, *at, only[0]))
            class_move(n, *best, only[0], head.class_scale)
            continue
        rows = [(r, int(r[4]) if head.map is None else head.map[int(r[4])]) for r in rows]
        for j, i, a in np.ndindex(H, W, A):
            likes = [score("iou", box(n, j, i, a), r[:4]) for r, _ in rows]
            obj, best = v[n, j, i, a, o], max(likes, default=0)
            aim = best if head.classfix == -1 else 0
            d[n, j, i, a, o] = head.noobject_scale * (aim - obj) * obj * (1 - obj)
            if head.classfix != -1 and best > head.thresh:
                d[n, j, i, a, o] = 0
                if head.classfix:
                    scale = head.class_scale * (obj if head.classfix == 2 else 1)
                    class_move(n, j, i, a, rows[likes.index(best)][1], scale)
            if prior:
                t = (i + 0.5) / W, (j + 0.5) / H, sizes[a][0] / W, sizes[a][1] / H
                box_move(n, j, i, a, t, 0.01)
        for r, k in rows:
            i, j = min(int(r[0] * W), W - 1), min(int(r[1] * H), H - 1)
            likes = []
            for a in range(A):
                w, h = (sizes[a][0] / W, sizes[a][1] / H) if head.bias_match else box(n, j, i, a)[2:]
                likes.append(score("iou", (0, 0, w, h), (0, 0, r[2], r[3])))
            a = likes.index(max(likes))
            box_move(n, j, i, a, r, head.coord_scale)
            obj, aim = v[n, j, i, a, o], score("iou", box(n, j, i, a), r[:4]) if head.rescore else 1
            d[n, j, i, a, o] = head.object_scale * (aim - obj) * obj * (1 - obj)
            class_move(n, j, i, a, k, head.class_scale)
    return (d * d).sum(), d.reshape(y.shape)


REGION = {
    "plain": dict(object_scale=5.0, prior=True),
    "bias match": dict(bias_match=1, rescore=1, noobject_scale=0.5, class_scale=2.0),
    "focal": dict(focal_loss=1, coord_scale=3.0, coords=5),
    "classfix": dict(classfix=1, map=True, class_scale=0.7, max=4),
    "classfix by objectness": dict(classfix=2, thresh=0.15),
    "objectness is IoU": dict(classfix=-1, prior=True),
    "tree": dict(tree=True, classfix=1),
    "tree without a box": dict(tree=True, class_only=True, prior=True),
}


def make(rng, N, C, H, W, name):
    keys = dict(num=3, anchors=(0.8, 1.1, 1.9, 1.4, 2.6, 3.1), thresh=0.3, classes=C, max=10) | REGION[name]
    prior, class_only = keys.pop("prior", False), keys.pop("class_only", False)
    if keys.get("map"):
        keys["map"] = tuple(range(C))[::-1]
    if keys.get("tree"):  # classes in groups of three, below the first class of the group before
        parents = tuple(3 * (k // 3 - 1) if k >= 3 else -1 for k in range(C))
        keys["tree"] = Tree(tuple(f"c{k}" for k in range(C)), parents, tuple(range(0, C, 3)))
    head = SECTIONS["region"](**keys)
    v = rng.normal(0, 0.5, (N, H, W, 3, head.coords + 1 + C))
    v[..., head.coords :] = rng.uniform(0.1, 0.9, v[..., head.coords :].shape)
    truth = colliding_truths(rng, N, C)
    if class_only:
        truth.reshape(N, -1, 6)[0, 1] = 2e5, 2e5, 0, 0, C - 1, 0
    settings = loss_settings(head)
    HEADS[settings] = head
    return v.reshape(N, -1, H, W), truth, np.array([8.0 if C == 3 else 1.0]), settings, prior


@check(region.region_loss, make, *((name,) for name in REGION), half="y", rtol=2e-4, atol=2e-5)
def region_loss(y, truth, scale, settings, prior):
    cost, delta = region_loss_by_loops(HEADS[settings], y, truth, prior)
    return np.array([cost]), delta * scale
