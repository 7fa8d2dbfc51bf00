"""Activations made of approximate instructions: as good as the exact functions in float16, within 1e-6 in float32.

What a GPU returns is not known here, only how far from the exact value it may be (PTX ISA: ex2.approx 2 ulp,
rcp.approx 1 ulp). So both are wrong by 2 ulp or more, in every combination of directions; the formulas are monotonic in
both.
"""

from __future__ import annotations

import host_cuda
import numpy as np
import pytest

from gpudarknet.ops.activation import NAMES

EXACT = {
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "swish": lambda x: np.where(x == -np.inf, 0, x / (1 + np.exp(-x))),
    "mish": lambda x: np.where(x == -np.inf, 0, x * np.tanh(np.logaddexp(0, x))),
}
ERRORS = [(0, 0), (2, 2), (2, -2), (-2, 2), (-2, -2)]  # relative, of ex2_approx and rcp_approx, in units of 2^-23
FLOAT16 = np.arange(2**16, dtype=np.uint16).view(np.float16)
FLOAT32 = np.concatenate(
    [
        np.arange(0, 2**32, 9973, dtype=np.uint32).view(np.float32),  # every exponent, infinities and NaNs beside
        np.linspace(-110, 110, 200_001, dtype=np.float32),  # e^x overflows from 88.8 on, its square from 44.4 on
        np.array([np.inf, -np.inf, np.nan, 0, -0.0], np.float32),
    ]
)
ALLOWANCE = 0.01  # ulp of float16, beside the half ulp of rounding: float32 results are wrong by about 20 of their own
LIMIT = 1e-6  # of float32: absolute where |f| <= 1, else relative


def launcher(ex2=0, rcp=0, old="", new=""):
    """Return a launcher of kernels with these errors of the approximate functions; `old` in their text is replaced."""

    def edit(text):
        assert old in text
        define = f"#undef EX2_ERROR\n#undef RCP_ERROR\n#define EX2_ERROR {ex2}\n#define RCP_ERROR {rcp}\n"
        return define + (text.replace(old, new) if old else text)

    return host_cuda.launcher(edit)


def activate(launch, name, x):
    y = np.empty_like(x)
    launch("activation.activate", x.size, x, y, x.size, NAMES.index(name))
    return y


def exact(name, x):
    with np.errstate(all="ignore"):
        return EXACT[name](x.astype(np.float64))


def error16(name, x, y):
    """Return the largest error of float16 results, in ulp of float16."""
    want = exact(name, x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(y[~finite], want[~finite])
    y, want = y[finite].astype(np.float64), want[finite]
    ulp = np.ldexp(1.0, np.maximum(np.frexp(want)[1] - 1, -14) - 10)
    return (abs(y - want) / ulp).max()


def error32(name, x, y):
    """Return the largest error of float32 results: absolute where |f| <= 1, else relative."""
    want = exact(name, x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(y[~finite], want[~finite])
    return (abs(y[finite] - want[finite]) / np.maximum(1, abs(want[finite]))).max()


@pytest.mark.parametrize("errors", ERRORS, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_every_float16_is_as_good_as_rounded(name, errors):
    assert error16(name, FLOAT16, activate(launcher(*errors), name, FLOAT16)) <= 0.5 + ALLOWANCE


@pytest.mark.parametrize("errors", ERRORS, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_float32_is_within_a_millionth(name, errors):
    assert error32(name, FLOAT32, activate(launcher(*errors), name, FLOAT32)) < LIMIT


def test_infinities():
    ends = np.array([-np.inf, np.inf], np.float32)
    for name, want in (("logistic", [0, 1]), ("swish", [0, np.inf]), ("mish", [0, np.inf])):
        np.testing.assert_array_equal(activate(launcher(), name, ends), want)


@pytest.mark.parametrize("x", [FLOAT16, FLOAT32], ids=["float16", "float32"])
def test_leaky_and_relu_are_exact(x):
    with np.errstate(all="ignore"):
        wide = x.astype(np.float32)
        wants = {"leaky": np.where(wide > 0, wide, np.float32(0.1) * wide), "relu": np.where(wide < 0, 0, wide)}
        for name, want in wants.items():
            np.testing.assert_array_equal(activate(launcher(), name, x), want.astype(x.dtype))


@pytest.mark.parametrize("x", [FLOAT16, FLOAT32[: FLOAT32.size // 8 * 8]], ids=["float16", "float32"])
@pytest.mark.parametrize("name", [*EXACT, "leaky", "relu", "linear"])
def test_vectors_have_the_bits_of_single_elements(name, x):
    x, y = x.reshape(-1, 8), np.empty((x.size // 8, 8), x.dtype)
    vector = 16 // x.itemsize
    shape = (8, x.shape[0], 1, 1, 8, 8, 8)
    codes = (NAMES.index(name), 0, 0, 0, NAMES.index("linear"), 1)
    launcher()("epilogue.epilogue", x.size // vector, x, None, None, y, x.size // vector, *shape, *codes)
    np.testing.assert_array_equal(y, activate(launcher(), name, x))


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("mish", "x > 10 ? 1 : n * rcp_approx(n + 2)", "n * rcp_approx(n + 2)"),  # inf * 0
        ("mish", "fmaxf(x, -100) * tanh_softplus(x)", "x * tanh_softplus(x)"),  # -inf * 0
        ("swish", "fmaxf(x, -100) * sigmoid(x)", "x * sigmoid(x)"),  # -inf * 0
        ("swish", "fmaxf(x, -100) * sigmoid(x)", "fmaxf(x, -100) * sigmoid(fmaxf(x, -100))"),  # a NaN becomes 0
        ("logistic", "rcp_approx(1 + exp_approx(-x))", "exp_approx(x) * rcp_approx(1 + exp_approx(x))"),  # inf * 0
    ],
)
def test_a_formula_that_makes_or_loses_a_nan_is_caught(name, old, new):
    for x, error in ((FLOAT16, error16), (FLOAT32, error32)):
        y = activate(launcher(old=old, new=new), name, x)
        with pytest.raises(AssertionError):
            error(name, x, y)


@pytest.mark.parametrize("errors", [(1 << 14, 0), (0, 1 << 14), (0, -(1 << 14))], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_an_instruction_of_half_precision_is_caught(name, errors):
    """An error of 2^-9, as tanh.approx and the float16 forms of these instructions have it."""
    assert error16(name, FLOAT16, activate(launcher(*errors), name, FLOAT16)) > 0.5 + ALLOWANCE
    assert error32(name, FLOAT32, activate(launcher(*errors), name, FLOAT32)) > LIMIT
