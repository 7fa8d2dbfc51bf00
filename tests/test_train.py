"""Training: seven recorded runs of the original program, optimizers, learning rates, freezing, checkpoints."""

from __future__ import annotations

import ctypes
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.backend import threads
from gpudarknet.errors import CfgError, CfgWarning, DataError, TrainError, TrainWarning
from gpudarknet.train import lr_schedule

DATA = Path(__file__).parent / "data"
RUNS = json.loads((DATA / "train.json").read_text())
ARRAYS = np.load(DATA / "train.npz")
NET = "[net]\nwidth=8\nheight=6\nchannels=3\nbatch=4\nlearning_rate=0.1\nmomentum=0.9\ndecay=0.01\n"
CONV = "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=leaky\n"
LAST = "[convolutional]\nfilters=5\nsize=1\nactivation=linear\n"
END = "[avgpool]\n[softmax]\n"


def start(record):
    """Draw the initial weights of a recorded run, as one flat array in file order."""
    rng = np.random.default_rng(record["seed"])
    drawn = []
    for kind, n, fan_in in record["recipe"]:
        drawn.append(rng.normal(0, 0.1, n) if kind == "bias" else rng.normal(0, 1 / math.sqrt(fan_in), n))
    return np.concatenate(drawn).astype(np.float32)


def flat(net):
    """Return all weights in file order as one array."""
    return np.concatenate([a.reshape(-1) for own in net.weights for a in own.values()])


def fill(net, values):
    """Overwrite all weights in file order."""
    for own in net.weights:
        for a in own.values():
            a[...], values = values[: a.size].reshape(a.shape), values[a.size :]


@pytest.mark.parametrize("name", RUNS)
def test_the_original_programs_results(name):
    """Costs of five steps, weights after steps 1, 2 and 5: 1e-4 relative, and of the largest change. Float32 on two BLAS."""
    record = RUNS[name]
    net = gd.load_network(cfg.parse(record["cfg"]), backend="numpy")
    first = start(record)
    fill(net, first)
    x = np.random.default_rng(record["seed"] + 1).random((5, 4, *net.net.input), np.float32)
    trainer, changes = gd.Trainer(net, emulate_darknet_cpu_bugs=True), iter(ARRAYS[f"{name}/dw"])
    for step, cost in enumerate(record["costs"]):
        assert trainer.step(x[step], ARRAYS[f"{name}/y"][step]) == pytest.approx(cost, rel=1e-4)
        if step in (0, 1, 4):
            wanted = next(changes)
            np.testing.assert_allclose(flat(net) - first, wanted, atol=1e-4 * np.abs(wanted).max())


def network(text, seed=1):
    """Build a small network from cfg text on NumPy."""
    return gd.load_network(cfg.parse(text), backend="numpy", seed=seed)


def batch(net, seed=0, N=4, K=5):
    """Draw images (N, C, H, W) and one-hot truths (N, K)."""
    rng = np.random.default_rng(seed)
    return rng.random((N, *net.net.input), np.float32), np.eye(K, dtype=np.float32)[rng.integers(K, size=N)]


def train(net, steps=1, seed=0, **options):
    """Train without emulated bugs for some steps with a batch each; return the trainer."""
    trainer = gd.Trainer(net, **options)
    for step in range(steps):
        trainer.step(*batch(net, seed + step))
    return trainer


def changed(net, before):
    """Return for each layer which of its weights changed."""
    return [sorted(k for k, a in own.items() if not np.array_equal(a, old[k]))
            for own, old in zip(net.weights, before, strict=True)]  # fmt: skip


def copy(net):
    return [{k: a.copy() for k, a in own.items()} for own in net.weights]


