"""The suite as a whole: real processes that take turns, on a network of a millisecond."""

from __future__ import annotations

import json

import pytest
from gpudarknet.bench.engines import Job
from gpudarknet.bench.timing import Sample
from test_bench_engines import CFG

from gpudarknet.bench import records, suite
from gpudarknet.cli import main


@pytest.fixture
def quick(monkeypatch):
    """A machine that need not be measured for seconds."""
    monkeypatch.setattr(suite, "rate", lambda question, threads: 50.0 if "gemm" in question else 10.0)
    monkeypatch.setattr(suite, "REST", 0.0)


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "tiny.cfg").write_text(CFG)
    return tmp_path / "tiny.cfg"


def test_a_run_gives_table_records_and_page(quick, cfg, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    out = tmp_path / "run.jsonl"
    flags = "--device cpu --seconds 0.05 --engines plan,reference,darknet --layers --out".split()
    assert main(["bench", str(cfg), *flags, str(out)]) == 0
    printed = capsys.readouterr().out
    assert (
        "tiny 40×24" in printed
        and "GPU FPS vs CPU GFLOPS estimates" in printed
        and "Layers of tiny 40×24, reference" in printed
        and "Steps of tiny 40×24, plan" in printed
    )
    assert (tmp_path / "run.html").exists()

    found = records.read(out)
    (machine,) = records.machines(found)
    assert machine["gemm_gflops"] == {"fp32": 50.0} and machine["copy_gb_s"] == 10.0
    good, bad = records.results(found), records.results(found, failed=True)
    assert [r["engine"] for r in good] == ["plan", "reference"]
    for r in good:
        assert r["calls"] >= suite.ROUNDS
        assert r["fps"]["p10"] <= r["fps"]["median"] <= r["fps"]["p90"]
        assert r["cpu_ms"]["median"] > 0
        assert r["device"] == machine["device"]
    assert [(r["engine"], r["failed"][:24]) for r in bad] == [("darknet", "no `darknet` on the PATH")]
    steps, layers = records.layers(found)
    assert [r["name"] for r in layers] == ["convolutional", "maxpool", "convolutional", "yolo"]
    assert {r["engine"] for r in steps} == {"plan"}
    assert sum(r["gflop"] for r in steps) == pytest.approx(sum(r["gflop"] for r in layers))
    assert min(r["ms"] for r in [*steps, *layers]) > 0


def test_an_engine_whose_process_dies_is_a_row_that_says_so(quick, cfg, tmp_path):
    subject = suite.subject(str(cfg), suite.Options(), tmp_path)
    broken = Job("plan", subject.cfg, str(tmp_path / "none.weights"), 40, 24, threads=1)
    odd = Job("no such engine", subject.cfg, subject.weights, 40, 24, threads=1)
    first, second = suite.turns(subject, [broken, odd], suite.Options(seconds=0.01), print)
    assert first["failed"].startswith(str(tmp_path / "none.weights"))
    assert second["failed"] == "its process ended with code 1: KeyError: 'no such engine'"


def test_what_a_limit_leaves_out_says_so(quick, cfg, tmp_path):
    options = suite.Options((str(cfg),), ("plan", "reference"), seconds=0.01, limit=1e-9, layers=True)
    machine, *rows = suite.run(options)
    assert {r["failed"] for r in rows} == {"left out: the limit of 0 s was reached"}
    assert machine["flags"][-1] == "tiny: its layers are left out: the limit of 0 s was reached"


def test_a_worker_that_does_not_answer_is_given_up(cfg):
    worker = suite.Worker({"gemm": 2048}, 1)
    assert worker.answer(patience=0.0) == {"failed": "no answer within 0 s"}


def test_costs_of_a_network(cfg, tmp_path):
    found = suite.subject(str(cfg), suite.Options(), tmp_path)
    conv = 2 * 8 * 3 * 9 * 20 * 12 + 2 * 18 * 8 * 10 * 6
    assert found.gflop == round(conv / 1e9, 4)
    assert found.bflops == round((conv + 4 * 8 * 10 * 6) / 1e9, 4)
    numbers = (8 * 5 - 8 + 8 * 27 + 3 * 960 + 8 * 240) + (18 + 18 * 8 + 8 * 60 + 18 * 60)
    assert found.mbyte == pytest.approx(4 * numbers / 1e6, abs=1e-4)


def test_numbers_of_a_sample():
    found = suite.numbers(Sample([0.1, 0.2], [0.2, 0.4]), batch=2)
    assert found["fps"] == {"median": 15.0, "p10": 11.0, "p90": 19.0}
    assert found["wall_ms"]["median"] == 150.0 and found["cpu_ms"]["median"] == 300.0
    assert found["few"] == "2 timed calls only: slow for the time allowed"


def test_records_are_plain_json():
    json.dumps(suite.stamp({"device": "x"}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--engines", "plan,tensorrt"],
            "-engines: no 'tensorrt'; choose from plan, reference, opencv, onnxruntime, torch, darknet",
        ),
        (["--precision", "int8"], "-precision: no 'int8'; choose from fp32, tf32, fp16"),
        (["--device", "tpu"], "-device: no 'tpu'; choose from auto, cpu, gpu"),
        (["--batch", "1,x"], "-batch is a list of numbers from 1 on, for example 1,8; found '1,x'"),
        (["--seconds", "0"], "-seconds is a time from 0 to 3600, found 0"),
        (["--threads", "-1"], "-threads cannot be negative"),
        (["--weights", "x.weights"], "-weights belongs to one network; name it"),
        (["--out", "none/x.jsonl"], "-out none/x.jsonl: there is no folder none; make it first"),
    ],
)
def test_errors_say_what_to_do(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert capsys.readouterr().err == f"error: bench: {message}\n"
