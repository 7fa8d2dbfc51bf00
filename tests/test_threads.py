"""Threads: how many, and what decides it; all tasks run, errors reach the caller, training is bit-identical for any number."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import backend
from gpudarknet.backend import blas, machine, threads
from gpudarknet.backend.threads import ThreadPool
from gpudarknet.cli import main
from gpudarknet.data import Loader
from gpudarknet.errors import BackendError

VARIABLES = ("GPUDARKNET_THREADS", "OMP_NUM_THREADS", *blas.VARIABLES.values())

CFG = """
[net]
width=48
height=32
channels=3
batch=6
[convolutional]
batch_normalize=1
filters=20
size=3
stride=2
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=18
size=3
pad=1
activation=mish
[maxpool]
size=2
stride=2
[convolutional]
filters=18
size=1
activation=linear
[yolo]
mask=0,1,2
anchors=4,5, 8,9, 12,14
classes=1
num=3
"""


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_ctrl_c_while_a_worker_runs(late):
    """Before or after the signal of the worker is acquired: it ends, then the exception is raised, and the pool still works."""
    pool, begun, release, results = ThreadPool(2), threading.Event(), threading.Event(), []
    with pool:
        signal = pool._done[1]

    def acquire(timeout=-1):
        pool._done[1] = signal
        release.set()
        if late:
            signal.acquire()
        raise KeyboardInterrupt

    def work():
        begun.set()
        release.wait()
        results.append(1)

    with pool, pytest.raises(KeyboardInterrupt):
        pool._done[1] = SimpleNamespace(acquire=acquire, release=signal.release)
        pool.run_stages([[[begun.wait], [work]]])
    assert results == [1]
    for _ in range(3):
        pool.run_all([partial(results.append, 2)] * 4)
    assert results == [1] + [2] * 12


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_tasks_run(size):
    pool, done = ThreadPool(size), []
    for k in range(50):
        pool.run_all([lambda k=k, j=j: done.append((k, j)) for j in range(1 + k % 4)])
    assert sorted(done) == [(k, j) for k in range(50) for j in range(1 + k % 4)]


def test_a_task_may_run_tasks():
    pool, done = ThreadPool(2), []
    pool.run_all([lambda k=k: pool.run_all([lambda: done.append(k)] * 3) for k in range(4)])
    assert sorted(done) == sorted([0, 1, 2, 3] * 3)
    assert not pool.in_worker


def test_an_error_in_a_task_reaches_the_caller():
    def broken():
        raise IndexError("broken")

    pool, done = ThreadPool(2), []
    with pytest.raises(IndexError, match="broken"):
        pool.run_all([broken] * 3)
    pool.run_all([lambda: done.append(1)] * 5)
    assert len(done) == 5


def test_a_pool_may_be_resized():
    pool, names = ThreadPool(1), set()
    for size in (1, 4, 2, 3):
        pool.resize(size)
        barrier = threading.Barrier(size)

        def task(barrier=barrier):
            barrier.wait(10)  # so that each worker takes one
            names.add(threading.current_thread().name)

        names.clear()
        pool.run_all([task] * size)
        assert len(names) == size


def test_a_worker_that_cannot_start_leaves_the_pool_usable(monkeypatch):
    pool, done = ThreadPool(2), []
    with monkeypatch.context() as m:
        m.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start"):
            pool.run_all([lambda: None] * 2)
    thread = threading.Thread(
        target=lambda: pool.run_all([lambda: done.append(1)] * 2), daemon=True
    )  # another takes the lock
    thread.start()
    thread.join(10)
    assert done == [1, 1]


@pytest.fixture
def system(monkeypatch):
    """Return a function that sets environment, affinity, quota and BLAS."""

    def set_system(env=(), cores=8, quota=None, name="openblas", controlled=True):
        for variable in VARIABLES:
            monkeypatch.delenv(variable, raising=False)
        for variable, value in dict(env).items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr(machine, "affinity", lambda: set(range(cores)))
        monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
        library = SimpleNamespace(
            internal_api=name, filepath=f"/lib/lib{name}.so", version="1.2", threading_layer="pthreads"
        )
        monkeypatch.setattr(blas, "libraries", lambda: [library] if controlled else [])
        monkeypatch.setattr(machine, "numpy_blas", lambda: (name, ""))

    monkeypatch.setattr(threads, "_requested", None)
    return set_system


GPUDARKNET, OMP, OPENBLAS, MKL, BLIS, VECLIB = VARIABLES


@pytest.mark.parametrize(
    ("env", "cores", "quota", "name", "controlled", "threads_used", "workers"),
    [
        # environment, cores of the affinity, quota, BLAS, whether threadpoolctl controls it; threads used and why; workers
        ({}, 8, None, "openblas", True, (8, "affinity"), 8),
        ({}, 8, None, "mkl", True, (8, "affinity"), 8),
        ({}, 8, None, "blis", True, (8, "affinity"), 8),
        ({}, 8, None, "flexiblas", True, (8, "affinity"), 8),
        ({}, 8, None, "blas", False, (8, "affinity"), 8),  # the reference BLAS has no threads
        ({}, 8, None, "none", False, (8, "affinity"), 8),  # NumPy without BLAS
        ({}, 8, None, "accelerate", False, (8, "affinity"), 8),
        ({}, 8, None, "armpl", False, (8, "affinity"), 1),  # its threads would multiply with ours
        ({}, 1, None, "openblas", True, (1, "affinity"), 1),
        ({}, 8, 2.5, "openblas", True, (2, "cgroup quota"), 2),
        ({}, 8, 0.5, "openblas", True, (1, "cgroup quota"), 1),
        ({}, 2, 4.0, "openblas", True, (2, "affinity"), 2),
        ({GPUDARKNET: "3", OMP: "4", OPENBLAS: "5"}, 8, 2.0, "openblas", True, (3, GPUDARKNET), 3),
        ({GPUDARKNET: "16"}, 8, 2.0, "openblas", True, (16, GPUDARKNET), 16),  # as the user asks
        ({GPUDARKNET: "4"}, 8, None, "armpl", False, (4, GPUDARKNET), 4),
        ({GPUDARKNET: " 4 "}, 8, None, "openblas", True, (4, GPUDARKNET), 4),
        ({OMP: "4", OPENBLAS: "5"}, 8, None, "openblas", True, (4, OMP), 4),
        ({OMP: "4,2"}, 8, None, "openblas", True, (4, OMP), 4),  # nesting levels
        ({OMP: "4", MKL: "x"}, 8, None, "mkl", True, (4, OMP), 4),  # only what decides is read
        ({OPENBLAS: "5", MKL: "6", BLIS: "7", VECLIB: "3"}, 8, None, "openblas", True, (5, OPENBLAS), 5),
        ({OPENBLAS: "5", MKL: "6", BLIS: "7", VECLIB: "3"}, 8, None, "mkl", True, (6, MKL), 6),
        ({OPENBLAS: "5", MKL: "6", BLIS: "7", VECLIB: "3"}, 8, None, "blis", True, (7, BLIS), 7),
        ({OPENBLAS: "5", MKL: "6", BLIS: "7", VECLIB: "3"}, 8, None, "accelerate", False, (3, VECLIB), 3),
        ({OPENBLAS: "5", MKL: "6", BLIS: "7", VECLIB: "3"}, 8, None, "blas", False, (8, "affinity"), 8),
    ],
)
def test_the_number_of_threads(env, cores, quota, name, controlled, threads_used, workers, system):
    system(env, cores, quota, name, controlled)
    assert threads.thread_count() == threads_used
    assert gd.get_num_threads() == threads_used[0]
    assert threads.worker_count()[0] == threads.thread_pool.__wrapped__().size == workers


def test_an_argument_precedes_the_environment(system):
    system({GPUDARKNET: "3", OMP: "4"})
    before = threads.thread_pool().size
    try:
        gd.set_num_threads(5)
        assert threads.thread_count() == threads.worker_count() == (5, "set_num_threads")
        assert threads.thread_pool().size == 5
        gd.set_num_threads(np.int64(4))
        assert gd.get_num_threads() == 4
    finally:
        threads.thread_pool().resize(before)


@pytest.mark.parametrize("variable", [GPUDARKNET, OMP, OPENBLAS])
@pytest.mark.parametrize("value", ["0", "-1", "x", "", "2.5", ",2"])
def test_a_variable_that_is_no_number_is_an_error(variable, value, system):
    system({variable: value})
    with pytest.raises(BackendError) as e:
        gd.get_num_threads()
    assert str(e.value) == f"{variable}: '{value}' is not a number of threads; set it to 1 or more, or unset it"
    assert dict(backend.diagnose())["threads"] == str(e.value)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", None, True])
def test_an_argument_that_is_no_number_is_an_error(count, system):
    system()
    with pytest.raises(BackendError, match=r"^set_num_threads: .* is not a number of threads; pass 1 or more$"):
        gd.set_num_threads(count)
    assert gd.get_num_threads() == 8


def test_info_says_how_many_threads_and_why(system, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    system({OMP: "3"}, quota=2.0, name="mkl")
    assert main(["info"]) == 0
    rows = dict(line.rstrip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (rows["BLAS"], rows["cores"]) == ("mkl 1.2, pthreads, libmkl.so", "2 (cgroup quota)")
    assert rows["threads"] == "3 (OMP_NUM_THREADS)"
    system(name="armpl", controlled=False)
    rows = dict(backend.diagnose())
    assert (rows["cores"], rows["threads"]) == ("8 (affinity)", "1 (BLAS has threads of its own)")


def test_data_loading_uses_as_many_threads(system):
    system({GPUDARKNET: "3"})
    with Loader(SimpleNamespace(), 1, lambda k: (8, 8)) as loader:
        assert loader.workers == 3


@pytest.mark.parametrize(("env", "want"), [({GPUDARKNET: "3"}, 3), ({OMP: "2"}, 2), ({}, None)])
def test_a_process_uses_the_threads_it_is_given(env, want):
    """Environment, pool and running threads of a real process; `predict` limits the BLAS that NumPy loaded."""
    code = """
