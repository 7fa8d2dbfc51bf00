"""Autotuning on a GPU: benchmarks, stored by device, and used; on a CPU, where the times mean nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from backends import backend_for, plan_backend

from gpudarknet import backend, cfg, load_network
from gpudarknet.backend import cuda as kernels
from gpudarknet.cli import main
from gpudarknet.errors import BackendError
from gpudarknet.io import resources
from gpudarknet.plan import compile, cuda, tuning
from gpudarknet.plan.cuda import autotune, dry_run
from gpudarknet.plan.cuda.algorithms import ALGORITHMS, IMPLICIT_GEMMS, ConvProblem, implicit_gemms
from gpudarknet.plan.cuda.canonicalize import canonicalize
from gpudarknet.plan.cuda.stream import stream_context
from gpudarknet.plan.cuda.time_model import find_card
from gpudarknet.plan.steps import Convolve

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
DEPTHWISE = """[net]
channels=8
width=16
height=10
[convolutional]
filters=8
groups=8
size=3
pad=1
activation=mish
[maxpool]
size=2
stride=2
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[maxpool]
size=2
stride=2
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
    tensor_cores = {*IMPLICIT_GEMMS, "image_gemm"}
    on_tensor_cores = [set(times) & tensor_cores for _, _, times in results]
    if precision == "fp16":  # [convolutional] with 1 x 1 and [connected] have a choice at batch 1 too
        assert all(on_tensor_cores) and len(results) == 4
    else:
        assert not any(on_tensor_cores)
    names = [set(times) - tensor_cores for _, _, times in results]
    assert [n for n in names if len(n) > 1] == candidates
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
    device, kernels = autotune.device_name(be, "fp16").split(", kernels ")
    assert device == f"{name}, cuBLAS {number}, fp16" and re.fullmatch("[0-9a-f]{8}", kernels)


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


def test_a_default_ships_for_a_gpu(be, monkeypatch, tmp_path):
    """It replaces the rule, but not what was measured."""
    net = load_network(cfg.parse(NET), backend=be)
    of = autotune.device_name(be, "fp16")
    (tmp_path / "tuning").mkdir()
    monkeypatch.setattr(resources, "folder", lambda: tmp_path)
    file = tmp_path / "tuning" / "this.json"

    def algorithms(names):
        file.write_text(json.dumps({of.replace("cuBLAS 1", "cuBLAS 2"): names}))
        net.program_cache.clear()
        return list(net.program(1, precision="fp16").schedule.algorithms.values())

    rule = ["direct", "im2col_gemm", "im2col_gemm", "gemm_1x1", "im2col_gemm"]
    steps, device = canonicalize(plan(net), be).steps, stream_context(be).properties
    ours = [implicit_gemms(ConvProblem(s, 1, "fp16", device))[0] for s in steps if isinstance(s, Convolve)]
    step, default = steps[1], {"default": "implicit_gemm"}
    measured = [ours[0], *rule[1:3], *ours[3:]]
    assert algorithms({}) == algorithms({"default": "unknown"}) == rule
    assert algorithms(default) == ours
    assert algorithms(default | {step.key(1): "im2col_gemm"}) == measured
    tuning.save_tuning(of, {step.key(1): "im2col_gemm"})
    assert algorithms(default) == measured


def test_a_plan_without_a_gpu_has_what_ships_for_the_card(monkeypatch, tmp_path, capsys):
    Path("x.cfg").write_text(NET)
    monkeypatch.setattr(backend, "why_no_cupy", lambda: "there is no GPU")
    (tmp_path / "tuning").mkdir()
    monkeypatch.setattr(resources, "folder", lambda: tmp_path)
    of = autotune.conditions("NVIDIA L4, cuBLAS 13.0.2", "fp16")
    (tmp_path / "tuning" / "l4.json").write_text(json.dumps({of: {"default": "implicit_gemm"}}))
    for card, count in (("L4", 4), ("T4", 0)):
        assert main(["plan", "x.cfg", "-device", "gpu", "-precision", "fp16", "-card", card]) == 0
        assert sum("  implicit gemm " in line for line in capsys.readouterr().out.splitlines()) == count


