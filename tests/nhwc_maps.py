"""Maps in NHWC, parts of wider ones, as the kernels of plans on a GPU read and write them; and epilogues in float64."""

from __future__ import annotations

import numpy as np
from backends import NUMPY

from gpudarknet.ops import activation, shortcut
from gpudarknet.plan.cuda.epilogue import BINARY_OPS
from gpudarknet.plan.steps import Add, Multiply, SortShortcut

SHAPES = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 2, 3, 33), (3, 13, 6, 8), (2, 4, 3, 16)]  # N, H, W, C
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
    """(N, C, H, W) -> (pixels, C)."""
    return np.asarray(a).transpose(0, 2, 3, 1).reshape(-1, a.shape[1])


def close(got, want, dtype):
    """One rounding of the storage type, and some of float32."""
    rtol, atol = (1e-3, 1e-3) if dtype == np.float16 else (1e-5, 1e-5)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


# size, stride (vertical, horizontal), dilation, pad
WINDOWS = [(1, (2, 1), 1, 0), (3, (1, 1), 1, 1), (3, (2, 2), 1, 1), (3, (1, 2), 2, 2), (2, (1, 1), 1, 1)]


def outputs(H, W, size, stride, dilation, pad):
    reach = (size - 1) * dilation + 1
    return (H + 2 * pad - reach) // stride[0] + 1, (W + 2 * pad - reach) // stride[1] + 1


def epilogue_reference(x, bias, other, pre, binary, eps, slope, post):
    """An epilogue in float64."""
    v = activation.FUNCTIONS[pre][0](np, x + bias)
    if binary == "sort":
        v = shortcut.sort_shortcut.reference(NUMPY, v[None], np.broadcast_to(other, v.shape)[None], eps, slope)[0]
    elif binary:
        v = v + other if binary == "add" else v * other
    return activation.FUNCTIONS[post][0](np, v)


BINARY_CODES = {None: 0, "add": BINARY_OPS[Add], "sort": BINARY_OPS[SortShortcut], "multiply": BINARY_OPS[Multiply]}
