"""A training step by the kernels alone, forward, backward and update, against the layers and optimizers that define it."""

from __future__ import annotations

import numpy as np
import pytest
from backends import NUMPY

from gpudarknet import cfg, load_network
from gpudarknet.layers import ForwardContext
from gpudarknet.ops import optimizers
from gpudarknet.plan.cuda.tiles import TILES, DeviceProperties
from gpudarknet.plan.cuda.training import batch_norm, data_gradient, gradients, pack_weights, update, weight_gradient
from gpudarknet.plan.cuda.training.channel_sums import ChannelSums
from gpudarknet.plan.cuda.training.convolution import Window, convolution
from gpudarknet.plan.cuda.training.kernel_call import KernelCall
from gpudarknet.plan.cuda.view import View
from gpudarknet.train import backward

TEXT = """[net]
width=10
height=12
channels=8
[convolutional]
filters=16
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky
[maxpool]
size=2
stride=1
[convolutional]
filters=24
size=3
pad=1
activation=mish
"""
N, RATE, MOMENTUM, DECAY, SCALE = 3, 0.1, 0.9, 0.01, 16.0
STRIDED, PLAIN = Window(3, (2, 2), 1, 1), Window(3, (1, 1), 1, 1)
DEVICE = DeviceProperties("small", 90, 4, 227 << 10)


def reference(net, x, dy):
    """Return the output, the gradients of weights and of x, by the layers' own forward and backward."""
    backwards, outputs = [], []

    def on_output(index, y, run):
        outputs.append(y)
        backwards.append(run)

    net.forward(x, ForwardContext(train=True), on_output)
    grads = [{} for _ in net.nodes]
    dx = backward(net.nodes, backwards, {len(net.nodes) - 1: dy}, grads)[-1]
    return outputs[-1], grads, dx


