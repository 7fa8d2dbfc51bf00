"""The page: one self-contained file, the same values as the tables, and how a browser renders it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from bench_cases import CPU, GPU_RECORDS, RECORDS, result

from gpudarknet.bench import page, plots, records
from gpudarknet.cli import main

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_balanced_tags_and_valid_svg():
    text = page.page(RECORDS, GPU_RECORDS)
    balance = Balance()
    balance.feed(text)
    assert not balance.open
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert not re.search(r"(src|href)=\"?[^#\"]|<script|<link|<img|url\([^#]", text)  # nothing external
    names = re.findall(r' id="([^"]+)"', text)
    assert len(names) == len(set(names)) > 4
    assert set(re.findall(r'(?:url\(|href=")#(\w+)', text)) <= set(names)
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_same_records_give_the_same_page():
    assert page.page(RECORDS, GPU_RECORDS) == page.page(RECORDS, GPU_RECORDS)


def test_without_matplotlib_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page.page(RECORDS, GPU_RECORDS)
    assert 'pip install "gpudarknet[bench]"' in text and "<svg" not in text
    assert "<h2>Speed</h2>" in text and "<h2>Layers of net 416, reference</h2>" in text


def test_names_are_escaped():
    text = page.page([CPU | {"device": "A <b> & C"}, result(CPU | {"device": "A <b> & C"}, 2.0)])
    assert "A &lt;b&gt; &amp; C" in text and "A <b>" not in text


@pytest.fixture
def axes(monkeypatch):
    """Return what a plot draws as matplotlib's axes."""
    from matplotlib.figure import Figure

    def draw_on_axes(plot, *arguments):
        axes = Figure().subplots()
        monkeypatch.setattr(plots, "figure", lambda title, caption, draw, height=4.0: draw(axes))
        plot(*arguments)
        return axes

    return draw_on_axes


def points(axes, label) -> list[list[float]]:
    """Return the points of a line of a plot."""
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return line.get_xydata().tolist()


def test_speeds_are_medians_with_lines_from_p10_to_p90(axes):
    drawn = axes(plots.speeds, RECORDS)
    medians = [bar[0].get_xydata().tolist() for bar in drawn.containers]
    spans = [bar[2][0].get_segments()[0][:, 0] for bar in drawn.containers]
    assert medians == [[[4.0, 1.0]], [[1.0, 2.0]]]
    np.testing.assert_allclose(spans, [[3.6, 4.4], [0.9, 1.1]])
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["plan", "reference"]
    assert [text.get_text() for text in drawn.texts] == ["net 416, 35.0 GFLOP", "4.00", "1.00"]
    assert drawn.get_xscale() == "log"


def test_the_rule_is_a_line_and_every_device_a_point(axes):
    drawn = axes(plots.rule_plot, [*RECORDS, *GPU_RECORDS])
    every = [[512, 140 / 34.9], [10000, 7000 / 34.9], [80000, 28000 / 34.9]]
    np.testing.assert_allclose(points(drawn, "plan"), every)
    np.testing.assert_allclose(points(drawn, "reference"), [[512, 35 / 34.9]])
    (x0, y0), (x1, y1) = points(drawn, "0.01 FPS per GFLOPS")
    assert (y0 / x0, y1 / x1) == (pytest.approx(0.01), pytest.approx(0.01))
    assert [6604, pytest.approx(67)] in points(drawn, "published")


def test_the_roofline_is_the_slower_of_copy_and_gemm(axes):
    drawn = axes(plots.roofline, RECORDS)
    (x0, y0), ridge, (_, top) = drawn.get_lines()[0].get_xydata().tolist()
    assert (y0, ridge, top) == (pytest.approx(x0 * 20), [20.0, 400.0], 400.0)
    assert points(drawn, "plan") == [[100.0, 140.0]]  # 35 GFLOP and 350 MB at 4 FPS
    assert points(drawn, "layers") == [[300.0, 150.0], [0.1, 0.2]]  # 30 GFLOP, 100 MB, 200 ms; 0.01, 100, 50


def test_layers_are_bars_by_what_bounds_them(axes):
    drawn = axes(plots.layer_plot, RECORDS, records.layers(RECORDS)[0])
    bars = {bar.get_label(): [(patch.get_center()[0], patch.get_height()) for patch in bar] for bar in drawn.containers}
    assert bars == {"compute-bound": [(0.0, 200.0)], "memory-bound": [(1.0, 50.0)]}


def test_a_run_without_results_still_makes_a_page():
    assert "Fake CPU" in page.page([CPU])


def test_the_report_command_writes_the_page(tmp_path, capsys):
    records.write(tmp_path / "run.jsonl", RECORDS)
    assert main(["bench", "report", str(tmp_path / "run.jsonl")]) == 0
    assert (tmp_path / "run.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "GPU FPS vs CPU GFLOPS estimates" in capsys.readouterr().out


def test_a_file_without_a_machine_is_refused(tmp_path, capsys):
    records.write(tmp_path / "run.jsonl", [])
    assert main(["bench", "report", str(tmp_path / "run.jsonl")]) == 2
    path = tmp_path / "run.jsonl"
    assert capsys.readouterr().err == (
        f"error: bench report: {path} has no machine record; pass a file written by `gpudarknet bench`\n"
    )


QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()


@pytest.mark.skipif(BROWSER is None, reason="no chromium to render the page")
@pytest.mark.parametrize(("width", "height"), [(1280, 1600), (500, 1600)])
def test_a_browser_renders_it(tmp_path, width, height):
    import cv2

    (tmp_path / "page.html").write_text(page.page(RECORDS, GPU_RECORDS), encoding="utf-8")
    shot = tmp_path / "shot.png"
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},{height}"]
    subprocess.run(
        [*command, f"--screenshot={shot}", (tmp_path / "page.html").as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    image = cv2.imread(str(shot))
    assert image.shape == (height, width, 3)
    background = image[0, 0]
    inked = (image != background).any(axis=2)
    assert 0.02 < inked.mean() < 0.6
    assert not inked[:, -8:].any()  # nothing overflows the right edge
    for color in ("b4771f", "0e7fff"):  # tab:blue and tab:orange in OpenCV's BGR: dots and bars are drawn
        assert (image == list(bytes.fromhex(color))).all(axis=2).sum() > 50
