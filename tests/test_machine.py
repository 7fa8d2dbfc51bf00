"""Facts about the machine: this process's cores, from its affinity and from the quotas of its cgroups, and NumPy's BLAS."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from gpudarknet.backend import machine


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "want"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # cgroup v2
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),  # the host's top cgroup has no cpu.max
        ("0::/a/b\n", {"cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "300000 100000"}, 3.0),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, None),  # another process's
        ("0::/docker/1\n", {"cpu.max": "200000 100000"}, 2.0),  # a container's cgroup, mounted as the top one
        ("0::/../1\n", {"cpu.max": "200000 100000"}, 2.0),  # outside its namespace
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),  # v1
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (
            "5:memory:/a\n4:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000", "cpuset/cpu.max": "1 1"},
            3.0,
        ),
        ("", {"cpu.max": "100000 100000"}, None),
    ],
)  # fmt: skip
def test_the_quota_is_the_smallest_of_the_own_cgroup_and_its_ancestors(own, files, want, tmp_path):
    write(tmp_path, {"self": own})
    write(tmp_path / "cgroup", files)
    assert machine.cpu_quota(tmp_path / "cgroup", tmp_path / "self") == want


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert machine.cpu_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("cores", "quota", "want"),
    [
        (8, None, (8, "affinity")),
        (8, 16.0, (8, "affinity")),
        (8, 8.0, (8, "affinity")),
        (8, 3.5, (3, "cgroup quota")),
        (8, 0.5, (1, "cgroup quota")),
        (1, 0.5, (1, "cgroup quota")),
    ],
)
def test_available_cores_are_the_smaller_of_affinity_and_quota(cores, quota, want, monkeypatch):
    monkeypatch.setattr(machine, "affinity", lambda: set(range(cores)))
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.available_cores() == want


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_counts_the_cores_of_its_affinity():
    code = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from gpudarknet import get_num_threads
from gpudarknet.backend import machine
print(len(machine.affinity()), machine.available_cores()[0], get_num_threads())
"""
    env = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout.split()
        == [b"1"] * 3
    )


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({"name": "mkl-sdl", "found": True, "version": "2025.3"}, ("mkl-sdl", "2025.3")),
        ({"name": "blas", "found": True}, ("blas", "")),
        ({"name": "none"}, ("none", "")),  # NumPy leaves out what is false
        ({}, ("none", "")),
    ],
)
def test_the_blas_numpy_was_built_with(config, want, monkeypatch):
    monkeypatch.setattr(np, "show_config", lambda mode: {"Build Dependencies": {"blas": config}})
    assert machine.numpy_blas.__wrapped__() == want
