"""The long test of jobs (`make test-kills`): workers and drivers are killed with SIGKILL until all images have their rows.

    python tests/kill_jobs.py [IMAGES] [SEED]

A job over 2,000 tiny images, some unreadable, is killed at 10 points and resumed with another number of workers each time; in its
second run each worker is killed once. Then each image must have one row, in order and equal to `detect_stream`, and no
temporary file, lock or process may be left. Prints what it does; exit code 0 if all is well.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cluster_lethal as lethal

import gpudarknet as gd
from gpudarknet.cluster.store import TMP

SHARD, THRESH = 20, 0.05
JOB = f"""
import sys
from gpudarknet import cluster
source, out, workers = sys.argv[1:]
print(cluster.detect(source, out, *{lethal.MODEL}, thresh={THRESH}, shard={SHARD}, workers=int(workers), backend="numpy"))
"""
POINTS = ["start", "parts", "writing", "loading", "parts", "start", "writing", "parts", "loading", "end"]
MINUTES = 10.0  # of a run, at most


class Run:
    """A driver, with its workers."""

    def __init__(self, photos, out, count):
        self.out, self.count, self.begin = out, count, time.monotonic()
        self.before = self.parts()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-c", JOB, str(photos), str(out), str(count)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def parts(self):
        return len(list(self.out.glob("part-*"))) if self.out.exists() else 0

    def wait_for(self, reached):
        """Wait until something is reached; return False if the driver ended first."""
        while not reached():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < self.begin + 60 * MINUTES, f"hangs: {self.output()}"
            time.sleep(0.002)
        return True

    def kill_each_worker(self):
        """Kill each worker once, one after the other, after another part."""
        self.wait_for(lambda: self.parts() > self.before and len(lethal.workers(self.process.pid)) == self.count)
        for pid in lethal.workers(self.process.pid):
            seen = self.parts()
            os.kill(pid, signal.SIGKILL)
            print(f"  a worker killed after {seen} parts", flush=True)
            self.wait_for(lambda seen=seen: self.parts() > seen)

    def kill_driver(self, point, total):
        """Kill the driver at a point; return whether it was alive, after all its processes have ended."""
        delay, further = random.uniform(0.3, 4), random.randint(1, total // 12)
        reached = {
            "start": lambda: time.monotonic() > self.begin + delay,
            "loading": lambda: lethal.workers(self.process.pid),
            "parts": lambda: self.parts() >= self.before + further,
            "writing": lambda: self.parts() > self.before and any((self.out / TMP).glob("*")),
            "end": lambda: self.parts() >= total - 1,
        }[point]
        alive = self.wait_for(reached)
        below = lethal.descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        seconds = time.monotonic() - self.begin
        print(f"  driver killed after {seconds:.1f} s and {self.parts()} of {total} parts: {point}", flush=True)
        return alive, below

    def output(self):
        self.log.seek(0)
        return self.log.read()


def main(count=2000, seed=None):
    seed = int(seed or time.time())
    random.seed(seed)
    total = -(-int(count) // SHARD)
    started: set[int] = set()
    print(f"{count} images, {total} parts, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photos, out = Path(folder) / "photos", Path(folder) / "found"
        unreadable = random.sample(range(int(count)), 5)
        paths = lethal.write_images(photos, int(count), unreadable)
        readable = [path for k, path in enumerate(paths) if k not in unreadable]
        plain = gd.Detector(*lethal.MODEL, backend="numpy").detect_stream(readable, THRESH)
        expected = {path: objects.summary() for path, objects in zip(readable, plain, strict=True)}
        for number, point in enumerate(POINTS):
            workers = number % 3 + 1
            print(f"run {number + 1}: {workers} workers", flush=True)
            run = Run(photos, out, workers)
            if number == 1:
                run.kill_each_worker()
            alive, below = run.kill_driver(point, total)
            assert alive, f"the driver ended before it was killed: {run.output()}"
            started |= below.keys()
        print("last run: 2 workers", flush=True)
        run = Run(photos, out, 2)
        code = run.process.wait(60 * MINUTES)
        print(f"  {run.output().strip()}")
        assert code == 0
        assert f"images={count}, " in run.output()
        assert f"errors=5, shards={total}, resumed=" in run.output()
        parts = [f"part-{number:08}.jsonl" for number in range(total)]
        assert sorted(p.name for p in out.iterdir()) == ["_SUCCESS.json", "manifest.json", *parts]
        rows = [json.loads(line) for part in parts for line in (out / part).read_text().splitlines()]
        assert [row["image"] for row in rows] == paths
        assert {row["image"]: row["objects"] for row in rows if not row["error"]} == expected
        assert [row["image"] for row in rows if row["error"]] == [paths[k] for k in sorted(unreadable)]
        deadline = time.monotonic() + 60
        while left := [pid for pid in started if lethal.is_alive(pid)]:
            assert time.monotonic() < deadline, f"processes are left: {left}"
            time.sleep(0.5)
    print(f"every image once, equal to detect_stream, nothing left over: {count} rows, {len(POINTS)} drivers killed")


if __name__ == "__main__":
    main(*sys.argv[1:])
