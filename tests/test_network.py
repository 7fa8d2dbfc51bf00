"""Networks against the original Darknet, and the Python API."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from seeded import network_input, write_weights

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.backend import Backend
from gpudarknet.errors import CfgError, CfgWarning, DataError

CFG_DIR = Path(__file__).parents[1] / "cfg"
GOLDEN = np.load(Path(__file__).parent / "data" / "forward.npz")
NETWORKS = sorted({key.partition("/")[0] for key in GOLDEN.files})
DEEP = {"resnet50", "darknet53", "yolov3", "yolov3-spp", "yolov4", "yolov4-csp"}  # residual sums over many layers

SMALL = """[net]
width=24
height=16
channels=3

[convolutional]
filters=4
size=3
pad=1
stride=2
activation=leaky
batch_normalize=1

[maxpool]
size=2
stride=2

[convolutional]
filters=6
size=1
activation=linear

[avgpool]

[softmax]
"""


def load(text: str, **options: object) -> gd.Network:
    return gd.load_network(cfg.parse(text), backend="numpy", **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_agrees_with_the_original_program(name: str, tmp_path: Path) -> None:
    seed, size = (int(n) for n in GOLDEN[f"{name}/seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CfgWarning)  # resnet50 adds maps of different size; see test_shipped_cfgs
        blank = gd.load_network(CFG_DIR / f"{name}.cfg", backend="numpy", width=size, height=size)
        path = write_weights(blank, tmp_path / "seeded.weights", seed, float(GOLDEN[f"{name}/gain"]))
        net = gd.load_network(CFG_DIR / f"{name}.cfg", path, backend="numpy", width=size, height=size)
    outputs = net.trace(network_input(net, seed))
    index, value, at = GOLDEN[f"{name}/index"], GOLDEN[f"{name}/value"], 0
    for node, y, (count, samples, std, bflops) in zip(net.nodes, outputs, GOLDEN[f"{name}/layers"], strict=True):
        part = slice(at, at := at + int(samples))
        assert abs(node.layer.flops(*node.inputs) / 1e9 - bflops) < 6e-7  # recorded with six decimals
        if y.size != count:  # softmax and cost record no shape in the original
            continue
        error = np.abs(y.ravel()[index[part]] - value[part]).max(initial=0) / max(std, 1e-6)
        assert error < (1e-3 if name in DEEP else 2e-4), f"layer {node.index} [{node.layer.section}]"


def test_predict_returns_the_heads() -> None:
    net = gd.load_network(CFG_DIR / "yolov4-tiny.cfg", backend="numpy", width=96, height=64)
    x = network_input(net, 3, batch=2)
    outputs = net.predict(x)
    assert [y.shape for y in outputs] == [(2, 255, 2, 3), (2, 255, 4, 6)]
    traced = net.trace(x)
    for y, index in zip(outputs, (30, 37), strict=True):
        assert y.shape == traced[index].shape


def test_predict_of_a_classifier_returns_the_last_layer_other_than_cost() -> None:
    net = load(SMALL + "[cost]\n")
    (y,) = net.predict(network_input(net, 1, batch=3))
    assert y.shape == (3, 6, 1, 1)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-6)


def test_each_image_of_a_batch_gets_its_own_result() -> None:
    net = load(SMALL)
    x = network_input(net, 5, batch=3)
    (both,) = net.predict(x)
    for k in range(3):
        (one,) = net.predict(x[k : k + 1])
        np.testing.assert_allclose(one[0], both[k], rtol=1e-5)


def test_outputs_are_not_overwritten_by_the_next_run() -> None:
    net = load(SMALL)
    (first,) = net.predict(network_input(net, 1))
    kept = first.copy()
    net.predict(network_input(net, 2))
    np.testing.assert_array_equal(first, kept)


def test_input_of_another_shape_is_refused() -> None:
    net = load(SMALL)
    with pytest.raises(DataError) as e:
        net.predict(np.zeros((1, 3, 24, 16), np.float32))
    assert str(e.value) == "input has shape (1, 3, 24, 16); cfg expects (N, C, H, W) = (N, 3, 16, 24)"


def test_input_may_be_anything_with_dlpack() -> None:
    class Foreign:
        def __init__(self, a: np.ndarray):
            self.a = a

        def __dlpack__(self, **options: object) -> object:
            return self.a.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.a.__dlpack_device__()

    net = load(SMALL)
    x = network_input(net, 4)
    np.testing.assert_array_equal(net.predict(Foreign(x))[0], net.predict(x)[0])


def test_width_and_height_override_the_cfg() -> None:
    net = load(SMALL, width=32, height=48)
    assert (net.width, net.height, net.channels) == (32, 48, 3)
    assert net.nodes[0].shape == (4, 24, 16)


def test_initial_weights_depend_on_the_seed() -> None:
    same = [load(SMALL, seed=7).weights[0]["kernel"] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], load(SMALL, seed=8).weights[0]["kernel"])


def test_detections_of_a_classifier_are_refused() -> None:
    net = load(SMALL)
    with pytest.raises(
        DataError,
        match=r"^cfg: has no \[yolo\], \[Gaussian_yolo\], \[region\] or \[detection\] layer, so no boxes; use predict$",
    ):
        net.decode(net.predict(network_input(net, 1)), 0.5)


NETS = {
    "huge width": (
        "width=1000000000\nheight=416\nchannels=3",
        "",
        "asks for an input of 1000000000 x 416 x 3 elements",
    ),
    "no size": ("width=0\nheight=416\nchannels=3", "", "needs width, height and channels of at least 1"),
    "negative size": ("width=-416\nheight=416\nchannels=3", "", "cfg:2: [net] width=-416 must be at least 0"),
    "negative filters": (
        None,
        "[convolutional]\nfilters=-4",
        "cfg:6: [convolutional] filters=-4 must be at least 1",
    ),
    "huge filters": (None, "[convolutional]\nfilters=2000000000", "has more than 2^31 - 1 elements"),
    "zero stride": (None, "[convolutional]\nstride=0", "cfg:6: [convolutional] stride=0 must be at least 1"),
    "big window": (None, "[convolutional]\nsize=99", "a window of 99 (padding 0) does not fit into 16 pixels"),
    "later layer": (
        None,
        "[route]\nlayers=3",
        "cfg:6: [route] (layer 0) reads layer 3; it can only read earlier layers: the input, as -1",
    ),
    "own layer": (
        None,
        "[avgpool]\n[route]\nlayers=1",
        "reads layer 1; it can only read earlier layers: layers 0 to 0",
    ),
    "too far back": (None, "[avgpool]\n[shortcut]\nfrom=-9", "reads layer -8; it can only read"),
    "unlike maps": (None, "[avgpool]\n[route]\nlayers=-1,-2", "reads layer -1; it can only read"),
    "unlike sizes": (
        None,
        "[dropout]\n[avgpool]\n[route]\nlayers=0,1",
        "its inputs differ in size: 24 x 16 and, from source 2, 1 x 1 (width x height)",
    ),
    "groups": (
        None,
        "[convolutional]\nfilters=4\ngroups=2",
        "cfg:7: [convolutional] (layer 0): groups=2 does not divide 3 input channels and 4 filters",
    ),
    "route groups": (
        None,
        "[dropout]\n[route]\nlayers=0\ngroups=2",
        "groups=2 does not divide the 3 channels of a source",
    ),
    "group id": (
        None,
        "[dropout]\n[route]\nlayers=0\ngroups=3\ngroup_id=3",
        "cfg:9: [route] group_id=3 must be between 0 and groups - 1 = 2",
    ),
    "yolo channels": (
        None,
        "[yolo]\nclasses=80\nnum=3",
        "need 255 input channels, there are 3; set filters=255 in the layer before it",
    ),
    "yolo mask": (
        None,
        "[yolo]\nclasses=80\nnum=3\nmask=1,3",
        "cfg:8: [yolo] mask=1,3 must name anchors between 0 and num - 1 = 2",
    ),
    "region channels": (None, "[region]\nclasses=20\nnum=5", "need 125 input channels, there are 3"),
    "reorg": (None, "[reorg]\nstride=2", "its square the 3 channels"),
    "crop": (None, "[crop]\ncrop_height=99\ncrop_width=2", "crop 2 x 99 does not fit into 24 x 16"),
    "sort eps": (None, "[dropout]\n[dropout]\n[sort_shortcut]\nfrom=0\neps=0", "eps=0 must be above 0"),
    "sort of three": (
        None,
        "[dropout]\n[dropout]\n[sort_shortcut]\nfrom=0,1",
        "from names 2 layers; the transform is of two maps",
    ),
    "shortcut weights": (
        None,
        "[dropout]\n[dropout]\n[shortcut]\nfrom=0\nweights_type=per_feature",
        "needs weights_normalization",
    ),
    "sam": (None, "[dropout]\n[avgpool]\n[sam]\nfrom=0", "its inputs differ: (C, H, W) = (3, 1, 1) and (3, 16, 24)"),
    "scale_channels": (
        None,
        "[dropout]\n[dropout]\n[scale_channels]\nfrom=0",
        "needs (3, 1, 1) from the layer before it",
    ),
    "dilation": (
        None,
        "[convolutional]\nsize=4\npad=1\ndilation=8",
        "dilation=8 with size=4, padding=2 overruns; use pad=1, odd size",
    ),
    "share": (
        None,
        "[convolutional]\nfilters=2\n[convolutional]\nfilters=3\nshare_index=0",
        "cannot share the weights of layer 0, which has none of the same size",
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_impossible_networks_are_refused_before_memory_is_allocated(name: str) -> None:
    net, layers, message = NETS[name]
    text = "\n".join(["[net]", net or "width=24\nheight=16\nchannels=3", layers or "[avgpool]", ""])
    with pytest.raises(CfgError) as e:
        load(text)
    assert message in str(e.value)
    assert "\n" not in str(e.value)
    assert str(e.value).startswith("cfg:")


def test_a_batch_too_large_for_memory_is_refused() -> None:
    with pytest.raises(
        CfgError, match=r"^cfg: needs at least \d+\.\d GiB for weights and maps, this machine has .* smaller$"
    ):
        load("[net]\nwidth=20000\nheight=10000\nchannels=3\n[dropout]\n", batch=10_000)


def test_maps_of_different_size_are_added_in_memory_order_with_a_warning() -> None:
    text = "[net]\nwidth=4\nheight=2\nchannels=1\n[dropout]\n[avgpool]\n[shortcut]\nfrom=0\n"
    with pytest.warns(CfgWarning, match="their elements are added in memory order"):
        net = load(text)
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)
    np.testing.assert_array_equal(net.trace(x)[2].ravel(), [3.5 + 0])


TABLE = """   layer   filters  size/strd(dil)      input                output
   0 conv      4       3 x 3/ 2     24 x  16 x   3 ->   12 x   8 x   4 0.000 BF
   1 max                2x 2/ 2     12 x   8 x   4 ->    6 x   4 x   4 0.000 BF
   2 conv      6       1 x 1/ 1      6 x   4 x   4 ->    6 x   4 x   6 0.000 BF
   3 avg                             6 x   4 x   6 ->    1 x   1 x   6
   4 softmax                         1 x   1 x   6 ->    1 x   1 x   6
Total BFLOPS 0.000 
avg_outputs = 157"""  # noqa: W291 - Darknet ends the line with a blank


def test_without_an_executor_predict_runs_the_reference_engine() -> None:
    plain = gd.load_network(cfg.parse(SMALL), backend=Backend("numpy", np))
    compiled = load(SMALL)
    x = network_input(plain, 2)
    np.testing.assert_array_equal(plain.predict(x)[0], compiled.predict(x, engine="reference")[0])
    assert not plain.program_cache.programs


def test_table() -> None:
    assert load(SMALL).table() == TABLE
