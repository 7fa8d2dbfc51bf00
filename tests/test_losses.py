"""The losses against Darknet's rules, written again here as plain loops over cells, anchors and truths in float64."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from itertools import takewhile
from math import atan, exp, log, pi, sqrt

import host_cuda
import numpy as np
import op_cases
import pytest
from backends import Poisoned, backend_for
from planted import plant

import gpudarknet as gd
from gpudarknet import backend, cfg
from gpudarknet.backend import Backend, cuda
from gpudarknet.layers import SECTIONS, LossContext
from gpudarknet.layers.class_tree import Tree
from gpudarknet.ops import base, region_loss, yolo_loss
from gpudarknet.ops import truths as truths_module
from gpudarknet.ops.box_loss import IOU_VARIANTS, box_delta
from gpudarknet.ops.region_loss import RegionLoss
from gpudarknet.ops.yolo_loss import AnchorLoss

BE = backend.get("numpy")
CTX = LossContext(width=96, height=64, seen=10**6)
ANCHORS = (8, 10, 14, 20, 22, 16, 30, 34, 40, 28, 44, 46)


def score(a, b, kind):
    """IoU and its kin of two boxes, as numbers."""
    return float(IOU_VARIANTS[kind](np.array(a, float), np.array(b, float)))


def delta_of(p, t, kind):
    """Darknet's box delta of one pair."""
    return [float(v) for v in box_delta(np.array([p], float), np.array([t], float), kind)[0]]


def yolo_by_loops(head, y, truth, ctx):
    """forward_yolo_layer, cell by cell: (cost, delta)."""
    N, _, H, W = y.shape
    K, A = head.classes, len(head.anchor_ids)
    v = y.astype(float).reshape(N, A, 5 + K, H, W)
    d = np.zeros_like(v)
    sizes = head.anchor_sizes().astype(float)
    gain = [1.0] * K
    if head.counters_per_class:
        counts = [max(c, 1) for c in head.counters_per_class]
        gain = [min(max(counts) / c, head.max_delta) for c in counts]
    losses = []

    def box(n, a, j, i):
        aw, ah = sizes[head.anchor_ids[a]]
        x, yy, w, h = v[n, a, :4, j, i]
        if head.new_coords:
            return (i + x) / W, (j + yy) / H, 4 * w * w * aw / ctx.width, 4 * h * h * ah / ctx.height
        return (i + x) / W, (j + yy) / H, exp(w) * aw / ctx.width, exp(h) * ah / ctx.height

    def box_move(n, a, j, i, t, multiplier):
        aw, ah = sizes[head.anchor_ids[a]]
        out = v[n, a, :4, j, i]
        if head.iou_loss == "mse":
            tw, th = t[2] * ctx.width / aw, t[3] * ctx.height / ah
            tw, th = (sqrt(tw / 4), sqrt(th / 4)) if head.new_coords else (log(tw), log(th))
            wanted = (t[0] * W - i, t[1] * H - j, tw, th)
            for c in range(4):
                d[n, a, c, j, i] += (2 - t[2] * t[3]) * (wanted[c] - out[c]) * head.iou_normalizer * multiplier
            return
        move = delta_of(box(n, a, j, i), t, head.iou_loss)
        if not head.new_coords:
            move[2] *= exp(out[2])
            move[3] *= exp(out[3])
        for c in range(4):
            value = move[c] * head.iou_normalizer * multiplier
            d[n, a, c, j, i] += min(max(value, -head.max_delta), head.max_delta)

    def class_move(n, a, j, i, k):
        out, dc, e = v[n, a, 5:, j, i], d[n, a, 5:, j, i], head.label_smooth_eps
        if dc[k] != 0:
            dc[k] = (1 - e + 0.5 * e - out[k]) * gain[k]
            return
        for c in range(K):
            if head.focal_loss:
                pt = out[k] + 1e-15
                dc[c] = ((c == k) - out[c]) * 0.5 * -(1 - pt) * (2 * pt * log(pt) + pt - 1)
            else:
                dc[c] = (c == k) * (1 - e) + 0.5 * e - out[c]
                if c == k and head.counters_per_class:
                    dc[c] *= gain[k] * head.cls_normalizer

    for n in range(N):
        rows = []
        for row in truth[n].astype(float).reshape(-1, 6):
            if row[0] == 0:
                break
            if 0 <= row[4] < K:
                rows.append(row)
        for a, j, i in np.ndindex(A, H, W):
            obj = v[n, a, 4, j, i]
            d[n, a, 4, j, i] = head.obj_normalizer * (0 - obj)
            likes = [score(box(n, a, j, i), r[:4], "iou") for r in rows]
            best = max(likes, default=0)
            if best > head.ignore_thresh and (v[n, a, 5:, j, i] > 0.25).any():
                near = head.obj_normalizer * (best - obj)
                d[n, a, 4, j, i] = max(d[n, a, 4, j, i], near) if head.objectness_smooth else 0
            if best > head.truth_thresh:
                r = rows[likes.index(best)]
                k, aim = int(r[4]), best * best if head.objectness_smooth else 1
                d[n, a, 4, j, i] = head.obj_normalizer * (aim - obj)
                class_move(n, a, j, i, k)
                if head.objectness_smooth:
                    d[n, a, 5 + k, j, i] = gain[k] * (aim - v[n, a, 5 + k, j, i])
                box_move(n, a, j, i, r[:4], gain[k])
        for r in rows:
            i, j, k = min(int(r[0] * W), W - 1), min(int(r[1] * H), H - 1), int(r[4])
            flat = [(0, 0, w / ctx.width, h / ctx.height) for w, h in sizes]
            likes = [score(f, (0, 0, r[2], r[3]), "iou") for f in flat]
            best = likes.index(max(likes))
            chosen = [best] if best in head.anchor_ids else []
            if head.iou_thresh < 1:
                kind = head.iou_thresh_kind
                near = [m for m in range(len(flat)) if score(flat[m], (0, 0, r[2], r[3]), kind) > head.iou_thresh]
                chosen += [m for m in near if m != best and m in head.anchor_ids]
            for m in chosen:
                a = head.anchor_ids.index(m)
                losses.append(1 - score(box(n, a, j, i), r[:4], "giou" if head.iou_loss == "giou" else "iou"))
                box_move(n, a, j, i, r[:4], gain[k])
                if not head.objectness_smooth or d[n, a, 4, j, i] == 0:
                    d[n, a, 4, j, i] = gain[k] * head.obj_normalizer * (1 - v[n, a, 4, j, i])
                class_move(n, a, j, i, k)
        if head.iou_thresh < 1:
            for a, j, i in np.ndindex(A, H, W):
                d[n, a, :4, j, i] /= max((d[n, a, 5:, j, i] > 0).sum(), 1)
    if head.iou_loss == "mse":
        return (d * d).sum(), d.reshape(y.shape)
    mean = sum(losses) / len(losses) if losses else 0.0
    rest = d[:, :, 4:]
    return head.iou_normalizer * mean + head.obj_normalizer * (rest * rest).sum(), d.reshape(y.shape)


