"""OpenCV 5 reads the ONNX file of every bundled network, and its outputs equal ours; docs/opencv5.md names the differences."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.bench import seeded
from gpudarknet.errors import CfgError
from gpudarknet.export import write_onnx
from gpudarknet.io import resources

pytest.importorskip("onnx", reason='needs onnx: pip install "gpudarknet[onnx]"')

PAGE = Path(__file__).parent.parent / "docs/opencv5.md"


def thin(filters: re.Match) -> str:
    """Return an eighth of the filters; what a head needs (255, 425, ...) is not divisible."""
    count = int(filters[1])
    return f"filters={count if count % 8 else count // 8}"


def seeded_network(text: str, name: str, **size: int) -> gd.Network:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ResNet's unequal shortcuts
        network = gd.load_network(cfg.parse(text, name), backend="numpy", **size)
    seeded.fill(network, gain=1.0)
    return network


def opencv_outputs(
    network: gd.Network, path: Path, names: list[str], x: np.ndarray, **options: bool
) -> list[np.ndarray]:
    """Export a network, and run the file in OpenCV."""
    write_onnx(network, path, batch=len(x), **options)
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(x)
    return net.forward(names)


def check(network: gd.Network, path: Path, count: int) -> None:
    x = seeded.network_input(network, count)
    heads = network.predict(x)
    outputs = opencv_outputs(network, path, [f"layer_{index}" for index in network.heads], x)
    for ours, theirs in zip(heads, outputs, strict=True):
        assert theirs.shape == ours.shape
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5 * np.abs(ours).max())
    try:
        boxes, scores = opencv_outputs(network, path, ["boxes", "scores"], x, boxes=True)
    except CfgError as e:
        assert "outputs no boxes" in str(e)
        return
    rows = network.decode(heads, -1.0)  # every box: image, objectness, box, class probabilities
    image = np.argsort(rows[:, 0], kind="stable")  # head by head in `rows`, image by image in OpenCV
    np.testing.assert_allclose(boxes.reshape(-1, 4), rows[image, 2:6], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.reshape(len(rows), -1), rows[image, 6:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", resources.names())
def test_a_bundled_network_with_fewer_filters(name, tmp_path):
    text = re.sub(r"\bfilters *= *(\d+)", thin, resources.bundled_cfg(name).read_text())
    check(seeded_network(text, name, width=96, height=64), tmp_path / "net.onnx", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", resources.names())
def test_a_bundled_network(name, tmp_path):
    check(seeded_network(resources.bundled_cfg(name).read_text(), name), tmp_path / "net.onnx", 1)


def test_the_page_lists_every_bundled_network():
    table = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == resources.names()
