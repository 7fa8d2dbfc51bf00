"""The whole suite: real, interleaved processes on a network of a millisecond."""

from __future__ import annotations

import json

import pytest
from bench_cases import CFG
from gpudarknet.bench.engines import Job
from gpudarknet.bench.timing import Sample

from gpudarknet.bench import records, suite
from gpudarknet.cli import main


@pytest.fixture
def quick(monkeypatch):
    """Skip the slow measurements of the machine."""
    monkeypatch.setattr(suite, "rate", lambda request, threads: 50.0 if "gemm" in request else 10.0)
    monkeypatch.setattr(suite, "COOLDOWN", 0.0)


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / "tiny.cfg").write_text(CFG)
    return tmp_path / "tiny.cfg"


def test_a_run_writes_tables_records_and_page(quick, cfg, tmp_path, capsys, monkeypatch):
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

    results = records.read(out)
    (machine,) = records.machines(results)
    assert machine["gemm_gflops"] == {"fp32": 50.0} and machine["copy_gb_s"] == 10.0
    good, bad = records.results(results), records.results(results, failed=True)
    assert [r["engine"] for r in good] == ["plan", "reference"]
    for r in good:
        assert r["calls"] >= suite.ROUNDS
        assert r["fps"]["p10"] <= r["fps"]["median"] <= r["fps"]["p90"]
        assert r["cpu_ms"]["median"] > 0
        assert r["device"] == machine["device"]
    assert [(r["engine"], r["failed"][:24]) for r in bad] == [("darknet", "no `darknet` on the PATH")]
    steps, layers = records.layers(results)
    assert [r["name"] for r in layers] == ["convolutional", "maxpool", "convolutional", "yolo"]
    assert {r["engine"] for r in steps} == {"plan"}
    assert sum(r["gflop"] for r in steps) == pytest.approx(sum(r["gflop"] for r in layers))
    assert min(r["ms"] for r in [*steps, *layers]) > 0


def test_an_engine_whose_process_dies_is_recorded(quick, cfg, tmp_path):
    workload = suite.workload(str(cfg), suite.Options(), tmp_path)
    missing = Job("plan", workload.cfg, str(tmp_path / "none.weights"), 40, 24, threads=1)
    unknown = Job("no such engine", workload.cfg, workload.weights, 40, 24, threads=1)
    first, second = suite.interleave(workload, [missing, unknown], suite.Options(seconds=0.01), print)
    assert first["failed"].startswith(str(tmp_path / "none.weights"))
    assert second["failed"] == "its process ended with code 1: KeyError: 'no such engine'"


def test_results_skipped_by_a_limit_say_so(quick, cfg, tmp_path):
    options = suite.Options((str(cfg),), ("plan", "reference"), seconds=0.01, limit=1e-9, layers=True)
    machine, *rows = suite.run(options)
    assert {r["failed"] for r in rows} == {"skipped: the limit of 0 s was reached"}
    assert machine["flags"][-1] == "tiny: layers skipped: the limit of 0 s was reached"


def test_a_worker_that_does_not_answer_times_out(cfg):
    worker = suite.Worker({"gemm": 2048}, 1)
    assert worker.answer(timeout=0.0) == {"failed": "no answer within 0 s"}


def test_costs_of_a_network(cfg, tmp_path):
    costs = suite.workload(str(cfg), suite.Options(), tmp_path)
    conv = 2 * 8 * 3 * 9 * 20 * 12 + 2 * 18 * 8 * 10 * 6
    assert costs.gflop == round(conv / 1e9, 4)
    assert costs.bflops == round((conv + 4 * 8 * 10 * 6) / 1e9, 4)
    elements = (8 * 5 - 8 + 8 * 27 + 3 * 960 + 8 * 240) + (18 + 18 * 8 + 8 * 60 + 18 * 60)
    assert costs.mbyte == pytest.approx(4 * elements / 1e6, abs=1e-4)


def test_statistics_of_a_sample():
    summary = suite.statistics(Sample([0.1, 0.2], [0.2, 0.4]), batch=2)
    assert summary["fps"] == {"median": 15.0, "p10": 11.0, "p90": 19.0}
    assert summary["wall_ms"]["median"] == 150.0 and summary["cpu_ms"]["median"] == 300.0
    assert summary["warning"] == "only 2 timed calls: too slow for the time limit"


def test_records_are_plain_json():
    json.dumps(suite.machine_record({"device": "x"}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--engines", "plan,tensorrt"],
            "-engines: no 'tensorrt'; choose from plan, reference, openvino-backend, openvino, opencv, onnxruntime, torch,"
            " darknet",
        ),
        (["--precision", "int8"], "-precision: no 'int8'; choose from fp32, tf32, fp16, bf16"),
        (["--device", "tpu"], "-device: no 'tpu'; choose from auto, cpu, gpu"),
        (["--batch", "1,x"], "-batch must be a list of batch sizes, for example 1,8; not '1,x'"),
        (["--seconds", "0"], "-seconds must be above 0 and at most 3600, not 0"),
        (["--threads", "-1"], "-threads must not be negative"),
        (["--weights", "x.weights"], "-weights needs exactly one network; name it"),
        (["--out", "none/x.jsonl"], "-out none/x.jsonl: no folder none; create it first"),
    ],
)
def test_errors_say_what_to_do(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert capsys.readouterr().err == f"error: bench: {message}\n"
