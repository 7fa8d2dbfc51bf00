"""The tables: efficiencies, the rule, GPUs of other machines, and the note if there are none."""

from __future__ import annotations

import pytest
from bench_cases import CPU, GPU_RECORDS, RECORDS, failed, result

from gpudarknet.bench import columns, records, tables


def row(device="Fake CPU", engine="plan", rows=RECORDS, precision="fp32"):
    every = columns.rows(rows)
    return next(
        r
        for r in every
        if (r.device["device"], r.result["engine"], r.result["precision"]) == (device, engine, precision)
    )


def test_columns_of_the_cpu():
    cpu = row()
    assert cpu.achieved == 140.0  # 4 FPS x 35 GFLOP
    assert cpu.of_gemm == 0.35
    assert cpu.peak == (400.0, 512.0)  # gemm exceeds the lower end of 384
    assert cpu.of_peak == (140 / 512, 140 / 400)
    assert cpu.rule == pytest.approx((0.01 * 400 * 34.9 / 35, 0.01 * 512 * 34.9 / 35))
    assert cpu.of_rule == pytest.approx((4 / 5.1054, 4 / 3.9886), rel=1e-4)
    assert cpu.per_gflops == (4 / 512, 4 / 400)
    assert cpu.equivalent == pytest.approx(400.0)  # 4 x 35 / 0.35
    assert cpu.cores == pytest.approx(400 / 128)  # a core has 512 / 4
    assert (cpu.times, row(engine="reference").times) == (1.0, 0.25)


def test_a_gpu_is_compared_with_this_cpu():
    gpu = row("Fake GPU", rows=[*RECORDS, *GPU_RECORDS])
    assert gpu.times == 50.0  # 200 FPS / 4
    assert gpu.cores == pytest.approx(200 * 35 / 0.35 / 128)
    half = row("Fake GPU", rows=[*RECORDS, *GPU_RECORDS], precision="fp16")
    assert half.of_gemm == pytest.approx(800 * 35 / 60000)


def test_without_a_peak_its_columns_are_empty():
    cpu = row(rows=[CPU | {"peak_gflops": {}}, *RECORDS[1:]])
    assert (cpu.peak, cpu.of_peak, cpu.rule, cpu.of_rule, cpu.per_gflops, cpu.cores) == (None,) * 6
    assert "–" in tables.line(cpu)


def test_gpus_of_other_machines_are_shown_with_their_date(tmp_path):
    records.write(tmp_path / "2025-12-31.jsonl", GPU_RECORDS)
    grid = tables.estimates(RECORDS, records.gpu_records(tmp_path))
    shown = [cells[0] for cells in grid.cells]
    assert shown.count("Fake GPU") == 2 and shown.count("Fake CPU") == 2
    assert "Fake GPU: not this machine; measured 2025-12-31, commit def." in grid.notes
    assert tables.NO_GPU not in grid.notes
    first = next(cells for cells in grid.cells if cells[0] == "Fake GPU" and cells[3] == "fp32")
    assert first == [
        "Fake GPU", "net 416", "plan", "fp32", "1", "200", "7,000", "10,000", "70 %", "78 %", "99.7", "2.01", "0.0200",
        "20,000", "156", "50.0",
    ]  # fmt: skip


def test_without_gpus_the_first_note_says_so():
    grid = tables.estimates(RECORDS)
    assert grid.notes[0] == tables.NO_GPU
    assert {cells[0] for cells in grid.cells} == {"Fake CPU"}


def test_all_columns_are_present():
    assert tables.estimates(RECORDS).heads == (
        "device", "network", "engine", "precision", "batch", "FPS", "GFLOP/s", "peak GFLOPS", "of peak", "of gemm", "rule FPS",
        "÷ rule", "FPS per GFLOPS", "CPU-GFLOPS", "= cores", "× this CPU",
    )  # fmt: skip


def test_speed_shows_both_clocks_and_failures():
    grid = tables.speed([*RECORDS, failed(CPU, "opencv", "no")])
    plan, *_, torch = grid.cells[0], grid.cells[2]
    at = grid.heads.index
    assert (plan[at("wall ms")], plan[at("CPU ms")], plan[at("CPU/wall")]) == ("250", "500", "2.00")
    assert (torch[at("FPS")], torch[at("note")]) == ("–", "not installed; pip install torch")


def test_layers_show_what_bounds_them():
    grid = tables.slowest(RECORDS, records.layers(RECORDS)[0])
    assert grid.title == "Layers of net 416, reference"
    assert grid.cells == [
        ["0", "convolutional", "compute", "200", "80 %", "30.0", "150", "0.500"],
        ["1", "maxpool", "memory", "50.0", "20 %", "0.0100", "0.200", "2.00"],
    ]


@pytest.mark.parametrize(
    ("value", "want"),
    [(None, "–"), (0.0, "0"), (0.00123, "0.00123"), (9.999, "10.0"), (123.4, "123"), (999.9, "1,000"), (1234.5, "1,230"),
     (67e3, "67,000")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, want):
    assert tables.number(value) == want


def test_spans():
    assert tables.span((1.0, 1.001)) == "1.00"
    assert tables.span((0.1, 0.25), tables.percent) == "10–25 %"
    assert tables.span(None) == "–"


def test_a_batch_counts_images():
    assert columns.rows([CPU, result(CPU, 8.0, batch=4)])[0].achieved == 280.0


def test_advice_names_the_fastest_backend_and_what_is_missing():
    more = [
        result(CPU, 6.0, "openvino-backend"),
        result(CPU, 12.0, "openvino-backend", precision="bf16"),
        result(CPU, 9.0, "openvino"),  # the runtime alone is no backend
        result(CPU, 4.0, network="other"),
        result(CPU, 4.1, "onnxruntime", network="other"),  # noise
    ]
    assert tables.advice([*RECORDS, *more]) == [
        "net 416, batch 1: 1.50 times numpy's FPS: -backend openvino",
        "net 416, batch 1: 3.00 times numpy's FPS, with rounded results: -backend openvino -precision bf16",
        "-backend fastest takes the fastest engine in fp32; `gpudarknet plan x.cfg -tune` measures it for a network",
    ]
    missing = failed(
        CPU, "openvino-backend", "backend: 'openvino' cannot run here: openvino is not installed; pip install ..."
    )
    assert tables.advice([*RECORDS, missing]) == ['openvino was not measured: pip install "gpudarknet[openvino]"']
    assert tables.advice([*RECORDS, *GPU_RECORDS]) == []
