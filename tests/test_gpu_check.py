"""What of `make gpu-check` needs no GPU: its stages on NumPy and through host-cuda, their limits, the result file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import op_cases
import pytest
from conftest import backend_for
from test_plan_cuda import plan_backend

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench import gpu_check, stages  # noqa: E402
from bench.stages import Stage  # noqa: E402
from gpudarknet import backend  # noqa: E402
from gpudarknet.op import OPS  # noqa: E402
from gpudarknet.plan import race  # noqa: E402
from gpudarknet.plan.ways import WAYS  # noqa: E402


def test_it_takes_less_than_eight_minutes():
    assert sum(stage.limit for stage in gpu_check.STAGES) < 480


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(backend, "why_no_cupy", lambda: "the driver shows no CUDA device")
    assert gpu_check.main([]) == 2
    assert capsys.readouterr() == ("", "gpu-check: no GPU to check: the driver shows no CUDA device\n")


def test_kernels_pass_and_all_are_there(monkeypatch):
    be = backend_for("host-cuda")
    monkeypatch.setattr(gpu_check.backends, "get", lambda name: be)
    monkeypatch.setattr(op_cases, "CASES", [case for case in op_cases.CASES if case.shape == op_cases.SHAPES[1]])
    result = gpu_check.kernels("host-cuda")
    assert result["failed"] == []
    assert {name.removesuffix(" float16") for name in result["worst_in_tolerances"]} == set(OPS)
    assert any(name.endswith("float16") for name in result["worst_in_tolerances"])


def test_a_wrong_kernel_fails(monkeypatch):
    op = OPS["reorg.space_to_depth"]
    monkeypatch.setattr(op, "definition", lambda be, x, s: op.__wrapped__(be, x[:, ::-1], s))
    result = gpu_check.kernels("numpy")
    assert result["failed"] and all(line.startswith("reorg.space_to_depth-") for line in result["failed"])


def test_networks_are_compared_layer_by_layer(monkeypatch):
    monkeypatch.setattr(gpu_check, "NETWORKS", {"yolov4-tiny": (64, 96, 2e-4)})
    result = gpu_check.networks("numpy")
    assert result["failed"] == []
    assert result["networks"]["yolov4-tiny"]["outputs"] == 38 + 2  # every layer, then both heads by the plan
    good = gpu_check.outputs("yolov4-tiny", "numpy", 64, 96)
    good[0][5] = good[0][5] + np.float32(1)
    monkeypatch.setattr(gpu_check, "outputs", lambda *args: good)
    (failed,) = gpu_check.networks("numpy")["failed"]
    assert failed.startswith("yolov4-tiny: output 5 is ")


def test_precisions_and_graphs_are_checked(monkeypatch):
    monkeypatch.setattr(gpu_check, "PRECISE", ("yolov4-tiny",))
    result = gpu_check.precisions("numpy")
    assert result["failed"] == [] and len(result["precisions"]) == 3
    assert {row["eagerly"] for row in result["precisions"].values()} == {"on the CPU"}
    monkeypatch.setattr(gpu_check, "PRECISIONS", {"fp32": 1e-9})
    (failed,) = gpu_check.precisions("numpy")["failed"]
    assert failed.startswith("yolov4-tiny in fp32: ")


def test_every_way_to_convolve_is_checked(monkeypatch):
    get = backend.get
    monkeypatch.setattr(backend, "get", lambda name: plan_backend() if name == "host-cuda" else get(name))
    monkeypatch.setattr(race, "SECONDS", 0)
    monkeypatch.setattr(gpu_check, "WAYS", gpu_check.WAYS.replace("=40\nheight=24", "=16\nheight=8"))
    monkeypatch.setattr(gpu_check, "PRECISIONS", {"fp32": 2e-5, "fp16": 1e-2})
    result = gpu_check.ways("host-cuda")
    assert result["failed"] == []
    large = {"patches of 64 MiB", "patches of 16 MiB"}
    for precision in ("fp32", "fp16"):
        assert {f"{precision} {way}" for way in [*WAYS, "raced"] if way not in large} == {
            label for label in result["relative"] if label.startswith(precision)
        }
    monkeypatch.setattr(gpu_check, "PRECISIONS", {"fp32": 1e-9})
    assert gpu_check.ways("host-cuda")["failed"][0].startswith("fp32 kernel: ")


@pytest.mark.parametrize("name", ["versions", "launches", "copies", "gemm-fp32", "gemm-fp16"])
def test_stage_on_numpy(name, monkeypatch):
    monkeypatch.setattr(gpu_check, "seconds", lambda be, work, calls: float(work() is not work) * 1e-3)
    stage = next(stage for stage in gpu_check.STAGES if stage.name == name)
    result = stage.run("numpy")
    assert result.get("failed", []) == []
    assert all(np.isfinite(v) for v in result.values() if isinstance(v, float))


def test_the_sanitizer_is_skipped_where_it_is_not(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *args, **kw: None)
    with pytest.raises(stages.Skipped, match="compute-sanitizer is not installed"):
        gpu_check.sanitizer("memcheck")("cupy")


MODULE = """
import subprocess, sys
sys.path.insert(0, {root!r})
from bench.stages import Skipped, Stage, run_here

def hang(backend): subprocess.run(["sleep", "600"])
def crash(backend): raise RuntimeError("the device is lost")
def wrong(backend): return {{"failed": ["reorg: 3 times its tolerance"]}}
def right(backend): return {{"backend": backend}}
def absent(backend): raise Skipped("compute-sanitizer is not installed")

run_here(Stage(sys.argv[1], globals()[sys.argv[1]], 1), sys.argv[2])
"""


def test_every_outcome_is_in_the_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "trial.py").write_text(MODULE.format(root=str(ROOT)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    limits = {"right": 60, "absent": 60, "hang": 1, "crash": 60, "wrong": 60}
    trial = [Stage(name, lambda backend: {}, limit) for name, limit in limits.items()]
    path = tmp_path / "results" / "trial.json"
    assert stages.run_all("trial", trial, "numpy", {"commit": "abc"}, path) is False
    result = json.loads(path.read_text())
    assert result["commit"] == "abc" and result["passed"] is False
    assert {name: (one["outcome"], one.get("why")) for name, one in result["stages"].items()} == {
        "right": ("passed", None),
        "absent": ("skipped", "compute-sanitizer is not installed"),
        "hang": ("timed out", "it did not end in 1 s"),
        "crash": ("failed", "RuntimeError: the device is lost"),
        "wrong": ("failed", "1 failed, first: reorg: 3 times its tolerance"),
    }
    assert result["stages"]["right"]["result"] == {"backend": "numpy"}
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert [p.name for p in path.parent.iterdir()] == ["trial.json"]


def test_the_file_is_written_after_every_stage(tmp_path, monkeypatch):
    (tmp_path / "trial.py").write_text(MODULE.format(root=str(ROOT)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = []
    monkeypatch.setattr(stages, "write", lambda path, result: seen.append((result["passed"], len(result["stages"]))))
    assert stages.run_all("trial", [Stage("right", len, 60), Stage("absent", len, 60)], "numpy", {}, tmp_path / "x")
    assert seen == [(None, 1), (None, 2), (True, 2)]
