"""Plans on CUDA without a GPU: their kernels, networks through host-cuda and a cuBLAS made of NumPy, what CuPy is asked for."""

from __future__ import annotations

import re

import numpy as np
import pytest
from backends import LIBRARY, NUMPY, Poisoned, backend_for, plan_backend
from cuda_plans import (
    ALL_KINDS,
    FALLBACK,
    NEIGHBOURS,
    NETWORKS,
    SMALL,
    TOLERANCE,
    distance,
    pair,
    program,
    thin,
    thin_text,
)
from nhwc_maps import BINARY_CODES, WINDOWS, Maps, can_vectorize, close, epilogue_reference, outputs, rows, threads
from seeded import network_input

from gpudarknet import cfg, load_network
from gpudarknet.backend import Backend
from gpudarknet.backend.cuda import Launcher, bind, prepare
from gpudarknet.errors import OutOfMemoryError
from gpudarknet.ops import activation, im2col, pool, shortcut, upsample, yolo
from gpudarknet.ops.activation import NAMES
from gpudarknet.plan import cuda
from gpudarknet.plan.cuda import program as program_module
from gpudarknet.plan.cuda.epilogue import BINARY_OPS, VECTOR_ACTIVATIONS, passes
from gpudarknet.plan.steps import Activate, Add, Convolve, FeatureMap, Multiply, SortShortcut

# --- kernels -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_im2col(kernels, dtype, shape, place, rng, window):
    N, H, W, C = shape
    H, W = H + 1, W + 2
    size, stride, dilation, pad = window
    OH, OW = outputs(H, W, *window)
    x = Maps(kernels, N * H * W, C, place, dtype, rng)
    want = im2col.im2col(NUMPY, x.nchw(N, H, W), size, stride, dilation, pad, OH, OW)  # (N, C, size, size, OH, OW)
    want = want.reshape(N, C, size * size, OH * OW).transpose(0, 3, 2, 1).reshape(N * OH * OW, size * size, C)
    for groups in {1, C if C < 16 else 4} if C != 33 else {1, 3}:
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


@pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")  # resnet50 adds maps of different size
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_what_the_reference_engine_says(name, tmp_path):
    (W, H), config = NETWORKS[name], thin(name)
    reference, net = pair(config, plan_backend(), tmp_path, 5, width=W, height=H)
    x, packed = network_input(net, 5, batch=2), {}
    want = reference.predict(x, engine="reference")
    run = program(net, 2, packed_weights=packed, poison=True)
    assert run.fallbacks == []  # every shipped network can be captured
    got = run.run(x)
    assert distance(got, want) < TOLERANCE["fp32"]
    one = program(net, 1, packed_weights=packed, poison=True).run(x[1:])
    assert distance(one, [y[1:] for y in got]) < TOLERANCE["fp32"]
    assert distance(program(net, 2, "fp16", poison=True).run(x), want) < TOLERANCE["fp16"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_every_kind_of_step(tmp_path, precision, batch):
    config = cfg.parse(ALL_KINDS)
    reference, net = pair(config, plan_backend(), tmp_path)
    x = network_input(net, 2, batch)
    want = reference.predict(x, engine="reference")
    run = program(net, batch, precision, poison=True)
    assert run.fallbacks == []
    names = {type(step).name for step in run.schedule.steps}
    assert names == {"convolve", "copy", "maxpool", "upsample", "fallback"}
    assert any(isinstance(step, Convolve) and step.head is not None for step in run.schedule.steps)
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
        self.on_host, self.launched, self.asked = backend_for("host-cuda").launch, [], set()

    def compile(self, files, T):
        self.asked |= {(file, T) for file in files}

    def __call__(self, kernel, threads, *args, block=256, shared=0):
        T, _ = bind(kernel, args, np.ndarray)
        file = kernel.partition(".")[0]
        assert (file, T) in self.asked, kernel
        self.launched.append((file, T))
        self.on_host(kernel, threads, *args, block=block, shared=shared)

    def prepare(self, kernel, threads, *args, varying=(), **options):
        return prepare(lambda *given, **how: self(*given, **how), kernel, threads, *args, varying=varying, **options)


@pytest.mark.parametrize(("precision", "T"), [("fp32", "float"), ("fp16", "half_t")])
@pytest.mark.parametrize(
    "text", [ALL_KINDS, thin_text("yolov4-tiny"), thin_text("yolov3")], ids=["all", "v4-tiny", "v3"]
)
def test_a_program_asks_for_the_kernel_files_that_it_needs(tmp_path, text, precision, T):
    launch, config = Compiling(), cfg.parse(text)
    be = Poisoned("host-cuda", np, launch, LIBRARY.open, "cuda")
    _, net = pair(config, be, tmp_path, width=64, height=32)
    run = program(net, 1, precision)
    assert launch.asked == set()  # not for a program that is only described
    x = network_input(net, 1)
    run.run(x)
    run.detect(x, 0.5).read()
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_neighbours_in_a_larger_map_do_not_touch(tmp_path, precision):
    """5 and 3 channels share pixels of 8, the later written first or last; neither may be rounded up to 8."""
    for text in (NEIGHBOURS, NEIGHBOURS.replace("layers=-2,-1", "layers=-1,-2")):
        reference, net = pair(cfg.parse(text), plan_backend(), tmp_path)
        x = network_input(net, 1, 2)
        want = reference.predict(x, engine="reference")
        run = program(net, 2, precision, poison=True)
        assert [step.y.base is None for step in run.schedule.steps] == [False, False]
        assert distance(run.run(x), want) < TOLERANCE[precision]


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

    def launch(kernel, threads, *args, block=256, shared=0):
        given.append((kernel, args[0]))
        be.launch(kernel, threads, *args, block=block, shared=shared)

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
    be = backend_for("cuda")
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
    be, (W, H), config = backend_for(device), NETWORKS[name], thin(name)
    reference, net = pair(config, be, tmp_path, 5, width=W, height=H)
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
