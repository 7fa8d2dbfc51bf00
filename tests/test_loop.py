"""The training loop: its files, stopped and resumed runs, multi-scale, errors."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from spots import files, project

import gpudarknet as gd
from gpudarknet import data, evaluate
from gpudarknet.data.datafile import DataFile
from gpudarknet.errors import CfgError, DataError, TrainError, TrainWarning
from gpudarknet.train import datasets


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
    assert last.run.images == 48 and last.run.seconds == pytest.approx(sum(p.seconds for p in seen))
    assert last.run.waited == pytest.approx(sum(p.waited for p in seen)) and seen[0].waiting == 0 <= last.waiting < 1
    rows = list(csv.reader((tmp_path / "out" / "chart_x.csv").read_text().splitlines()))
    assert rows[0] == ["iteration", "loss", "average", "rate", "map"] and len(rows) == 7 and rows[6][4] == "0.5"
    assert gd.load_network(cfg, tmp_path / "out" / "x_final.weights", "numpy").seen == 48


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
        trainer.resume(weights)
        trainer.fit(source, tmp_path / "b", iterations=2)
        for name in ("x_last.npz", "x_last.weights"):
            assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, b = (arrays(tmp_path / run / "x_last.npz") for run in "ab")
    assert a.keys() == b.keys() and len(a) > 15
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    for name in ("x_final.weights", "chart_x.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_interruption_saves_the_state(tmp_path):
    source, cfg = project(tmp_path)

    def stop(progress):
        if progress.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(cfg).fit(source, tmp_path / "out", report=stop)
    assert int(arrays(tmp_path / "out" / "x_last.npz")["seen"]) == 24


def test_a_nan_does_not_reach_the_checkpoint(tmp_path):
    source, cfg = project(tmp_path)
    trainer = start(cfg)
    trainer.fit(source, tmp_path / "out", iterations=2)
    good = (tmp_path / "out" / "x_last.npz").read_bytes()
    trainer.net.weights[0]["kernel"][...] = np.nan
    with pytest.raises(TrainError, match=r"iteration 3: the output of layer 0 \[convolutional\] is not finite"):
        trainer.fit(source, tmp_path / "out")
    assert (tmp_path / "out" / "x_last.npz").read_bytes() == good


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
    measure = evaluate.validation_score(DataFile.read(source), trainer.net)
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
    line = cfg.read_text().split("\n").index("max_batches=0") + 1
    assert str(e.value) == f"{cfg}:{line}: [net] max_batches=0; set it to the number of iterations to train"
    (tmp_path / "none.txt").write_text("none.png\n")
    Path(source).write_text(Path(source).read_text().replace("list.txt", "none.txt"))
    with pytest.raises(TrainError, match="max_batches=0"):  # before anything else
        start(cfg).fit(source, tmp_path / "out")
    Path(source).write_text(Path(source).read_text().replace("none.txt", "list.txt"))
    cfg.write_text(cfg.read_text().replace("max_batches=0", "max_batches=5"))
    assert isinstance(datasets.training_set(DataFile.read(source), gd.load_network(cfg, backend="numpy")), data.DataSet)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("burn_in=6", "[net] burn_in=6: the training ends, at max_batches=5, before the full learning rate"),
        ("policy=steps\nscales=.1,.1\nsteps=5,6", "[net] step 6 is not reached: max_batches=5"),
        ("policy=steps\nscales=.1,.1,.1\nsteps=4,50,60", "[net] 50,60 of its steps are not reached: max_batches=5"),
        ("learning_rate=0", "[net] learning_rate=0: the weights do not change"),
    ],
)
def test_rates_that_are_not_reached(keys, message, tmp_path):
    source, cfg = project(tmp_path, end=5)
    lines = cfg.read_text().split("\n")
    lines = [line for line in lines if not line.startswith(("policy", "burn_in", "learning_rate"))]
    cfg.write_text("\n".join([lines[0], keys, *lines[1:]]))
    with pytest.warns(TrainWarning, match=re.escape(f"{cfg}:{1 + keys.count(chr(10)) + 1}: {message}")):
        start(cfg).fit(source, tmp_path / "out", iterations=1)


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


def test_heads_with_different_classes(tmp_path):
    """Darknet prints an error and trains, but the result detects nothing sensible."""
    source, cfg = project(tmp_path)
    other = "[convolutional]\nfilters=6\n[yolo]\nclasses=1\nnum=1\nanchors=9,9\n[route]\nlayers=-3\n"
    before, last = cfg.read_text().rsplit("[convolutional]", 1)
    cfg.write_text(f"{before}{other}[convolutional]{last}")
    with pytest.raises(DataError) as e:
        datasets.training_set(DataFile.read(source), gd.load_network(cfg, backend="numpy"))
    line = cfg.read_text().split("\n").index("classes=3") + 1
    assert str(e.value) == f"{cfg}:{line}: the heads have different class counts (1, 3); make them equal"


def test_images_without_any_label(tmp_path):
    source, cfg = project(tmp_path)
    for path in tmp_path.glob("[0-9].txt"):
        path.unlink()
    with pytest.raises(DataError) as e:
        start(cfg).fit(source, tmp_path / "out")
    assert str(e.value) == (
        f"{source}: `train`: none of its 4 images has a usable label, first {tmp_path}/0.txt: cannot be read (No such file or"
        " directory); its image counts as empty; a label file has the name of its image and .txt; listed with reasons in"
        f" {tmp_path}/out/bad_label.list"
    )
