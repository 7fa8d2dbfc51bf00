"""The documentation is correct: its commands and Python run as written, the files that it names exist, the site builds."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import seeded

import gpudarknet as gd
from gpudarknet import cfg, cli, cv2dnn, graph
from gpudarknet.backend import threads
from gpudarknet.data.datafile import DataFile
from gpudarknet.io import download, resources
from gpudarknet.layers import SECTIONS
from gpudarknet.layers.base import Activation

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
DOCS = [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
FUTURE = {"gpudarknet/layers/shuffle.py", "detect.py"}  # what the examples in docs/layer.md and docs/cluster.md add
FOREIGN = {"darknet.py"}  # Darknet's own
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCS}
README = TEXTS["README.md"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
# Words of a page's commands, and shorter work that the test does in their place
SHORTER = {
    "docs/fine-tuning.md": {
        "examples/bolts.py": "examples/bolts.py --train 12 --valid 8",
        "-max_batches 300": "-max_batches 2",
        "256": "64",
    }
}
NEEDED = {
    "docs/cluster.md": ("ray", "pyarrow"),
    "docs/ray-data.md": ("ray.data",),
}  # modules without which a page is skipped
OPTIONAL = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n\n")[0]
EXTRAS = set(re.findall(r"^([a-z0-9]+) = \[", OPTIONAL, re.MULTILINE))


@dataclass(frozen=True)
class Block:
    """A code block: language, text, line number before it, and the comment that says what runs it."""

    language: str
    text: str
    line: int
    mark: str  # "", "not run: why" or "run by FILE"


def blocks(text: str) -> list[Block]:
    """Return a page's blocks in order."""
    block = r"(?:^<!-- ((?:not run|run by)\b.*?) -->\n)?^```(\w*)\n(.*?)^```$"
    matches = re.finditer(block, text, re.DOTALL | re.MULTILINE)
    return [Block(m[2], m[3], text.count("\n", 0, m.start(2)) + 1, m[1] or "") for m in matches]


BLOCKS = {name: blocks(text) for name, text in TEXTS.items()}


