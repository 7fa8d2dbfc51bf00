"""The cost of every launch of a plan on a GPU, the printed plan with it, and measured times beside modelled ones."""

from __future__ import annotations

import json

import pytest
from backends import backend_for, plan_backend
from cuda_plans import ALL_KINDS, FALLBACK, SMALL, program

from bench import launch_rows
from gpudarknet import backend, cfg, load_network
from gpudarknet.cli import main
from gpudarknet.plan.cuda import dry_run
from gpudarknet.plan.cuda.cost_report import LaunchTime, by_step, seconds_by_kind, total
from gpudarknet.plan.cuda.time_model import LAUNCH, Cost, Gemm, find_card, seconds

H100 = find_card("H100")
NET = """[net]
width=20
height=12
channels=3
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[convolutional]
filters=6
size=3
pad=1
activation=leaky
[convolutional]
filters=8
activation=linear
[route]
layers=-1,-2
[maxpool]
size=2
stride=2
[convolutional]
filters=14
groups=2
size=3
pad=1
activation=mish
[shortcut]
from=-2
"""


def dry(text, batch=1, precision="fp32", **options):
    return program(load_network(cfg.parse(text), backend=dry_run.backend()), batch, precision, **options)


def launches(run):
    return [(t.name, *(t.cost[:3] if t.cost else ()), t.in_graph) for t in run.launch_times(H100)]


def test_costs_worked_out_by_hand():
    """240 pixels x 2 images, fp16. Maps of 6 and 8 channels are parts of one of 14, stored with 16: gaps do not count."""
    pixels, small = 240 * 2, 60 * 2
    run = dry(NET, 2, "fp16", fuse_im2col=False)
    bias = {step.y.shape[0]: run.weights.arrays(step)[1].nbytes for step in run.schedule.algorithms}
    assert all(4 * F <= nbytes < 4 * F + 32 for F, nbytes in bias.items())  # perhaps padded
    assert launches(run) == [
        (
            "direct.convolve_float32",
            4 * (3 * pixels + 27 * 16) + bias[16],
            2 * 16 * pixels,
            2 * pixels * 16 * 27,
            False,
        ),
        ("nhwc.im2col", 2 * 16 * pixels, 2 * 144 * pixels, 0, True),
        (f"gemm {pixels} x 6 x 144", 2 * (144 * pixels + 6 * 144), 2 * 6 * pixels, 0, True),
        ("epilogue.epilogue", 2 * 6 * pixels + bias[6], 2 * 6 * pixels, 0, True),
        (f"gemm {pixels} x 8 x 6", 2 * (6 * pixels + 8 * 6), 2 * 8 * pixels, 0, True),
        ("epilogue.epilogue", 2 * 8 * pixels + bias[8], 2 * 8 * pixels, 0, True),
        ("nhwc.maxpool", 2 * 14 * pixels, 2 * 14 * small, 0, True),
        # rows of 14 x 9 elements, stored with 128
        ("nhwc.im2col", 2 * 14 * small, 2 * (128 * (small - 1) + 126), 0, True),
        (f"2 x gemm {small} x 7 x 63", 2 * 2 * (63 * small + 7 * 63), 2 * 2 * 7 * small, 0, True),
        ("epilogue.epilogue", 2 * 14 * small * 2 + bias[14], 2 * 14 * small, 0, True),
        ("nhwc.to_nchw", 2 * 14 * small, 4 * 14 * small, 0, False),
    ]


def test_gemms_have_their_operations():
    times = dry(NET, 2, "fp16").launch_times(H100)
    assert [t.cost.flops for t in times if t.cost.gemm] == [2 * 480 * 6 * 144, 2 * 480 * 8 * 6, 2 * 2 * 120 * 7 * 63]


def test_gemms_of_one_launch_may_share_their_weights():
    emitter, sizes = dry(NET, 1, "fp16").emitter, (0, 0, 0, 3, 5, 7, 5, 7, 7)
    costs = [emitter.gemm(*sizes, *more).cost for more in ((), (2, (15, 21, 35)), (2, (15, 21, 0)))]
    assert costs == [
        Cost(2 * (21 + 35), 2 * 15, gemm=Gemm(3, 5, 7)),
        Cost(2 * 2 * (21 + 35), 2 * 2 * 15, gemm=Gemm(3, 5, 7, 2)),
        Cost(2 * (2 * 21 + 35), 2 * 2 * 15, gemm=Gemm(3, 5, 7, 2)),
    ]


