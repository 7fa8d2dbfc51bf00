"""What of bench/gpu_plan.py needs no GPU: a stage on NumPy and through host-cuda, and a network that is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_plan_cuda import plan_backend, thin

sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import gpu_plan
from gpudarknet import backend, load_network


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(gpu_plan, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu_plan, "TIMED", 0.0)
    monkeypatch.setattr(gpu_plan, "ROUNDS", 1)
    monkeypatch.setitem(sys.modules, "torch", None)


def test_all_stages_together_take_ten_minutes_at_most():
    assert sum(stage.limit for stage in gpu_plan.STAGES) <= 600


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(backend, "why_no_cupy", lambda: "the driver shows no CUDA device")
    assert gpu_plan.main([]) == 2
    assert capsys.readouterr() == ("", "gpu-plan: no GPU to time: the driver shows no CUDA device\n")


def test_a_stage(quick, monkeypatch, capsys):
    network = load_network(thin("yolov3-tiny"), backend=plan_backend(), width=32, height=64)
    gpu_plan.seeded.fill(network)
    monkeypatch.setattr(gpu_plan, "opened", lambda name, backend, size: network)
    gpu_plan.run_here(gpu_plan.stage("yolov3-tiny", 32, 600), "cupy")
    outcome = json.loads(capsys.readouterr().out)
    result = outcome["result"]
    assert outcome["outcome"] == "failed"  # nothing is captured on a CPU
    assert result["failed"] == [
        f"{precision}: not captured: backend host-cuda has no CUDA streams" for precision in gpu_plan.PRECISIONS
    ]
    assert result["torch"].startswith("does not import")
    rows = [(row["engine"], row["batch"], row["precision"]) for row in result["rows"]]
    main, others = ("plan, graph", "plan, eager"), ("plan, one by one", "plan, patches")
    assert rows == [(e, batch, p) for batch in (1, 2) for p in gpu_plan.PRECISIONS for e in main] + [
        (e, batch, p) for batch in (1, 2) for p in gpu_plan.PRECISIONS for e in (others if p == "fp32" else others[:1])
    ]
    assert set(result["check"]) >= {"fp32", "fp32, one by one", "fp32, patches", "fp16, eager"}
    assert all(row["images_s"] > 0 and row["latency_ms"] > 0 for row in result["rows"])


def test_the_stage_that_tunes(quick, monkeypatch):
    network = load_network(thin("yolov3-tiny"), backend=plan_backend(), width=32, height=32)
    gpu_plan.seeded.fill(network)
    monkeypatch.setattr(gpu_plan, "opened", lambda name, backend, size: network)
    monkeypatch.setattr(gpu_plan.race, "SECONDS", 0)
    result = gpu_plan.tuned("yolov3-tiny", 32, 600).run("cupy")
    assert result["failed"] == []
    assert [(row["batch"], row["precision"]) for row in result["rows"]] == [
        (1, "fp32"), (1, "fp16"), (8, "fp32"), (8, "fp16"),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["choices"].keys() == row["microseconds"].keys() and row["rule"]["images_s"] > 0
        assert all(choice in row["microseconds"][key] for key, choice in row["choices"].items())


def test_a_wrong_plan_fails(quick, monkeypatch):
    network = load_network(thin("yolov3-tiny"), backend="numpy", width=32, height=32)
    gpu_plan.seeded.fill(network)
    network.predict(np.zeros((2, 3, 32, 32), np.float32))
    monkeypatch.setattr(network.engine, "forget", lambda: None)
    for _, bias in network.engine.prepared.values():
        bias += 1
    _, failed = gpu_plan.check(network)
    assert [line.split(":")[0] for line in failed] == list(gpu_plan.PRECISIONS)
