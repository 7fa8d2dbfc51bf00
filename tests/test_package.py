"""The wheel, installed into a new environment, works from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import gpudarknet
from gpudarknet.backend import cuda
from gpudarknet.io import resources
from gpudarknet.plan import tuning

ROOT = Path(__file__).parent.parent

pytest.importorskip("hatchling", reason="building a wheel without a network needs hatchling (extra: test)")
from hatchling.builders.sdist import SdistBuilder  # noqa: E402
from hatchling.builders.wheel import WheelBuilder  # noqa: E402


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command away from the checkout and its settings; return what it prints."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GPUDARKNET"))}
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; NumPy and OpenCV come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder / "env", symlinks=True, with_pip=False)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")  # last on the path
    return python


def files(folder: Path, *patterns: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.rglob(pattern)}


def test_the_wheel_contains_the_package_the_kernels_and_the_networks(wheel: Path) -> None:
    package = {f"gpudarknet/{name}" for name in files(ROOT / "gpudarknet", "*.py", "py.typed")} - {
        "gpudarknet/bench.py"
    }
    kernels = {f"gpudarknet/kernels/{name}" for name in files(ROOT / "kernels", "*.cu", "*.cuh")}
    networks = {
        f"gpudarknet/cfg/{name}"
        for name in files(ROOT / "cfg", "*.cfg", "*.names", "*.data", "*.weights", "*.jpg", "tuning/*.json")
    }
    suite = files(ROOT / "bench", "*.py", "page.css", "*.jsonl")
    scripts = {"__main__.py", "conftest.py", "demo.py"} | files(ROOT / "bench", "gpu_check/*.py", "test_*.py")
    bench = {f"gpudarknet/bench/{name}" for name in suite - scripts}
    contents = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert contents == package | kernels | networks | bench


@pytest.mark.parametrize("builder", [WheelBuilder, SdistBuilder])
def test_tuning_files_ship(builder: type, tmp_path: Path) -> None:
    """None exists so far, so they are looked for in a project with the same settings."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shipped = tmp_path / "cfg" / tuning.SHIPPED / "l4.json"
    shipped.parent.mkdir(parents=True)
    shipped.touch()
    (tmp_path / "gpudarknet").mkdir()
    (tmp_path / "gpudarknet" / "__init__.py").touch()
    contents = {file.distribution_path for file in builder(str(tmp_path)).recurse_included_files()}
    prefix = "gpudarknet/" if builder is WheelBuilder else ""
    assert f"{prefix}cfg/tuning/l4.json" in contents


def test_it_runs_from_another_folder(python: Path, tmp_path: Path) -> None:
    code = (
        "import gpudarknet, gpudarknet.backend.cuda as cuda, gpudarknet.io.resources as resources\n"
        "print(gpudarknet.__file__, *cuda.files(), sep='\\n')\n"
        "print(len(gpudarknet.load_network(resources.bundled_cfg('yolov4-tiny'), backend='numpy').nodes))"
    )
    path, *kernels, layers = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert Path(path).is_relative_to(python.parent.parent)
    assert kernels == cuda.files() and layers == "38"


def test_the_console_script_finds_the_bundled_networks(python: Path, tmp_path: Path) -> None:
    table = run(python.with_name("gpudarknet"), "table", "yolov4-tiny", cwd=tmp_path)
    network = gpudarknet.load_network(resources.bundled_cfg("yolov4-tiny"), backend="numpy")
    assert network.table().split() == table.split()


def test_both_versions_agree(python: Path, tmp_path: Path) -> None:
    code = "import importlib.metadata as m; print(m.version('gpudarknet'))"
    assert run(python, "-c", code, cwd=tmp_path).strip() == gpudarknet.__version__


def test_the_benchmark_suite_is_included(python: Path, tmp_path: Path) -> None:
    output = run(python.with_name("gpudarknet"), "bench", "estimate", "--gflops", "100", "yolov2-tiny", cwd=tmp_path)
    assert output.endswith("the rule predicts 6.5 FPS, 0.15 s per image\n")
    path = run(python, "-c", "import gpudarknet.bench.worker as w; print(w.__file__)", cwd=tmp_path).strip()
    assert Path(path).is_relative_to(python.parent.parent)
