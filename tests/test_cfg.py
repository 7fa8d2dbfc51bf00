"""The grammar of .cfg files, and the diagnostics of their values."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from layer_cases import DARKNET_SECTIONS

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.errors import CfgError, CfgWarning
from gpudarknet.layers.base import SECTIONS, Activation
from gpudarknet.layers.convolutional import Convolutional
from gpudarknet.ops import activation

NET = "[net]\nwidth=8\nheight=8\nchannels=3\n"


def conv(options: str, **how: bool) -> Convolutional:
    layer = cfg.parse(f"{NET}[convolutional]\n{options}\n", "x.cfg", **how).layers[0]
    assert isinstance(layer, Convolutional)
    return layer


def test_blanks_vanish_everywhere() -> None:
    config = cfg.parse(
        "[n et]\r\n wi dth = 4 16\r\nheight\t=\t8\nchannels=3\n\n # note\n; note\n[yolo]\nanchors = 10, 13,\t16,30\n"
    )
    assert config.net.width == 416
    assert config.layers[0].anchors == (10, 13, 16, 30)  # type: ignore[attr-defined]
    assert config.lines == (8,)


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    config = cfg.parse(f"\ufeff{NET}[yolo]\n")
    assert config.net.width == 8 and config.lines == (5,)


def test_numbers_are_read_as_c_reads_them() -> None:
    assert [cfg.atoi(t)[0] for t in ("416.0", "0.5", "-3x", "", "x", "+7")] == [416, 0, -3, 0, 0, 7]
    assert [cfg.atof(t)[0] for t in ("1e-3", ".5", "-2.", "3#x", "x", "1e")] == [1e-3, 0.5, -2.0, 3.0, 0.0, 1.0]


def test_a_number_with_something_behind_it_is_a_warning() -> None:
    with pytest.warns(CfgWarning) as caught:
        assert conv("filters=3x").filters == 3
    assert (
        str(caught[0].message) == "x.cfg:6: [convolutional] filters=3x: '3x' is not an integer; Darknet reads it as 3"
    )
    assert conv("size=3 # three").size == 3  # a comment by the back door, common in the wild
    assert conv("size=3.0").size == 3


def test_the_first_of_two_keys_counts() -> None:
    with pytest.warns(CfgWarning) as caught:
        assert conv("size=3\nsize=5").size == 3
    assert str(caught[0].message) == "x.cfg:7: [convolutional] has 'size' twice; the first, on line 6, counts"


def test_an_unknown_key_is_a_warning_and_with_strict_an_error() -> None:
    message = "x.cfg:6: [convolutional] has no key 'filtres'; did you mean 'filters'?"
    with pytest.warns(CfgWarning) as caught:
        conv("filtres=3")
    assert str(caught[0].message) == message
    with pytest.raises(CfgError) as e:
        conv("filtres=3", strict=True)
    assert str(e.value) == message


def test_keys_that_darknet_reads_for_other_things_are_no_warning() -> None:
    conv("stream=1\nwait_stream=1\nlearning_rate=2\nstopbackward=1")


def test_a_key_that_would_change_results_and_is_not_offered_is_an_error() -> None:
    assert conv("coordconv=0").filters == 1
    with pytest.raises(CfgError) as e:
        conv("coordconv=1")
    assert str(e.value) == "x.cfg:6: [convolutional] coordconv=1 is not supported; remove it"


def test_an_unknown_activation_is_relu_with_a_warning() -> None:
    with pytest.warns(CfgWarning) as caught:
        assert conv("activation=leaki").activation == "relu"
    assert str(caught[0].message) == (
        "x.cfg:6: [convolutional] activation=leaki is unknown; did you mean 'leaky'?; Darknet uses 'relu'"
    )


def test_a_line_without_value_is_skipped_with_a_warning() -> None:
    for line in ("size=", "size"):
        with pytest.warns(CfgWarning) as caught:
            assert conv(line).size == 1
        assert str(caught[0].message) == f"x.cfg:6: '{line}' has no value and is skipped; write key=value"


def test_lists() -> None:
    def one(text: str) -> object:
        return cfg.parse(NET + text).layers[0]

    assert one("[route]\nlayers=-1, 3").layers == (-1, 3)  # type: ignore[attr-defined]
    assert one("[yolo]\nnum=3\nmask=0,1,2#,5").mask == (0, 1, 2)  # type: ignore[attr-defined]
    assert one("[shortcut]\nfrom=-3").from_ == (-3,)  # type: ignore[attr-defined]


def test_strides() -> None:
    layer = conv("stride=2\nstride_x=3\nstride_y=0")
    assert layer.strides == (2, 3)
    assert (
        conv("size=5\npad=1").pad_before,
        conv("size=5\npadding=1").pad_before,
        conv("size=5\npad=1\npadding=1").pad_before,
    ) == (2, 1, 2)
    assert (conv("size=1\ndilation=4").effective_dilation, conv("size=3\ndilation=4").effective_dilation) == (1, 4)


ERRORS = {
    "": "x.cfg: has no [section]; a cfg begins with [net]",
    "# only a comment\n": "x.cfg: has no [section]; a cfg begins with [net]",
    "size=3\n[net]\n": "x.cfg:1: 'size=3' is before the first [section]; a cfg begins with [net]",
    "[convolutional]\n": "x.cfg:1: the first section is [convolutional]; a cfg begins with [net]",
    "[net]\nwidth=8\n": "x.cfg:1: [net] is the only section; a network needs layers",
    NET + "[convolutionl]\n": "x.cfg:5: unknown section [convolutionl]; did you mean 'convolutional'?",
    NET + "[YOLO]\n": "x.cfg:5: unknown section [YOLO]",
    NET + "[yolo] # head\n": "x.cfg:5: section '[yolo]#head' does not end with ']'; a comment needs its own line",
    NET + "[route]\n": "x.cfg:5: [route] needs the key 'layers'",
    NET + "[shortcut]\n": "x.cfg:5: [shortcut] needs the key 'from'",
    NET + "[softmax]\ntree=no.tree\n": (
        "x.cfg:6: [softmax] tree=no.tree: no.tree: cannot be read (No such file or directory); check the path"
    ),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text: str) -> None:
    with pytest.raises(CfgError) as e:
        cfg.parse(text, "x.cfg")
    assert str(e.value) == ERRORS[text]


HEAD = "[net]\nwidth=8\nheight=8\nchannels=3\n{}\n[yolo]\nclasses=2\nnum=2\n{}\n"  # the given keys are on lines 5 and 9
IMPOSSIBLE = {  # keys of [net], keys of the head -> the error
    "counters": ("", "counters_per_class=5,6,7", "9: [yolo] counters_per_class has 3 values, classes=2; it needs one per class"),
    "few counters": ("", "counters_per_class=5", "9: [yolo] counters_per_class has 1 values, classes=2; it needs one per class"),
    "negative counter": ("", "counters_per_class=5,-1", "9: [yolo] counters_per_class: -1 is not a number of objects"),
    "huge batch": ("batch=99999999999999999999", "", "5: [net] batch=1e+20 must be between 1 and 1048576"),
    "mask": ("", "mask=0,2", "9: [yolo] mask=0,2 must name anchors between 0 and num - 1 = 1"),
    "negative mask": ("", "mask=-1", "9: [yolo] mask=-1 must name anchors between 0 and num - 1 = 1"),
    "anchors": ("", "anchors=10,14", "9: [yolo] anchors has 2 values; 2 anchors need 4, a width and a height for each"),
    "anchor": ("", "anchors=10,14,0,3", "9: [yolo] anchors: value 3 is 0 and must be above 0, a width or a height"),
    "no scales": ("policy=steps", "", "5: [net] policy=steps needs the key 'steps'"),
    "few scales": ("policy=steps\nsteps=1,2\nscales=.1", "", "7: [net] scales has 1 values, steps has 2; each step needs one"),
    "few sequence scales": (
        "policy=sgdr\nmax_batches=9\nsteps=1,2\nseq_scales=.1", "",
        "8: [net] seq_scales has 1 values, steps has 2; each step needs one",
    ),
    "subdivisions": ("subdivisions=0", "", "5: [net] subdivisions=0 must be between 1 and 1048576"),
    "batch": ("batch=-8", "", "5: [net] batch=-8 must be between 1 and 1048576"),
    "time steps": ("time_steps=0", "", "5: [net] time_steps=0 must be between 1 and 1048576"),
    "groups": ("", "[route]\nlayers=0\ngroups=0", "11: [route] groups=0 must be at least 1"),
    "group id": ("", "[route]\nlayers=0\ngroup_id=1", "11: [route] group_id=1 must be between 0 and groups - 1 = 0"),
    "region anchors": ("", "[region]\nclasses=1\nnum=3\nanchors=1,2,3,4", "12: [region] anchors has 4 values; 3 anchors need 6,"
                       " a width and a height for each"),
    "coords": ("", "[region]\ncoords=2", "10: [region] coords=2 must be at least 4"),
    "classes": ("", "[Gaussian_yolo]\nclasses=0", "10: [Gaussian_yolo] classes=0 must be at least 1"),
    "cells": ("", "[detection]\ncoords=4\nside=0", "11: [detection] side=0 must be at least 1"),
    "default coords": ("", "[detection]\nside=7", "9: [detection] coords=1 must be 4"),  # on the line of the section
    "filters": ("", "[conv]\nfilters=0", "10: [conv] filters=0 must be at least 1"),
    "hidden": ("", "[crnn]\nhidden=0", "10: [crnn] hidden=0 must be at least 1"),
    "output": ("", "[connected]\noutput=-3", "10: [connected] output=-3 must be at least 1"),
    "weights": (
        "", "[shortcut]\nfrom=0\nweights_type=per_feature",
        "11: [shortcut] weights_type=per_feature needs weights_normalization=relu or softmax; Darknet refuses it too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_values_that_cannot_be(name: str) -> None:
    net, head, message = IMPOSSIBLE[name]
    with pytest.raises(CfgError) as e:
        cfg.parse(HEAD.format(net, head), "x.cfg")
    assert str(e.value) == f"x.cfg:{message}"


def test_every_layer_has_its_limits_and_those_of_its_bases() -> None:
    """No key of a limit is misspelled, and the defaults are within the limits."""
    required = {"layers": (0,), "from_": (0,)}
    for kind in (cfg.Net, *SECTIONS.values()):
        names = {f.name for f in fields(kind)}
        record = kind(**{key: (0,) for key in required if key in names})  # type: ignore[arg-type]
        for base in kind.__mro__:
            assert {*vars(base).get("limits", ()), *vars(base).get("training_limits", ())} <= names
        known = [("coords", "error")] if record.section == "detection" else []
        assert [(diagnostic.key, diagnostic.severity) for diagnostic in record.diagnostics()] == known


UNTRAINABLE = {
    "subdivisions": ("batch=1\nsubdivisions=8", "", "6: [net] subdivisions=8 is above batch=1, so no image is left for each"),
    "momentum": ("momentum=1.5", "", "5: [net] momentum=1.5 must be between 0 and 1"),
    "rate": ("learning_rate=-1", "", "5: [net] learning_rate=-1 must be at least 0"),
    "adam": ("adam=1\nB1=1.5", "", "6: [net] B1=1.5 must be at least 0 and below 1"),
    "poly": ("policy=poly", "", "1: [net] max_batches=0 must be at least 1 for policy=poly"),
    "step": ("policy=step\nstep=0", "", "6: [net] step=0 must be at least 1"),
    "cycles": ("policy=sgdr\nmax_batches=9\nsgdr_mult=0", "", "7: [net] sgdr_mult=0 must be at least 1"),
    "mixup": ("mixup=5", "", "5: [net] mixup=5 must be between 0 and 4"),
    "resize step": ("resize_step=0", "", "5: [net] resize_step=0 must be at least 1"),
    "ignore_thresh": ("", "ignore_thresh=-.5", "9: [yolo] ignore_thresh=-0.5 must be at least 0"),
    "half an anchor": (
        "", "anchors=9,8,7", "9: [yolo] anchors has 3 values; 2 anchors need 4, a width and a height for each"
    ),
    "half of an unused anchor": (
        "", "mask=0\nanchors=9,8,7", "10: [yolo] anchors has 3 values; 2 anchors need 4, a width and a height for each"
    ),
    "scales": ("policy=steps\nsteps=5\nscales=-.1", "", "7: [net] scales: -0.1 must be at least 0"),
    "power": ("power=-4", "", "5: [net] power=-4 must be at least 0"),
    "max": ("", "max=0", "9: [yolo] max=0 must be at least 1"),
    "max_delta": ("", "max_delta=0", "9: [yolo] max_delta=0 must be above 0"),
    "dropout": ("", "[dropout]\nprobability=1", "10: [dropout] probability=1 must be at least 0 and below 1"),
    "forced": ("", "[detection]\ncoords=4\nforced=1", "11: [detection] forced=1 needs num=2: small objects take the second box,"
               " num=1"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_values_that_only_training_cannot_use(name: str) -> None:
    """They are a warning, as the network can run; and an error when it is to be trained."""
    net, head, message = UNTRAINABLE[name]
    with pytest.warns(CfgWarning) as caught:
        config = cfg.parse(HEAD.format(net, head), "x.cfg")
    assert [str(w.message) for w in caught] == [f"x.cfg:{message}; the network cannot be trained"]
    with pytest.raises(CfgError) as e:
        config.check_trainable()
    assert str(e.value) == f"x.cfg:{message}"


UNINTENDED = {
    "scales": ("policy=steps\nsteps=5\nscales=.1,.2", "", "7: [net] scales has 2 values, steps has 1; the others have no effect"),
    "order": (
        "policy=steps\nsteps=9,5\nscales=.1,.2", "",
        "6: [net] steps=9,5 are not in ascending order; a step waits for those before it",
    ),
    "batch": (
        "batch=10\nsubdivisions=4", "",
        "6: [net] subdivisions=4 does not divide batch=10; as in Darknet, 8 images are used",
    ),
    "repeated anchor": ("", "mask=0,0", "9: [yolo] mask=0,0 repeats an anchor; only its first place is trained"),
    "jitter": ("", "jitter=30", "9: [yolo] jitter=30 must be between 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNINTENDED)
def test_values_that_darknet_works_with_are_a_warning(name: str) -> None:
    net, head, message = UNINTENDED[name]
    with pytest.warns(CfgWarning) as caught:
        config = cfg.parse(HEAD.format(net, head), "x.cfg")
    assert [str(w.message) for w in caught] == [f"x.cfg:{message}"]
    config.check_trainable()
    with pytest.raises(CfgError, match=rf"^x.cfg:{re.escape(message)}$"):
        cfg.parse(HEAD.format(net, head), "x.cfg", strict=True)


def test_files_of_classes_are_checked_against_classes(tmp_path: Path) -> None:
    (tmp_path / "my.tree").write_text("animal -1\nthing -1\ncat 0\ndog 0\n")
    (tmp_path / "my.map").write_text("1\n4\n")
    text = f"{NET}[region]\nclasses={{}}\nnum=1\nmap=my.map\ntree=my.tree\n"
    config = cfg.parse(text.format(4).replace("map=my.map\n", ""), str(tmp_path / "x.cfg"))
    assert config.layers[0].num_truth_classes == 4  # type: ignore[attr-defined]
    for classes, place, message in (
        (4, 8, "map: its line 2 is class 4, and must be between 0 and classes - 1 = 3"),
        (5, 9, "tree: has 4 classes, classes=5; they must be equal"),
    ):
        with pytest.raises(CfgError) as e:
            cfg.parse(text.format(classes), str(tmp_path / "x.cfg"))
        assert str(e.value) == f"{tmp_path}/x.cfg:{place}: [region] {message}"
    path = tmp_path / "x.cfg"
    path.write_text(f"{NET}[connected]\noutput=3\n[softmax]\ntree=my.tree\n")
    with pytest.raises(CfgError) as e:
        gd.load_network(path)
    assert str(e.value) == f"{path}:8: [softmax] (layer 1): the tree has 4 classes, its input 3"


def test_files_that_are_no_cfg(tmp_path: Path) -> None:
    with pytest.raises(CfgError) as e:
        cfg.read(tmp_path / "none.cfg")
    assert str(e.value) == f"{tmp_path / 'none.cfg'}: cannot be read (No such file or directory); check the path"
    with pytest.raises(CfgError, match="cannot be read"):
        cfg.read(tmp_path)
    binary = tmp_path / "x.weights"
    binary.write_bytes(b"\0\1\2" * 100)
    with pytest.raises(CfgError) as e:
        cfg.read(binary)
    assert str(e.value) == f"{binary}: is not a text file (binary data); check the order of the files"


def test_a_tree_is_found_in_the_folder_of_the_cfg(tmp_path: Path) -> None:
    (tmp_path / "my.tree").write_text("animal -1\nthing -1\ncat 0\ndog 0\n")
    path = tmp_path / "x.cfg"
    path.write_text(NET + "[softmax]\ntree=my.tree\n")
    tree = cfg.read(path).layers[0].tree  # type: ignore[attr-defined]
    assert (tree.names, tree.parents, tree.starts) == (("animal", "thing", "cat", "dog"), (-1, -1, 0, 0), (0, 2))


def test_a_tree_whose_child_stands_above_its_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.tree").write_text("animal -1\ncat 2\n")
    path = tmp_path / "x.cfg"
    path.write_text(NET + "[softmax]\ntree=my.tree\n")
    with pytest.raises(CfgError, match=r"my.tree:2: parent 2 of 'cat' must be on an earlier line$"):
        cfg.read(path)


def test_activations_of_cfgs_are_those_of_the_ops() -> None:
    assert set(get_args(Activation)) == {*activation.NAMES, *activation.NORMALIZERS}


def test_every_darknet_section_is_there() -> None:
    assert {*DARKNET_SECTIONS, "sort_shortcut"} <= set(SECTIONS)
