"""A job's driver holds no more of a long list of images than of a short one, and reads the list as workers need it."""

from __future__ import annotations

import tracemalloc

import pytest

from gpudarknet.bench import cluster as bench
from gpudarknet.cluster.detect import IN_FLIGHT
from gpudarknet.cluster.runtime import connect
from gpudarknet.cluster.shards import split

pytest.importorskip("ray")

WORKERS, SIZE, PATHS = 2, 500, 100_000
GROWTH = 1 << 20  # bytes, from a fifth of the images to all: far less than the names of the others take


@pytest.fixture(scope="module")
def runtime():
    with connect("local", cpus=WORKERS) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "images.txt"
    path.write_text("".join(f"{name}\n" for name in bench.names(PATHS)))
    return path


def growth(runtime, out, shards):
    """Run a job; return how much more memory Python has at its end than at a fifth of it, and its summary."""
    memory = {}

    def report(summary):
        memory.setdefault(5 * summary.images // PATHS, tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        summary = bench.run_job(runtime, bench.StubModel(), shards, str(out), WORKERS, report)
    finally:
        tracemalloc.stop()
    return memory[5] - memory[1], summary


def test_the_drivers_memory_does_not_grow_with_the_images(tmp_path, runtime, listed):
    for resumed in (0, PATHS // SIZE):
        more, summary = growth(runtime, tmp_path, split(listed, SIZE))
        assert (summary.images, summary.shards, summary.resumed) == (PATHS, PATHS // SIZE, resumed)
        assert more < GROWTH


@pytest.mark.slow
def test_names_that_are_kept_would_be_noticed(tmp_path, runtime, listed):
    kept = []
    more, _ = growth(runtime, tmp_path, (kept.append(shard) or shard for shard in split(listed, SIZE)))
    assert more > 4 * GROWTH


def test_the_list_is_read_as_workers_need_it(tmp_path, runtime):
    size, done, ahead = 16, [0], []

    def names():
        for count, name in enumerate(bench.names(50 * size), 1):
            ahead.append(count - done[-1])
            yield name

    bench.run_job(
        runtime, bench.StubModel(), split(names(), size), str(tmp_path), WORKERS, lambda s: done.append(s.images)
    )
    assert (len(ahead), done[-1]) == (50 * size, 50 * size)
    assert max(ahead) <= (WORKERS * IN_FLIGHT + 1) * size + 1  # the shards in flight, and the one that is read
