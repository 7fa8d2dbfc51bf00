"""The training loop: its files, interrupted, resumed and killed runs, multi-scale, charts, errors."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from spots import files, project

import gpudarknet as gd
from gpudarknet import data
from gpudarknet.data.datafile import DataFile
from gpudarknet.errors import CfgError, DataError, TrainError, TrainWarning
from gpudarknet.train import datasets, history


def start(cfg, weights=None, **options):
    """Load a network and return its trainer."""
    net = gd.load_network(cfg, weights, "numpy")
    return gd.Trainer(net, clear=weights is None, **options)


def arrays(path):
    with np.load(path) as file:
        return {k: v for k, v in file.items()}


def test_a_whole_training_writes_its_files(tmp_path):
    source, cfg = project(tmp_path)
    seen = []
    scores = iter((0.5,))
    trainer = start(cfg)
    last = trainer.fit(
        source, tmp_path / "out", save_last=2, save_weights=4, report=seen.append, measure=lambda net: next(scores)
    )
    names = {p.name for p in (tmp_path / "out").iterdir()}
    expected = "x_last.weights x_last.npz x_4.weights x_best.weights x_final.weights chart_x.csv".split()
    assert names - {"chart_x.png"} == set(expected)
    assert [p.iteration for p in seen] == [1, 2, 3, 4, 5, 6] and last is seen[-1]
    assert (last.map, last.best, last.images, last.left, last.width) == (0.5, 0.5, 48, 0, 64)
    assert seen[1].average == pytest.approx(0.9 * seen[0].loss + 0.1 * seen[1].loss)
    rows = list(csv.reader((tmp_path / "out" / "chart_x.csv").read_text().splitlines()))
    assert rows[0] == ["iteration", "loss", "average", "rate", "map"] and len(rows) == 7 and rows[6][4] == "0.5"
    assert gd.load_network(cfg, tmp_path / "out" / "x_final.weights", "numpy").seen == 48


def test_a_chart(tmp_path):
    pytest.importorskip("matplotlib")
    history.draw_chart(tmp_path / "c.png", [(1, 5.0, 5.0, 0.1, ""), ("2", "4.0", "4.9", "0.1", "0.25")])
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("extra", ["", "adam=1"])
def test_stopped_and_resumed_equals_never_stopped(tmp_path, extra):
    """Batch norm, dropout, mosaic, several sizes, the running average: the final state is bit-identical."""
    source, cfg = project(tmp_path, net=extra, random=1)
    start(cfg).fit(source, tmp_path / "a")
    start(cfg).fit(source, tmp_path / "b", iterations=2)
    for _ in range(2):
        weights = tmp_path / "b" / "x_last.weights"
        trainer = gd.Trainer(gd.load_network(cfg, backend="numpy", seed=5))  # the other way to resume
        trainer.fit(source, tmp_path / "c", resume=weights, iterations=2)
        trainer = start(cfg, weights)
        extra = trainer.resume(weights)
        trainer.fit(source, tmp_path / "b", iterations=2, extra=extra)
        for name in ("x_last.npz", "x_last.weights"):
            assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, b = (arrays(tmp_path / run / "x_last.npz") for run in "ab")
    assert a.keys() == b.keys() and len(a) > 15
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    for name in ("x_final.weights", "chart_x.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


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
weights = f"{out}/x_last.weights" if resume == "1" else None
net = gd.load_network(cfg, weights, "numpy")
trainer = gd.Trainer(net, clear=weights is None)
extra = trainer.resume(weights) if weights else {}
trainer.fit(data, out, save_last=1, extra=extra, report=lambda p: print(p.iteration, flush=True))
"""


