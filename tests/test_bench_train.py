"""Training compared with PyTorch: ours runs, in a process of its own, and what the lines and records say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gpudarknet.bench import engines, memory, train


@pytest.fixture
def ours_alone(monkeypatch):
    monkeypatch.setattr(train, "TORCH", ())
    monkeypatch.setattr(train.suite, "ROUNDS", 1)
    monkeypatch.setattr(train.suite, "COOLDOWN", 0.0)


def test_a_small_network(ours_alone, tmp_path, capsys):
    out = tmp_path / "train.jsonl"
    arguments = ["digits", "--batch", "2", "--size", "64x32", "--threads", "1", "--seconds", "0.01", "--out", str(out)]
    assert train.main(arguments) == 0
    compiled, reference = map(json.loads, out.read_text().splitlines())
    assert capsys.readouterr().out == f"{train.line(compiled)}\n{train.line(reference)}\n"
    fields = ("record", "network", "width", "height", "batch", "engine", "threads", "precision")
    assert [compiled[name] for name in fields] == ["train", "digits", 64, 32, 2, "gpudarknet", 1, "fp32"]
    assert compiled["fps"]["median"] > 0 and compiled["calls"] >= 1 and compiled["device"]
    if memory.resident():
        assert compiled["memory_mb"] > 0 and compiled["memory_mb_per_image"] == pytest.approx(
            compiled["memory_mb"] / 2, abs=0.1
        )
    assert reference["fps"]["median"] > 0 and reference["engine"] == "gpudarknet reference"


def result(engine, speed, threads=2, **fields):
    quantiles = {"median": speed, "p10": speed - 1, "p90": speed + 1}
    network = {"network": "digits", "width": 64, "height": 32, "batch": 4}
    return network | {"engine": engine, "threads": threads, "fps": quantiles, "calls": 9} | fields


def test_lines():
    head = "digits 64 x 32, batch 4: gpudarknet, threads: 2: "
    assert train.line(result("gpudarknet", 50.0)) == head + "50 images/s (49 to 51; 9 steps)"
    record = result("gpudarknet", 50.0, memory_mb=10.04, memory_mb_per_image=2.51)
    assert train.line(record) == head + "50 images/s (49 to 51; 9 steps); 10 MB, 2.5 per image"
    assert (
        train.line(record | {"failed": "not installed; pip install torch"}) == head + "not installed; pip install torch"
    )


def test_the_best_of_both_are_compared_for_each_number_of_threads():
    results = [result("gpudarknet", 50.0), result("gpudarknet reference", 40.0), result("torch", 100.0),
               result("torch compile", 125.0), result("gpudarknet", 30.0, threads=1)]  # fmt: skip
    assert train.ratio(results, 2) == (
        "digits 64 x 32, batch 4, threads: 2: ours / PyTorch = 0.40 (gpudarknet 50 / torch compile 125 images/s)"
    )
    assert train.ratio(results, 1) is None


def test_a_compiler_that_fails_is_said(monkeypatch):
    def step():
        raise RuntimeError("InvalidCxxCompiler\nNo working C++ compiler found")

    monkeypatch.setattr(train, "torch", lambda job: (step, "2"))
    job = engines.Job("torch compile", "", "", 64, 32, 2)
    with pytest.raises(engines.Unavailable, match=r"^torch.compile: No working C\+\+ compiler found$"):
        train.start(job)


@pytest.mark.skipif(not memory.resident(), reason="needs /proc")
def test_peak_memory():
    memory.reset_peak()
    before = memory.resident()
    array = np.ones(8 << 20, np.float64)
    del array
    assert 60e6 < memory.peak() - before < 90e6
    memory.reset_peak()
    assert memory.peak() - before < 30e6
