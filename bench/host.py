"""Measure how long Python takes per call of `predict` and `detect`: the host's share of inference at batch 1.

    python -m bench.host                          # on a GPU
    python tests/cuda_emulator -m bench.host      # on the emulated one, whose own time is subtracted

A network of a few small layers with three [yolo] heads: the time on the host does not depend on the number of layers, which
are one CUDA graph. On a GPU the times include those of the CUDA functions, and exclude the device's: calls are only queued,
except that `detect` waits for its boxes.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from gpudarknet import Detector, backend, cfg, load_network

CALLS, ROUNDS = 50, 9
BOXES = 5  # above the threshold
HEAD = """[convolutional]
filters=255
size=1
activation=linear
[yolo]
mask={mask}
anchors=4,6, 8,8, 12,16, 16,12, 20,20, 24,24, 28,28, 30,30, 32,32
classes=80
num=9
"""
CFG = """[net]
width=32
height=32
channels=3
[convolutional]
filters=16
size=3
stride=16
pad=1
activation=leaky
""" + "[route]\nlayers=0\n".join(HEAD.format(mask=f"{i},{i + 1},{i + 2}") for i in (0, 3, 6))


def emulator() -> ModuleType | None:
    """Return the CUDA emulator if this process runs on it."""
    module = sys.modules.get("cuda_emulator")
    return module if module is not None and module.installed() else None


def python_seconds(call: Callable[[], object], finish: Callable[[], object]) -> float:
    """Return the seconds of a call, of the fastest round; `finish` runs after some calls, untimed.

    On the emulator: CPU time of this thread, without that of the emulator, whose kernels and gemms do not run meanwhile: they
    would leave the caches cold. Results stay those of the calls before.
    """
    emulated, times = emulator(), []
    clock = time.thread_time if emulated else time.perf_counter
    for _ in range(ROUNDS):
        before = emulated.counters()["nanoseconds"] if emulated else 0
        begin = clock()
        for _ in range(CALLS):
            call()
        seconds = clock() - begin
        if emulated:
            seconds -= (emulated.counters()["nanoseconds"] - before) / 1e9
        times.append(seconds / CALLS)
        finish()
    return min(times)


def cases(be: backend.Backend) -> dict[str, Callable[[], Any]]:
    """Return what is measured: name -> call."""
    network = load_network(cfg.parse(CFG, "host.cfg"), backend=be)
    for own in network.weights:
        if own and len(own["bias"]) == 255:  # every box is of class 0, with its objectness as probability
            own["bias"].reshape(3, 85)[:, 5:] = be.asarray(np.where(np.arange(80) == 0, 30, -30).astype(np.float32))
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    detector = Detector(network)
    x, batch = network.input(np.zeros((1, 3, 32, 32), np.float32)), detector.upload([image])
    rows = network.decode(network.predict(batch), 0.0)
    thresh = float(np.sort(rows[:, 1])[-BOXES - 1])
    return {
        "predict, an array": lambda: network.predict(x),
        "upload": lambda: detector.upload([image]),
        "predict, an uploaded image": lambda: network.predict(batch),
        "detect, an uploaded image": lambda: network.detect(batch, thresh).read(),
        "Detector.detect, an image": lambda: detector.detect(image, thresh),
    }


def main() -> None:
    """Print the times; with -profile, also where Python spends them."""
    be = backend.get("cupy")
    if emulator():  # its allocator, which tells it what the pool does, is Python
        be.xp.cuda.set_allocator(be.xp.cuda.MemoryPool().malloc)
    synchronize = be.xp.cuda.Device().synchronize
    for name, call in cases(be).items():
        for _ in range(3):
            call()
        synchronize()
        module = emulator()
        if module:
            module.configure(compute=0)
        print(f"{name:<30}{1e6 * python_seconds(call, synchronize):8.1f} us")
        if "-profile" in sys.argv:
            profile = cProfile.Profile()
            profile.runcall(lambda call=call: [call() for _ in range(300)])
            pstats.Stats(profile).sort_stats("tottime").print_stats(28)
        if module:
            module.configure(compute=1)


if __name__ == "__main__":
    main()
