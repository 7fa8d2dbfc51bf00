"""Checkpoints: killed, stopped and resumed runs, and weights that are not those of the state next to them."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from spots import project

import gpudarknet as gd
from gpudarknet.cli import main
from gpudarknet.errors import TrainError, TrainWarning, WeightsError
from gpudarknet.train import checkpoint, loop, signals


def start(cfg, **options):
    """Return the trainer of a new network."""
    return gd.Trainer(gd.load_network(cfg, backend="numpy", seed=3), **options)


def resumed(cfg, weights, **options):
    """Return a trainer that continues from a weights file."""
    trainer = start(cfg, **options)
    trainer.resume(weights)
    return trainer


def arrays(path):
    with np.load(path) as file:
        return {k: v for k, v in file.items()}


def same_end(folder):
    """Compare the files of the runs in a and b."""
    a, b = (arrays(folder / run / "x_last.npz") for run in "ab")
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    names = {p.name for p in (folder / "a").iterdir()} - {"chart_x.png", "x_last.npz"}
    assert names == {p.name for p in (folder / "b").iterdir()} - {"chart_x.png", "x_last.npz"}
    for name in names:
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes(), name


# Killed


KILLED = """
import os, signal, sys, gpudarknet as gd
cfg, data, out, resume, fatal = sys.argv[1:]
calls = 0
def dying(function):
    def run(*args):
        global calls
        calls += 1
        if calls == int(fatal):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return run
os.fsync, os.replace = dying(os.fsync), dying(os.replace)
trainer = gd.Trainer(gd.load_network(cfg, backend="numpy", seed=3))
resume = f"{out}/x_last.weights" if resume == "1" else None
trainer.fit(data, out, save_last=1, resume=resume, report=lambda p: print(p.iteration, flush=True))
"""


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """Return a function that runs KILLED in tmp_path/b: run(resume, fatal, **options of Popen)."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(gd.__file__).parents[1]), *sys.path]))

    def run(resume, fatal):
        command = [sys.executable, "-c", KILLED, *(str(tmp_path / name) for name in ("x.cfg", "x.data", "b"))]
        return subprocess.Popen([*command, str(resume), str(fatal)], stdout=subprocess.PIPE, text=True)

    return run


def test_killed_and_resumed_equals_never_killed(tmp_path, killed):
    """SIGKILL in a run that writes all the time: the files are intact, and the resumed run ends with the same bits."""
    source, cfg = project(tmp_path, end=8)
    start(cfg).fit(source, tmp_path / "a", save_last=1)
    child = killed(0, 0)
    for line in child.stdout:
        if int(line) == 3:
            time.sleep(0.004)
            child.send_signal(signal.SIGKILL)
            break
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "b" / "x_final.weights").exists()
    gd.load_network(cfg, tmp_path / "b" / "x_last.weights", "numpy")
    child = killed(1, 0)
    child.communicate()
    assert child.returncode == 0
    same_end(tmp_path)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    """The files of a run of four iterations."""
    folder = tmp_path_factory.mktemp("never_killed")
    source, cfg = project(folder, end=4)
    start(cfg).fit(source, folder / "a", save_last=1)
    return folder / "a"


@pytest.mark.parametrize("fatal", range(15, 22))
def test_killed_between_two_writes(tmp_path, killed, never_killed, fatal):
    """SIGKILL in the third checkpoint: curve, new state and weights are synced and renamed, then the state gets its name."""
    source, cfg = project(tmp_path, end=4)
    shutil.copytree(never_killed, tmp_path / "a")
    child = killed(0, fatal)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    weights = tmp_path / "b" / "x_last.weights"
    assert (tmp_path / "b" / "x_last.next.npz").exists() is (fatal >= 19)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = resumed(cfg, weights)
    assert trainer.iteration == (3 if fatal == 21 else 2)
    trainer.fit(source, tmp_path / "b", save_last=1)
    same_end(tmp_path)


def test_numbered_weights_are_written_before_the_checkpoint_of_their_iteration(tmp_path, monkeypatch):
    """A run that is killed in between repeats the iteration, so that they are not missing."""
    source, cfg = project(tmp_path)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        start(cfg).fit(source, tmp_path / "a", save_last=1, save_weights=1)
    assert (tmp_path / "a" / "x_1.weights").is_file()


