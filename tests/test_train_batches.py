"""Batches of a training on its network's device: the same as the loader's, uploaded while the one before is computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cfg, data
from gpudarknet.errors import DataError
from gpudarknet.plan.cuda import upload
from gpudarknet.train.batches import Batches

CFG = "[net]\nwidth=8\nheight=4\nchannels=3\nbatch=4\n[convolutional]\nfilters=2\nsize=1\n[softmax]\n"


@dataclass
class Numbers:
    """Random samples; the seventh batch has none."""

    channels: int = 3

    def sample(self, seed, iteration, number, size, out=None):
        if iteration == 7:
            raise DataError("7.png: is empty")
        out[...] = np.random.default_rng([seed, iteration, number]).random(out.shape, np.float32)
        return out, np.array([iteration, number], np.float32)


def loader():
    return data.Loader(Numbers(), 4, lambda k: (8 + 8 * (k % 2), 4), seed=2, workers=2, processes=False)


def network(be):
    return gd.load_network(cfg.parse(CFG), backend=be)


def run(net, numbers):
    """Compute with batches on the device; return the results, read at the end, as a training never waits for them."""
    results = []
    with Batches(loader(), net) as batches:
        for k in numbers:
            with batches.get(k) as (x, truth), net.on_device():
                results.append((x * np.float32(2), x.shape, truth.tolist()))
    return [(net.backend.to_numpy(y), shape, truth) for y, shape, truth in results]


NUMBERS = (0, 1, 2, 3, 4, 6, 5, 8, 9)  # also out of order


def check(results):
    with loader() as wanted:
        for (y, shape, truth), k in zip(results, NUMBERS, strict=True):
            x, want = wanted.get(k)
            assert shape == (4, 3, 4, 8 + 8 * (k % 2)) and truth == want.tolist()
            np.testing.assert_array_equal(y, x * 2)


def test_they_are_the_loader_s(be):
    check(run(network(be), NUMBERS))


def test_a_plan_s_device_uploads_them(device):
    check(run(network(device), NUMBERS))


@pytest.fixture
def new_streams(monkeypatch):
    """An emulated schedule is that of streams made from now on."""
    monkeypatch.setattr(upload, "_uploaders", {})


@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_uploads_overlap_in_any_order(emulator, new_streams, schedule):
    """The device works as late as it may, or at random times."""
    with emulator.configured(schedule=schedule):
        check(run(network("cupy"), NUMBERS))


def test_the_next_batch_is_sent_while_one_is_computed(emulator, new_streams):
    """Nothing waits for the device."""
    net = network("cupy")
    with (
        emulator.configured(schedule=emulator.SCHEDULES["eager"]),
        Batches(loader(), net) as batches,
        emulator.counting() as done,
        batches.get(0) as (x, _),
    ):
        batches._next[1].result()
    assert done["bytes host to device"] == 3 * x.nbytes and not done["waits"]  # batch 1 is twice as wide


def test_an_error_of_the_loader_is_raised(device):
    with Batches(loader(), network(device)) as batches:
        with batches.get(6) as (x, _):
            assert len(x) == 4
        with pytest.raises(DataError, match=r"^7.png: is empty$"), batches.get(7):
            pass
