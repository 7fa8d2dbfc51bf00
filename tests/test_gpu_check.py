"""The parts of `make gpu-check` that need no GPU: its stages on NumPy and host-cuda, their limits, its output without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from backends import plan_backend
from cuda_plans import thin

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench.gpu_check import __main__ as command  # noqa: E402
from bench.gpu_check import (  # noqa: E402
    accuracy,
    ceilings,
    checks,
    child,
    correctness,
    environment,
    launch_costs,
    networks,
    robustness,
    speed,
    target,
    tools,
    torch_speed,
    training,
    tuning,
)
from bench.gpu_check.case import Context, Skipped, Stage  # noqa: E402
from gpudarknet import backend, load_network  # noqa: E402
from gpudarknet.ops.base import OPS  # noqa: E402
from gpudarknet.plan import cuda  # noqa: E402
from gpudarknet.plan.cuda import dry_run  # noqa: E402
from gpudarknet.plan.cuda.algorithms import ALGORITHMS, IM2COL_BUDGETS  # noqa: E402
from gpudarknet.plan.cuda.tiles import TILES  # noqa: E402
from gpudarknet.plan.cuda.time_model import CARDS  # noqa: E402

NUMPY, HOST = Context("numpy", small=True), Context("host-cuda", small=True)
CACHES = (networks.seeded_network, correctness.expected, correctness.convolutions, correctness.convolution_network,
          accuracy.detector, torch_speed.channels_last_forward, speed.reference)  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Clear the stages' caches around each test; make host-cuda available by name."""
    get = backend.get
    monkeypatch.setattr(backend, "get", lambda name="auto": plan_backend() if name == "host-cuda" else get(name))
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


def run(cases, context, only=""):
    """Run the cases of a stage in this process; return their rows by name."""
    rows = {}
    for case in Stage("stage", cases, 60).selected(context, only and f"stage/{only}"):
        rows[case.name] = child.plain(child.run_case(case.name, case, context))
        json.dumps(rows[case.name], allow_nan=False)
    return rows


def failures(rows):
    return {name: row["failed"] + [row.get("traceback", "")] for name, row in rows.items() if row.get("failed")}


def test_names_are_unique():
    for context in (Context("numpy"), NUMPY):
        names = [f"{stage.name}/{case.name}" for stage in checks.STAGES for case in stage.cases(context)]
        assert len(set(names)) == len(names)
        assert all(" " not in name for name in names)
    assert len({stage.name for stage in checks.STAGES}) == len(checks.STAGES)


@pytest.mark.parametrize(("part", "minutes"), [("A", 4), ("B", 5)])
def test_the_time_of_a_part(part, minutes):
    assert checks.PROBE + sum(stage.limit for stage in checks.PARTS[part]) <= 60 * minutes


