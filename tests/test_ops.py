"""Every op against its plain form (op_cases/), on every backend; and that nothing is left out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
from op_cases import CASES, arrays, call, compare, each, run

import gpudarknet
from gpudarknet import ops
from gpudarknet.backend import cuda
from gpudarknet.ops.base import OPS
from gpudarknet.plan.cuda.implicit_gemm import TILE_KERNELS

for module in pkgutil.iter_modules(ops.__path__, "gpudarknet.ops."):
    importlib.import_module(module.name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_op(be, case):
    compare(run(be, case, case.args), case.want(case.args), case, case.rtol, case.atol)


@pytest.mark.parametrize("case", [case for case in CASES if case.half], ids=str)
def test_half(be, case):
    """float16 in memory, float32 arithmetic: right to 11 bits, after up to three roundings of sums around 4.

    Sums over a batch stay float32.
    """
    names = list(inspect.signature(case.plain).parameters)
    args = tuple(
        each(a, lambda a: a.astype(np.float16)) if name in case.half else a
        for name, a in zip(names, case.args, strict=True)
    )
    results = call(be, case, args)
    for k, result in enumerate(results if case.op.sums else (results,)):
        kinds = {a.dtype.name for a in arrays(result)} - {"int32"}  # positions
        assert kinds <= ({"float32", "float64"} if k in case.op.sums else {"float16"})
    compare([be.to_numpy(a) for a in arrays(results)], case.want(args), case, rtol=1e-3, atol=max(4e-3, case.atol))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_arguments_may_be_keywords(be, dtype):
    op = OPS["upsample.upsample"]
    x = be.asarray(np.arange(6, dtype=dtype).reshape(1, 1, 2, 3))
    got, want = op(be, scale=0.5, x=x, s=2), op(be, x, 2, 0.5)
    assert got.dtype == want.dtype == dtype
    np.testing.assert_array_equal(be.to_numpy(got), be.to_numpy(want))


def test_every_op_has_cases():
    assert {case.op.name for case in CASES} == set(OPS)


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.cuda], ids=str)
def test_a_kernel_has_the_parameters_of_its_reference(op):
    assert list(inspect.signature(op.cuda).parameters) == list(inspect.signature(op.reference).parameters)
    assert op.cuda.__name__ == f"{op.reference.__name__}_cuda"


def test_every_kernel_is_launched():
    text = "".join(path.read_text() for path in Path(gpudarknet.__file__).parent.rglob("*.py"))
    kernels = [f"{file}.{name}" for file in cuda.files() for name in cuda.parameters(file)]
    assert [name for name in kernels if f'"{name}"' not in text and name not in TILE_KERNELS] == []
