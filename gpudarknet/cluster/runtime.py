"""Ray: starting or joining it, workers with their share of the machine, and their deaths.

Only what Ray documents as stable is used: `ray.init`, `ray.remote`, `ray.wait`, `ray.get`, `ray.put`, `ray.kill`, `ray.nodes`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..backend.threads import VARIABLE, set_num_threads
from ..errors import BackendError, DarknetError, DataError
from ..train.signals import stop

LOGS = "/tmp/ray/session_latest/logs"  # of Ray, on each machine
ENVIRONMENT = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # lines of workers and of Ray itself, which its log files have; we report deaths
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU sees none
    "RAY_worker_niceness": "0",  # in place of 15: a local job is the user's, as its own process would be
    "RAY_USAGE_STATS_ENABLED": "0",
}
MEMORY = 256 << 20  # bytes of a local Ray's object store, besides those that the caller asks for
CONNECT_SECONDS = 10.0
_lock, _blocks, _forked = threading.Lock(), 0, False  # _blocks: those that use the Ray which the first of them started


class Runtime:
    """Ray, connected. address: as given. may_grow: machines may join it. Resources are those of now."""

    def __init__(self, ray: Any, address: str, may_grow: bool = False):
        self.ray, self.address, self.may_grow = ray, address, may_grow

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return float(self.ray.cluster_resources().get("GPU", 0))

    def room(self, threads: int, gpus: float) -> int:
        """Return how many workers with so many cores and GPUs fit on all nodes."""
        return sum(int(min(c / threads, g / gpus if gpus else c)) for g, c in self.nodes())

    def check_room(self, threads: int, gpus: float) -> None:
        """Raise DataError if no node has so many cores and GPUs."""
        if not self.room(threads, gpus):
            largest = max(self.nodes(), default=(0.0, 0.0))
            machines = "; or give workers, which wait until machines with them join" if self.may_grow else ""
            raise DataError(
                f"{self.address}: no node has {cores(threads, gpus)} for a worker (the largest has"
                f" {cores(int(largest[1]), largest[0])}); choose fewer threads or gpus_per_worker{machines}"
            )

    def nodes(self) -> list[tuple[float, float]]:
        """Return the GPUs and cores of each living node."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [(node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in nodes]

    def start(self, cls: type, *args: Any, threads: int, gpus: float = 0) -> Any:
        """Start a worker, an instance of cls in a process of its own, with so many cores and GPUs; return Ray's handle.

        It is not restarted when it dies: its calls raise, and who owns its work starts another. An exception in `__init__`
        counts as a death, so what can fail belongs into a method.
        """
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        return self.ray.remote(**options)(cls).remote(*args)

    def stop(self, worker: Any) -> None:
        """End a worker, which may be dead."""
        self.ray.kill(worker, no_restart=True)

    def result(self, reference: Any) -> Any:
        """Return what a call returned. Raises WorkerDiedError, and what the call raised."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as e:
            if isinstance(e.cause, DarknetError):
                raise e.cause from None
            raise  # a bug: with the worker's traceback
        except errors.OutOfMemoryError:
            raise WorkerDiedError("its machine ran out of memory") from None
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as e:
            raise WorkerDiedError(reason(e)) from None
        except errors.RayError as e:
            raise DarknetError(f"{self.address}: Ray failed: {reason(e)}; see its logs in {LOGS}") from None


class WorkerDiedError(Exception):
    """A worker, or the machine below it, died before it returned a result; the text says what Ray knows."""


def reason(error: Exception) -> str:
    """Return what an error of Ray says in one sentence: the first of its last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip().partition(". ")[0].rstrip(".")


def cores(threads: int, gpus: float) -> str:
    """Return a worker's share in words."""
    return f"{threads} core{'s' * (threads != 1)}" + (f" and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")


def limit_threads(threads: int) -> None:
    """Let this process, a worker, and those that it starts compute with so many threads, in OpenCV too."""
    import cv2

    os.environ[VARIABLE] = str(threads)
    set_num_threads(threads)
    cv2.setNumThreads(threads)


def import_ray() -> Any:
    """Return the module ray. Raises BackendError if it is not installed."""
    for name, value in ENVIRONMENT.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)  # what the user has set is kept
    try:
        import ray
    except ImportError:
        raise BackendError("cluster: Ray is not installed; pip install 'gpudarknet[ray]'") from None
    return ray


@contextmanager
def connect(address: str | None = None, *, cpus: int = 0, memory: int = 0) -> Iterator[Runtime]:
    """Connect to Ray while the block runs.

    address: "local" starts Ray on this machine, without its dashboard, for the block; "auto" is the cluster that this machine
    belongs to, HOST:PORT another one's head; None is what this process is connected to, else "local". cpus: at least so many are
    offered to workers by a local Ray, even if the machine has fewer. memory: bytes that will be put into its object store. Blocks
    of several threads share one Ray. Raises BackendError if Ray is not installed or does not answer.
    """
    global _blocks
    ray = import_ray()
    if _forked:
        raise BackendError(
            "cluster: this process was forked from one that is connected to Ray; start it with multiprocessing's spawn"
        )
    with _lock:
        connected, own = ray.is_initialized(), _blocks > 0
        if not connected:
            start_ray(ray, address, cpus, memory)
            own = True
        elif address not in (None, "auto") and not (own and address == "local"):
            raise BackendError(
                f"{address}: this process is connected to Ray already; call ray.shutdown(), or leave out address"
            )
        _blocks += own
    try:
        yield Runtime(ray, address or ("Ray" if connected else "local"), address not in (None, "local") or not own)
    finally:
        with _lock:
            _blocks -= own
            if own and not _blocks:
                ray.shutdown()


def start_ray(ray: Any, address: str | None, cpus: int, memory: int) -> None:
    """Start Ray, or join the cluster at an address. Raises BackendError."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "address": address or "local"}
    if address in (None, "local"):
        options |= {"num_cpus": max(os.cpu_count() or 1, cpus), "object_store_memory": MEMORY + memory}
        options |= {"include_dashboard": False}
    elif address != "auto" and "://" not in str(address):
        check_listens(ray, str(address))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        ray.shutdown()
        first = str(e).strip().split("\n")[0].partition(". ")[0].rstrip(". ")
        raise BackendError(f"{options['address']}: cannot connect to Ray: {first}; see `ray status`") from None
    except SystemExit:  # ray.init handles SIGTERM
        stop(signal.SIGTERM)
    except BaseException:
        ray.shutdown()
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def check_listens(ray: Any, address: str) -> None:
    """Raise BackendError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        number = int(port)
        host = ray.util.get_node_ip_address() if host in ("127.0.0.1", "localhost") else host  # where Ray looks for it
        socket.create_connection((host.strip("[]"), number), CONNECT_SECONDS).close()
    except (ValueError, OverflowError):
        raise BackendError(f"{address}: is not an address; use local, auto or HOST:PORT of Ray's head") from None
    except OSError as e:
        raise BackendError(
            f"{address}: Ray's head does not answer ({e.strerror or e}); `ray start --head` prints its address"
        ) from None


def _after_fork() -> None:
    """Note that a connection was copied by a fork, without the threads that serve it."""
    global _forked, _lock
    _lock = threading.Lock()
    _forked = _forked or ("ray" in sys.modules and sys.modules["ray"].is_initialized())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
