"""Folders of results, here and in object stores: files that are whole, and one job at a time."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import object_server
import pytest

import gpudarknet as gd
from gpudarknet import cluster, image
from gpudarknet.cluster.store import LocalStore, RemoteStore, open_store
from gpudarknet.errors import DataError, ImageError
from gpudarknet.io import lease, remote

MODEL = ("cfg/digits.cfg", "cfg/digits.weights", "cfg/digits.names")


@pytest.fixture(scope="module")
def bucket():
    with object_server.running() as address:
        yield address


@pytest.fixture
def fast(monkeypatch):
    """Leases that expire soon."""
    for name, seconds in (("RENEWAL", 0.2), ("EXPIRY", 2.0), ("POLL", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture(params=["local", "s3", "memory", "server"])
def out(request, tmp_path, monkeypatch, fast):
    """An address of each kind; server: of one where writing is not atomic."""
    if request.param == "local":
        return str(tmp_path / "new" / "found")
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    if request.param == "server":
        monkeypatch.setattr(remote, "SERVERS", ("memory",))
    fsspec.filesystem("memory").store.clear()
    return "memory://x/found"


def files(out):
    """Return all files of a folder by name."""
    if not remote.is_remote(out):
        return sorted(os.path.relpath(os.path.join(at, name), out) for at, _, names in os.walk(out) for name in names)
    fs, path = remote.filesystem(out)
    return sorted(name.strip("/")[len(path.strip("/")) + 1 :] for name in fs.find(path))


def test_files_are_whole_and_nothing_is_left(out):
    store = open_store(out)
    with store.locked():
        assert store.read("a.json") is None and store.read("labels/x/a.txt") is None
        worker = pickle.loads(pickle.dumps(store))
        for data in (b"first", b"", b"second"):
            worker.write("a.json", data)
            assert store.read("a.json") == data
        worker.write("labels/x/ä.txt", b"l")
        store.check()
        assert ".lock" in files(out)
    assert files(out) == ["a.json", "labels/x/ä.txt"]


def test_a_second_job_is_refused(out):
    with open_store(out).locked():
        begin = time.monotonic()
        with (
            pytest.raises(
                DataError, match=r": another job is writing here \(process \d+ on .*, since .*\); stop it, or"
            ) as e,
            open_store(out).locked(),
        ):
            pytest.fail("two jobs")
        assert str(e.value).startswith(f"{out}: ") and time.monotonic() - begin < lease.EXPIRY
    with open_store(out).locked():
        pass
    assert files(out) == []


def test_what_a_killed_writer_left_is_removed(out):
    store = open_store(out)
    with store.locked():
        if isinstance(store, LocalStore):
            (store.path / ".tmp" / "x").write_text("half")
        elif remote.is_server(store.address):
            remote.write_bytes(store.address / ".tmp" / "x", b"half")
    assert files(out) == []


# Leases

HOLD = """
import sys, time
from gpudarknet.cluster.store import open_store
from gpudarknet.io import lease
lease.RENEWAL = 0.2
with open_store(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lease_of_a_killed_job_expires(bucket, fast, caplog):
    out = f"{bucket}/killed"
    with subprocess.Popen([sys.executable, "-c", HOLD, out], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(DataError, match=rf"another job is writing here \(process {other.pid} on"),
            open_store(out).locked(),
        ):
            pytest.fail("two jobs")
        other.kill()
    begin = time.monotonic()
    with open_store(out).locked():
        assert time.monotonic() - begin >= lease.EXPIRY
    assert files(out) == []
    assert f"{out}/.lock: is held by process {other.pid} on" in caplog.text and "waiting up to 2 s" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"holder": "process 1 on x", "id": "x"}', "was taken over by process 1 on x"),
        (b"\xff", "was taken over by another process"),
        (None, "was removed"),
    ],
)
def test_a_job_that_loses_its_lease_ends(fast, content, reason):
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    store = open_store("memory://x/found")
    with store.locked():
        fs.rm("/x/found/.lock")
        if content is not None:
            fs.pipe("/x/found/.lock", content)
        store._lease._thread.join(10)
        for call in (store.check, lambda: store.write("_SUCCESS.json", b"")):
            with pytest.raises(DataError) as e:
                call()
            assert (
                str(e.value)
                == f"memory://x/found: the lease on this folder {reason}; run this job again when no other runs"
            )
    assert files("memory://x/found") == ([".lock"] if content else [])  # another's is not removed


