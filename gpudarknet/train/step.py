"""One training step: forward, losses, backward, update, as in Darknet (src/network.c)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..array import Array, Arrays
from ..backend.interop import host_array
from ..errors import DataError, TrainError, TrainWarning
from ..graph import Node, owner
from ..layers import ForwardContext, LossContext
from ..layers.base import Backward
from ..network import Network
from ..ops import optimizers
from . import lr_schedule
from .darknet_cpu_bugs import DarknetCpuBugs
from .label_filter import LabelFilter
from .loss_scale import LossScale

MAX_SEED = 2**63 - 1  # that a checkpoint can store
STATISTICS = ("mean", "variance")  # batch norm's, which have no gradient


class TrainStep:
    """The state of a training, and one iteration of it: gradients, optimizer, loss scale, position in the schedule.

    `momentum[i][name]` is the accumulated negative gradient of a weight, as in Darknet. Layers that share weights share it.
    """

    def __init__(
        self, net: Network, seed: int | None = None, *, clear: bool = True, exact: bool = False,
        precision: Literal["fp32", "fp16"] = "fp32", emulate_darknet_cpu_bugs: bool = False, tune_malloc: bool = True,
    ):  # fmt: skip
        net.config.check_trainable()
        if precision not in ("fp32", "fp16"):
            raise TrainError(f"Trainer: unknown precision '{precision}'; choose fp32 or fp16")
        if emulate_darknet_cpu_bugs and precision == "fp16":
            raise TrainError(
                "Trainer: Darknet's CPU build has no fp16; omit emulate_darknet_cpu_bugs, or choose precision fp32"
            )
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
        self.momentum: list[Arrays] = []
        with net.on_device():
            for node in net.nodes:
                if owner(node) != node.index:
                    self.momentum.append(self.momentum[owner(node)])
                    continue
                arrays = net.weights[node.index].items()
                self.momentum.append({name: be.zeros(a.shape) for name, a in arrays if is_trainable(name, a)})
            self.adam_moments = [{name: (be.zeros(g.shape), be.zeros(g.shape)) for name, g in own.items()}
                                 if cfg.adam and node.layer.uses_adam else {}
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
        grads: list[Arrays] = []  # of this step, multiplied by the loss scale
        for node in net.nodes:
            grads.append(grads[owner(node)] if owner(node) != node.index else {})
        with net.on_device():
            truth = net.backend.asarray(truth)
            for part in range(subdivisions):
                images = slice(part * size, (part + 1) * size)
                rng = np.random.default_rng([self.seed, self.iteration, 2, part])
                costs.append(self.accumulate(net.input(x[images]), truth[images], net.seen + images.stop, rng, grads))
            cost, finite = self.check_finite(costs, grads, x[:size])
            self.skipped = not finite
            net.seen, self.iteration = net.seen + N, self.iteration + 1
            if not self.skipped:
                self.apply_momentum(grads)
                self.update(N)
        return cost

    def accumulate(self, x: Array, truth: Array, seen: int, rng: np.random.Generator, grads: list[Arrays]) -> Array:
        """Run x (N, C, H, W) forward and backward, add to `grads[i][name]`; return the mean cost (1,) of the layers with a loss.

        truth (N, truths) is on the backend. seen: images trained on so far, these included. Nothing waits for the device.
        """
        net, be = self.net, self.net.backend
        cfg = net.net
        filters = cfg.num_sigmas_reject_badlabels or cfg.badlabels_rejection_percentage or cfg.equidistant_point
        scale = be.asarray(np.array([self.loss_scale.value], np.float32))
        reject = self.filter_deltas if filters else None
        loss_ctx = LossContext(net.width, net.height, seen, self.exact, rng, reject, scale)
        progress = self.iteration / cfg.max_batches if cfg.max_batches else 0.0
        ctx = ForwardContext(
            train=True,
            rng=rng,
            steps=cfg.time_steps,
            progress=progress,
            frozen=self.first_trained,
            skip_input_grad=True,
        )
        loss_inputs = {source for node in net.nodes if node.layer.loss_reads_input for source in node.sources}
        inputs: dict[int, Array] = {-1: x}
        backwards: list[Backward | None] = []
        deltas: dict[int, Array] = {}
        costs: list[Array] = []

        def on_output(index: int, y: Array, backward: Backward) -> None:
            node = net.nodes[index]
            backwards.append(self.cpu_bugs.wrap(node, y, backward) if self.cpu_bugs else backward)
            if index in loss_inputs:
                inputs[index] = y
            if not node.layer.has_loss:
                return
            try:
                value, delta = node.layer.loss(be, inputs.get(node.sources[0], y), y, truth, loss_ctx)
            except ValueError as e:
                raise DataError(
                    f"a truth of {truth.shape[1]} values per image does not fit {self.layer_name(index)} of {net.config.path}"
                ) from e
            costs.append(value)
            deltas[index] = delta.astype(self.dtype, copy=False)  # outputs of sums are float32

        with np.errstate(all="ignore"):  # `check_finite` looks for values that are not finite
            net.forward(x.astype(self.dtype, copy=False), ctx, on_output)
            deltas |= self.cpu_bugs.kept_deltas if self.cpu_bugs else {}
            backward(net.nodes, backwards, deltas, grads, self.first_trained)
        mean: Array = sum(costs[1:], costs[0]) / len(costs)
        return mean

    def filter_deltas(self, delta: np.ndarray, anchor_size: int) -> None:
        """Zero late deltas of a [yolo] as [net] asks for; anchor_size: values per anchor."""
        cfg = self.net.net
        keys = cfg.num_sigmas_reject_badlabels, cfg.badlabels_rejection_percentage, cfg.equidistant_point
        self.label_filter.apply(delta, anchor_size, self.iteration, cfg.max_batches, *keys)

    def apply_momentum(self, grads: list[Arrays]) -> None:
        """Add a step's gradients, divided by the loss scale, to the momentum."""
        scale = self.loss_scale.value
        for node in self.net.nodes:
            if owner(node) == node.index:
                for name, g in grads[node.index].items():
                    self.momentum[node.index][name] += g if scale == 1 else g / scale
        self.loss_scale.on_success()

    def update(self, N: int) -> None:
        """Update the weights with the gradients of N images."""
        net, be, cfg = self.net, self.net.backend, self.net.net
        rate, stop = self.rate, self.first_trained - 1
        for node in net.nodes:
            layer = node.layer
            if node.index < stop or owner(node) != node.index:
                continue
            if self.cpu_bugs and self.cpu_bugs.frozen_by_bug(node):
                continue
            if layer.dont_update and self.iteration <= layer.dont_update:
                continue
            if layer.burnin_update and self.iteration < layer.burnin_update * cfg.burn_in:
                continue
            w = net.weights[node.index]
            for name, g in self.momentum[node.index].items():
                last = name.rpartition(".")[2]
                is_bn = last in ("scale", "bias") and name[: -len(last)] + "scale" in w
                if node.index <= self.bn_only_until and not is_bn:
                    continue
                if layer.grad_clip < math.inf:
                    be.xp.clip(g, -layer.grad_clip, layer.grad_clip, out=g)
                lr = rate * layer.learning_rate
                if name in self.adam_moments[node.index]:
                    m, v = self.adam_moments[node.index][name]
                    optimizers.adam(be, w[name], g, m, v, lr, cfg.B1, cfg.B2, cfg.eps, cfg.decay * N, self.iteration)
                else:
                    decay = cfg.decay * N if last in layer.weight_decay_params else 0.0
                    optimizers.sgd(be, w[name], g, lr / N, cfg.momentum, decay)
                if layer.clip and last == "kernel":
                    be.xp.clip(w[name], -layer.clip, layer.clip, out=w[name])
        self.update_ema()

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

    def check_finite(self, costs: list[Array], grads: list[Arrays], x: Any) -> tuple[float, bool]:
        """Return the sum of costs (1,), and whether all gradients are finite; if not, lower a dynamic loss scale.

        Waits for the device, once. Raises TrainError, naming the layer, if the cost is not finite or the scale cannot be lowered.
        """
        be, xp = self.net.backend, self.net.backend.xp
        with np.errstate(all="ignore"):
            sums = [g.sum() for own in grads for g in own.values()]
            total = xp.stack(sums).sum(keepdims=True) if sums else xp.zeros(1)
            cost, total = be.to_numpy(xp.concatenate([sum(costs[1:], costs[0]), total], dtype=np.float64)).tolist()
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
            for index in reversed(range(len(net.nodes))):
                names = [k for k, g in grads[index].items() if not bool(xp.isfinite(g).all())]
                if names:
                    what = f"the gradient of {names[0]} in {self.layer_name(index)} is not finite"
                    break
        raise TrainError(f"{net.config.path}: iteration {self.iteration + 1}: {what}; {advice}")

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


