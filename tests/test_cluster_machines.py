"""Jobs on a cluster of several machines, each a raylet of this one: machines join, leave, and are waited for."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import time

import cluster_lethal as lethal
import pytest

import gpudarknet as gd
from gpudarknet import cluster
from gpudarknet.cluster import runtime

pytest.importorskip("ray")
driver = importlib.import_module("gpudarknet.cluster.detect")  # the function hides it
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Ray supports clusters on Linux only"),
]
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
STORE = 100 << 20  # bytes
OPTIONS = {"thresh": 0.05, "shard": 8, "batch": 4, "backend": "numpy"}


@pytest.fixture
def machines(monkeypatch):
    """A cluster of a head, which runs no workers, and a machine of one core."""
    runtime.import_ray()
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(driver, "PATIENCE", 1.0)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.path.dirname(__file__)]))
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": HEALTH}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        started.first = started.add_node(num_cpus=1, object_store_memory=STORE)
        yield started
    finally:
        started.shutdown()


def test_machines_join_and_are_lost(machines, tmp_path, caplog):
    photos, out = tmp_path / "photos", tmp_path / "found"
    names = lethal.write_images(photos, 1600)
    counts = []

    def report(summary):
        """Add a machine, and lose the first one when both have workers."""
        counts.append(len(lethal.workers(os.getpid())))
        if summary.shards == 5:
            machines.add_node(num_cpus=1, object_store_memory=STORE)
        if counts[-1] == 2 and machines.first:
            (raylet,) = machines.first.all_processes["raylet"]
            os.kill(raylet.process.pid, signal.SIGKILL)
            machines.first = None
        if not summary.deaths:
            time.sleep(0.1)

    summary = cluster.detect(photos, out, *lethal.MODEL, **OPTIONS, address=machines.address, report=report)
    assert (summary.images, summary.errors, summary.shards, summary.resumed) == (1600, 0, 200, 0)
    assert (counts[0], max(counts), summary.deaths) == (1, 2, 1)
    assert "a worker died while it processed shard" in caplog.text
    plain = gd.Detector(*lethal.MODEL, backend="numpy").detect_stream(names, 0.05, batch=4)
    assert [(row["image"], row["objects"]) for row in cluster.read(out)] == [
        (name, objects.summary()) for name, objects in zip(names, plain, strict=True)
    ]
    assert len(list(out.iterdir())) == 202


def test_workers_wait_for_machines_only_if_their_number_is_given(machines, tmp_path, caplog, monkeypatch):
    photos = tmp_path / "photos"
    lethal.write_images(photos, 16)
    arguments, options = (photos, tmp_path / "found", *lethal.MODEL), {**OPTIONS, "threads": 2}
    with pytest.raises(gd.errors.DataError) as raised:
        cluster.detect(*arguments, **options, address=machines.address)
    assert str(raised.value) == (
        f"{machines.address}: no node has 2 cores for a worker (the largest has 1 core); choose fewer threads or"
        " gpus_per_worker; or give workers, which wait until machines with them join"
    )

    class Joining(logging.Handler):
        def emit(self, record):
            if "waiting" in record.getMessage():
                machines.add_node(num_cpus=2, object_store_memory=STORE)

    monkeypatch.setattr(driver.log, "handlers", [*driver.log.handlers, Joining()])
    assert cluster.detect(*arguments, **options, workers=1, address=machines.address).images == 16
    waiting = "no worker has started for 1 s: no machine has its 2 cores, or others use them (`ray status`); waiting"
    assert caplog.messages.count(waiting) == 1
