"""Ray: starting or joining it, workers with their share of the machine, and their deaths.

Only what Ray documents as stable is used: `ray.init`, `ray.remote`, `ray.wait`, `ray.get`, `ray.put`, `ray.kill`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import BackendError, DataError
from ..train.signals import handled, stop

LOGS = "/tmp/ray/session_latest/logs"  # of Ray, on each machine
ENVIRONMENT = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # lines of workers and of Ray itself, which its log files have; we report deaths
    "RAY_worker_niceness": "0",  # in place of 15: a local job is the user's, as its own process would be
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU sees none
    "RAY_USAGE_STATS_ENABLED": "0",
}
MEMORY = 256 << 20  # bytes of a local Ray's object store, besides those that the caller asks for
log = logging.getLogger("gpudarknet")


class Runtime:
    """Ray, connected. local: it was started for this process, and runs on this machine only. address: as given.

    Nodes may come and go; `cpus` and `gpus` are those of now.
    """

    def __init__(self, ray: Any, local: bool, address: str):
        self.ray, self.local, self.address = ray, local, address

    @property
    def cpus(self) -> int:
        """CPU cores of all nodes."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return float(self.ray.cluster_resources().get("GPU", 0))

    def check_fits(self, threads: int, gpus: float) -> None:
        """Raise DataError if no node can ever run a worker with so many threads and GPUs."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
            largest: dict[str, float] = max(
                nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={}
            )
            raise DataError(
                f"{self.address}: no node has {threads} cores and {gpus:g} GPUs for a worker (the largest has"
                f" {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}); choose fewer threads or gpus_per_worker"
            )

    def start(self, cls: type, *args: Any, threads: int, gpus: float = 0) -> Any:
        """Start a worker, an instance of cls in a process of its own, with so many cores and GPUs; return Ray's handle.

        It is not restarted when it dies: its calls raise, and who owns its work starts another.
        """
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        return self.ray.remote(**options)(cls).remote(*args)

    def stop(self, worker: Any) -> None:
        """End a worker, which may be dead."""
        self.ray.kill(worker, no_restart=True)

    def is_death(self, error: BaseException) -> bool:
        """Return whether a call's error is the death of its worker or of the machine below it, not an exception in it."""
        errors = self.ray.exceptions
        return isinstance(error, errors.RayError) and not isinstance(error, errors.RayTaskError)

    def cause(self, error: BaseException) -> BaseException:
        """Return the exception that a call raised."""
        return getattr(error, "cause", None) or error


def import_ray() -> Any:
    """Return the module ray. Raises BackendError if it is not installed."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
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
    offered to workers by a local Ray, even if the machine has fewer. memory: bytes that will be put into its object store. Raises
    BackendError if Ray is not installed or does not answer.
    """
    ray = import_ray()
    if ray.is_initialized():
        if address not in (None, "auto"):
            raise BackendError(
                f"{address}: this process is connected to Ray already; call ray.shutdown(), or leave out address"
            )
        yield Runtime(ray, False, "Ray")
        return
    local = address in (None, "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        options |= {"num_cpus": max(os.cpu_count() or 1, cpus), "object_store_memory": MEMORY + memory}
        options |= {"include_dashboard": False, "address": "local"}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as e:
        reason = str(e).split("\n")[0]
        raise BackendError(
            f"{address or 'local'}: Ray does not answer ({reason}); is it started there? `ray status`"
        ) from None
    try:
        if threading.current_thread() is threading.main_thread():
            with handled(("SIGTERM",), stop):  # ray.init has taken it
                yield Runtime(ray, local, address or "local")
        else:
            yield Runtime(ray, local, address or "local")
    finally:
        ray.shutdown()
