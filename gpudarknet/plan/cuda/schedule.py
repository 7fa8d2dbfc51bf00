"""Decide how a plan runs on a GPU: which convolutions share a gemm, the algorithm of each, im2col fusion, and the arena.

A launch costs about as much as the work of a small layer, and large batches are bound by memory. Hence:

* 1 x 1 convolutions of the same map are fused horizontally: one gemm into a common output, whose parts an epilogue then splits.
* The last launch of a producer writes the im2col matrix of the next convolution, all positions of each pixel, and the map itself
  only if another step reads it. That saves an im2col launch, which would read each pixel once per kernel row.

Workspaces, im2col matrices among them, are allocated in the arena like maps, each for its lifetime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from .. import memory
from ..steps import ALIGNMENT, Activate, Convolve, Copy, FeatureMap, Plan, Step
from . import algorithms
from .algorithms import (
    ALGORITHMS,
    CAN_SCATTER,
    MAX_DIRECT_CHANNELS,
    ConvProblem,
    align_channels,
    select_algorithm,
)
from .tiles import H100, DeviceProperties

WorkspaceKey = tuple[Step, str]  # the step that uses it, and its name
Problems = Mapping[Convolve, ConvProblem]
Groups = Mapping[Convolve, tuple[Convolve, ...]]


@dataclass(frozen=True)
class Arena:
    """Where maps and workspaces are, in elements. dead_stores: the steps whose map no step reads."""

    offsets: dict[FeatureMap | WorkspaceKey, int]
    workspaces: dict[WorkspaceKey, int]
    size: int
    dead_stores: frozenset[Step]


@dataclass(frozen=True)
class Schedule:
    """How a plan runs.

    steps: those that an output depends on, in order. algorithms: of each convolution. fused_gemms: a convolution -> those that
    share its gemm, itself included. im2col_consumers: a step -> the convolution whose im2col matrix it writes; dead_stores: those
    of them that need not store their map.
    """

    steps: list[Step]
    algorithms: dict[Convolve, str]
    fused_gemms: Groups
    im2col_consumers: dict[Step, Convolve]
    arena: Arena

    @cached_property
    def im2col_producers(self) -> dict[Step, Step]:
        """A convolution -> the step that writes its im2col matrix."""
        return inverted(self.im2col_consumers)

    @property
    def dead_stores(self) -> frozenset[Step]:
        """The producers that write an im2col matrix only, not their map."""
        return self.arena.dead_stores


def make_schedule(
    plan: Plan,
    batch: int,
    precision: str = "fp32",
    choices: Mapping[str, str] | None = None,
    fuse_gemms: bool = True,
    fuse_im2col: bool = True,
    device: DeviceProperties = H100,
) -> Schedule:
    """Return the schedule of a plan for a batch. choices: measured algorithms, by a convolution's key."""
    steps = eliminate_dead_steps(plan)
    problems = {s: ConvProblem(s, batch, precision, device) for s in steps if isinstance(s, Convolve)}
    chosen = {s: select_algorithm(problem, choices or {}) for s, problem in problems.items()}
    groups = _fused_gemms(chosen, problems) if fuse_gemms else {}
    steps = _reordered(steps, groups)
    consumers = _im2col_consumers(steps, chosen, problems) if fuse_im2col else {}
    arena = _plan_memory(plan, batch, steps, chosen, problems, groups, consumers)
    return Schedule(steps, chosen, groups, consumers, arena)


def eliminate_dead_steps(plan: Plan) -> list[Step]:
    """Return the steps that an output depends on: none reads the [cost] at the end of a classifier."""
    live = {m.storage for m in plan.outputs}
    kept: list[Step] = []
    for step in reversed(plan.steps):
        if step.y.storage in live:
            kept.append(step)
            live.update(m.storage for m in step.reads)
    return kept[::-1]


def fused_width(group: Sequence[Convolve]) -> int:
    """Return the channels of a fused gemm's output: each part is aligned to 16 bytes."""
    return sum(align_channels(s.y.shape[0]) for s in group)


def inverted(consumers: Mapping[Step, Convolve]) -> dict[Step, Step]:
    """Return consumer -> producer."""
    return {consumer: producer for producer, consumer in consumers.items()}


