"""Times of the layers in a training step: whose they are, what they add up to, and that the step stays the same."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from spots import project

import gpudarknet as gd
from gpudarknet.cli import main
from gpudarknet.train import layer_times
from gpudarknet.train.layer_times import LayerTime, StepTimes


def batch(net, N=4):
    rng = np.random.default_rng(1)
    truth = np.zeros((N, 5, 6), np.float32)
    truth[:, 0, :5] = 0.5, 0.5, 0.3, 0.4, 1
    return rng.random((N, 3, net.height, net.width), np.float32), truth


@pytest.mark.parametrize("engine", ["plan", "reference"])
def test_a_timed_step_is_the_same_step(engine, tmp_path):
    """Also with subdivisions and a frozen start."""
    _, path = project(tmp_path)
    text = path.read_text().replace("subdivisions=1", "subdivisions=2")
    path.write_text(text.replace("[maxpool]", "[maxpool]\nstopbackward=1", 1))
    net = gd.load_network(path, backend="numpy")
    x, truth = batch(net)
    timed, plain = (gd.Trainer(copy.deepcopy(net), 3, engine=engine) for _ in range(2))
    times = layer_times.layer_times(timed, x, truth, repetitions=3)
    for _ in range(4):
        plain.step(x, truth)
    state, want = timed.state_dict(), plain.state_dict()
    assert state.keys() == want.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, want[name])
    assert [time.layer for time in times] == list(range(len(net.nodes)))
    assert all(time.forward > 0 for time in times)
    ran = {"plan": [False, False, False, True, False], "reference": [False, False, True, True, True]}
    assert [time.backward > 0 for time in times] == ran[engine]  # a plan has no backward that computes nothing
    assert (
        "forward" not in vars(timed.net) and "update" not in vars(timed) and not getattr(timed.engine, "report", None)
    )


def test_times_are_those_of_the_layer(tmp_path, monkeypatch):
    """With a clock that ticks once a reading, each layer, backward and update takes a second."""
    _, path = project(tmp_path)
    net = gd.load_network(path, backend="numpy")
    ticks = itertools.count()
    monkeypatch.setattr(layer_times, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    times = layer_times.step_times(gd.Trainer(net, engine="reference"), *batch(net), repetitions=2)
    n = len(net.nodes)
    assert times == StepTimes(3 * n + 4, 1, [LayerTime(index, 1, 1) for index in range(n)])


def test_the_table_is_sorted():
    nodes = [SimpleNamespace(layer=SimpleNamespace(section=name)) for name in ("convolutional", "maxpool", "yolo")]
    times = StepTimes(0.010, 0.0005, [LayerTime(0, 0.001, 0.002), LayerTime(1, 0.0005, 0.0005), LayerTime(2, 0.004, 0)])
    assert times.table(nodes, 4) == [
        "layer                     forward ms  backward ms  of step",
        "  2 yolo                       4.000        0.000    40.0%",
        "  0 convolutional              1.000        2.000    30.0%",
        "  1 maxpool                    0.500        0.500    10.0%",
        "all layers                     5.500        2.500    80.0%",
        "update                                      0.500     5.0%",
        "rest                                        1.500    15.0%",
        "step of 4 images: 10.000 ms, 400 images/s",
    ]


def test_on_a_device(device, tmp_path):
    _, path = project(tmp_path)
    net = gd.load_network(path, backend=device)
    times = layer_times.step_times(gd.Trainer(net), *batch(net), repetitions=1)
    assert 0 < times.update + sum(time.forward + time.backward for time in times.layers) < times.seconds


def test_the_flag_prints_them_and_trains_on_undisturbed(tmp_path, monkeypatch, capsys):
    project(tmp_path, end=2)
    monkeypatch.chdir(tmp_path)
    assert main(["detector", "train", "x.data", "x.cfg", "-backend", "numpy"]) == 0
    plain = (tmp_path / "backup" / "x_final.weights").read_bytes()
    capsys.readouterr()
    assert main(["detector", "train", "x.data", "x.cfg", "-backend", "numpy", "-clear", "-benchmark_layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["layer", "forward", "ms", "backward", "ms", "of", "step"]
    assert sorted(line.split()[0] for line in lines[2:7]) == ["0", "1", "2", "3", "4"]
    assert lines[10].startswith("step of 8 images: ") and lines[11].startswith(" 1: ")
    assert (tmp_path / "backup" / "x_final.weights").read_bytes() == plain