import threading
import numpy as np
import gpudarknet as gd
from gpudarknet.backend.threads import thread_pool
from gpudarknet.io.resources import bundled_cfg
net = gd.load_network(bundled_cfg("digits"), backend="numpy")
net.predict(np.zeros((1, *net.net.input), np.float32))
workers = sum(t.name.startswith("gpudarknet-") for t in threading.enumerate())
print(gd.get_num_threads(), thread_pool().size, workers + 1)
"""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], env=clean | env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(want or machine.available_cores()[0])] * 3


def test_a_loaded_network_follows_set_num_threads(tmp_path, system):
    """Its program is recorded again, and computes what one compiled for that number does."""
    (tmp_path / "x.cfg").write_text(CFG)
    net = gd.load_network(tmp_path / "x.cfg", backend="numpy", seed=5)
    x = np.random.default_rng(4).random((1, 3, 32, 48), np.float32)
    reference = net.predict(x, engine="reference")
    before, pool = threads.thread_pool().size, threads.thread_pool()
    try:
        for count in (1, 3, 2, 1):
            gd.set_num_threads(count)
            (y,) = net.predict(x)
            assert net.program(1).workers == pool.size == count
            new = gd.load_network(tmp_path / "x.cfg", backend="numpy", seed=5)
            assert np.array_equal(y, new.predict(x)[0])
            assert np.abs(y - reference[0]).max() <= 1e-5 * np.abs(reference[0]).max()
    finally:
        pool.resize(before)


def test_the_blas_library_is_looked_up_once(monkeypatch):
    """`predict` limits BLAS each time; looking for the library takes milliseconds."""
    with threads.thread_pool():
        pass
    monkeypatch.setattr("threadpoolctl.ThreadpoolController", None)
    with threads.thread_pool():
        assert blas.limit_threads() == [1] * len(blas.libraries())


def test_a_process_forked_during_a_computation_has_its_blas_threads():
    """In the child, a pool that another thread of the parent was in is free, and BLAS has its number again."""
    pool, entered, leave = ThreadPool(2), threading.Event(), threading.Event()

    def compute():
        with pool:
            entered.set()
            leave.wait()

    before = [lib.get_num_threads() for lib in blas.libraries()]
    thread = threading.Thread(target=compute)
    thread.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            results, counts = [], [lib.get_num_threads() for lib in blas.libraries()]
            pool.run_all([partial(results.append, k) for k in range(3)])
            code = 0 if counts == before and sorted(results) == [0, 1, 2] else 2
        finally:
            os._exit(code)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_task_cannot_change_the_number_of_threads(system):
    with pytest.raises(
        BackendError, match=r"^set_num_threads: called by a task of the thread pool; call it before or "
    ):
        threads.thread_pool().run_all([partial(gd.set_num_threads, 2)] * 2)


def test_training_does_not_depend_on_the_number_of_threads(monkeypatch, tmp_path):
    (tmp_path / "x.cfg").write_text(CFG)
    rng = np.random.default_rng(4)
    x, truth = rng.random((6, 3, 32, 48), np.float32), np.zeros((6, 12), np.float32)
    truth[:, :5] = rng.uniform(0.2, 0.6, (6, 5)) * [1, 1, 1, 1, 0]
    results = []
    for pool in (ThreadPool(1), ThreadPool(2), ThreadPool(3)):
        monkeypatch.setattr(backend, "thread_pool", lambda pool=pool: pool)
        net = gd.load_network(tmp_path / "x.cfg", backend="numpy", seed=5)
        trainer = gd.Trainer(net)
        costs = [trainer.step(x, truth) for _ in range(3)]
        net.save_weights(tmp_path / "x.weights")
        results.append((costs, (tmp_path / "x.weights").read_bytes()))
    assert results[0] == results[1] == results[2]
