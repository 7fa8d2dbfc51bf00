"""The filter on late deltas: against the original's steps, value by value, and in an interrupted and resumed training."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import backend, cfg
from gpudarknet.layers import SECTIONS, LossContext
from gpudarknet.train.label_filter import LabelFilter

BE = backend.get("numpy")
KEYS = {
    "sigmas": dict(sigmas=3.0, percent=0.0, point=0),
    "percent": dict(sigmas=0.0, percent=20.0, point=0),
    "point": dict(sigmas=0.0, percent=0.0, point=20),
    "all": dict(sigmas=2.0, percent=5.0, point=20),
}


class ScalarFilter:
    """The same as scalar loops, written from the specification."""

    def __init__(self):
        self.top = self.mean = self.std = self.limit = 0.0

    def filter(self, d, anchor_size, it, end, sigmas, percent, point):
        start = end * 3 // 4
        if not ((percent and start < it) or (sigmas and start < it) or (point and point < it)):
            return
        progress = (it - point) / (end - point)
        low = self.mean * progress * 1.4
        some = [abs(v) for v in d if v]
        self.top = self.top or max(some)
        self.top = 0.99 * self.top + 0.01 * max(some)
        self.mean = 0.99 * self.mean + 0.01 * sum(some) / len(some)
        if sigmas and start < it:
            final = self.mean + self.std * sigmas
            part = (it - start) / start
            high = max(final, self.top - part * abs(self.top - final))
            var = sum((v - self.mean) ** 2 for v in d if v) / len(some)
            self.std = 0.99 * self.std + 0.01 * math.sqrt(var)
            d[:] = [0 if abs(v) > high else v for v in d]
            low = min(final, self.mean) * progress
        if percent and start < it:
            self.limit = self.limit or self.top
            count = sum(v != 0 for v in d)
            gone = sum(abs(v) > self.limit for v in d)
            d[:] = [0 if abs(v) > self.limit else v for v in d]
            if 100 * (gone * anchor_size / count) > percent:
                self.limit += 0.01
            elif self.limit > 0.01:
                self.limit -= 0.01
        if point and point < it:
            d[:] = [0 if abs(v) < low else v for v in d]


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_the_originals_steps(keys):
    rng, got, want, zeroed = np.random.default_rng(4), LabelFilter(), ScalarFilter(), 0
    for iteration in range(0, 100, 2):
        d = rng.standard_t(2, (2, 3, 7, 4, 5))
        d[rng.random(d.shape) < 0.5] = 0
        values, before = d.reshape(-1).tolist(), d.copy()
        got.apply(d, 7, iteration, 100, **keys)
        want.filter(values, 7, iteration, 100, **keys)
        np.testing.assert_array_equal(d.reshape(-1), values)
        zeroed += (d != before).sum()
    assert zeroed and got.state() == pytest.approx([want.top, want.mean, want.std, want.limit])


def test_nothing_happens_early_or_without_deltas():
    label_filter, d = LabelFilter(), np.ones(6)
    label_filter.apply(d, 6, 75, 100, 3.0, 1.0, 0)
    label_filter.apply(np.zeros(6), 6, 90, 100, 3.0, 1.0, 5)
    label_filter.apply(d, 6, 90, 0, 3.0, 1.0, 0)
    assert d.all() and not label_filter.state().any()


def test_the_cost_excludes_rejected_deltas():
    head = SECTIONS["yolo"](classes=2, num=1, anchors=(10.0, 12.0))
    y = np.random.default_rng(1).random((1, 7, 3, 4), np.float32)
    truth = np.zeros((1, 12), np.float32)
    truth[0, :5] = 0.4, 0.5, 0.3, 0.2, 1
    whole, delta = head.loss(BE, y, y, truth, LossContext(40, 30))
    seen = []

    def reject(d, anchor_size):
        seen.append(anchor_size)
        d[np.abs(d) > 0.5] = 0

    less, kept = head.loss(BE, y, y, truth, LossContext(40, 30, reject=reject))
    np.testing.assert_array_equal(kept, np.where(np.abs(delta) > 0.5, 0, delta))
    assert seen == [7] and less == pytest.approx((kept.astype(np.float64) ** 2).sum()) and less < whole


TEXT = """[net]
width=12
height=10
channels=3
batch=2
max_batches=8
learning_rate=0.01
num_sigmas_reject_badlabels=1
badlabels_rejection_percentage=1
equidistant_point=2
[convolutional]
filters=7
size=3
pad=1
activation=linear
[yolo]
classes=2
num=1
anchors=5,6
max=1
"""


def test_a_checkpoint_stores_its_state(tmp_path):
    def start():
        return gd.Trainer(gd.load_network(cfg.parse(TEXT), backend="numpy"))

    def step(trainer):
        rng = np.random.default_rng(trainer.iteration)
        trainer.step(rng.random((2, 3, 10, 12), np.float32), np.float32([[0.4, 0.5, 0.3, 0.2, 1, 0]] * 2))

    straight, stopped, resumed = start(), start(), start()
    for _ in range(8):
        step(straight)
    for _ in range(6):
        step(stopped)
    stopped.save(tmp_path / "state.npz")
    resumed.load(tmp_path / "state.npz")
    for _ in range(2):
        step(resumed)
    assert straight.label_filter.state().all()
    np.testing.assert_array_equal(resumed.label_filter.state(), straight.label_filter.state())
    np.testing.assert_array_equal(resumed.net.weights[0]["kernel"], straight.net.weights[0]["kernel"])
