"""The page: one self-contained file, the same values as the tables, and how a browser renders it."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

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
    assert not re.search(r"https?:|<script|<link|<img|url\(", text)  # nothing external
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text and "@media print" in text


def test_names_are_escaped():
    text = page.page([CPU | {"device": "A <b> & C"}, result(CPU | {"device": "A <b> & C"}, 2.0)])
    assert "A &lt;b&gt; &amp; C" in text and "A <b>" not in text


def test_plots_stay_inside_their_frame():
    every = [
        plots.speeds(RECORDS),
        plots.rule_plot([*RECORDS, *GPU_RECORDS]),
        plots.roofline(RECORDS),
        plots.layer_plot(RECORDS, records.layers(RECORDS)[0]),
    ]
    for figure in every:
        height = float(re.search(r'viewBox="0 0 440 (\d+)"', figure)[1])
        for axis, most in (("x", plots.WIDTH), ("y", height)):
            for value in re.findall(rf'\bc?{axis}[12]?="(-?[\d.]+)"', figure):
                assert 0 <= float(value) <= most, figure


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
    for colour in ("c4620b", "0677d9"):  # --e0 and --e1 of the light style, in OpenCV's BGR: dots and bars are drawn
        assert (image == list(bytes.fromhex(colour))).all(axis=2).sum() > 50
