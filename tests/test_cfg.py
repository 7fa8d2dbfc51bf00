"""The grammar of .cfg files, and the messages about their faults."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from layer_cases import DARKNET_SECTIONS

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
    assert one("[yolo]\nmask=0,1,2#,5").mask == (0, 1, 2)  # type: ignore[attr-defined]
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
