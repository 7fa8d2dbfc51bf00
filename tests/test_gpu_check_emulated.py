"""The GPU check on an emulated device: the same commands and rows, and what remains when something fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def command(emulator, tmp_path):
    """Return the command that runs the check and writes its rows to tmp_path."""
    return [sys.executable, "-m", "bench.gpu_check", "--out", str(tmp_path)]


def check(command, *words, **env):
    return subprocess.run(
        [*command, *words], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )


def rows(folder):
    files = list(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_part_a_passes(command, tmp_path):
    done = check(command, "--part", "A")
    results = rows(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("gpu-check: part A: ")
    assert all(row["emulated"] for row in results)
    outcomes = {row["case"]: row["outcome"] for row in results if "outcome" in row}
    assert set(outcomes.values()) == {"passed", "skipped"}
    for case in ("compile/kernels", "networks/yolov4-tiny", "memcheck/fp16", "threads/programs-freed-during-capture"):
        assert outcomes[case] == "passed", case
    timed = next(row for row in results if row["case"].endswith("fp16/batch-1/ours"))
    assert {"images_s", "latency_ms", "graph_ms", "host_us", "max_error"} <= timed.keys()
    assert len(list(tmp_path.iterdir())) <= 6


def test_rows_of_part_b(command, tmp_path):
    for case in ("training", "frames", "launches"):
        assert check(command, "--part", "B", "--only", case).returncode == 0, case
    results = [row for row in rows(tmp_path) if "outcome" in row]
    assert {row["case"].split("/")[0] for row in results} == {"training", "frames", "launches"}
    assert {row["outcome"] for row in results} <= {"passed", "skipped"}
    (frames,) = (row for row in results if row["case"].startswith("frames"))
    assert frames["outcome"] == "passed"
    timed = [row for row in results if "launch_columns" in row]
    assert timed and all(
        row["emulated"] and set(row["launch_columns"]) == {"launch", "us", "modelled_us", "mb", "gflop"}
        for row in timed
    )
    assert [one for row in timed for one in row["launches"] if len(one) != 5 or one[1] < 0 or one[3] <= 0] == []


def test_a_device_error_fails_one_case_and_shows_where(command, tmp_path):
    done = check(command, "--part", "A", "--only", "kernels", CUDA_EMULATOR_FAIL="cuLaunchKernel:60:700")
    results = [row for row in rows(tmp_path) if "outcome" in row]
    failed = [row for row in results if row["outcome"] == "failed"]
    assert done.returncode == 1 and failed
    assert "cudaErrorIllegalAddress" in failed[0]["traceback"] and failed[0]["unusable"]
    assert sum(row["outcome"] == "passed" for row in results) > len(failed)
    assert results[results.index(failed[0]) + 1]["outcome"] == "passed"  # in a new process
    assert "failed" in done.stdout.splitlines()[-1]


def test_a_killed_run_keeps_its_rows(command, tmp_path):
    process = subprocess.Popen([*command, "--part", "A", "--only", "kernels"], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        until = time.monotonic() + 120
        while len(rows_so_far(tmp_path)) < 5 and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = rows_so_far(tmp_path)
    assert len(kept) >= 5 and all(json.loads(line)["part"] == "A" for line in kept)


def rows_so_far(folder):
    """Return the complete lines."""
    return [line for file in folder.glob("*.jsonl") for line in file.read_text().split("\n")[:-1]]
