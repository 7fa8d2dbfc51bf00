"""The networks that ship in cfg/ are the published ones: as many layers and weights, the same work, the same heads."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gpudarknet import cfg, network

CFG_FOLDER = Path(__file__).parents[1] / "cfg"
HEADS = {"region", "yolo", "softmax"}


@dataclass(frozen=True)
class Published:
    """What the published network of this name has; `heads` maps a layer's index to its (channels, cells a side)."""

    name: str
    size: int
    layers: int
    params: int  # float32 values in a complete .weights file
    bflops: str
    heads: dict[int, tuple[int, int]]


PUBLISHED = [
    Published("darknet19", 224, 27, 20_856_776, "5.585", {25: (1000, 1)}),
    Published("darknet53", 256, 78, 41_645_640, "18.576", {77: (1000, 1)}),
    Published("resnet50", 256, 70, 22_825_896, "10.007", {68: (1000, 1)}),
    Published("yolov2", 416, 32, 50_983_561, "29.475", {31: (425, 13)}),
    Published("yolov2-tiny", 416, 16, 11_237_145, "5.412", {15: (425, 13)}),
    Published("yolov2-voc", 416, 32, 50_676_061, "29.371", {31: (125, 13)}),
    Published("yolov3", 416, 107, 62_001_757, "65.879", {82: (255, 13), 94: (255, 26), 106: (255, 52)}),
    Published("yolov3-spp", 608, 114, 63_052_381, "141.531", {89: (255, 19), 101: (255, 38), 113: (255, 76)}),
    Published("yolov3-tiny", 416, 24, 8_858_734, "5.571", {16: (255, 13), 23: (255, 26)}),
    Published("yolov4", 608, 162, 64_429_405, "128.459", {139: (255, 76), 150: (255, 38), 161: (255, 19)}),
    Published("yolov4-csp", 512, 175, 52_986_205, "77.003", {144: (255, 64), 159: (255, 32), 174: (255, 16)}),
    Published("yolov4-tiny", 416, 38, 6_062_814, "6.910", {30: (255, 13), 37: (255, 26)}),
    Published("yolov7-tiny", 416, 99, 6_241_885, "5.802", {90: (255, 52), 94: (255, 26), 98: (255, 13)}),
]
SORT = {"resnet50": "10.022", "yolov3": "65.908"}  # X also exists as X-sort, with these BFLOPS: 3 per element, not 1
NAMES = sorted(path.stem for path in CFG_FOLDER.glob("*.cfg"))

by_name = pytest.mark.parametrize("name", NAMES)
published = pytest.mark.parametrize("net", PUBLISHED, ids=lambda net: net.name)


@dataclass(frozen=True)
class Row:
    section: str
    shape: tuple[int, int, int]
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    flops: float