def test_an_im2col_in_chunks_reads_its_input_about_once():
    """In each chunk the launch gets the whole map, but needs only the rows of the chunk."""
    from gpudarknet.plan.cuda import algorithms

    text = NET.replace("width=20", "width=416").replace("height=12", "height=416")
    times = dry(text, 8, choices=None, fuse_im2col=False).launch_times(H100)
    chunks = [t.cost for t in times if t.name == "nhwc.im2col" and t.cost.bytes_written % 144 == 0]
    whole = 8 * 416 * 416 * 16 * 4
    assert len(chunks) == -(-whole * 9 // algorithms.MAX_WORKSPACE) > 1
    assert sum(cost.bytes_read for cost in chunks) == whole and sum(cost.bytes_written for cost in chunks) == 9 * whole


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_launch_of_every_kind_has_a_cost(precision, batch):
    run = program(load_network(cfg.parse(ALL_KINDS), backend=plan_backend()), batch, precision)
    times = run.launch_times(H100)
    assert len([t for t in times if t.in_graph]) == len(run.launches)
    assert len([t for t in times if not t.in_graph]) == run.input_stage.launch_count + len(run.outputs)
    assert all(t.cost.bytes_read > 0 and t.cost.bytes_written > 0 for t in times)
    assert all(t.modelled == seconds(t.cost, H100, precision) for t in times)
    # What is really allocated bounds what a launch can move: the arena, weights, the caller's arrays.
    outside = sum(4 * batch * v.shape[0] * v.sizes[1] for v in (run.emitter.view(run.plan.input), *run.outputs))
    bound = run.arena.nbytes + run.weights.nbytes + outside + 2**16  # and the arrays of some layers
    assert all(t.cost.bytes_read <= 2 * bound and t.cost.bytes_written <= bound for t in times)


def test_totals_by_step_and_kind():
    times = dry(NET, 2, "fp16").launch_times(H100)
    everything, steps, kinds = total(times), by_step(times), seconds_by_kind(times)
    assert everything.launches == len(times) == sum(t.launches for t in steps.values())
    assert (
        everything.bytes_moved == sum(t.cost.bytes_moved for t in times) == sum(t.bytes_moved for t in steps.values())
    )
    assert everything.modelled == pytest.approx(sum(kinds.values()))
    assert list(kinds) == sorted(kinds, key=kinds.get, reverse=True)
    assert set(kinds) == {"convolve_float32", "epilogue", "gemm", "im2col", "maxpool", "to_nchw"}
    assert everything.measured is None and steps[None].launches == 1


def test_a_fallback_has_no_known_time():
    run = dry(SMALL + FALLBACK, 2)
    (fallback,) = [t for t in run.launch_times(H100) if t.cost is None]
    assert (fallback.name, fallback.modelled, fallback.step.name) == ("fallback", None, "fallback")
    text = run.describe(H100)
    rows = [line.split()[-4:] for line in text.splitlines() if " fallback  [region] " in line]
    assert rows[0] == ["1", "0.00", "0.000", "?"] and rows[1][-1] != "?"  # the last layer has a kernel
    assert " us\nfallback layers: their launches and times are not known" in text and " GFLOP, ? us; " in text


def test_our_own_gemm_kernel_is_a_kind_of_its_own():
    run = dry(NET)
    x, y = run.emitter.view(run.plan.input), run.outputs[0]
    gemm = Gemm(10, 20, 30, tile=(64, 64))
    arguments = [y if p == "y" else x if p == "x" else 0 for p in ("x", "y", "n", "C", "P", "ldx", "ldy")]
    launch = run.emitter.launch("nhwc_layers.avgpool", 1, *arguments, gemm=gemm)
    assert launch.name == "nhwc_layers.avgpool" and launch.cost == Cost(x.nbytes, y.nbytes, 0, gemm)
    names = (
        "implicit_gemm.implicit_gemm_128x64",
        "implicit_gemm.implicit_gemm_64x64_splitk4",
        str(gemm),
        "nhwc.im2col",
    )
    kinds = [LaunchTime(None, name, launch.cost, True, 1.0).kind for name in names]
    assert kinds == ["implicit_gemm", "implicit_gemm", "gemm", "im2col"]


# The printed plan


@pytest.fixture
def without_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "why_no_cupy", lambda: "there is no GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.cfg").write_text(NET)


