"""The rule of thumb: 35 % of the peak, FPS per GFLOPS of each network, and the original discussion's case."""

from __future__ import annotations

import pytest

from gpudarknet.bench import rule_of_thumb, suite
from gpudarknet.cli import main

# FPS per GFLOPS at 35 % of the peak, for network and side of the input
PER_GFLOPS = [
    ("yolov2", 416, 0.0119), ("yolov2", 608, 0.0056), ("yolov3", 416, 0.0053), ("yolov3", 608, 0.0025), ("yolov4", 416, 0.0058),
    ("yolov4", 608, 0.0027), ("yolov2-tiny", 416, 0.0647), ("yolov3-tiny", 416, 0.0629), ("yolov4-tiny", 416, 0.0507),
]  # fmt: skip


@pytest.mark.parametrize(("network", "side", "want"), PER_GFLOPS)
def test_fps_per_gflops_of_bundled_networks(network, side, want):
    name, gflop = suite.cost_of(network, side, side)
    assert name == f"{network} {side} x {side}"
    assert round(rule_of_thumb.fps_per_gflops(gflop), 4) == want


def test_the_rule_is_35_percent_of_the_original_cards_peak():
    assert round(rule_of_thumb.fps_per_gflops(rule_of_thumb.RULE_GFLOP), 4) == rule_of_thumb.RULE == 0.01
    assert rule_of_thumb.RULE * rule_of_thumb.RULE_GFLOP == pytest.approx(rule_of_thumb.EFFICIENCY, rel=0.01)
    assert rule_of_thumb.fps(6604, 34.90) == pytest.approx(67, rel=0.02)  # Titan X


def test_fps_and_equivalent_by_the_rule():
    assert round(rule_of_thumb.fps(67_000, 29.46)) == 794
    assert round(rule_of_thumb.fps(990_000, 29.46), -1) == 11_730
    assert rule_of_thumb.equivalent(7300, 29.46) == pytest.approx(615_000, rel=0.002)


CASE = """\
yolo-voc 416 x 416: 34.90 GFLOP per image
peak: 39.76 GFLOPS (as given)
rule: 0.0100 FPS per GFLOPS (35 % of the peak / 34.90 GFLOP)
the rule predicts 0.4 FPS, 2.5 s per image
measured: 9.2 s per image = 0.109 FPS = 3.8 GFLOP/s, 9.5% of this peak
warning: 39.76 GFLOPS looks like a Whetstone figure (scalar, double precision; BOINC's CPU list), not a SIMD peak; \
use cores x GHz x FLOP per cycle, for example --cpu 4x4.2x32
the list has 39.76 for the Intel Core i7-7700K; its peak is 4 cores x 4.2 GHz x 32 FLOP per cycle = 537.6 \
GFLOPS, 13.5 times as much
with that peak the rule predicts 5.4 FPS, 0.19 s per image
the measurement is 0.7% of it, not 35 %: code without SIMD, or a timer that counts the CPU time of all threads (clock())
"""


def test_estimate_reproduces_the_discussion(capsys):
    assert main(["bench", "estimate", "--gflops", "39.76", "yolo-voc"]) == 0
    assert capsys.readouterr().out == CASE


def test_a_correct_peak_gives_no_warning(capsys):
    assert main(["bench", "estimate", "--cpu", "4x4.2x32", "yolov3", "--seen=0.5"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "yolov3 416 x 416: 65.86 GFLOP per image",
        "peak: 537.60 GFLOPS (4 cores x 4.2 GHz x 32 FLOP per cycle)",
        "rule: 0.0053 FPS per GFLOPS (35 % of the peak / 65.86 GFLOP)",
        "the rule predicts 2.8 FPS, 0.35 s per image",
        "measured: 0.5 s per image = 2.000 FPS = 131.7 GFLOP/s, 24.5% of this peak",
    ]


def test_an_unlisted_small_figure_gives_a_warning_too():
    lines = rule_of_thumb.estimate("yolov3", 65.86, 20.0, "as given")
    assert [line for line in lines if line.startswith("warning: 20 GFLOPS looks like a Whetstone figure")]
    assert not any("i7-7700K" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--cpu", "4x4.2"],
            "bench estimate: -cpu must be CORESxGHZxFLOP-PER-CYCLE, for example 4x4.2x32; not '4x4.2'",
        ),
        (
            ["--cpu", "4x0x32"],
            "bench estimate: -cpu must be CORESxGHZxFLOP-PER-CYCLE, for example 4x4.2x32; not '4x0x32'",
        ),
        (["--cpu", "4x4x32", "--gflops", "9"], "bench estimate: -gflops and -cpu exclude each other; pass one"),
        (["--gflops", "-9"], "bench estimate: -gflops must be above 0"),
        (["--seen", "-1"], "bench estimate: -seen must be seconds per image"),
        (
            ["yolo-voc", "--width", "608"],
            "bench estimate: yolo-voc is known at 416 x 416 only; use yolov2-voc with -width and -height",
        ),
    ],
)
def test_errors_say_what_to_do(words, message, capsys):
    assert main(["bench", "estimate", *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
