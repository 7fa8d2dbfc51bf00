"""The thread pool: all tasks run, errors reach the caller, and training is bit-identical for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import backend
from gpudarknet.backend.threads import ThreadPool

CFG = """
[net]
width=48
height=32
channels=3
batch=6
[convolutional]
batch_normalize=1
filters=20
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=18
size=3
pad=1
activation=mish
[maxpool]
size=2
stride=2
[convolutional]
filters=18
size=1
activation=linear
[yolo]
mask=0,1,2
anchors=4,5, 8,9, 12,14
classes=1
num=3
"""


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_tasks_run(size):
    pool, done = ThreadPool(size), []
    for k in range(50):
        pool.run_all([lambda k=k, j=j: done.append((k, j)) for j in range(1 + k % 4)])
    assert sorted(done) == [(k, j) for k in range(50) for j in range(1 + k % 4)]


def test_a_task_may_run_tasks():
    pool, done = ThreadPool(2), []
    pool.run_all([lambda k=k: pool.run_all([lambda: done.append(k)] * 3) for k in range(4)])
    assert sorted(done) == sorted([0, 1, 2, 3] * 3)
    assert not pool.in_worker


def test_an_error_in_a_task_reaches_the_caller():
    def broken():
        raise IndexError("broken")

    pool, done = ThreadPool(2), []
    with pytest.raises(IndexError, match="broken"):
        pool.run_all([broken] * 3)
    pool.run_all([lambda: done.append(1)] * 5)
    assert len(done) == 5


def test_training_does_not_depend_on_the_number_of_threads(monkeypatch, tmp_path):
    (tmp_path / "x.cfg").write_text(CFG)
    rng = np.random.default_rng(4)
    x, truth = rng.random((6, 3, 32, 48), np.float32), np.zeros((6, 12), np.float32)
    truth[:, :5] = rng.uniform(0.2, 0.6, (6, 5)) * [1, 1, 1, 1, 0]
    results = []
    for pool in (ThreadPool(1), ThreadPool(2), ThreadPool(3)):
        monkeypatch.setattr(backend, "thread_pool", lambda pool=pool: pool)
        net = gd.load_network(tmp_path / "x.cfg", backend="numpy", seed=5)
        trainer = gd.Trainer(net)
        costs = [trainer.step(x, truth) for _ in range(3)]
        net.save_weights(tmp_path / "x.weights")
        results.append((costs, (tmp_path / "x.weights").read_bytes()))
    assert results[0] == results[1] == results[2]