def test_cpu_bugs_are_emulated_by_step_in_fp32_only():
    net = network(NET + CONV + LAST + END)
    with pytest.raises(TrainError) as e:
        gd.Trainer(net, emulate_darknet_cpu_bugs=True, precision="fp16")
    assert (
        str(e.value)
        == "Trainer: Darknet's CPU build has no fp16; omit emulate_darknet_cpu_bugs, or choose precision fp32"
    )
    with pytest.raises(TrainError) as e:
        gd.Trainer(net, emulate_darknet_cpu_bugs=True).fit("x.data")
    assert (
        str(e.value)
        == "Trainer.fit: does not emulate bugs of Darknet's CPU build; omit emulate_darknet_cpu_bugs, or call step"
    )


def test_sgd_is_darknets():
    """w = 1, gradient 2 each step, rate 0.1, momentum 0.9, decay 0.01: by hand."""
    from gpudarknet.backend import get
    from gpudarknet.ops import optimizers

    w, g = np.ones(1), np.zeros(1)
    for wanted in ((1.199, 1.791), (1.576901, 3.401109)):
        g += 2
        optimizers.sgd(get("numpy"), w, g, 0.1, 0.9, 0.01)
        assert (w[0], g[0]) == (pytest.approx(wanted[0], abs=1e-6), pytest.approx(wanted[1], abs=2e-6))


def test_decay_excludes_biases_and_scales():
    """Only decay acts: the delta is 0, because the loss is switched off."""
    net = network(NET + CONV + "batch_normalize=1\n" + LAST + "[softmax]\nnoloss=1\n")
    for own in net.weights[:2]:
        own["bias"] += 1
    before = copy(net)
    train(net)
    assert changed(net, before) == [["kernel", "mean", "variance"], ["kernel"], []]
    np.testing.assert_allclose(net.weights[1]["kernel"], before[1]["kernel"] * (1 - 0.1 * 0.01), rtol=1e-6)


def test_adam_step():
    """Adam's first step changes every weight by the learning rate."""
    net = network(NET.replace("decay=0.01", "decay=0") + "adam=1\neps=0\n" + CONV + LAST + END)
    before = copy(net)
    train(net)
    step = net.weights[0]["kernel"] - before[0]["kernel"]
    np.testing.assert_allclose(np.abs(step), 0.1, rtol=1e-4)


def test_subdivisions_give_the_same_step():
    """Without batch norm two halves sum to the whole; float32 in another order."""
    whole, halves = network(NET + CONV + LAST + END), network(NET + "subdivisions=2\n" + CONV + LAST + END)
    assert train(whole, 3).iteration == train(halves, 3).iteration == 3
    np.testing.assert_allclose(flat(whole), flat(halves), rtol=1e-4, atol=1e-6)


def test_stopbackward_freezes_earlier_layers():
    net = network(NET + CONV + "batch_normalize=1\n" + CONV + CONV + "stopbackward=1\n" + LAST + END)
    before = copy(net)
    train(net)
    # the stop layer gets no gradient, but its weights decay, as in Darknet
    assert changed(net, before)[:4] == [[], [], ["kernel"], ["bias", "kernel"]]
    np.testing.assert_allclose(net.weights[2]["kernel"], before[2]["kernel"] * (1 - 0.1 * 0.01), rtol=1e-6)


def test_stopbackward_until_an_iteration():
    net = network(NET + CONV + "stopbackward=2\n" + LAST + END)
    trainer = gd.Trainer(net)
    assert [trainer.first_trained, trainer.step(*batch(net)) > 0, trainer.first_trained] == [1, True, 1]
    trainer.step(*batch(net))
    assert trainer.first_trained == 0


@pytest.mark.parametrize(
    ("key", "moves"),
    [("dont_update=1", [False, True]), ("burnin_update=1", [False, True]), ("learning_rate=0", [False, False])],
)
def test_delayed_updates(key, moves):
    net = network(NET + "burn_in=2\n" + CONV + key + "\n" + LAST + END)
    trainer = gd.Trainer(net)
    for moved in moves:
        before = copy(net)
        trainer.step(*batch(net))
        assert bool(changed(net, before)[0]) is moved
        assert changed(net, before)[1]


