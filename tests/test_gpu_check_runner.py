"""The GPU check's runner, on made-up stages (gpu_check_trial.py): a row of every case, whatever becomes of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_check_trial
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench.gpu_check import __main__ as command  # noqa: E402
from bench.gpu_check import child, runner  # noqa: E402
from bench.gpu_check.case import Context, matches  # noqa: E402

CHILD = (sys.executable, "-X", "faulthandler", "-m", "gpu_check_trial")
FOUND = {"why": None, "device": "Made-up GPU", "driver": "1.0", "emulated": False}


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))


def stages(*names):
    return [next(stage for stage in gpu_check_trial.STAGES if stage.name == name) for name in names]


def rows(stage, only=""):
    """Run a stage; return its rows by case, without what its name says of the stage."""
    found, log = [], []
    runner.Runner(CHILD, Context("numpy"), found.append, log.append).run(*stages(stage), only)
    assert len({row["case"] for row in found}) == len(found), "a row for each case"
    return {row["case"].removeprefix(f"{stage}/"): row for row in found}, "".join(log)


def outcomes(found):
    return {case: row["outcome"] for case, row in found.items()}


def test_every_outcome_has_a_row():
    found, log = rows("mixed")
    assert outcomes(found) == {
        "passing": "passed", "raising": "failed", "failing": "failed", "skipping": "skipped", "passing-4": "passed",
    }  # fmt: skip
    assert found["raising"]["failed"] == ["RuntimeError: the device is lost"]
    assert "in raising\n" in found["raising"]["traceback"]
    assert found["failing"]["failed"] == ["3 times its tolerance"]
    assert found["skipping"]["skipped"] == "compute-sanitizer is not installed"
    assert found["passing"]["process"] == found["passing-4"]["process"]
    assert "on stdout, before it" in log


def test_a_case_that_hangs_costs_its_own_time_only():
    found, _ = rows("hang")
    assert outcomes(found) == {"passing": "passed", "hanging": "timed out", "passing-2": "passed"}
    assert found["hanging"]["failed"] == ["the time of the case was over"]
    assert found["hanging"]["stdout"] == "about to hang\n"  # what it printed before it was killed
    assert (
        "Timeout" in found["hanging"]["stderr"] and "in hanging" in found["hanging"]["stderr"]
    )  # faulthandler's traceback
    assert found["passing"]["process"] != found["passing-2"]["process"]


def test_a_stage_ends_at_its_limit(monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 5.0)
    found, _ = rows("late")
    assert outcomes(found) == {"passing": "passed", "hanging": "timed out", "passing-2": "not run"}


def test_a_process_that_dies_costs_one_case():
    found, _ = rows("killed")
    assert outcomes(found) == {"passing": "passed", "killing": "died", "passing-2": "passed"}
    assert found["killing"]["failed"] == ["the process ended by SIGSEGV"]
    assert len(found["killing"]["stderr"]) == child.TAIL and "Segmentation fault" in found["killing"]["stderr"]
    assert "in killing" in found["killing"]["stderr"]


def test_after_a_sticky_error_a_new_process_goes_on():
    found, _ = rows("sticky")
    assert outcomes(found) == {"passing": "passed", "sticky": "failed", "passing-2": "passed"}
    assert found["sticky"]["unusable"].startswith("cudaErrorIllegalAddress")
    assert found["passing"]["process"] != found["passing-2"]["process"]


def test_several_processes_may_be_lost():
    found, _ = rows("left")
    assert outcomes(found) == {"passing": "passed", "leaving": "died", "sticky": "failed", "passing-3": "passed"}
    assert found["leaving"]["failed"] == ["the process ended with exit code 3"]


def test_a_stage_that_does_not_start_has_a_row_too():
    found = []
    command = (sys.executable, "-c", "import sys; sys.exit('no such module')")
    runner.Runner(command, Context("numpy"), found.append).run(*stages("good"))
    (row,) = found
    assert (row["case"], row["outcome"]) == ("good/process", "died")
    assert row["stderr"] == "no such module\n"


def test_measuring_begins_nothing_when_most_of_the_time_is_over():
    found, _ = rows("slow")
    kinds = list(outcomes(found).values())
    assert kinds[0] == "passed" and kinds[-1] == "not run" and len(kinds) == 400
    assert kinds == sorted(kinds, reverse=True)
    assert found["399"]["why"] == "no time was left"


@pytest.mark.parametrize(("only", "cases"), [
    ("mixed/failing", {"failing"}), ("mixed", {"passing", "raising", "failing", "skipping", "passing-4"}), ("mixed/fail", set()),
])  # fmt: skip
def test_only_runs_the_rows_that_a_name_means(only, cases):
    assert set(rows("mixed", only)[0]) == cases


def test_datafile():
    assert matches("a/416/fp16", "") and matches("a/416/fp16", "a/416") and matches("a/416/fp16", "a/416/fp16/")
    assert not matches("a/416/fp16", "a/41") and not matches("a/416", "a/416/fp16")


def test_what_is_no_number_is_text_in_json():
    assert rows("numbers")[0]["not-a-number"]["value"] == "nan"
    assert rows("environment")[0]["variable"]["value"] == "a"


def run(folder, *names, only=""):
    return command.run("A", stages(*names), Context("numpy"), FOUND, folder, only, CHILD)


def written(folder):
    (path,) = folder.glob("*-made-up-gpu-gpu-check-a.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_and_the_last_line(tmp_path, capsys):
    assert run(tmp_path, "good")["passed"] is True
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text() + '{"case": "half of a r')  # the machine was taken away, and came back
    assert run(tmp_path, "mixed", "killed")["passed"] is False
    printed = capsys.readouterr().out.splitlines()
    found = written(tmp_path)
    assert [json.loads(line) for line in printed if line.startswith("{")] == found
    assert {row["record"] for row in found} == {"gpu-check"} and {row["part"] for row in found} == {"A"}
    starts, ends = ([row for row in found if row["case"] == case] for case in ("start", "end"))
    assert starts[0]["device"] == "Made-up GPU" and len(starts[0]["commit"]) >= 7
    assert [(row["passed"], row["summary"]) for row in ends] == [
        (True, "all of 2 cases passed"),
        (False, "3 of 8 cases failed: mixed/raising (RuntimeError: the device is lost), mixed/failing (3 times its tolerance), "
                "killed/killing (the process ended by SIGSEGV); 1 skipped: compute-sanitizer is not installed"),
    ]  # fmt: skip
    assert printed[-1] == f"gpu-check: part A: {ends[1]['summary']}"
    assert len(list(tmp_path.iterdir())) == 2  # six at most


def test_two_parts_make_three_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "probed", lambda backend, limit: FOUND)
    monkeypatch.setattr(command.parts, "PARTS", {"A": stages("good"), "B": stages("numbers")})
    real = command.run
    monkeypatch.setattr(command, "run", lambda *args: real(*args, command=CHILD))
    assert command.main(["--out", str(tmp_path / "new"), "--backend", "numpy"]) == 0
    assert len(list((tmp_path / "new").iterdir())) == 3
    assert command.main(["--out", str(tmp_path / "new"), "--backend", "numpy", "--only", "numbers/not-a-number"]) == 0
    assert len(list((tmp_path / "new").iterdir())) == 3
    with pytest.raises(SystemExit):
        command.main(["--out", str(tmp_path / "new"), "--backend", "numpy", "--only", "good/nothing"])
    assert "--only good/nothing: no row has this name; --list shows them" in capsys.readouterr().err


def test_an_interruption_ends_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "probed", lambda backend, limit: FOUND)
    monkeypatch.setattr(command.parts, "PARTS", {"A": stages("good"), "B": stages("good")})
    parts = []

    def interrupted(part, *args):
        parts.append(part)
        return {"passed": False, "interrupted": True}

    monkeypatch.setattr(command, "run", interrupted)
    assert command.main(["--out", str(tmp_path), "--backend", "numpy"]) == 1
    assert parts == ["A"]


def test_an_emulated_device_makes_it_small_and_says_so_in_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "probed", lambda backend, limit: FOUND | {"emulated": True})
    monkeypatch.setattr(command.parts, "PARTS", {"A": stages("good")})
    real = command.run
    monkeypatch.setattr(command, "run", lambda *args: real(*args, command=CHILD))
    assert command.main(["--out", str(tmp_path), "--backend", "numpy"]) == 0
    assert all(row["emulated"] is True for row in written(tmp_path))
    assert written(tmp_path)[0]["small"] is True


WHOLE = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_gpu_check_runner as tests
from pathlib import Path
tests.run(Path(sys.argv[1]), "long")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_in_the_middle_leaves_the_rows_before_it(tmp_path, number):
    code = WHOLE.format(root=str(ROOT), tests=str(ROOT / "tests"))
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(number)
        lines += process.stdout.readlines()
    found = written(tmp_path)
    assert [json.loads(line) for line in lines[:4]] == found[:4]
    assert [row["outcome"] for row in found[1:4]] == ["passed"] * 3
    if number == signal.SIGTERM:
        assert found[-1]["case"] == "end" and found[-1]["passed"] is False
        assert found[-1]["summary"].endswith("; cut short: by SIGTERM")
    else:
        assert 4 <= len(found) < 200 and found[-1]["case"] != "end"


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