def truths(N, count, classes, seed=0):
    """Draw (N, count*6) truths; two share a cell, one has a class out of range, the last row is empty."""
    rng = np.random.default_rng(seed)
    t = np.zeros((N, count + 1, 6), np.float32)
    t[:, :count, :2] = rng.uniform(0.05, 0.95, (N, count, 2))
    t[:, :count, 2:4] = rng.uniform(0.08, 0.6, (N, count, 2))
    t[:, :count, 4] = rng.integers(0, classes, (N, count))
    t[:, 1] = t[:, 0]
    t[:, 1, 4] = (t[:, 0, 4] + 1) % classes
    t[:, 2, 4] = classes
    return t.reshape(N, -1)


VARIANTS = {
    "mse": {},
    "mse all anchors": dict(mask=None, iou_thresh=0.3),
    "iou": dict(iou_loss="iou", iou_thresh=0.2, scale_x_y=1.05),
    "giou": dict(iou_loss="giou", iou_normalizer=0.5, max_delta=0.3),
    "diou": dict(iou_loss="diou", iou_thresh=0.2, iou_thresh_kind="giou"),
    "ciou": dict(iou_loss="ciou", iou_thresh=0.213, iou_normalizer=0.07, max_delta=5.0),
    "new_coords": dict(iou_loss="ciou", new_coords=1, scale_x_y=2.0, iou_thresh=0.2, objectness_smooth=1),
    "new_coords mse": dict(new_coords=1, scale_x_y=2.0, obj_normalizer=0.4),
    "smooth objectness": dict(objectness_smooth=1, ignore_thresh=0.2, truth_thresh=0.5, iou_loss="iou"),
    "truth_thresh": dict(ignore_thresh=0.2, truth_thresh=0.4),
    "focal": dict(focal_loss=1),
    "label smoothing": dict(label_smooth_eps=0.1, iou_thresh=0.3),
    "counters": dict(counters_per_class=(10, 40, 0, 20), cls_normalizer=0.5, max_delta=3.0, iou_loss="iou"),
    "counters of nothing": dict(counters_per_class=(0, 0, 0, 0), cls_normalizer=0.5, iou_loss="iou"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_yolo(name):
    """Float32 against float64 loops; random outputs are far from every threshold."""
    keys = dict(classes=4, num=6, mask=(0, 1, 3), anchors=ANCHORS, max=10) | VARIANTS[name]
    head = SECTIONS["yolo"](**keys)
    N, H, W = 2, 4, 6
    rng = np.random.default_rng(1)
    v = rng.normal(0, 0.5, (N, len(head.anchor_ids), 9, H, W))
    v[:, :, :2] = rng.uniform(0, 1, v[:, :, :2].shape)
    v[:, :, 4:] = rng.uniform(0.02, 0.6, v[:, :, 4:].shape)
    y = v.reshape(N, -1, H, W).astype(np.float32)
    truth = truths(N, 7, 4)
    cost, delta = head.loss(BE, y, y, truth, CTX)
    wanted_cost, wanted = yolo_by_loops(head, y, truth, CTX)
    np.testing.assert_allclose(delta, wanted, rtol=2e-4, atol=2e-5)
    assert cost == pytest.approx(wanted_cost, rel=1e-4)
    assert delta.dtype == np.float32 and (wanted != 0).sum() > N * len(head.anchor_ids) * H * W


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", VARIANTS)
def test_truths_that_share_cells_act_one_after_the_other(name, seed):
    """Ten truths in six cells: many have one anchor, with the same class, with another, and with the same box."""
    head = SECTIONS["yolo"](**(dict(classes=4, num=6, mask=(0, 1, 3), anchors=ANCHORS, max=10) | VARIANTS[name]))
    N, H, W, A = 3, 2, 3, len(head.anchor_ids)
    rng = np.random.default_rng(seed)
    v = rng.uniform(0.02, 0.9, (N, A, 9, H, W))
    v[:, :, 2:4] = rng.uniform(0.2, 0.6, (N, A, 2, H, W)) if head.new_coords else rng.normal(0, 0.5, (N, A, 2, H, W))
    y, truth = v.reshape(N, -1, H, W).astype(np.float32), op_cases.yolo_loss.colliding_truths(rng, N, 4)
    cost, delta = head.loss(BE, y, y, truth, CTX)
    wanted_cost, wanted = yolo_by_loops(head, y, truth, CTX)
    np.testing.assert_allclose(delta, wanted, rtol=2e-4, atol=2e-5)
    assert cost == pytest.approx(wanted_cost, rel=1e-4)


def test_a_head_without_truth_lowers_its_objectness():
    head = SECTIONS["yolo"](classes=2, num=2, anchors=(8, 10, 30, 20), iou_loss="giou")
    y = np.random.default_rng(0).random((1, 14, 2, 3), np.float32)
    cost, delta = head.loss(BE, y, y, np.zeros((1, 12), np.float32), CTX)
    objectness = y.reshape(1, 2, 7, 2, 3)[:, :, 4]
    np.testing.assert_allclose(delta.reshape(1, 2, 7, 2, 3)[:, :, 4], -objectness)
    assert cost == pytest.approx(float((objectness**2).sum()))


def test_a_truth_on_the_right_edge_stays_in_its_row():
    head = SECTIONS["yolo"](classes=1, num=1, anchors=(30, 30))
    y = np.full((1, 6, 2, 3), 0.5, np.float32)
    _, delta = head.loss(BE, y, y, np.array([[1.0, 0.2, 0.3, 0.3, 0, 0]], np.float32), CTX)
    assert delta[0, 4].argmax() == 2


def test_anchors_beyond_num_do_not_compete_unless_the_mask_names_them():
    """The truth fits the third of three listed anchors; with num=2 it goes to the second, the better one of two."""
    y, truth = np.full((1, 12, 2, 3), 0.5, np.float32), np.array([[0.4, 0.2, 0.5, 0.5, 0, 0]], np.float32)
    delta = SECTIONS["yolo"](classes=1, num=2, anchors=(8, 8, 20, 20, 48, 32)).loss(BE, y, y, truth, CTX)[1]
    assert (delta.reshape(2, 6, 2, 3)[1, :4] != 0).any() and not (delta.reshape(2, 6, 2, 3)[0, :4] != 0).any()
    masked = SECTIONS["yolo"](classes=1, num=2, mask=(0, 2), anchors=(8, 8, 20, 20, 48, 32))
    assert masked.shape((12, 2, 3)) == (12, 2, 3)
    assert (masked.loss(BE, y, y, truth, CTX)[1].reshape(2, 6, 2, 3)[1, :4] != 0).any()


def test_delta_normalizer_and_class_map():
    keys = dict(classes=3, num=1, anchors=(30, 30))
    y = np.random.default_rng(0).random((1, 8, 2, 3), np.float32)
    truth = np.array([[0.4, 0.2, 0.3, 0.3, 0, 0]], np.float32)
    _, plain = SECTIONS["yolo"](**keys).loss(BE, y, y, truth, CTX)
    _, half = SECTIONS["yolo"](delta_normalizer=0.5, **keys).loss(BE, y, y, truth, CTX)
    np.testing.assert_allclose(half, plain / 2)
    _, mapped = SECTIONS["yolo"](map=(2, 0, 1), **keys).loss(BE, y, y, truth, CTX)
    assert [delta[0, 5:, 0, 1].argmax() for delta in (plain, mapped)] == [0, 2]


# Box deltas: what they are times the derivative


@pytest.mark.parametrize("kind", ["iou", "giou"])
@pytest.mark.parametrize("pred", [(0.5, 0.5, 0.3, 0.2), (0.42, 0.55, 0.2, 0.4)])
def test_box_delta_is_the_derivative_but_twice_it_for_sizes(kind, pred):
    """Of boxes that overlap; Darknet does not clamp the sides of an empty intersection."""
    truth, h = (0.45, 0.52, 0.25, 0.3), 1e-6
    slopes = []
    for c in range(4):
        up, down = (tuple(v + s * h * (i == c) for i, v in enumerate(pred)) for s in (1, -1))
        slopes.append((score(up, truth, kind) - score(down, truth, kind)) / (2 * h))
    np.testing.assert_allclose(delta_of(pred, truth, kind), np.multiply(slopes, (1, 1, 2, 2)), atol=1e-6)


def test_ciou_delta_by_hand():
    """Section by section of Zheng et al.: overlapping boxes, the truth inside the prediction's span."""
    p, t = (0.5, 0.5, 0.4, 0.2), (0.55, 0.45, 0.2, 0.3)
    move = np.subtract(delta_of(p, t, "ciou"), delta_of(p, t, "diou"))
    gap = atan(t[2] / t[3]) - atan(p[2] / p[3])
    v = 4 / pi**2 * gap**2
    alpha = v / (1 - score(p, t, "iou") + v + 1e-6)
    np.testing.assert_allclose(
        move, (0, 0, alpha * 8 / pi**2 * gap * p[3], -alpha * 8 / pi**2 * gap * p[2]), atol=1e-12
    )


def test_box_deltas_are_finite_for_degenerate_boxes():
    pred = np.array([[0.5, 0.5, 1, 1], [0.5, 0.5, 0.2, 0.2], [0, 0, 1e-20, 1e-20]], np.float32)
    truth = np.array([[0.5, 0.5, 1, 1], [0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 1e-3, 1e-3]], np.float32)
    for kind in ("iou", "giou", "diou", "ciou"):
        with np.errstate(all="ignore"):
            assert np.isfinite(box_delta(pred, truth, kind)).all()


EXACT = ((0.5, 0.5, 0.3, 0.2), (0.42, 0.55, 0.2, 0.4), (0.2, 0.2, 0.1, 0.12), (0.3, 0.52, 0.1, 0.5))


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("pred", EXACT)
def test_exact_is_the_derivative(kind, pred):
    """Of overlapping and of separate boxes; DIoU as the paper has it, to the power 1; CIoU's alpha is held constant."""
    truth, h = (0.45, 0.52, 0.25, 0.3), 1e-6

    def like(p):
        if kind in ("iou", "giou"):
            return score(p, truth, kind)
        sides = [max(p[c] + p[c + 2] / 2, truth[c] + truth[c + 2] / 2) - min(p[c] - p[c + 2] / 2, truth[c] - truth[c + 2] / 2)
                 for c in (0, 1)]  # fmt: skip
        away = ((p[0] - truth[0]) ** 2 + (p[1] - truth[1]) ** 2) / (sides[0] ** 2 + sides[1] ** 2)
        v = 4 / pi**2 * (atan(truth[2] / truth[3]) - atan(p[2] / p[3])) ** 2
        return score(p, truth, "iou") - away - (alpha * v if kind == "ciou" else 0)

    v = 4 / pi**2 * (atan(truth[2] / truth[3]) - atan(pred[2] / pred[3])) ** 2
    alpha = v / (1 - score(pred, truth, "iou") + v + 1e-6)
    slopes = []
    for c in range(4):
        up, down = (tuple(x + s * h * (i == c) for i, x in enumerate(pred)) for s in (1, -1))
        slopes.append((like(up) - like(down)) / (2 * h))
    got = box_delta(np.array([pred]), np.array([truth]), kind, exact=True)[0]
    np.testing.assert_allclose(got, slopes, atol=1e-6)


@pytest.mark.parametrize("keys", [dict(scale_x_y=1.2), dict(scale_x_y=2.0, new_coords=1)])
def test_exact_is_the_gradient_of_the_input(keys):
    """Central differences through the layer's forward, in float64, of iou_normalizer * IoU of one truth."""
    head = SECTIONS["yolo"](classes=1, num=1, anchors=(30, 24), iou_loss="iou", iou_normalizer=0.5, **keys)
    rng, t = np.random.default_rng(4), (0.5, 0.7, 0.3, 0.4)
    raw = rng.uniform(0.3, 0.6, (1, 6, 2, 3))
    forward = lambda x: head.forward(BE, {}, x, ctx=None)[0]  # noqa: E731

    def like(x):
        e = forward(x)[0, :4, 1, 1]
        w, h = (4 * e[2] ** 2, 4 * e[3] ** 2) if keys.get("new_coords") else (exp(e[2]), exp(e[3]))
        return 0.5 * score(((1 + e[0]) / 3, (1 + e[1]) / 2, w * 30 / 96, h * 24 / 64), t, "iou")

    slopes = []
    for c in range(4):
        up, down = raw.copy(), raw.copy()
        up[0, c, 1, 1] += 1e-5
        down[0, c, 1, 1] -= 1e-5
        slopes.append((like(up) - like(down)) / 2e-5)
    y = forward(raw).astype(np.float32)
    truth = np.array([[*t, 0, 0]], np.float32)
    _, delta = head.loss(BE, y, y, truth, LossContext(96, 64, exact=True))
    np.testing.assert_allclose(delta[0, :4, 1, 1], slopes, rtol=1e-4)


# Gaussian


def test_gaussian_mse():
    """One truth, one anchor: means and uncertainties by the formulas, everything else untouched."""
    head = SECTIONS["Gaussian_yolo"](
        classes=2, num=1, anchors=(30, 20), uc_normalizer=0.5, iou_normalizer=0.7, max_delta=5
    )
    rng = np.random.default_rng(3)
    y = rng.uniform(0.1, 0.9, (1, 11, 2, 3)).astype(np.float32)
    t = (0.5, 0.7, 0.3, 0.4)
    cost, delta = head.loss(BE, y, y, np.array([[*t, 1, 0]], np.float32), CTX)
    j, i, got, out = 1, 1, delta[0, :, 1, 1], y[0, :, 1, 1].astype(float)
    wanted = (t[0] * 3 - i, t[1] * 2 - j, log(t[2] * 96 / 30), log(t[3] * 64 / 20))
    for c in range(4):
        e, s = wanted[c] - out[2 * c], out[2 * c + 1]
        density = exp(-((e / s) ** 2) / 2) / (sqrt(2 * pi) * (s + 0.3))
        f = 0.5 * (2 - t[2] * t[3]) * density / (density + 1e-9)
        limits = (min(max(v, -5), 5) for v in (0.7 * f * e / s / s, 0.5 * f * ((e / s) ** 2 / s - 1 / (s + 0.3))))
        assert got[2 * c : 2 * c + 2] == pytest.approx(tuple(limits), rel=1e-3, abs=1e-5)
    assert got[8] == pytest.approx(1 - out[8])
    np.testing.assert_allclose(got[9:], (0 - out[9], 1 - out[10]), rtol=1e-5)
    assert cost == pytest.approx(float((delta.astype(float) ** 2).sum()))


def test_gaussian_iou_moves_the_means_only_by_the_iou():
    head = SECTIONS["Gaussian_yolo"](classes=2, num=1, anchors=(30, 20), iou_loss="ciou")
    y = np.random.default_rng(3).uniform(0.1, 0.9, (1, 11, 2, 3)).astype(np.float32)
    t = (0.5, 0.7, 0.3, 0.4)
    _, delta = head.loss(BE, y, y, np.array([[*t, 1, 0]], np.float32), CTX)
    e = y[0, :, 1, 1].astype(float)
    p = ((1 + e[0]) / 3, (1 + e[2]) / 2, exp(e[4]) * 30 / 96, exp(e[6]) * 20 / 64)
    move = np.array(delta_of(p, t, "ciou")) * (1, 1, exp(e[4]), exp(e[6])) * 0.75
    np.testing.assert_allclose(delta[0, 0:8:2, 1, 1], move, rtol=1e-3, atol=1e-5)


# Region


def region_by_loops(head, y, truth, ctx):
    """forward_region_layer without a tree."""
    N, _, H, W = y.shape
    A, K = head.num, head.classes
    v = y.astype(float).reshape(N, H, W, A, 5 + K)
    d, sizes = np.zeros_like(v), head.anchor_sizes().astype(float)

    def sig(x):
        return 1 / (1 + exp(-x))

    def box(n, j, i, a):
        e = v[n, j, i, a]
        return (i + sig(e[0])) / W, (j + sig(e[1])) / H, exp(e[2]) * sizes[a][0] / W, exp(e[3]) * sizes[a][1] / H

    def box_move(n, j, i, a, t, scale):
        e, out = v[n, j, i, a], d[n, j, i, a]
        for c, wanted in enumerate((t[0] * W - i, t[1] * H - j)):
            s = sig(e[c])
            out[c] = scale * (wanted - s) * s * (1 - s)
        out[2] = scale * (log(t[2] * W / sizes[a][0]) - e[2])
        out[3] = scale * (log(t[3] * H / sizes[a][1]) - e[3])

    for n in range(N):
        rows = [r for r in takewhile(lambda r: r[0], truth[n].astype(float).reshape(-1, 6)) if 0 <= r[4] < K]
        for j, i, a in np.ndindex(H, W, A):
            likes = [score(box(n, j, i, a), r[:4], "iou") for r in rows]
            o = v[n, j, i, a, 4]
            aim = max(likes) if head.classfix == -1 else 0
            d[n, j, i, a, 4] = head.noobject_scale * (aim - o) * o * (1 - o)
            if head.classfix != -1 and max(likes) > head.thresh:
                d[n, j, i, a, 4] = 0
            if ctx.seen < 12800:
                box_move(n, j, i, a, ((i + 0.5) / W, (j + 0.5) / H, sizes[a][0] / W, sizes[a][1] / H), 0.01)
        for r in rows:
            i, j, k = int(r[0] * W), int(r[1] * H), int(r[4])
            likes = []
            for a in range(A):
                b = box(n, j, i, a)
                w, h = (sizes[a][0] / W, sizes[a][1] / H) if head.bias_match else b[2:]
                likes.append(score((0, 0, w, h), (0, 0, r[2], r[3]), "iou"))
            a = likes.index(max(likes))
            box_move(n, j, i, a, r, head.coord_scale)
            o, aim = v[n, j, i, a, 4], score(box(n, j, i, a), r[:4], "iou") if head.rescore else 1
            d[n, j, i, a, 4] = head.object_scale * (aim - o) * o * (1 - o)
            for c in range(K):
                d[n, j, i, a, 5 + c] = head.class_scale * ((c == k) - v[n, j, i, a, 5 + c])
    return (d * d).sum(), d.reshape(y.shape)


SECOND = (
    dict(bias_match=1, rescore=1, object_scale=5.0),
    dict(noobject_scale=0.5, class_scale=2.0),
    dict(classfix=-1, coord_scale=3.0),
)


@pytest.mark.parametrize("keys", SECOND)
@pytest.mark.parametrize("seen", [64, 20000])
def test_region(keys, seen):
    head = SECTIONS["region"](classes=4, num=3, anchors=(0.8, 1.1, 1.9, 1.4, 2.6, 3.1), thresh=0.3, **keys)
    rng = np.random.default_rng(2)
    v = rng.normal(0, 0.5, (2, 3, 5, 3, 9))
    v[..., 4:] = rng.uniform(0.1, 0.9, v[..., 4:].shape)
    y, truth, ctx = v.reshape(2, 27, 3, 5).astype(np.float32), truths(2, 6, 4, seed=5), LossContext(96, 64, seen)
    truth.reshape(2, -1, 6)[:, :, 4] %= 4
    cost, delta = head.loss(BE, y, y, truth, ctx)
    wanted_cost, wanted = region_by_loops(head, y, truth, ctx)
    np.testing.assert_allclose(delta, wanted, rtol=2e-4, atol=1e-5)
    assert cost == pytest.approx(wanted_cost, rel=1e-4)


@pytest.mark.parametrize("keys", SECOND)
def test_region_truths_that_share_cells_act_one_after_the_other(keys):
    head = SECTIONS["region"](classes=4, num=3, anchors=(0.8, 1.1, 1.9, 1.4, 2.6, 3.1), thresh=0.3, **keys)
    rng = np.random.default_rng(3)
    v = rng.normal(0, 0.5, (3, 2, 3, 3, 9))
    v[..., 4:] = rng.uniform(0.1, 0.9, v[..., 4:].shape)
    y, truth = v.reshape(3, 27, 2, 3).astype(np.float32), op_cases.yolo_loss.colliding_truths(rng, 3, 4)
    cost, delta = head.loss(BE, y, y, truth, CTX)
    wanted_cost, wanted = region_by_loops(head, y, truth, CTX)
    np.testing.assert_allclose(delta, wanted, rtol=2e-4, atol=1e-5)
    assert cost == pytest.approx(wanted_cost, rel=1e-4)


def test_region_with_a_tree_walks_to_the_root():
    """Classes 2 and 3 are children of 1: a truth of class 3 asks for 3 against 2 and for 1 against 0."""
    tree = Tree(names=("a", "b", "c", "d"), parents=(-1, -1, 1, 1), starts=(0, 2))
    head = SECTIONS["region"](classes=4, num=1, anchors=(1.0, 1.0), tree=tree, bias_match=1)
    y = np.random.default_rng(0).uniform(0.1, 0.9, (1, 9, 2, 3)).astype(np.float32)
    _, delta = head.loss(BE, y, y, np.array([[0.4, 0.7, 0.3, 0.3, 3, 0]], np.float32), CTX)
    v, d = y.reshape(2, 3, 9)[1, 1], delta.reshape(2, 3, 9)[1, 1]
    np.testing.assert_allclose(d[5:], (0 - v[5], 1 - v[6], 0 - v[7], 1 - v[8]), rtol=1e-6)
    _, delta = head.loss(BE, y, y, np.array([[2e5, 2e5, 0, 0, 0, 0]], np.float32), CTX)  # a class without a box
    d, cells = delta.reshape(6, 9), y.reshape(6, 9)
    best = int((cells[:, 4] * cells[:, 5]).argmax())
    wanted = np.zeros((6, 9))
    wanted[best, 5:7] = 1 - cells[best, 5], 0 - cells[best, 6]
    np.testing.assert_allclose(d, wanted, rtol=1e-6)


# Detection, softmax, cost


@pytest.mark.parametrize(
    "keys", [dict(sqrt=1, rescore=1, softmax=1), dict(object_scale=2.0, noobject_scale=0.5, coord_scale=5.0)]
)
def test_detection(keys):
    head = SECTIONS["detection"](side=2, num=2, classes=3, coords=4, **keys)
    rng = np.random.default_rng(6)
    y = rng.uniform(0.1, 0.9, (1, 4 * (2 * 5 + 3), 1, 1)).astype(np.float32)
    truth = np.zeros((4, 8), np.float32)
    truth[2] = 1, 0, 1, 0, 0.4, 0.6, 0.5, 0.3
    cost, delta = head.loss(BE, y, y, truth.reshape(1, -1), CTX)
    v, d = y.reshape(-1).astype(float), delta.reshape(-1)
    boxes = v[20:].reshape(4, 2, 4)[2]
    size = 2 if head.sqrt else 1
    likes = [score((b[0] / 2, b[1] / 2, b[2] ** size, b[3] ** size), (0.2, 0.3, 0.5, 0.3), "iou") for b in boxes]
    best = likes.index(max(likes))
    wanted = np.zeros(52)
    wanted[6:9] = truth[2, 1:4] - v[6:9]
    wanted[12:20] = head.noobject_scale * -v[12:20]
    slot = 12 + 4 + best
    wanted[slot] = head.object_scale * ((max(likes) if head.rescore else 1) - v[slot])
    aim = (0.4, 0.6, *(sqrt(s) if head.sqrt else s for s in (0.5, 0.3)))
    wanted[20 + 16 + 4 * best : 24 + 16 + 4 * best] = head.coord_scale * (aim - boxes[best])
    np.testing.assert_allclose(d, wanted, rtol=1e-4, atol=1e-6)
    assert cost == pytest.approx((wanted**2).sum(), rel=1e-5)


def test_softmax():
    head, y = SECTIONS["softmax"](), np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], np.float32).reshape(2, 3, 1, 1)
    truth = np.array([[0, 1, 0], [0.9, -1234, 0.1]], np.float32)
    cost, delta = head.loss(BE, y, y, truth, CTX)
    assert cost == pytest.approx(-(math.log(0.5) + math.log(0.6) + math.log(0.1)))
    np.testing.assert_allclose(delta.reshape(2, 3), [[-0.2, 0.5, -0.3], [0.3, 0, 0]], atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "cost", "delta"),
    [
        ("sse", 0.25 + 4 + 0.01 + 1236**2, [0.5, 2.0, -0.1, -1236]),
        ("smooth", 0.25 + 3 + 0.01 + 2471, [0.5, 1.0, -0.1, -1.0]),
        ("masked", 0.25 + 4 + 0.01, [0.5, 2.0, -0.1, 0.0]),
    ],
)
def test_cost(kind, cost, delta):
    layer = SECTIONS["cost"](type=kind, scale=3.0)
    x = np.array([0.5, -1, 0.1, 2], np.float32).reshape(1, 4, 1, 1)
    got_cost, got = layer.loss(BE, x, np.zeros_like(x), np.array([[1, 1, 0, -1234]], np.float32), CTX)
    assert got_cost == pytest.approx(cost, rel=1e-6)
    np.testing.assert_allclose(got.reshape(-1), delta, rtol=1e-6)


