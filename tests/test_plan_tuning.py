"""Autotuning: benchmarks, the tuning file, programs that use it; and the command that prints a plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import gpudarknet
from gpudarknet import cfg
from gpudarknet.cli import main
from gpudarknet.errors import BackendError
from gpudarknet.export import fastest
from gpudarknet.io import resources
from gpudarknet.plan import Program, compile
from gpudarknet.plan.cpu import autotune
from gpudarknet.plan.cpu import program as cpu_program
from gpudarknet.plan.steps import Convolve
from gpudarknet.plan.tuning import load_tuning, save_tuning

NET = """[net]
channels=3
width=26
height=14
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
[convolutional]
filters=7
size=1
activation=linear
"""
DEVICE = autotune.device_name()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in an empty folder, which is also the cache; benchmark each algorithm once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    monkeypatch.setattr(autotune, "SECONDS", 0)
    monkeypatch.setattr(fastest, "SECONDS", 0)
    return tmp_path


def plan():
    net = gpudarknet.load_network(cfg.parse(NET), backend="numpy")
    return compile(net.nodes, net.weights, net.heads, net.net.input, 1)


def test_every_shape_is_benchmarked_once():
    compiled = plan()
    results = dict(autotune.measure(compiled))
    assert (
        list(results) == list(dict.fromkeys(s.key(1) for s in compiled.steps if isinstance(s, Convolve)))
        and len(results) == 3
    )
    first, _, last = results.values()
    assert set(first) == {"im2col_gemm", "winograd_f2", "winograd_f4"} and set(last) == {"im2col_gemm", "gemm_1x1"}
    assert all(t > 0 for times in results.values() for t in times.values())


def test_measured_algorithms_are_stored_and_used():
    compiled = plan()
    assert load_tuning(DEVICE) == {}
    key = compiled.steps[1].key(1)
    path = save_tuning(DEVICE, {key: "im2col_gemm"})
    save_tuning(DEVICE, {"another": "gemm_1x1"})
    assert load_tuning(DEVICE) == {key: "im2col_gemm", "another": "gemm_1x1"}
    assert list(json.loads(path.read_text())) == [DEVICE]
    algorithms = Program(compiled, load_tuning(DEVICE)).algorithms
    assert [algorithms[s] for s in compiled.steps] == ["im2col_gemm", "im2col_gemm", "im2col_gemm", "gemm_1x1"]
    assert Program(compiled).algorithms[compiled.steps[1]] == "winograd_f4"


def ship(monkeypatch, folder, devices, name="a.json"):
    """Ship a tuning file with the package."""
    (folder / "tuning").mkdir(exist_ok=True)
    (folder / "tuning" / name).write_text(json.dumps(devices))
    monkeypatch.setattr(resources, "folder", lambda: folder)


def test_measurements_that_ship_apply_unless_others_were_made_here(folder, monkeypatch):
    ours = "NVIDIA L4, cuBLAS 12.9.1, fp16, kernels 01234567"
    other = ours.replace("12.9.1", "13.0.2")
    ship(monkeypatch, folder, {other: {"a": "x", "b": "x", "default": "x"}, ours.replace("fp16", "fp32"): {"a": "y"}})
    ship(monkeypatch, folder, {"NVIDIA T4, cuBLAS 12.9.1, fp16, kernels 01234567": {"a": "z"}}, "b.json")
    (folder / "tuning" / "c.json").write_text("{")
    assert load_tuning(ours) == load_tuning("NVIDIA L4, fp16, kernels 01234567") == {"a": "x", "b": "x", "default": "x"}
    assert load_tuning(ours.replace("01234567", "76543210")) == load_tuning("NVIDIA L40, fp16, kernels 01234567") == {}
    path = save_tuning(ours, {"a": "mine"})
    assert json.loads(path.read_text()) == {ours: {"a": "mine"}}  # not what ships
    assert load_tuning(ours) == {"a": "mine", "b": "x", "default": "x"}
    assert load_tuning(other) == {"a": "x", "b": "x", "default": "x"}


def test_of_several_versions_of_cublas_the_present_one_counts(folder, monkeypatch):
    versions = [f"NVIDIA L4, cuBLAS {version}, fp16" for version in ("12.8.0", "12.9.1", "13.0.2")]
    ship(monkeypatch, folder, {version: {"a": version, "b": "x"} for version in versions})
    assert [load_tuning(version)["a"] for version in versions] == versions


def test_measurements_of_other_kernels_are_removed_when_new_ones_are_stored():
    old, new = (f"NVIDIA L4, cuBLAS 12.9.1, fp16, kernels {version}" for version in ("01234567", "76543210"))
    kept = [old.replace("fp16", "fp32"), old.replace("12.9.1", "13.0.2"), old.replace("L4", "L40"), DEVICE]
    for device in (old, *kept):
        save_tuning(device, {"a": "x"})
    path = save_tuning(new, {"b": "y"})
    assert json.loads(path.read_text()) == {**{device: {"a": "x"} for device in kept}, new: {"b": "y"}}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"%s": 3}', '{"%s": [1]}', '{"%s": null, "x": {}}'])
def test_a_broken_file_is_ignored(text):
    path = save_tuning(DEVICE, {})
    path.write_text(text.replace("%s", DEVICE))
    assert load_tuning(DEVICE) == {}


def test_an_unsupported_algorithm_is_ignored():
    compiled = plan()
    keys = [s.key(1) for s in compiled.steps]
    algorithms = Program(compiled, dict.fromkeys(keys, "gemm_1x1") | {keys[3]: "winograd_f2"}).algorithms
    assert [algorithms[s] for s in compiled.steps] == ["im2col_gemm", "winograd_f4", "winograd_f4", "gemm_1x1"]


def test_the_command_prints_a_plan(capsys):
    Path("x.cfg").write_text(NET)
    assert main(["plan", "x.cfg", "-height", "20", "-batch", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 8
    assert lines[1].split() == ["0", "convolve", "3", "x", "3", "/", "1", "leaky", "16x20x26", "0", "im2col_gemm"]
    assert lines[5] == "4 steps; 0 layers fused into the step before; 0 copies; fallback layers: none"
    assert lines[6].startswith("arena 0.1 MiB for batch 2") and lines[7].startswith("CPU, ")


def test_the_command_tunes(capsys):
    Path("x.cfg").write_text(NET)
    assert main(["plan", "x.cfg", "-tune"]) == 0
    out = capsys.readouterr().out
    assert "3 algorithms for" in out and out.splitlines()[0].count(" ms") == 3
    assert len(load_tuning(DEVICE)) == 3
    net = gpudarknet.load_network("x.cfg", backend="fastest")
    ((key, engine),) = load_tuning(fastest.device_name()).items()
    assert key == fastest.key(net.nodes, net.net.input, 1) and engine in fastest.engines()
    (line,) = (line for line in out.splitlines() if line.startswith(key))
    assert line.startswith(f"{key}: {engine} ")
    assert net.program().engine.startswith(engine)


def test_the_command_refuses_no_images(capsys):
    Path("x.cfg").write_text(NET)
    assert main(["plan", "x.cfg", "-batch", "0"]) == 2
    assert capsys.readouterr().err == "error: plan: -batch must be at least 1, got 0\n"


def test_a_batch_too_large_names_one_that_fits(monkeypatch):
    compiled = plan()
    each = 4 * compiled.arena_size
    compiled.batch, compiled.arena_size = 8, 8 * compiled.arena_size
    monkeypatch.setattr(cpu_program.machine, "memory_bytes", lambda: each * 3)
    with pytest.raises(BackendError) as e:
        cpu_program.allocate_arena(compiled)
    assert str(e.value) == (
        f"batch 8 of 3 x 14 x 26 needs {8 * each:,} bytes for its maps, this machine has {3 * each:,}; a batch of 3 would fit"
    )
    monkeypatch.setattr(cpu_program.machine, "memory_bytes", lambda: 64)
    with pytest.raises(BackendError, match="not one image would fit; make them smaller"):
        cpu_program.allocate_arena(compiled)
    monkeypatch.undo()
    monkeypatch.setattr(cpu_program.np, "zeros", no_memory)
    with pytest.raises(BackendError, match="this machine has less; a batch of 4 would fit"):
        cpu_program.allocate_arena(compiled)


def no_memory(*args):
    raise MemoryError


def test_a_benchmark_leaves_the_weights_unchanged():
    compiled = plan()
    before = {k: a.copy() for k, a in compiled.steps[1].w.items()}
    autotune.benchmark(compiled.steps[1], 1)
    assert all(np.array_equal(before[k], a) for k, a in compiled.steps[1].w.items())