def test_a_learning_rate_per_layer():
    plain, slow = network(NET + CONV + LAST + END), network(NET + CONV + "learning_rate=0.25\n" + LAST + END)
    before = copy(plain)
    train(plain), train(slow)
    fast_step, slow_step = (n.weights[0]["kernel"] - before[0]["kernel"] for n in (plain, slow))
    np.testing.assert_allclose(slow_step, fast_step / 4, rtol=1e-3, atol=1e-7)


def test_train_only_bn():
    net = network(NET + CONV + "batch_normalize=1\n" + CONV + "batch_normalize=1\ntrain_only_bn=1\n" + LAST + END)
    before = copy(net)
    train(net)
    norm = ["bias", "mean", "scale", "variance"]
    assert changed(net, before)[:3] == [norm, norm, ["bias", "kernel"]]


def test_onlyforward_stops_the_backward_pass():
    net = network(NET.replace("0.01", "0") + CONV + CONV + "onlyforward=1\n" + LAST + END)
    before = copy(net)
    train(net)
    assert changed(net, before)[:3] == [[], [], ["bias", "kernel"]]


def test_clip_bounds_kernels():
    net = network(NET + CONV + "clip=0.05\n" + LAST + END)
    train(net)
    assert np.abs(net.weights[0]["kernel"]).max() == np.float32(0.05)


def test_an_unimplemented_loss_is_warned_about():
    net = network(NET + CONV + "[contrastive]\n[route]\nlayers=-2\n" + LAST + END)
    with pytest.warns(TrainWarning) as warned:
        gd.Trainer(net)
    assert (
        str(warned[0].message)
        == "cfg: the loss of layer 1 [contrastive] is not implemented; layers that only it reads are not trained"
    )


def test_shared_weights_sum_the_gradients_of_their_users():
    """The same convolution twice, shared: one array, with the gradients of both uses."""
    first = "[convolutional]\nfilters=3\nsize=3\npad=1\nactivation=leaky\n"
    net = network(NET + first + first + "share_index=-1\n" + LAST + END)
    trainer = gd.Trainer(net)
    assert trainer.momentum[1] is trainer.momentum[0]
    trainer.step(*batch(net))
    assert net.weights[0] is net.weights[1]


@pytest.mark.parametrize(
    "first",
    [
        "[rnn]\noutput=6\nhidden=7\n",
        "[gru]\noutput=6\n",
        "[lstm]\noutput=6\n",
        "[crnn]\noutput=6\nhidden=7\nsize=3\npad=1\n",
        "[conv_lstm]\noutput=6\nsize=3\npad=1\n",
    ],
)
def test_a_recurrent_first_layer_is_trained(first):
    """The gradient of its input is skipped; its weights change as behind an identity layer."""
    text = NET + "time_steps=2\n{}" + LAST + END
    alone, behind = network(text.format(first)), network(text.format(CONV.replace("4", "3") + first))
    unit = behind.weights[0]["kernel"]
    unit[...] = 0
    unit[range(3), range(3), 1, 1] = 1  # passes the images, which are positive
    for name, a in alone.weights[0].items():
        behind.weights[1][name][...] = a
    behind.weights[2].update({k: a.copy() for k, a in alone.weights[1].items()})
    before = copy(alone)
    for net in (alone, behind):
        gd.Trainer(net).step(*batch(net, N=8))
    assert all(changed(alone, before)[0])
    for name, a in alone.weights[0].items():
        np.testing.assert_allclose(a, behind.weights[1][name], rtol=1e-5, atol=1e-6)


