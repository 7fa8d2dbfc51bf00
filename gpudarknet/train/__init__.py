"""Train a network: one step is forward, losses, backward, update, as Darknet does them (src/network.c).

    trainer = Trainer(net)
    cost = trainer.step(x, truth)       # x (N, C, H, W), truth (N, truths)

Chance comes from (seed, iteration) alone, so a run that is stopped and resumed goes on as if it had never stopped.

`step` alone is held to the numbers of the original program's CPU build, which trains some classifiers wrongly (cpu_build.py).
`Trainer(net, emulate_darknet_cpu_bugs=False)` is sound; `fit` and the command line always are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..backend import host_array
from ..data.datafile import DataFile
from ..errors import DataError, TrainError, TrainWarning
from ..graph import Node, owner
from ..layers import ForwardContext, LossContext
from ..layers.convolutional import Convolutional
from ..layers.empty import Contrastive
from ..layers.softmax import Cost
from ..network import Network
from ..ops import optimizers
from . import checkpoint, loop, lr_schedule
from .darknet_cpu_bugs import CpuBuild
from .label_filter import Rejection
from .loss_scale import LossScale

FIXED = ("mean", "variance")  # statistics, which no gradient moves
Way = Any  # what a layer's forward returns beside its output


class Trainer:
    """A network in training: its gradients, its optimiser, its place in the schedule.

    It begins a new training at iteration 0; with clear=False it goes on where the weights' count of images says. cpu_build
    copies faults of Darknet's CPU build (cpu_build.py) and warns where there are any; `fit` switches it off. exact: IoU losses
    give their gradient where Darknet's delta is something else; iou_normalizer then has to be larger, as the gradient is with
    respect to parts of the whole image. gradients[i][name] is Darknet's accumulated negative gradient, which holds the
    momentum of the past.

    precision: with fp16, maps and deltas are float16 in memory; arithmetic, weights, their gradients and the statistics of
    batch norm stay float32. [net] loss_scale multiplies the deltas; where it is 1, a scale is found: it is halved when a
    gradient overflows, and that step is skipped. Raises TrainError, CfgError.
    """

    def __init__(
        self, net: Network, seed: int = 0, clear: bool = True, emulate_darknet_cpu_bugs: bool = True, exact: bool = False,
        precision: Literal["fp32", "fp16"] = "fp32",
    ):  # fmt: skip
        lr_schedule.check(net.net, net.config.path)
        if precision not in ("fp32", "fp16"):
            raise TrainError(f"Trainer: unknown precision '{precision}'; choose fp32 or fp16")
        if not any(node.layer.has_loss for node in net.nodes):
            raise TrainError(
                f"{net.config.path}: no layer has a loss; end the network in [softmax], [cost], [yolo] or [region]"
            )
        self.net, self.seed, be = net, seed, net.backend
        for node in net.nodes:
            if isinstance(node.layer, Contrastive):
                warnings.warn(
                    f"{net.config.path}: the loss of {self.place(node.index)} is not offered; what only it reads does not learn",
                    TrainWarning, stacklevel=2,
                )  # fmt: skip
        be.tune_malloc()
        cfg = net.net
        net.seen = 0 if clear else net.seen
        half = precision == "fp16"
        if half and be.xp is np and be.launch is None:
            warnings.warn(
                f"{net.config.path}: fp16 saves memory and time on a GPU; NumPy only imitates it, slower than fp32",
                TrainWarning, stacklevel=2,
            )  # fmt: skip
        self.storage, self.scale = np.float16 if half else np.float32, LossScale.of(cfg.loss_scale, half)
        self.skipped = False  # whether the last step was
        self.rejection = Rejection()
        self.exact = exact
        self.faults = CpuBuild(net) if emulate_darknet_cpu_bugs and not half else None  # that build has no float16
        self.batch = cfg.batch // cfg.subdivisions * cfg.subdivisions * cfg.time_steps
        self.iteration = net.seen // max(self.batch, 1)
        self.gradients: list[dict[str, Any]] = []
        with net.on_device():
            for node in net.nodes:
                whose = owner(node)
                own = {} if whose != node.index else {
                    name: be.zeros(a.shape) for name, a in net.weights[node.index].items() if trained(name, a)
                }  # fmt: skip
                self.gradients.append(self.gradients[whose] if whose != node.index else own)
            self.moments = [{name: (be.zeros(g.shape), be.zeros(g.shape)) for name, g in own.items()}
                            if cfg.adam and isinstance(node.layer, Convolutional) else {}
                            for node, own in zip(net.nodes, self.gradients, strict=True)]  # fmt: skip
        self.average: list[dict[str, Any]] | None = None  # of the weights, with ema_alpha
        only = [node.index for node in net.nodes if node.layer.train_only_bn]
        self.only_bn = max(only, default=-1)  # it holds for all earlier layers too

    @property
    def first(self) -> int:
        """The first layer that the way back reaches: after the last stopbackward=1, or =K until iteration K."""
        stops = [n.index for n in self.net.nodes if n.layer.stopbackward == 1 or n.layer.stopbackward > self.iteration]
        return max(stops, default=-1) + 1

    @property
    def rate(self) -> float:
        """The learning rate of the present iteration."""
        chance = float(np.random.default_rng([self.seed, self.iteration, 1]).random())
        return lr_schedule.rate(self.net.net, self.iteration, chance)

    def step(self, x: Any, truth: Any) -> float:
        """Take one iteration on x (N, C, H, W), values 0..1, and truth (N, truths) as Darknet lays it out; return the cost.

        The cost is the sum over the images of the mean over the layers that have a loss. N is a multiple of [net]
        subdivisions, which are run one after the other. Raises DataError for shapes that do not fit; TrainError when
        numbers are no longer finite: the weights and the momentum are then as before the step.
        """
        net, parts = self.net, self.net.net.subdivisions
        N = len(x)
        if self.faults:
            self.faults.warn()
        truth = np.asarray(host_array(truth), np.float32).reshape(len(truth), -1)
        if len(truth) != N or N % parts or N == 0:
            raise DataError(f"a batch of {N} images and {len(truth)} truths; both must be one multiple of {parts}")
        size, cost = N // parts, 0.0
        fresh: list[dict[str, Any]] = []  # this step's gradients, times the loss scale
        for node in net.nodes:
            fresh.append(fresh[owner(node)] if owner(node) != node.index else {})
        with net.on_device():
            for part in range(parts):
                images = slice(part * size, (part + 1) * size)
                net.seen += size
                rng = np.random.default_rng([self.seed, self.iteration, 2, part])
                cost += self.accumulate(net.input(x[images]), truth[images], rng, fresh)
            self.skipped = not self.sound(cost, fresh, x[:size])
            self.iteration = net.seen // N
            if not self.skipped:
                self.take(fresh)
                self.update(N)
        return cost

    def fit(
        self, data: Any, folder: str | Path = "backup", base: str = "", resume: str | Path | None = None, **options: Any
    ) -> Any:
        """Train until max_batches on a `data.DataSet`, a .data file or its path; files go to `folder` as base_last.weights...

        base is the cfg's name if it is not given. resume: a checkpoint, base_last.weights or .npz, from which to go on bit for
        bit. The options are those of `loop.fit`, which does it.
        """
        if resume is not None:
            state = loop.state_path(Path(resume))
            if not state.is_file():
                raise TrainError(f"{state}: is not there, so nothing can be resumed; check the path")
            options["extra"] = self.load(state)
        data = DataFile.read(data) if isinstance(data, str | Path) else data
        data = loop.dataset(data, self.net) if isinstance(data, DataFile) else data
        return loop.fit(self, data, folder, base or Path(self.net.config.path).stem, **options)

    def accumulate(self, x: Any, truth: np.ndarray, rng: np.random.Generator, fresh: list[dict[str, Any]]) -> float:
        """Run x (N, C, H, W) forward and back, add to fresh[i][name], return the mean cost of the layers with a loss."""
        net, be = self.net, self.net.backend
        cfg = net.net
        loss_ctx = LossContext(net.width, net.height, net.seen, self.exact, rng, self.reject)
        progress = self.iteration / cfg.max_batches if cfg.max_batches else 0.0
        ctx = ForwardContext(
            train=True, rng=rng, steps=cfg.time_steps, progress=progress, frozen=self.first, skip_input_grad=True
        )
        read = {s for node in net.nodes if isinstance(node.layer, Cost) for s in node.sources}
        inputs: dict[int, Any] = {-1: x}
        ways: list[Way] = []
        deltas: dict[int, Any] = {}
        costs: list[float] = []

        def keep(index: int, y: Any, way: Way) -> None:
            node = net.nodes[index]
            ways.append(self.faults.way(node, y, way) if self.faults else way)
            if index in read:
                inputs[index] = y
            if not node.layer.has_loss:
                return
            read_by_loss, output = (
                be.to_numpy(a).astype(np.float32, copy=False) for a in (inputs.get(node.sources[0], y), y)
            )
            try:
                value, delta = node.layer.loss(read_by_loss, output, truth, loss_ctx)
            except ValueError as e:
                raise DataError(
                    f"a truth of {truth.shape[1]} numbers for each image does not fit {self.place(index)} of {net.config.path}"
                ) from e
            costs.append(value)
            deltas[index] = be.asarray(delta * np.float32(self.scale.value), self.storage)

        with np.errstate(all="ignore"):  # `sound` looks for what is not finite
            net.forward(x.astype(self.storage, copy=False), ctx, keep)
            deltas |= self.faults.kept if self.faults else {}
            backward(net.nodes, ways, deltas, fresh, self.first)
        return sum(costs) / len(costs)

    def reject(self, delta: np.ndarray, entries: int) -> None:
        """Set late deltas of a [yolo] to 0 where [net] wants it; entries: numbers of an anchor."""
        cfg = self.net.net
        keys = cfg.num_sigmas_reject_badlabels, cfg.badlabels_rejection_percentage, cfg.equidistant_point
        self.rejection.filter(delta, entries, self.iteration, cfg.max_batches, *keys)

    def take(self, fresh: list[dict[str, Any]]) -> None:
        """Add a step's gradients, divided by the loss scale, to those that hold the momentum."""
        for node in self.net.nodes:
            if owner(node) == node.index:
                for name, value in fresh[node.index].items():
                    self.gradients[node.index][name] += value if self.scale.value == 1 else value / self.scale.value
        self.scale.good()

    def update(self, N: int) -> None:
        """Move the weights by the gradients of N images."""
        net, be, cfg = self.net, self.net.backend, self.net.net
        rate, stop = self.rate, self.first - 1
        for node in net.nodes:
            layer = node.layer
            if node.index < stop or owner(node) != node.index:
                continue
            if self.faults and self.faults.still(layer):
                continue
            if layer.dont_update and self.iteration <= layer.dont_update:
                continue
            if layer.burnin_update and self.iteration < layer.burnin_update * cfg.burn_in:
                continue
            w, own = net.weights[node.index], self.gradients[node.index]
            for name, g in own.items():
                last = name.rpartition(".")[2]
                if node.index <= self.only_bn and not (last in ("scale", "bias") and name[: -len(last)] + "scale" in w):
                    continue
                if layer.grad_clip < math.inf:
                    be.xp.clip(g, -layer.grad_clip, layer.grad_clip, out=g)
                lr = rate * layer.learning_rate
                if name in self.moments[node.index]:
                    m, v = self.moments[node.index][name]
                    optimizers.adam(be, w[name], g, m, v, lr, cfg.B1, cfg.B2, cfg.eps, cfg.decay * N, self.iteration)
                else:
                    decay = cfg.decay * N if last in layer.weight_decay_params else 0.0
                    optimizers.sgd(be, w[name], g, lr / N, cfg.momentum, decay)
                if layer.clip and last == "kernel":
                    be.xp.clip(w[name], -layer.clip, layer.clip, out=w[name])
        self.follow()

    def follow(self) -> None:
        """Keep the moving average of the weights from max_batches/2 on; take it for the weights 1000 before the end."""
        cfg, net = self.net.net, self.net
        end = cfg.max_batches - 1000
        if not cfg.ema_alpha or not cfg.max_batches // 2 <= self.iteration <= end:
            return
        if self.iteration == end and self.average is not None:
            for own, mean in zip(net.weights, self.average, strict=True):
                for name, a in mean.items():
                    own[name][...] = a
            return
        if self.average is None:
            self.average = [{k: a.copy() for k, a in own.items() if hasattr(a, "copy")} for own in net.weights]
            return
        for own, mean in zip(net.weights, self.average, strict=True):
            for name, a in mean.items():
                a *= cfg.ema_alpha
                a += (1 - cfg.ema_alpha) * own[name]

    def sound(self, cost: float, fresh: list[dict[str, Any]], x: Any) -> bool:
        """Say whether all gradients are finite; if a smaller loss scale may help, take it.

        Raises TrainError, naming the layer, where the cost is not finite or the scale cannot fall.
        """
        xp = self.net.backend.xp
        with np.errstate(all="ignore"):
            sums = [g.sum() for own in fresh for g in own.values()]
            total = float(xp.stack(sums).sum()) if sums else 0.0  # one wait for the device
        if math.isfinite(cost) and math.isfinite(total):
            return True
        if math.isfinite(cost) and self.scale.fall():
            return False
        net, advice = self.net, "lower learning_rate, lengthen burn_in, or check the labels"
        advice += ", or train in fp32" if self.storage == np.float16 else ""
        if math.isfinite(cost) and self.scale.value > 1:
            advice = f"loss_scale={self.scale.value:g} may be too large; without the key it is found"
        bad: list[int] = []

        def keep(index: int, y: Any, way: Way) -> None:
            if not bad and not bool(xp.isfinite(y).all()):
                bad.append(index)

        rng = np.random.default_rng([self.seed, self.iteration, 2, 0])
        x = net.input(x).astype(self.storage, copy=False)
        net.forward(x, ForwardContext(train=True, rng=rng, steps=net.net.time_steps, frozen=self.first), keep)
        where = "the loss is not finite"
        if bad:
            where = f"the output of {self.place(bad[0])} is not finite"
        else:
            for index in reversed(range(len(net.nodes))):
                names = [k for k, g in fresh[index].items() if not bool(xp.isfinite(g).all())]
                if names:
                    where = f"the gradient of {names[0]} in {self.place(index)} is not finite"
                    break
        raise TrainError(f"{net.config.path}: iteration {self.iteration + 1}: {where}; {advice}")

    def place(self, index: int) -> str:
        """Name a layer in a message."""
        return f"layer {index} [{self.net.nodes[index].layer.section}]"

    def save(self, path: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write all that a run needs to go on as if it had never stopped to one .npz file, whole or not at all."""
        more = {f"extra/{k}": np.asarray(v) for k, v in (extra or {}).items()}
        checkpoint.write(path, checkpoint.state(self) | more)

    def load(self, path: str | Path) -> dict[str, np.ndarray]:
        """Take over what `save` wrote; return its extra. Raises TrainError for a file of another network."""
        arrays = checkpoint.read(path)
        with self.net.on_device():
            checkpoint.restore(self, arrays, path)
        return {name[6:]: a for name, a in arrays.items() if name.startswith("extra/")}


def trained(name: str, a: Any) -> bool:
    """Say whether a layer's array learns; recurrent layers keep their state, a list, among the weights."""
    return hasattr(a, "dtype") and not name.endswith(FIXED)


def backward(
    nodes: Sequence[Node], ways: list[Way], deltas: dict[int, Any], gradients: list[dict[str, Any]], first: int = 0
) -> dict[int, Any]:
    """Take deltas (layer -> delta of its output) back to layer `first`, adding into gradients[layer][name].

    A layer that several read gets the sum of what they send. `ways` is emptied as it is used. Returns what is left of
    deltas: the part that reached the input, as -1, and layers before `first`.
    """
    for node in reversed(nodes[first:]):
        way, dy = ways[node.index], deltas.pop(node.index, None)
        ways[node.index] = None
        if dy is None or node.layer.onlyforward:
            continue
        for source, dx in zip(node.sources, way(dy, gradients[node.index]), strict=True):
            if dx is not None:
                deltas[source] = dx if source not in deltas else deltas[source] + dx
    return deltas
