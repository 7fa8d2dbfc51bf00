"""Plans on CUDA without a GPU: every kernel of plans, networks through host-cuda and a cuBLAS made of NumPy, and the order of
what CuPy is asked for."""

from __future__ import annotations

import re
from functools import cache

import conftest
import numpy as np
import pytest
from fake_cublas import FakeCublas
from seeded import network_input, write_weights

from gpudarknet import cfg, load_network
from gpudarknet.backend import Backend
from gpudarknet.backend.cuda import Launcher, bind
from gpudarknet.errors import OutOfMemoryError
from gpudarknet.io import resources
from gpudarknet.ops import activation, im2col, pool, shortcut, upsample, yolo
from gpudarknet.ops.activation import NAMES
from gpudarknet.plan import cuda
from gpudarknet.plan.compile import compile
from gpudarknet.plan.cuda import program as program_module
from gpudarknet.plan.cuda.epilogue import BINARY_OPS, VECTOR_ACTIVATIONS, passes
from gpudarknet.plan.steps import Activate, Add, FeatureMap, Multiply, SortShortcut

NUMPY = Backend("numpy", np)
LIBRARY = FakeCublas()


@cache
def plan_backend() -> Backend:
    """NumPy arrays through the kernels and a fake cuBLAS; memory that nobody has written holds NaN."""
    return conftest.Poisoned("host-cuda", np, conftest.backend_for("host-cuda").launch, LIBRARY.open, "cuda")