def test_moving_average_of_the_weights():
    """The average starts at max_batches/2 = 1002; 1000 iterations before the end it replaces the weights."""
    net = network(NET + "max_batches=2004\nema_alpha=0.5\n" + CONV + LAST + END)
    trainer = gd.Trainer(net)
    trainer.iteration, kernels = 1001, []
    trainer.update_ema()
    assert trainer.ema_weights is None
    for trainer.iteration in (1002, 1003):
        net.weights[0]["kernel"] += 1
        kernels.append(net.weights[0]["kernel"].copy())
        trainer.update_ema()
    trainer.iteration = 1004
    trainer.update_ema()
    np.testing.assert_allclose(net.weights[0]["kernel"], (kernels[0] + kernels[1]) / 2, rtol=1e-6)


def test_a_nan_error_names_the_layer():
    net = network(NET + CONV + CONV + LAST + END)
    x, truth = batch(net)
    net.weights[1]["kernel"][0, 0, 0, 0] = np.nan
    before = copy(net)
    with pytest.raises(TrainError) as e:
        gd.Trainer(net).step(x, truth)
    assert str(e.value) == (
        "cfg: iteration 1: the output of layer 1 [convolutional] is not finite; lower learning_rate, lengthen burn_in,"
        " or check the labels"
    )
    np.testing.assert_array_equal(net.weights[0]["kernel"], before[0]["kernel"])


def test_an_iteration_is_a_step_of_any_batch():
    net = network(NET + CONV + LAST + END)
    trainer = gd.Trainer(net)
    for N in (4, 4, 1, 6):
        trainer.step(*batch(net, N=N))
    assert (trainer.iteration, net.seen) == (4, 15)


def test_an_error_changes_nothing():
    net = network(NET + "subdivisions=2\n" + CONV + LAST + END)
    trainer, before = train(net, 2), copy(net)
    momentum = trainer.momentum[0]["kernel"].copy()
    x, truth = batch(net)
    x[3, 0, 0, 0] = np.nan  # in the second half
    for wrong in ((x, truth), (np.zeros_like(x), truth[:, :3]), (x[:, :2], truth)):
        with pytest.raises((TrainError, DataError)):
            trainer.step(*wrong)
        assert (trainer.iteration, net.seen) == (2, 8)
        assert changed(net, before) == [[], [], [], []]
        np.testing.assert_array_equal(trainer.momentum[0]["kernel"], momentum)


@pytest.mark.parametrize("tune", [True, False])
def test_malloc_is_tuned_unless_switched_off(tune, monkeypatch):
    """mallopt is process-wide: `Trainer(net, tune_malloc=False)` never calls it, nor does a step."""
    calls, load = [], ctypes.CDLL
    libc = SimpleNamespace(mallopt=lambda *setting: calls.append(setting))
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *mode: libc if name is None else load(name, *mode))
    threads.tune_malloc.cache_clear()
    net = network(NET + CONV + LAST + END)
    gd.Trainer(net, tune_malloc=tune).step(*batch(net))
    threads.tune_malloc.cache_clear()  # so that later trainings of this process are tuned
    assert bool(calls) is tune


def test_refusals():
    net = network(NET + CONV)
    with pytest.raises(TrainError, match=r"^cfg: no layer has a loss; end the network in \[softmax\], \[cost\] "):
        gd.Trainer(net)
    net = network(NET + "subdivisions=2\n" + CONV + LAST + END)
    for N in (3, 0):
        with pytest.raises(
            DataError, match=rf"^a batch of {N} images and {N} truths; both counts must be the same multiple of 2$"
        ):
            gd.Trainer(net).step(*batch(net, N=N))
    net = network(NET + "subdivisions=2\ntime_steps=3\n[rnn]\noutput=5\n[softmax]\n")
    with pytest.raises(DataError, match="a batch of 4 images and 4 truths; both counts must be the same multiple of 6"):
        gd.Trainer(net).step(*batch(net))
    net = network(NET + CONV + LAST + END)
    with pytest.raises(DataError, match=r"^a truth of 3 values per image does not fit layer 3 \[softmax\] of cfg$"):
        gd.Trainer(net).step(*batch(net, K=3))
    net = network(NET + CONV + LAST.replace("5", "7") + "[yolo]\nclasses=2\n")
    with pytest.raises(DataError, match=r"^a truth of 5 values per image does not fit layer 2 \[yolo\] of cfg$"):
        gd.Trainer(net).step(*batch(net))
    with pytest.warns(CfgWarning, match=r"\[net\] momentum=1.5 .*; the network cannot be trained$"):
        net = network(NET.replace("momentum=0.9", "momentum=1.5") + CONV + LAST + END)
    with pytest.raises(CfgError, match=r"^cfg:\d+: \[net\] momentum=1.5 must be between 0 and 1$"):
        gd.Trainer(net)