def _fused_gemms(chosen: Mapping[Convolve, str], problems: Problems) -> Groups:
    """Find convolutions of the same map that one gemm can compute."""
    groups: dict[Convolve, tuple[Convolve, ...]] = {}
    readers: dict[FeatureMap, list[Convolve]] = {}
    for step, algorithm in chosen.items():
        plain = step.groups == 1 and step.head is None and all(isinstance(op, Activate) for op in step.epilogue)
        if algorithm == "gemm_1x1" and plain:
            readers.setdefault(step.xs[0], []).append(step)
    for group in readers.values():
        problem, (_, H, W) = problems[group[0]], group[0].y.shape
        size = problem.batch * H * W * fused_width(group) * problem.itemsize
        if len(group) > 1 and size <= algorithms.MAX_WORKSPACE:
            groups.update(dict.fromkeys(group, tuple(group)))
    return groups


def _reordered(steps: Sequence[Step], groups: Groups) -> list[Step]:
    """Make the convolutions of each group adjacent."""
    order: list[Step] = []
    for step in steps:
        group = groups.get(step) if isinstance(step, Convolve) else None
        if group is None:
            order.append(step)
        elif step is group[0]:
            order += group
    return order


def _im2col_consumers(
    steps: Sequence[Step], chosen: Mapping[Convolve, str], problems: Problems
) -> dict[Step, Convolve]:
    """Return the steps that can write the next convolution's im2col matrix, with that convolution."""
    consumers: dict[Step, Convolve] = {}
    writers = {step.y: step for step in steps}
    for step, algorithm in chosen.items():
        x = step.xs[0]
        producer = writers.get(x) or (writers.get(x.base) if x.base is not None else None)  # the base may be wider
        fits = algorithm in ("im2col_gemm", "im2col_batched_gemm") and problems[step].fits_in_one_chunk
        if fits and producer is not None and producer not in consumers and _can_scatter(producer, chosen, problems):
            consumers[producer] = step
    return consumers


def _can_scatter(step: Step, chosen: Mapping[Convolve, str], problems: Problems) -> bool:
    """Return whether a single launch, of a kind that can write an im2col matrix, completes a step's map."""
    if not isinstance(step, Convolve):
        return isinstance(step, Copy)
    in_chunks = step.pooled and problems[step].maxpool_images < problems[step].batch
    return chosen[step] in CAN_SCATTER and step.head is None and not in_chunks


def _plan_memory(
    plan: Plan,
    batch: int,
    steps: Sequence[Step],
    chosen: Mapping[Convolve, str],
    problems: Problems,
    groups: Groups,
    consumers: Mapping[Step, Convolve],
) -> Arena:
    """Allocate maps and workspaces. A map is live from the first step that writes a part of it to the last that reads one."""
    producers = inverted(consumers)
    live: dict[FeatureMap, list[int]] = {m: [-1, -1] for m in (plan.input, *plan.states)}
    read = {m.storage for m in plan.outputs}
    for i, step in enumerate(steps):
        reads = step.reads[1:] if step in producers else step.reads  # it reads an im2col matrix in place of its input
        read.update(m.storage for m in reads)
        for m in (step.y, *reads):
            live.setdefault(m.storage, [i, i])[1] = i
    for m in plan.outputs:
        live[m.storage][1] = len(steps)

    index = {step: i for i, step in enumerate(steps)}
    workspaces, spans = dict[WorkspaceKey, int](), dict[WorkspaceKey, tuple[int, int]]()
    for step, problem in problems.items():
        for name, size in ALGORITHMS[chosen[step]].workspaces(problem).items():
            first = producers.get(step, step) if name == "im2col" else step
            workspaces[step, name], spans[step, name] = size, (index[first], index[step])
    for group in dict.fromkeys(groups.values()):
        last, (_, H, W) = group[-1], group[0].y.shape
        workspaces[last, "fused_output"] = batch * H * W * fused_width(group)
        spans[last, "fused_output"] = index[last], index[last]

    sizes = [batch * padded_size(m, plan.input) for m in live] + [workspaces[key] for key in spans]
    offsets, size = memory.allocate(sizes, [(a, b) for a, b in (*live.values(), *spans.values())], ALIGNMENT)
    dead_stores = frozenset(producer for producer in consumers if producer.y.storage not in read)
    return Arena(dict(zip((*live, *spans), offsets, strict=True)), workspaces, size, dead_stores)


def leading_dimension(m: FeatureMap, input: FeatureMap) -> int:
    """Return the elements from one pixel of a map to the next: the channels of its storage, aligned except in an image."""
    C = m.storage.shape[0]
    return C if m.storage is input and C <= MAX_DIRECT_CHANNELS else align_channels(C)


def padded_size(m: FeatureMap, input: FeatureMap) -> int:
    """Return the elements of one image of a map, channels aligned."""
    _, H, W = m.shape
    return leading_dimension(m, input) * H * W
