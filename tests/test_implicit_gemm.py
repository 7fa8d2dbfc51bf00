"""The implicit GEMM on tensor cores: every tile, split, edge and epilogue against float64, and whole networks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from backends import plan_backend
from cuda_plans import ALL_KINDS, NETWORKS, TOLERANCE, distance, pair, program, thin
from implicit_gemm_cases import Case, check, run
from seeded import network_input

from gpudarknet import cfg, load_network
from gpudarknet.backend import cuda
from gpudarknet.io import resources
from gpudarknet.plan.cuda import dry_run
from gpudarknet.plan.cuda.algorithms import DEFAULT, IMPLICIT_GEMMS, ConvProblem, implicit_gemms, supported
from gpudarknet.plan.cuda.tiles import H100, IMAGE_TILE, TILES, DeviceProperties, Tile
from gpudarknet.plan.steps import Convolve, FeatureMap

PRECISIONS = ("fp16", "tf32")

# Each fills more than one tile of 64 x 64 in some direction, or is smaller than one
SHAPES = {
    "1 x 1": Case(C=32, H=9, W=9, F=72, size=1, pad=0),
    "3 x 3": Case(N=2, C=16, F=40),
    "channels end within 16 bytes": Case(C=13, H=8, W=9, F=21),
    "one channel more than a buffer": Case(C=33, F=33),
    "stride 2": Case(N=3, C=24, H=9, W=8, F=16, strides=(2, 2)),
    "unequal strides": Case(C=16, H=9, W=8, strides=(1, 3)),
    "dilation": Case(C=16, H=9, W=11, dilation=3, pad=3),
    "5 x 5, no padding": Case(C=8, H=9, W=8, F=9, size=5, pad=0),
    "wide padding": Case(C=8, size=3, pad=2),
    "even kernel": Case(C=16, size=2, pad=0, strides=(2, 2), H=8, W=6),
    "groups": Case(C=48, F=32, groups=2, H=9, W=9),
    "three groups of 8": Case(C=24, F=24, groups=3, N=2),
    "parts of wider maps": Case(C=16, F=24, part=8),
    "y at an odd channel": Case(C=16, F=19, part=16),
    "one pixel": Case(N=1, C=64, H=1, W=1, F=64),
    "pooled": Case(N=2, C=16, H=8, W=12, F=24, pooled=True, pre="leaky"),
    "pooled, part": Case(C=16, H=4, W=6, F=21, pooled=True, pre="relu", part=8),
    "head": Case(C=32, H=6, W=5, F=21, size=1, pad=0, anchors=3),
}
EPILOGUES = {
    **{pre: Case(C=8, F=24, pre=pre) for pre in ("leaky", "relu", "mish", "swish", "logistic")},
    "add": Case(C=8, F=24, binary="add", post="leaky"),
    "mish, add": Case(C=8, F=13, pre="mish", binary="add"),
    "sort": Case(C=8, F=24, binary="sort", post="relu"),
    "multiply": Case(C=8, F=24, pre="logistic", binary="multiply"),
    "scale": Case(C=8, F=24, binary="scale", post="swish"),
    "not vectorized": Case(C=8, F=13, pre="elu", binary="add", post="tanh"),
}
IMAGES = {
    "3 x 3": Case(N=2, C=3, H=12, W=14, F=32, pre="leaky"),
    "one channel, stride 2": Case(C=1, H=13, W=9, F=16, strides=(2, 2)),
    "7 x 7": Case(C=3, H=14, W=10, F=72, size=7, pad=3, strides=(2, 2)),
    "pooled": Case(N=2, C=3, H=8, W=12, F=16, pooled=True, pre="leaky"),
    "four channels, part": Case(C=4, H=6, W=7, F=13, part=8),
}


def sizes(tile: Tile) -> tuple[int, ...]:
    return tile.M, tile.N, tile.warp_M, tile.warp_N, tile.stages


def test_tiles_are_those_of_the_kernels():
    text = (cuda.folder() / "implicit_gemm.cu").read_text()
    found = re.findall(
        r"__launch_bounds__\((\d+)(?:, \d)?\) implicit_gemm_(\w+)\(PARAMETERS\) { IMPLICIT_GEMM\((.*)\); }", text
    )
    tiles = [(tile, "_ragged" * ragged) for tile in TILES.values() for ragged in range(1 + tile.ragged)]
    assert {name: (int(threads), numbers) for threads, name, numbers in found} == {
        tile.name + ragged: (
            tile.threads,
            f"{'true' if ragged else 'false'}, {tile.M}, {tile.N}, {tile.warp_M}, {tile.warp_N}, {tile.stages}",
        )
        for tile, ragged in tiles
    }
    text = (cuda.folder() / "image_gemm.cu").read_text()
    (numbers,) = re.findall(r"ImageTile = Tile<(.*)>;", text)
    assert numbers == ", ".join(map(str, sizes(IMAGE_TILE)))
    assert set(re.findall(r"__launch_bounds__\((\d+)\) image_gemm", text)) == {str(IMAGE_TILE.threads)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, precision, every_tile):
    case = SHAPES[name]
    for tile in every_tile.values():
        if tile.ragged or case.C // case.groups % 8 == 0:
            check(case, precision, f"implicit_gemm_{tile.name}", plan_backend())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues(name, precision, every_tile):
    check(EPILOGUES[name], precision, "implicit_gemm_64x64", plan_backend())
    check(EPILOGUES[name], precision, "implicit_gemm_128x32", plan_backend())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", IMAGES)
def test_images(name, precision):
    check(IMAGES[name], precision, "image_gemm", plan_backend())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("splits", [2, 3, 4, 6, 8])
def test_splits(splits, precision, every_tile):
    """All splits of K but one end in the same number of buffers; several tiles are reduced in one launch."""
    case = Case(C=136, H=9, W=9, F=72, size=3, pre="leaky", binary="add")
    for tile in every_tile:
        check(case, precision, f"implicit_gemm_{tile}_splitk{splits}", plan_backend())


LAUNCHES = {  # what launches differ in
    "implicit_gemm_256x128": SHAPES["3 x 3"],  # more shared memory than a kernel has without asking
    "implicit_gemm_64x64": SHAPES["channels end within 16 bytes"],
    "implicit_gemm_128x64_splitk3": SHAPES["parts of wider maps"],
    "image_gemm": IMAGES["3 x 3"],
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("algorithm", LAUNCHES)
def test_launches(device, algorithm, precision, every_tile):
    check(LAUNCHES[algorithm], precision, algorithm, device)


def test_splits_are_added_in_a_fixed_order(every_tile):
    """Each sum of a split is rounded to float32 before they are added: the result depends on the order, and it is the same."""
    case = Case(C=512, H=3, W=3, F=64, size=3)
    results = [run(case, "tf32", f"implicit_gemm_64x64_splitk{splits}", plan_backend()) for splits in (4, 4, 8)]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


@pytest.fixture
def every_tile(monkeypatch):
    """Allow tiles that the convolution does not fill, and short splits."""
    monkeypatch.setattr("gpudarknet.plan.cuda.tiles.MIN_STEPS", 1)
    monkeypatch.setattr("gpudarknet.plan.cuda.tiles.MIN_COLUMNS", 0)
    return TILES


@pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")  # resnet50 adds maps of different size
@pytest.mark.parametrize(("precision", "batch"), [("fp16", 1), ("fp16", 3), ("tf32", 1)])
@pytest.mark.parametrize("name", ["yolov4-tiny", "resnet50-sort"])
def test_networks(device, name, precision, batch, tmp_path):
    width, height = NETWORKS[name]
    reference, net = pair(thin(name), device, tmp_path, 3, width=width, height=height)
    x = network_input(net, 2, batch)
    run = program(net, batch, precision, choices={DEFAULT: "implicit_gemm"}, poison=True)
    assert set(run.schedule.algorithms.values()) <= {*IMPLICIT_GEMMS, "image_gemm"}
    assert not run.schedule.im2col_consumers
    got = [device.to_numpy(y) for y in run.run(device.asarray(x))]
    assert distance(got, reference.predict(x, engine="reference")) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_kind_of_step(precision, tmp_path):
    """Where a convolution has no implicit GEMM, the rule's algorithm runs."""
    reference, net = pair(cfg.parse(ALL_KINDS), plan_backend(), tmp_path)
    x = network_input(net, 2, 2)
    run = program(net, 2, precision, choices={DEFAULT: "implicit_gemm"}, poison=True)
    assert distance(run.run(x), reference.predict(x, engine="reference")) < TOLERANCE[precision]