@pytest.fixture
def kernel_folder(monkeypatch, tmp_path):
    """A copy of the kernels, which the package reads instead."""
    folder = shutil.copytree(kernels.folder(), tmp_path / "kernels")
    monkeypatch.setattr(kernels, "folder", lambda: folder)
    yield folder
    kernels.source.cache_clear(), kernels.version.cache_clear()


def test_measurements_depend_on_the_kernels(kernel_folder):
    def changed(name, old="", new=""):
        text = (kernel_folder / name).read_text()
        assert old in text
        (kernel_folder / name).write_text(text.replace(old, new, 1))
        kernels.source.cache_clear(), kernels.version.cache_clear()
        return autotune.conditions("x", "fp16")

    before = changed("nhwc.cu")
    assert changed("nhwc.cu", "int i = ", "// a comment\n    int   i = ") == before
    assert changed("pool.cu", "int i = ", "int j = 0, i = ") == before  # no convolution uses it
    after = changed("nhwc.cu", "int   i = ", "int j = 0, i = ")
    assert after != before
    assert changed("common.cuh", "thread_index()", "thread_index(void)") not in (before, after)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_kernels_of_every_algorithm_count(precision):
    """Of fused epilogues too: networks whose steps are convolutions launch no other kernels."""
    used = set()
    for algorithm in ALGORITHMS:
        for text in (NET, NET.replace("size=3\npad=1", "size=3\npad=1\ngroups=1"), DEPTHWISE):
            net = load_network(cfg.parse(text), backend=dry_run.backend())
            compiled = plan(net, 2)
            choices = {s.key(2): algorithm for s in compiled.steps if isinstance(s, Convolve)}
            program = cuda.Program(compiled, net.backend, precision, choices=choices)
            used |= {
                launch.kernel for launches in program.step_launches.values() for launch in launches if launch.kernel
            }
            used |= program.input_stage.kernels
    assert {kernel.partition(".")[0] for kernel in used} <= set(autotune.KERNEL_FILES)
    assert set(autotune.KERNEL_FILES) <= set(kernels.files())


def test_the_likely_implicit_gemms_are_benchmarked():
    net = load_network(cfg.parse(NET.replace("filters=16", "filters=128")), backend=dry_run.backend())
    step = plan(net, 8).steps[1]
    problem = ConvProblem(step, 8, "fp16")
    chosen = [name for name in autotune.candidates(problem) if name in IMPLICIT_GEMMS]
    assert set(chosen) == set(implicit_gemms(problem)[: autotune.IMPLICIT_GEMMS]) and len(chosen) == 6
    assert {"im2col_gemm", "winograd_f2"} <= set(autotune.candidates(problem))


def test_the_modelled_time_of_one_convolution():
    """That of its launches in a plan; a dry run has it too."""
    be, card = dry_run.backend(), find_card("H100")
    net = load_network(cfg.parse(NET), backend=be)
    compiled = plan(net, 2)
    problem = next(p for p in autotune.problems(compiled, be, "fp16") if p.step.xs[0].shape[0] == 16)
    modelled = {name: autotune.modelled_seconds(program, card) for name, program in autotune.programs(problem, be)}
    assert set(modelled) == set(autotune.candidates(problem)) and min(modelled.values()) > 0
    ours = implicit_gemms(problem)[0]
    whole = cuda.Program(compiled, be, "fp16", choices={problem.step.key(2): ours})
    (step,) = (s for s, name in whole.schedule.algorithms.items() if 1 in s.layers)
    launches = [t for t in whole.launch_times(card) if t.step is step]
    assert len(launches) == 1 and launches[0].modelled == modelled[ours]


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
    assert sum(line.startswith("CUDA, fp16, ") for line in lines) == 1
    assert len(tuning.load_tuning(autotune.device_name(be, "fp16"))) == len(BATCHED)
    assert main(["plan", "x.cfg", "-precision", "int8"]) == 2
    assert capsys.readouterr().err == "error: plan: unknown precision 'int8'; choose fp32, tf32 or fp16\n"
