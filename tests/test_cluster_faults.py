"""Jobs in which workers and drivers die: every image has one row, and an image that kills is named."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from types import SimpleNamespace

import cluster_lethal as lethal
import pytest

import gpudarknet as gd
from gpudarknet import cluster
from gpudarknet.cluster import job, runtime

pytest.importorskip("ray")
driver = importlib.import_module("gpudarknet.cluster.detect")  # the function hides it
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
OPTIONS = {"thresh": 0.05, "backend": "numpy", "shard": 8, "workers": 2}
COUNT = 40


@pytest.fixture(scope="module")
def ray():
    """One Ray for the tests of this module, which jobs join."""
    paths = [os.path.dirname(__file__), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))  # workers import cluster_lethal
        with runtime.connect("local", cpus=4) as connected:
            yield connected.ray


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    lethal.write_images(folder, COUNT, unreadable=[7])
    return folder


@pytest.fixture(scope="module")
def expected(photos):
    """The objects of each readable image, found without Ray."""
    readable = [path for path in sorted(photos.iterdir()) if path.name != "0007.png"]
    found = gd.Detector(*lethal.MODEL, backend="numpy").detect_stream(readable, 0.05)
    return {str(path): objects.summary() for path, objects in zip(readable, found, strict=True)}


@pytest.fixture
def use_model(monkeypatch):
    """Let jobs use a LethalModel with these attributes."""
    load = job.Model.load

    def use(**attributes):
        def load_lethal(*args):
            model = load(*args)
            return lethal.LethalModel(**{f.name: getattr(model, f.name) for f in fields(model)}, **attributes)

        monkeypatch.setattr(job.Model, "load", load_lethal)

    return use


def rows(out):
    return [json.loads(line) for part in sorted(out.glob("part-*.jsonl")) for line in part.read_text().splitlines()]


def check(out, photos, expected, killers=()):
    """Check that each image has one row, as expected, and that nothing is left over."""
    found = rows(out)
    assert [row["image"] for row in found] == sorted(map(str, photos.iterdir()))
    assert {row["image"]: row["objects"] for row in found if not row["error"]} == {
        name: objects for name, objects in expected.items() if os.path.basename(name) not in killers
    }
    errors = {os.path.basename(row["image"]): row["error"] for row in found if row["error"]}
    assert errors.keys() == {"0007.png", *killers}
    for name in killers:
        assert errors[name].startswith(f"{photos}/{name}: 2 workers died while they processed it; check the image")
    parts = [f"part-{number:08}.jsonl" for number in range(COUNT // 8)]
    assert sorted(p.name for p in out.iterdir()) == ["_SUCCESS.json", "manifest.json", *parts]


def test_a_killed_worker_is_replaced(ray, tmp_path, photos, expected, caplog):
    killed = []

    def kill(summary):
        alive = [pid for pid in lethal.workers(os.getpid()) if pid not in killed]
        if len(killed) < 3 and alive:  # the third is one that replaced the first
            killed.append(alive[-1])
            os.kill(killed[-1], signal.SIGKILL)

    summary = cluster.detect(photos, tmp_path / "found", *lethal.MODEL, **OPTIONS, report=kill)
    check(tmp_path / "found", photos, expected)
    assert (summary.images, summary.errors, summary.shards, summary.resumed) == (COUNT, 1, 5, 0)
    assert summary.objects == sum(map(len, expected.values()))
    assert 1 <= summary.deaths <= len(killed)
    assert "a worker died while it processed shard" in caplog.text


def test_a_worker_killed_while_it_writes(ray, tmp_path, photos, expected, monkeypatch):
    monkeypatch.setattr(driver, "open_store", lambda out: lethal.LethalStore(os.fspath(out)))
    summary = cluster.detect(photos, tmp_path / "found", *lethal.MODEL, **OPTIONS)
    check(tmp_path / "found", photos, expected)
    assert (summary.images, summary.resumed, summary.deaths) == (COUNT, 0, 1)


@pytest.mark.parametrize("killers", [pytest.param({"0012.png"}, marks=pytest.mark.slow), {"0032.png", "0039.png"}])
def test_images_that_kill_workers_are_named(ray, tmp_path, photos, expected, use_model, killers):
    use_model(lethal=frozenset(killers))
    summary = cluster.detect(photos, tmp_path / "found", *lethal.MODEL, **OPTIONS, retries=2)
    check(tmp_path / "found", photos, expected, killers)
    assert (summary.images, summary.errors, summary.resumed) == (COUNT, 1 + len(killers), 0)


@pytest.mark.slow
def test_an_image_that_kills_workers_ends_a_strict_job(ray, tmp_path, photos, use_model):
    (first, *_) = sorted(photos.iterdir())
    use_model(lethal=frozenset({first.name}))
    with pytest.raises(gd.errors.ImageError, match=r"0000\.png: 1 worker died while it processed it"):
        cluster.detect([first], tmp_path / "found", *lethal.MODEL, **OPTIONS, retries=1, on_error="raise")


@pytest.mark.slow
def test_a_job_ends_if_all_images_kill_workers(ray, tmp_path, photos, use_model, monkeypatch):
    monkeypatch.setattr(driver, "MAX_NAMED", 2)
    use_model(lethal=frozenset(path.name for path in photos.iterdir()))
    with pytest.raises(gd.errors.ImageError, match="2 others before it, and none was processed in between"):
        cluster.detect(photos, tmp_path / "found", *lethal.MODEL, **OPTIONS, retries=1)
    assert not list((tmp_path / "found").glob("_SUCCESS*"))


def test_a_model_that_cannot_be_loaded(ray, tmp_path, photos, use_model):
    use_model(loading="raises")
    with pytest.raises(gd.errors.WeightsError, match="cannot be used; try another"):
        cluster.detect(photos, tmp_path / "found", *lethal.MODEL, **OPTIONS)
    use_model(loading="dies")
    with pytest.raises(
        gd.errors.DarknetError, match=r"workers: 3 died while they loaded the detector, .* logs in /tmp/ray"
    ):
        cluster.detect(photos, tmp_path / "found", *lethal.MODEL, **OPTIONS, retries=2)


def test_resources(ray, tmp_path, photos, monkeypatch, caplog):
    arguments = photos, tmp_path / "found", *lethal.MODEL
    with pytest.raises(gd.errors.DataError, match=r"no node has 99 cores for a worker \(the largest has 4 cores\)"):
        cluster.detect(*arguments, **OPTIONS, threads=99)
    monkeypatch.setattr(driver, "PATIENCE", 0.5)

    @ray.remote(num_cpus=4)
    class Other:
        def ready(self):
            return True

    other = Other.remote()
    assert ray.get(other.ready.remote())
    timer = threading.Timer(2, ray.kill, [other])
    timer.start()
    assert cluster.detect(*arguments, **OPTIONS).images == COUNT
    timer.join()
    assert caplog.text.count("no worker has started for 0.5 s: no machine has its 1 core, or others use them") == 1


@pytest.mark.parametrize(
    ("threads", "gpus", "count"), [(1, 0, 11), (2, 0, 5), (4, 0, 2), (1, 1, 6), (2, 1, 4), (1, 0.5, 8), (1, 2, 3)]
)
def test_workers_that_fit_on_nodes(threads, gpus, count):
    nodes = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 4.0}, {"CPU": 3.0}, {"object_store_memory": 1.0}]
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    stub = SimpleNamespace(nodes=lambda: [*alive, {"Alive": False, "Resources": {"CPU": 64.0}}])
    assert runtime.Runtime(stub, "auto").room(threads, gpus) == count


def test_an_address_of_no_cluster_is_an_error(tmp_path, photos):
    code = "import sys; from gpudarknet import cluster; cluster.detect(*sys.argv[1:6], address=sys.argv[6])"
    for address, error in (
        ("127.0.0.1:9", "Ray's head does not answer"),
        ("here", "is not an address; use local, auto or"),
    ):
        command = [sys.executable, "-c", code, photos, tmp_path / "found", *lethal.MODEL, address]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.stderr.splitlines()[-1].startswith(f"gpudarknet.errors.BackendError: {address}: {error}")


@pytest.mark.slow
def test_two_jobs_in_threads(ray, tmp_path, photos, expected):
    errors = []

    def run(name):
        try:
            cluster.detect(photos, tmp_path / name, *lethal.MODEL, **OPTIONS)
            check(tmp_path / name, photos, expected)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert ray.is_initialized()


class Driver:
    """A job in a process of its own, whose group gets its signals. begin: code that runs before it."""

    def __init__(self, photos, out, workers=2, begin=""):
        arguments = [
            str(photos),
            "-cluster",
            "local",
            "-out_dir",
            str(out),
            "-thresh",
            "0.05",
            "-shard",
            "8",
            "-backend",
            "numpy",
        ]
        arguments = ["detector", "test", "cfg/digits.data", *lethal.MODEL[:2], *arguments, "-workers", str(workers)]
        code = f"{begin}\nimport sys\nfrom gpudarknet.cli import main\nsys.exit(main({arguments}))"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.path.dirname(__file__)])}
        self.out, self.process = out, subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def wait_for_part(self):
        while not list(self.out.glob("part-*")):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)

    def end(self):
        """Wait; return the exit code and what it printed."""
        out, err = self.process.communicate(timeout=300)
        assert out == ""
        return self.process.returncode, err


@pytest.mark.slow
def test_a_driver_killed_while_a_part_is_written(tmp_path, photos, expected):
    out = tmp_path / "found"
    begin = """