def test_a_store_that_fails_for_a_moment_does_not_end_a_job(fast, monkeypatch):
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    store = open_store("memory://x/found")
    with store.locked():
        with monkeypatch.context() as patch:
            patch.setattr(type(fs), "cat_file", lambda *_, **__: (_ for _ in ()).throw(OSError("503 Slow Down")))
            time.sleep(3 * lease.RENEWAL)
            store.check()
        before = store._lease.renewals
        time.sleep(3 * lease.RENEWAL)
        assert store._lease.renewals > before
        with monkeypatch.context() as patch:
            patch.setattr(type(fs), "cat_file", lambda *_, **__: (_ for _ in ()).throw(OSError("503 Slow Down")))
            store._lease._thread.join(10)
        with pytest.raises(DataError, match=r"the lease on this folder cannot be renewed .*503 Slow Down"):
            store.check()


# Paths and addresses


def test_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for name, path in (("found", "found"), ("~/found", "home/found"), ("a/../b", "b")):
        store = open_store(name)
        with monkeypatch.context() as elsewhere, store.locked():
            elsewhere.chdir("/")
            pickle.loads(pickle.dumps(store)).write("a", b"1")
        assert (tmp_path / path / "a").read_bytes() == b"1"
    os.symlink(tmp_path / "found", tmp_path / "link")
    assert open_store("link").read("a") == b"1"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "out: is empty; give the folder of the results"),
        ("https://h/found", "https://h/found: is neither a folder nor in an object store; give a path, or an address as"
                            " s3://bucket/found"),
        ("nosuch://h/found", "nosuch://h/found: is neither a folder nor in an object store; give a path, or an address as"
                             " s3://bucket/found"),
        ("gs://b/found", "gs://b/found/.lock: gcsfs is not installed; pip install 'gpudarknet[cluster]' gcsfs"),
        ("cfg/digits.cfg", "cfg/digits.cfg: cannot create this folder"),
    ],
)  # fmt: skip
def test_an_out_that_cannot_be_one(out, message):
    with pytest.raises(DataError) as e, open_store(out).locked():
        pytest.fail("locked")
    assert message in str(e.value)


def test_buckets(bucket, fast):
    fs = object_server.filesystem()
    fs.mkdir("whole")
    store = open_store("s3://whole")
    with store.locked():
        store.write("a", b"1")
    assert files("s3://whole") == ["a"] and isinstance(store, RemoteStore)
    with pytest.raises(DataError) as e, open_store("s3://none/found").locked():
        pytest.fail("locked")
    assert str(e.value) == "s3://none/found/.lock: no such file, folder or bucket; check the address"


