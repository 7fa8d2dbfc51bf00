"""The check's two parts: their stages in order, each with its time limit in seconds."""

from __future__ import annotations

from functools import partial

from . import accuracy, ceilings, correctness, launch_costs, robustness, tools, training, tuning
from .case import Stage
from .environment import versions
from .speed import Workload, cases
from .torch_speed import compiled

PROBE = 12.0  # seconds for CuPy to find a GPU, before each part's stages

MAIN, ALL = ("fp16", "fp32"), ("fp16", "fp32", "tf32")
GRAPH, EAGER = "torch-graph", "torch-eager"


def in_part_a(workload: Workload) -> bool:
    """Return whether part A includes a workload."""
    return workload.precision in MAIN and workload.batch in (1, 64) and workload.size != 608


A = (
    Stage("compile", correctness.compilation, 22, checks=True),
    Stage("versions", versions, 6),
    Stage("precisions", correctness.precisions, 16, checks=True),
    Stage("algorithms", correctness.algorithms, 22, checks=True),
    Stage("kernels", correctness.kernels, 20, checks=True),
    Stage("networks", correctness.networks, 20, checks=True),
    Stage("detections", accuracy.boxes_and_scores, 10),
    Stage("threads", robustness.threads, 9, checks=True),
    Stage("yolov4-tiny", cases("yolov4-tiny", (416,), MAIN, (1, 64), with_launches=True), 32),
    Stage("yolov3", cases("yolov3", (416,), MAIN, (1, 64), with_launches=True), 43),
    Stage("memcheck", partial(tools.memcheck, "fp16"), 28, checks=True),
)
B = (
    Stage("autotune", tuning.tuned, 40),
    Stage("launches", launch_costs.launches, 22),
    Stage("profile", tools.profile, 18),
    Stage("racecheck", tools.racecheck, 20, checks=True),
    Stage("yolov2-tiny", cases("yolov2-tiny", (416,), ALL, (1, 8, 64)), 15),
    Stage("yolov3-tiny", cases("yolov3-tiny", (416,), ALL, (1, 8, 64)), 15),
    Stage("yolov4-tiny-extended", cases("yolov4-tiny", (416,), ALL, (1, 8, 64), (GRAPH, EAGER), True, in_part_a), 17),
    Stage("yolov2", cases("yolov2", (416, 608), MAIN, (1, 8, 64)), 20),
    Stage("yolov3-extended", cases("yolov3", (416, 608), ALL, (1, 8, 64), (GRAPH, EAGER), True, in_part_a), 23),
    Stage("yolov4", cases("yolov4", (416, 608), MAIN, (1, 8, 64)), 22),
    Stage("memcheck-fp32", partial(tools.memcheck, "fp32"), 16, checks=True),
    Stage("training", training.steps, 18),
    Stage("ceilings", ceilings.copies, 9, env={"CUPY_TF32": "0"}),
    Stage("ceilings-tf32", ceilings.tf32, 5, env={"CUPY_TF32": "1"}),
    Stage("frames", robustness.frames, 14, checks=True),
    Stage("torch-compile", compiled, 14),
)
PARTS: dict[str, tuple[Stage, ...]] = {"A": A, "B": B}
STAGES = A + B