import importlib, os, cluster_lethal
module = importlib.import_module("gpudarknet.cluster.detect")
module.open_store = lambda out: cluster_lethal.LethalStore(os.fspath(out), victim=os.getpid(), number=4)
"""
    assert Driver(photos, out, 2, begin).end() == (-signal.SIGKILL, "")
    written = {part.name: part.read_bytes() for part in out.glob("part-*")}
    assert 1 <= len(written) < COUNT // 8
    assert (out / ".tmp" / "half").exists()
    code, err = Driver(photos, out, 3).end()
    check(out, photos, expected)
    assert code == 2  # for the image that cannot be read
    resumed = re.search(r"5 shards \((\d) resumed\) in", err)
    assert resumed and len(written) <= int(resumed[1]) < COUNT // 8  # the other worker may have finished its shard
    assert written == {name: (out / name).read_bytes() for name in written}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_job_is_resumed(tmp_path, photos, expected, number, code):
    out = tmp_path / "found"
    job = Driver(photos, out)
    job.wait_for_part()
    (worker, *_) = lethal.workers(job.process.pid)
    os.kill(worker, signal.SIGKILL)
    (os.killpg if number == "SIGINT" else os.kill)(job.process.pid, getattr(signal, number))  # as a terminal sends it
    assert job.process.wait(60) == code
    err = job.end()[1].splitlines()
    assert err[-1].startswith("note: stopped after ")
    assert all(line.startswith("warning: a worker died while it ") for line in err[:-1]), err
    assert not (out / ".lock").exists()
    assert not (out / ".tmp").exists()
    cluster.detect(photos, out, *lethal.MODEL, **{**OPTIONS, "workers": 1})
    check(out, photos, expected)