def test_one_launch_per_convolution():
    """Batch 64: the number of convolutions and a few more."""
    be = dry_run.backend()
    for name, convolutions, most in (("yolov4-tiny", 21, 30), ("yolov3", 75, 90)):
        net = load_network(resources.bundled_cfg(name), backend=be)
        run = program(net, 64, "fp16", choices={DEFAULT: "implicit_gemm"})
        assert len(run.schedule.algorithms) == convolutions
        assert convolutions <= len(run.launches) + run.input_stage.launch_count < most


def problem(case: Case, precision: str, device: DeviceProperties = H100) -> ConvProblem:
    x, y = FeatureMap((case.C, case.H, case.W)), FeatureMap((case.F, *case.conv_output_size))
    step = Convolve(layers=(0,), xs=(x,), y=y, w={}, size=case.size, strides=case.strides, dilation=case.dilation, pad=case.pad,
                    groups=case.groups)  # fmt: skip
    return ConvProblem(step, case.N, precision, device)


def test_where_it_runs():
    case = Case(N=64, C=256, H=26, W=26, F=256)
    names = [name for name in supported(problem(case, "fp16")) if name in IMPLICIT_GEMMS]
    assert names == [name for name in IMPLICIT_GEMMS if "splitk" not in name]
    assert not set(supported(problem(case, "fp32"))) & {
        *IMPLICIT_GEMMS,
        "image_gemm",
    }  # no tensor cores compute in float32
    turing, ampere = DeviceProperties("T4", 75, 40, 64 << 10), DeviceProperties("RTX 3090", 86, 82, 99 << 10)
    assert "implicit_gemm_128x128" in supported(problem(case, "fp16", turing))
    assert "implicit_gemm_256x128" not in supported(problem(case, "fp16", turing))  # 72 KiB of shared memory
    assert "implicit_gemm_256x128" in supported(problem(case, "tf32", ampere))
    assert not set(supported(problem(case, "tf32", turing))) & {*IMPLICIT_GEMMS}
    assert not set(supported(problem(case, "fp16", DeviceProperties("V100", 70, 80, 96 << 10)))) & {*IMPLICIT_GEMMS}
    assert implicit_gemms(problem(Case(C=3), "fp16")) == ["image_gemm"]
    assert implicit_gemms(problem(Case(C=24, F=12, groups=12), "fp16")) == []  # groups of two channels
    small = implicit_gemms(problem(Case(C=512, H=13, W=13, F=1024), "fp16"))
    assert "splitk" in small[0]  # 13 x 13 pixels do not occupy 132 multiprocessors otherwise
