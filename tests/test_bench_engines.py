"""Engines: ours are timed, a missing, old or broken framework gives a message, and PyTorch computes the same network."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from bench_cases import CFG
from gpudarknet.bench.engines import Job, Unavailable

from gpudarknet import load_network
from gpudarknet.bench import engines, seeded, torch_network
from gpudarknet.export.program import why_no_bf16
from gpudarknet.io import resources


@pytest.fixture
def job(tmp_path):
    (tmp_path / "tiny.cfg").write_text(CFG)
    network = load_network(tmp_path / "tiny.cfg", backend="numpy")
    weights = seeded.write_weights(network, tmp_path / "tiny.weights")
    return lambda engine, **more: Job(engine, str(tmp_path / "tiny.cfg"), str(weights), 40, 24, threads=1, **more)


@pytest.mark.parametrize("engine", engines.OURS)
def test_our_engines_are_timed(job, engine):
    sample = engines.start(job(engine)).sample(0.0, 3)
    assert len(sample.wall) == len(sample.cpu) == 3
    assert min(sample.wall) > 0


@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov3"])  # without and with shortcuts
def test_seeded_weights_keep_activations_in_range(name):
    network = load_network(resources.bundled_cfg(name), backend="numpy", width=96, height=64)
    seeded.fill(network)
    deviations = [float(y.std()) for y in network.trace(seeded.network_input(network))]
    assert 0.05 < min(deviations) and max(deviations) < 50


def test_numpy_computes_in_fp32_only(job):
    with pytest.raises(Unavailable) as e:
        engines.start(job("plan", precision="fp16"))
    assert str(e.value) == "NumPy computes in fp32 only, not in fp16"


@pytest.mark.parametrize("engine", ["openvino", "openvino-backend"])
def test_openvino_in_bf16_runs_or_says_why(job, engine):
    pytest.importorskip("openvino")
    try:
        session = engines.start(job(engine, precision="bf16"))
    except Unavailable as e:
        assert why_no_bf16() is not None and "bf16" in str(e)
    else:
        assert why_no_bf16() is None and session.sample(0.0, 1).wall


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime", "darknet"])
def test_other_frameworks_are_compared_on_the_cpu_in_fp32(job, engine):
    with pytest.raises(Unavailable) as e:
        engines.start(job(engine, kind="gpu"))
    assert str(e.value) == "compared in fp32 on the CPU only"


def test_a_missing_framework_gives_a_message():
    with pytest.raises(Unavailable) as e:
        engines.import_framework("not_installed_anywhere", "some-package")
    assert str(e.value) == "not installed; pip install some-package"


@pytest.mark.parametrize(
    ("engine", "module"),
    [
        ("opencv", "cv2"),
        ("onnxruntime", "onnxruntime"),
        ("openvino", "openvino"),
        ("openvino-backend", "openvino"),
    ],
)
def test_installed_frameworks_are_timed(job, engine, module):
    pytest.importorskip(module)
    pytest.importorskip("onnx")
    session = engines.start(job(engine))
    assert len(session.sample(0.0, 2).wall) == 2
    assert session.version


def fake_darknet(folder, monkeypatch, script):
    program = folder / "bin" / "darknet"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.skipif(os.name == "nt", reason="the fake program is a shell script")
def test_darknet_is_timed_by_the_time_it_prints(job, tmp_path, monkeypatch):
    listing = "".join(f"echo '    {k} layer' >&2\n" for k in range(4))
    fake_darknet(tmp_path, monkeypatch, f"grep -q height=24 $2 || exit 1\n{listing}echo 'Speed: 0.125000 sec/eval'\n")
    session = engines.start(job("darknet"))
    assert session.sample(0.0, 2).wall == [0.125, 0.125]
    assert session.note == "its own speed command and random weights"


@pytest.mark.skipif(os.name == "nt", reason="the fake program is a shell script")
def test_a_failing_darknet_gives_a_message(job, tmp_path, monkeypatch):
    fake_darknet(tmp_path, monkeypatch, "echo 'cannot open' >&2\nexit 3\n")
    with pytest.raises(Unavailable) as e:
        engines.start(job("darknet"))
    assert str(e.value) == "`darknet speed` printed no time: cannot open (exit code 3)"


def test_darknet_is_not_run_on_unsupported_networks(job, tmp_path, monkeypatch):
    fake_darknet(tmp_path, monkeypatch, "exit 1\n")
    (tmp_path / "tiny.cfg").write_text(CFG.replace("leaky", "mish"))
    with pytest.raises(Unavailable) as e:
        engines.start(job("darknet"))
    assert str(e.value) == "the program of 2018 does not know activation=mish"


def test_a_missing_darknet_gives_a_message(job, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable) as e:
        engines.start(job("darknet"))
    assert str(e.value) == "no `darknet` on the PATH; Debian and Ubuntu have it: apt install darknet"


def test_programs_that_read_the_cfg_get_the_requested_size(job, tmp_path):
    (tmp_path / "tiny.cfg").write_text(CFG.replace("[net]\n", "[net]\n# batch=9\nbatch=64\nsubdivisions=8\n"))
    text = Path(engines.resized_cfg(Job("x", str(tmp_path / "tiny.cfg"), "", 96, 64, 2), str(tmp_path))).read_text()
    assert "width=96\nheight=64" in text and "# batch=9\nbatch=2\nsubdivisions=1\n" in text


@pytest.mark.parametrize("name", ["yolov2-voc", "yolov3-sort", "yolov4-tiny", "yolov7-tiny", "darknet19"])
def test_pytorch_computes_the_same_network(name):
    torch = pytest.importorskip("torch")
    network = load_network(resources.bundled_cfg(name), backend="numpy", width=96, height=64)
    seeded.fill(network)
    x = seeded.network_input(network)
    heads = torch_network.build(network, torch, "cpu", torch.float32)(torch_network.tensor(torch, x))
    maps = network.trace(x)
    for index, y in zip(network.heads, heads, strict=True):
        node = network.nodes[index]
        want = maps[node.sources[0] if node.layer.section in torch_network.PASS else index]
        got = np.array(y.tolist(), np.float32).reshape(want.shape)
        assert np.abs(got - want).max() < 1e-3 * want.std()  # float32 through some dozens of layers
