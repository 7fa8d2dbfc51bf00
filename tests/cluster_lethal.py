"""Models and stores that kill processes of a job, and what finds those processes (on Linux)."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpudarknet import image
from gpudarknet.cluster import store
from gpudarknet.cluster.job import Model
from gpudarknet.cluster.shards import Item
from gpudarknet.errors import WeightsError

MODEL = ("cfg/digits.cfg", "cfg/digits.weights", "cfg/digits.names")


def write_images(folder, count, unreadable=()):
    """Write tiny images, of which those with these numbers are no images; return their paths, as listed."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        height, width = rng.integers(20, 50, 2)
        image.write(folder / f"{k:04}.png", rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    for k in unreadable:
        (folder / f"{k:04}.png").write_text("no image")
    return sorted(map(str, folder.iterdir()))


@dataclass(frozen=True)
class LethalModel(Model):
    """lethal: names of images that end the process that reads them. loading: what happens when the detector is loaded."""

    lethal: frozenset[str] = frozenset()
    loading: str = ""

    def detector(self):
        if self.loading == "raises":
            raise WeightsError("w.weights: cannot be used; try another")
        if self.loading == "dies":
            os._exit(1)
        if self.lethal:
            read = Item.read

            def lethal_read(item, channels):
                if Path(item).name in self.lethal:
                    time.sleep(0.05)
                    os._exit(1)
                return read(item, channels)

            Item.read = lethal_read
        return super().detector()


class LethalStore(store.LocalStore):
    """Kills a process once, in the middle of writing a file of rows: the one with this id, or (0) the one that writes."""

    def __init__(self, name, victim=0, number=1):
        super().__init__(name)
        self.victim, self.number = victim, number

    def write(self, name, data):
        marker = self.path.parent / "killed"
        if name.startswith(f"part-{self.number:08}") and not marker.exists():
            marker.touch()
            (self.path / store.TMP / "half").write_bytes(data[: len(data) // 2])
            os.kill(self.victim or os.getpid(), signal.SIGKILL)
            time.sleep(60)  # until Ray, which dies with its driver, ends this worker
        super().write(name, data)


def descendants(pid):
    """Return the processes below one, by id: their command lines."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, new = {}, {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new and child not in found}
        found |= {child: commands[child] for child in new}
    return found


def workers(pid):
    """Return the ids of the workers of the job that a process runs."""
    return sorted(child for child, command in descendants(pid).items() if command.startswith("ray::ShardWorker"))


def is_alive(pid):
    """Return whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