@cache
def built(name: str) -> tuple[list[Row], list[str]]:
    """Read a bundled cfg and build its graph without weights; return the nodes and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nodes = network.build(cfg.read(CFG_FOLDER / f"{name}.cfg", strict=True))
    rows = [
        Row(
            node.layer.section,
            node.shape,
            tuple((key, shape) for key, shape, _ in node.layer.weights(*node.inputs)),
            node.layer.flops(*node.inputs),
        )
        for node in nodes
    ]
    return rows, [str(warning.message) for warning in caught]


def rows(name: str) -> list[Row]:
    return built(name)[0]


def params(name: str) -> int:
    return sum(int(np.prod(shape)) for row in rows(name) for _, shape in row.weights)


def bflops(name: str) -> str:
    return f"{sum(row.flops for row in rows(name)) / 1e9:.3f}"


def test_every_cfg_is_tested():
    assert {*NAMES} == {net.name for net in PUBLISHED} | {f"{name}-sort" for name in SORT} | {"digits"}


@by_name
def test_warns_only_where_a_stage_of_resnet_begins(name):
    """There the published ResNet adds maps of two sizes, which is worth a warning in any other cfg."""
    layers = [re.findall(r"\(layer (\d+)\): its inputs differ in size", warning) for warning in built(name)[1]]
    assert layers == ([["17"], ["33"], ["57"]] if name.startswith("resnet50") else [])


@published
def test_layers_and_weights(net):
    assert (len(rows(net.name)), params(net.name)) == (net.layers, net.params)


@published
def test_bflops(net):
    assert bflops(net.name) == net.bflops


@published
def test_heads(net):
    heads = {i: (C, side, side) for i, (C, side) in net.heads.items()}
    assert {i: row.shape for i, row in enumerate(rows(net.name)) if row.section in HEADS} == heads


@published
def test_input_size(net):
    text = (CFG_FOLDER / f"{net.name}.cfg").read_text()
    assert f"width={net.size}\nheight={net.size}\nchannels=3\n" in text


@pytest.mark.parametrize("name", SORT)
def test_sort_replaces_every_shortcut_and_nothing_else(name):
    plain, sort = rows(name), rows(f"{name}-sort")
    assert [row.section.replace("sort_", "") for row in sort] == [row.section for row in plain]
    assert "shortcut" not in {row.section for row in sort}
    assert [row.shape for row in sort] == [row.shape for row in plain]
    assert [row.weights for row in sort] == [row.weights for row in plain]
    assert bflops(f"{name}-sort") == SORT[name]


@by_name
def test_header_comment_is_true(name):
    text = (CFG_FOLDER / f"{name}.cfg").read_text()
    pattern = r"# (\d+) layers, ([\d,]+) values in its .weights file, ([\d.]+) BFLOPS at (\d+ x \d+)"
    match = re.search(pattern, text)
    assert match is not None
    size = re.search(r"^width=(\d+)\nheight=(\d+)$", text, re.M)
    assert size is not None
    assert match.groups() == (str(len(rows(name))), f"{params(name):,}", bflops(name), " x ".join(size.groups()))


@by_name
def test_stage_comments_are_true(name):
    """Hold "# --- stage, W x H x C (layers a to b)" against the layers between it and the next of its kind."""
    layer, stated, starts = -1, [], []  # the first section is [net]
    for line in (CFG_FOLDER / f"{name}.cfg").read_text().splitlines():
        if line.startswith("["):
            layer += 1
        elif line.startswith("# ---"):
            span = [int(number) for number in re.findall(r"\d+", line[line.rindex("(") :])]
            size = re.search(r", (\d+) x (\d+) x (\d+) \(", line)
            stated.append((span[0], span[-1], tuple(int(number) for number in size.groups()) if size else None))
            starts.append(layer)
    ends = [*(begin - 1 for begin in starts[1:]), len(rows(name)) - 1]
    assert [(first, last) for first, last, _ in stated] == list(zip(starts, ends, strict=True))
    for _, last, size in stated:
        C, H, W = rows(name)[last].shape
        assert size in (None, (W, H, C))


@pytest.mark.parametrize(("data", "classes"), [("coco", 80), ("voc", 20), ("digits", 10)])
def test_names_and_data_agree(data, classes):
    names = (CFG_FOLDER / f"{data}.names").read_text().split("\n")
    assert names.pop() == ""  # the last line ends like all others
    assert len(names) == len(set(names)) == classes
    assert all(name == name.strip() != "" for name in names)
    lines = [line for line in (CFG_FOLDER / f"{data}.data").read_text().splitlines() if not line.startswith("#")]
    options = dict(line.split("=") for line in lines)
    assert options["classes"] == str(classes)
    assert options["names"] == f"{data}.names"
    assert {"train", "valid", "backup", "eval"} < options.keys()


def test_names_keep_the_spelling_of_darknet():
    coco = (CFG_FOLDER / "coco.names").read_text().split("\n")
    assert [coco[k] for k in (0, 3, 4, 57, 58, 60, 62, 79)] == [
        "person", "motorbike", "aeroplane", "sofa", "pottedplant", "diningtable", "tvmonitor", "toothbrush",
    ]  # fmt: skip
    voc = (CFG_FOLDER / "voc.names").read_text().split("\n")
    assert [voc[k] for k in (0, 10, 13, 14, 15, 19)] == [
        "aeroplane", "diningtable", "motorbike", "person", "pottedplant", "tvmonitor",
    ]  # fmt: skip
