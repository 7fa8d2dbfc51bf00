"""Autotuning on a GPU: benchmarks, stored by device, and used; on a CPU, where the times mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from backends import backend_for, plan_backend

from gpudarknet import backend, cfg, load_network
from gpudarknet.cli import main
from gpudarknet.errors import BackendError
from gpudarknet.plan import compile, cuda, tuning
from gpudarknet.plan.cuda import autotune

NET = """[net]
channels=3
width=16
height=10
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[shortcut]
from=-2
[convolutional]
filters=7
size=1
activation=linear
[connected]
output=4
activation=linear
"""
CANDIDATES = [{"direct", "im2col_gemm", "winograd_f2"}, {"im2col_gemm", "winograd_f2"}]
BATCHED = [
    {*CANDIDATES[0], "im2col_batched_gemm"},
    {*CANDIDATES[1], "im2col_batched_gemm"},
    {"gemm_1x1", "gemm_1x1_batched"},
]
BATCHED += [{"im2col_gemm", "im2col_batched_gemm"}]  # [connected]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in an empty folder, which is also the cache; benchmark only as long as needed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "MIN_SECONDS", 0)
    return tmp_path


@pytest.fixture(params=["host-cuda", "cuda"])
def be(request):
    """Kernels and a cuBLAS made of NumPy, without streams; and a GPU."""
    return plan_backend() if request.param == "host-cuda" else backend_for("cuda")


def plan(net, batch=1):
    return compile(net.nodes, net.weights, net.heads, net.net.input, batch)


@pytest.mark.parametrize(("batch", "candidates"), [(1, CANDIDATES), (2, BATCHED)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_shape_is_benchmarked_once(be, batch, candidates, precision):
    net = load_network(cfg.parse(NET), backend=be)
    results = list(autotune.measure(plan(net, batch), be, precision))
    assert [set(times) for _, _, times in results] == candidates
    assert all(choice in times and min(times.values()) > 0 for _, choice, times in results)


def test_a_choice_must_be_clearly_faster_than_the_rules():
    assert autotune.pick({"im2col_gemm": 1.0, "winograd_f2": 0.95}, "im2col_gemm") == "im2col_gemm"
    assert autotune.pick({"im2col_gemm": 1.0, "winograd_f2": 0.85, "direct": 0.8}, "im2col_gemm") == "direct"
    assert autotune.pick({"winograd_f2": 0.95}, "im2col_gemm") == "winograd_f2"  # there was no memory for the rule's


def test_a_device_is_named_with_its_cublas(be):
    name, version = "host-cuda", 120901
    if be.name == "cupy":
        name = be.xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
        version = be.xp.cuda.cublas.getVersion(be.xp.cuda.device.get_cublas_handle())
    number = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    assert autotune.device_name(be, "fp16") == f"{name}, cuBLAS {number}, fp16"


def test_choices_are_stored_and_used(be):
    net = load_network(cfg.parse(NET), backend=be)
    key = plan(net).steps[1].key(1)
    of = autotune.device_name(be, "fp32")
    path = tuning.save_tuning(of, {key: "winograd_f2"})
    assert list(json.loads(path.read_text())) == [of]
    assert tuning.load_tuning(of) == {key: "winograd_f2"} and tuning.load_tuning(autotune.device_name(be, "fp16")) == {}
    x = be.asarray(np.zeros((1, 3, 10, 16), np.float32))
    want = be.to_numpy(net.predict(x, engine="reference")[0])
    for precision, algorithm in (("fp32", "winograd_f2"), ("fp16", "im2col_gemm")):
        net.program_cache.clear()
        np.testing.assert_allclose(be.to_numpy(net.predict(x, precision=precision)[0]), want, rtol=1e-2, atol=1e-2)
        (program,) = net.program_cache.programs.values()
        assert [program.schedule.algorithms[s] for s in program.schedule.steps if 1 in s.layers] == [algorithm]


def test_an_algorithm_without_memory_is_left_out(be, monkeypatch):
    net = load_network(cfg.parse(NET), backend=be)
    allocate = cuda.Program._allocate

    def refuse(self):
        if "winograd_f2" in self.schedule.algorithms.values():
            raise BackendError("out of memory")
        allocate(self)

    monkeypatch.setattr(cuda.Program, "_allocate", refuse)
    results = list(autotune.measure(plan(net), be, "fp32"))
    assert [set(times) for _, _, times in results] == [names - {"winograd_f2"} for names in CANDIDATES]


def test_the_command_tunes_and_shows(be, monkeypatch, capsys):
    monkeypatch.setattr(backend, "get", lambda name: be)
    Path("x.cfg").write_text(NET)
    assert main(["plan", "x.cfg", "-tune", "-precision", "fp16", "-batch", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and all(" ms" in line for line in lines[: len(BATCHED)])
    assert lines[len(BATCHED)].endswith(f"{len(BATCHED)} algorithms for {autotune.device_name(be, 'fp16')}")
    assert lines[-4].startswith("CUDA, fp16, ")
    assert len(tuning.load_tuning(autotune.device_name(be, "fp16"))) == len(BATCHED)
    assert main(["plan", "x.cfg", "-precision", "int8"]) == 2
    assert capsys.readouterr().err == "error: plan: unknown precision 'int8'; choose fp32, tf32 or fp16\n"
