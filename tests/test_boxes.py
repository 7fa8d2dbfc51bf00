"""Boxes: coordinates, letterbox geometry, IoU and its variants against plain scalar code, NMS against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpudarknet import boxes


def some_boxes(seed, *shape):
    """Boxes of 0.02..0.6 around the unit square, float64 so that no threshold is met by rounding."""
    rng = np.random.default_rng(seed)
    return np.concatenate((rng.random((*shape, 2)), rng.uniform(0.02, 0.6, (*shape, 2))), axis=-1)


# Coordinates


def test_coordinates_of_one_box():
    center = (10, 20, 4, 6)
    assert boxes.to_corners(center).tolist() == [8, 17, 12, 23]
    assert boxes.to_ltwh(center).tolist() == [8, 17, 4, 6]
    assert boxes.from_corners((8, 17, 12, 23)).tolist() == [10, 20, 4, 6]


def test_conversions_keep_shape_and_dtype():
    center = some_boxes(0, 3, 5).astype(np.float32)
    corners, ltwh = boxes.to_corners(center), boxes.to_ltwh(center)
    assert corners.shape == ltwh.shape == (3, 5, 4) and corners.dtype == ltwh.dtype == np.float32
    np.testing.assert_allclose(boxes.from_corners(corners), center, atol=2e-7)  # a few roundings of values near 1
    np.testing.assert_array_equal(ltwh[..., :2], corners[..., :2])
    np.testing.assert_array_equal(ltwh[..., 2:], center[..., 2:])


# Letterbox


@pytest.mark.parametrize(
    "image, net, size",
    [
        ((768, 576), (416, 416), (416, 312)),
        ((576, 768), (416, 416), (312, 416)),
        ((640, 427), (416, 416), (416, 277)),  # 277.55 is truncated
        ((1920, 1080), (608, 320), (568, 320)),
        ((100, 50), (200, 100), (200, 100)),
        ((5000, 1), (416, 320), (416, 1)),  # Darknet would make an image of no rows
        ((1, 5000), (416, 320), (1, 320)),
    ],
)
def test_letterbox_size(image, net, size):
    assert boxes.letterbox_size(*image, *net) == size


def test_to_image_without_letterbox_changes_nothing_but_copies():
    before = some_boxes(1, 6)
    result = boxes.to_image(before, 416, 320, 768, 576)
    np.testing.assert_array_equal(result, before)
    assert not np.shares_memory(result, before)


def test_to_image_inverts_a_letterbox():
    # 768 x 576 becomes 416 x 312 at (0, 52) in 416 x 416: the box around its right lower quarter
    net = np.array([(312, 52 + 234, 208, 156)], np.float32) / 416
    np.testing.assert_allclose(
        boxes.to_image(net, 416, 416, 768, 576, letterbox=True), [(0.75, 0.75, 0.5, 0.5)], atol=1e-6
    )
    # 300 x 900 becomes 106 x 320 at (155, 0) in 416 x 320
    net = np.array([(155 + 53, 80, 106, 160)]) / (416, 320, 416, 320)
    np.testing.assert_allclose(
        boxes.to_image(net, 416, 320, 300, 900, letterbox=True), [(0.5, 0.25, 1, 0.5)], atol=1e-12
    )


def test_to_image_is_half_a_pixel_off_where_the_border_is_odd():
    # 640 x 427 becomes 416 x 277, 139 rows are padding: pasted at row 69, undone with 69.5, as Darknet does
    whole = np.array([208, 69 + 277 / 2, 416, 277]) / 416
    result = boxes.to_image(whole, 416, 416, 640, 427, letterbox=True)
    np.testing.assert_allclose(result, (0.5, 0.5 - 0.5 / 277, 1, 1), atol=1e-12)


# IoU and its variants

A = (0, 0, 2, 2)


@pytest.mark.parametrize(
    "name, b, value",
    [
        ("iou", A, 1),
        ("iou", (1, 0, 2, 2), 1 / 3),
        ("iou", (2, 0, 2, 2), 0),  # touching
        ("iou", (4, 0, 2, 2), 0),
        ("giou", A, 1),
        ("giou", (1, 0, 2, 2), 1 / 3),
        ("giou", (4, 0, 2, 2), -1 / 3),  # enclosing 6 x 2, a third of it empty
        ("diou", A, 1),
        ("diou", (4, 0, 2, 2), -((16 / 40) ** 0.6)),
        ("ciou", (4, 0, 2, 2), -16 / 40),
        ("ciou", A, 1),
    ],
)
def test_known_pairs(name, b, value):
    assert float(getattr(boxes, name)(A, b)) == pytest.approx(value, abs=1e-12)


def test_diou_with_beta_1_is_the_papers():
    assert float(boxes.diou(A, (4, 0, 2, 2), beta=1)) == pytest.approx(-0.4)


def plain_iou(a, b):
    w = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    h = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    inner = 0 if w < 0 or h < 0 else w * h
    union = a[2] * a[3] + b[2] * b[3] - inner
    return inner / union if inner and union else 0, union


def plain_metrics(a, b):
    overlap, union = plain_iou(a, b)
    w = max(a[0] + a[2] / 2, b[0] + b[2] / 2) - min(a[0] - a[2] / 2, b[0] - b[2] / 2)
    h = max(a[1] + a[3] / 2, b[1] + b[3] / 2) - min(a[1] - a[3] / 2, b[1] - b[3] / 2)
    d = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (w * w + h * h)
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    alpha = v / (1 - overlap + v + 1e-6)
    return {
        "iou": overlap,
        "giou": overlap - (w * h - union) / (w * h),
        "diou": overlap - d**0.6,
        "ciou": overlap - (d + alpha * v),
    }


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_metrics_broadcast_and_equal_scalar_code(name):
    a, b = some_boxes(2, 7, 1), some_boxes(3, 5)
    expected = [[plain_metrics(p[0], q)[name] for q in b.tolist()] for p in a.tolist()]
    metric = getattr(boxes, name)
    np.testing.assert_allclose(metric(a, b), expected, atol=1e-12)
    single = metric(a.astype(np.float32), b.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=1e-4)  # differences of products near 1e-3, rounded at 1e-7


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_boxes_without_area_overlap_nothing(name):
    points = np.zeros((2, 4), np.float32)
    assert getattr(boxes, name)(points, points).tolist() == [0, 0]


# Non-maximum suppression


def plain_nms(center, probs, thresh, kind, beta):
    """Darknet's loops: sort by class, then every kept box suppresses later ones that overlap it."""
    probs = probs.copy()
    for k in range(probs.shape[1]):
        order = sorted(range(len(center)), key=lambda i: -probs[i, k])
        for n, i in enumerate(order):
            if probs[i, k] == 0:
                continue
            for j in order[n + 1 :]:
                a, b = center[i], center[j]
                overlap, _ = plain_iou(a, b)
                w = max(a[0] + a[2] / 2, b[0] + b[2] / 2) - min(a[0] - a[2] / 2, b[0] - b[2] / 2)
                h = max(a[1] + a[3] / 2, b[1] + b[3] / 2) - min(a[1] - a[3] / 2, b[1] - b[3] / 2)
                d = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (w * w + h * h)
                power = {"greedynms": 0.6, "diounms": beta}.get(kind)
                if overlap - (0 if power is None else d**power) > thresh:
                    probs[j, k] = 0
    return probs


