"""The GPU check's runner on fake stages (gpu_check_trial.py): a row for every case, whatever happens to the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_check_trial import CHILD, DEVICE, run, stages

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench.gpu_check import __main__ as command  # noqa: E402
from bench.gpu_check import child, runner  # noqa: E402
from bench.gpu_check.case import Case, Context, Stage, matches  # noqa: E402


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


def rows(stage, only=""):
    """Run a stage; return its rows by case name, without the stage's prefix, and its log."""
    results, log = [], []
    runner.Runner(CHILD, Context("numpy"), results.append, log.append).run(*stages(stage), only)
    assert len({row["case"] for row in results}) == len(results), "one row per case"
    return {row["case"].removeprefix(f"{stage}/"): row for row in results}, "".join(log)


def outcomes(results):
    return {case: row["outcome"] for case, row in results.items()}


def test_every_outcome_has_a_row():
    results, log = rows("mixed")
    assert outcomes(results) == {
        "passing": "passed", "raising": "failed", "failing": "failed", "skipping": "skipped", "passing-4": "passed",
    }  # fmt: skip
    assert results["raising"]["failed"] == ["RuntimeError: the device is lost"]
    assert "in raising\n" in results["raising"]["traceback"]
    assert results["failing"]["failed"] == ["3 times its tolerance"]
    assert results["skipping"]["skipped"] == "compute-sanitizer is not installed"
    assert results["passing"]["process"] == results["passing-4"]["process"]
    assert "on stdout, before it" in log


def test_a_hanging_case_costs_only_its_own_time():
    results, _ = rows("hang")
    assert outcomes(results) == {"passing": "passed", "hanging": "timed out", "passing-2": "passed"}
    assert results["hanging"]["failed"] == ["the case's time limit was reached"]
    assert results["hanging"]["stdout"] == "about to hang\n"  # printed before it was killed
    assert (
        "Timeout" in results["hanging"]["stderr"] and "in hanging" in results["hanging"]["stderr"]
    )  # faulthandler's traceback
    assert results["passing"]["process"] != results["passing-2"]["process"]


def test_a_stage_ends_at_its_limit(monkeypatch):
    monkeypatch.setattr(runner, "MIN_REMAINING", 5.0)
    results, _ = rows("late")
    assert outcomes(results) == {"passing": "passed", "hanging": "timed out", "passing-2": "not run"}


def test_a_dying_process_fails_one_case():
    results, _ = rows("killed")
    assert outcomes(results) == {"passing": "passed", "killing": "died", "passing-2": "passed"}
    assert results["killing"]["failed"] == ["the process ended by SIGSEGV"]
    assert len(results["killing"]["stderr"]) == child.TAIL and "Segmentation fault" in results["killing"]["stderr"]
    assert "in killing" in results["killing"]["stderr"]


def test_after_a_sticky_error_a_new_process_continues():
    results, _ = rows("sticky")
    assert outcomes(results) == {"passing": "passed", "sticky": "failed", "passing-2": "passed"}
    assert results["sticky"]["unusable"].startswith("cudaErrorIllegalAddress")
    assert results["passing"]["process"] != results["passing-2"]["process"]


def test_several_processes_may_die():
    results, _ = rows("left")
    assert outcomes(results) == {"passing": "passed", "leaving": "died", "sticky": "failed", "passing-3": "passed"}
    assert results["leaving"]["failed"] == ["the process ended with exit code 3"]


def test_a_stage_that_fails_to_start_has_a_row_too():
    results = []
    command = (sys.executable, "-c", "import sys; sys.exit('no such module')")
    runner.Runner(command, Context("numpy"), results.append).run(*stages("good"))
    (row,) = results
    assert (row["case"], row["outcome"]) == ("good/process", "died")
    assert row["stderr"] == "no such module\n"


def test_a_measuring_stage_starts_nothing_when_most_of_its_time_is_used(monkeypatch):
    results = []
    clock = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter, now=0.0)

    def case():
        clock.now += 1.5
        return {}

    monkeypatch.setattr(child, "time", clock)
    stage = Stage("slow", lambda context: [Case(str(i), case) for i in range(5)], 5)
    child.run(stage, Context("numpy"), results.append, start=0, limit=5)
    cases = [(row["outcome"], row.get("why")) for row in results if "case" in row]
    assert cases == [("passed", None)] * 3 + [("not run", "out of time")] * 2


def test_only_selects_cases_by_name():
    assert set(rows("mixed", "mixed/failing")[0]) == {"failing"}


