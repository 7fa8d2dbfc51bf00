"""Training with float16 maps: layers store float16 and compute in float32; loss scaling; skipped steps."""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import CASES, draw_weights, has_state

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.errors import TrainError, TrainWarning
from gpudarknet.io import resources
from gpudarknet.layers import SECTIONS, ForwardContext
from gpudarknet.train.loss_scale import LossScale

LAYERS = dict(CASES)
LAYERS["crnn"] = (((3, 4, 5),), dict(output=5, hidden=4, pad=1, activation="tanh"))  # no kink to be rounded across
LAYERS["connected softmax"] = (((3, 4, 5),), dict(output=6, activation="normalize_channels"))
LAYERS["convolutional xnor"] = (((5, 7, 6),), dict(filters=4, size=3, pad=1, xnor=1, batch_normalize=1))
LAYERS["shortcut weighted"] = (
    ((3, 4, 5), (3, 4, 5)), dict(from_=(0,), weights_type="per_channel", weights_normalization="relu"),
)  # fmt: skip


def forward_backward(be, name, dtype, train):
    """Run a layer forward and backward on maps of a dtype; return y, the dxs and the weights' gradients as NumPy arrays."""
    shapes, keys = LAYERS[name]
    rng = np.random.default_rng(3)
    layer = SECTIONS[name.split()[0]](**keys)
    steps = 3 if has_state(layer) else 1
    # values that float16 represents exactly, so that maxima and signs are the same in both types
    xs = [rng.normal(0, 1, (5 * steps, *shape)).astype(np.float16).astype(dtype) for shape in shapes]
    w = {key: be.asarray(a, np.float32) for key, a in draw_weights(layer, shapes, rng).items()}
    ctx = ForwardContext(train=train, rng=np.random.default_rng(7), steps=steps, progress=0.9)
    y, backward = layer.forward(be, w, *(be.asarray(x) for x in xs), ctx=ctx)
    dy = np.random.default_rng(5).normal(0, 1, y.shape).astype(np.float16).astype(dtype)
    grad = {}
    dxs = backward(be.asarray(dy), grad)
    maps = [be.to_numpy(a) for a in (y, *dxs) if a is not None]
    return maps, {key: be.to_numpy(a) for key, a in grad.items()}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(be, name, train):
    """Within 2 % of each array's length: a few roundings of 11 bits, more of them through three steps of time."""
    maps, grad = forward_backward(be, name, np.float16, train)
    wanted, wanted_grad = forward_backward(be, name, np.float32, train)
    assert {a.dtype.name for a in maps} == {"float16"} and {a.dtype.name for a in grad.values()} <= {"float32"}
    assert grad.keys() == wanted_grad.keys()
    for got, want in [*zip(maps, wanted, strict=True), *((grad[k], wanted_grad[k]) for k in grad)]:
        assert np.linalg.norm(got.astype(np.float32) - want) <= 0.02 * np.linalg.norm(want)


# Whole networks

NET = "[net]\nwidth=12\nheight=10\nchannels=3\nbatch=4\nlearning_rate=0.02\nmomentum=0.9\ndecay=0.001\n{}\n"
# without kinks and maxima, which rounding may move: what is left is rounding itself
BODY = """[convolutional]
batch_normalize=1
filters=6
size=3
pad=1
activation=mish
[convolutional]
batch_normalize=1
filters=6
size=3
pad=1
activation=mish
[shortcut]
from=-2
activation=linear
[local_avgpool]
size=2
stride=2
[convolutional]
filters=5
size=1
activation=linear
[avgpool]
[softmax]
"""
HUGE = "[upsample]\nstride=1\nscale=100000\n"
imitated = pytest.mark.filterwarnings("ignore:.*on NumPy it is only emulated:gpudarknet.errors.TrainWarning")


def trained(be, precision, steps, net="", body=BODY):
    """Train on batches that are always the same; return the trainer and the costs."""
    trainer = gd.Trainer(
        gd.load_network(cfg.parse(NET.format(net) + body), backend=be, seed=1),
        precision=precision,
    )
    rng, costs = np.random.default_rng(2), []
    for _ in range(steps):
        x = rng.random((4, *trainer.net.net.input), np.float32)
        costs.append(trainer.step(x, np.eye(5)[rng.integers(5, size=4)]))
    return trainer, np.array(costs)