# Schedules: by the formulas


def rates(text, *iterations, u=0.5):
    net = cfg.parse("[net]\nwidth=4\nheight=4\nchannels=1\nlearning_rate=0.5\n" + text + "\n[avgpool]\n").net
    return [lr_schedule.rate(net, n, u) for n in iterations]


@pytest.mark.parametrize(
    ("text", "at", "wanted"),
    [
        ("policy=constant", (1, 1000), [0.5, 0.5]),
        ("burn_in=10", (1, 5, 9, 10), [0.5 * 0.1**4, 0.5 * 0.5**4, 0.5 * 0.9**4, 0.5]),
        ("burn_in=10\npower=1\npolicy=poly\nmax_batches=100", (5, 50, 100), [0.25, 0.25, 0.0]),
        ("policy=step\nstep=10\nscale=0.1", (9, 10, 25), [0.5, 0.05, 0.005]),
        ("policy=steps\nsteps=10,20\nscales=0.1,0.5", (9, 10, 19, 20), [0.5, 0.05, 0.05, 0.025]),
        ("policy=exp\ngamma=0.9", (2,), [0.405]),
        ("policy=random\npower=2", (7,), [0.125]),
        ("policy=sigmoid\ngamma=0.5\nstep=10", (10, 12), [0.25, 0.5 / (1 + math.e)]),
        ("policy=sgdr\nsgdr_cycle=10\nmax_batches=100\nlearning_rate_min=0.1", (0, 5, 10, 20, 30),
         [0.5, 0.3, 0.1, 0.3, 0.1]),
    ],
)  # fmt: skip
def test_schedule(text, at, wanted):
    assert rates(text, *at) == pytest.approx(wanted)


# Checkpoints


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_that_a_checkpoint_cannot_store(tmp_path, seed):
    (tmp_path / "x.cfg").write_text(NET + CONV + LAST + END)
    with pytest.raises(TrainError, match=f"^Trainer: seed={seed}: must be from 0 to 9223372036854775807$"):
        gd.Trainer(gd.load_network(tmp_path / "x.cfg"), seed)


@pytest.mark.parametrize("extra", ["", "adam=1\n"])
def test_a_checkpoint_continues_bit_exactly(tmp_path, extra):
    """Dropout and batch norm, stopped after two of four steps: bit-identical to an uninterrupted training."""
    text = NET + extra + CONV + "batch_normalize=1\n[dropout]\nprobability=0.3\n" + LAST + END
    straight, stopped = network(text), network(text)
    train(straight, 4)
    train(stopped, 2).save(tmp_path / "state.npz", {"best": 0.5})
    resumed = network(text, seed=99)
    trainer = gd.Trainer(resumed)
    assert float(trainer.load(tmp_path / "state.npz")["best"]) == 0.5
    assert (trainer.iteration, resumed.seen) == (2, 8)
    for step in (2, 3):
        trainer.step(*batch(resumed, step))
    np.testing.assert_array_equal(flat(resumed), flat(straight))


def test_a_checkpoint_without_an_iteration_is_loaded():
    trainer = gd.Trainer(network(NET + CONV + LAST + END))
    for _ in range(3):
        trainer.step(*batch(trainer.net, N=trainer.batch))
    state = trainer.state_dict()
    del state["iteration"]
    other = gd.Trainer(network(NET + CONV + LAST + END))
    other.load_state_dict(state)
    assert other.iteration == 3


