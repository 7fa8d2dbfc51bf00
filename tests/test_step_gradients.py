"""A loop over `Trainer(net).step` trains every layer: each step moves each array by -rate times the gradient of the cost.

The gradient is taken from central differences of the cost along random directions, in float64.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.graph import owner
from gpudarknet.layers import ForwardContext, LossContext
from gpudarknet.train.parameters import is_trainable

RUNS = json.loads((Path(__file__).parent / "data" / "train.json").read_text())
DETECTORS = ["region", "yolo-mse", "yolo-ciou"]
STEPS, DIRECTIONS, N, H = 2, 3, 4, 1e-6
NET = "[net]\nwidth=9\nheight=8\nchannels=3\nbatch=4\n"
CONV = "[convolutional]\nfilters=5\nsize=3\npad=1\nactivation=leaky\n"
END = "[convolutional]\nfilters=5\nsize=1\nactivation=linear\n[avgpool]\n[softmax]\n"
CLASSIFIERS = {
    **{name: run["cfg"] for name, run in RUNS.items() if name not in DETECTORS},
    "batch norm": NET + CONV.replace("leaky", "swish") + "batch_normalize=1\n[batchnorm]\n" + END,
    "local": NET + "[local]\nfilters=4\nsize=3\npad=1\nactivation=tanh\n" + END,
    "implicit": NET
    + CONV
    + "[avgpool]\n[implicit]\nfilters=5\natoms=1\n[shortcut]\nfrom=-2\nactivation=linear\n"
    + END,
    "shared weights": NET + CONV + CONV + CONV + "share_index=-1\n" + END,
    "subdivisions": NET + "subdivisions=2\n" + CONV + END,
    "recurrent": NET
    + "time_steps=2\n[crnn]\noutput=5\nhidden=4\nsize=3\npad=1\nactivation=tanh\n[lstm]\noutput=5\n[softmax]\n",
}
NETWORKS = CLASSIFIERS | {name: RUNS[name]["cfg"] for name in DETECTORS}
# Relative, per array. Most are within 1e-4 and 1e-2; small gradients are sums that cancel, and rounding moves units across kinks.
# A missing gradient is off by 1.
TOLERANCE = {"fp32": 0.005, "fp16": 0.05}


def load(name, rate):
    """Load a network for plain SGD: no momentum, no weight decay, a constant rate."""
    config = cfg.parse(NETWORKS[name])
    net = replace(config.net, learning_rate=rate, momentum=0.0, decay=0.0, policy="constant", burn_in=0)
    return gd.load_network(replace(config, net=net), backend="numpy", seed=1)


def copy_weights(net, dtype):
    """Copy the weights of every layer; layers that share them share the copy."""
    copies = []
    for node, own in zip(net.nodes, net.weights, strict=True):
        mine = owner(node) == node.index
        copies.append(
            {k: a.astype(dtype) for k, a in own.items() if is_trainable(k, a)} if mine else copies[owner(node)]
        )
    return copies


def batches(net, name):
    """Draw for each step images (N, C, H, W) and truths: a class per image, or three boxes."""
    rng = np.random.default_rng(5)
    for _ in range(STEPS):
        x = rng.random((N, *net.net.input), np.float32)
        truth = np.eye(5, dtype=np.float32)[rng.integers(5, size=N)]
        if name in DETECTORS:
            truth = np.zeros((N, 10, 6), np.float32)
            truth[:, :3, :2], truth[:, :3, 2:4] = rng.uniform(0.1, 0.9, (N, 3, 2)), rng.uniform(0.1, 0.6, (N, 3, 2))
            truth[:, :3, 4] = rng.integers(4, size=(N, 3))
        yield x, truth.reshape(N, -1)


def cost_function(net, weights, x, truth, detects):
    """Return the cost now, and a function that computes in float64 the cost of `weights`, or one with the same gradient.

    A detection head's delta is not the gradient of the cost that it returns. That of <delta, its input> is what the layers before
    it are trained with.
    """
    statistics = [{k: a for k, a in own.items() if not is_trainable(k, a)} for own in net.weights]
    head, seen = net.nodes[-1].layer, net.seen + N

    def forward():
        kept, current = [], net.weights
        net.weights = [own | still for own, still in zip(weights, statistics, strict=True)]
        ctx = ForwardContext(train=True, steps=net.net.time_steps)
        net.forward(x.astype(np.float64), ctx, lambda index, y, backward: kept.append((y, backward)))
        net.weights = current
        return kept[-2][0], *kept[-1]

    def loss():
        z, y, backward = forward()
        cost, delta = head.loss(net.backend, z, y, truth, LossContext(net.width, net.height, seen))
        return cost.item(), backward(delta.astype(np.float64), {})[0]

    cost, delta = loss()
    return cost, (lambda: -np.vdot(delta, forward()[0])) if detects else (lambda: loss()[0])


def slope_errors(name, **options):
    """Train for some steps; return for each and for each array |change / rate + gradient| / |gradient| along the directions."""
    rate, detects = (1e-3, True) if name in DETECTORS else (0.05, False)
    net = load(name, rate)
    trainer, rng, steps = gd.Trainer(net, **options), np.random.default_rng(6), []
    for x, truth in batches(net, name):
        before, weights = copy_weights(net, np.float32), copy_weights(net, np.float64)
        expected, cost = cost_function(net, weights, x, truth, detects)
        slopes, directions = {}, {}
        for key in [(node.index, k) for node in net.nodes if owner(node) == node.index for k in weights[node.index]]:
            a = weights[key[0]][key[1]]
            slopes[key], directions[key] = [], rng.choice([-1.0, 1.0], (DIRECTIONS, *a.shape))
            for u in directions[key]:
                a += H * u
                up = cost()
                a -= 2 * H * u
                slopes[key].append((up - cost()) / (2 * H * N))
                a += H * u
        assert trainer.step(x, truth) == pytest.approx(expected, rel=2e-3 if trainer.dtype == np.float16 else 1e-5)
        errors = {}
        for (i, k), u in directions.items():
            change = np.tensordot(u, (net.weights[i][k] - before[i][k]) / rate, before[i][k].ndim)
            errors[i, k] = float(np.linalg.norm(change + slopes[i, k]) / np.linalg.norm(slopes[i, k]))
        steps.append(errors)
    return steps


@pytest.mark.filterwarnings("ignore:.*on NumPy it is only emulated:gpudarknet.errors.TrainWarning")
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("engine", ["plan", "reference"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_follows_the_gradient_in_every_array(name, engine, precision):
    for errors in slope_errors(name, engine=engine, precision=precision):
        assert max(errors.values()) < TOLERANCE[precision], errors


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "recurrent"])
def test_emulated_bugs_do_not_follow_it(name):
    """The deltas of [avgpool] and [connected] are those of both steps; [connected] and [local] stay as they are."""
    first, second = slope_errors(name, emulate_darknet_cpu_bugs=True)
    assert max(second.values()) > 1
    still = {"connected": (2, 3), "local": (0,)}.get(name, ())
    assert all((first[key] == 1) == (key[0] in still) for key in first)


@pytest.mark.parametrize("name", ["classifier", "connected", "region"])
def test_a_missing_gradient_is_noticed(name, monkeypatch):
    """Whichever layer's it is."""
    update = gd.Trainer.update
    for index in {i for i, _ in slope_errors(name)[0]}:

        def drop(trainer, gradients, N, index=index):
            for g in trainer.parameters.views(gradients)[index].values():
                g[...] = 0
            update(trainer, gradients, N)

        monkeypatch.setattr(gd.Trainer, "update", drop)
        assert {key[0] for key, error in slope_errors(name)[0].items() if error > 0.99} == {index}
