"""One training step: forward, losses, backward, update, as in Darknet (src/network.c)."""

from __future__ import annotations

import math
import warnings
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..array import Array, Arrays
from ..backend.interop import host_array
from ..backend.threads import split_range
from ..errors import DataError, TrainError, TrainWarning
from ..graph import owner
from ..layers import ForwardContext, Layer, LossContext
from ..layers.base import Backward
from ..network import Network
from ..ops import optimizers
from ..plan.cpu.training import fused
from . import lr_schedule
from .darknet_cpu_bugs import DarknetCpuBugs
from .engines import Engine, PlanEngine, ReferenceEngine
from .label_filter import LabelFilter
from .loss_scale import LossScale
from .parameters import PairwiseSum, Parameters, Segment

MAX_SEED = 2**63 - 1  # that a checkpoint can store
UPDATE_PIECE = 1 << 16  # elements that one task updates


class Rule(NamedTuple):
    """How to update weights: learning rate, weight decay, bounds of the gradients and of the weights, Adam or SGD."""

    rate: float
    decay: float
    grad_clip: float
    clip: float
    adam: bool


class TrainStep:
    """The state of a training, and one iteration of it: gradients, optimizer, loss scale, position in the schedule.

    `momentum[i][name]` is the accumulated negative gradient of a weight, as in Darknet. Layers that share weights share it.
    The arrays of the network's weights become views of one vector (`Parameters`).
    """

    def __init__(
        self, net: Network, seed: int | None = None, *, clear: bool = True, exact: bool = False,
        engine: Literal["plan", "reference"] = "plan",
        precision: Literal["fp32", "fp16"] = "fp32", emulate_darknet_cpu_bugs: bool = False, tune_malloc: bool = True,
    ):  # fmt: skip
        net.config.check_trainable()
        if precision not in ("fp32", "fp16"):
            raise TrainError(f"Trainer: unknown precision '{precision}'; choose fp32 or fp16")
        if emulate_darknet_cpu_bugs and precision == "fp16":
            raise TrainError(
                "Trainer: Darknet's CPU build has no fp16; omit emulate_darknet_cpu_bugs, or choose precision fp32"
            )
        if engine not in ("plan", "reference"):
            raise TrainError(f"Trainer: unknown engine '{engine}'; choose plan or reference")
        if not any(node.layer.has_loss for node in net.nodes):
            raise TrainError(
                f"{net.config.path}: no layer has a loss; end the network in [softmax], [cost] or a head such as [yolo]"
            )
        if not 0 <= (seed or 0) <= MAX_SEED:
            raise TrainError(f"Trainer: seed={seed}: must be from 0 to {MAX_SEED}")
        self.net, self.seed, be = net, seed or 0, net.backend
        self.keeps_seed = seed is not None  # when a state is loaded
        for node in net.nodes:
            if node.layer.loss_missing:
                warnings.warn(
                    f"{net.config.path}: the loss of {self.layer_name(node.index)} is not implemented; layers that only it"
                    " reads are not trained",
                    TrainWarning, stacklevel=2,
                )  # fmt: skip
        if tune_malloc:
            be.tune_malloc()
        cfg = net.net
        net.seen = 0 if clear else net.seen
        half = precision == "fp16"
        if half and be.xp is np and be.launch is None:
            warnings.warn(
                f"{net.config.path}: fp16 saves memory and time on a GPU; on NumPy it is only emulated, slower than fp32",
                TrainWarning, stacklevel=2,
            )  # fmt: skip
        self.dtype, self.loss_scale = np.float16 if half else np.float32, LossScale.of(cfg.loss_scale, half)
        self.skipped = False  # whether the last step was skipped
        self.label_filter = LabelFilter()
        self.exact = exact
        self.cpu_bugs = DarknetCpuBugs(net) if emulate_darknet_cpu_bugs else None
        self.batch = cfg.batch // cfg.subdivisions * cfg.subdivisions * cfg.time_steps
        self.iteration = net.seen // max(self.batch, 1)
        with net.on_device():
            compiled = (
                engine == "plan" and be.xp is np and be.launch is None and not half and not emulate_darknet_cpu_bugs
            )
            self.parameters = Parameters(net, hwio=compiled)
            self.engine: Engine = (
                PlanEngine(net, self.parameters) if compiled else ReferenceEngine(net, self.parameters, self.cpu_bugs)
            )
            self.momentum_vector, self.momentum = self.parameters.zeros()
            self.moment_vectors, self.adam_moments = None, [dict[str, tuple[Array, Array]]() for _ in net.nodes]
            if cfg.adam:
                (m, ms), (v, vs) = self.parameters.zeros(), self.parameters.zeros()
                self.moment_vectors = m, v
                self.adam_moments = [{name: (ms[node.index][name], vs[node.index][name]) for name in own}
                                     if node.layer.uses_adam else {}
                                     for node, own in zip(net.nodes, self.momentum, strict=True)]  # fmt: skip
        self.ema_weights: list[Arrays] | None = None  # with ema_alpha
        self.extra: dict[str, Any] = {}  # what a TrainingRun keeps: average loss, best score, last validation
        self.bn_only_until = max((node.index for node in net.nodes if node.layer.train_only_bn), default=-1)

    @property
    def first_trained(self) -> int:
        """The first layer that the backward pass reaches: after the last stopbackward=1, or =K until iteration K."""
        stops = [n.index for n in self.net.nodes if n.layer.stopbackward == 1 or n.layer.stopbackward > self.iteration]
        return max(stops, default=-1) + 1

    @property
    def rate(self) -> float:
        """The learning rate of the last step; before the first, that of iteration 0, which with burn_in is 0."""
        u = float(np.random.default_rng([self.seed, self.iteration, 1]).random())
        return lr_schedule.rate(self.net.net, self.iteration, u)

    def step(self, x: Any, truth: Any) -> float:
        """Run one iteration on x (N, C, H, W), values 0..1, and truth (N, truths) in Darknet's layout; return the cost.

        The cost is the sum over the images of the mean over the layers with a loss. N may differ from [net] batch, but is a
        multiple of time_steps times subdivisions, which run one after the other. Raises DataError if shapes do not match;
        TrainError if values are no longer finite. After an error weights, momentum and counts are as before the step; batch
        norm's running statistics and the label filter's averages may have moved.
        """
        net, subdivisions = self.net, self.net.net.subdivisions
        N, multiple = len(x), subdivisions * net.net.time_steps
        truth = np.asarray(host_array(truth), np.float32)
        if len(truth) != N or N % multiple or N == 0:
            raise DataError(
                f"a batch of {N} images and {len(truth)} truths; both counts must be the same multiple of {multiple}"
            )
        truth, size, costs = truth.reshape(N, -1), N // subdivisions, []
        self.sum = PairwiseSum(self.add)
        with net.on_device():
            truth = net.backend.asarray(truth)
            net.program_cache.clear()  # the weights are about to change
            for part in range(subdivisions):
                images = slice(part * size, (part + 1) * size)
                rng = np.random.default_rng([self.seed, self.iteration, 2, part])
                costs.append(self.compute_gradients(net.input(x[images]), truth[images], net.seen + images.stop, rng))
                if subdivisions > 1:
                    self.sum.push(self.engine.gradients)
            gradients = self.sum.total() if subdivisions > 1 else self.engine.gradients
            cost, finite = self.check_finite(costs, gradients, x[:size])
            self.skipped = not finite
            net.seen, self.iteration = net.seen + N, self.iteration + 1
            if not self.skipped:
                self.update(gradients, N)
        return cost

    def compute_gradients(self, x: Array, truth: Array, seen: int, rng: np.random.Generator) -> Array:
        """Run x (N, C, H, W) forward and backward; return the mean cost (1,) of the layers with a loss.

        Writes `engine.gradients`: gradients, as negative as Darknet's deltas, multiplied by the loss scale. truth (N, truths) is
        on the backend. seen: images trained on so far, these included. Nothing waits for the device.
        """
        net, be = self.net, self.net.backend
        cfg = net.net
        filters = cfg.num_sigmas_reject_badlabels or cfg.badlabels_rejection_percentage or cfg.equidistant_point
        scale = be.asarray(np.array([self.loss_scale.value], np.float32))
        reject = self.filter_deltas if filters else None
        loss_ctx = LossContext(net.width, net.height, seen, self.exact, rng, reject, scale)
        ctx = ForwardContext(
            train=True,
            rng=rng,
            steps=cfg.time_steps,
            progress=self.iteration / cfg.max_batches if cfg.max_batches else 0.0,
            frozen=self.first_trained,
            skip_input_grad=True,
        )
        costs: list[Array] = []

        def delta(layer: Layer, x: Array | None, y: Array) -> Array:
            try:
                value, delta = layer.loss(be, y if x is None else x, y, truth, loss_ctx)
            except ValueError as e:
                index = next(node.index for node in net.nodes if node.layer is layer)
                raise DataError(
                    f"a truth of {truth.shape[1]} values per image does not fit {self.layer_name(index)} of {net.config.path}"
                ) from e
            costs.append(value)
            return delta.astype(self.dtype, copy=False)  # outputs of sums are float32

        with np.errstate(all="ignore"):  # `check_finite` looks for values that are not finite
            self.engine.run(x.astype(self.dtype, copy=False), ctx, delta)
        mean: Array = sum(costs[1:], costs[0]) / len(costs)
        return mean

    def add(self, a: Array, b: Array) -> None:
        """Add vector b to vector a."""
        pieces = self.pieces(0, len(a))
        self.net.backend.run_parallel([partial(self.net.backend.xp.add, a[i:j], b[i:j], out=a[i:j]) for i, j in pieces])

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Split a range of a vector into pieces (from, to) that tasks share; on a GPU, it is one."""
        size = UPDATE_PIECE if self.on_cpu else max(1, stop - start)
        return [(start + i, start + j) for i, j in split_range(stop - start, size)]

    @property
    def on_cpu(self) -> bool:
        """Whether arrays are NumPy's."""
        return self.net.backend.xp is np

    def filter_deltas(self, delta: np.ndarray, anchor_size: int) -> None:
        """Zero late deltas of a [yolo] as [net] asks for; anchor_size: values per anchor."""
        cfg = self.net.net
        keys = cfg.num_sigmas_reject_badlabels, cfg.badlabels_rejection_percentage, cfg.equidistant_point
        self.label_filter.apply(delta, anchor_size, self.iteration, cfg.max_batches, *keys)

    def update(self, gradients: Array, N: int) -> None:
        """Update the weights with the vector of gradients of N images, which are multiplied by the loss scale."""
        scale = self.loss_scale.value
        tasks = [
            partial(self.update_range, rule, slice(i, j), gradients, scale, N)
            for rule, start, stop in self.rules(N)
            for i, j in self.pieces(start, stop)
        ]
        self.net.backend.run_parallel(tasks)
        self.loss_scale.on_success()
        self.update_ema()

    def rules(self, N: int) -> list[tuple[Rule | None, int, int]]:
        """Return how to update which elements of the vectors, for N images; without a rule, only the momentum is added to."""
        rate = self.rate
        rules = [(self.rule(segment, N, rate), segment) for segment in self.parameters.segments]
        merged = []
        for rule, group in groupby(rules, lambda item: item[0]):
            segments = [segment for _, segment in group]
            merged.append((rule, segments[0].start, segments[-1].stop))
        return merged

    def rule(self, segment: Segment, N: int, rate: float) -> Rule | None:
        """Return how to update one weight at a learning rate; None if this iteration does not."""
        net, cfg = self.net, self.net.net
        node = net.nodes[segment.layer]
        layer, name = node.layer, segment.name
        if (
            node.index < self.first_trained - 1
            or (self.cpu_bugs and self.cpu_bugs.frozen_by_bug(node))
            or (layer.dont_update and self.iteration <= layer.dont_update)
            or (layer.burnin_update and self.iteration < layer.burnin_update * cfg.burn_in)
        ):
            return None
        last = name.rpartition(".")[2]
        is_bn = last in ("scale", "bias") and name[: -len(last)] + "scale" in net.weights[node.index]
        if node.index <= self.bn_only_until and not is_bn:
            return None
        adam = name in self.adam_moments[node.index]
        decay = cfg.decay * N if adam or last in layer.weight_decay_params else 0.0
        clip = layer.clip if last == "kernel" else 0.0
        return Rule(rate * layer.learning_rate, decay, layer.grad_clip, clip, adam)

    def update_range(self, rule: Rule | None, part: slice, gradients: Array, scale: float, N: int) -> None:
        """Update a range of the vectors."""
        be, cfg = self.net.backend, self.net.net
        g, w = self.momentum_vector[part], self.parameters.weights[part]
        if rule is not None and self.on_cpu and fused.available() and rule.grad_clip == math.inf:
            self.update_fused(rule, part, gradients, scale, N)
            return
        g += gradients[part] if scale == 1 else gradients[part] / scale
        if rule is None:
            return
        if rule.grad_clip < math.inf:
            be.xp.clip(g, -rule.grad_clip, rule.grad_clip, out=g)
        if rule.adam and self.moment_vectors is not None:
            m, v = (moments[part] for moments in self.moment_vectors)
            optimizers.adam(be, w, g, m, v, rule.rate, cfg.B1, cfg.B2, cfg.eps, rule.decay, self.iteration)
        else:
            optimizers.sgd(be, w, g, rule.rate / N, cfg.momentum, rule.decay)
        if rule.clip:
            be.xp.clip(w, -rule.clip, rule.clip, out=w)

    def update_fused(self, rule: Rule, part: slice, gradients: Array, scale: float, N: int) -> None:
        """Update a range of the vectors in one pass, by Numba."""
        cfg, f = self.net.net, np.float32
        w, inverse = self.parameters.weights[part], f(1 / scale)
        arrays = w, self.momentum_vector[part], gradients[part], inverse
        if rule.adam and self.moment_vectors is not None:
            m, v = (moments[part] for moments in self.moment_vectors)
            powers = (f(1 - beta**self.iteration) for beta in (cfg.B1, cfg.B2))
            numbers = f(rule.rate), f(cfg.B1), f(cfg.B2), f(cfg.eps), f(rule.decay), *powers
            fused.kernels().adam(*arrays, m, v, *numbers)
        else:
            fused.kernels().sgd(*arrays, f(rule.rate / N), f(cfg.momentum), f(rule.decay))
        if rule.clip:
            np.clip(w, -rule.clip, rule.clip, out=w)

    def update_ema(self) -> None:
        """Update the moving average of the weights from max_batches/2 on; 1000 iterations before the end it replaces them."""
        cfg, net = self.net.net, self.net
        end = cfg.max_batches - 1000
        if not cfg.ema_alpha or not cfg.max_batches // 2 <= self.iteration <= end:
            return
        if self.ema_weights is None:
            self.ema_weights = copy_weights(net)
            return
        for own, averages in zip(net.weights, self.ema_weights, strict=True):
            for name, average in averages.items():
                if self.iteration == end:
                    own[name][...] = average
                else:
                    average *= cfg.ema_alpha
                    average += (1 - cfg.ema_alpha) * own[name]

    def check_finite(self, costs: list[Array], gradients: Array, x: Any) -> tuple[float, bool]:
        """Return the sum of costs (1,), and whether all gradients are finite; if not, lower a dynamic loss scale.

        Waits for the device, once. Raises TrainError, naming the layer, if the cost is not finite or the scale cannot be lowered.
        """
        be, xp = self.net.backend, self.net.backend.xp
        with np.errstate(all="ignore"):
            sums = [sum(costs[1:], costs[0]), self.total(gradients)]
            cost, total = be.to_numpy(xp.concatenate(sums, dtype=np.float64)).tolist()
        if math.isfinite(cost) and math.isfinite(total):
            return cost, True
        if math.isfinite(cost) and self.loss_scale.backoff():
            return cost, False
        net, advice = self.net, "lower learning_rate, lengthen burn_in, or check the labels"
        advice += ", or train in fp32" if self.dtype == np.float16 else ""
        if math.isfinite(cost) and self.loss_scale.value > 1:
            advice = f"loss_scale={self.loss_scale.value:g} may be too large; remove the key for a dynamic scale"
        bad: list[int] = []

        def on_output(index: int, y: Array, backward: Backward) -> None:
            if not bad and not bool(xp.isfinite(y).all()):
                bad.append(index)

        rng = np.random.default_rng([self.seed, self.iteration, 2, 0])
        ctx = ForwardContext(train=True, rng=rng, steps=net.net.time_steps, frozen=self.first_trained)
        net.forward(net.input(x).astype(self.dtype, copy=False), ctx, on_output)
        what = "the loss is not finite"
        if bad:
            what = f"the output of {self.layer_name(bad[0])} is not finite"
        else:
            grads = self.parameters.views(gradients)
            for index in reversed(range(len(net.nodes))):
                names = [k for k, g in grads[index].items() if not bool(xp.isfinite(g).all())]
                if names:
                    what = f"the gradient of {names[0]} in {self.layer_name(index)} is not finite"
                    break
        raise TrainError(f"{net.config.path}: iteration {self.iteration + 1}: {what}; {advice}")

    def total(self, vector: Array) -> Array:
        """Return the sum (1,) of a vector, which is not finite if an element is not."""
        if not self.on_cpu:
            return vector.sum(keepdims=True)
        pieces = self.pieces(0, len(vector))
        sums = np.zeros(max(len(pieces), 1), np.float32)
        self.net.backend.run_parallel(
            [partial(np.sum, vector[i:j], out=sums[k, ...]) for k, (i, j) in enumerate(pieces)]
        )
        return sums.sum(keepdims=True)

    def layer_name(self, index: int) -> str:
        """Return how messages name a layer."""
        return f"layer {index} [{self.net.nodes[index].layer.section}]"

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return everything that training needs to resume bit-exactly, as NumPy arrays: KIND/LAYER/NAME, and some scalars."""
        arrays = {
            "seen": np.array(self.net.seen),
            "iteration": np.array(self.iteration),
            "seed": np.array(self.seed),
            "scale": self.loss_scale.state(),
            "rejection": self.label_filter.state(),
        }
        for kind, layers in self._arrays().items():
            for i, own in enumerate(layers):
                arrays |= {f"{kind}/{i}/{name}": self.net.backend.to_numpy(a) for name, a in own.items()}
        return arrays

    def load_state_dict(self, state: dict[str, np.ndarray], path: str | Path = "state_dict") -> None:
        """Restore what `state_dict` returned; path is for messages. Raises TrainError if it is of another network."""
        net = self.net
        with net.on_device():
            averages = any(name.startswith("average/") for name in state)
            self.ema_weights = copy_weights(net) if averages else None
            arrays = {f"{kind}/{i}/{name}": (i, a) for kind, layers in self._arrays().items()
                      for i, own in enumerate(layers) for name, a in own.items()}  # fmt: skip
            for key, (i, a) in arrays.items():
                if key not in state or state[key].shape != a.shape:
                    raise TrainError(f"{path}: belongs to another cfg ({self.layer_name(i)} differs); remove it")
            for key, (_, a) in arrays.items():
                a[...] = net.backend.asarray(state[key])
        net.program_cache.clear()
        self.loss_scale.load_state(state["scale"])
        self.label_filter.load_state(state["rejection"])
        net.seen, self.iteration, seed = int(state["seen"]), self.iteration_of(state), int(state["seed"])
        if not self.keeps_seed:
            self.seed = seed
        elif self.seed != seed:
            warnings.warn(
                f"{path}: was trained with seed {seed}; from iteration {self.iteration + 1} on the seed is {self.seed}",
                TrainWarning, stacklevel=3,
            )  # fmt: skip

    def iteration_of(self, state: dict[str, np.ndarray]) -> int:
        """Return the iteration of a state; older checkpoints have only the image count."""
        return int(state.get("iteration", int(state.get("seen", 0)) // max(self.batch, 1)))

    def reset(self) -> None:
        """Set everything but the weights and the position in the schedule to what it is before the first iteration."""
        self.ema_weights, self.label_filter, self.extra = None, LabelFilter(), {}
        self.loss_scale = LossScale.of(self.net.net.loss_scale, self.dtype == np.float16)
        with self.net.on_device():
            for kind, layers in self._arrays().items():
                for own in layers if kind != "weights" else ():
                    for a in own.values():
                        a[...] = 0

    def _arrays(self) -> dict[str, list[Arrays]]:
        """Return the arrays of the state, by the kinds that a checkpoint knows. Shared weights belong to their owner."""
        net, xp = self.net, self.net.backend.xp
        owns = [owner(n) == n.index for n in net.nodes]
        arrays = {
            "weights": [{k: a for k, a in w.items() if isinstance(a, xp.ndarray)} if mine else {}
                        for w, mine in zip(net.weights, owns, strict=True)],
            "gradients": [g if mine else {} for g, mine in zip(self.momentum, owns, strict=True)],
            "m": [{k: m for k, (m, _) in pairs.items()} for pairs in self.adam_moments],
            "v": [{k: v for k, (_, v) in pairs.items()} for pairs in self.adam_moments],
        }  # fmt: skip
        return arrays | ({"average": self.ema_weights} if self.ema_weights is not None else {})


def copy_weights(net: Network) -> list[Arrays]:
    """Copy all arrays of a network's weights."""
    return [{k: a.copy() for k, a in own.items() if hasattr(a, "copy")} for own in net.weights]