@pytest.mark.parametrize("kind", ["default", "greedynms", "diounms", "cornersnms"])
@pytest.mark.parametrize("K, thresh", [(2, 0.1), (40, 0.3), (170, 0.2)])  # 170: more than two blocks
def test_nms_equals_plain_loops(kind, K, thresh):
    rng = np.random.default_rng(K)
    center = some_boxes(K + 1, K)
    probs = rng.random((K, 3)) * (rng.random((K, 3)) < 0.8)
    kept = boxes.nms(center, probs, thresh, kind, beta=0.9)
    np.testing.assert_array_equal(kept, plain_nms(center, probs, thresh, kind, beta=0.9))
    assert 0 < np.count_nonzero(kept) < np.count_nonzero(probs) or K == 2


def test_nms_does_not_change_its_input():
    probs = np.array([[0.5], [0.9]], np.float32)
    kept = boxes.nms(np.array([A, A], np.float32), probs, 0.45)
    assert kept.tolist() == [[0], [np.float32(0.9)]] and kept.dtype == np.float32
    assert probs[0, 0] == np.float32(0.5)


def test_nms_is_by_class():
    assert boxes.nms([A, A], [[0.9, 0.0], [0.0, 0.8]], 0.45).tolist() == [[0.9, 0.0], [0.0, 0.8]]


def test_nms_threshold_is_strict():
    b = (1, 0, 2, 2)  # iou 1 / 3 with A
    third = float(boxes.iou(A, b))
    assert np.count_nonzero(boxes.nms([A, b], [[0.9], [0.8]], third)) == 2
    assert np.count_nonzero(boxes.nms([A, b], [[0.9], [0.8]], np.nextafter(third, 0))) == 1


def test_nms_suppressed_boxes_suppress_nothing():
    row = [(0.0, 0, 2, 2), (0.8, 0, 2, 2), (1.6, 0, 2, 2)]  # neighbours overlap by 3 / 7, the outer two by 1 / 9
    assert boxes.nms(row, [[0.9], [0.8], [0.7]], 0.3).tolist() == [[0.9], [0], [0.7]]


def test_nms_first_row_wins_a_tie():
    assert boxes.nms([A, A, A], [[0.5], [0.5], [0.5]], 0.3).tolist() == [[0.5], [0], [0]]


def test_greedynms_keeps_distant_boxes():
    b = (1, 0, 2, 2)  # distance term (1 / 13) ^ 0.6 = 0.215
    assert np.count_nonzero(boxes.nms([A, b], [[0.9], [0.8]], 0.3)) == 1
    assert np.count_nonzero(boxes.nms([A, b], [[0.9], [0.8]], 0.3, "greedynms")) == 2
    assert np.count_nonzero(boxes.nms([A, b], [[0.9], [0.8]], 0.3, "diounms", beta=2)) == 1  # 1 / 169


def test_nms_without_boxes():
    assert boxes.nms(np.zeros((0, 4)), np.zeros((0, 3)), 0.45).shape == (0, 3)
    assert not boxes.nms(some_boxes(4, 5), np.zeros((5, 3)), 0.45).any()


def test_nms_accepts_nan_and_inf():
    wild = np.array([A, (np.nan, 0, 2, 2), (0, 0, np.inf, 2), (np.inf, 0, 2, np.inf), A], np.float32)
    kept = boxes.nms(wild, np.full((5, 1), 0.5, np.float32), 0.45, "greedynms")
    assert (kept > 0).ravel().tolist() == [True, True, True, True, False]


def test_nms_unknown_kind():
    with pytest.raises(ValueError) as error:
        boxes.nms([A], [[0.5]], 0.45, "soft")
    assert str(error.value) == "nms: unknown kind 'soft'; choose one of default, cornersnms, greedynms, diounms"