def printed(capsys, *words):
    assert main(["plan", "x.cfg", "-device", "gpu", *words]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("without_gpu")
def test_the_command_prints_the_model(capsys):
    head, *lines = printed(capsys, "-precision", "fp16", "-batch", "2")
    times = dry(NET, 2, "fp16").launch_times(H100)
    assert head.split()[-5:] == ["launches", "MB", "GFLOP", "us", "algorithm"]
    first, everything = times[0], total(times)
    at = head.index("launches")
    assert lines[0][at:].split() == [
        "1", f"{first.cost.bytes_moved / 1e6:.2f}", f"{first.cost.flops / 1e9:.3f}", f"{1e6 * first.modelled:.1f}",
        "direct,", "outside", "the", "graph",
    ]  # fmt: skip
    graph = total(t for t in times if t.in_graph)
    text, overhead = "\n".join(lines), 100 * len(times) * LAUNCH / everything.modelled
    assert f"\nH100 SXM, modelled: {graph.launches} launches in the graph: " in text
    assert (
        f"\nin all {1e6 * everything.modelled:.1f} us for a batch of 2, {2 / everything.modelled:,.0f} images/s" in text
    )
    assert "\nshare of time: " in text and f"launch latency is {overhead:.0f} % of it\n" in text
    assert lines[-1] == "not run: there is no GPU"
    assert max(map(len, lines)) <= 170


@pytest.mark.usefixtures("without_gpu")
def test_the_card_can_be_chosen(capsys):
    assert any(line.startswith("RTX 4090, modelled: ") for line in printed(capsys, "-card", "4090"))
    for words, error in (
        (["-device", "gpu", "-card", "Voodoo"], "plan: -card: unknown card 'Voodoo'; choose one of H100 SXM, "),
        (["-device", "cpu", "-card", "T4"], "plan: -card is for a GPU; add -device gpu"),
        (["-device", "cpu", "-time"], "plan: -time is for a GPU; add -device gpu"),
        (["-device", "gpu", "-time"], "plan: -time needs the GPU: there is no GPU"),
    ):
        assert main(["plan", "x.cfg", *words]) == 2
        assert error in capsys.readouterr().err


@pytest.fixture(params=["host-cuda", "cuda"])
def gpu(request, monkeypatch, tmp_path):
    be = plan_backend() if request.param == "host-cuda" else backend_for("cuda")
    monkeypatch.setattr(backend, "get", lambda name: be)
    monkeypatch.setattr(backend, "why_no_cupy", lambda: None)
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.cfg").write_text(NET)
    return be


def test_launches_are_timed_on_a_gpu(gpu, capsys):
    from gpudarknet.plan.cuda.autotune import gpu_name

    head, *lines = printed(capsys, "-time")
    assert head.split()[-2:] == ["measured", "algorithm"]
    origin = f"measured one by one, on {gpu_name(gpu)}: "
    (line,) = [line for line in lines if line.startswith(origin)]
    assert float(line.removeprefix(origin).split()[0]) > 0


# Committed results


def results(folder, run, name="2026-01-01.jsonl", factor=1.0, start=None, **row):
    """Write the results of a check in which launch i of a plan took i + 1 microseconds."""
    graph = [t for t in run.launch_times(H100) if t.in_graph]
    rows = [launch_rows.cells(t, factor * (i + 1) / 1e6) for i, t in enumerate(graph)]
    head = {"case": "start", "device": "NVIDIA H100 80GB HBM3", "small": False, **(start or {})}
    body = {"case": "launches/x", "launch_columns": launch_rows.COLUMNS, "launches": rows, **row}
    text = "".join(json.dumps({"record": "gpu-check", **one}) + "\n" for one in (head, {"case": "other"}, body))
    (folder / name).write_text(text)
    return len(graph)


def test_measured_times_are_found(tmp_path):
    run = dry(NET)
    times = run.launch_times(H100)
    assert launch_rows.measured(H100, times, tmp_path) is None
    count = results(tmp_path, run)
    want = [pytest.approx((i + 1) / 1e6) for i in range(count)]
    assert launch_rows.measured(H100, times, tmp_path) == (want, "2026-01-01.jsonl")
    results(tmp_path, run, "2026-01-02.jsonl", factor=2)
    (tmp_path / "2026-01-03.jsonl").write_text("{")
    (tmp_path / "2026-01-04.jsonl").write_text('{"record": "machine"}\n')
    assert launch_rows.measured(H100, times, tmp_path)[1] == "2026-01-02.jsonl"
    assert launch_rows.measured(find_card("T4"), times, tmp_path) is None
    assert launch_rows.measured(H100, dry(NET, 2).launch_times(H100), tmp_path) is None  # another plan


@pytest.mark.parametrize(
    "row",
    [
        {"start": {"emulated": True}}, {"start": {"small": True}}, {"start": {"device": "NVIDIA L4"}},
        {"start": {"device": None}}, {"failed": ["wrong"]}, {"launches": [[1, 2]]}, {"launches": None},
    ],
)  # fmt: skip
def test_measured_times_that_mean_nothing_are_ignored(tmp_path, row):
    run = dry(NET)
    results(tmp_path, run, **row)
    assert launch_rows.measured(H100, run.launch_times(H100), tmp_path) is None


@pytest.mark.usefixtures("without_gpu")
def test_measured_times_are_printed_beside_the_model(capsys, monkeypatch, tmp_path):
    run = dry(NET)
    count = results(tmp_path, run, "2026-01-01-h100.jsonl")
    monkeypatch.setattr(launch_rows.measured, "__defaults__", (tmp_path,))
    import gpudarknet.bench.launch_rows as installed

    monkeypatch.setattr(installed.measured, "__defaults__", (tmp_path,))
    head, *lines = printed(capsys)
    at = head.index("measured") + len("measured")
    steps = by_step(run.launch_times(H100, [(i + 1) / 1e6 for i in range(count)]))
    shown = [line[:at].split()[-1] for line in lines[: len(steps)]]
    assert shown == ["0.0", *(f"{1e6 * t.measured:.1f}" for s, t in steps.items() if s and t.measured), "0.0"]
    total_us = count * (count + 1) / 2
    assert any(
        f"measured one by one, in 2026-01-01-h100.jsonl: {total_us:.1f} us in the graph" in line for line in lines
    )
