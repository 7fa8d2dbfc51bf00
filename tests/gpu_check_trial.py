"""Fake stages for the tests of the GPU check's runner: `python -m gpu_check_trial` replaces bench.gpu_check.child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench.gpu_check.case import Case, Context, Skipped, Stage  # noqa: E402

CHILD = (sys.executable, "-X", "faulthandler", "-m", "gpu_check_trial")
DEVICE = {"why": None, "device": "Fake GPU", "driver": "1.0", "emulated": False}


class Sticky(RuntimeError):
    """An error like CuPy's after an illegal memory access."""

    status = 700


def passing():
    return {"process": os.getpid()}


def raising():
    print("on stdout, before it")
    raise RuntimeError("the device is lost")


def failing():
    return {"failed": ["3 times its tolerance"]}


def skipping():
    raise Skipped("compute-sanitizer is not installed")


def hanging():
    print("about to hang", flush=True)
    subprocess.run(["sleep", "600"], check=False)


def killing():
    print("x" * 20_000, "and then no more", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def leaving():
    os._exit(3)


def sticky():
    raise Sticky("cudaErrorIllegalAddress: an illegal memory access was encountered")


def waiting():
    time.sleep(0.05)
    return {}


def case_list(*runs, limit=None):
    return lambda context: [
        Case(run.__name__ if i == 0 or run is not passing else f"passing-{i}", run, limit) for i, run in enumerate(runs)
    ]


def non_finite(context: Context):
    return [Case("not-a-number", lambda: {"value": float("nan"), "values": (1, 2)})]


STAGES = [
    Stage("mixed", case_list(passing, raising, failing, skipping, passing), 60, checks=True),
    Stage("hang", case_list(passing, hanging, passing, limit=1.5), 60, checks=True),
    Stage("late", case_list(passing, hanging, passing, limit=600), 8, checks=True),
    Stage("killed", case_list(passing, killing, passing), 60, checks=True),
    Stage("left", case_list(passing, leaving, sticky, passing), 60, checks=True),
    Stage("sticky", case_list(passing, sticky, passing), 60, checks=True),
    Stage("long", lambda context: [Case(str(i), waiting) for i in range(200)], 60),
    Stage("non-finite", non_finite, 60),
    Stage("good", case_list(passing, passing), 60),
    Stage(
        "environment",
        lambda context: [Case("variable", lambda: {"value": os.environ["TRIAL"]})],
        60,
        env={"TRIAL": "a"},
    ),
]


def stages(*names):
    """Return stages by name."""
    return [next(stage for stage in STAGES if stage.name == name) for name in names]


def run(folder, *names, only=""):
    """Run stages as part A of the check, in processes of this module; return its last row."""
    from bench.gpu_check import __main__ as command

    return command.run("A", stages(*names), Context("numpy"), DEVICE, folder, only, CHILD)


if __name__ == "__main__":
    from bench.gpu_check.child import main

    main(STAGES)
