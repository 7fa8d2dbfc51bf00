"""The folder of a training: what cannot be written, full disks, and the lock."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from spots import project

import gpudarknet as gd
from gpudarknet.cli import main
from gpudarknet.errors import DarknetError, DataWarning, TrainError, TrainWarning
from gpudarknet.io import lock
from gpudarknet.train import TrainingFolder


def start(cfg):
    """Return the trainer of a new network."""
    return gd.Trainer(gd.load_network(cfg, backend="numpy", seed=3))


def contents(path):
    """Return the content of each file of a folder."""
    return {p.name: p.read_bytes() for p in Path(path).iterdir()}


# Folders


@pytest.fixture
def no_data(monkeypatch):
    """Make it an error to read the training data."""

    def read(*args):
        raise AssertionError("data was read")

    monkeypatch.setattr("gpudarknet.train.training_set", read)
    monkeypatch.setattr("gpudarknet.train.datasets.training_set", read)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")


def refused(tmp_path, capsys, backup):
    """Return the error that Python and the command line give for a folder, before they read data."""
    source, cfg = project(tmp_path)
    with pytest.raises(TrainError) as e:
        start(cfg).fit(source, backup)
    source.write_text(source.read_text().replace(f"{tmp_path}/backup", str(backup)))
    assert main(["detector", "train", str(source), str(cfg)]) == 2
    assert capsys.readouterr() == ("", f"error: {e.value}\n")
    return str(e.value)


def test_a_folder_that_cannot_be_made(tmp_path, capsys, no_data):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        (Path("/proc/none"), "No such file or directory"),
        (tmp_path / ("a" * 300), "File name too long"),
    ):
        assert refused(tmp_path, capsys, path) == (
            f"{path}: cannot be used as the weights folder ({reason}); change backup in the .data file"
        )


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no folder that nobody can write to")
def test_a_folder_that_cannot_be_written(tmp_path, capsys, no_data):
    message = refused(tmp_path, capsys, "/sys/kernel")
    assert message.startswith("/sys/kernel/.x.lock: cannot be written (") and "check the folder and the disk" in message


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_without_permission_or_space(tmp_path, capsys, no_data, monkeypatch, code):
    """The lock is a real write: opening it fails, or writing to it. Nothing is left behind."""

    def full(*args, **options):
        class File:
            name = args[0]

            def fileno(self):
                return handle.fileno()

            def truncate(self, size):
                raise OSError(code, os.strerror(code))

            def close(self):
                handle.close()

        handle = open(*args, **options)  # noqa: SIM115 - the caller closes it
        return File()

    def denied(*args, **options):
        raise OSError(code, os.strerror(code), str(args[0]))

    monkeypatch.setattr(lock, "open", full if code == errno.ENOSPC else denied, raising=False)
    out = tmp_path / "out"
    assert refused(tmp_path, capsys, out) == (
        f"{out}/.x.lock: cannot be written ({os.strerror(code)}); check the folder and the disk, or change backup in the"
        " .data file"
    )
    assert not out.exists()


@pytest.mark.parametrize("name", ["x_last.weights", "x_last.npz", "x_1000.weights", "chart_x.csv"])
def test_a_folder_in_place_of_a_file(tmp_path, capsys, no_data, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    assert refused(tmp_path, capsys, tmp_path / "out") == (
        f"{tmp_path}/out/{name}: is a folder, so the training cannot write this file; remove it"
    )


def test_a_folder_that_cannot_be_looked_at(tmp_path, capsys, no_data, monkeypatch):
    def denied(self, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(
        TrainError, match=r"^secret: cannot be used as the weights folder \(Permission denied\); change"
    ):
        TrainingFolder("secret", "x").__enter__()


def test_a_folder_that_is_not_open_is_opened(tmp_path):
    source, cfg = project(tmp_path)
    place = TrainingFolder(tmp_path / "new", "x")
    start(cfg).fit(source, place, iterations=1)
    assert place.weights("last").is_file() and not place.is_open and not list(place.path.glob(".*"))
    with place:
        start(cfg).fit(source, place, iterations=1)
        assert place.is_open


def test_a_base_is_a_file_name():
    with pytest.raises(TrainError, match=r"^base=a/b: must be a file name; choose the folder with `folder`$"):
        TrainingFolder("out", "a/b")


def test_home(tmp_path, monkeypatch):
    source, cfg = project(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    start(cfg).fit(source, "~/deep/out", iterations=1)
    assert (tmp_path / "deep" / "out" / "x_last.weights").is_file() and not (tmp_path / "~").exists()
    with pytest.raises(
        TrainError, match=r"^~nobody-of-this-name/x: cannot be used as the weights folder \(.*\); write its"
    ):
        TrainingFolder("~nobody-of-this-name/x", "x")


def test_bad_samples_are_listed_in_the_folder(tmp_path, monkeypatch):
    source, cfg = project(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.txt").write_text("0 nonsense\n")
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.warns(DataWarning, match=r"bad_label.list$"):
        start(cfg).fit(source, "out")
    assert {p.name for p in tmp_path.iterdir()} == before | {"out"}
    assert "0.txt" in (tmp_path / "out" / "bad_label.list").read_text()


# Full disks


WRITES = {  # of a run with two checkpoints, after two iterations and three: the file that each call of os.fsync or os.replace
    # concerns; the chart, which is drawn at the end, is not among them
    1: "x_2.weights", 2: "x_2.weights", 3: "chart_x.csv", 4: "chart_x.csv", 5: "x_last.next.npz", 6: "x_last.next.npz",
    7: "x_last.weights", 8: "x_last.weights", 9: "x_last.npz", 10: "x_best.weights", 11: "x_best.weights", 12: "chart_x.csv",
    13: "chart_x.csv", 14: "x_last.next.npz", 15: "x_last.next.npz", 16: "x_last.weights", 17: "x_last.weights",
    18: "x_last.npz", 19: "x_final.weights", 20: "x_final.weights",
}  # fmt: skip


@pytest.mark.parametrize("fatal", WRITES)
def test_a_full_disk_at_each_write(tmp_path, monkeypatch, fatal):
    """The error names the file, the last checkpoint is complete, and nothing else is left."""
    source, cfg = project(tmp_path, end=3)
    monkeypatch.setattr("gpudarknet.train.history.History.draw", lambda self: None)
    calls = 0

    def failing(function):
        def run(*args):
            nonlocal calls
            calls += 1
            if calls >= fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args)

        return run

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(os, "replace", failing(os.replace))
        with pytest.raises(DarknetError) as e:
            start(cfg).fit(source, out, save_last=2, save_weights=2, measure=lambda net: 0.5)
    assert str(e.value).startswith(
        f"{out / WRITES[fatal]}: cannot be written (No space left on device); check the folder"
    )
    assert not list(out.glob(".*"))
    weights = out / "x_last.weights"
    if fatal <= 8:
        assert not weights.exists() and not (out / "x_last.npz").exists()
        return
    trainer = start(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.resume(weights)
    assert trainer.iteration == (2 if fatal <= 17 else 3)
    trainer.fit(source, out)
    assert (out / "x_final.weights").is_file()
    assert (
        fatal == 18 or not (out / "x_last.next.npz").exists()
    )  # 18: the state of the last checkpoint has only this name


LIMITED = """
import resource, signal, sys
from gpudarknet.cli import main
limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.parametrize(
    ("limit", "name"), [(40, ".x.lock"), (300, "chart_x.csv"), (1000, "x_last.next.npz"), (1000, "x_best.weights")]
)
def test_files_that_may_not_grow(tmp_path, limit, name):
    """A real limit in the middle of writing: one line of error, the files as they were."""
    source, cfg = project(tmp_path, end=8)
    start(cfg).fit(source, tmp_path / "backup", iterations=2)
    before = contents(tmp_path / "backup")
    assert len(before["chart_x.csv"]) < 300 and 1000 < len(before["x_last.weights"]) < len(before["x_last.npz"])
    words = ["detector", "train", str(source), str(cfg), str(tmp_path / "backup" / "x_last.weights")]
    words += ["-map"] if name == "x_best.weights" else []
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(gd.__file__).parents[1]), *sys.path]),
        "GPUDARKNET_BACKEND": "numpy",
    }
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *words], capture_output=True, text=True, env=env, check=False
    )
    path = tmp_path / "backup" / name
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"error: {path}: cannot be written (File too large); check the folder"), done.stderr
    assert done.stderr.count("\n") == 1
    after = contents(tmp_path / "backup")
    assert after.keys() - {"chart_x.png"} == before.keys() - {"chart_x.png"}
    assert after["x_last.npz"] == before["x_last.npz"] and after["x_last.weights"] == before["x_last.weights"]