# Every block runs, or states why not


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Seeded weights for yolov4-tiny, biased so that noise gives some dozens of detections of the first classes."""
    network = gd.load_network(resources.bundled_cfg("yolov4-tiny"), backend="numpy")
    path = seeded.write_weights(network, tmp_path_factory.mktemp("weights") / "yolov4-tiny.weights", 3, 1.5)
    network = gd.load_network(resources.bundled_cfg("yolov4-tiny"), path, backend="numpy")
    for head in network.heads:
        bias = network.weights[head - 1]["bias"].reshape(3, 85)  # anchors, entries
        bias[:, 4] -= 5.5
        bias[:, 8:] -= 100
    network.save_weights(path)
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch, weights) -> Iterator[Path]:
    """A reader's working folder: bundled files, an image, weights without a download, and an installed package."""
    for name in ("yolov4-tiny.cfg", "coco.names", "coco.data"):
        (tmp_path / name).write_bytes((resources.folder() / name).read_bytes())
    (tmp_path / "cfg").symlink_to(resources.folder())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "yolov4-tiny.weights").symlink_to(weights)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    cv2.imwrite(str(tmp_path / "photo.png"), np.random.default_rng(0).integers(0, 256, (240, 330, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "weights", lambda name, *_, **__: tmp_path / f"{name}.weights")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    monkeypatch.setattr(threads, "_requested", None)  # a block sets the number of threads; what was before comes back
    size = threads.thread_pool().size
    with ExitStack() as stack:
        for changed in (vars(cv2), vars(cv2.dnn)):  # `install` patches OpenCV
            stack.enter_context(mock.patch.dict(changed))
        stack.callback(sys.modules.pop, "darknet", None)  # not all of sys.modules: onnx cannot be imported twice
        yield tmp_path
    threads.thread_pool().resize(size)


def shorter(page: str, line: str) -> str:
    """Return a line of a console block with less work."""
    for words, others in SHORTER.get(page, {}).items():
        line = line.replace(words, others)
    return line


def run_line(line: str) -> None:
    """Run a line of a console block, our own commands in this process."""
    if line.startswith("gpudarknet "):
        assert cli.main(shlex.split(line)[1:]) == 0, line
    else:
        subprocess.run(["bash", "-c", line], check=True)


def parse_line(line: str) -> None:
    """Check a line that is not run: commands, flags, make targets, extras, programs."""
    program, *words = shlex.split(line)
    if program == "gpudarknet":
        if words[0] != "help" and "--help" not in words:
            cli.parse(*cli.find(words))
    elif program == "make":
        assert set(words) <= TARGETS, line
    elif program == "pip":
        assert words[0] == "install" and set(re.findall(r"\[(\w+)\]", line)) <= EXTRAS, line
    else:
        assert program in {".", "cp", "sudo", "python"}, f"{line}: unknown program"


def run_cfg(text: str) -> None:
    """Parse a cfg without warnings and build its network; only parse a fragment."""
    if text.startswith("[net]"):
        graph.build(cfg.parse(text, strict=True))
    else:
        cfg.parse(f"[net]\n{text}", strict=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, workspace):
    for name in NEEDED.get(page, ()):
        pytest.importorskip(name, reason=f"{name} is not installed")
    names: dict = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        location = f"{page}:{block.line}"
        if block.language == "console":
            for line in block.text.splitlines():
                parse_line(line)
                if not block.mark:
                    run_line(shorter(page, line))
        elif block.language == "python" and not block.mark:
            with np.errstate(all="ignore"):
                exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec"), names)
        elif block.language == "python":
            compile(block.text, location, "exec")
        elif block.language == "cfg":
            run_cfg(block.text)
        else:
            assert block.mark, f"{location}: nothing runs a block of '{block.language}'"
    CHECKS.get(page, lambda names: None)(names)


def check_readme(names: dict) -> None:
    assert [y.shape for y in names["heads"]] == [(1, 255, 13, 13), (1, 255, 26, 26)]
    assert len(names["layers"]) == 38
    assert Path("copy.weights").stat().st_size == Path("yolov4-tiny.weights").stat().st_size


def check_opencv(names: dict) -> None:
    assert len(names["kept"]) and len(names["boxes"])
    assert isinstance(names["net"], cv2dnn.Net)


def check_opencv5(names: dict) -> None:
    assert len(names["kept"])
    net = cv2dnn.readNetFromDarknet("yolov4-tiny.cfg", "yolov4-tiny.weights")
    net.setInput(names["blob"])
    for rows, theirs in zip(names["outputs"], net.forward(net.getUnconnectedOutLayersNames()), strict=True):
        rows[:, 5:][rows[:, 5:] <= 0.2] = 0
        np.testing.assert_allclose(rows, theirs, rtol=1e-3, atol=1e-5)


def check_darknet(names: dict) -> None:
    assert names["detections"] and len(names["batch_detections"]) == 2


def check_training(names: dict) -> None:
    assert names["report"].mean > 0.25  # about 0.5; so short a training varies
    assert names["last"].iteration == 10  # five, then resumed
    assert Path("backup/chart_shapes.csv").is_file()


def check_cluster(names: dict) -> None:
    assert names["summary"].images == len(names["rows"]) == len(names["frame"]) == len(names["table"]) == 100
    objects = names["summary"].objects
    assert len(json.loads(Path("coco.json").read_text())) == objects > 0
    assert len(Path("found.csv").read_text().splitlines()) == objects + 1


def check_fine_tuning(names: dict) -> None:
    assert names["detector"].names == ("nut", "bolt")
    assert cfg.read("bolts.cfg").net.max_batches == 2
    assert {path.name for path in Path("bolts/backup").glob("*.weights")} >= {
        "bolts_best.weights",
        "bolts_final.weights",
    }


CHECKS: dict[str, Callable[[dict], None]] = {
    "README.md": check_readme,
    "docs/opencv.md": check_opencv,
    "docs/opencv5.md": check_opencv5,
    "docs/darknet.md": check_darknet,
    "docs/training.md": check_training,
    "docs/fine-tuning.md": check_fine_tuning,
    "docs/cluster.md": check_cluster,
}


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_states_why(page):
    for block in BLOCKS[page]:
        assert not block.mark or re.fullmatch(r"not run: .{8,}|run by tests/test_\w+\.py", block.mark), block
        assert not block.mark.startswith("run by") or (ROOT / block.mark.split()[-1]).is_file(), block
    fences = len(re.findall(r"^ *```", TEXTS[page], re.MULTILINE))
    assert fences == 2 * len(BLOCKS[page]), "a block is indented or not closed"


def test_every_shortened_command_is_on_its_page():
    for page, words in SHORTER.items():
        commands = [line for block in BLOCKS[page] if block.language == "console" for line in block.text.splitlines()]
        for word in words:
            assert any(word in line for line in commands), f"{page}: no command with {word}"


# What documents name exists


COMMANDS = [line for page in BLOCKS.values() for b in page if b.language == "console" for line in b.text.splitlines()]


def test_make_targets_exist():
    targets = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    assert {"demo", "test"} <= targets <= TARGETS
    ci = (ROOT / ".ci/run").read_text()
    assert {"test", "demo", "lint"} <= set(re.findall(r"make ([a-z-]+)", ci)) <= TARGETS


def test_files_named_in_commands_exist():
    for line in COMMANDS:
        for word in line.split():
            if word.startswith(("tests/", "bench/")) and not word.startswith("bench/results/"):
                assert (ROOT / word).exists(), line


@pytest.mark.parametrize("name", DOCS)
def test_files_named_in_documents_exist(name):
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    quoted = [word for word in re.findall(r"`([\w./]+/[\w.]*|[\w/]+\.(?:py|md|cu|cuh))`", text)]
    for word in {word for word in (*links, *quoted) if "NAME" not in word} - FUTURE - FOREIGN:
        folders = (ROOT, (ROOT / name).parent, ROOT / "kernels", ROOT / "gpudarknet", ROOT / "gpudarknet/layers")
        built = word.startswith("build/")  # by make, not in the repository
        assert built or any((folder / word).exists() for folder in folders), word


def test_readme_names_every_bundled_network():
    (networks,) = re.findall(r"^\| bundled networks \| (.*) \|$", README, re.MULTILINE)
    assert set(networks.split(", ")) == set(resources.names())


def rows(page: str, head: str) -> set[str]:
    """Return the quoted words in the first column of the table whose header begins with `head`."""
    lines = TEXTS[page].split("\n")
    begin = next(k for k, line in enumerate(lines) if line.startswith(f"| {head}"))
    end = next(k for k in range(begin, len(lines)) if not lines[k].startswith("|"))
    return {word for line in lines[begin + 2 : end] for word in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_tables_are_complete():
    assert rows("docs/index.md", "extra") == EXTRAS
    known = {f.name for f in fields(DataFile)} - {"path", "keys"}
    assert known - {"labels"} <= rows("docs/training.md", "key of a `.data` file") <= known


# Sections and keys


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_keys_and_meanings_match(generate):
    meanings = generate.meanings()
    assert set(meanings.pop("activations")) == set(typing.get_args(Activation))
    assert {group: set(keys) for group, keys in meanings.items()} == {
        generate.group(kind): set(generate.own_keys(kind)) for kind in generate.records()
    }


def test_the_page_of_sections_lists_every_key(generate):
    page = generate.sections()
    assert re.findall(r"^## \[(\w+)\]", page, re.MULTILINE) == sorted(
        {kind.section for kind in SECTIONS.values()}, key=str.lower
    )
    for key, default in (("filters", "`1`"), ("layers", "*required*"), ("truth_thresh", "`1`"), ("max_delta", "none")):
        assert f"| `{key}` | {default} |" in page
    assert "One of `sse`, `masked`, `smooth`." in page


# The site


def test_the_site_builds_without_warnings_and_external_links(tmp_path):
    for name in ("material", "mkdocstrings"):
        pytest.importorskip(name, reason='the tools of the site are not installed; pip install ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    built = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert {Path(page).stem for page in PAGES if page.startswith("docs/")} <= set(built)
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name, html in built.items():
        assert name == "404" or f"{name}.md" in navigation, f"mkdocs.yml: nav lacks {name}.md"
        assert not re.findall(r'<(?:link|script|img|iframe)[^>]*(?:href|src)="(?:https?:)?//[^"]*"', html), name
        assert "<!-- made:" not in html, name
    assert all(
        f'id="{name}"' in built["python"] for name in re.findall("^::: (.+)", TEXTS["docs/python.md"], re.MULTILINE)
    )
    assert "<strong>" not in built["python"], "a docstring has __name__ outside of `code`"
