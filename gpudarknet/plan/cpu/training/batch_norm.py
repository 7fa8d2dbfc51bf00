"""Batch norm in training, with the activation after it, and biases: forward and backward in as few passes as NumPy allows.

Statistics are computed while a piece of the convolution's result is in cache: the mean of each piece and the sum of squared
distances to it, combined as Chan, Golub and LeVeque do (1979); unlike a sum of squares, that loses nothing if the mean is large.
"""

from __future__ import annotations

import numpy as np

from ....backend.threads import split_range
from ....ops.norm import EPS
from ...training.steps import BatchNorm, Bias
from ..command_list import CommandList, Task, TaskStages
from . import fused
from .activations import apply_activation, apply_gradient, needs_input
from .pixels import PIECE, ChannelTile, PixelSums, as_pixels, constant, split_pixels


class Statistics:
    """Mean and variance of the batch per channel of z (N, H, W, C), from those of pieces, in the order of their recording."""

    def __init__(self, z: np.ndarray):
        (N, H, W, C), self.z = z.shape, as_pixels(z)
        self.pixels, self.piece_size = N * H * W, max(1, PIECE // C)
        self.pieces: dict[tuple[int, int], int] = {}  # range of pixels -> its index
        capacity = N * H + self.pixels // self.piece_size + 1  # if every row were finished on its own
        self.means, self.squares = np.zeros((2, capacity, C), np.float32)
        self.sizes = np.zeros(capacity, np.float32)
        self.mean, self.variance = np.zeros((2, C), np.float32)

    def record(self, commands: CommandList, first: int, end: int, c0: int, c1: int) -> None:
        """Record the statistics of a range of pixels and of channels that has just been written."""
        for a, b in split_range(end - first, self.piece_size):
            self._record_piece(commands, first + a, first + b, c0, c1)

    def _record_piece(self, commands: CommandList, a: int, b: int, c0: int, c1: int) -> None:
        k, n, z = self.pieces.setdefault((a, b), len(self.pieces)), b - a, self.z[a:b, c0:c1]
        self.sizes[k] = n
        mean, squares = self.means[k, c0:c1], self.squares[k, c0:c1]
        if fused.available():
            fused.statistics(commands, z, mean, squares)
            return
        centered = commands.scratch("centered", n, c1 - c0)
        commands.record(np.matmul, constant(n, 1 / n), z, out=mean)
        tile = ChannelTile(c1 - c0, commands)
        commands.record(tile.set, mean)
        tile.apply(commands, np.subtract, z, centered)
        commands.record(np.multiply, centered, centered, out=centered)
        commands.record(np.matmul, constant(n, 1), centered, out=squares)

    def combine(self) -> None:
        """Compute mean and biased variance of all pieces."""
        count = len(self.pieces)
        means, sizes = self.means[:count], self.sizes[:count]
        np.matmul(sizes, means, out=self.mean)
        self.mean /= self.pixels
        means -= self.mean
        means *= means
        np.matmul(constant(count, 1), self.squares[:count], out=self.variance)
        self.variance += np.matmul(sizes, means)
        self.variance /= self.pixels


class BatchNormPass:
    """The passes of a BatchNorm step over its maps z and y, and dy (N, H, W, C). The statistics are recorded by its producer.

    rolling: the batch statistics (2, C) go there, for the running averages.
    """

    def __init__(self, step: BatchNorm, z: np.ndarray, y: np.ndarray, rolling: np.ndarray):
        self.w, self.kind, self.rolling = step.w, step.activation, rolling
        self.z, self.y = as_pixels(z), as_pixels(y)
        self.pixels, self.channels = self.z.shape
        self.statistics = Statistics(z)
        self.invstd, self.gain_values = np.zeros((2, self.channels), np.float32)
        self.gain, self.shift, self.mean = (ChannelTile(self.channels) for _ in range(3))
        self.ranges = split_pixels(self.pixels, self.channels)
        self.fused = fused.available() and self.kind in fused.SLOPES

    def finish_statistics(self) -> None:
        """Derive gain and shift: y = activation(gain * z + shift)."""
        s, w = self.statistics, self.w
        s.combine()
        self.rolling[0], self.rolling[1] = s.mean, s.variance
        np.divide(1, np.sqrt(s.variance + np.float32(EPS)), out=self.invstd)
        np.multiply(w["scale"], self.invstd, out=self.gain_values)
        self.gain.set(self.gain_values)
        self.shift.set(w["bias"] - s.mean * self.gain_values)
        self.mean.set(s.mean)

    def forward(self) -> TaskStages:
        """Return the stages after the producer's: statistics, then y."""

        def piece(a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                z, y = self.z[a:b], self.y[a:b]
                if self.fused:
                    fused.normalize(commands, self.kind, z, y, self.gain, self.shift)
                    return
                h, t, u = commands.scratch("pointwise", 3, *z.shape)
                out = y if y.flags.c_contiguous else h
                self.gain.apply(commands, np.multiply, z, h)
                self.shift.apply(commands, np.add, h, h)
                apply_activation(commands, self.kind, h, out, t, u)
                if out is not y:
                    commands.record(np.copyto, y, out)

            return record

        return [[lambda commands: commands.record(self.finish_statistics)], [piece(*r) for r in self.ranges]]

    def backward(self, dy: np.ndarray, grad: dict[str, np.ndarray]) -> TaskStages:
        """Return the stages that turn dy into the gradient of z, in place, and write grad["scale"] and grad["bias"]."""
        d_map = as_pixels(dy)
        sums = PixelSums(len(self.ranges), 2, self.channels)
        scale_d, scale_z, offset = (ChannelTile(self.channels) for _ in range(3))

        def activation_gradient(k: int, a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                z, y, d = self.z[a:b], self.y[a:b], d_map[a:b]
                if self.fused:
                    fused.gradient(commands, self.kind, d, z, y, self.mean, sums.parts[k].reshape(2, -1))
                    return
                s, t, u, v = commands.scratch("pointwise", 4, *z.shape)
                work = d if d.flags.c_contiguous else s
                if needs_input(self.kind):
                    self.gain.apply(commands, np.multiply, z, v)
                    self.shift.apply(commands, np.add, v, v)
                apply_gradient(commands, self.kind, d, v, y, work, t, u)
                sums.add(commands, k, 0, work)
                self.mean.apply(commands, np.subtract, z, t)
                commands.record(np.multiply, t, work, out=t)
                sums.add(commands, k, 1, t)
                if work is not d:
                    commands.record(np.copyto, d, work)

            return record

        def coefficients() -> None:
            """dz = gain * (d - mean(d) - xhat * mean(d * xhat)), as scale_d * d + scale_z * z + offset."""
            dbias, centered = sums.sum()
            dscale = centered * self.invstd
            np.copyto(grad["bias"], dbias)
            np.copyto(grad["scale"], dscale)
            slope = -self.gain_values * self.invstd * dscale / np.float32(self.pixels)
            scale_d.set(self.gain_values)
            scale_z.set(slope)
            offset.set(-self.gain_values * dbias / np.float32(self.pixels) - slope * self.statistics.mean)

        def input_gradient(a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                z, d = self.z[a:b], d_map[a:b]
                if fused.available():
                    fused.input_gradient(commands, d, z, scale_d, scale_z, offset)
                    return
                t, s = commands.scratch("pointwise", 2, *z.shape)
                out = d if d.flags.c_contiguous else s
                scale_z.apply(commands, np.multiply, z, t)
                offset.apply(commands, np.add, t, t)
                scale_d.apply(commands, np.multiply, d, out)
                commands.record(np.add, out, t, out=out)
                if out is not d:
                    commands.record(np.copyto, d, out)

            return record

        return [
            [activation_gradient(k, *r) for k, r in enumerate(self.ranges)],
            [lambda commands: commands.record(coefficients)],
            [input_gradient(*r) for r in self.ranges],
        ]


class BiasPass:
    """The passes of a Bias step over its maps x and y, and dy (N, H, W, C)."""

    def __init__(self, step: Bias, x: np.ndarray, y: np.ndarray):
        self.w, self.kind = step.w, step.activation
        self.x, self.y = as_pixels(x), as_pixels(y)
        self.pixels, self.channels = self.x.shape
        self.bias = ChannelTile(self.channels)
        self.ranges = split_pixels(self.pixels, self.channels)

    def forward(self) -> TaskStages:
        """Return the stages that compute y."""

        def piece(a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                x, y = self.x[a:b], self.y[a:b]
                h, t, u = commands.scratch("pointwise", 3, *x.shape)
                out = y if y.flags.c_contiguous else h
                self.bias.apply(commands, np.add, x, h)
                apply_activation(commands, self.kind, h, out, t, u)
                if out is not y:
                    commands.record(np.copyto, y, out)

            return record

        def set_bias() -> None:
            self.bias.set(self.w["bias"])

        return [[lambda commands: commands.record(set_bias)], [piece(*r) for r in self.ranges]]

    def backward(self, dy: np.ndarray, grad: dict[str, np.ndarray]) -> TaskStages:
        """Return the stages that turn dy into the gradient of x, in place, and write grad["bias"]."""
        d_map, sums = as_pixels(dy), PixelSums(len(self.ranges), 1, self.channels)

        def piece(k: int, a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                x, y, d = self.x[a:b], self.y[a:b], d_map[a:b]
                s, t, u, v = commands.scratch("pointwise", 4, *y.shape)
                work = d if d.flags.c_contiguous else s
                if needs_input(self.kind):
                    self.bias.apply(commands, np.add, x, v)
                if self.kind != "linear":
                    apply_gradient(commands, self.kind, d, v, y, work, t, u)
                    if work is not d:
                        commands.record(np.copyto, d, work)
                sums.add(commands, k, 0, d if self.kind == "linear" else work)

            return record

        def finish() -> None:
            np.copyto(grad["bias"], sums.sum()[0])

        return [[piece(k, *r) for k, r in enumerate(self.ranges)], [lambda commands: commands.record(finish)]]
