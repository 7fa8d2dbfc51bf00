"""Blocked matrix multiplication and Winograd's transforms give the same values as a plain product, in every split."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gpudarknet.backend.threads import ThreadPool, split_range
from gpudarknet.plan.cpu import gemm
from gpudarknet.plan.cpu.command_list import CommandList, CommandQueue
from gpudarknet.plan.cpu.winograd import POINTS, transforms


@pytest.fixture(params=[True, False])
def blocks(request, monkeypatch):
    """With and without blocking, independent of this machine."""
    monkeypatch.setattr(gemm, "blocking_helps", lambda: request.param)
    return request.param


def product(x, weights, out):
    """Record a product and run it."""
    commands = CommandList(CommandQueue(ThreadPool(1)), 0)
    gemm.matmul(commands, x, weights, out)
    for call in commands.commands:
        call()


@pytest.mark.parametrize(("P", "K", "F"), [(1037, 27, 64), (49, 500, 48), (30, 40, 255), (1, 100, 32), (90, 1200, 16)])
def test_multiply(blocks, P, K, F):
    rng = np.random.default_rng(0)
    w, x = rng.random((K, F), np.float32), rng.random((P, K + 5), np.float32)[:, 2 : K + 2]
    out = np.full((P, F + 3), np.nan, np.float32)
    packed = gemm.pack_weights(w)
    assert packed.ndim == (3 if blocks and F % 16 == 0 else 2)
    product(x, packed, out[:, 1 : F + 1])
    np.testing.assert_allclose(out[:, 1 : F + 1], x @ w, rtol=1e-4)
    assert np.isnan(out[:, 0]).all() and np.isnan(out[:, F + 1 :]).all()


def test_multiply_stacks(blocks):
    rng = np.random.default_rng(0)
    x, w = rng.random((6, 1100, 20), np.float32), rng.random((6, 20, 32), np.float32)
    out = np.empty((6, 1100, 32), np.float32)
    product(x, gemm.pack_weights(w), out)
    np.testing.assert_allclose(out, x @ w, rtol=1e-4)


def test_the_matrix_on_the_left_may_be_transposed(blocks):
    rng = np.random.default_rng(0)
    x, w, out = rng.random((20, 700), np.float32).T, rng.random((20, 32), np.float32), np.empty((700, 32), np.float32)
    product(x, gemm.pack_weights(w), out)
    np.testing.assert_allclose(out, x @ w, rtol=1e-4)


@pytest.mark.parametrize(
    ("features", "name", "helps"),
    [
        (["AVX-512", "AVX2"], "openblas", True),
        (["AVX2"], "openblas", False),
        (["AVX-512"], "mkl", False),
        ([], "openblas", False),
    ],
)
def test_cpu_and_blas_decide_so_that_all_processes_of_a_machine_agree(monkeypatch, features, name, helps):
    monkeypatch.setattr(gemm.machine, "cpu_features", lambda: features)
    monkeypatch.setattr(gemm.blas, "name", lambda: name)
    assert gemm.blocking_helps.__wrapped__() is helps


@pytest.mark.parametrize("m", POINTS)
def test_winograds_transforms_are_a_convolution(m):
    BT, G, AT = transforms(m)
    rng = np.random.default_rng(0)
    d, g = rng.random(m + 2), rng.random(3)
    wanted = [d[i : i + 3] @ g for i in range(m)]
    np.testing.assert_allclose(AT @ ((G @ g) * (BT @ d)), wanted, rtol=1e-12)


@pytest.mark.parametrize(("length", "max_size", "workers"), [(10, 3, 2), (1, 5, 4), (7, 7, 2), (416, 23, 2), (5, 0, 3)])
def test_ranges_cover_the_length_once(length, max_size, workers):
    ranges = split_range(length, max_size, workers)
    assert ranges[0][0] == 0 and ranges[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert max(b - a for a, b in ranges) <= max(1, max_size) and (len(ranges) % workers == 0 or len(ranges) == length)