def is_trainable(name: str, a: Any) -> bool:
    """Return whether one of a layer's weights is trained; recurrent layers also store their state, a list, among them."""
    return hasattr(a, "dtype") and not name.endswith(STATISTICS)


def copy_weights(net: Network) -> list[Arrays]:
    """Copy all arrays of a network's weights."""
    return [{k: a.copy() for k, a in own.items() if hasattr(a, "copy")} for own in net.weights]


def backward(
    nodes: Sequence[Node],
    backwards: list[Backward | None],
    deltas: dict[int, Array],
    grads: list[Arrays],
    first: int = 0,
) -> dict[int, Array]:
    """Propagate deltas (layer -> delta of its output) back to layer `first`, adding into grads[layer][name].

    A layer with several readers gets the sum of their deltas. Entries of `backwards` are dropped once used. Returns the
    remaining deltas: that of the input, as -1, and of layers before `first`.
    """
    for node in reversed(nodes[first:]):
        run, dy = backwards[node.index], deltas.pop(node.index, None)
        backwards[node.index] = None
        if dy is None or run is None or node.layer.onlyforward:
            continue
        for source, dx in zip(node.sources, run(dy, grads[node.index]), strict=True):
            if dx is not None:
                deltas[source] = dx if source not in deltas else deltas[source] + dx
    return deltas
