"""Batch norm in training, with the activation after it, and biases: forward and backward in as few passes as NumPy allows.

Statistics are the mean of each piece of a map and the sum of squared distances to it, combined as Chan, Golub and LeVeque do
(1979); unlike a sum of squares, that loses nothing if the mean is large. Pieces fit a core's cache.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ....ops.norm import EPS
from ...training.steps import BatchNorm, Bias
from ..command_list import CommandList, Task, TaskStages
from . import fused
from .activations import apply_activation, apply_gradient, needs_input
from .pixels import ChannelTile, PixelSums, as_pixels, constant, piece_size, share, split_pixels


class Statistics:
    """Mean and variance of the batch per channel of z (pixels, C), from those of pieces, whose size depends on C alone."""

    def __init__(self, z: np.ndarray):
        self.z, (self.pixels, C) = z, z.shape
        self.piece, self.ranges = piece_size(C), split_pixels(*z.shape)
        count = len(self.ranges)
        self.means, self.squares = np.zeros((2, count, C), np.float32)
        self.sizes = np.array([b - a for a, b in self.ranges], np.float32)
        self.mean, self.variance = np.zeros((2, C), np.float32)

    def stage(self, workers: int) -> list[Task]:
        """Return the tasks that compute the statistics of the pieces."""
        return [partial(self.record, *r) for r in share(len(self.ranges), workers, self.z.size // len(self.ranges))]

    def record(self, first: int, end: int, commands: CommandList) -> None:
        """Record the statistics of the pieces `first` to `end`."""
        if fused.available():
            length, arrays = fused.Runs(self.z).length, (self.means, self.squares)
            numbers = self.pixels, self.piece, first, end, length
            fused.record(commands, fused.kernels().statistics, fused.flat(self.z), *numbers, *arrays)
            return
        for k in range(first, end):
            a, b = self.ranges[k]
            z, n, C = self.z[a:b], b - a, self.z.shape[1]
            centered, tile = commands.scratch("centered", n, C), ChannelTile(C, commands)
            commands.record(np.matmul, constant(n, 1 / n), z, out=self.means[k])
            commands.record(tile.set, self.means[k])
            tile.apply(commands, np.subtract, z, centered)
            commands.record(np.multiply, centered, centered, out=centered)
            commands.record(np.matmul, constant(n, 1), centered, out=self.squares[k])

    def combine(self) -> None:
        """Compute mean and biased variance of all pieces."""
        np.matmul(self.sizes, self.means, out=self.mean)
        self.mean /= self.pixels
        self.means -= self.mean
        self.means *= self.means
        np.matmul(constant(len(self.sizes), 1), self.squares, out=self.variance)
        self.variance += np.matmul(self.sizes, self.means)
        self.variance /= self.pixels


class BatchNormPass:
    """The passes of a BatchNorm step over its maps z, contiguous, and y, and dy (N, H, W, C).

    rolling: the batch statistics (2, C) go there, for the running averages.
    """

    def __init__(self, step: BatchNorm, z: np.ndarray, y: np.ndarray, rolling: np.ndarray, workers: int):
        self.w, self.kind, self.rolling = step.w, step.activation, rolling
        self.z, self.y = as_pixels(z), as_pixels(y)
        self.pixels, self.channels = self.z.shape
        self.statistics, self.workers = Statistics(self.z), workers
        self.invstd, self.gain_values = np.zeros((2, self.channels), np.float32)
        self.gain, self.shift, self.mean = (ChannelTile(self.channels) for _ in range(3))
        self.ranges = split_pixels(self.pixels, self.channels)
        self.fused = fused.available() and self.kind in fused.SLOPES

    def finish_statistics(self) -> None:
        """Derive gain and shift: y = activation(gain * z + shift)."""
        s, w = self.statistics, self.w
        if fused.available():
            tiles = (tile.values for tile in (self.gain, self.shift, self.mean))
            derived = self.rolling, self.invstd, self.gain_values, *tiles
            fused.kernels().combine_statistics(
                s.sizes, s.means, s.squares, self.pixels, w["scale"], w["bias"], *derived
            )
            return
        s.combine()
        self.rolling[0], self.rolling[1] = s.mean, s.variance
        np.divide(1, np.sqrt(s.variance + np.float32(EPS)), out=self.invstd)
        np.multiply(w["scale"], self.invstd, out=self.gain_values)
        self.gain.set(self.gain_values)
        self.shift.set(w["bias"] - s.mean * self.gain_values)
        self.mean.set(s.mean)

    def forward(self) -> TaskStages:
        """Return the stages: statistics, then y."""

        def piece(a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                z, y = self.z[a:b], self.y[a:b]
                h, t, u = commands.scratch("pointwise", 3, *z.shape)
                out = y if y.flags.c_contiguous else h
                self.gain.apply(commands, np.multiply, z, h)
                self.shift.apply(commands, np.add, h, h)
                apply_activation(commands, self.kind, h, out, t, u)
                if out is not y:
                    commands.record(np.copyto, y, out)

            return record

        def pixels(a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                runs = fused.Runs(self.z, self.y)
                values = self.gain.run(runs.repeats), self.shift.run(runs.repeats), np.float32(fused.SLOPES[self.kind])
                arguments = *values, a, b, self.channels, runs.length, *runs.steps
                fused.record(commands, fused.kernels().normalize, fused.flat(self.z), fused.flat(self.y), *arguments)

            return record

        if self.fused:
            last = [pixels(*r) for r in share(self.pixels, self.workers, self.channels)]
        else:
            last = [piece(*r) for r in self.ranges]
        return [self.statistics.stage(self.workers), [lambda commands: commands.record(self.finish_statistics)], last]

    def backward(self, dy: np.ndarray, grad: dict[str, np.ndarray]) -> TaskStages:
        """Return the stages that turn dy into the gradient of z, in place, and write grad["scale"] and grad["bias"]."""
        d_map = as_pixels(dy)
        sums = PixelSums(len(self.ranges), 2, self.channels)
        scale_d, scale_z, offset = (ChannelTile(self.channels) for _ in range(3))

        def activation_gradient(k: int, a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                z, y, d = self.z[a:b], self.y[a:b], d_map[a:b]
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
            if fused.available():
                parts = sums.parts.reshape(-1, 2, self.channels)
                saved = self.pixels, self.rolling[0], self.invstd, self.gain_values
                tiles = (tile.values for tile in (scale_d, scale_z, offset))
                fused.kernels().batch_norm_coefficients(parts, *saved, grad["bias"], grad["scale"], *tiles)
                return
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
                t, s = commands.scratch("pointwise", 2, *z.shape)
                out = d if d.flags.c_contiguous else s
                scale_z.apply(commands, np.multiply, z, t)
                offset.apply(commands, np.add, t, t)
                scale_d.apply(commands, np.multiply, d, out)
                commands.record(np.add, out, t, out=out)
                if out is not d:
                    commands.record(np.copyto, d, out)

            return record

        def fused_activation_gradient(first: int, end: int) -> Task:
            def record(commands: CommandList) -> None:
                runs = fused.Runs(d_map, self.z, self.y)
                arrays = fused.flat(d_map), fused.flat(self.z), fused.flat(self.y), self.mean.run(runs.repeats)
                pieces = sums.parts.reshape(-1, 2, self.channels), self.pixels, self.statistics.piece, first, end
                arguments = np.float32(fused.SLOPES[self.kind]), *pieces, runs.length, *runs.steps
                fused.record(commands, fused.kernels().gradient, *arrays, *arguments)

            return record

        def fused_input_gradient(a: int, b: int) -> Task:
            def record(commands: CommandList) -> None:
                runs = fused.Runs(d_map, self.z)
                values = (tile.run(runs.repeats) for tile in (scale_d, scale_z, offset))
                arguments = *values, a, b, self.channels, runs.length, *runs.steps
                fused.record(
                    commands, fused.kernels().input_gradient, fused.flat(d_map), fused.flat(self.z), *arguments
                )

            return record

        if self.fused:
            first = [
                fused_activation_gradient(*r)
                for r in share(len(self.ranges), self.workers, self.z.size // len(self.ranges))
            ]
        else:
            first = [activation_gradient(k, *r) for k, r in enumerate(self.ranges)]
        if fused.available():
            last = [fused_input_gradient(*r) for r in share(self.pixels, self.workers, self.channels)]
        else:
            last = [input_gradient(*r) for r in self.ranges]
        return [first, [lambda commands: commands.record(coefficients)], last]


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
