"""The benchmark of jobs on Ray: it runs in small, and its table has the figures."""

from __future__ import annotations

import re

import pytest

from gpudarknet.bench import cluster as bench
from gpudarknet.cluster import Summary

pytest.importorskip("ray")


@pytest.mark.slow
def test_jobs_of_a_stub(capsys):
    bench.main(["memory", "--paths", "600", "--size", "100"])
    out = capsys.readouterr().out
    assert re.search(r"^\| 600 paths, shards of 100 \| [\d.]+ s, [\d,]+ images/s; 6 files, 0\.1 MB", out, re.MULTILINE)
    assert re.search(r"^\| 600 paths, shards of 100, all there \| [\d.]+ s", out, re.MULTILINE)
    assert re.search(r"the driver's memory \| \d+ MB at 20 %, \d+ at the end, \d+ at most", out)


@pytest.mark.slow
def test_a_small_network(capsys, monkeypatch):
    monkeypatch.setattr(bench, "get_num_threads", lambda: 1)
    bench.main(["speed", "--network", "digits", "--images", "48", "--rounds", "1"])
    out = capsys.readouterr().out
    assert re.search(
        r"^\| one process, threads: 1 \| [\d.]+ images/s, \d+ ms of CPU time per image \|$", out, re.MULTILINE
    )
    assert re.search(r"^\| workers of one thread: 1 \| [\d.]+ images/s", out, re.MULTILINE)
    assert re.search(r"^\| efficiency: workers / one process, 1 \| [\d.]+ \|$", out, re.MULTILINE)


@pytest.mark.slow
def test_a_death(tmp_path):
    bench.write_photos(tmp_path, 64)
    value = bench.measured("deaths", network="digits", photos=str(tmp_path), rounds=1)
    assert 0 < value["restart"] < value["disturbed"]


def test_a_rate_is_the_slope_from_the_settled_state(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 3.0])  # from 100 images at 0 s, 10 per second
    cpu = iter([{"workers": 1.0}, {"workers": 1.6}])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(bench, "cpu_by_kind", lambda: next(cpu))
    progress = bench.Progress(130, settle=2)
    for images in (5, 100, 110, 120, 130):
        progress(Summary(images=images))
    assert progress.rate == pytest.approx(10)
    assert progress.cpu_ms == {"workers": pytest.approx(20)}


def test_an_unknown_kind_is_an_error(capsys):
    with pytest.raises(SystemExit):
        bench.main(["nothing"])
    assert "nothing: choose of start, speed, shards, deaths, memory" in capsys.readouterr().err
