"""The example in docs/layer.md and docs/kernel.md works as written: layer, test, keys, op, kernel and case."""

from __future__ import annotations

import configparser
import dataclasses
import re
import sys
import types
from pathlib import Path

import host_cuda
import numpy as np
import op_cases
import pytest
from backends import backend_for
from layer_cases import directional
from op_cases import compare, run

from gpudarknet import cfg, load_network
from gpudarknet.backend import Backend, cuda
from gpudarknet.layers import SECTIONS, Layer
from gpudarknet.ops import reorg
from gpudarknet.ops.base import OPS

DOCS = Path(__file__).parent.parent / "docs"
TEXT = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("layer.md", "kernel.md"))
BLOCKS = dict(re.findall(r"```(?:python|cuda)\n(?:#|//) (\S+)\n(.*?)```", TEXT, re.DOTALL))
KEYS = re.findall(r"```ini\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def layer():
    module = types.ModuleType("gpudarknet.layers.shuffle")
    module.__package__ = "gpudarknet.layers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        exec(compile(BLOCKS["gpudarknet/layers/shuffle.py"], "shuffle.py", "exec"), vars(module))
        yield SECTIONS["shuffle"]
    del SECTIONS["shuffle"]


@pytest.fixture
def case(tmp_path, monkeypatch):
    """The op, its kernel in a copy of kernels/, and its cases; nothing of it stays."""
    for path in cuda.folder().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with open(tmp_path / "reorg.cu", "a", encoding="utf-8") as file:
        file.write(BLOCKS["kernels/reorg.cu"])
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)
    monkeypatch.setattr(op_cases, "CASES", [])
    for cached in (cuda.source, cuda.parameters):
        cached.cache_clear()
    names = set(vars(reorg))
    exec(BLOCKS["gpudarknet/ops/reorg.py"], vars(reorg))
    exec(BLOCKS["tests/op_cases/reorg.py"], dict(vars(op_cases.reorg)))
    yield op_cases.CASES
    del OPS["reorg.shuffle"]
    for name in set(vars(reorg)) - names:
        delattr(reorg, name)
    for cached in (cuda.source, cuda.parameters):
        cached.cache_clear()


def test_the_example_is_complete():
    assert set(BLOCKS) == {
        "gpudarknet/layers/shuffle.py", "tests/test_shuffle.py", "gpudarknet/ops/reorg.py", "kernels/reorg.cu",
        "tests/op_cases/reorg.py",
    }  # fmt: skip


def test_its_keys_are_described(layer):
    parser = configparser.ConfigParser()
    parser.read_string(KEYS[0])
    assert set(parser["shuffle"]) == {f.name for f in dataclasses.fields(layer)} - {
        f.name for f in dataclasses.fields(Layer)
    }


def test_its_test_passes(layer, be):
    test = {}
    exec(BLOCKS["tests/test_shuffle.py"], test)
    test["test_forward"](be)
    ((name, (shapes, keys)),) = test["CASES"].items()
    for train in (True, False):
        analytic, numeric = directional(name, shapes, train, **keys)
        assert analytic == pytest.approx(numeric, rel=1e-6)


def test_the_layer_runs_from_a_cfg(layer):
    text = "[net]\nwidth=4\nheight=3\nchannels=6\n[shuffle]\ngroups=3\n"
    network = load_network(cfg.parse(text), backend="numpy")
    x = np.random.default_rng(0).random((2, 6, 3, 4), dtype=np.float32)
    for y in (*network.trace(x), *network.predict(x)):
        np.testing.assert_array_equal(y, x[:, [0, 2, 4, 1, 3, 5]])


def test_the_kernel_matches_its_reference(case):
    backend_for("host-cuda")
    backends = Backend("numpy", np), Backend("host-cuda", np, host_cuda.launcher())
    assert len(case) == 2 * len(op_cases.SHAPES)
    for one in case:
        for be in backends:
            compare(run(be, one, one.args), one.want(one.args), one, 0, 0)