# On every backend: layouts, and mistakes that must be noticed


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "name", ["yolo_loss.anchor_loss", "losses.softmax_loss", "losses.cost_loss", "losses.detection_loss"]
)
def test_maps_may_be_nhwc_in_memory(be, name, dtype):
    """The same deltas as of NCHW memory, in the layout of the output."""
    for case in (case for case in op_cases.CASES if case.op.name == name and case.shape == (2, 3, 5, 7)):
        y, *others = (be.asarray(a) if isinstance(a, np.ndarray) else a for a in case.args)
        y = y.astype(dtype)
        cost, delta = case.op(be, y, *others)
        nhwc = be.asarray(y.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        nhwc_cost, nhwc_delta = case.op(be, nhwc, *others)
        assert (nhwc_delta.strides, nhwc_delta.dtype) == (nhwc.strides, dtype) and nhwc.strides != y.strides
        np.testing.assert_array_equal(be.to_numpy(nhwc_delta), be.to_numpy(delta))
        np.testing.assert_allclose(be.to_numpy(nhwc_cost), be.to_numpy(cost), rtol=1e-5)


def test_the_memory_of_region_is_in_one_order(be):
    """Seen as NCHW or as NHWC."""
    for case in (
        case for case in op_cases.CASES if case.op.name == "region_loss.region_loss" and case.shape == (2, 3, 5, 7)
    ):
        y, *others = (be.asarray(a) if isinstance(a, np.ndarray) else a for a in case.args)
        N, C, H, W = y.shape
        cost, delta = case.op(be, y, *others)
        nhwc_cost, nhwc_delta = case.op(be, y.reshape(N, H, W, C).transpose(0, 3, 1, 2), *others)
        assert be.to_numpy(cost) == be.to_numpy(nhwc_cost)
        np.testing.assert_array_equal(be.to_numpy(nhwc_delta.transpose(0, 2, 3, 1)).ravel(), be.to_numpy(delta).ravel())


def test_losses_reject_labels_on_every_backend(be):
    """The cost is that of the deltas that are left; they are scaled afterwards."""
    case = next(c for c in op_cases.CASES if c.op.name == "yolo_loss.anchor_loss" and c.shape == (2, 3, 5, 7))
    y, truth, _, settings, _ = (be.asarray(a) if isinstance(a, np.ndarray) else a for a in case.args)
    one, two = (be.asarray(np.float32([scale])) for scale in (1, 2))
    _, delta = case.op(be, y, truth, one, settings, None)
    seen = []

    def reject(d, anchor_size):
        seen.append(anchor_size)
        d[np.abs(d) > 0.5] = 0

    cost, kept = case.op(be, y, truth, two, settings, reject)
    wanted = np.where(np.abs(be.to_numpy(delta)) > 0.5, 0, be.to_numpy(delta))
    np.testing.assert_array_equal(be.to_numpy(kept), 2 * wanted)
    assert seen == [8] and be.to_numpy(cost) == pytest.approx((wanted.astype(np.float64) ** 2).sum(), rel=1e-6)


@pytest.mark.parametrize(("file", "settings"), [("yolo_loss", AnchorLoss), ("region_loss", RegionLoss)])
def test_kernels_read_the_settings_in_their_order(file, settings):
    struct = re.search(r"struct Settings \{\s*float ([^;]*);", cuda.source(file))[1]
    numbers = [f.name for f in fields(settings) if f.type in ("int", "float", "bool", "str")]
    assert struct.replace("\n", " ").replace(" ", "").split(",") == numbers


FAULTS = {  # a piece of a kernel, what replaces it, and the cases that notice it
    "an empty truth does not end a list": ("t[0] == 0", "false", "anchor_loss"),
    "the order of truths": ("t < counts[image]; t++", "t < max(counts[image] - 1, 0); t++", "anchor_loss"),
    "a class of a set slot": ("if (c == k) delta", "delta", "anchor_loss"),
    "no barrier between truths": (
        "if (lanes > 1) __syncwarp();  // all have read before one writes",
        "",
        "anchor_loss",
    ),
    "similar anchors": ("if (m != best && !similar) continue;", "if (m != best) continue;", "anchor_loss"),
    "smooth objectness": ("slot.delta[o] == 0", "true", "anchor_loss"),
    "corners": ("d[c] -= s.corner", "d[c] += s.corner", "anchor_loss"),
    "uncertainty": ("(z * z / sigma - 1 / soft)", "(z * z / sigma - 1 / sigma)", "anchor_loss"),
    "the gradient of CIoU": ("if (exact) slope = ratio", "if (false) slope = ratio", "anchor_loss"),
    "boxes in the cost": ("if (i / inner % E >= first)", "if (true)", "anchor_loss"),
    "a part of the cost": ("end = min(start + PART, n)", "end = min(start + PART, n - 1)", "softmax_loss"),
    "rescore": ("s.rescore ? iou", "false ? iou", "region_loss"),
    "prior": ("0.01f * (0.5f - position)", "0.01f * (0.4f - position)", "region_loss"),
    "one level of a tree": ("k = tree ? tree[k] : -1;", "k = -1;", "region_loss"),
    "truths beside one without a box": ("if (unboxed && unboxed[image]) return;", "", "region_loss"),
    "forced": ("if (forced) best", "if (false) best", "detection_loss"),
    "nothing overlaps": ("if (!(overlap > 0)) best = nearest;", "", "detection_loss"),
}


def noticed(be, op):
    """Return whether a backend differs from the loops in a case of an op."""

    def wrong_in(case):
        try:
            op_cases.compare(op_cases.run(be, case, case.args), case.want(case.args), case, case.rtol, case.atol)
        except (AssertionError, host_cuda.KernelError):
            return True
        return False

    return any(wrong_in(c) for c in op_cases.CASES if c.op.name.endswith(op) and c.shape == (3, 8, 13, 6))


@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_in_a_kernel_is_noticed(name):
    right, wrong, op = FAULTS[name]
    be = Poisoned("host-cuda", np, host_cuda.launcher(lambda text: text.replace(right, wrong)))
    assert backend_for("host-cuda") and any(
        right in cuda.source(file) for file in ("yolo_loss", "region_loss", "losses")
    )
    assert noticed(be, op)


REFERENCE_FAULTS = {
    "all truths at once": (truths_module, "np.flatnonzero(turn == number)", "np.arange(len(turn))", "anchor_loss"),
    "the order of images": (truths_module, "result[order] = best", "result[...] = best", "anchor_loss"),
    "a further class": (yolo_loss, "np.where(set_before[:, None], old, delta)", "delta", "anchor_loss"),
    "assigned objectness": (yolo_loss, "(delta != 0) if group.assigned", "False if group.assigned", "anchor_loss"),
    "the root": (region_loss, "k = s.tree.parent[k]", "k = np.full_like(k, -1)", "region_loss"),
}


@pytest.mark.parametrize("name", REFERENCE_FAULTS)
def test_a_mistake_in_a_reference_is_noticed(name, monkeypatch):
    monkeypatch.setattr(base, "OPS", {})  # planting defines the ops of the module again
    plant(monkeypatch, *REFERENCE_FAULTS[name][:3])
    assert noticed(BE, REFERENCE_FAULTS[name][3])


NET = "[net]\nwidth=12\nheight=8\nchannels=3\nbatch=2\nsubdivisions=2\nmax_batches=9\n"
BODY = NET + "[convolutional]\nfilters={}\nactivation=linear\n"
STEPS = {
    "yolo": (BODY.format(12) + "[yolo]\nnum=2\nclasses=1\nanchors=4,5,7,6\niou_thresh=0.2\n", 1200),
    "region": (BODY.format(12) + "[region]\nnum=2\nclasses=1\nanchors=4,5,7,6\nsoftmax=1\n", 1200),
    "classifier": (BODY.format(3) + "[avgpool]\n[softmax]\n[cost]\n", 3),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_once_for_the_device(emulator, name):
    """For the sums of costs and of gradients, two numbers in float64."""
    text, labels = STEPS[name]
    be = backend.get("cupy")
    trainer = gd.Trainer(gd.load_network(cfg.parse(text), backend=be))
    x, truth = np.full((2, 3, 8, 12), 0.5, np.float32), np.full((2, labels), 0.4, np.float32)
    trainer.step(x, truth)
    with emulator.counting() as copy:
        be.to_numpy(be.zeros((1,)))
    with emulator.counting() as step:
        trainer.step(x, truth)
    assert (step["waits"], step["bytes device to host"]) == (copy["waits"], 16)


class Keeping(Backend):
    """A backend whose arrays live on, as those of a graph must."""

    def empty(self, shape, dtype=np.float32):
        KEPT.append(super().empty(shape, dtype))
        return KEPT[-1]

    def zeros(self, shape, dtype=np.float32):
        KEPT.append(super().zeros(shape, dtype))
        return KEPT[-1]


KEPT = []


@pytest.mark.parametrize("op", ["anchor_loss", "region_loss", "softmax_loss", "cost_loss", "detection_loss"])
def test_a_loss_can_be_captured_as_a_graph(emulator, op):
    """Once it has run: it neither waits nor copies, and asks the backend for all its memory."""
    import cupy

    cuda_backend = backend.get("cupy")
    be = Keeping("keeping", cupy, cuda_backend.launch, cuda_backend.cublas)
    for case in (c for c in op_cases.CASES if c.op.name.endswith(op) and c.shape == (2, 3, 5, 7)):
        y, *others = (be.asarray(a) if isinstance(a, np.ndarray) else a for a in case.args)
        cost, delta = case.op(be, y, *others)
        be.synchronize()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            captured = case.op(be, y, *others)
            graph = stream.end_capture()
            graph.launch(stream)
            stream.synchronize()
        np.testing.assert_array_equal(captured[0].get(), cost.get())
        np.testing.assert_array_equal(captured[1].get(), delta.get())
        KEPT.clear()
