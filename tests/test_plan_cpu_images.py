"""Batches on the CPU: whole images on different workers, with the bits of one image on one thread."""

from __future__ import annotations

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.backend import threads
from gpudarknet.plan import cpu

NET = "[net]\nwidth=32\nheight=32\nchannels=3\n"
CONV = "[convolutional]\nbatch_normalize=1\nfilters=16\nsize=3\npad=1\nstride={}\nactivation=leaky\n"
HEAD = (
    "[convolutional]\nfilters=14\nsize=1\nactivation=linear\n[yolo]\nmask=0,1\nanchors=8,8, 20,20\nclasses=2\nnum=2\n"
)
DETECTOR = NET + CONV.format(1) + CONV.format(1) + "[route]\nlayers=-2,-1\n" + CONV.format(2) + HEAD
CONNECTED = NET + CONV.format(2) + "[connected]\noutput=512\nactivation=linear\n"  # reads each weight once per image
RECURRENT = "[net]\ninputs=64\n[rnn]\noutput=8\nhidden=8\nactivation=tanh\n"


@pytest.fixture(autouse=True)
def restored_threads(monkeypatch):
    """Restore the number of threads."""
    monkeypatch.setattr(threads, "_requested", None)
    size = threads.thread_pool().size
    yield
    threads.thread_pool().resize(size)


def network(text: str = DETECTOR) -> gd.Network:
    return gd.load_network(cfg.parse(text), backend="numpy", seed=1)


def batch(net: gd.Network, size: int) -> np.ndarray:
    return np.random.default_rng(2).random((size, *net.net.input), np.float32)


def kinds(text: str, workers: int) -> list[bool]:
    """Return which batches of 1 to 8 images are computed with whole images on workers."""
    gd.set_num_threads(workers)
    net = network(text)
    return [isinstance(net.program(size), cpu.ImageParallelProgram) for size in range(1, 9)]


def test_which_batches_have_a_worker_per_image():
    assert kinds(DETECTOR, 1) == [False, *[True] * 7]
    assert kinds(DETECTOR, 2) == [False, True, True, True, True, True, True, True]
    assert kinds(DETECTOR, 4) == [False, False, True, True, False, True, True, True]
    assert not any(kinds(CONNECTED, 2)) and not any(kinds(RECURRENT, 2))


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_bits_are_those_of_one_image_on_one_thread(workers):
    net = network()
    x = batch(net, 8)
    gd.set_num_threads(1)
    expected = np.concatenate([net.predict(image[None])[0] for image in x])
    gd.set_num_threads(workers)
    sizes = [size for size, parallel in enumerate(kinds(DETECTOR, workers), 1) if parallel]
    for size in sizes:
        np.testing.assert_array_equal(net.predict(x[:size])[0], expected[:size])
    reference = net.predict(x, engine="reference")[0]
    assert np.abs(expected - reference).max() <= 1e-5 * np.abs(reference).max()


def test_a_program_follows_the_number_of_threads():
    net = network()
    x = batch(net, 8)
    gd.set_num_threads(2)
    program = net.program(8)
    expected = program.run(x)[0]
    assert len(program.programs) == 2 and "for each of 2 workers" in program.describe()
    for count in (16, 1, 3):  # 16: more than images
        gd.set_num_threads(count)
        np.testing.assert_array_equal(program.run(x)[0], expected)
        assert len(program.programs) == min(count, 8)


def test_results_are_new_arrays_and_the_input_is_unchanged():
    net = network()
    x = batch(net, 4)
    before = x.copy()
    first = net.predict(x)[0]
    kept = first.copy()
    net.predict(batch(net, 4)[::-1])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x, before)


def test_an_error_of_a_worker_reaches_the_caller(monkeypatch):
    gd.set_num_threads(2)
    net = network()
    program = net.program(2)

    def broken():
        raise ValueError("broken")

    stages = program.programs[1].stages
    monkeypatch.setattr(program.programs[1], "stages", [[[[broken]]], *stages])
    with pytest.raises(ValueError, match="broken"):
        program.run(batch(net, 2))
    monkeypatch.undo()
    assert np.isfinite(program.run(batch(net, 2))[0]).all()
