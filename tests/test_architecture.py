"""What a reader relies on: modules import only from their own level or below, heavy libraries load late, layers state shapes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from gpudarknet.backend import cuda
from gpudarknet.layers import SECTIONS
from gpudarknet.ops.base import OPS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gpudarknet"
SOURCES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

# Lowest first, as in ARCHITECTURE.md. A module may import only from its own level or below.
LEVELS = [
    {"array", "errors", "io"},
    {"backend", "boxes", "image"},
    {"ops"},
    {"layers"},
    {"cfg"},
    {"graph"},
    {"adapt", "weights", "summary", "data"},
    {"plan"},
    {"network"},
    {"image_sources", "inference", "detections", "detector", "export"},
    {"tiles", "evaluate"},
    {"train"},
    {"__init__"},
    {"cluster", "cv2dnn", "darknet", "bench"},
    {"cli", "__main__"},
]
LEVEL = {name: number for number, level in enumerate(LEVELS) for name in level}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(name: str) -> set[str]:
    """Return the modules of this package that a module imports, inside functions and for type checkers too."""
    package = name.split("/") if SOURCES[name].stem == "__init__" else name.split("/")[:-1]
    package = [part for part in package if part != "__init__"]
    modules = set()
    for node in ast.walk(tree(SOURCES[name])):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            if not node.level:
                if base[0] != "gpudarknet":
                    continue
                base = base[1:]
            for alias in node.names:
                parts = [*base, alias.name]
                for length in (len(parts), len(parts) - 1):
                    inside = "/".join(parts[:length])
                    module = next((m for m in (inside, f"{inside}/__init__".lstrip("/")) if m in SOURCES), None)
                    if module:
                        modules.add(module)
                        break
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("gpudarknet."), f"{name}: write `from . import ...`"
    return modules - {name}


def test_every_module_has_a_level():
    assert {name.split("/")[0] for name in SOURCES} == set(LEVEL)


def test_modules_import_only_from_their_own_level_or_below():
    level = {name: LEVEL[name.split("/")[0]] for name in SOURCES}
    assert [
        f"{name} imports {other}" for name in SOURCES for other in imported(name) if level[other] > level[name]
    ] == []


def test_no_import_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in imported(name):
                visit(other, (*path, name))
            done.add(name)

    for name in SOURCES:
        visit(name, ())


def test_no_emitter_writes_another_objects_attributes():
    emitters = [name for name in SOURCES if name.startswith("plan/cuda/")]
    for emitter, node in ((name, node) for name in emitters for node in ast.walk(tree(SOURCES[name]))):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            assert isinstance(node.value, ast.Name) and node.value.id == "self", f"{emitter}:{node.lineno}"


def test_a_layer_knows_ops_and_its_base_and_never_a_device():
    for name in SOURCES:
        if name.startswith("layers/"):
            assert not imported(name) & {"backend", "cuda"}, name


@pytest.mark.parametrize("library", ["cv2", "cupy", "ray", "rich", "skimage", "threadpoolctl", "ssl", "http.client"])
def test_heavy_libraries_load_late(library):
    code = f"import sys, gpudarknet; sys.exit({library!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_cv2_and_cupy_are_imported_inside_functions():
    for name, path in SOURCES.items():
        if name.startswith("cv2dnn/"):  # its errors are OpenCV's, and nothing imports it
            continue
        for node in tree(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {n.split(".")[0] for n in names} & {"cv2", "cupy"}, name


def test_only_the_command_line_prints():
    for name, path in SOURCES.items():
        if name.startswith("cli/"):
            continue
        for node in ast.walk(tree(path)):
            printing = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not printing, f"{name}:{node.lineno} prints"  # type: ignore[attr-defined]


def test_no_catch_all_modules():
    assert not {path.stem for path in SOURCES.values()} & {"util", "utils", "common", "helpers", "misc"}


def test_no_test_file_imports_from_another():
    for path in Path(__file__).parent.glob("test_*.py"):
        assert not re.findall(r"^(?:from|import) test_\w+", path.read_text(encoding="utf-8"), re.MULTILINE), path.name


@pytest.mark.parametrize("layer", sorted(set(SECTIONS.values()), key=lambda c: c.section), ids=lambda c: c.section)
def test_a_layers_first_line_shows_shapes(layer):
    assert "->" in (layer.__doc__ or "").split("\n")[0]


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_an_op_says_what_it_does(op):
    assert re.match(r"[A-Z][a-z]+", op.__doc__ or ""), f"{op.name} begins with a verb"


@pytest.mark.parametrize("file", cuda.files())
def test_every_kernel_has_a_comment(file):
    lines = (cuda.folder() / f"{file}.cu").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("//"), "a file starts with a comment that says what it is about"
    for number, line in enumerate(lines):
        assert "__global__" not in line or lines[number - 1].startswith("//"), f"{file}.cu:{number + 1}"


def test_architecture_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    names = {name.split("/")[0] + ("/" if "/" in name else ".py") for name in SOURCES} - {"__init__.py", "__main__.py"}
    assert {name for name in names if f"`{name}" not in text} == set()
