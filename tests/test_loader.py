"""Batches made ahead of time: their bits, memory that is reused, worker processes and how they end."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from spots import files

from gpudarknet import data
from gpudarknet.data import loader as loaders
from gpudarknet.data.augment import Colors, DetectionAugment
from gpudarknet.errors import DataError, DataWarning, ImageWarning
from gpudarknet.layers import SECTIONS

needs_processes = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="worker processes need Linux")


@dataclass
class Numbers:
    """Samples that say which they are; some have errors."""

    channels: int = 3
    bad_samples: data.BadSamples = field(default_factory=data.BadSamples)

    def sample(self, seed, iteration, number, size, out=None):
        W, H = size
        x = np.empty((self.channels, H, W), np.float32) if out is None else out
        x[...] = np.random.default_rng([seed, iteration, number]).random(x.shape, np.float32)
        if number == 1:
            self.bad_samples.add_label("1.txt:1: wrong")
            self.bad_samples.add(self.bad_samples.images, f"{iteration}.png: bad", "bad.list")
        if iteration == 1 and number == 0:
            warnings.warn("0.jpg: is truncated", ImageWarning, stacklevel=1)
        if iteration == 7:
            raise DataError("7.png: is empty")
        if iteration == 8:
            raise ZeroDivisionError("division")
        return x, np.array([iteration, number], np.float32)


@dataclass
class OnlyHere(Numbers):
    """A data set that only this process can load."""

    pid: int = field(default_factory=os.getpid)

    def __setstate__(self, state):
        if state["pid"] != os.getpid():
            raise RuntimeError("no such database")
        self.__dict__ |= state


def size(k):
    return 8 + 8 * (k % 3), 4


def load(source=None, batch=5, **options):
    return data.Loader(Numbers() if source is None else source, batch, size, seed=3, **options)


@needs_processes
@pytest.mark.filterwarnings("ignore:0.jpg")
def test_processes_and_threads_give_the_same_bits():
    """Also when sizes change, batches are skipped, and the caller keeps more batches than there are buffers."""
    order = (0, 1, 2, 5, 6, 9, 10, 11, 12)
    with load(workers=1, processes=False) as loader:
        want = [loader.get(k) for k in order]
    for (x, truth), k in zip(want, order, strict=True):
        assert x.shape == (5, 3, 4, 8 + 8 * (k % 3)) and truth.tolist() == [[k, n] for n in range(5)]
        np.testing.assert_array_equal(x[4], Numbers().sample(3, k, 4, size(k))[0])
    for workers in (1, 2):
        with load(workers=workers, processes=True) as loader:
            kept = [loader.get(k) for k in order]
            assert len(loader.processes) == workers
        for (x, truth), (x0, truth0) in zip(kept, want, strict=True):
            np.testing.assert_array_equal(x, x0)
            np.testing.assert_array_equal(truth, truth0)


COLORS = Colors(hue=0.1, saturation=1.5, exposure=1.5)
AUGMENTS = {
    "mosaic": {"mosaic": True, "jitter": 0.3, "colors": COLORS},
    "blur, noise": {"mosaic": True, "blur": 1, "gaussian_noise": 9, "colors": COLORS},
    "mixup, letter_box": {"mixup": True, "blur": 9, "letter_box": True, "colors": COLORS},
}


@needs_processes
@pytest.mark.parametrize("kind", AUGMENTS)
def test_images_are_augmented_to_the_same_bits(tmp_path, kind):
    """OpenCV has one thread in a process, and others here."""
    truth = SECTIONS["yolo"](classes=3, max=9).truth
    augment = DetectionAugment(classes=3, truth=truth, **AUGMENTS[kind])
    batches = []
    for processes in (False, True):
        source = data.DataSet(files(tmp_path), augment, data.detection_boxes(3))
        with data.Loader(source, 6, lambda k: (139, 118), seed=4, workers=2, processes=processes) as loader:
            batches.append([loader.get(k) for k in range(3)])
    for (x, truths), (x0, truths0) in zip(*batches, strict=True):
        np.testing.assert_array_equal(x, x0)
        np.testing.assert_array_equal(truths, truths0)


@pytest.mark.filterwarnings("ignore:0.jpg")
def test_batches_ahead_are_bounded_and_their_memory_is_reused():
    with load(workers=2, prefetch=1, processes=False) as loader:
        addresses = set()
        for k in range(0, 36, 3):
            x, _ = loader.get(k)
            assert list(loader._pending) == [k + 1]
            addresses.add(x.ctypes.data)
        assert len(addresses) <= 4
        part = x[2:, 0]
        before = part.copy()
        del x
        for k in range(60, 78, 3):
            loader.get(k)
        np.testing.assert_array_equal(part, before)  # a view keeps the memory


@needs_processes
def test_what_happens_in_a_process_is_reported_here(tmp_path):
    source = Numbers(bad_samples=data.BadSamples(tmp_path))
    with load(source, workers=1, processes=True, prefetch=0) as loader:
        loader.get(0)
        with pytest.warns(ImageWarning, match=r"^0.jpg: is truncated$"):
            loader.get(1)
        with pytest.raises(DataError, match=r"^7.png: is empty$"):
            loader.get(7)
        with pytest.raises(ZeroDivisionError, match="division") as e:
            loader.get(8)
        assert "line" in str(e.value.__cause__) and "in sample" in str(e.value.__cause__)
        assert loader.get(9)[1][0, 0] == 9  # it lives on
    assert (source.bad_samples.images, source.bad_samples.labels) == (
        ["0.png: bad", "1.png: bad", "9.png: bad"],
        ["1.txt:1: wrong"],
    )
    assert (tmp_path / "bad.list").read_text() == "0.png: bad\n1.png: bad\n9.png: bad\n"


@needs_processes
@pytest.mark.filterwarnings("ignore:0.jpg")
def test_a_process_that_dies_is_an_error():
    with load(workers=1, processes=True, prefetch=0) as loader:
        loader.get(0)
        os.kill(loader.processes[0].pid, signal.SIGKILL)
        with pytest.raises(DataError) as e:
            loader.get(1)
    assert str(e.value) == (
        "a worker process that prepares images died (SIGKILL); if memory ran out, use fewer: -workers 1, or workers=1"
    )


@needs_processes
@pytest.mark.filterwarnings("ignore:0.jpg")
def test_data_sets_that_processes_cannot_have(monkeypatch):
    monkeypatch.setattr(loaders, "START_SECONDS", 0.0)
    source = Numbers()
    source.lock = lambda: 0
    with pytest.raises(
        DataError, match=r"^worker processes: the data set cannot be pickled \(.*\); use processes=False$"
    ):
        load(source, processes=True)
    with load(source, workers=2) as loader:
        assert loader.get(0)[1][4, 1] == 4 and not loader.processes
    monkeypatch.setattr(Numbers, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Numbers", Numbers, raising=False)
    with pytest.raises(
        DataError, match=r"^worker processes: the data set has parts that are defined in the main script"
    ):
        load(processes=True)


@needs_processes
@pytest.mark.filterwarnings("ignore:0.jpg")
def test_threads_go_on_if_processes_cannot_start(monkeypatch):
    monkeypatch.setattr(loaders, "START_SECONDS", 0.0)
    with load(OnlyHere(), workers=1, processes=True) as loader, pytest.raises(RuntimeError, match="no such database"):
        loader.get(0)
    with (
        load(OnlyHere(), workers=2) as loader,
        pytest.warns(
            DataWarning, match=r"^worker processes: cannot start \(no such database\); threads make the samples"
        ),
    ):
        for k in range(100_000):
            loader.get(10 + k)
            if not loader._can_start:
                break
            time.sleep(0.01)


@needs_processes
@pytest.mark.filterwarnings("ignore:0.jpg")
def test_a_system_without_processes_has_threads(monkeypatch):
    monkeypatch.setattr(loaders, "START_SECONDS", 0.0)
    monkeypatch.setattr(loaders.sys, "executable", "/nowhere/python")
    with (
        load(workers=2) as loader,
        pytest.warns(DataWarning, match=r"^worker processes: cannot start \(.*No such file"),
    ):
        assert loader.get(0)[1][4, 1] == 4


@needs_processes
def test_a_data_set_is_pickled_without_its_record(tmp_path):
    source = data.DataSet(["a"], None, data.detection_boxes(3), bad_samples=data.BadSamples(tmp_path, ["a.png: bad"]))
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.paths, copy.bad_samples.images, copy.bad_samples.folder) == (["a"], [], None)
    classes = pickle.loads(pickle.dumps(data.classifier_boxes(["cat", "dog"])))
    assert classes("/x/dog.png", data.BadSamples())[:, 4].tolist() == [1]


SCRIPT = """
import importlib, sys
sys.path.insert(0, {folder!r})
load = importlib.import_module("test_loader").load
if __name__ == "__main__":
    with load(workers=2, processes=True) as loader:
        loader.get(10)
        print(*(process.pid for process in loader.processes), flush=True)
        while True:
            loader.get(10)
"""


@needs_processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_parent(number):
    """Signals go to the process group, as those of a terminal do."""
    script = textwrap.dedent(SCRIPT.format(folder=str(Path(__file__).parent)))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        os.killpg(parent.pid, number)
        parent.communicate(timeout=60)
        assert parent.returncode == -number
    end = time.monotonic() + 60
    while alive := [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]:
        assert time.monotonic() < end, f"{alive} still run"
        time.sleep(0.05)
