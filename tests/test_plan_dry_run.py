"""Plans of a GPU, described on a machine without one."""

from __future__ import annotations

import pytest
from backends import plan_backend
from cuda_plans import ALL_KINDS, FALLBACK, SMALL, program

from gpudarknet import backend, cfg, load_network
from gpudarknet.cli import main
from gpudarknet.plan.cuda import dry_run

WHY = "CuPy finds no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_a_plan_is_described_as_on_the_gpu(precision):
    """Steps, algorithms, launches and memory are those of a program that runs; this one would be captured."""
    dry, real = (
        program(load_network(cfg.parse(ALL_KINDS), backend=be), 3, precision).describe()
        for be in (dry_run.backend(), plan_backend())
    )
    assert dry == real.replace("eagerly (backend host-cuda has no CUDA streams)", "as a CUDA graph")


@pytest.fixture
def without_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "why_no_cupy", lambda: WHY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.cfg").write_text(SMALL + FALLBACK)


@pytest.mark.usefixtures("without_gpu")
def test_the_command(capsys):
    assert main(["plan", "x.cfg", "-device", "gpu", "-precision", "fp16", "-batch", "2"]) == 0
    *lines, why = capsys.readouterr().out.splitlines()
    (ran,) = [line for line in lines if line.startswith("CUDA, ")]
    assert ran.startswith("CUDA, fp16, eagerly (fallback layers: region): ")
    assert " launches; MiB on the device for batch 2: arena " in ran
    assert why == f"not run: {WHY}"
    assert main(["plan", "x.cfg", "-device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("CPU, ")


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-device", "tpu"], "plan: unknown device 'tpu'; choose cpu or gpu"),
        (["-device", "gpu", "-tune"], f"plan: -tune needs the GPU: {WHY}"),
    ],
)
def test_what_cannot_be_described(words, error, capsys):
    assert main(["plan", "x.cfg", *words]) == 2
    assert error in capsys.readouterr().err
