"""A cfg adapted to another data set is that cfg except for a few lines, and is a valid network."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from gpudarknet import cfg, cli, graph
from gpudarknet.adapt import adapt_cfg
from gpudarknet.errors import CfgError, WeightsWarning
from gpudarknet.io import resources
from gpudarknet.layers import DetectionHead
from gpudarknet.network import load_network

CONV = "[convolutional]\nfilters={}\nsize=1\nactivation=linear\n"
NET = "[net]\nwidth=64\nheight=64\nchannels=3\n"
# Darknet's documentation: yolov4-tiny.conv.29 (also for yolov4-tiny-3l.cfg), yolov4.conv.137, yolov3-tiny.conv.15,
# darknet53.conv.74 (for yolov3.cfg and yolov3-spp.cfg), yolov7-tiny.conv.87, yolov4-csp.conv.142, darknet19_448.conv.23
DOCUMENTED = {
    "yolov4-tiny": 29, "yolov4": 137, "yolov3-tiny": 15, "yolov3": 74, "yolov3-spp": 74, "yolov7-tiny": 87,
    "yolov4-csp": 142, "yolov2": 23, "yolov2-voc": 23, "yolov2-tiny": 13,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "net.cfg"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return path

    return write


def changed(adapted) -> dict[str, tuple[str | None, str | None]]:
    return {change.key: (change.old, change.new) for change in adapted.changes}


# The text


def test_yolov4_tiny_for_two_classes():
    adapted = adapt_cfg("yolov4-tiny", classes=2, width=256, max_batches=300)
    before, after = (text.split("\n") for text in (resources.bundled_cfg("yolov4-tiny").read_text(), adapted.text))
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        ("width=416", "width=256"), ("height=416", "height=256"),
        ("subdivisions=1", "subdivisions=16"),
        ("burn_in=1000", "burn_in=50"), ("max_batches=2000200", "max_batches=300"),
        ("steps=1600000, 1800000", "steps=240,270"),
        ("filters=255", "filters=21"), ("classes=80", "classes=2"),
        ("filters=255", "filters=21"), ("classes=80", "classes=2"),
    ]  # fmt: skip
    assert adapted.text.split("\n")[6] == "width=256" and adapted.changes[0].line == 7


def test_comments_spaces_line_ends_and_bytes_are_kept(write):
    text = (
        "\ufeff# by M\udcfcller\r\n[net]\r\n width = 64  # pixels\r\nheight\t=64\r\nchannels=3\r\n\r\n"
        + CONV.format("  21 ").replace("\n", "\r\n")
        + "; the head\r\n[yolo]\r\nnum=3\r\nanchors = 1,2, 3,4, 5,6\r\nclasses = 2\t"
    )
    path = write(text)
    adapted = adapt_cfg(path, classes=5, width=96)
    expected = text.removeprefix("\ufeff")
    for old, new in (
        (" width = 64  # pixels", " width = 96  # pixels"), ("height\t=64", "height\t=96"), ("filters=  21 ", "filters=  30 "),
        ("classes = 2\t", "classes = 5\t"),
        ("channels=3\r\n", "channels=3\r\nbatch=64\r\nsubdivisions=16\r\nmax_batches=10000\r\n"),
    ):  # fmt: skip
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert adapted.text == expected
    assert [c.line for c in adapted.changes] == [3, 4, 6, 7, 8, 11, 18]
    assert [expected.split("\n")[c.line - 1].partition("=")[0].strip() for c in adapted.changes] == [
        c.key for c in adapted.changes
    ]


def test_the_first_of_duplicate_keys_is_edited_and_all_are_removed(write):
    path = write(NET + CONV.format(6) + "[yolo]\nclasses=1\nclasses=9\ncounters_per_class=4\ncounters_per_class=5\n")
    with pytest.warns(UserWarning, match="twice"):
        adapted = adapt_cfg(path, classes=2)
    assert adapted.text.endswith("filters=7\nsize=1\nactivation=linear\n[yolo]\nclasses=2\nclasses=9\n")


def test_nothing_asked_nothing_changed():
    adapted = adapt_cfg("yolov4-tiny")
    assert adapted.changes == () and adapted.pretrained is None
    assert adapted.text == resources.bundled_cfg("yolov4-tiny").read_text(encoding="utf-8")


# Heads


@pytest.mark.parametrize("name", resources.names())
def test_every_bundled_network(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resnet50 adds maps of two sizes
        adapted = adapt_cfg(name, classes=3)
    heads = [node.layer.classes for node in adapted.nodes if isinstance(node.layer, DetectionHead)]
    softmax = [np.prod(node.shape) for node in adapted.nodes if node.layer.section == "softmax"]
    assert set(heads + softmax) == {3}
    changes = {(change.section, change.key) for change in adapted.changes}
    assert changes <= {
        *(("net", key) for key in ("batch", "subdivisions", "max_batches", "burn_in", "steps", "scales")),
        ("convolutional", "filters"), ("yolo", "classes"), ("region", "classes"),
    }  # fmt: skip


HEADS = {
    "yolo": ("[yolo]\nmask=1,2\nnum=3\nclasses=80\n", 2 * (5 + 4)),
    "gaussian": ("[Gaussian_yolo]\nmask=0,1,2\nnum=9\nclasses=80\n", 3 * (9 + 4)),
    "region": ("[region]\nnum=5\ncoords=4\nclasses=20\nsoftmax=1\n", 5 * (4 + 1 + 4)),
    "region, coords": ("[region]\nnum=2\ncoords=6\nclasses=20\n", 2 * (6 + 1 + 4)),
    "tree": ("[region]\nnum=3\nclasses=9418\ntree=missing.tree\nmap=missing.map\nsoftmax=1\n", 3 * (5 + 4)),
    "route": ("[route]\nlayers=-1\n[yolo]\nnum=3\nclasses=80\n", 3 * (5 + 4)),
    "activation": ("[activation]\nactivation=leaky\n[dropout]\n[yolo]\nnum=3\nclasses=80\n", 3 * (5 + 4)),
    "softmax": ("[avgpool]\n[softmax]\n[cost]\n", 4),
    "softmax with groups": ("[avgpool]\n[softmax]\ngroups=2\n", 8),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_filters_of_the_layer_that_feeds_a_head(write, kind):
    head, filters = HEADS[kind]
    adapted = adapt_cfg(write(NET + CONV.format(7) + head), classes=4)
    assert adapted.config.layers[0].filters == filters
    assert "missing" not in adapted.text


def test_yolo_v1(write):
    head = "[connected]\noutput={}\nactivation=linear\n[detection]\nside=7\nnum=3\ncoords=4\nclasses={}\n"
    adapted = adapt_cfg(write(NET + CONV.format(4) + head.format(1470, 20)), classes=2)
    assert changed(adapted)["output"] == ("1470", str(49 * (3 * 5 + 2)))


def test_a_cfg_whose_filters_are_wrong_is_repaired(write):
    text = NET + CONV.format(255) + "[yolo]\nnum=3\nclasses=2\n"
    with pytest.raises(CfgError):
        graph.build(cfg.parse(text))
    assert adapt_cfg(write(text), classes=2).config.layers[0].filters == 21


def test_a_head_without_a_layer_to_adapt(write):
    joined = NET + CONV.format(7) + CONV.format(14) + "[route]\nlayers=-1,-2\n[yolo]\nnum=3\nclasses=2\n"
    with pytest.raises(CfgError, match=r"net.cfg:13: \[route\] \(layer 2\) joins or splits channels"):
        adapt_cfg(write(joined), classes=2)
    with pytest.raises(CfgError, match=r"net.cfg:5: \[yolo\] \(layer 0\) needs a \[convolutional\]"):
        adapt_cfg(write(NET + "[yolo]\nnum=3\nclasses=2\n"), classes=2)
    with pytest.raises(CfgError, match=r"\[softmax\] \(layer 1\) has 8192 inputs, a map and not classes"):
        adapt_cfg(write(NET + CONV.format(4) + "[softmax]\n"), classes=2)
    with pytest.raises(CfgError, match=r"no \[yolo\].* so there are no classes"):
        adapt_cfg(write(NET + CONV.format(4)), classes=2)


# Size and anchors


def test_the_size_is_a_multiple_of_the_stride():
    with pytest.raises(CfgError, match="width=100 must be a multiple of 32, the network's stride; use 96 or 128"):
        adapt_cfg("yolov4-tiny", width=100)
    for size in (0, -32, 1):
        with pytest.raises(CfgError, match=f"height={size} must be a multiple of 32, the network's stride; use 32"):
            adapt_cfg("yolov4-tiny", height=size)
    assert adapt_cfg("darknet19", width=100).config.net.input == (3, 100, 100)  # a classifier takes any size


def test_a_square_input_stays_square_and_others_change_where_asked():
    assert adapt_cfg("yolov4-tiny", height=320).config.net.input == (3, 320, 320)
    assert adapt_cfg("yolov4-tiny", width=608, height=320).config.net.input == (3, 320, 608)
    assert adapt_cfg("digits", width=256).config.net.input == (3, 96, 256)


def test_the_stride_is_that_of_the_coarsest_head(write):
    strided = CONV.format(21).replace("size=1", "size=1\nstride=64")
    path = write(NET + strided + "[yolo]\nnum=3\nclasses=2\n")
    with pytest.raises(CfgError, match="width=96 must be a multiple of 64"):
        adapt_cfg(path, width=96)


def test_anchors():
    sizes = [10.0, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319.5]
    adapted = adapt_cfg("yolov4-tiny", anchors=sizes)
    assert [layer.anchors for layer in adapted.config.layers if isinstance(layer, DetectionHead)] == [tuple(sizes)] * 2
    with pytest.raises(
        CfgError, match=r"\[yolo\] has 6 anchors, not 2; use `detector calc_anchors -num_of_clusters 6`"
    ):
        adapt_cfg("yolov4-tiny", anchors=[1, 2, 3, 4])
    with pytest.raises(CfgError, match="in cells; use `detector calc_anchors -width 10 -height 10`"):
        adapt_cfg("yolov2", width=320, anchors=[30.0] * 10)
    with pytest.raises(CfgError, match="no head with anchors"):
        adapt_cfg("darknet19", anchors=[1, 2])


# Training


@pytest.mark.parametrize(
    ("classes", "images", "iterations"), [(1, 0, 6000), (2, 300, 6000), (5, 0, 10_000), (2, 20_000, 20_000)]
)
def test_the_advised_length_of_a_training(classes, images, iterations):
    net = adapt_cfg("yolov4-tiny", classes=classes, images=images).config.net
    assert (net.max_batches, net.burn_in, net.batch, net.subdivisions) == (iterations, 1000, 64, 16)
    assert net.steps == (iterations * 8 // 10, iterations * 9 // 10)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("burn_in=1000\nsteps=400000,450000\nscales=.1,.1", (100, (480, 540), (0.1, 0.1))),
        ("burn_in=3\nsteps=400\nscales=.5", (1, (480, 540), (0.1, 0.1))),
        # YOLO v1 and v2 write the warm-up as steps: it is shortened; further decays keep their place
        ("steps=-1,100,20000,30000\nscales=.1,10,.1,.1", (0, (-1, 10, 480, 540), (0.1, 10, 0.1, 0.1))),
        ("steps=200,30000,50000,60000\nscales=2,.5,.2,.1", (0, (20, 270, 480, 540), (2, 0.5, 0.2, 0.1))),
    ],
)
def test_the_learning_rate_follows_max_batches(write, keys, expected):
    path = write(NET + f"max_batches=70000\npolicy=steps\n{keys}\n" + CONV.format(21) + "[yolo]\nnum=3\nclasses=2\n")
    net = adapt_cfg(path, max_batches=600).config.net
    assert (net.burn_in, net.steps, net.scales) == expected
    assert net.max_batches == 600


def test_batch_and_subdivisions():
    def sizes(name: str, **values: int) -> tuple[int, int]:
        net = adapt_cfg(name, **values).config.net
        return net.batch, net.subdivisions

    assert sizes("yolov4-tiny", classes=2, batch=16) == (16, 4)
    assert sizes("yolov4-tiny", batch=6) == (6, 2)
    assert sizes("yolov4-tiny", batch=7) == (7, 7)
    assert sizes("yolov4-tiny", classes=2, batch=16, subdivisions=1) == (16, 1)
    assert sizes("yolov4-tiny", max_batches=300) == (64, 1)
    assert sizes("darknet19", classes=2) == (128, 1)  # the advice is for detectors
    with pytest.raises(CfgError, match="subdivisions=3 must divide batch=16"):
        adapt_cfg("yolov4-tiny", batch=16, subdivisions=3)


def test_subdivisions_that_are_finer_are_kept(write):
    path = write(NET + "batch=64\nsubdivisions=32\n" + CONV.format(21) + "[yolo]\nnum=3\nclasses=2\n")
    assert adapt_cfg(path, classes=2).config.net.subdivisions == 32


def test_freeze():
    adapted = adapt_cfg("yolov4-tiny", freeze=26)
    assert [(c.section, c.key, c.old, c.new) for c in adapted.changes] == [("maxpool", "stopbackward", None, "1")]
    assert [k for k, layer in enumerate(adapted.config.layers) if layer.stopbackward] == [25]
    with pytest.raises(CfgError, match="freeze=30 leaves nothing to train before layer 30"):
        adapt_cfg("yolov4-tiny", freeze=30)


# Pretrained weights


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_number_of_pretrained_layers_is_that_of_darknets_documentation(name):
    pretrained = adapt_cfg(name, classes=2).pretrained
    assert pretrained is not None
    assert (pretrained.cfg, pretrained.weights, pretrained.count) == (name, name, DOCUMENTED[name])


def test_a_copy_of_a_published_network_finds_its_weights(tmp_path):
    text = resources.bundled_cfg("yolov4-tiny").read_text()
    (tmp_path / "mine.cfg").write_text(text.replace("filters=255", "filters=18").replace("classes=80", "classes=1"))
    pretrained = adapt_cfg(tmp_path / "mine.cfg", classes=2).pretrained
    assert pretrained is not None and (pretrained.cfg, pretrained.count) == ("yolov4-tiny", 29)
    (tmp_path / "mine.cfg").write_text(text.replace("filters=512", "filters=384"))  # layers 26 to 28
    pretrained = adapt_cfg(tmp_path / "mine.cfg", classes=2).pretrained
    assert pretrained is not None and (pretrained.cfg, pretrained.count) == ("yolov4-tiny", 26)


def test_weights_of_the_cfg_itself(write, tmp_path):
    path = write(NET + CONV.format(8) + CONV.format(21) + "[yolo]\nnum=3\nclasses=2\n")
    pretrained = adapt_cfg(path, classes=3).pretrained
    assert pretrained is not None and (pretrained.cfg, pretrained.weights) == (str(path), "x.weights")
    (tmp_path / "net.weights").write_bytes(b"")
    pretrained = adapt_cfg(path, classes=3).pretrained
    assert pretrained is not None and pretrained.weights == str(tmp_path / "net.weights")
    assert (pretrained.count, pretrained.name) == (1, "net.conv.1")


# The command


def test_the_printed_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cfg", "digits", "-classes", "2", "-batch", "16", "-max_batches", "300", "-out", "my.cfg"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[:4]] == [
        ["my.cfg:5", "[net]", "subdivisions", "1", "->", "4"],
        ["my.cfg:13", "[net]", "burn_in", "50", "->", "10"],
        ["my.cfg:15", "[net]", "max_batches", "1500", "->", "300"],
        ["my.cfg:111", "[convolutional]", "filters", "45", "->", "21"],
    ]
    assert printed[5] == "my.cfg: 13 layers, 2 classes, 128 x 96, 300 iterations of 16 images"
    assert printed[7:] == [
        "  gpudarknet partial digits digits digits.conv.11 11",
        "  gpudarknet detector train x.data my.cfg digits.conv.11 -map",
    ]
    assert cli.main(printed[7].split()[1:]) == 0
    with pytest.warns(WeightsWarning, match="digits.conv.11: ends before layer 11; layers 11 to 12"):
        load_network("my.cfg", "digits.conv.11", "numpy")


def test_classes_and_images_of_a_data_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.data").write_text("classes=3\ntrain=train.txt\nnames=my.names\n")
    Path("my.names").write_text("a\nb\nc\n")
    Path("train.txt").write_text("".join(f"{k}.png\n" for k in range(7000)))
    assert cli.main(["cfg", "darknet19", "-data", "my.data", "-out", "my.cfg"]) == 0
    assert "classifier train my.data my.cfg darknet19.conv.23 -topk" in capsys.readouterr().out
    assert cli.main(["cfg", "yolov4-tiny", "-data", "my.data", "-out", "my.cfg"]) == 0
    assert "detector train my.data my.cfg yolov4-tiny.conv.29 -map" in capsys.readouterr().out
    net = cfg.read("my.cfg").net
    assert net.max_batches == 7000
    Path("my.names").write_text("a\nb\n")
    assert cli.main(["cfg", "yolov4-tiny", "-data", "my.data"]) == 2
    assert capsys.readouterr().err == (
        "error: my.names: has 2 names, my.data has 3 classes; the numbers must be equal\n"
    )


def test_anchors_of_calc_anchors(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.data").write_text("classes=1\ntrain=train.txt\n")
    Path("train.txt").write_text("a.png\n")
    Path("a.txt").write_text("".join(f"0 .5 .5 {k / 10} {k / 8}\n" for k in range(1, 8)))
    assert (
        cli.main(["detector", "calc_anchors", "my.data", "-num_of_clusters", "6", "-width", "256", "-height", "256"])
        == 0
    )
    assert cli.main(["cfg", "yolov4-tiny", "-width", "256", "-anchors", "anchors.txt", "-out", "my.cfg"]) == 0
    lines = Path("my.cfg").read_text().split("\n")
    written = next(line for line in lines if line.startswith("anchors"))
    values = [float(value) for value in written.partition("=")[2].split(",")]
    assert len(values) == 12 and values[:2] == [26, 32]  # the smallest box, a tenth and an eighth of 256
    Path("bad.txt").write_text("10,14, 23\n")
    capsys.readouterr()
    assert cli.main(["cfg", "yolov4-tiny", "-anchors", "bad.txt"]) == 2
    assert capsys.readouterr().err.startswith("error: bad.txt: is no list of anchors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("yolov4-tiny", "nothing to change; set -classes N or -data x.data"),
        ("yolov4-tiny -classes 0", "yolov4-tiny: classes=0 must be at least 1"),
        ("yolov4-tiny -classes two", "-classes needs an integer, got 'two'"),
        ("yolov4-tinny -classes 2", "yolov4-tinny: cannot be read"),
        ("yolov4-tiny -classes 2 -width 100", "must be a multiple of 32"),
        ("yolov4-tiny -classes 2 -out no/my.cfg", "no/my.cfg: cannot be written"),
        ("yolov4-tiny -classes 2 -anchors none.txt", "none.txt: cannot be read"),
        ("yolov4-tiny -classes 999999999", "more than 2^31 - 1 elements"),
        ("yolov4-tiny -max_batches -5", "max_batches=-5 must be at least 1"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("my.cfg").write_text("mine\n")
    words = arguments.split()
    assert cli.main(["cfg", *words, *([] if "-out" in words else ["-out", "my.cfg"])]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert Path("my.cfg").read_text() == "mine\n" and len(list(tmp_path.iterdir())) == 1


def test_without_out_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cfg", "yolov4-tiny", "-classes", "2"]) == 0
    assert capsys.readouterr().out.endswith("Nothing was written; -out my.cfg writes it\n")
    assert list(tmp_path.iterdir()) == []
