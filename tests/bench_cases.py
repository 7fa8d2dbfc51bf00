"""Fake records for the tests of the report. Their values are chosen so that results are round."""

from __future__ import annotations

CFG = """\
[net]
width=40
height=24
channels=3

[convolutional]
filters=8
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=18
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=4,5, 8,9, 12,14
classes=1
num=3
"""

CPU = {
    "record": "machine", "schema": 1, "date": "2026-01-02T03:04:05Z", "version": "0.1.0", "commit": "abc",
    "device": "Fake CPU", "kind": "cpu", "cores": 4, "threads": 8, "clock_ghz": [3.0, 4.0], "flop_per_cycle": [32, 32],
    "peak_gflops": {"fp32": [384.0, 512.0]}, "peak_source": "cores x clock x FLOP per cycle", "gemm_gflops": {"fp32": 400.0},
    "gemm_one_thread": 110.0, "gemm_n": 2048, "copy_gb_s": 20.0, "flags": ["busy: fake"],
}  # fmt: skip
GPU = {
    "record": "machine", "schema": 1, "date": "2025-12-31T00:00:00Z", "version": "0.1.0", "commit": "def",
    "device": "Fake GPU", "kind": "gpu", "cores": 100, "peak_gflops": {"fp32": [10000.0, 10000.0], "fp16": [80000.0, 80000.0]},
    "peak_source": "SMs x highest clock x units", "gemm_gflops": {"fp32": 9000.0, "fp16": 60000.0}, "copy_gb_s": 500.0,
    "flags": [],
}  # fmt: skip


def result(device, fps, engine="plan", network="net", gflop=35.0, noise=0.1, **more):
    """Return a result whose calls took twice as much CPU time as wall-clock time."""
    quantiles = {"median": fps, "p10": fps * (1 - noise), "p90": fps * (1 + noise)}
    wall = {"median": 1e3 / fps, "p10": 1e3 / quantiles["p90"], "p90": 1e3 / quantiles["p10"]}
    cpu = {name: 2 * value for name, value in wall.items()}
    return {
        "record": "result", "device": device["device"], "network": network, "width": 416, "height": 416, "gflop": gflop,
        "bflops": gflop, "mbyte": 350.0, "batch": 1, "precision": "fp32", "engine": engine, "engine_version": "1.2", "threads": 8,
        "note": "", "calls": 9, "fps": quantiles, "wall_ms": wall, "cpu_ms": cpu,
    } | more  # fmt: skip


def failed(device, engine, why):
    """Return a failed result."""
    record = {k: v for k, v in result(device, 1.0, engine).items() if k not in ("fps", "wall_ms", "cpu_ms", "calls")}
    return record | {"failed": why}


def layer(index, name, gflop, mbyte, ms):
    """Return a layer record of "net" on the CPU."""
    return {
        "record": "layer", "device": CPU["device"], "network": "net", "width": 416, "height": 416, "batch": 1, "precision":
        "fp32", "engine": "reference", "index": index, "name": name, "gflop": gflop, "mbyte": mbyte, "ms": ms,
    }  # fmt: skip


RECORDS = [
    CPU,
    result(CPU, 4.0),
    result(CPU, 1.0, "reference"),
    failed(CPU, "torch", "not installed; pip install torch"),
    layer(0, "convolutional", 30.0, 100.0, 200.0),
    layer(1, "maxpool", 0.01, 100.0, 50.0),
]
GPU_RECORDS = [GPU, result(GPU, 200.0), result(GPU, 800.0, batch=64, precision="fp16")]