# The lock


def test_a_second_training_is_refused(tmp_path, capsys, monkeypatch):
    """In the same process, by a thread and by the command line; another base or folder is free."""
    source, cfg = project(tmp_path)
    out = tmp_path / "backup"
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    problems = []

    def second():
        try:
            start(cfg).fit(source, out)
        except TrainError as e:
            problems.append(str(e))

    with TrainingFolder(out, "x"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        owner = (out / ".x.lock").read_text()
        assert owner.startswith(f"process {os.getpid()} on {platform.node()}, since 20")
        expected = f"{out}: a training of x is running here ({owner}); stop it, or change backup in the .data file"
        assert problems == [expected]
        assert main(["detector", "train", str(source), str(cfg), str(out / "x_last.weights")]) == 2
        assert capsys.readouterr().err == f"error: {expected}\n"
        start(cfg).fit(source, out, base="y", iterations=1)
    assert contents(out).keys() - {"chart_y.png"} == {"y_last.weights", "y_last.npz", "chart_y.csv"}
    start(cfg).fit(source, out, iterations=1)


HOLDER = """
import sys, gpudarknet.train
with gpudarknet.train.TrainingFolder(sys.argv[1], "x"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_dead_process_holds_no_lock(tmp_path):
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(gd.__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True) as child:
        assert child.stdout.readline() == "locked\n"
        with (
            pytest.raises(TrainError, match=rf"is running here \(process {child.pid} on "),
            TrainingFolder(tmp_path, "x"),
        ):
            pass
        child.kill()
        child.wait()
    assert (tmp_path / ".x.lock").is_file()
    with TrainingFolder(tmp_path, "x"):
        assert (tmp_path / ".x.lock").read_text().startswith(f"process {os.getpid()} ")
    assert not list(tmp_path.iterdir())


def test_a_lock_that_its_owner_has_just_removed_is_not_one(tmp_path, monkeypatch):
    """Between opening the file and locking it: the lock of a file without a name protects nothing."""
    lock_file, removed = lock.lock, []

    def late(file):
        if not removed:
            removed.append(os.fstat(file.fileno()).st_ino)
            os.unlink(file.name)
        lock_file(file)

    monkeypatch.setattr(lock, "lock", late)
    with TrainingFolder(tmp_path, "x"):
        assert (tmp_path / ".x.lock").is_file()
        with pytest.raises(TrainError, match="is running here"), TrainingFolder(tmp_path, "x"):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def missing(file, flags):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.warns(TrainWarning) as warned, TrainingFolder(tmp_path, "x"):
        pass
    assert str(warned[0].message) == (
        f"{tmp_path}/.x.lock: cannot be locked (No locks available); do not start a second training in this folder"
    )


def test_what_killed_runs_left_is_removed(tmp_path):
    """Temporary files of this training, not those of another one, and nothing that only looks similar."""
    stale = (".x_last.weights.abcdefgh.weights", ".x_last.next.npz.abcd_fgh.npz", ".x_1000.weights.12345678.weights",
             ".chart_x.csv.abcdefgh.csv")  # fmt: skip
    kept = (".x_y_last.weights.abcdefgh.weights", ".y_last.weights.abcdefgh.weights", ".x_last.weights.abc.weights",
            ".x_last.weights.abcdefgh.npz", "x_last.weights.abcdefgh.weights")  # fmt: skip
    for name in (*stale, *kept):
        (tmp_path / name).write_text("")
    with TrainingFolder(tmp_path, "x"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == set(kept)
