"""Convolution algorithms on a GPU: their kernels against NumPy, and each algorithm against the reference engine."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from backends import NUMPY, plan_backend
from cuda_plans import TOLERANCE, distance, pair, program
from nhwc_maps import BINARY_CODES, WINDOWS, Maps, can_vectorize, close, epilogue_reference, outputs, rows, threads
from seeded import network_input

from gpudarknet import cfg, load_network
from gpudarknet.ops import activation, im2col
from gpudarknet.ops.activation import NAMES
from gpudarknet.plan.compile import compile
from gpudarknet.plan.cuda import algorithms
from gpudarknet.plan.cuda.algorithms import ALGORITHMS, ConvProblem, select_algorithm, supported
from gpudarknet.plan.cuda.convolution import EMITTERS, TILE_VECTOR
from gpudarknet.plan.cuda.weights import pack_weights
from gpudarknet.plan.steps import Convolve, FeatureMap

# --- kernels -----------------------------------------------------------------------------------------------------------


def laid_out(x, shape, window, groups):
    """The im2col matrix of a map (pixels, C), from the reference."""
    (N, H, W, C), (size, stride, dilation, pad), (OH, OW) = shape, window, outputs(*shape[1:3], *window)
    nchw = np.ascontiguousarray(x.reshape(N, H, W, C).transpose(0, 3, 1, 2)).astype(np.float32)
    col = im2col.im2col(NUMPY, nchw, size, stride, dilation, pad, OH, OW).reshape(N, C, size * size, OH * OW)
    col = col.transpose(0, 3, 2, 1).reshape(N * OH * OW, size * size, groups, C // groups)
    return col.transpose(0, 2, 1, 3).reshape(N * OH * OW, -1)


def geometry(shape, window, groups, ldcol, first, count):
    """The im2col arguments of an epilogue, and the positions of the padded map."""
    (N, H, W, _), (size, stride, dilation, pad), (OH, OW) = shape, window, outputs(*shape[1:3], *window)
    reach = (size - 1) * dilation + 1
    HP, WP = max(H + pad, (OH - 1) * stride[0] + reach), max(W + pad, (OW - 1) * stride[1] + reach)
    return (HP, WP, first, count, count // groups, OH, OW, size, *stride, dilation, pad, ldcol), N * HP * WP


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_epilogue_im2col(kernels, dtype, shape, place, rng, window):
    N, H, W, C = shape[0], shape[1] + 1, shape[2] + 2, shape[3]
    OH, OW = outputs(H, W, *window)
    for groups, (first, count) in product({1, 4} if C % 8 == 0 else {1}, ((0, C), (C // 2, C - C // 2))):
        x, other = (Maps(kernels, N * H * W, C, place, dtype, rng) for _ in range(2))
        y = Maps(kernels, N * H * W, C, "even part", dtype)
        V = 16 // np.dtype(dtype).itemsize
        vectorized = can_vectorize(dtype, x, other, y) and count // groups % V == 0 and first % V == 0
        b = kernels.asarray(rng.normal(0, 1, C), np.float32)
        bias = kernels.to_numpy(b).astype(np.float64)
        want = epilogue_reference(x.values, bias, other.values, "leaky", "add", 0.0, 0.0, "relu")
        for stored in (True, False):
            places = "even part" if vectorized else "odd part"
            col = Maps(kernels, N * OH * OW, count * window[0] ** 2, places, dtype)
            where, visited = geometry((N, H, W, C), window, groups, col.ld, first, count)
            n = threads(dtype, visited, C, vectorized)
            pointers = (x.a, b, other.a, y.a if stored else None, col.a)
            codes = (NAMES.index("leaky"), BINARY_CODES["add"], 0.0, 0.0, NAMES.index("relu"))
            sizes = (n, C, H, W, C, H * W, x.ld, other.ld, y.ld, *codes, *where, vectorized)
            kernels.launch("epilogue.epilogue_im2col", n, *pointers, *sizes)
            close(y.result(), want, dtype)
            part = np.ascontiguousarray(y.result()[:, first : first + count])
            np.testing.assert_array_equal(col.result(), laid_out(part, (N, H, W, count), window, groups))


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_maxpool_epilogue_im2col(kernels, dtype, shape, place, rng, window):
    N, H, W, C = shape[0], shape[1] + 1, shape[2] + 2, shape[3]
    OH, OW = outputs(H, W, *window)
    x, y = Maps(kernels, 4 * N * H * W, C, place, dtype, rng), Maps(kernels, N * H * W, C, "even part", dtype)
    b = rng.normal(0, 1, C).astype(np.float32)
    vectorized = can_vectorize(dtype, x, y)
    largest = x.values.reshape(N, H, 2, W, 2, C).max(axis=(2, 4)).reshape(-1, C) + b
    for stored in (True, False):
        col = Maps(kernels, N * OH * OW, C * window[0] ** 2, "even part" if vectorized else "odd part", dtype)
        where, visited = geometry((N, H, W, C), window, 1, col.ld, 0, C)
        n = threads(dtype, visited, C, vectorized)
        pointers = (x.a, kernels.asarray(b), y.a if stored else None, col.a)
        sizes = (n, C, H, W, x.ld, y.ld, NAMES.index("leaky"), *where, vectorized)
        kernels.launch("epilogue_pool.maxpool_epilogue_im2col", n, *pointers, *sizes)
        close(y.result(), np.where(largest > 0, largest, 0.1 * largest), dtype)
        np.testing.assert_array_equal(col.result(), laid_out(y.result(), (N, H, W, C), window, 1))


@pytest.mark.parametrize("channels", [(8, 16), (5, 3), (3, 12), (16, 8)], ids=str)
def test_epilogue_split(kernels, dtype, place, channels):
    (C1, C2), pixels, rng = channels, 21, np.random.default_rng(channels)
    start = algorithms.align_channels(C1)
    x = Maps(kernels, pixels, start + C2, "whole", dtype, rng)
    y1, y2 = (Maps(kernels, pixels, C, place, dtype) for C in channels)
    b1, b2 = (rng.normal(0, 1, C).astype(np.float32) for C in channels)
    vectorized = can_vectorize(dtype, y1, y2) and x.ld % 8 == 0
    n = threads(dtype, pixels, C1 + C2, vectorized)
    kinds = NAMES.index("mish"), NAMES.index("leaky")
    pointers = (x.a, *map(kernels.asarray, (b1, b2)), y1.a, y2.a)
    kernels.launch("epilogue.epilogue_split", n, *pointers, n, C1, C2, start, x.ld, y1.ld, y2.ld, *kinds, vectorized)
    close(y1.result(), activation.FUNCTIONS["mish"][0](np, x.values[:, :C1] + b1), dtype)
    close(y2.result(), activation.FUNCTIONS["leaky"][0](np, x.values[:, start:] + b2), dtype)


WINOGRAD = [(2, 6, 10, 3, 5), (1, 5, 7, 8, 16), (2, 8, 4, 16, 4), (1, 1, 3, 4, 8)]
CASES = [(sizes, kind) for sizes in WINOGRAD for kind in ("all", "channels", "pixels", "pooled")
         if kind != "pooled" or sizes[1] % 2 == sizes[2] % 2 == 0]  # plans pool even maps only  # fmt: skip


@pytest.mark.parametrize(("sizes", "broadcast"), CASES, ids=str)
def test_winograd(kernels, dtype, place, sizes, broadcast):
    N, H, W, C, F = sizes
    rng, TH, TW = np.random.default_rng(sizes), -(-H // 2), -(-W // 2)
    P, tiles, ldc, ldf = H * W, N * TH * TW, algorithms.align_channels(C), algorithms.align_channels(F)
    x, w, b = Maps(kernels, N * P, C, place, dtype, rng), rng.normal(0, 0.3, (F, C, 3, 3)), rng.normal(0, 1, F)
    transformed, products = (np.full((16 * tiles, ld), 7, dtype) for ld in (ldc, ldf))
    vectorized = not (C % TILE_VECTOR or x.ld % TILE_VECTOR or x.start % TILE_VECTOR)
    n = tiles * C // (TILE_VECTOR if vectorized else 1)
    there = kernels.asarray(transformed.reshape(-1)[: transformed.size - ldc + C])
    kernels.launch("winograd.winograd_input_transform", n, x.a, there, n, tiles, C, H, W, TH, TW, x.ld, ldc, vectorized)
    transformed.reshape(-1)[: transformed.size - ldc + C] = kernels.to_numpy(there)
    assert (transformed[:, C:] == 7).all()

    step = Convolve(
        layers=(0,),
        xs=(FeatureMap((C, H, W)),),
        y=FeatureMap((F, H, W)),
        w={},
        size=3,
        strides=(1, 1),
        dilation=1,
        pad=1,
        groups=1,
    )
    U = pack_weights(step, "winograd", w, np.float64)
    assert (U[:, F:] == 0).all() and (U[..., C:] == 0).all()
    products[:, :F] = (
        transformed[:, :C].astype(np.float64).reshape(16, tiles, C) @ U[:, :F, :C].transpose(0, 2, 1)
    ).reshape(-1, F)

    pooled, binary = broadcast == "pooled", "multiply" if broadcast in ("channels", "pixels") else "add"
    Co, Po = {"all": (F, P), "channels": (F, 1), "pixels": (1, P), "pooled": (F, P)}[broadcast]
    y, other = (
        Maps(kernels, N * P // (4 if pooled else 1), F, place, dtype),
        Maps(kernels, N * Po, Co, place, dtype, rng),
    )
    written = (y,) if pooled or Co == 1 else (y, other)
    vectorized = not any(m.C % TILE_VECTOR or m.ld % TILE_VECTOR or m.start % TILE_VECTOR for m in written)
    n = tiles * F // (TILE_VECTOR if vectorized else 1)
    codes = (NAMES.index("leaky"), 0 if pooled else BINARY_CODES[binary], 0.0, 0.0, NAMES.index("relu") * (not pooled))
    pointers = (kernels.asarray(products.reshape(-1)[: products.size - ldf + F]), kernels.asarray(b, np.float32))
    lds = (ldf, other.ld, y.ld)
    kernels.launch(
        "winograd.winograd_output_transform", n, *pointers, None if pooled else other.a, y.a,
        n, tiles, F, H, W, TH, TW, Co, Po, *lds, *codes, pooled, vectorized,
    )  # fmt: skip
    patches = im2col.im2col(NUMPY, x.nchw(N, H, W), 3, (1, 1), 1, 1, H, W)
    plain = np.einsum("ncpqij,fcpq->nfij", patches, w, dtype=np.float64)
    if pooled:
        largest = plain.reshape(N, F, TH, 2, TW, 2).max(axis=(3, 5))
        want = activation.FUNCTIONS["leaky"][0](np, rows(largest) + b)
    else:
        seen = np.broadcast_to(other.values.reshape(N, Po, Co), (N, P, F)).reshape(N * P, F)
        want = epilogue_reference(rows(plain), b, seen, "leaky", binary, 0.0, 0.0, "relu")
    scale = np.abs(plain).max()  # of sums of up to 16 values, each rounded once or twice
    np.testing.assert_allclose(y.result(), want, rtol=0, atol=scale * (8e-3 if dtype == np.float16 else 2e-6) * 3)


# --- choices -----------------------------------------------------------------------------------------------------------


def convolution(C=16, H=6, W=10, F=24, size=3, stride=1, pad=1, groups=1, pooled=False):
    OH, OW = ((n + 2 * pad - size) // stride + 1 for n in (H, W))
    y = FeatureMap((F, OH // 2, OW // 2) if pooled else (F, OH, OW))
    geometry = dict(size=size, strides=(stride, stride), dilation=1, pad=pad, groups=groups, pooled=pooled)
    return Convolve(layers=(0,), xs=(FeatureMap((C, H, W)),), y=y, w={}, **geometry)


ONE = dict(size=1, pad=0)


@pytest.mark.parametrize(
    ("step", "names"),
    [
        (convolution(), ["im2col_gemm", "im2col_batched_gemm", "winograd_f2"]),
        (convolution(stride=2), ["im2col_gemm", "im2col_batched_gemm"]),
        (convolution(groups=4), ["im2col_gemm"]),
        (convolution(F=16, groups=16), ["depthwise"]),
        (convolution(C=3), ["direct", "im2col_gemm", "im2col_batched_gemm", "winograd_f2"]),
        (convolution(**ONE), ["gemm_1x1", "gemm_1x1_batched"]),
        (convolution(**ONE, groups=8), ["gemm_1x1"]),
        (convolution(C=512, H=50, W=30), ["im2col_gemm", "im2col_gemm_16mib", "im2col_batched_gemm", "winograd_f2"]),
    ],
)
def test_supported_algorithms(step, names):
    assert supported(ConvProblem(step, 2, "fp32")) == names
    assert supported(ConvProblem(step, 1, "fp32")) == [name for name in names if "batched" not in name]


def test_the_rule():
    large, small = convolution(C=64, F=64), convolution(C=32, F=64)
    for step, precision, algorithm in (
        (large, "fp32", "winograd_f2"),
        (large, "tf32", "im2col_gemm"),
        (large, "fp16", "im2col_gemm"),
        (small, "fp32", "im2col_gemm"),
        (convolution(**ONE), "fp32", "gemm_1x1"),
        (convolution(C=3), "fp32", "direct"),
        (convolution(F=16, groups=16), "fp16", "depthwise"),
    ):
        assert select_algorithm(ConvProblem(step, 2, precision), {}) == algorithm


def test_a_measured_choice_is_used_if_supported():
    step = convolution()
    key = step.key(2)
    assert select_algorithm(ConvProblem(step, 2, "fp32"), {key: "im2col_batched_gemm"}) == "im2col_batched_gemm"
    assert select_algorithm(ConvProblem(step, 2, "fp32"), {key: "gemm_1x1"}) == "im2col_gemm"
    assert select_algorithm(ConvProblem(step, 2, "fp32"), {key: "unknown"}) == "im2col_gemm"
    assert select_algorithm(ConvProblem(step, 1, "fp32"), {key: "winograd_f2"}) == "im2col_gemm"


def test_chunks_are_as_equal_as_possible():
    assert [algorithms.chunk_size(10, limit) for limit in (0, 1, 3, 4, 6, 9, 10, 11)] == [1, 1, 3, 4, 5, 5, 10, 10]


def test_every_algorithm_has_an_emitter():
    assert list(EMITTERS) == list(ALGORITHMS)


# --- each algorithm, on the CPU, against the reference engine ----------------------------------------------------------

NETS = {  # sections after one that makes 16 channels of 3
    "3 x 3": "[convolutional]\nfilters=24\nsize=3\npad=1\nactivation=mish\nbatch_normalize=1\n",
    "3 x 3, odd": "[convolutional]\nfilters=13\nsize=3\npad=1\nactivation=elu\n",
    "3 x 3 / 2": "[convolutional]\nfilters=24\nsize=3\nstride=2\npad=1\nactivation=leaky\n",
    "pooled": "[convolutional]\nfilters=24\nsize=3\npad=1\nactivation=leaky\n[maxpool]\nsize=2\nstride=2\n",
    "residual": "[convolutional]\nfilters=16\nsize=3\npad=1\nactivation=leaky\n[shortcut]\nfrom=-2\nactivation=relu\n"
    "[sort_shortcut]\nfrom=-3\n",
    "1 x 1": "[convolutional]\nfilters=13\nsize=1\nactivation=swish\n",
    "grouped": "[convolutional]\nfilters=24\nsize=3\npad=1\ngroups=4\nactivation=leaky\n",
}
START = "[net]\nwidth=12\nheight=8\nchannels=3\n[convolutional]\nfilters=16\nsize=3\npad=1\nactivation=leaky\n"


@pytest.mark.parametrize(("precision", "batch"), [("fp32", 1), ("fp32", 3), ("fp16", 3)])
@pytest.mark.parametrize("name", NETS)
def test_every_algorithm_computes_what_the_reference_engine_does(name, batch, precision, tmp_path, monkeypatch):
    config = cfg.parse(START + NETS[name])
    reference, net = pair(config, plan_backend(), tmp_path)
    x = network_input(net, 2, batch)
    want = reference.predict(x, engine="reference")
    for algorithm in algorithms.IM2COL_BUDGETS:
        monkeypatch.setitem(algorithms.IM2COL_BUDGETS, algorithm, 4000)
    steps = [
        s for s in compile(net.nodes, net.weights, net.heads, net.net.input, batch).steps if isinstance(s, Convolve)
    ]
    tried = set()
    for step in steps:
        for algorithm in supported(ConvProblem(step, batch, precision)):
            run = program(net, batch, precision, choices={step.key(batch): algorithm}, poison=True)
            chosen = dict(
                zip((s.layers for s in run.schedule.algorithms), run.schedule.algorithms.values(), strict=True)
            )
            assert chosen[step.layers] == algorithm
            assert distance(run.run(x), want) < TOLERANCE[precision], algorithm
            tried.add(algorithm)
    assert tried >= {"direct", "im2col_gemm", *(["im2col_batched_gemm"] if batch > 1 else [])}


@pytest.mark.parametrize("pooled", [False, True])
def test_winograd_in_parts(tmp_path, monkeypatch, pooled):
    """A budget for one image makes it go image by image."""
    net = load_network(cfg.parse(START + NETS["pooled" if pooled else "residual"]), backend=plan_backend())
    x, key = network_input(net, 1, 3), {}
    step = next(s for s in compile(net.nodes, net.weights, net.heads, net.net.input, 3).steps if 1 in s.layers)
    key[step.key(3)] = "winograd_f2"
    whole = program(net, 3, choices=key, fuse_gemms=False)
    monkeypatch.setattr(algorithms, "MAX_WORKSPACE", 70_000)
    parts = program(net, 3, choices=key, poison=True)
    assert "winograd in 3 chunks" in parts.algorithms.values() and "winograd" in whole.algorithms.values()
    assert all(4 * size <= 70_000 for size in parts.schedule.arena.workspaces.values())
    # The gemms have fewer rows, for which a BLAS may add in another order.
    np.testing.assert_allclose(parts.run(x)[0], whole.run(x)[0], rtol=1e-5, atol=1e-5)