# --- kernels -----------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 2, 3, 255), (3, 13, 6, 8), (2, 4, 3, 16)]  # N, H, W, C
PLACES = {"whole": lambda C: (C, 0), "odd part": lambda C: (C + 5, 3), "even part": lambda C: (-(-C // 8) * 8 + 24, 8)}


class Maps:
    """A map (pixels, C) inside a wider array: `a` is what kernels receive, `values` what they should read."""

    def __init__(self, be, pixels, C, place, dtype, rng=None):
        self.ld, self.start = PLACES[place](C)
        whole = np.full((pixels, self.ld), 7, dtype)
        self.C, self.part = C, np.s_[:, self.start : self.start + C]
        if rng is not None:
            whole[self.part] = np.round(rng.normal(0, 2, (pixels, C)), 2)  # rounded: equal values are common
        self.values, self.be = whole[self.part].astype(np.float64), be
        self.whole = be.asarray(whole)
        self.a = self.whole.reshape(-1)[self.start : self.start + (pixels - 1) * self.ld + C]

    def nchw(self, N, H, W):
        return np.ascontiguousarray(self.values.reshape(N, H, W, self.C).transpose(0, 3, 1, 2)).astype(np.float32)

    def result(self):
        """What a kernel has written; nothing else may have changed."""
        whole = self.be.to_numpy(self.whole).copy()
        written = whole[self.part].astype(np.float64)
        whole[self.part] = 7
        assert (whole == 7).all()
        return written


def can_vectorize(dtype, *maps):
    """Whether an Emitter would vectorize."""
    V = 16 // np.dtype(dtype).itemsize
    return all(m.C % V == 0 and m.ld % V == 0 and m.start % V == 0 for m in maps)


def threads(dtype, pixels, C, vectorized):
    return pixels * C // (16 // np.dtype(dtype).itemsize if vectorized else 1)


def rows(a):
    """(N, C, H, W) -> (pixels, C)"""
    return np.asarray(a).transpose(0, 2, 3, 1).reshape(-1, a.shape[1])


def close(got, want, dtype):
    """One rounding of the storage type, and some of float32."""
    rtol, atol = (1e-3, 1e-3) if dtype == np.float16 else (1e-5, 1e-5)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


@pytest.fixture(params=[np.float32, np.float16], ids=["float32", "float16"])
def dtype(request):
    return request.param


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request):
    return request.param


@pytest.fixture(params=PLACES)
def place(request):
    return request.param


@pytest.fixture
def rng(shape):
    return np.random.default_rng(shape)


def test_layout_conversions(kernels, dtype, shape, place, rng):
    N, H, W, C = shape
    x = rng.normal(0, 1, (N, C, H, W)).astype(dtype).astype(np.float32)
    y = Maps(kernels, N * H * W, C, place, dtype)
    kernels.launch("nhwc.from_nchw", x.size, kernels.asarray(x), y.a, x.size, C, H * W, y.ld)
    np.testing.assert_array_equal(y.result(), rows(x))
    back = kernels.empty(x.shape)
    count = 256 * N * -(-C // 32) * -(-(H * W) // 32)
    kernels.launch("nhwc.to_nchw", count, y.a, back, C, H * W, y.ld, block=256)
    np.testing.assert_array_equal(kernels.to_numpy(back), x)
    together = kernels.empty((N * H * W, C))
    kernels.launch("nhwc.pack_rows", x.size, y.a, together, x.size, C, y.ld)
    np.testing.assert_array_equal(kernels.to_numpy(together), rows(x))


# size, stride (vertical, horizontal), dilation, pad
WINDOWS = [(1, (2, 1), 1, 0), (3, (1, 1), 1, 1), (3, (2, 2), 1, 1), (3, (1, 2), 2, 2), (2, (1, 1), 1, 1)]


def outputs(H, W, size, stride, dilation, pad):
    reach = (size - 1) * dilation + 1
    return (H + 2 * pad - reach) // stride[0] + 1, (W + 2 * pad - reach) // stride[1] + 1


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_im2col(kernels, dtype, shape, place, rng, window):
    N, H, W, C = shape
    H, W = H + 1, W + 2
    size, stride, dilation, pad = window
    OH, OW = outputs(H, W, *window)
    x = Maps(kernels, N * H * W, C, place, dtype, rng)
    want = im2col.im2col(NUMPY, x.nchw(N, H, W), size, stride, dilation, pad, OH, OW)  # (N, C, size, size, OH, OW)
    want = want.reshape(N, C, size * size, OH * OW).transpose(0, 3, 2, 1).reshape(N * OH * OW, size * size, C)
    for groups in {1, C if C < 16 else 4} if C != 255 else {1, 3}:
        G = C // groups
        grouped = want.reshape(-1, size * size, groups, G).transpose(0, 2, 1, 3).reshape(N * OH * OW, -1)
        vectorized = can_vectorize(dtype, x) and G % (16 // np.dtype(dtype).itemsize) == 0
        for first, last in ((0, N * OH * OW), (N * OH * OW // 3, max(1, N * OH * OW - 1))):  # all pixels, then some
            col = Maps(kernels, last - first, C * size * size, "even part" if vectorized else "odd part", dtype)
            n = threads(dtype, (last - first) * size, C, vectorized)
            sizes = (n, first, C, G, H, W, OH, OW, size, *stride, dilation, pad, x.ld, col.ld, vectorized)
            kernels.launch("nhwc.im2col", n, x.a, col.a, *sizes)
            np.testing.assert_array_equal(col.result(), grouped[first:last])


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_direct_convolution(kernels, dtype, place, window, pooled):
    size, stride, dilation, pad = window
    for (N, H, W, C), F in (((2, 8, 7, 3), 5), ((1, 7, 9, 1), 16), ((2, 6, 8, 4), 8)):
        rng = np.random.default_rng(F)
        OH, OW = outputs(H, W, *window)
        x = Maps(kernels, N * H * W, C, place, dtype, rng)
        w, b = rng.normal(0, 0.3, (size, size, C, F)).astype(np.float32), rng.normal(0, 1, F).astype(np.float32)
        patches = im2col.im2col(NUMPY, x.nchw(N, H, W), size, stride, dilation, pad, OH, OW)
        want = np.einsum("ncpqij,pqcf->nijf", patches, w, dtype=np.float64)
        if pooled:
            OH, OW = OH // 2, OW // 2
            want = want[:, : 2 * OH, : 2 * OW].reshape(N, OH, 2, OW, 2, F).max(axis=(2, 4))
        want = activation.FUNCTIONS["leaky"][0](np, want + b)
        if pooled and outputs(H, W, *window) != (2 * OH, 2 * OW):
            continue  # plans pool even maps only
        y = Maps(kernels, N * OH * OW, F, "even part" if F % 8 == 0 else "odd part", dtype)
        vectorized = can_vectorize(dtype, y)
        n = threads(dtype, N * OH * OW, F, vectorized)
        strides = (H * W * x.ld, 1, x.ld)
        geometry = (C, H, W, OH, OW, size, *stride, dilation, pad)
        sizes = (n, F, *strides, *geometry, y.ld, NAMES.index("leaky"), pooled, vectorized)
        kernels.launch("direct.convolve", n, x.a, *map(kernels.asarray, (w, b)), y.a, *sizes)
        close(y.result(), want.reshape(-1, F), dtype)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_depthwise(kernels, dtype, shape, place, rng, window):
    N, H, W, C = shape
    H, W = H + 1, W + 2
    size, stride, dilation, pad = window
    OH, OW = outputs(H, W, *window)
    x, y = Maps(kernels, N * H * W, C, place, dtype, rng), Maps(kernels, N * OH * OW, C, "even part", dtype)
    w = rng.normal(0, 1, (size * size, C)).astype(dtype)
    vectorized = can_vectorize(dtype, x, y)
    n = threads(dtype, N * OH * OW, C, vectorized)
    sizes = (n, C, H, W, OH, OW, size, *stride, dilation, pad, x.ld, y.ld, vectorized)
    kernels.launch("direct.depthwise", n, x.a, kernels.asarray(w), y.a, *sizes)
    patches = im2col.im2col(NUMPY, x.nchw(N, H, W), size, stride, dilation, pad, OH, OW).reshape(N, C, size**2, OH, OW)
    close(y.result(), rows((patches * w.T.reshape(C, -1, 1, 1)).sum(axis=2)), dtype)


def epilogue_reference(x, bias, other, pre, binary, eps, slope, post):
    """An epilogue in float64."""
    v = activation.FUNCTIONS[pre][0](np, x + bias)
    if binary == "sort":
        v = shortcut.sort_shortcut.reference(NUMPY, v[None], np.broadcast_to(other, v.shape)[None], eps, slope)[0]
    elif binary:
        v = v + other if binary == "add" else v * other
    return activation.FUNCTIONS[post][0](np, v)


BINARY_CODES = {None: 0, "add": BINARY_OPS[Add], "sort": BINARY_OPS[SortShortcut], "multiply": BINARY_OPS[Multiply]}


def check_epilogue(
    be, dtype, sizes, place, rng, pre="linear", binary=None, post="linear", broadcast="all", slope=0.0, bias=True
):
    N, H, W, C = sizes
    P = H * W
    x, y = Maps(be, N * P, C, place, dtype, rng), Maps(be, N * P, C, "even part", dtype)
    Co, Po = {"all": (C, P), "channels": (C, 1), "pixels": (1, P)}[broadcast]
    other = Maps(be, N * Po, Co, place, dtype, rng)
    b = rng.normal(0, 1, C).astype(np.float32)
    seen = np.broadcast_to(other.values.reshape(N, Po, Co), (N, P, C)).reshape(N * P, C)
    want = epilogue_reference(x.values, b if bias else 0, seen, pre, binary, 0.01, slope, post)
    vectorized = {pre, post} <= VECTOR_ACTIVATIONS and can_vectorize(dtype, x, y)
    vectorized = vectorized and (binary is None or Co == 1 or can_vectorize(dtype, other))
    n = threads(dtype, N * P, C, vectorized)
    codes = (NAMES.index(pre), BINARY_CODES[binary], 0.01, slope, NAMES.index(post), vectorized)
    pointers = (be.asarray(b) if bias else None, other.a if binary else None)
    be.launch("epilogue.epilogue", n, x.a, *pointers, y.a, n, C, P, Co, Po, x.ld, other.ld, y.ld, *codes)
    close(y.result(), want, dtype)


@pytest.mark.parametrize("kind", NAMES)
def test_epilogue_activates(kernels, dtype, kind):
    for shape, place in (((2, 5, 7, 3), "odd part"), ((2, 4, 3, 16), "even part")):
        rng = np.random.default_rng(NAMES.index(kind))
        if kind != "stair":  # it jumps, where float16 and a bias round differently
            check_epilogue(kernels, dtype, shape, place, rng, pre=kind)
        check_epilogue(kernels, dtype, shape, place, rng, pre=kind, bias=False)


@pytest.mark.parametrize(
    ("binary", "broadcast"),
    [
        ("add", "all"),
        ("sort", "all"),
        *(("multiply", broadcast) for broadcast in ("all", "channels", "pixels")),
    ],
)
def test_epilogue_binary_operations(kernels, dtype, shape, place, rng, binary, broadcast):
    for slope in (0.0, 0.1):
        check_epilogue(kernels, dtype, shape, place, rng, "leaky", binary, "relu", broadcast, slope)
        check_epilogue(kernels, dtype, shape, place, rng, "linear", binary, "linear", broadcast, slope, bias=False)


def test_epilogue_in_place(kernels, dtype, shape, place, rng):
    N, H, W, C = shape
    x, b = Maps(kernels, N * H * W, C, place, dtype, rng), kernels.asarray(rng.normal(0, 1, C), np.float32)
    vectorized = can_vectorize(dtype, x)
    n = threads(dtype, N * H * W, C, vectorized)
    codes = (NAMES.index("mish"), 0, 0.0, 0.0, 0, vectorized)
    kernels.launch("epilogue.epilogue", n, x.a, b, None, x.a, n, C, H * W, C, H * W, x.ld, 0, x.ld, *codes)
    bias = kernels.to_numpy(b).astype(np.float64)
    close(x.result(), activation.FUNCTIONS["mish"][0](np, x.values + bias), dtype)


def test_maxpool_epilogue(kernels, dtype, shape, place, rng):
    N, OH, OW, C = shape
    x, y = Maps(kernels, 4 * N * OH * OW, C, place, dtype, rng), Maps(kernels, N * OH * OW, C, "even part", dtype)
    b = rng.normal(0, 1, C).astype(np.float32)
    vectorized = can_vectorize(dtype, x, y)
    n = threads(dtype, N * OH * OW, C, vectorized)
    sizes = (n, C, OW, x.ld, y.ld, NAMES.index("leaky"), vectorized)
    kernels.launch("epilogue_pool.maxpool_epilogue", n, x.a, kernels.asarray(b), y.a, *sizes)
    largest = x.values.reshape(N, OH, 2, OW, 2, C).max(axis=(2, 4)).reshape(-1, C) + b
    close(y.result(), np.where(largest > 0, largest, 0.1 * largest), dtype)


# size, stride, total padding, as in tests/op_cases/pool.py
@pytest.mark.parametrize(
    "window", [(2, (2, 2), 1), (2, (1, 1), 1), (5, (1, 1), 4), (3, (2, 1), 2), (4, (1, 3), 3)], ids=str
)
def test_maxpool(kernels, dtype, shape, place, rng, window):
    (N, H, W, C), (size, stride, padding) = shape, window
    H, W = H + 1, W + 1
    OH, OW = ((length + padding - size) // s + 1 for length, s in zip((H, W), stride, strict=True))
    x, y = Maps(kernels, N * H * W, C, place, dtype, rng), Maps(kernels, N * OH * OW, C, "even part", dtype)
    vectorized = can_vectorize(dtype, x, y)
    n = threads(dtype, N * OH * OW, C, vectorized)
    sizes = (n, C, H, W, OH, OW, size, *stride, padding // 2, x.ld, y.ld, vectorized)
    kernels.launch("nhwc.maxpool", n, x.a, y.a, *sizes)
    np.testing.assert_array_equal(y.result(), rows(pool.maxpool(NUMPY, x.nchw(N, H, W), size, stride, padding, OH, OW)))


def test_maxpool_keeps_a_nan(kernels):
    x, y = kernels.asarray([[1.0], [np.nan], [3.0], [2.0]], np.float32), kernels.zeros((1, 1))
    kernels.launch("nhwc.maxpool", 1, x, y, 1, 1, 2, 2, 1, 1, 2, 2, 2, 0, 1, 1, False)
    assert np.isnan(kernels.to_numpy(y)).all()


@pytest.mark.parametrize("s", [1, 2, 3])
def test_upsample(kernels, dtype, shape, place, rng, s):
    N, H, W, C = shape
    x, y = Maps(kernels, N * H * W, C, place, dtype, rng), Maps(kernels, N * H * s * W * s, C, "even part", dtype)
    vectorized = can_vectorize(dtype, x, y)
    n = threads(dtype, N * H * s * W * s, C, vectorized)
    kernels.launch("nhwc.upsample", n, x.a, y.a, n, C, H, W, s, 0.5, x.ld, y.ld, vectorized)
    close(y.result(), rows(upsample.upsample(NUMPY, x.nchw(N, H, W), s, 0.5)), dtype)


@pytest.mark.parametrize(("scale", "new_coords"), [(1.0, 0), (1.2, 0), (2.0, 1)])
def test_yolo(kernels, dtype, place, scale, new_coords):
    N, H, W, A, E = 2, 3, 5, 3, 7
    x, y = (
        Maps(kernels, N * H * W, A * E, place, dtype, np.random.default_rng(1)),
        Maps(kernels, N * H * W, A * E, place, dtype),
    )
    n, b = N * H * W * A * E, np.random.default_rng(2).normal(0, 1, A * E).astype(np.float32)
    for bias in (None, b):
        given = None if bias is None else kernels.asarray(bias)
        kernels.launch("nhwc.yolo", n, x.a, given, y.a, n, A * E, E, scale, new_coords, x.ld, y.ld)
        seen = x.nchw(N, H, W) + (0 if bias is None else bias.reshape(-1, 1, 1))
        close(y.result(), rows(yolo.yolo_activate(NUMPY, seen, A, scale, new_coords)), dtype)


@pytest.mark.parametrize(
    "sizes", [((5, 7, 3), (5, 7, 5)), ((5, 7, 6), (5, 7, 2)), ((4, 6, 8), (2, 3, 16)), ((2, 3, 5), (4, 6, 3))]
)
def test_add_mismatched(kernels, dtype, place, sizes):
    (H, W, C), (Hb, Wb, Cb) = sizes
    N, rng = 2, np.random.default_rng(3)
    a, b = Maps(kernels, N * H * W, C, place, dtype, rng), Maps(kernels, N * Hb * Wb, Cb, "odd part", dtype, rng)
    x, z, n = a.nchw(N, H, W), b.nchw(N, Hb, Wb), N * H * W * C
    for kind, want in (
        (Add, shortcut.shortcut(NUMPY, (x, z), None)),
        (SortShortcut, shortcut.sort_shortcut(NUMPY, x, z, 0.01, 0.1)),
    ):
        y = Maps(kernels, N * H * W, C, place, dtype)
        codes = (n, C, H * W, Cb, Hb * Wb, a.ld, b.ld, y.ld, BINARY_OPS[kind], 0.01, 0.1)
        kernels.launch("nhwc.add_mismatched", n, a.a, b.a, y.a, *codes)
        close(y.result(), rows(want), dtype)


# --- networks ----------------------------------------------------------------------------------------------------------

NETWORKS = {  # name -> (width, height)
    "yolov2-tiny": (96, 64), "yolov3-tiny": (96, 64), "yolov4-tiny": (64, 96), "yolov7-tiny": (96, 64),
    "yolov2": (64, 96), "yolov3": (64, 96), "yolov4": (96, 64), "yolov4-csp": (64, 128),
    "darknet19": (96, 64), "resnet50-sort": (64, 96),
}  # fmt: skip
# Parts of the largest number: fp32 rounds in another order, over up to 160 layers; 11 bits are left of tf32 and fp16.
TOLERANCE = {"fp32": 2e-5, "tf32": 1e-2, "fp16": 1e-2}


def distance(got, want):
    assert [g.shape for g in got] == [w.shape for w in want]
    assert {g.dtype for g in got} == {np.dtype(np.float32)}
    return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))


def program(net, batch, precision="fp32", be=None, **options):
    plan = compile(net.nodes, net.weights, net.heads, net.net.input, batch)
    return cuda.Program(plan, be or net.backend, precision, **options)


def thin_text(name):
    """A shipped cfg with a quarter of its filters, so that its weights are a sixteenth; heads keep theirs."""
    text = resources.bundled_cfg(name).read_text()
    return re.sub(r"filters=(\d+)", lambda m: f"filters={int(m[1]) // (4 if int(m[1]) % 32 == 0 else 1)}", text)


def thin(name):
    return cfg.parse(thin_text(name))


@pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")  # resnet50 adds maps of different size
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_what_the_reference_engine_says(name, tmp_path):
    (W, H), config = NETWORKS[name], thin(name)
    reference = load_network(config, backend="numpy", width=W, height=H)
    weights = write_weights(reference, tmp_path / "seeded.weights", 5)
    reference, net = (load_network(config, weights, backend=be, width=W, height=H) for be in ("numpy", plan_backend()))
    x, packed = network_input(net, 5, batch=3), {}
    want = reference.predict(x, engine="reference")
    run = program(net, 3, packed_weights=packed, poison=True)
    assert run.fallbacks == []  # every shipped network can be captured
    got = run.run(x)
    assert distance(got, want) < TOLERANCE["fp32"]
    assert (
        distance(program(net, 1, packed_weights=packed, poison=True).run(x[1:2]), [y[1:2] for y in got])
        < TOLERANCE["fp32"]
    )
    assert distance(program(net, 3, "fp16", poison=True).run(x), want) < TOLERANCE["fp16"]


ALL_KINDS = """[net]
width=36
height=24
channels=3

[convolutional]
filters=12
size=3
pad=1
activation=mish
batch_normalize=1

[convolutional]
filters=12
groups=12
size=3
pad=1
stride_x=2
stride_y=1
activation=swish
batch_normalize=1

[convolutional]
filters=24
groups=3
size=3
pad=1
dilation=2
activation=relu6

[convolutional]
filters=24
groups=4
size=1
activation=leaky

[shortcut]
from=-2
activation=leaky

[avgpool]

[convolutional]
filters=24
size=1
activation=logistic

[scale_channels]
from=-3

[convolutional]
filters=24
size=1
activation=logistic

[sam]
from=-2

[sort_shortcut]
from=-6
activation=relu

[shortcut]
from=-2,-4
activation=linear

[maxpool]
size=5
stride=1

[upsample]
stride=2

[dropout]
probability=.5

[route]
layers=-1
groups=2
group_id=1

[convolutional]
filters=7
size=2
stride=2
activation=elu

[route]
layers=-1,-5,-6

[activation]
activation=tanh

[convolutional]
filters=21
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=10,12,14,16,18,20
classes=2
num=3
scale_x_y=1.1
"""


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_every_kind_of_step(tmp_path, precision, batch):
    config = cfg.parse(ALL_KINDS)
    weights = write_weights(load_network(config, backend="numpy"), tmp_path / "seeded.weights", 1)
    net = load_network(config, weights, backend=plan_backend())
    x = network_input(net, 2, batch)
    want = load_network(config, weights, backend="numpy").predict(x, engine="reference")
    run = program(net, batch, precision, poison=True)
    assert run.fallbacks == []
    names = {type(step).name for step in run.schedule.steps}
    assert names == {"convolve", "copy", "maxpool", "upsample", "yolo", "fallback"}
    methods = {"gemm", "im2col, gemm", "im2col by layer 1, gemm", "depthwise", "direct"}
    assert set(run.algorithms.values()) == methods
    first = run.run(x)
    assert distance(first, want) < TOLERANCE[precision]
    if precision == "tf32":
        assert distance(first, want) > 1e-5  # it does use TF32
    for got, again in zip(first, run.run(x), strict=True):
        assert got is not again and not np.shares_memory(got, again)
        np.testing.assert_array_equal(got, again)


class Compiling(Launcher):
    """A launcher that runs kernels on the host: launched and asked are pairs (file, T)."""

    def __init__(self):
        self.on_host, self.launched, self.asked = conftest.backend_for("host-cuda").launch, [], set()

    def compile(self, files, T):
        self.asked |= {(file, T) for file in files}

    def __call__(self, kernel, threads, *args, block=256):
        T, _ = bind(kernel, args, np.ndarray)
        file = kernel.partition(".")[0]
        assert (file, T) in self.asked, kernel
        self.launched.append((file, T))
        self.on_host(kernel, threads, *args, block=block)


@pytest.mark.parametrize(("precision", "T"), [("fp32", "float"), ("fp16", "half_t")])
@pytest.mark.parametrize(
    "text", [ALL_KINDS, thin_text("yolov4-tiny"), thin_text("yolov3")], ids=["all", "v4-tiny", "v3"]
)
def test_a_program_asks_for_the_kernel_files_that_it_needs(tmp_path, text, precision, T):
    launch, config = Compiling(), cfg.parse(text)
    be = conftest.Poisoned("host-cuda", np, launch, LIBRARY.open, "cuda")
    weights = write_weights(load_network(config, backend="numpy"), tmp_path / "seeded.weights", 1)
    net = load_network(config, weights, backend=be, width=64, height=32)
    run = program(net, 1, precision)
    assert launch.asked == set()  # not for a program that is only described
    run.run(network_input(net, 1))
    assert launch.asked == set(launch.launched)
    assert {T} == {storage for _, storage in launch.asked}


@pytest.mark.parametrize("batch", [1, 3])
def test_im2col_and_max_pool_in_chunks(monkeypatch, batch):
    """A budget of 40 kB makes the convolution before a pool go image by image, in parts of some rows."""
    text = "[net]\nwidth=40\nheight=24\nchannels=5\n[convolutional]\nfilters=5\nsize=3\npad=1\nactivation=leaky\n"
    net = load_network(cfg.parse(text + "[maxpool]\nsize=2\nstride=2\n"), backend=plan_backend())
    x = network_input(net, 1, batch)
    whole = program(net, batch)
    assert whole.plan.steps[0].pooled
    monkeypatch.setattr("gpudarknet.plan.cuda.algorithms.MAX_WORKSPACE", 40_000)
    parts = program(net, batch, poison=True)
    assert parts.algorithms[parts.schedule.steps[0]] == "im2col, gemm in 5 chunks"
    assert len(parts.launches) == batch * (5 * 2 + 1)
    assert {name for _, name in parts.schedule.arena.workspaces} == {"im2col", "conv_output"}
    assert all(4 * size <= 40_000 for size in parts.schedule.arena.workspaces.values())
    np.testing.assert_allclose(parts.run(x)[0], whole.run(x)[0], rtol=1e-5, atol=1e-6)


NEIGHBOURS = """[net]
width=12
height=8
channels=5
[convolutional]
filters=5
size=3
pad=1
activation=leaky
[convolutional]
filters=3
size=1
activation=relu
[route]
layers=-2,-1
"""


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_neighbours_in_a_larger_map_do_not_touch(tmp_path, precision):
    """5 and 3 channels share pixels of 8, the later written first or last; neither may be rounded up to 8."""
    for text in (NEIGHBOURS, NEIGHBOURS.replace("layers=-2,-1", "layers=-1,-2")):
        config = cfg.parse(text)
        weights = write_weights(load_network(config, backend="numpy"), tmp_path / "seeded.weights", 1)
        net = load_network(config, weights, backend=plan_backend())
        x = network_input(net, 1, 2)
        want = load_network(config, weights, backend="numpy").predict(x, engine="reference")
        run = program(net, 2, precision, poison=True)
        assert [step.y.base is None for step in run.schedule.steps] == [False, False]
        assert distance(run.run(x), want) < TOLERANCE[precision]


SMALL = "[net]\nwidth=12\nheight=8\nchannels=5\n[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=leaky\n"
# A [region] that a layer reads is row-major, not a map with channels.
FALLBACK = "[convolutional]\nfilters=8\n[region]\nclasses=3\n[convolutional]\nfilters=8\n[region]\nclasses=3\n"


def test_other_layers_fall_back_to_forward(tmp_path):
    net = load_network(cfg.parse(SMALL + FALLBACK), backend=plan_backend())
    x = network_input(net, 1, 2)
    want = load_network(cfg.parse(SMALL + FALLBACK), backend="numpy").predict(x, engine="reference")
    run = program(net, 2)
    assert distance(run.run(x), want) < 2e-6
    assert run.eager_reason == "backend host-cuda has no CUDA streams"
    assert run.fallbacks == ["region"]


def test_what_no_output_needs_is_not_computed():
    net = load_network(
        cfg.parse("[net]\nwidth=4\nheight=3\nchannels=8\n[avgpool]\n[softmax]\n[cost]\n"), backend=plan_backend()
    )
    assert [step.note() for step in program(net, 1).schedule.steps] == ["[avgpool]", "[softmax]"]


def test_passes():
    m = FeatureMap((1, 1, 1))
    leaky, relu, add, sort, multiply = (
        Activate("leaky"),
        Activate("relu"),
        Add(m),
        SortShortcut(m, 0.1, 0.0),
        Multiply(m),
    )
    assert passes([]) == [("linear", None, "linear")]
    assert passes([leaky, add, relu]) == [("leaky", add, "relu")]
    assert passes([sort, multiply]) == [("linear", sort, "linear"), ("linear", multiply, "linear")]
    assert passes([leaky, relu]) == [("leaky", None, "linear"), ("relu", None, "linear")]


def test_predict_runs_plans(monkeypatch):
    net = load_network(cfg.parse(SMALL), backend=plan_backend())
    x = network_input(net, 1, 2)
    (want,) = net.predict(x, engine="reference")
    LIBRARY.calls.clear()
    assert distance(net.predict(x), [want]) < 2e-6
    assert [name for name, _ in LIBRARY.calls if "Gemm" in name] == ["cublasGemmEx"]
    net.predict(x, precision="fp16")
    assert LIBRARY.calls[-1][1]["Atype"] == 2
    assert len(net.program_cache.programs) == 2
    net.weights[0]["bias"][:] = 1e3
    net.program_cache.clear()
    assert (net.predict(x)[0] > 900).all()


def test_an_input_that_is_here_is_not_copied():
    given = []
    be = plan_backend()

    def launch(kernel, threads, *args, block=256):
        given.append((kernel, args[0]))
        be.launch(kernel, threads, *args, block=block)

    net = load_network(cfg.parse(SMALL), backend=Backend("host-cuda", np, launch, LIBRARY.open, "cuda"))
    x = network_input(net, 1)
    net.predict(x)
    assert given[0] == ("nhwc.from_nchw", x) and given[0][1] is x


def test_describe():
    net = load_network(cfg.parse(SMALL), backend=plan_backend())
    text = program(net, 2, "fp16").describe()
    assert "3 x 3 / 1" in text and text.splitlines()[1].endswith("im2col, gemm")
    assert text.splitlines()[-1] == (
        "CUDA, fp16, eagerly (backend host-cuda has no CUDA streams): 3 launches; MiB on the device for batch 2: "
        "arena 0.0, weights 0.0, cuBLAS 32.0"
    )


# --- streams, graphs and memory ----------------------------------------------------------------------------------------


def on_device(text):
    """Return a network on CuPy, with the reference on NumPy."""
    be = conftest.backend_for("cuda")
    return load_network(cfg.parse(text), backend=be), load_network(cfg.parse(text), backend="numpy")


def test_a_plan_is_captured_after_two_warm_ups_and_replayed(emulator):
    net, numpy = on_device(SMALL)
    x, x2 = (network_input(net, seed, 2) for seed in (1, 2))
    there, there2 = net.input(x), net.input(x2)
    with emulator.counting() as first:
        (got,) = net.predict(there)
    assert (first["captures"], first["gemms"], first["graph launches"], first["graph nodes"]) == (1, 3, 1, 3)
    with emulator.counting() as second:
        (got2,) = net.predict(there2)
    # The input is laid out, the graph replayed, the result brought to the order of NumPy's arrays; nobody waits.
    assert (second["launches"], second["graph launches"], second["graph nodes"]) == (2, 1, 3)
    assert not (second["gemms"] or second["captures"] or second["waits"] or second["allocations"])
    for y, given in ((got, x), (got2, x2)):
        np.testing.assert_allclose(y.get(), numpy.predict(given, engine="reference")[0], rtol=1e-5, atol=1e-6)
    (run,) = net.program_cache.programs.values()
    assert "CUDA, fp32, as a CUDA graph: 3 launches" in run.describe()


def test_programs_share_one_stream_and_handle(emulator):
    nets = [on_device(SMALL)[0] for _ in range(2)]
    for n, batch, precision in ((nets[0], 1, "fp32"), (nets[0], 2, "fp16"), (nets[1], 1, "fp32")):
        n.predict(network_input(n, 1, batch), precision=precision)
    runs = [run for n in nets for run in n.program_cache.programs.values()]
    assert len(runs) == 3 and len({id(run.stream_context) for run in runs}) == 1


def test_a_capture_that_something_spoils_is_tried_again(emulator):
    net, numpy = on_device(SMALL)
    x = network_input(net, 1)
    with emulator.failing("cublasGemmEx", nth=3):  # two are warm-ups
        (got,) = net.predict(x)
    (run,) = net.program_cache.programs.values()
    assert run.eager_reason is None and run.graph is not None
    np.testing.assert_allclose(got.get(), numpy.predict(x, engine="reference")[0], rtol=1e-5, atol=1e-6)


def test_where_capture_fails_the_plan_runs_eagerly(emulator, monkeypatch):
    net, numpy = on_device(SMALL)
    x = network_input(net, 1)
    eagerly = cuda.Program._eager

    def wait(self):
        eagerly(self)
        self.stream_context.stream.synchronize()  # which is not allowed while capturing

    monkeypatch.setattr(cuda.Program, "_eager", wait)
    for _ in range(2):
        got = net.predict(x)[0].get()
        np.testing.assert_allclose(got, numpy.predict(x, engine="reference")[0], rtol=1e-5, atol=1e-6)
    (run,) = net.program_cache.programs.values()
    assert run.eager_reason.startswith("capture failed: cudaErrorStreamCaptureUnsupported: ")
    assert f"CUDA, fp32, eagerly ({run.eager_reason}): 3 launches" in run.describe()


def test_fallback_layers_are_not_captured(emulator):
    run = program(on_device(SMALL + FALLBACK)[0], 1)
    assert run.eager_reason == "fallback layers: region"
    assert program(on_device(SMALL)[0], 1, graph=False).eager_reason == "requested"


@pytest.fixture
def free_memory(emulator):
    """Return free_memory(bytes): let so many be free on the device, and return what a plan reports as free."""
    import cupy

    before = emulator.library().emulator_get(b"memory")

    def leave(size):
        pool = cupy.get_default_memory_pool()
        cupy.cuda.Device().synchronize()
        pool.free_all_blocks()
        free, total = cupy.cuda.runtime.memGetInfo()
        emulator.configure(memory=total - free + size)
        return size + pool.free_bytes()

    yield leave
    emulator.configure(memory=before)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_would(free_memory, monkeypatch):
    net, _ = on_device(SMALL)
    net.predict(network_input(net, 1))
    net.program_cache.programs.clear()
    # An image: 96 pixels, two maps of 8 channels, im2col rows of 45 elements in 48, a result of 4 channels.
    each = 4 * 96 * (2 * 8 + 48 + 4)
    x = net.input(network_input(net, 1, 600))
    free = free_memory(140_000)
    fit = free // each
    for batch in (fit + 1, 600):
        with pytest.raises(OutOfMemoryError) as error:
            net.predict(x[:batch])
        assert str(error.value) == (
            f"batch {batch} of 5 x 8 x 12 in fp32 needs {batch * each:,} bytes on the device, {free:,} are free; "
            f"a batch of {fit} would fit"
        )
    net.program_cache.clear()
    weights = 4 * (8 * 48 + 4)  # a kernel of 4 filters, in 8 rows
    monkeypatch.setattr(program_module, "free_bytes", lambda be: 1000)
    with pytest.raises(OutOfMemoryError) as error:
        net.predict(x[:1])
    assert str(error.value) == (
        f"batch 1 of 5 x 8 x 12 in fp32 needs {each + weights:,} bytes on the device, 1,000 are free; "
        "not even one image would fit; make them smaller"
    )


def test_fragmented_memory(free_memory, emulator, monkeypatch):
    net, _ = on_device(SMALL)
    net.predict(network_input(net, 1))
    x = net.input(network_input(net, 1, 600))
    free_memory(0)
    monkeypatch.setattr(program_module, "free_bytes", lambda be: 1 << 30)
    with pytest.raises(OutOfMemoryError) as error:
        net.predict(x)
    message = r"needs [\d,]+ bytes on the device: Out of memory allocating [\d,]+ bytes .*; use a smaller batch"
    assert re.fullmatch(f"batch 600 of 5 x 8 x 12 in fp32 {message}", str(error.value)), error.value


# --- on a GPU, if available ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize("name", ["yolov2", "yolov4-tiny", "yolov4-csp", "resnet50-sort"])
@pytest.mark.parametrize("device", ["cuda"])
def test_on_a_gpu(device, name, precision, tmp_path):
    be, (W, H), config = conftest.backend_for(device), NETWORKS[name], thin(name)
    reference = load_network(config, backend="numpy", width=W, height=H)
    weights = write_weights(reference, tmp_path / "seeded.weights", 5)
    reference, net = (load_network(config, weights, backend=b, width=W, height=H) for b in ("numpy", be))
    for batch in (1, 3):
        x = network_input(net, 5, batch)
        there, want = be.asarray(x), reference.predict(x, engine="reference")
        first, second = ([be.to_numpy(y) for y in net.predict(there, precision=precision)] for _ in range(2))
        assert distance(first, want) < TOLERANCE[precision]
        eager = [be.to_numpy(y) for y in program(net, batch, precision, graph=False, poison=True).run(there)]
        for a, b, c in zip(first, second, eager, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    assert [run.eager_reason for run in net.program_cache.programs.values()] == [None, None]  # captured