def test_names_match_up_to_a_slash():
    assert matches("a/416/fp16", "") and matches("a/416/fp16", "a/416") and matches("a/416/fp16", "a/416/fp16/")
    assert not matches("a/416/fp16", "a/41") and not matches("a/416", "a/416/fp16")


def test_non_finite_numbers_are_text_in_json():
    assert rows("non-finite")[0]["not-a-number"]["value"] == "nan"
    assert rows("environment")[0]["variable"]["value"] == "a"


def written(folder):
    (path,) = folder.glob("*-fake-gpu-gpu-check-a.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_and_the_summary(tmp_path, capsys):
    assert run(tmp_path, "good")["passed"] is True
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text() + '{"case": "half of a r')  # the machine went away and came back
    assert run(tmp_path, "mixed", "killed")["passed"] is False
    printed = capsys.readouterr().out.splitlines()
    results = written(tmp_path)
    assert [json.loads(line) for line in printed if line.startswith("{")] == results
    assert {row["record"] for row in results} == {"gpu-check"} and {row["part"] for row in results} == {"A"}
    starts, ends = ([row for row in results if row["case"] == case] for case in ("start", "end"))
    assert starts[0]["device"] == "Fake GPU" and len(starts[0]["commit"]) >= 7
    assert [(row["passed"], row["summary"]) for row in ends] == [
        (True, "all of 2 cases passed"),
        (False, "3 of 8 cases failed: mixed/raising (RuntimeError: the device is lost), mixed/failing (3 times its tolerance), "
                "killed/killing (the process ended by SIGSEGV); 1 skipped: compute-sanitizer is not installed"),
    ]  # fmt: skip
    assert printed[-1] == f"gpu-check: part A: {ends[1]['summary']}"
    assert len(list(tmp_path.iterdir())) == 2  # six at most


def test_two_parts_make_three_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "probe_device", lambda backend, limit: DEVICE)
    monkeypatch.setattr(command.checks, "PARTS", {"A": stages("good"), "B": stages("non-finite")})
    real = command.run
    monkeypatch.setattr(command, "run", lambda *args: real(*args, command=CHILD))
    assert command.main(["--out", str(tmp_path / "new"), "--backend", "numpy"]) == 0
    assert len(list((tmp_path / "new").iterdir())) == 3
    assert (
        command.main(["--out", str(tmp_path / "new"), "--backend", "numpy", "--only", "non-finite/not-a-number"]) == 0
    )
    assert len(list((tmp_path / "new").iterdir())) == 3
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path / "new"), "--backend", "numpy", "--only", "good/nothing"])
    assert "--only good/nothing: no case has this name; see --list" in capsys.readouterr().err


def test_an_interruption_ends_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "probe_device", lambda backend, limit: DEVICE)
    monkeypatch.setattr(command.checks, "PARTS", {"A": stages("good"), "B": stages("good")})
    parts = []

    def interrupted(part, *args):
        parts.append(part)
        return {"passed": False, "interrupted": True}

    monkeypatch.setattr(command, "run", interrupted)
    assert command.main(["--out", str(tmp_path), "--backend", "numpy"]) == 1
    assert parts == ["A"]


def test_an_emulated_device_implies_small_and_marks_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "probe_device", lambda backend, limit: DEVICE | {"emulated": True})
    monkeypatch.setattr(command.checks, "PARTS", {"A": stages("good")})
    real = command.run
    monkeypatch.setattr(command, "run", lambda *args: real(*args, command=CHILD))
    assert command.main(["--out", str(tmp_path), "--backend", "numpy"]) == 0
    assert all(row["emulated"] is True for row in written(tmp_path))
    assert written(tmp_path)[0]["small"] is True


WHOLE = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import gpu_check_trial
from pathlib import Path
gpu_check_trial.run(Path(sys.argv[1]), "long")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_keeps_its_rows(tmp_path, number):
    code = WHOLE.format(root=str(ROOT), tests=str(ROOT / "tests"))
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(number)
        lines += process.stdout.readlines()
    results = written(tmp_path)
    assert [json.loads(line) for line in lines[:4]] == results[:4]
    assert [row["outcome"] for row in results[1:4]] == ["passed"] * 3
    if number == signal.SIGTERM:
        assert results[-1]["case"] == "end" and results[-1]["passed"] is False
        assert results[-1]["summary"].endswith("; interrupted by SIGTERM")
    else:
        assert 4 <= len(results) < 200 and results[-1]["case"] != "end"


def test_a_process_ends_with_the_runner(tmp_path):
    code = WHOLE.format(root=str(ROOT), tests=str(ROOT / "tests"))
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert children
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}/stat").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]
              for child in children):  # fmt: skip
        assert time.monotonic() < deadline, "a child outlives the runner"
        time.sleep(0.05)