def moved(trainer, first):
    """Return by how much training has moved the weights, as one array."""
    be = trainer.net.backend
    now = [be.to_numpy(a).reshape(-1) for own in trainer.net.weights for a in own.values()]
    return np.concatenate(now) - np.concatenate([a.reshape(-1) for own in first.weights for a in own.values()])


@imitated
def test_training_agrees_with_float32(be):
    """Costs within 0.1 %, and the change of all weights within 0.5 %, over ten steps."""
    half, costs = trained(be, "fp16", 10)
    whole, wanted = trained("numpy", "fp32", 10)
    np.testing.assert_allclose(costs, wanted, rtol=1e-3)
    first = gd.load_network(cfg.parse(NET.format("") + BODY), backend="numpy", seed=1)
    change = moved(whole, first)
    assert np.linalg.norm(moved(half, first) - change) < 0.005 * np.linalg.norm(change)
    assert {a.dtype.name for own in half.net.weights for a in own.values()} == {"float32"}
    assert {g.dtype.name for own in half.momentum for g in own.values()} == {"float32"}


@imitated
def test_small_gradients_vanish_without_a_scale(be):
    """Deltas of 1e-8 round to 0 in float16; times 2^20 they do not, and the gradient is that of float32."""
    body = BODY.replace("filters=5", "filters=6")
    body = body.replace("[avgpool]\n[softmax]", "[yolo]\nclasses=1\nnum=1\nmax=1\ndelta_normalizer=1e-8")

    def gradient(precision, scale):
        text = NET.format(f"loss_scale={scale}").replace("decay=0.001", "decay=0")
        trainer = gd.Trainer(gd.load_network(cfg.parse(text + body), backend=be, seed=1), precision=precision)
        trainer.loss_scale.dynamic = False
        trainer.loss_scale.value = scale
        x = np.random.default_rng(2).random((4, 3, 10, 12), np.float32)
        trainer.step(x, np.tile(np.float32([0.4, 0.6, 0.3, 0.2, 0, 0]), (4, 1)))
        return be.to_numpy(trainer.momentum[0]["kernel"])

    wanted = gradient("fp32", 1)
    assert np.abs(wanted).max() > 1e-10 and not gradient("fp16", 1).any()
    got = gradient("fp16", 2**20)
    assert np.linalg.norm(got - wanted) < 0.005 * np.linalg.norm(wanted)


@imitated
@pytest.mark.parametrize(
    "end", ["[softmax]", "[softmax]\n[cost]", "[softmax]\n[connected]\noutput=5\nactivation=linear\n[softmax]"]
)
def test_a_probability_that_float16_cannot_hold(be, end):
    """The loss of a class with p = 1e-9 is 20, not infinite; what reads a head's output gets float16 again."""
    body = "[connected]\noutput=5\nactivation=linear\n" + end + "\n"
    text = NET.format("").replace("width=12\nheight=10\nchannels=3", "width=1\nheight=1\nchannels=1") + body
    costs = []
    for precision in ("fp32", "fp16"):
        net = gd.load_network(cfg.parse(text), backend=be, seed=1)
        net.weights[0]["bias"] += be.asarray(np.float32([21, 0, 0, 0, 0]))
        trainer = gd.Trainer(net, precision=precision)
        costs.append(trainer.step(np.ones((4, 1, 1, 1), np.float32), np.eye(5)[1:]))
    assert costs[1] == pytest.approx(costs[0], rel=1e-3) and costs[0] > 20


@imitated
def test_a_step_that_overflows_is_skipped_and_the_scale_falls(be):
    """The weights stay, the momentum stays, the iteration counts; a good step follows."""
    trainer, _ = trained(be, "fp16", 2)
    trainer.loss_scale.value = 2.0**22  # the deltas of softmax, up to 1, become infinite
    before = [{k: be.to_numpy(a).copy() for k, a in own.items()} for own in trainer.momentum]
    kernel = be.to_numpy(trainer.net.weights[0]["kernel"]).copy()
    x, truth = np.random.default_rng(2).random((4, 3, 10, 12), np.float32), np.eye(5)[:4]
    scales = []
    while True:
        trainer.step(x, truth)
        if not trainer.skipped:
            break
        scales.append(trainer.loss_scale.value)
        np.testing.assert_array_equal(be.to_numpy(trainer.net.weights[0]["kernel"]), kernel)
        for own, old in zip(trainer.momentum, before, strict=True):
            for k, g in own.items():
                np.testing.assert_array_equal(be.to_numpy(g), old[k])
    assert scales[0] == 2.0**21 and scales == sorted(scales, reverse=True) and scales[-1] <= 2.0**17
    assert trainer.iteration == 3 + len(scales)
    assert not np.array_equal(be.to_numpy(trainer.net.weights[0]["kernel"]), kernel)