def test_killed_and_resumed_equals_never_killed(tmp_path):
    """SIGKILL in a run that writes all the time: the files are intact, and the resumed run ends with the same bits."""
    source, cfg = project(tmp_path, end=14)
    start(cfg).fit(source, tmp_path / "a", save_last=1)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(gd.__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(cfg), str(source), str(tmp_path / "b")]
    child = subprocess.Popen([*command, "0", "0"], stdout=subprocess.PIPE, env=env, text=True)
    for line in child.stdout:
        if int(line) == 5:
            time.sleep(0.004)
            child.send_signal(signal.SIGKILL)
            break
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "b" / "x_final.weights").exists()
    gd.load_network(cfg, tmp_path / "b" / "x_last.weights", "numpy")
    subprocess.run([*command, "1", "0"], check=True, stdout=subprocess.DEVNULL, env=env)
    same_end(tmp_path)


def same_end(folder):
    """Compare the files of the runs in a and b."""
    a, b = (arrays(folder / run / "x_last.npz") for run in "ab")
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    for name in ("x_final.weights", "x_last.weights", "chart_x.csv"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes()
    assert not list((folder / "b").glob(".*"))


def test_killed_while_writing(tmp_path):
    """SIGKILL at each step of writing the third checkpoint: chart, state and weights are each synced, then renamed."""
    source, cfg = project(tmp_path, end=4)
    start(cfg).fit(source, tmp_path / "a", save_last=1)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(gd.__file__).parents[1]), *sys.path])}
    for fatal in range(13, 19):
        out = tmp_path / "b"
        command = [sys.executable, "-c", KILLED, str(cfg), str(source), str(out)]
        done = subprocess.run([*command, "0", str(fatal)], stdout=subprocess.DEVNULL, env=env, check=False)
        assert done.returncode == -signal.SIGKILL and list(out.glob(".*"))  # the incomplete file
        weights = out / "x_last.weights"
        trainer = start(cfg, weights)
        assert trainer.iteration == 2
        trainer.fit(source, out, save_last=1, extra=trainer.resume(weights))
        same_end(tmp_path)
        shutil.rmtree(out)


def test_an_interruption_saves_the_state(tmp_path):
    source, cfg = project(tmp_path)

    def stop(progress):
        if progress.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(cfg).fit(source, tmp_path / "out", report=stop)
    assert int(arrays(tmp_path / "out" / "x_last.npz")["seen"]) == 24


def test_ctrl_c_ends_the_iteration_and_saves_it(tmp_path):
    """SIGINT during a step: the iteration completes, and the resumed run ends like an uninterrupted one."""
    source, cfg = project(tmp_path)
    start(cfg).fit(source, tmp_path / "a")
    trainer, before = start(cfg), signal.getsignal(signal.SIGINT)
    step = trainer.step

    def disturbed(x, truth):
        if trainer.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(x, truth)

    trainer.step = disturbed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(source, tmp_path / "b")
    assert trainer.iteration == 3 and signal.getsignal(signal.SIGINT) is before
    weights = tmp_path / "b" / "x_last.weights"
    trainer = start(cfg, weights)
    trainer.fit(source, tmp_path / "b", extra=trainer.resume(weights))
    assert (tmp_path / "a" / "x_final.weights").read_bytes() == (tmp_path / "b" / "x_final.weights").read_bytes()


def test_a_nan_does_not_reach_the_checkpoint(tmp_path):
    source, cfg = project(tmp_path)
    trainer = start(cfg)
    trainer.fit(source, tmp_path / "out", iterations=2)
    good = (tmp_path / "out" / "x_last.npz").read_bytes()
    trainer.net.weights[0]["kernel"][...] = np.nan
    with pytest.raises(TrainError, match=r"iteration 3: the output of layer 0 \[convolutional\] is not finite"):
        trainer.fit(source, tmp_path / "out")
    assert (tmp_path / "out" / "x_last.npz").read_bytes() == good


