"""The tuning file that ships for a GPU is made from the results of its GPU check."""

from __future__ import annotations

import json

import pytest

from bench import gpu_tuning
from gpudarknet.io import resources
from gpudarknet.plan import tuning
from gpudarknet.plan.cuda import autotune

GPU = "NVIDIA L4"
FP16, TF32 = (autotune.conditions(f"{GPU}, cuBLAS 12.9.1", precision) for precision in ("fp16", "tf32"))
START = {"case": "start", "date": "2026-12-01T08:00:00+00:00", "commit": "abcdef0123456789", "dirty": False, "backend": "cupy",
         "small": False, "only": "", "device": GPU, "driver": "600.1"}  # fmt: skip
END = {"case": "end", "passed": True, "interrupted": False, "summary": "all of 3 cases passed"}


def variant(network, implicit, rule, **more):
    rates = {"graph_images_s": implicit, "default_graph_images_s": rule}
    return {"case": f"{network}/416/fp16/batch-1/implicit-gemm", "outcome": "passed", "engine": "implicit-gemm",
            "tuned_for": FP16, **rates, **more}  # fmt: skip


def tuned(implicit=900.0, rule=800.0, autotuned=950.0, of=FP16):
    times = {
        "a": {"im2col_gemm": 10.0, "implicit_gemm_64x64": 9.5, "implicit_gemm_128x64": 12.0},  # not clearly faster
        "b": {"im2col_gemm": 10.0, "implicit_gemm_64x64": 5.0},
        "c": {"im2col_gemm": 5.0, "implicit_gemm_64x64": 10.0},
        "d": {"gemm_1x1": 5.0, "gemm_1x1_batched": 6.0},
    }
    choices = {"a": "im2col_gemm", "b": "implicit_gemm_64x64", "c": "im2col_gemm", "d": "gemm_1x1"}
    modelled = {key: {name: 10 - i for i, name in enumerate(own)} for key, own in times.items()}
    rates = {"implicit-gemm": implicit, "heuristic": rule, "autotuned": autotuned}
    return {
        "case": f"autotune/yolov3/416/{of.split(', ')[2]}/batch-1",
        "outcome": "passed",
        "card": "L4",
        "tuned_for": of,
        "choices": choices,
        "microseconds": times,
        "modelled_us": modelled,
        **{kind: {"graph_images_s": rate} for kind, rate in rates.items()},
    }


@pytest.fixture
def write(tmp_path):
    """Write rows of a check, run the command, and return the content of the file, or None."""

    def write(*rows, start=START):
        path = tmp_path / "gpu-check.jsonl"
        lines = [{"record": "gpu-check", "part": "B", **row} for row in (start, *rows, END)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        code = gpu_tuning.main([str(path), "--out", str(tmp_path)])
        file = tmp_path / "l4.json"
        assert code in (0, 2) and not (code and file.exists())
        return json.loads(file.read_text()) if file.exists() else None

    return write


def test_the_default_where_all_plans_were_faster(write, capsys):
    got = write(variant("yolov3", 900, 800), variant("yolov4-tiny", 2000, 1000), tuned())
    ours = "implicit_gemm_64x64"
    assert got == {FP16: {"default": "implicit_gemm", "a": ours, "b": ours, "c": "im2col_gemm", "d": "gemm_1x1"}}
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "yolov3/416/fp16/batch-1/implicit-gemm: implicit GEMM 900 images/s, rule 800"
    assert out[-2] == f"{FP16}: default implicit_gemm, 4 convolutions"


def test_no_default_if_a_plan_was_slower(write):
    got = write(variant("yolov3", 900, 800), variant("yolov4-tiny", 900, 1000), tuned())
    assert got == {FP16: {"a": "im2col_gemm", "b": "implicit_gemm_64x64", "c": "im2col_gemm", "d": "gemm_1x1"}}


def test_no_choices_that_made_the_plan_slower(write, capsys):
    assert write(variant("yolov3", 700, 800), tuned(implicit=700.0, autotuned=790.0)) is None
    out, err = capsys.readouterr()
    assert err == "" and out.endswith("NVIDIA L4: the rule's algorithms were the fastest; there is nothing to ship\n")


def test_each_precision_by_itself(write):
    got = write(variant("yolov3", 900, 800), tuned(), tuned(implicit=700.0, of=TF32))
    assert got[FP16]["default"] == "implicit_gemm" and "default" not in got[TF32] and got[TF32]["a"] == "im2col_gemm"


def test_the_package_reads_it(write, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "folder", lambda: tmp_path)
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "cache"))
    got = write(variant("yolov3", 900, 800), tuned())
    (tmp_path / "tuning").mkdir()
    (tmp_path / "l4.json").rename(tmp_path / "tuning" / "l4.json")
    assert tuning.load_tuning(FP16.replace("12.9.1", "13.0.2")) == got[FP16]


def test_the_algorithms_of_each_convolution(tmp_path, capsys):
    path = tmp_path / "gpu-check.jsonl"
    rows = START, tuned(), tuned(of=TF32) | {"card": None}, END
    path.write_text("".join(json.dumps({"record": "gpu-check", "part": "B", **row}) + "\n" for row in rows))
    assert gpu_tuning.main([str(path), "--layers"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| a |")]
    ours = "implicit_gemm_64x64 | 9.50 | 9.00"
    assert lines == [
        f"| a | im2col_gemm | 10.0 | 10.0 | {ours} | implicit_gemm_128x64 | 12.0 | 8.00 |",
        f"| a | im2col_gemm | 10.0 | 10.0 | {ours} | – | – | – |",
    ]


def test_a_card_that_is_not_in_the_table(tmp_path):
    device = gpu_tuning.Device("NVIDIA RTX 6000 Ada Generation")
    assert gpu_tuning.path_of(device, tmp_path).name == "nvidia-rtx-6000-ada-generation.json"


@pytest.mark.parametrize(("rows", "message"), [
    ([tuned() | {"outcome": "skipped"}], "NVIDIA L4: has no plans of implicit GEMMs; run `make gpu-check` again"),
    ([variant("yolov3", 900, 800, tuned_for=f"{GPU}, fp16, kernels 00000000")],
     "NVIDIA L4: measured with other kernels than those of this checkout; run `make gpu-check` again"),
])  # fmt: skip
def test_results_that_do_not_apply(write, capsys, rows, message):
    assert write(*rows) is None
    assert capsys.readouterr().err == f"error: {message}\n"


def test_emulated_results_are_refused(write, capsys):
    assert write(variant("yolov3", 900, 800), start=START | {"emulated": True}) is None
    assert "measured on an emulated device" in capsys.readouterr().err
