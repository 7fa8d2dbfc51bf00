"""Drawing: colors, order, clipping, any image size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from gpudarknet import image


class Box(NamedTuple):
    label: str
    class_id: int
    confidence: float
    box: tuple[float, float, float, float]


def gray(H, W, C=3):
    return np.full((H, W, C), 90, np.uint8)


@pytest.mark.parametrize(
    "class_id, classes, rgb",  # class_id * 123457 % classes, in fifths of classes along the stops
    [
        (0, 80, (255, 0, 255)),
        (0, 1, (255, 0, 255)),
        (16, 80, (255, 255, 0)),  # 32 -> the second stop after magenta
        (4, 5, (0, 255, 0)),  # 3
        (2, 3, (0, 255, 85)),  # 2 -> a third from green to cyan
        (14, 20, (0, 128, 255)),  # 18 -> halfway from cyan to blue
    ],
)
def test_colors_are_darknets(class_id, classes, rgb):
    assert image.color(class_id, classes) == rgb


def test_draw_does_not_change_its_input():
    img = gray(60, 90)
    drawn = image.draw(img, [Box("dog", 16, 0.9, (20, 30, 40, 20))])
    assert drawn.shape == (60, 90, 3) and drawn.dtype == np.uint8
    assert (img == 90).all() and not np.shares_memory(drawn, img)


def test_draw_puts_the_edges_where_the_box_is():
    drawn = image.draw(gray(200, 300), [Box("", 16, 0.9, (100.9, 80.2, 50.5, 60.9))])
    inked = (drawn == (255, 255, 0)).all(-1)
    below = np.argwhere(inked[90:])  # the label is above the box
    assert below.min(0).tolist() == [0, 100] and below.max(0).tolist() == [141 - 90, 151]  # truncated, not rounded
    assert not inked[90:140, 105:145].any()


def test_draw_colors_by_the_number_of_classes():
    boxes = [Box("", 1, 0.9, (5, 50, 30, 30))]
    for names, classes in [(None, 80), (["a", "b", "c"], 3)]:
        assert image.draw(gray(90, 90), boxes, names)[80, 20].tolist() == list(image.color(1, classes))
    many = [Box("", 9417, 0.9, (5, 50, 30, 30))]
    assert image.draw(gray(90, 90), many)[80, 20].tolist() == list(image.color(9417, 9418))


def test_draw_puts_the_most_confident_on_top():
    here = (30, 50, 60, 40)
    sure, unsure = Box("a", 0, 0.9, here), Box("a", 16, 0.3, here)
    for order in ([sure, unsure], [unsure, sure]):
        assert image.draw(gray(120, 160), order)[90, 50].tolist() == [255, 0, 255]


def test_draw_puts_the_label_above_the_box_or_inside_at_the_top():
    low, high = Box("dog", 16, 0.9, (20, 100, 80, 80)), Box("dog", 16, 0.9, (20, 2, 80, 80))
    drawn = image.draw(gray(200, 300), [low])
    assert (drawn[92] != 90).any() and (drawn[110, 30:90] == 90).all()
    drawn = image.draw(gray(200, 300), [high])
    assert (drawn[8, 22:60] != 90).any() and (drawn[40, 30:90] == 90).all()


def test_draw_keeps_the_label_inside_on_the_right():
    drawn = image.draw(gray(200, 300), [Box("a long label", 16, 0.9, (290, 100, 9, 50))])
    field = (drawn[:100] != 90).any(-1)
    assert field[:, 200:299].any() and field[:, -1].any()


@pytest.mark.parametrize(
    "box", [(-50, 10, 20, 20), (10, -50, 20, 20), (300, 10, 20, 20), (10, 300, 20, 20), (np.inf, 0, 5, 5)]
)
def test_draw_skips_boxes_outside_the_image(box):
    np.testing.assert_array_equal(image.draw(gray(80, 90), [Box("dog", 1, 0.9, box)]), gray(80, 90))


@pytest.mark.parametrize("H, W", [(1, 1), (3, 40), (40, 3), (31, 17), (700, 900)])
@pytest.mark.parametrize("box", [(0, 0, 2, 2), (-1e9, -1e9, 3e9, 3e9), (0, 0, np.inf, np.nan), (5, 5, 0, 0)])
@pytest.mark.parametrize("C", [1, 3])
def test_draw_survives_any_image_and_box(H, W, box, C):
    seen = [Box("犬 of a kind", 3, 0.5, box), Box("dog", 77, 1.0, box)]
    assert image.draw(gray(H, W, C), seen).shape == (H, W, 3)


def test_labels_that_are_not_utf8():
    """OpenCV crashes on them."""
    drawn = [image.draw(gray(40, 80), [Box(label, 3, 0.5, (10, 20, 30, 10))]) for label in ("caf\udce9", "caf?")]
    assert np.array_equal(*drawn)


def test_draw_of_nothing_is_a_copy():
    img = gray(5, 7)
    assert not np.shares_memory(image.draw(img, iter(())), img)