def test_a_state_of_other_weights_is_ignored(tmp_path):
    source, cfg = project(tmp_path)
    trainer = start(cfg)
    trainer.fit(source, tmp_path / "out", iterations=2)
    weights = tmp_path / "out" / "x_last.weights"
    trainer.net.seen += 100
    trainer.net.save_weights(weights)
    other = start(cfg, weights)
    with pytest.warns(TrainWarning) as warned:
        assert other.resume(weights) == {}
    assert (
        str(warned[0].message)
        == f"{weights.with_suffix('.npz')}: is older than {weights} and is ignored; momentum starts at 0"
    )
    with pytest.warns(TrainWarning) as warned:
        assert other.resume(tmp_path / "none.weights") == {}
    assert str(warned[0].message) == f"{tmp_path}/none.npz: does not exist; momentum starts at 0"
    assert start(cfg).resume(tmp_path / "none.weights") == {}  # at iteration 0 there is no momentum to lose


def test_a_short_training_has_no_average(tmp_path):
    source, cfg = project(tmp_path, net="ema_alpha=0.9")
    with pytest.warns(TrainWarning) as warned:
        start(cfg).fit(source, tmp_path / "out", iterations=1)
    assert str(warned[0].message) == (
        f"{cfg}: ema_alpha has no effect if max_batches is below 2000: the average runs from half of the training to 1000"
        " iterations before its end"
    )


def test_the_loss_decreases(tmp_path):
    """Forty iterations on four images: only a check that the parts fit together."""
    source, cfg = project(tmp_path, end=40)
    (tmp_path / "x.cfg").write_text(cfg.read_text().replace("0.001", "0.003").replace("mosaic=1", ""))
    seen = []
    trainer = start(cfg)
    measure = datasets.validation_score(DataFile.read(source), trainer.net)
    trainer.fit(source, tmp_path / "out", report=seen.append, measure=measure)
    assert np.mean([p.loss for p in seen[-5:]]) < 0.5 * np.mean([p.loss for p in seen[:5]])
    assert seen[-1].map is not None and 0 <= seen[-1].map <= 1


def test_a_classifier(tmp_path):
    """Classes by path, crops, a [connected] layer that is trained."""
    paths = files(tmp_path, 3)
    named = [
        str(Path(p).rename(tmp_path / f"{word}.png")) for p, word in zip(paths, ("red", "green", "blue"), strict=True)
    ]
    (tmp_path / "list.txt").write_text("\n".join(named))
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "x.data").write_text(f"classes=3\ntrain={tmp_path}/list.txt\nlabels={tmp_path}/labels.txt\n")
    text = "[net]\nwidth=20\nheight=16\nchannels=3\nbatch=2\nmax_batches=3\n"
    text += "[connected]\noutput={}\nactivation=linear\n[softmax]\n"
    (tmp_path / "x.cfg").write_text(text.format(3))
    trainer = start(tmp_path / "x.cfg")
    before = trainer.net.weights[0]["kernel"].copy()
    trainer.fit(tmp_path / "x.data", tmp_path / "out")
    assert not np.array_equal(before, trainer.net.weights[0]["kernel"])
    (tmp_path / "x.cfg").write_text(text.format(4))
    with pytest.raises(DataError) as e:
        start(tmp_path / "x.cfg").fit(tmp_path / "x.data")
    assert str(e.value) == f"{tmp_path}/x.data: has 3 labels, but {tmp_path}/x.cfg has 4 classes"


def test_refusals(tmp_path):
    source, cfg = project(tmp_path, end=0)
    with pytest.raises(TrainError) as e:
        start(cfg).fit(source, tmp_path / "out")
    assert str(e.value) == f"{cfg}: [net] max_batches=0; set it to the number of iterations to train"
    cfg.write_text(cfg.read_text().replace("max_batches=0", "max_batches=5"))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError) as e:
        start(cfg).fit(source, tmp_path / "out", resume=tmp_path / "x_last.weights")
    assert str(e.value) == f"{tmp_path}/x_last.npz: does not exist, so training cannot be resumed; check the path"
    with pytest.raises(
        TrainError,
        match=r"file: cannot be used as the weights folder \(File exists\); change backup in the .data file$",
    ):
        start(cfg).fit(source, tmp_path / "file")
    assert isinstance(datasets.training_set(DataFile.read(source), gd.load_network(cfg, backend="numpy")), data.DataSet)


