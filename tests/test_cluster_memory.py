"""A job's driver holds no more of a long list of images than of a short one, and takes the list as it needs it."""

from __future__ import annotations

import tracemalloc
from itertools import islice

import pytest

from gpudarknet.bench import cluster as bench
from gpudarknet.cluster.detect import IN_FLIGHT
from gpudarknet.cluster.runtime import connect
from gpudarknet.cluster.shards import FileShard

pytest.importorskip("ray")

WORKERS, SIZE, PATHS = 2, 256, 100_000
GROWTH = 1 << 20  # bytes, from a fifth of the images to all: far less than the names of the others take


@pytest.fixture(scope="module")
def runtime():
    with connect("local", cpus=WORKERS) as runtime:
        yield runtime


class Source:
    """Shards of names, made when they are taken. ahead: how many more were taken than are done, at most. kept: those to keep."""

    def __init__(self, paths: int, keep: bool = False):
        self.paths, self.keep, self.kept = paths, keep, []
        self.taken = self.done = self.ahead = 0
        self.memory = dict[int, int]()  # by fifths of the images, in bytes

    def shards(self):
        names = bench.names(self.paths)
        for _ in range(0, self.paths, SIZE):
            shard = FileShard(tuple(islice(names, SIZE)), "/")
            self.kept += [shard] * self.keep
            self.taken += 1
            self.ahead = max(self.ahead, self.taken - self.done)
            yield shard

    def report(self, summary):
        self.done = summary.shards
        if tracemalloc.is_tracing():
            self.memory.setdefault(5 * summary.images // self.paths, tracemalloc.get_traced_memory()[0])

    @property
    def growth(self):
        return self.memory[5] - self.memory[1]


def run(runtime, out, source):
    tracemalloc.start()
    try:
        return bench.run_job(runtime, bench.StubModel(), source.shards(), str(out), WORKERS, source.report)
    finally:
        tracemalloc.stop()


def test_the_drivers_memory_does_not_grow_with_the_images(tmp_path, runtime):
    for resumed in (0, -(-PATHS // SIZE)):
        source = Source(PATHS)
        summary = run(runtime, tmp_path, source)
        assert (summary.images, summary.shards, summary.resumed) == (PATHS, -(-PATHS // SIZE), resumed)
        assert source.growth < GROWTH


def test_names_that_are_kept_would_be_noticed(tmp_path, runtime):
    source = Source(PATHS // 5, keep=True)
    run(runtime, tmp_path, source)
    assert source.growth > GROWTH


def test_the_source_is_taken_as_workers_need_it(tmp_path, runtime):
    source = Source(50 * SIZE)
    bench.run_job(runtime, bench.StubModel(), source.shards(), str(tmp_path), WORKERS, source.report)
    assert (source.taken, source.done) == (50, 50)
    assert IN_FLIGHT <= source.ahead <= WORKERS * IN_FLIGHT + 1
