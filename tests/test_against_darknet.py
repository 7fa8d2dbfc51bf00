"""Training against 100 runs of Darknet: losses with their keys, schedules, layers with several readers."""

from __future__ import annotations

from pathlib import Path

import darknet_recordings
import numpy as np
import pytest
from backends import backend_for

import gpudarknet as gd
from gpudarknet import cfg

RECORDED = np.load(Path(__file__).parent / "data" / "original.npz")
LOSSES = [
    name
    for name in darknet_recordings.RUNS
    if name.startswith(("yolo", "gaussian", "region", "detection", "softmax", "cost"))
]
INDEX = {str(name): k for k, name in enumerate(RECORDED["names"])}


def test_every_run_is_recorded():
    assert list(INDEX) == list(darknet_recordings.RUNS)


@pytest.mark.parametrize(
    ("backend", "name"),
    [*(("numpy", name) for name in darknet_recordings.RUNS), *(("host-cuda", name) for name in LOSSES)],
)
def test_a_training_goes_as_in_darknet(backend, name, tmp_path):
    """Costs within 1e-4, weights within 1e-4 of the largest change: float32 sums in another order; most agree to 1e-5."""
    run, k = darknet_recordings.RUNS[name], INDEX[name]
    net = gd.load_network(cfg.parse(run.text(tmp_path)), backend=backend_for(backend))
    first = darknet_recordings.weights(net, k)
    flat = first
    for own in net.weights:
        for a in own.values():
            a[...], flat = flat[: a.size].reshape(a.shape), flat[a.size :]
    net.seen = run.seen
    trainer = gd.Trainer(net, clear=run.seen == 0, emulate_darknet_cpu_bugs=not run.patched)
    kept, changes = darknet_recordings.sample(first.size), []
    x, truth = run.data(net.net.input, k + 1000)
    for step, cost in enumerate(RECORDED["costs"][k]):
        assert trainer.step(x[step], truth[step]) == pytest.approx(cost, rel=1e-4)
        if step in (0, darknet_recordings.STEPS - 1):
            changes.append(np.concatenate([a.reshape(-1) for own in net.weights for a in own.values()]) - first)
    for change, wanted, largest in zip(changes, RECORDED["changes"][k], RECORDED["largest"][k], strict=True):
        assert np.abs(change).max() == pytest.approx(largest, rel=1e-4)
        np.testing.assert_allclose(change[kept], wanted[: kept.size], atol=1e-4 * largest, rtol=0)
