"""Reading a stream in batches, and the detections of such a stream: order, errors, threads, memory."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import tiny

import gpudarknet as gd
from gpudarknet.errors import ImageError
from gpudarknet.image.batches import BatchReader


def read(source):
    if "bad" in str(source):
        raise ImageError(f"{source}: bad")
    return np.full((1, 1, 3), int(source), np.uint8)


def all_batches(reader, ahead=True):
    batches = []
    with reader:
        while batch := reader.get():
            if ahead:
                reader.read_ahead()
            batches.append([(source, int(image[0, 0, 0])) for source, image in batch])
    return batches


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (None, [7])])
def test_batches_are_in_order(size, sizes, threads, ahead):
    paths = [str(k) for k in range(7)]
    batches = all_batches(BatchReader(read, paths, size, threads), ahead)
    assert [len(batch) for batch in batches] == sizes
    assert [pair for batch in batches for pair in batch] == [(path, int(path)) for path in paths]


def test_unreadable_images_are_raised_after_earlier_batches():
    with BatchReader(read, ["1", "bad", "2"], 1) as reader:
        assert [source for source, _ in reader.get()] == ["1"]
        reader.read_ahead()
        with pytest.raises(ImageError, match="bad: bad"):
            reader.get()


def test_unreadable_images_are_left_out():
    errors = []
    reader = BatchReader(read, ["1", "bad", "2", "bad2", "bad3", "3", "4"], 2, 1, lambda *error: errors.append(error))
    assert all_batches(reader) == [[("1", 1)], [("2", 2)], [("3", 3)], [("4", 4)]]
    assert [(source, str(e)) for source, e in errors] == [(bad, f"{bad}: bad") for bad in ("bad", "bad2", "bad3")]


def test_an_error_of_the_stream_comes_after_the_images_before_it():
    def stream():
        yield from "123"
        raise RuntimeError("the disk is gone")

    seen = []
    with pytest.raises(RuntimeError, match="the disk is gone"), BatchReader(read, stream(), 2) as reader:
        while batch := reader.get():
            reader.read_ahead()
            seen += [source for source, _ in batch]
    assert seen == ["1", "2", "3"]


def test_files_are_read_by_other_threads_and_streams_advanced_by_the_callers():
    readers, advancers = set(), set()

    def record(source):
        readers.add(threading.current_thread())
        return read(source)

    def stream():
        for k in range(6):
            advancers.add(threading.current_thread())
            yield str(k)

    all_batches(BatchReader(record, stream(), 2))
    me = threading.current_thread()
    assert advancers == {me} and readers and me not in readers
    assert not any(thread.is_alive() for thread in readers)
    readers.clear()
    all_batches(BatchReader(record, ["1"]))
    assert readers == {me}  # nothing to do meanwhile


def test_arrays_are_not_read_ahead():
    taken = []

    def camera():
        for k in range(4):
            taken.append(k)
            yield k

    with BatchReader(read, camera(), 2) as reader:
        reader.get()
        reader.read_ahead()
        assert taken == [0, 1]


@pytest.fixture
def detector(tmp_path):
    tiny.files(tmp_path)
    return gd.Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], "numpy")


def test_results_have_their_source_and_image(detector, tmp_path):
    path = tmp_path / "tiny.png"
    sources = [path, str(path), tiny.image(), path]
    results = list(detector.run_images(sources, 0.25, 0.45, 2))
    assert [result.source for result in results] == sources
    for result in results:
        assert (result.image == tiny.image()).all()
        assert len(result.boxes.boxes) == 2 and (result.boxes.width, result.boxes.height) == (64, 32)


def test_a_stream_goes_on_after_unreadable_images(detector, tmp_path):
    path, missing, errors = tmp_path / "tiny.png", tmp_path / "missing.png", []
    stream = detector.run_images(
        [path, missing, path, missing, missing], 0.25, 0.45, 2, on_error=lambda *e: errors.append(e)
    )
    assert [result.source for result in stream] == [path, path]
    assert [(source, str(e)) for source, e in errors] == [(missing, f"{missing}: no such file; check the path")] * 3


def test_the_next_batch_is_read_before_this_one_is_computed(detector, tmp_path, monkeypatch):
    """Its reading has started, and at most two batches are held."""
    events, read_images = [], []

    def stream():
        for k in range(8):
            gc.collect()
            events.append(f"take {k}")
            assert sum(image() is not None for image in read_images) <= 4
            yield str(k)

    def read(source):
        image = tiny.image()
        read_images.append(weakref.ref(image))
        return image

    detect = detector.network.detect
    monkeypatch.setattr(detector, "read", read)
    monkeypatch.setattr(detector.network, "detect", lambda *args: events.append("detect") or detect(*args))
    for result in detector.run_images(stream(), 0.25, 0.45, 2):
        events.append(f"result {result.source}")
    assert events[:8] == ["take 0", "take 1", "take 2", "take 3", "detect", "result 0", "result 1", "take 4"]


def test_stopping_early_ends_the_threads(detector, tmp_path):
    before = threading.active_count()
    stream = detector.run_images([tmp_path / "tiny.png"] * 100, 0.25, 0.45, 4)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
