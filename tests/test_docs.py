"""The documents tell the truth: their commands run, the files they name exist, their Python works as written."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cli, shelf
from gpudarknet.layers import SECTIONS

ROOT = Path(__file__).parent.parent
DOCS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
FUTURE = {"gpudarknet/layers/shuffle.py"}  # what CONTRIBUTING's example would add
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCS}
README = TEXTS["README.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


COMMANDS = [line for text in TEXTS.values() for block in blocks(text, "console") for line in block.splitlines()]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("gpudarknet ")])
def test_commands_of_the_command_line(line):
    words = line.split()[1:]
    if words != ["help"]:
        command, rest = cli.find(words)
        cli.parse(command, rest)


def test_make_targets():
    made = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert {"demo", "test"} <= made <= TARGETS
    ci = (ROOT / ".ci/run").read_text()
    assert {"test", "demo", "lint"} <= set(re.findall(r"make ([a-z-]+)", ci)) <= TARGETS


def test_files_that_commands_name():
    for line in COMMANDS:
        for word in line.split():
            if word.startswith(("tests/", "bench/")):
                assert (ROOT / word).exists(), line


@pytest.mark.parametrize("name", DOCS)
def test_files_that_documents_name(name):
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    quoted = [word for word in re.findall(r"`([\w./]+/[\w.]*|[\w/]+\.(?:py|md|cu|cuh))`", text)]
    for word in {word for word in (*links, *quoted) if "NAME" not in word} - FUTURE:
        found = [folder / word for folder in (ROOT, ROOT / "kernels", ROOT / "gpudarknet", ROOT / "gpudarknet/layers")]
        assert any(path.exists() for path in found), word


def test_readme_names_every_section_and_every_network():
    (sections,) = re.findall(r"^\| sections \| (.*) \|$", README, re.MULTILINE)
    names = set(re.findall(r"\w+", re.sub(r"\(.*?\)", "", sections)))
    assert names == {kind.section for kind in SECTIONS.values()}
    (networks,) = re.findall(r"^\| networks that ship \| (.*) \|$", README, re.MULTILINE)
    assert set(networks.split(", ")) == set(shelf.names())


def test_python_of_the_readme(tmp_path, monkeypatch):
    (code,) = blocks(README, "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg").symlink_to(ROOT / "cfg")
    gd.load_network(shelf.shipped_cfg("yolov4-tiny"), backend="numpy").save_weights("yolov4-tiny.weights")
    photo = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)
    cv2.imwrite("photo.png", photo)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    with np.errstate(all="ignore"):
        names: dict = {}
        exec(code, names)
    assert [y.shape for y in names["heads"]] == [(1, 255, 13, 13), (1, 255, 26, 26)]
    assert len(names["layers"]) == 38
    assert Path("copy.weights").stat().st_size == Path("yolov4-tiny.weights").stat().st_size