def test_a_checkpoint_stores_the_average(tmp_path):
    """Stopped while averaging; the average replaces the weights 1000 iterations before the end, bit-identically."""
    text = NET + "max_batches=2006\nema_alpha=0.5\n" + CONV + LAST + END

    def late(seed=1):
        net = network(text, seed)
        net.seen = 1001 * 4
        return gd.Trainer(net, clear=False)

    straight, stopped, resumed = late(), late(), late(99)
    for trainer, steps in ((straight, range(5)), (stopped, range(3)), (resumed, range(3, 5))):
        if trainer is resumed:
            trainer.load(tmp_path / "state.npz")
        for step in steps:
            trainer.step(*batch(trainer.net, step))
        trainer.save(tmp_path / "state.npz")
    assert resumed.iteration == 1006 and stopped.ema_weights is not None
    np.testing.assert_array_equal(flat(resumed.net), flat(straight.net))
    np.testing.assert_array_equal(resumed.net.weights[0]["kernel"], resumed.ema_weights[0]["kernel"])


def test_a_checkpoint_of_another_network(tmp_path):
    net = network(NET + CONV + LAST + END)
    path = tmp_path / "state.npz"
    train(net).save(path)
    other = gd.Trainer(network(NET + CONV.replace("filters=4", "filters=6") + LAST + END))
    with pytest.raises(
        TrainError, match=re.escape(f"{path}: belongs to another cfg (layer 0 [convolutional] differs)")
    ):
        other.load(path)
    whole = path.read_bytes()
    for broken in (b"", b"PK", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(TrainError) as e:
            other.load(path)
        assert str(e.value) == f"{path}: is not a checkpoint of this program; remove it to start over"


def test_two_trainings_with_one_seed_are_the_same():
    text = NET + CONV + "[dropout]\n" + LAST + END
    one, two, other = network(text), network(text), network(text)
    train(one, 3), train(two, 3), train(other, 3).seed
    np.testing.assert_array_equal(flat(one), flat(two))
    train(other, 1, seed=5)
    assert not np.array_equal(flat(one), flat(other))


def test_resize_keeps_the_weights():
    net = network(NET + CONV + LAST + END)
    before = copy(net)
    net.resize(10, 4)
    assert (net.width, net.height, net.nodes[0].shape) == (10, 4, (4, 4, 10))
    assert changed(net, before) == [[], [], [], []]
    net = network(NET + "[connected]\noutput=5\n[softmax]\n")
    with pytest.raises(CfgError) as e:
        net.resize(10, 4)
    assert str(e.value) == "cfg:9: [connected] (layer 0) has weights for one input size; it cannot take 10 x 4"


@pytest.mark.parametrize("name", ["classifier", "acts"])
def test_the_original_programs_results_on_every_backend(be, name):
    """Two steps with the CUDA kernels, which sum in another order than NumPy."""
    record = RUNS[name]
    net = gd.load_network(cfg.parse(record["cfg"]), backend=be)
    first, N = start(record), 4
    values = first
    for own in net.weights:
        for a in own.values():
            a[...], values = be.asarray(values[: a.size].reshape(a.shape)), values[a.size :]
    x = np.random.default_rng(record["seed"] + 1).random((5, N, *net.net.input), np.float32)
    trainer = gd.Trainer(net, emulate_darknet_cpu_bugs=True)
    for step in (0, 1):
        assert trainer.step(x[step], ARRAYS[f"{name}/y"][step]) == pytest.approx(record["costs"][step], rel=1e-4)
        wanted = ARRAYS[f"{name}/dw"][step]
        got = np.concatenate([be.to_numpy(a).reshape(-1) for own in net.weights for a in own.values()])
        np.testing.assert_allclose(got - first, wanted, atol=1e-4 * np.abs(wanted).max())
