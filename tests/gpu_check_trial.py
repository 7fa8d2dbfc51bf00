"""Made-up stages for the tests of the GPU check's runner: `python -m gpu_check_trial` stands in for bench.gpu_check.child."""

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


class Sticky(RuntimeError):
    """An error as CuPy raises it when a kernel has read where nothing is."""

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


def listed(*runs, limit=None):
    return lambda context: [
        Case(run.__name__ if i == 0 or run is not passing else f"passing-{i}", run, limit) for i, run in enumerate(runs)
    ]


def numbers(context: Context):
    return [Case("not-a-number", lambda: {"value": float("nan"), "values": (1, 2)})]


STAGES = [
    Stage("mixed", listed(passing, raising, failing, skipping, passing), 60, checks=True),
    Stage("hang", listed(passing, hanging, passing, limit=1.5), 60, checks=True),
    Stage("late", listed(passing, hanging, passing, limit=600), 8, checks=True),
    Stage("killed", listed(passing, killing, passing), 60, checks=True),
    Stage("left", listed(passing, leaving, sticky, passing), 60, checks=True),
    Stage("sticky", listed(passing, sticky, passing), 60, checks=True),
    Stage("slow", lambda context: [Case(str(i), waiting) for i in range(400)], 8),
    Stage("long", lambda context: [Case(str(i), waiting) for i in range(200)], 60),
    Stage("numbers", numbers, 60),
    Stage("good", listed(passing, passing), 60),
    Stage(
        "environment",
        lambda context: [Case("variable", lambda: {"value": os.environ["TRIAL"]})],
        60,
        env={"TRIAL": "a"},
    ),
]

if __name__ == "__main__":
    from bench.gpu_check.child import main

    main(STAGES)
