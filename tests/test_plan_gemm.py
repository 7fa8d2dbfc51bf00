"""Products in blocks, and Winograd's transforms: the same numbers as a plain product, in every split."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gpudarknet.plan import gemm
from gpudarknet.plan.convolve import pieces
from gpudarknet.plan.winograd import POINTS, transforms


@pytest.fixture(params=[True, False])
def blocks(request, monkeypatch):
    """With blocks and without, whatever this machine would choose."""
    monkeypatch.setattr(gemm, "blocks_pay", lambda: request.param)
    return request.param


@pytest.mark.parametrize(("F", "K", "L"), [(64, 27, 1037), (48, 500, 49), (255, 40, 30), (32, 100, 1), (16, 1200, 90)])
def test_multiply(blocks, F, K, L):
    rng = np.random.default_rng(0)
    w, x = rng.random((F, K), np.float32), rng.random((K, L + 5), np.float32)[:, 2 : L + 2]
    out = np.full((F, L + 3), np.nan, np.float32)
    packed = gemm.pack(w)
    assert packed.ndim == (3 if blocks and F % 16 == 0 else 2)
    gemm.multiply(packed, x, out[:, 1 : L + 1])
    np.testing.assert_allclose(out[:, 1 : L + 1], w @ x, rtol=1e-4)
    assert np.isnan(out[:, 0]).all() and np.isnan(out[:, L + 1 :]).all()


def test_multiply_stacks(blocks):
    rng = np.random.default_rng(0)
    w, x = rng.random((6, 32, 20), np.float32), rng.random((6, 20, 1100), np.float32)
    out = np.empty((6, 32, 1100), np.float32)
    gemm.multiply(gemm.pack(w), x, out)
    np.testing.assert_allclose(out, w @ x, rtol=1e-4)


@pytest.mark.parametrize("L", [1, 511, 512, 1500])
def test_transform(blocks, L):
    rng = np.random.default_rng(0)
    matrix, x, out = rng.random((16, 37), np.float32), rng.random((37, L), np.float32), np.empty((16, L), np.float32)
    gemm.transform(matrix, x, out)
    np.testing.assert_allclose(out, matrix @ x, rtol=1e-4)


def test_the_race_has_an_answer():
    assert gemm.blocks_pay() in (True, False)


@pytest.mark.parametrize("m", POINTS)
def test_winograds_transforms_are_a_convolution(m):
    BT, G, AT = transforms(m)
    rng = np.random.default_rng(0)
    d, g = rng.random(m + 2), rng.random(3)
    wanted = [d[i : i + 3] @ g for i in range(m)]
    np.testing.assert_allclose(AT @ ((G @ g) * (BT @ d)), wanted, rtol=1e-12)


@pytest.mark.parametrize(("length", "most", "workers"), [(10, 3, 2), (1, 5, 4), (7, 7, 2), (416, 23, 2), (5, 0, 3)])
def test_pieces_cover_everything_once(length, most, workers):
    cut = pieces(length, most, workers)
    assert cut[0][0] == 0 and cut[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(cut))
    assert max(b - a for a, b in cut) <= max(1, most) and (len(cut) % workers == 0 or len(cut) == length)