# Stopped by a signal


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_a_signal_ends_the_iteration_and_saves_it(tmp_path, number, error):
    source, cfg = project(tmp_path)
    start(cfg).fit(source, tmp_path / "a")
    trainer, before = start(cfg), signal.getsignal(number)
    step = trainer.step

    def disturbed(x, truth):
        if trainer.iteration == 2:
            os.kill(os.getpid(), number)
        return step(x, truth)

    trainer.step = disturbed
    with pytest.raises(error) as e:
        trainer.fit(source, tmp_path / "b")
    assert error is KeyboardInterrupt or e.value.code == 128 + number
    assert trainer.iteration == 3 and signal.getsignal(number) is before
    trainer = resumed(cfg, tmp_path / "b" / "x_last.weights")
    assert trainer.iteration == 3
    trainer.fit(source, tmp_path / "b")
    same_end(tmp_path)


def test_an_ignored_signal_stays_ignored(tmp_path):
    """As under nohup."""
    source, cfg = project(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        last = start(cfg).fit(source, tmp_path / "out", report=lambda p: os.kill(os.getpid(), signal.SIGHUP))
        assert last.iteration == 6 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_same_signal_again_does_not_interrupt_the_iteration(tmp_path, monkeypatch, number):
    """A process and its group, or a terminal and its shell, get it: only a later Ctrl-C asks for more."""
    source, cfg = project(tmp_path)
    trainer, step = start(cfg), gd.Trainer.step

    def disturbed(self, x, truth):
        for _ in range(3 if self.iteration == 1 else 0):
            os.kill(os.getpid(), number)
        return step(self, x, truth)

    monkeypatch.setattr(gd.Trainer, "step", disturbed)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer.fit(source, tmp_path / "a")
    assert resumed(cfg, tmp_path / "a" / "x_last.weights").iteration == 2
    monkeypatch.setattr(signals, "REPEAT_SECONDS", -1)  # as if they were far apart
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        start(cfg).fit(source, tmp_path / "b")
    assert (tmp_path / "b" / "x_last.weights").exists() is (number != signal.SIGINT)  # half an iteration is not saved


def scores(folder):
    """Return the scores of a run by iteration."""
    with open(folder / "chart_x.csv", newline="") as file:
        return {int(row[0]): float(row[4]) for row in list(csv.reader(file))[1:] if row[4]}


@pytest.mark.parametrize("at", [3, 5])
def test_a_signal_abandons_a_validation_that_the_resumed_run_makes_up(tmp_path, monkeypatch, at):
    monkeypatch.setattr(loop, "MIN_SCORE_INTERVAL", 3)
    source, cfg = project(tmp_path, end=5)
    start(cfg).fit(source, tmp_path / "a", measure=trained, save_last=2)
    assert scores(tmp_path / "a").keys() == {3, 5}
    trainer, ended = start(cfg), []

    def measure(net):
        if trainer.iteration == at:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
        ended.append(trainer.iteration)
        return trained(net)

    with pytest.raises(SystemExit):
        trainer.fit(source, tmp_path / "b", measure=measure, save_last=2)
    assert at not in ended and trainer.iteration == at and at not in scores(tmp_path / "b")
    assert not (tmp_path / "b" / "x_final.weights").exists()
    start(cfg).fit(source, tmp_path / "b", measure=trained, save_last=2, resume=tmp_path / "b" / "x_last.weights")
    same_end(tmp_path)


def trained(net):
    """Return a score that depends on the weights."""
    return float(np.abs(net.weights[0]["kernel"]).mean())


# Weights that are not those of the state


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: `out` of four iterations, with weights after two; `other` of four with another seed, `newer` of six."""
    folder = tmp_path_factory.mktemp("runs")
    source, cfg = project(folder)
    start(cfg).fit(source, folder / "out", save_last=2, save_weights=2, iterations=4)
    start(cfg, seed=9).fit(source, folder / "other", iterations=4)
    start(cfg, seed=9).fit(source, folder / "newer")
    return folder


@pytest.fixture
def run(tmp_path, runs):
    """A copy of the runs, and their data set."""
    project(tmp_path)
    for name in ("out", "other", "newer"):
        shutil.copytree(runs / name, tmp_path / name)
    return tmp_path


CASES = {
    "rolled back": ("out/x_2.weights", 2),
    "of another run, at the same iteration": ("other/x_last.weights", 4),
    "newer": ("newer/x_last.weights", 6),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["resume", "fit", "command"])
def test_weights_of_another_state_are_used_as_they_are(run, capsys, monkeypatch, case, way):
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    copied, iteration = CASES[case]
    weights, cfg = run / "out" / "x_last.weights", run / "x.cfg"
    shutil.copy(run / copied, weights)
    expected = gd.load_network(cfg, weights, "numpy")
    message = (
        f"{weights.with_suffix('.npz')}: is the state of other weights, of iteration 4; training continues from {weights},"
        f" iteration {iteration}, with momentum 0"
    )
    (run / "x.data").write_text((run / "x.data").read_text().replace("/backup", "/out"))
    if way == "command":
        assert main(["detector", "train", str(run / "x.data"), str(cfg), str(weights)]) == 0
        out, err = capsys.readouterr()
        assert err.splitlines()[0] == f"warning: {message}" and (
            f"iterations {iteration + 1} to 6" in out or iteration == 6
        )
        return
    trainer = start(cfg)
    with pytest.warns(TrainWarning) as warned:
        if way == "resume":
            trainer.resume(weights)
        else:
            trainer.fit(run / "x.data", run / "out", resume=weights, iterations=0)
    assert [str(w.message) for w in warned] == [message] and trainer.iteration == iteration
    for own, other in zip(trainer.net.weights, expected.weights, strict=True):
        for name, a in own.items():
            np.testing.assert_array_equal(a, other[name], err_msg=name)
    assert all(not m.any() for own in trainer.momentum for m in own.values())


def test_the_state_of_another_optimizer_is_not_used(run):
    weights, cfg = run / "out" / "x_last.weights", run / "x.cfg"
    cfg.write_text(cfg.read_text().replace("mosaic=1", "mosaic=1\nadam=1"))
    trainer = start(cfg)
    with pytest.warns(TrainWarning) as warned:
        trainer.resume(weights)
    assert str(warned[0].message) == (
        f"{run}/out/x_last.npz: belongs to another cfg (layer 0 [convolutional] differs); training continues from {weights},"
        " iteration 4, with momentum 0"
    )
    assert all(not m.any() for own in trainer.momentum for m in own.values())


def test_weights_without_a_state(run):
    weights = run / "out" / "x_2.weights"
    with pytest.warns(TrainWarning) as warned:
        trainer = resumed(run / "x.cfg", weights)
    assert trainer.iteration == 2 and trainer.extra == {}
    assert str(warned[0].message) == (
        f"{run}/out/x_2.npz: does not exist; training continues from {weights}, iteration 2, with momentum 0"
    )
    trainer.net.seen = 0
    trainer.net.save_weights(run / "new.weights")
    assert resumed(run / "x.cfg", run / "new.weights").extra == {}  # at iteration 0 there is no momentum to lose


def test_a_link_to_the_weights_of_a_training(run):
    link = run / "latest.weights"
    link.symlink_to(run / "out" / "x_last.weights")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = resumed(run / "x.cfg", link)
    assert trainer.iteration == 4 and any(m.any() for own in trainer.momentum for m in own.values())


@pytest.mark.parametrize("content", [b"", b"PK", "truncated", "foreign", "a folder"])
def test_a_state_that_cannot_be_read_is_not_used(run, content):
    """The weights are complete and are used, with a warning; so is a complete state beside a broken one."""
    weights, cfg = run / "out" / "x_last.weights", run / "x.cfg"
    state = weights.with_suffix(".npz")
    complete = state.read_bytes()
    (run / "out" / "x_last.next.npz").write_bytes(b"PK")
    assert resumed(cfg, weights).extra
    (run / "out" / "x_last.next.npz").unlink()
    if content == "a folder":
        state.unlink()
        state.mkdir()
    elif content == "foreign":
        np.savez(state, a=np.zeros(3))
    else:
        state.write_bytes(complete[: len(complete) // 2] if content == "truncated" else content)
    with pytest.warns(TrainWarning) as warned:
        trainer = resumed(cfg, weights)
    assert (
        trainer.iteration == 4
        and trainer.extra == {}
        and [str(w.message) for w in warned]
        == [
            f"{state}: is not a checkpoint of this program; training continues from {weights}, iteration 4, with momentum 0"
        ]
    )


def test_an_npz_is_restored_as_it_is(run):
    (run / "out" / "x_last.weights").unlink()
    trainer = resumed(run / "x.cfg", run / "out" / "x_last.npz")
    assert trainer.iteration == 4 and set(trainer.extra) == {"average", "best"}


def test_what_cannot_be_resumed(run):
    with pytest.raises(
        WeightsError, match=r"none.weights: cannot be read \(No such file or directory\); check the path$"
    ):
        resumed(run / "x.cfg", run / "none.weights")
    with pytest.raises(TrainError) as e:
        start(run / "x.cfg").fit(run / "x.data", run / "out", resume=run / "none.npz")
    assert str(e.value) == f"{run}/none.npz: does not exist, so training cannot be resumed; check the path"
    (run / "out" / "x_last.npz").write_bytes(b"PK")
    with pytest.raises(TrainError, match=r"x_last.npz: is not a checkpoint of this program; remove it to start over$"):
        resumed(run / "x.cfg", run / "out" / "x_last.npz")


EXTRA_LAYERS = {
    "dontload": ("[dropout]", "[convolutional]\nfilters=6\nsize=1\nactivation=linear\ndontload=1\n[dropout]"),
    "shared": (
        "[dropout]",
        "[convolutional]\nfilters=6\nsize=3\npad=1\nactivation=leaky\n[convolutional]\nfilters=6\nsize=3\npad=1\n"
        "activation=leaky\nshare_index=-1\n[dropout]",
    ),
    "recurrent": ("[dropout]", "[crnn]\nsize=3\npad=1\noutput=6\nhidden=6\nactivation=leaky\n[dropout]"),
    "scales": ("batch_normalize=1\n", "batch_normalize=1\ndontloadscales=1\n"),
}


@pytest.mark.parametrize("layers", EXTRA_LAYERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.filterwarnings("ignore:.*fp16 saves memory")
def test_every_kind_of_weights_is_recognized(tmp_path, layers, precision):
    """Layers that are written but not read, weights of several layers, maps in float16."""
    source, cfg = project(tmp_path)
    cfg.write_text(cfg.read_text().replace(*EXTRA_LAYERS[layers]))
    start(cfg, precision=precision).fit(source, tmp_path / "a", iterations=4)
    start(cfg, precision=precision).fit(source, tmp_path / "b", iterations=2)
    start(cfg, precision=precision).fit(source, tmp_path / "b", iterations=2, resume=tmp_path / "b" / "x_last.weights")
    same_end(tmp_path)


# What may differ


def test_a_seed_is_used_from_there_on(run, capsys, monkeypatch):
    weights, cfg = run / "out" / "x_last.weights", run / "x.cfg"
    assert resumed(cfg, weights).seed == 0
    with pytest.warns(TrainWarning) as warned:
        trainer = resumed(cfg, weights, seed=7)
    message = f"{run}/out/x_last.npz: was trained with seed 0; from iteration 5 on the seed is 7"
    assert trainer.seed == 7 and str(warned[0].message) == message
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    (run / "x.data").write_text((run / "x.data").read_text().replace("/backup", "/out"))
    assert main(["detector", "train", str(run / "x.data"), str(cfg), str(weights), "-seed", "7"]) == 0
    assert capsys.readouterr().err == f"warning: {message}\n"
    assert int(arrays(run / "out" / "x_last.npz")["seed"]) == 7
    assert resumed(cfg, weights).seed == 7


@pytest.mark.filterwarnings("ignore:.*fp16 saves memory")
def test_fp16_after_fp32_starts_with_its_own_loss_scale(run):
    trainer = resumed(run / "x.cfg", run / "out" / "x_last.weights", precision="fp16")
    assert trainer.loss_scale.dynamic and trainer.loss_scale.value == 4096


def test_another_batch_continues_at_the_same_iteration(run):
    cfg = run / "x.cfg"
    cfg.write_text(cfg.read_text().replace("batch=8", "batch=16"))
    trainer = resumed(cfg, run / "out" / "x_last.weights")
    last = trainer.fit(run / "x.data", run / "out")
    assert (last.iteration, last.images) == (6, 4 * 8 + 2 * 16)
    assert resumed(cfg, run / "out" / "x_last.weights").iteration == 6


def test_the_best_of_another_metric_is_not_kept(run):
    out = run / "out"
    start(run / "x.cfg").fit(run / "x.data", out, measure=lambda net: 0.9, metric="mAP@0.50", iterations=6)
    (out / "x_best.weights").unlink()
    cfg = run / "x.cfg"
    cfg.write_text(cfg.read_text().replace("max_batches=6", "max_batches=7"))
    with pytest.warns(TrainWarning) as warned:
        last = start(cfg).fit(
            run / "x.data", out, measure=lambda net: 0.4, metric="mAP@0.75", resume=out / "x_last.weights"
        )
    assert last.best == 0.4 and (out / "x_best.weights").is_file()
    assert str(warned[0].message) == (
        f"{out}/x_last.npz: has the best mAP@0.50, the run measures mAP@0.75; its best starts anew"
    )


def test_in_a_folder_without_best_weights_the_best_starts_anew(run):
    """Otherwise a training that is continued in another folder might never write them."""
    start(run / "x.cfg").fit(run / "x.data", run / "out", measure=lambda net: 0.9, iterations=4)
    weights = run / "out" / "x_last.weights"
    last = start(run / "x.cfg").fit(run / "x.data", run / "elsewhere", measure=lambda net: -40.0, resume=weights)
    assert last.best == -40 and (run / "elsewhere" / "x_best.weights").is_file()


def test_two_fits_are_one(run):
    """A trainer keeps the average loss, the best score and when it was measured; also from `resume`."""
    source, cfg = run / "x.data", run / "x.cfg"
    start(cfg).fit(source, run / "a", measure=trained)
    trainer = start(cfg)
    for _ in range(2):
        trainer.fit(source, run / "b", measure=trained, iterations=2)
    trainer = start(cfg)
    trainer.resume(run / "b" / "x_last.weights")
    trainer.fit(source, run / "b", measure=trained)
    same_end(run)


def test_an_interrupted_network_has_the_size_of_its_cfg(tmp_path):
    """Not the last random one: it may be measured, or trained on, afterwards."""
    source, cfg = project(tmp_path, random=1)
    trainer, sizes = start(cfg), set()

    def stop(progress):
        sizes.add((progress.width, progress.height))
        if progress.width != 64:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(source, tmp_path / "out", report=stop)
        assert (trainer.net.width, trainer.net.height) == (64, 32)
    assert sizes != {(64, 32)}


def test_without_a_state_the_best_comes_from_the_curve(run):
    """A worse score must not replace the best weights."""
    cfg, out = run / "x.cfg", run / "out"
    start(cfg).fit(run / "x.data", out, measure=lambda net: 0.9)
    best = (out / "x_best.weights").read_bytes()
    (out / "x_last.npz").unlink()
    cfg.write_text(cfg.read_text().replace("max_batches=6", "max_batches=7"))
    with pytest.warns(TrainWarning, match="does not exist"):
        last = start(cfg).fit(run / "x.data", out, measure=lambda net: 0.4, resume=out / "x_last.weights")
    assert last.best == 0.9 and (out / "x_best.weights").read_bytes() == best


def test_older_checkpoints(run):
    """Without iteration and with two values of the loss scale."""
    path = run / "out" / "x_last.npz"
    state, extra = checkpoint.read(path)
    del state["iteration"]
    state["scale"] = state["scale"][:2]
    checkpoint.write(path, state, extra)
    assert resumed(run / "x.cfg", run / "out" / "x_last.weights").iteration == 4