def test_tracks_make_sequences(tmp_path):
    """A recurrent network trains on batches of [step][sequence], with the track in the truth's sixth column."""
    source, cfg = project(tmp_path, end=2, net="track=1\ntime_steps=3\naugment_speed=4\n")
    cfg.write_text(cfg.read_text().replace("[dropout]", "[conv_lstm]\noutput=6\npad=1\nsize=3\n[dropout]"))
    (tmp_path / "1.txt").write_text("0 .5 .5 .2 .2 77\n")
    trainer = start(cfg)
    dataset = datasets.training_set(DataFile.read(source), trainer.net)
    assert dataset.sequences == data.Sequences(steps=3, count=8, speed=4) and trainer.batch == 24
    truths = [dataset.sample(0, k, number, (64, 32))[1].reshape(-1, 6) for k in range(10) for number in range(6)]
    tracks = {row[5] for truth in truths for row in truth if row[2]}
    assert 77 in tracks and len(tracks) > 3
    assert np.isfinite(trainer.fit(source, tmp_path / "out").loss)


@pytest.mark.parametrize("how", ["batch=1", "batch=4\nsubdivisions=4", "mosaic=0\nmixup=2", "cutmix=1"])
def test_keys_that_darknet_refuses_or_warns_of(how, tmp_path):
    """train_detector: batch=1 is an error, below 8 a warning; load_data_detection: cutmix is for classifiers."""
    source, cfg = project(tmp_path)
    text = (
        cfg.read_text()
        .replace("batch=8\nsubdivisions=1\n", "")
        .replace("mosaic=1\n", "" if "mosaic" in how else "mosaic=1\n")
    )
    cfg.write_text(text.replace("[net]\n", f"[net]\n{how}\n" + ("" if "batch" in how else "batch=8\n")))
    net = gd.load_network(cfg, backend="numpy")
    advice = "set batch=64, and subdivisions so that a part of it fits into memory"
    if how == "batch=1":
        with pytest.raises(CfgError) as e:
            datasets.training_set(DataFile.read(source), net)
        assert (
            str(e.value) == f"{cfg}:2: [net] batch=1: a detector cannot be trained on one image per iteration; {advice}"
        )
        gd.Trainer(net).step(
            np.zeros((1, 3, 32, 64), np.float32), np.zeros((1, 200 * 6))
        )  # one step is anybody's choice
        return
    with pytest.warns(TrainWarning) as caught:
        augment = datasets.training_set(DataFile.read(source), net).augment
    message = {
        "batch=4\nsubdivisions=4": f"2: [net] batch=4: is small for training; {advice}",
        "mosaic=0\nmixup=2": "3: [net] mixup=2: cutmix is for classifiers; for this detector images are not mixed",
        "cutmix=1": "2: [net] cutmix=1: cutmix is for classifiers; for this detector only mosaic is used",
    }[how]
    assert [str(w.message) for w in caught] == [f"{cfg}:{message}"]
    assert (augment.mosaic, augment.mixup) == ("mosaic" not in how, False)


def test_images_without_any_label(tmp_path):
    source, cfg = project(tmp_path)
    for path in tmp_path.glob("[0-9].txt"):
        path.unlink()
    with pytest.raises(DataError) as e:
        start(cfg).fit(source, tmp_path / "out")
    assert str(e.value) == (
        f"{source}: `train`: none of its 4 images has a usable label, first {tmp_path}/0.txt: cannot be read (No such file or"
        " directory); its image counts as empty; a label file has the name of its image and .txt"
    )