def test_the_scale_rises_in_time():
    scale = LossScale.of(1.0, half=True)
    assert (scale.value, scale.dynamic) == (4096, True)
    for _ in range(1000):
        scale.on_success()
    assert (scale.value, scale.growth_tracker) == (8192, 0)
    scale.on_success()
    assert scale.backoff() and (scale.value, scale.growth_tracker) == (4096, 0)
    scale.value = 1.0
    assert not scale.backoff()
    given = LossScale.of(128.0, half=True)
    assert (given.value, given.dynamic, given.backoff()) == (128, False, False)


@imitated
def test_a_given_scale_that_is_too_large():
    with pytest.raises(TrainError) as e:
        trained("numpy", "fp16", 1, "loss_scale=1000000")
    assert str(e.value) == (
        "cfg: iteration 1: the gradient of bias in layer 4 [convolutional] is not finite; loss_scale=1e+06 may be too large;"
        " remove the key for a dynamic scale"
    )


@imitated
def test_an_output_too_large_for_float16():
    with pytest.raises(TrainError) as e:
        trained("numpy", "fp16", 1, body=BODY.replace("[convolutional]", HUGE + "[convolutional]", 1))
    assert str(e.value) == (
        "cfg: iteration 1: the output of layer 0 [upsample] is not finite; lower learning_rate, lengthen burn_in, or check"
        " the labels, or train in fp32"
    )


def test_a_loss_scale_changes_nothing_in_float32():
    """A power of two is exact, for SGD and for Adam."""
    for kind in ("", "adam=1"):
        plain, _ = trained("numpy", "fp32", 3, kind)
        scaled, _ = trained("numpy", "fp32", 3, f"loss_scale=64\n{kind}")
        for own, other in zip(plain.net.weights, scaled.net.weights, strict=True):
            for name, a in own.items():
                np.testing.assert_array_equal(a, other[name])


@imitated
def test_a_checkpoint_holds_the_scale(tmp_path):
    trainer, _ = trained("numpy", "fp16", 3)
    trainer.loss_scale.backoff()
    trainer.save(tmp_path / "state.npz")
    other, _ = trained("numpy", "fp16", 0)
    other.load(tmp_path / "state.npz")
    assert other.loss_scale == trainer.loss_scale and other.loss_scale.value == 2048


def test_words():
    net = gd.load_network(cfg.parse(NET.format("") + BODY), backend="numpy")
    with pytest.raises(TrainError) as e:
        gd.Trainer(net, precision="half")
    assert str(e.value) == "Trainer: unknown precision 'half'; choose fp32 or fp16"
    with pytest.warns(TrainWarning) as said:
        gd.Trainer(net, precision="fp16")
    assert (
        str(said[0].message)
        == "cfg: fp16 saves memory and time on a GPU; on NumPy it is only emulated, slower than fp32"
    )


@imitated
def test_a_network_that_ships():
    """yolov4-tiny on two small images: the scale is found in a few steps, the cost is that of float32."""
    costs = {}
    for precision in ("fp32", "fp16"):
        net = gd.load_network(resources.bundled_cfg("yolov4-tiny"), backend="numpy", width=96, height=64, seed=1)
        trainer = gd.Trainer(net, precision=precision)
        truth = np.zeros((2, 200, 6), np.float32)
        truth[:, 0] = 0.4, 0.6, 0.3, 0.2, 7, 0
        costs[precision] = trainer.step(np.random.default_rng(0).random((2, 3, 64, 96), np.float32), truth)
        before = net.weights[0]["kernel"].copy()
        for _ in range(6):
            trainer.step(np.random.default_rng(0).random((2, 3, 64, 96), np.float32), truth)
        assert not trainer.skipped and not np.array_equal(net.weights[0]["kernel"], before)
    assert costs["fp16"] == pytest.approx(costs["fp32"], rel=1e-3)