def test_without_a_gpu_it_prints_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "probe_device", lambda backend, limit: {"why": "the driver shows no CUDA device"})
    assert command.main(["--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr() == ("", "gpu-check: no GPU to check: the driver shows no CUDA device\n")
    assert not (tmp_path / "new").exists()


def test_the_probe_runs_in_a_separate_process():
    device = command.probe_device("numpy", 60)
    assert device["why"] is None and device["emulated"] is False
    assert command.probe_device("numpy", 0.001)["why"] == "CuPy did not respond within 0.001 s"


def test_the_list(capsys):
    assert command.main(["--list", "--only", "kernels/pool.maxpool"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  kernels/pool.maxpool/float32" in lines and "  kernels/pool.maxpool/float16" in lines
    assert len(lines) == 4  # including a line for each part


def test_a_case_from_the_command_line(tmp_path):
    words = [sys.executable, "-m", "bench.gpu_check", "--backend", "numpy", "--small", "--only", "kernels/pool.maxpool"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*words, "--out", str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    assert [row["case"] for row in rows] == [
        "start",
        "kernels/pool.maxpool/float32",
        "kernels/pool.maxpool/float16",
        "end",
    ]
    assert [row["outcome"] for row in rows[1:-1]] == ["passed", "skipped"]


# Correctness


def test_every_kernel_is_checked_and_passes():
    context = Context("host-cuda", small=True)
    rows = run(correctness.kernels, context)
    assert failures(rows) == {}
    assert {name.rpartition("/")[0] for name in rows} == set(OPS)
    assert any(name.endswith("float16") and row["calls"] for name, row in rows.items())
    assert {row["outcome"] for row in rows.values()} == {"passed"}


def test_a_wrong_kernel_fails(monkeypatch):
    op = OPS["reorg.space_to_depth"]
    monkeypatch.setattr(op, "reference", lambda be, x, s: op.__wrapped__(be, x[:, ::-1], s))
    row = run(correctness.kernels, NUMPY, "reorg.space_to_depth/float32")["reorg.space_to_depth/float32"]
    assert row["outcome"] == "failed" and row["failed"][0].startswith("reorg.space_to_depth-")


def test_an_op_that_raises_does_not_hide_others(monkeypatch):
    monkeypatch.setattr(OPS["pool.maxpool"], "reference", lambda *args: 1 / 0)
    rows = run(correctness.kernels, NUMPY)
    assert list(failures(rows)) == ["pool.maxpool/float32"]
    assert "ZeroDivisionError" in rows["pool.maxpool/float32"]["traceback"]


def test_only_the_storage_types_of_kernels_are_compiled():
    pairs = correctness.storage_types()
    assert {("nhwc", "float"), ("nhwc", "half_t"), ("optimizers", "float")} <= set(pairs)
    assert ("optimizers", "half_t") not in pairs  # weights are float32
    assert run(correctness.compilation, NUMPY)["kernels"]["skipped"] == "backend numpy compiles no kernels"


def test_networks_are_compared_layer_by_layer(monkeypatch):
    row = run(correctness.networks, NUMPY)["yolov4-tiny"]
    assert row["outcome"] == "passed" and row["outputs"] == 38 + 2  # every layer, then both heads by the plan
    good = correctness.outputs("yolov4-tiny", NUMPY)
    good[0][5] = good[0][5] + np.float32(1)
    monkeypatch.setattr(correctness, "outputs", lambda *args: good)
    (failed,) = run(correctness.networks, NUMPY)["yolov4-tiny"]["failed"]
    assert failed.startswith("output 5 differs by ")


def test_precisions_and_graphs_are_checked(monkeypatch):
    rows = run(correctness.precisions, NUMPY)
    assert failures(rows) == {} and len(rows) == 3
    assert {row["eager_reason"] for row in rows.values()} == {"on the CPU"}
    monkeypatch.setitem(correctness.PRECISIONS, "fp32", 1e-9)
    assert run(correctness.precisions, NUMPY)["yolov4-tiny/fp32"]["failed"][0].endswith("relative error, 1e-09 allowed")


def test_every_convolution_algorithm_is_listed():
    rows = {case.name for case in correctness.algorithms(Context("numpy"))}
    names = {name for name in ALGORITHMS if name not in IM2COL_BUDGETS}  # maps are too small for those
    tensor_cores = {name for name in names if "implicit" in name or name == "image_gemm"}
    assert rows == {
        f"{precision}/{name}"
        for precision in ("fp32", "tf32", "fp16")
        for name in {*names, "autotuned"} - (tensor_cores if precision == "fp32" else set())
    }


def test_convolution_algorithms_in_fp32(monkeypatch):
    for precision in ("tf32", "fp16"):  # on the emulated device all are
        monkeypatch.delitem(correctness.PRECISIONS, precision)
    rows = run(correctness.algorithms, HOST)
    assert failures(rows) == {}
    assert {row["outcome"] for row in rows.values()} == {"passed"}
    monkeypatch.setitem(correctness.PRECISIONS, "fp32", 1e-9)
    (row,) = run(correctness.algorithms, HOST, "fp32/gemm_1x1").values()
    together, *alone = row["failed"]
    assert "relative error, 1e-09 allowed" in together and any(one.endswith("e-07") for one in alone)


@pytest.mark.parametrize("name", ["image_gemm", "implicit_gemm_64x64", "implicit_gemm_128x32_splitk3", "autotuned"])
def test_convolutions_on_tensor_cores(name):
    (row,) = run(correctness.algorithms, HOST, f"fp16/{name}").values()
    assert row["outcome"] == "passed" and 0 < row["relative_error"] < 1e-2


def test_boxes_of_the_bundled_network(monkeypatch):
    monkeypatch.delenv(accuracy.VARIABLE, raising=False)
    rows = run(accuracy.boxes_and_scores, HOST)
    assert failures(rows) == {}
    assert rows["pretrained"]["outcome"] == "skipped"
    assert all(rows[f"digits/{precision}"]["boxes"] >= 3 for precision in ("fp32", "tf32", "fp16"))
    assert rows["digits/fp16"]["heads_relative_error"] > 0


def test_displaced_boxes_fail(monkeypatch):
    real = accuracy.run_detector

    def moved(by, array, precision):
        objects, heads = real(by, array, precision)
        return [(label, score, box + (precision == "fp16") * 0.1) for label, score, box in objects], heads

    monkeypatch.setattr(accuracy, "run_detector", moved)
    rows = run(accuracy.boxes_and_scores, NUMPY)
    assert list(failures(rows)) == ["digits/fp16"] and "digits.jpg: class" in rows["digits/fp16"]["failed"][0]


def test_real_weights_are_named_by_the_variable(monkeypatch, tmp_path):
    network = load_network(thin("yolov3-tiny"), backend="numpy")
    for name in ("yolov3-tiny", "of-nobody"):
        network.save_weights(tmp_path / f"{name}.weights")
    (tmp_path / "dog.jpg").write_bytes(b"")
    monkeypatch.setenv(accuracy.VARIABLE, str(tmp_path))
    assert list(accuracy.weights_by_network()) == ["yolov3-tiny", "digits"]
    assert [path.name for path in accuracy.images(tmp_path / "yolov3-tiny.weights")] == ["digits.jpg", "dog.jpg"]
    monkeypatch.setenv(accuracy.VARIABLE, str(tmp_path / "yolov3-tiny.weights"))
    assert list(accuracy.weights_by_network()) == ["yolov3-tiny", "digits"]


# Robustness and tools


@pytest.mark.parametrize(
    "context", [pytest.param(NUMPY, id="numpy"), pytest.param(HOST, id="host-cuda", marks=pytest.mark.slow)]
)
def test_threads(context):
    rows = run(robustness.threads, context)
    assert failures(rows) == {}
    assert len(rows) == 4


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        robustness.run_in_threads([lambda: None, lambda: 1 / 0])


def test_results_that_change_between_threads_fail(monkeypatch):
    calls = iter(range(1000))
    real = robustness.to_numpy
    monkeypatch.setattr(robustness, "to_numpy", lambda network, heads: [y + next(calls) for y in real(network, heads)])
    row = run(robustness.threads, NUMPY, "two-threads-one-network")["two-threads-one-network"]
    assert row["failed"][0] == "thread 0: 3 of 3 results differ"


@pytest.mark.parametrize(("precision", "name"), [("fp32", "library"), ("fp16", "library"), ("fp16", "every-tile")])
def test_the_target_program_computes_the_same_with_separate_buffers(precision, name):
    network = networks.seeded_network("yolov4-tiny", HOST, 64)
    be, plan = network.backend, networks.compile_plan(network, 2)
    x = networks.seeded.network_input(network, 2)
    choices = target.PLANS[name](plan, be, precision)
    separate, default = (
        target.TargetProgram(plan, be, precision, choices),
        cuda.Program(plan, be, precision, choices=choices),
    )
    for got, want in zip(separate.run(x), default.run(x), strict=True):
        np.testing.assert_array_equal(got, want)
    assert len(separate.buffers) > 20


def test_the_target_program_prints_a_summary(capsys):
    target.main("fp16", plan_backend(), "1")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["library", "every-tile"]
    assert all(" launches, " in line for line in lines)


def test_missing_tools_skip_their_cases(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda *args, **kw: None)
    context = Context("cupy", small=True)
    for cases, tool in (
        (partial(tools.memcheck, "fp16"), "compute-sanitizer"),
        (tools.racecheck, "compute-sanitizer"),
        (tools.profile, "ncu"),
    ):
        for case in cases(context):
            with pytest.raises(Skipped, match=f"^{tool} is not installed$"):
                case.run()
    with pytest.raises(Skipped, match=r"^nvidia-smi is not installed$"):
        environment.clocks()


SANITIZER = """#!/bin/sh
echo "$@" > {log}
echo "========= COMPUTE-SANITIZER"
echo "========= ERROR SUMMARY: 2 errors"
exit {code}
"""


def fake_tool(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("code", [0, 9])
def test_errors_from_compute_sanitizer(monkeypatch, tmp_path, code):
    text = SANITIZER.format(log=tmp_path / "log", code=code)
    fake_tool(tmp_path, "compute-sanitizer", text)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    row = tools.sanitize(Context("cupy"), "racecheck", "fp16", target.KERNELS)
    assert row["failed"] == (["========= ERROR SUMMARY: 2 errors"] if code else [])
    log = (tmp_path / "log").read_text()
    assert "--kernel-name kne=to_nchw --kernel-name kne=rank_boxes" in log
    assert log.split()[-5:] == ["-m", "bench.gpu_check.target", "fp16", "cupy", "0"]


def test_racecheck_covers_the_kernels_with_shared_memory():
    """Those of predictions; the optimizers and backward passes share the reduction of common.cuh, and other kernels train."""
    found = set()
    for path in (path for path in (ROOT / "kernels").glob("*.cu") if not re.search("loss|_gradient", path.stem)):
        text = path.read_text()
        kernels = re.split(r'extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)', text)
        names = kernels[1::2]
        if "__shared__" in kernels[0] or "dynamic_shared()" in kernels[0]:  # in a function that all call
            found |= set(names)
        found |= {name for name, body in zip(names, kernels[2::2], strict=True) if "__shared__" in body}
    assert found == set(target.KERNELS)


@pytest.mark.parametrize("plan", tools.PROFILED)
def test_the_profiled_kernels_exist(plan):
    """In the plan that is profiled, at its size."""
    width, height, batch = map(int, tools.PROFILED_SIZE)
    network = networks.without_weights(networks.config("yolov4-tiny"), dry_run.backend(), width, height)
    networks.seeded.fill(network)
    compiled = networks.compile_plan(network, batch)
    program = target.TargetProgram(
        compiled, network.backend, "fp16", target.PLANS[plan](compiled, network.backend, "fp16")
    )
    times = program.launch_times(CARDS[0])
    names = {t.name.rpartition(".")[2] for t in times}
    used = {name for pattern in tools.PROFILED[plan].split("|") for name in names if re.search(pattern, name)}
    if plan == "implicit-gemm":
        assert {"implicit_gemm_128x128", "implicit_gemm_64x64", "image_gemm_float32"} <= used
    else:
        assert {"epilogue", "epilogue_im2col", "im2col", "convolve_float32"} <= used


def test_the_target_runs_every_tile():
    network = networks.without_weights(networks.config("yolov4-tiny"), dry_run.backend(), 64, 96)
    chosen = target.every_tile(networks.compile_plan(network, 2), network.backend, "fp16")
    kernels = {name.partition("_splitk")[0] for name in chosen.values()}
    assert kernels == {"image_gemm", *(f"implicit_gemm_{tile}" for tile in TILES)}
    assert any("splitk" in name for name in chosen.values())


NCU = """==PROF== Connected
"ID","Process ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"
"0","7","im2col","(12, 1, 1)","gpu__time_duration.sum","ns","12,800"
"0","7","im2col","(12, 1, 1)","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","71.5"
"1","7","im2col","(3, 1, 1)","gpu__time_duration.sum","us","2.5"
"""


def test_parsing_of_ncu_output(monkeypatch, tmp_path):
    assert tools.parse_ncu(NCU) == [
        {"kernel": "im2col", "grid": "(12, 1, 1)", "us": 12.8, "dram_percent": 71.5},
        {"kernel": "im2col", "grid": "(3, 1, 1)", "us": 2.5},
    ]  # fmt: skip
    fake_tool(tmp_path, "ncu", "#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM - no permission'\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(
        Skipped, match=r"^ncu cannot access performance counters: ==ERROR== ERR_NVGPUCTRPERM - no permission$"
    ):
        tools.profiled(Context("cupy"), "library")


# The environment


def test_versions_have_a_row_for_everything_optional(monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda *args, **kw: None)
    rows = run(environment.versions, NUMPY)
    assert failures(rows) == {}
    for name in ("nvidia-smi", "compute-sanitizer", "ncu"):
        assert rows[name]["skipped"] == f"{name} is not installed"
    assert rows["git"]["commit"] != "unknown" and rows["git"]["dirty"] is None  # from files, without git
    assert rows["python"]["numpy"] == np.__version__


def test_the_commit_without_git(tmp_path):
    git = tmp_path / ".git"
    assert environment.git_head(git) == "unknown"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert environment.git_head(git) == "unknown"
    (git / "packed-refs").write_text(f"# pack-refs\n{'a' * 40} refs/heads/main\n")
    assert environment.git_head(git) == "a" * 40
    (git / "refs/heads/main").write_text("b" * 40 + "\n")
    assert environment.git_head(git) == "b" * 40
    (git / "HEAD").write_text("c" * 40 + "\n")
    assert environment.git_head(git) == "c" * 40
    own = git / "worktrees/w"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/main\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / "w").mkdir()
    (tmp_path / "w/.git").write_text(f"gitdir: {own}\n")
    assert environment.git_head(tmp_path / "w/.git") == "b" * 40


SMI = """#!/bin/sh
case "$*" in
*clocks_event_reasons*) echo "Field is not a valid field to query."; exit 2 ;;
*clocks_throttle_reasons*) echo 0x0000000000000004 ;;
*clocks.sm*) echo "1980 MHz" ;;
*) echo 41 ;;
esac
"""


def test_clocks_of_an_old_nvidia_smi(monkeypatch, tmp_path):
    fake_tool(tmp_path, "nvidia-smi", SMI)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    clocks = environment.clocks()
    assert clocks["sm_clock"] == "1980 MHz" and clocks["throttle_reasons"] == "0x0000000000000004"


# Speed


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_speed_of_a_network(no_torch):
    cases = speed.cases("yolov4-tiny", (416,), ("fp32",), (1, 64))
    rows = run(cases, NUMPY)
    assert failures(rows) == {}
    ours = [row for row in rows.values() if row.get("engine") == "ours" and "images_s" in row]
    assert [row["batch"] for row in ours] == [1, 2] and all(row["images_s"] > 0 for row in ours)
    assert rows["64/fp32/batch-1/torch-graph"]["skipped"].startswith("torch does not import")
    detected = rows["64/fp32/detect"]
    assert detected["boxes"] == 0 and detected["detect_jpeg_ms"] > detected["read_ms"] > 0


@pytest.mark.slow
def test_speed_with_kernels(no_torch):
    rows = run(speed.cases("yolov4-tiny", (416,), ("fp32",), (1,), with_variants=True), HOST)
    assert failures(rows) == {}
    ours = rows["64/fp32/batch-1/ours"]
    assert ours["graph_ms"] > 0 and ours["host_us"] > 0 and "launches" in ours["description"]
    assert {name.rpartition("/")[2] for name in rows} >= {"eager", "unfused", "no-winograd"}


@pytest.mark.slow
def test_speed_of_implicit_gemms(no_torch):
    rows = run(speed.cases("yolov4-tiny", (416,), ("fp16", "fp32"), (1,)), HOST)
    assert failures(rows) == {}
    row = rows["64/fp16/batch-1/implicit-gemm"]
    assert row["images_s"] > 0 and row["graph_images_s"] > 0 and row["default_graph_images_s"] > 0
    assert 0 < row["max_difference"] < 4e-2 and row["tuned_for"].startswith("host-cuda, cuBLAS ")
    assert "64/fp32/batch-1/implicit-gemm" not in rows


def test_a_wrong_plan_fails(no_torch, monkeypatch):
    real, calls = cuda.Program.run, iter(range(100))
    monkeypatch.setattr(cuda.Program, "run", lambda self, x: [y + 0.1 * next(calls) for y in real(self, x)])
    row = run(speed.cases("yolov4-tiny", (416,), ("fp32",), (1,)), HOST, "64/fp32/batch-1/ours")["64/fp32/batch-1/ours"]
    assert (
        row["failed"][0].endswith("of the largest value from the reference engine")
        and row["failed"][1] == "two runs differ"
    )


def test_a_wrong_variant_of_a_plan_fails(no_torch, monkeypatch):
    real = cuda.Program.run

    def run_wrongly(self, x):
        return [y + (self.eager_reason == "requested") for y in real(self, x)]

    monkeypatch.setattr(cuda.Program, "run", run_wrongly)
    rows = run(speed.cases("yolov4-tiny", (416,), ("fp32",), (1,), with_variants=True), HOST)
    assert rows["64/fp32/batch-1/eager"]["failed"][0].endswith("of the largest value from the default plan")


def test_each_launch_has_bytes_and_operations():
    rows = run(launch_costs.launches, HOST, "yolov4-tiny/64/fp32/batch-1")
    (row,) = rows.values()
    assert failures(rows) == {}
    columns = dict(zip(row["launch_columns"], zip(*row["launches"], strict=True), strict=True))
    assert all(us > 0 for us in columns["us"]) and all(mb > 0 for mb in columns["mb"])
    # gemms pad channels to multiples of 8, and Winograd needs 4/9 of the multiplications; the plan's count includes pools
    assert 0.3 < sum(columns["gflop"]) / row["plan_gflop"] < 1.5
    assert sum(one["count"] for one in row["sums"].values()) == len(row["launches"])


def test_launches_of_implicit_gemms_beside_their_model(no_torch):
    cases = speed.cases("yolov4-tiny", (416,), ("fp16",), (1,), with_launches=True)
    (row,) = run(cases, HOST, "64/fp16/batch-1/implicit-gemm-launches").values()
    assert row["outcome"] == "passed" and row["variant"] == "implicit-gemm" and row["card"] == "H100 SXM"
    columns = dict(zip(row["launch_columns"], zip(*row["launches"], strict=True), strict=True))
    assert any(name.startswith("implicit_gemm.implicit_gemm_") for name in columns["launch"])
    assert row["total_modelled_us"] == pytest.approx(sum(columns["modelled_us"]), abs=0.1)
    assert row["total_us"] == pytest.approx(sum(columns["us"]), abs=0.1)
    assert row["input_us"] > 0 and row["input_modelled_us"] > 0
    assert sum(one["modelled_us"] for one in row["sums"].values()) == pytest.approx(row["total_modelled_us"], abs=1)


def test_without_a_model_of_the_card_times_are_only_measured(monkeypatch):
    monkeypatch.setattr(launch_costs, "card_of_device", lambda device: None)
    (row,) = run(launch_costs.launches, HOST, "yolov4-tiny/64/fp32/batch-1").values()
    assert row["outcome"] == "passed" and row["card"] is None and row["total_modelled_us"] is None
    assert {one[2] for one in row["launches"]} == {None} and row["total_us"] > 0


@pytest.mark.slow
def test_tuning():
    rows = run(tuning.tuned, HOST, "yolov3/64/fp16/batch-1")
    assert failures(rows) == {}
    row = rows["yolov3/64/fp16/batch-1"]
    assert row["choices"].keys() == row["microseconds"].keys() and row["heuristic"]["images_s"] > 0
    assert all(choice in row["microseconds"][key] for key, choice in row["choices"].items())
    assert row["card"] == "H100 SXM" and "implicit-gemm" in row
    for key, measured in row["microseconds"].items():
        assert row["modelled_us"][key].keys() == measured.keys() and min(row["modelled_us"][key].values()) > 0


def test_training_steps(no_torch):
    rows = run(training.steps, NUMPY)
    assert failures(rows) == {}
    row = rows["yolov4-tiny/fp32/ours"]
    assert row["images_s"] > 0 and row["costs"][1] < row["costs"][0]
    assert rows["yolov4-tiny/fp32/torch"]["outcome"] == "skipped"


@pytest.mark.parametrize("cases", [ceilings.copies, ceilings.tf32])
def test_ceilings(cases):
    rows = run(cases, NUMPY)
    assert failures(rows) == {}
    assert all(np.isfinite(v) for row in rows.values() for v in row.values() if isinstance(v, float))


def test_launch_overhead():
    assert run(launch_costs.launches, NUMPY, "empty")["empty"]["op_us"] > 0


def test_frames_need_a_memory_pool():
    assert run(robustness.frames, NUMPY)["detect"]["skipped"] == "backend numpy has no memory pool"
