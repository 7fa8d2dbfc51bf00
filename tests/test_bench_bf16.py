"""The effect of bf16: its emulation, the comparison of boxes, the command."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tiny

import gpudarknet as gd
from gpudarknet.bench import bf16


def test_rounding_is_to_nearest_and_ties_to_even():
    values = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-7, 0, np.inf, 1e-30], np.float32)
    expected = np.array([1, 1, 1 + 2**-6, 1 + 2**-7, -1 - 2**-7, 0, np.inf, bf16.rounded(values[7:])[0]], np.float32)
    np.testing.assert_array_equal(bf16.rounded(values), expected)
    assert abs(expected[7] / values[7] - 1) < 2**-8
    assert (bf16.rounded(values).view(np.uint32) & 0xFFFF == 0).all()


def objects(*rows: tuple[int, float, float]) -> list[gd.Detection]:
    """(class, confidence, x) -> boxes of one size."""
    return [gd.Detection(str(k), k, confidence, (0, 0, 0, 0), (x, 0.5, 0.2, 0.2)) for k, confidence, x in rows]


def test_boxes_are_paired_by_class_and_iou():
    before = [objects((0, 0.9, 0.3), (1, 0.5, 0.3), (0, 0.4, 0.8)), objects((0, 0.9, 0.5)), []]
    after = [objects((1, 0.4, 0.3), (0, 0.8, 0.32), (0, 0.3, 0.1)), [], []]
    result = bf16.compare(before, after)
    assert (result.before, result.after) == (4, 3)
    assert result.ious == pytest.approx([1, 0.18 / 0.22]) and result.confidences == pytest.approx([-0.1, -0.1])
    assert str(result) == (
        "4 boxes in fp32, 3 in bf16, 2 in both; of those mean IoU 0.9091, confidence changed by 0.1000 on average, 0.1000 at most"
    )
    assert "0 in both" in str(bf16.compare([[]], [[]]))


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.files(tmp_path)
    (tmp_path / "tiny.txt").write_text("0 0.875 0.9 0.3 0.3\n")
    (tmp_path / "tiny.data").write_text("classes=2\nnames=tiny.names\nvalid=valid.txt\n")
    (tmp_path / "valid.txt").write_text("tiny.png\n")
    for images in ([], ["tiny.png"]):
        monkeypatch.setattr(sys, "argv", ["bf16", "tiny.data", "tiny.cfg", "tiny.weights", *images])
        bf16.main()
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith(
            "tiny.cfg, 1 images: 3 boxes in fp32, 3 in bf16, 3 in both; of those mean IoU 1.0000,"
        )
        assert len(lines) == (2 if images else 4)
    detector = gd.Detector("tiny.cfg", "tiny.weights", "tiny.names", backend="numpy")
    plain, emulated = (one.detect("tiny.png") for one in (detector, bf16.EmulatedBf16(detector)))
    changes = [abs(a.confidence - b.confidence) for a, b in zip(plain, emulated, strict=True)]
    assert 1e-5 < max(changes) < 0.01