class Step:
    """The launches of a step on a backend, in a storage type."""

    def __init__(self, be, dtype, weights):
        self.be, self.dtype, self.precision = be, dtype, "fp16" if dtype == np.float16 else "tf32"
        self.offsets, flat = {}, []
        for i, own in enumerate(weights):
            for name in ("kernel", "bias", "scale", "mean", "variance"):
                if name in own:
                    self.offsets[i, name] = sum(a.size for a in flat), own[name].shape
                    flat.append(own[name].reshape(-1))
        self.flat = be.asarray(np.concatenate(flat).astype(np.float32))
        self.grads, self.momentum = be.zeros(self.flat.shape), be.zeros(self.flat.shape)
        self.counters = be.zeros((1 << 12,), np.int32)
        self.workspace = be.empty((1 << 21,))

    def array(self, flat, i, name):
        first, shape = self.offsets[i, name]
        return flat[first : first + int(np.prod(shape))].reshape(shape)

    def map(self, C, H, W, values=None):
        a = np.full((N, H, W, C), np.nan) if values is None else values.transpose(0, 2, 3, 1)
        return View(self.be.asarray(a.astype(self.dtype).reshape(-1)), (C, H, W), C, N * H * W, 0)

    def nchw(self, view):
        C, H, W = view.shape
        return self.be.to_numpy(view.a).astype(np.float32).reshape(N, H, W, C).transpose(0, 3, 1, 2)

    def run(self, *calls):
        for call in calls:
            call.run(self.be.launch)

    def pack(self):
        """Pack both kernels for the forward and the backward pass."""
        packings, target = [], 0
        for i, (F, C, strides) in {0: (16, 8, (2, 2)), 2: (24, 16, (1, 1))}.items():
            source = self.offsets[i, "kernel"][0]
            packings.append(pack_weights.pack_forward(source, target, F, C, 3, 1))
            target += packings[-1].size
            packings.append(pack_weights.pack_gradient(source, target, F, C, 3, 1, rotated=strides == (1, 1)))
            target += packings[-1].size
        packed, (rows, blocks) = self.be.empty((target,), self.dtype), pack_weights.descriptors(packings)
        self.run(pack_weights.pack_weights(self.flat, packed, self.be.asarray(rows), blocks, self.precision))
        return [packed[p.target : p.target + p.size] for p in packings]

    def weight_gradient(self, i, dz, x, window):
        chosen = weight_gradient.choose(dz, x, window.size, 1, DEVICE, self.precision)
        dw = self.array(self.grads, i, "kernel")
        self.run(weight_gradient.weight_gradient(chosen, dz, x, dw, window, 1, self.workspace, self.counters, False))

    def forward_backward(self, x, dy):
        """Run the network on x (N, C, H, W) and dy; return maps y and dx."""
        w = lambda i, name: self.array(self.flat, i, name)  # noqa: E731
        g = lambda i, name: self.array(self.grads, i, name)  # noqa: E731
        forward0, backward0, forward2, backward2 = self.pack()
        tile, saved = TILES["64x64"], self.be.empty((6, 16))
        x, dx = self.map(8, 12, 10, x), self.map(8, 12, 10)
        z0, y0, d0 = (self.map(16, 6, 5) for _ in range(3))
        y1, d1 = (self.map(16, 6, 5) for _ in range(2))
        z2, y2, d2 = self.map(24, 6, 5), self.map(24, 6, 5), self.map(24, 6, 5, dy)
        assert self.workspace.size >= np.prod(ChannelSums.of(z2).partial_shape)
        sums, n = (self.workspace, self.counters), z0.a.size * z0.a.itemsize // 16
        self.run(
            convolution(x, forward0, z0, STRIDED, 1, tile, 1, None, None),
            batch_norm.batch_statistics(z0, w(0, "scale"), w(0, "bias"), w(0, "mean"), w(0, "variance"), saved, *sums),
            batch_norm.affine_activation(z0, saved[2], saved[3], y0, "leaky"),
        )
        self.run(
            KernelCall("nhwc.maxpool", n, (y0, y1, n, 16, 6, 5, 6, 5, 2, 1, 1, 0, 16, 16, True)),
            convolution(y1, forward2, z2, PLAIN, 1, tile, 2, *sums),
            batch_norm.affine_activation(z2, None, w(2, "bias"), y2, "mish"),
            batch_norm.bias_gradient(d2, z2, None, w(2, "bias"), d2, g(2, "bias"), *sums, "mish", False),
            data_gradient.data_gradient(d2, backward2, d1, PLAIN, 1, tile, 2, *sums, False),
            gradients.maxpool_gradient(d1, y0, y1, d0, 2, (1, 1), 1, False),
            *batch_norm.batch_norm_gradient(d0, z0, d0, saved, g(0, "scale"), g(0, "bias"), *sums, "leaky", False),
            data_gradient.data_gradient_by_phases(
                data_gradient.choose_by_phases(dx, 1, DEVICE, True), d0, backward0, dx, STRIDED, 1, False
            ),
        )
        self.weight_gradient(2, d2, y1, PLAIN)
        self.weight_gradient(0, d0, x, STRIDED)
        return y2, dx

    def update(self):
        """Make a step of SGD on all but the statistics; only kernels decay."""
        be, status = self.be, self.be.asarray(np.array(update.STATUS, np.int32))
        rate, scale = (be.asarray(np.array([v], np.float32)) for v in (RATE / N, SCALE))
        rows, blocks = update.descriptors([
            update.Segment(first, int(np.prod(shape)), decay=DECAY * N if name == "kernel" else 0)
            for (_, name), (first, shape) in self.offsets.items() if name not in ("mean", "variance")
        ])  # fmt: skip
        self.run(
            update.check_finite(self.grads, None, status),
            update.sgd(self.flat, self.momentum, self.grads, rate, scale, status, be.asarray(rows), blocks, MOMENTUM),
            update.adjust_loss_scale(scale, status, True, 1000, 1.0),
        )
        assert be.to_numpy(status).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_step(kernels, dtype):
    net, rng = load_network(cfg.parse(TEXT), backend="numpy"), np.random.default_rng(0)
    for own in net.weights:
        for name, a in own.items():
            a[...] = rng.uniform(0.5, 1.5, a.shape) if name in ("scale", "variance") else rng.normal(0, 0.2, a.shape)
    before = [{name: a.copy() for name, a in own.items()} for own in net.weights]
    x, dy = rng.normal(0, 1, (N, 8, 12, 10)), rng.normal(0, 1, (N, 24, 6, 5)) * SCALE
    step = Step(kernels, dtype, before)
    y, dx = step.forward_backward(x, dy)
    want_y, grads, want_dx = reference(net, x.astype(np.float32), dy.astype(np.float32))

    def close(got, want):  # 11 bits in each product and map; a maximum that is almost reached twice may change places
        assert np.linalg.norm(got - want) < 1e-2 * np.linalg.norm(want)

    close(step.nchw(y), want_y)
    close(step.nchw(dx), want_dx)
    step.update()
    assert {(i, name) for i, own in enumerate(grads) for name in own} == {
        key for key in step.offsets if key[1] not in ("mean", "variance")
    }
    for i, name in step.offsets:
        got = kernels.to_numpy(step.array(step.flat, i, name))
        if name in ("mean", "variance"):
            np.testing.assert_allclose(got, net.weights[i][name], rtol=1e-3, atol=1e-3)
            continue
        close(kernels.to_numpy(step.array(step.grads, i, name)), grads[i][name])
        w, buf = before[i][name].copy(), grads[i][name] / np.float32(SCALE)
        optimizers.sgd(NUMPY, w, buf, RATE / N, MOMENTUM, DECAY * N if name == "kernel" else 0.0)
        close(got - before[i][name], w - before[i][name])
        close(kernels.to_numpy(step.array(step.momentum, i, name)), buf)