def test_credentials_that_may_only_read(bucket, fast, monkeypatch, request):
    import s3fs

    async def refuse(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", refuse)
    object_server.forget()  # file systems that have the method already
    request.addfinalizer(object_server.forget)
    with pytest.raises(DataError) as e, open_store(f"{bucket}/read-only").locked():
        pytest.fail("locked")
    assert str(e.value) == (
        f"{bucket}/read-only/.lock: cannot be accessed (Access Denied); check the credentials, and what they permit"
    )


# Jobs


def test_images_in_a_store_are_detected(bucket, photos):
    plain = {path.name: objects for path, objects in zip(photos, plain_detections(photos), strict=True)}
    detector = gd.Detector(*MODEL, backend="numpy")
    source = f"{bucket}/photos/*.png"
    with pytest.raises(ImageError, match=rf"^{bucket}/photos/007.png: is not an image that OpenCV can read"):
        detector.detect(f"{bucket}/photos/007.png")
    names = [name for name in gd.sources(source) if not name.endswith("007.png")]
    found = list(detector.detect_stream(names, 0.05))
    assert {os.path.basename(one.path): one.summary() for one in found} == plain
    one = detector.detect(names[0])
    assert one.path == names[0] and one.image.shape[:2] == one.shape


def plain_detections(photos):
    return [found.summary() for found in gd.Detector(*MODEL, backend="numpy").detect_stream(photos, 0.05)]


@pytest.fixture(scope="module")
def photos(bucket, tmp_path_factory):
    """Write 20 images into bucket/photos, one of which cannot be read; return the paths of the others on this machine."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k in range(20):
        height, width = rng.integers(40, 90, 2)
        image.write(folder / f"{k:03}.png", rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    (folder / "007.png").write_text("no image")
    object_server.filesystem().pipe(
        {f"{bucket[5:]}/photos/{path.name}": path.read_bytes() for path in folder.iterdir()}
    )
    return [path for path in sorted(folder.iterdir()) if path.name != "007.png"]


KILLED = """
import json, os, signal, sys
from gpudarknet import cluster

def report(summary):
    if summary.shards == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    cluster.detect(*sys.argv[1:], thresh=0.05, shard=2, workers=2, backend="numpy", report=report)
"""


def kill_a_worker():
    """Kill one of the workers below this process."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            processes[int(folder.name)] = parent, (folder / "cmdline").read_bytes()

    def is_below(pid):
        return pid == os.getpid() or (pid in processes and is_below(processes[pid][0]))

    workers = [pid for pid, (_, words) in processes.items() if words.startswith(b"ray::ShardWorker") and is_below(pid)]
    os.kill(workers[0], signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")
@pytest.mark.slow
def test_a_job_from_a_store_to_a_store(bucket, photos, fast, tmp_path):
    pytest.importorskip("ray")
    source, out = f"{bucket}/photos", f"{bucket}/found"
    messages = tmp_path / "stderr"
    with open(messages, "wb") as file:  # not a pipe, which Ray's processes hold for a while
        killed = subprocess.run([sys.executable, "-c", KILLED, source, out, *MODEL], stdout=file, stderr=file)
    assert killed.returncode == -signal.SIGKILL, messages.read_text()
    assert "_SUCCESS.json" not in files(out)
    resumed = []

    def report(summary):
        if not resumed:
            kill_a_worker()
        resumed.append(summary.resumed)

    options = {"thresh": 0.05, "shard": 2, "workers": 2, "backend": "numpy"}
    summary = cluster.detect(source, out, *MODEL, **options, report=report)
    assert (summary.images, summary.errors, summary.shards, summary.deaths) == (20, 1, 10, 1)
    assert summary.resumed >= 3
    assert files(out) == ["_SUCCESS.json", "manifest.json", *(f"part-{n:08}.jsonl" for n in range(10))]
    fs = object_server.filesystem()
    rows = [json.loads(line) for n in range(10) for line in fs.cat(f"{out}/part-{n:08}.jsonl").splitlines()]
    assert [row["image"] for row in rows] == [f"{source}/{k:03}.png" for k in range(20)]
    plain = dict(zip([path.name for path in photos], plain_detections(photos), strict=True))
    assert {os.path.basename(row["image"]): row["objects"] for row in rows if row["error"] is None} == plain
    again = cluster.detect(source, out, *MODEL, **options)  # is complete
    assert (again.images, again.resumed) == (20, 10)


def test_an_out_inside_the_source(tmp_path, photos):
    """Its files are not images, so a job that is run again finds the same."""
    source = tmp_path / "photos"
    source.mkdir()
    for path in photos[:3]:
        (source / path.name).write_bytes(path.read_bytes())
    for out in (source, source / "found"):
        store = open_store(out)
        with store.locked():
            store.write("part-00000000.jsonl", b"{}")
            store.write("labels/000.txt", b"")
            (store.path / ".tmp" / "x.png").touch()
            assert [one.name for one in gd.sources(source, recursive=True)] == [path.name for path in photos[:3]]
