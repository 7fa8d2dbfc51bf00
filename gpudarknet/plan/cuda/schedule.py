"""Decide how a plan runs on a GPU: which steps go together, how each convolution is done, what is written ahead, where all lies.

A launch costs about as long as the work of a small layer, and at large batches moving numbers is what takes time. Hence:

* Convolutions of 1 x 1 that read the same map are one gemm, into a map that joins them, and each part is finished into its place.
* A head adds the bias of the convolution before it.
* What is done last writes the patches that the next convolution reads, all positions of each pixel, and the map itself only if
  somebody else reads it. That saves an im2col, which would read every pixel as often as a kernel has rows.

Patches and other memory of one step lie in the arena like maps, each as long as it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .. import memory
from ..steps import ALIGNMENT, Activate, Convolve, Copy, FeatureMap, Plan, Step, YoloHead
from . import algorithms
from .algorithms import WAYS, Case, choose, rounded

Need = tuple[Step, str]  # whose memory, and what for
Cases = Mapping[Convolve, Case]


@dataclass
class Scheme:
    """How a plan runs.

    steps: those on which an output depends, in their order. algorithms: that of each convolution. together: a convolution
    -> those that one gemm does, itself among them. ahead: a step -> the convolution whose patches it writes; unstored: those of
    them whose map nobody else reads. unbiased: a head -> the convolution whose bias it adds. needs: memory beside maps, in
    numbers. offsets: where maps and needs lie in an arena of `numbers`.
    """

    steps: list[Step]
    algorithms: dict[Convolve, str]
    together: dict[Convolve, tuple[Convolve, ...]] = field(default_factory=dict)
    ahead: dict[Step, Convolve] = field(default_factory=dict)
    unstored: set[Step] = field(default_factory=set)
    unbiased: dict[Step, Convolve] = field(default_factory=dict)
    needs: dict[Need, int] = field(default_factory=dict)
    offsets: dict[FeatureMap | Need, int] = field(default_factory=dict)
    numbers: int = 0


def decide(
    plan: Plan,
    batch: int,
    precision: str = "fp32",
    choices: Mapping[str, str] | None = None,
    together: bool = True,
    ahead: bool = True,
) -> Scheme:
    """Return the scheme of a plan for a batch. choices: measured ways by a convolution's key; together, ahead: do so."""
    steps, itemsize = living(plan), 2 if precision == "fp16" else 4
    cases = {s: Case(s, batch, itemsize) for s in steps if isinstance(s, Convolve)}
    scheme = Scheme(steps, {s: choose(case, precision, choices or {}) for s, case in cases.items()})
    if together:
        _put_together(scheme, cases)
    if ahead:
        scheme.ahead = _writers_ahead(scheme, cases)
    scheme.unbiased = _unbiased(scheme, plan)
    _place(scheme, plan, batch, cases)
    return scheme


def living(plan: Plan) -> list[Step]:
    """Return the steps on which an output depends: a [cost] at the end of a classifier is nobody's."""
    needed = {m.storage for m in plan.outputs}
    kept: list[Step] = []
    for step in reversed(plan.steps):
        if step.y.storage in needed:
            kept.append(step)
            needed.update(m.storage for m in step.reads)
    return kept[::-1]


def joined_width(group: Sequence[Convolve]) -> int:
    """Return the channels of the map that joins what one gemm makes: each part begins at 16 bytes."""
    return sum(rounded(s.y.shape[0]) for s in group)


def _put_together(scheme: Scheme, cases: Cases) -> None:
    """Find convolutions that one gemm can do, and let them follow each other in the order of steps."""
    readers: dict[FeatureMap, list[Convolve]] = {}
    for convolution, way in scheme.algorithms.items():
        if way == "gemm" and convolution.groups == 1 and all(isinstance(a, Activate) for a in convolution.epilogue):
            readers.setdefault(convolution.xs[0], []).append(convolution)
    for group in readers.values():
        case, (_, H, W) = cases[group[0]], group[0].y.shape
        if len(group) > 1 and case.batch * H * W * joined_width(group) * case.itemsize <= algorithms.COLUMNS:
            scheme.together.update(dict.fromkeys(group, tuple(group)))
    order: list[Step] = []
    for step in scheme.steps:
        own = scheme.together.get(step) if isinstance(step, Convolve) else None
        if own is None:
            order.append(step)
        elif step is own[0]:
            order += own
    scheme.steps = order


def _writers_ahead(scheme: Scheme, cases: Cases) -> dict[Step, Convolve]:
    """Return the steps that write the next convolution's patches, each with that convolution."""
    found: dict[Step, Convolve] = {}
    writers = {step.y: step for step in scheme.steps}
    for step, way in scheme.algorithms.items():
        x = step.xs[0]
        writer = writers.get(x) or (writers.get(x.base) if x.base is not None else None)  # of more channels, maybe
        whole = way in ("patches", "patches by image") and cases[step].whole
        if whole and writer is not None and writer not in found and _ends_in_one_launch(scheme, cases, writer):
            found[writer] = step
    return found


def _unbiased(scheme: Scheme, plan: Plan) -> dict[Step, Convolve]:
    """Return the heads that are the only readers of convolutions after which nothing is left to do but to add the bias."""
    read = [m.storage for m in (*plan.outputs, *(m for step in scheme.steps for m in step.reads))]
    heads = {step.xs[0]: step for step in scheme.steps if isinstance(step, YoloHead)}
    return {
        heads[step.y]: step
        for step, way in scheme.algorithms.items()
        if step.y in heads and read.count(step.y.storage) == 1 and not step.epilogue and step not in scheme.together
        and way not in ("kernel", "winograd") and not step.pooled
    }  # fmt: skip


def _ends_in_one_launch(scheme: Scheme, cases: Cases, step: Step) -> bool:
    """Say whether one launch, of those that can write patches, is the last that makes a step's map."""
    if not isinstance(step, Convolve):
        return isinstance(step, Copy)
    in_parts = step.pooled and cases[step].pooled_images < cases[step].batch
    return scheme.algorithms[step] not in ("kernel", "winograd") and not in_parts


def _place(scheme: Scheme, plan: Plan, batch: int, cases: Cases) -> None:
    """Lay maps and needs into an arena: a map from the first step that writes a part of it to the last that reads one."""
    writers = {reader: writer for writer, reader in scheme.ahead.items()}
    lives: dict[FeatureMap, list[int]] = {m: [-1, -1] for m in (plan.input, *plan.states)}
    read = {m.storage for m in plan.outputs}
    for i, step in enumerate(scheme.steps):
        reads = step.reads[1:] if step in writers else step.reads  # instead of its map it reads patches
        read.update(m.storage for m in reads)
        for m in (step.y, *reads):
            lives.setdefault(m.storage, [i, i])[1] = i
    for m in plan.outputs:
        lives[m.storage][1] = len(scheme.steps)
    scheme.unstored = {writer for writer in scheme.ahead if writer.y.storage not in read}

    at, spans = {step: i for i, step in enumerate(scheme.steps)}, dict[Need, tuple[int, int]]()
    for step, case in cases.items():
        for name, numbers in WAYS[scheme.algorithms[step]].needs(case).items():
            first = writers.get(step, step) if name == "patches" else step
            scheme.needs[step, name], spans[step, name] = numbers, (at[first], at[step])
    for group in set(scheme.together.values()):
        last, (_, H, W) = group[-1], group[0].y.shape
        scheme.needs[last, "joined"], spans[last, "joined"] = batch * H * W * joined_width(group), (at[last], at[last])

    sizes = [batch * padded(m) for m in lives] + [scheme.needs[need] for need in spans]
    offsets, scheme.numbers = memory.allocate(sizes, [(a, b) for a, b in (*lives.values(), *spans.values())], ALIGNMENT)
    scheme.offsets = dict(zip((*lives, *spans), offsets, strict=True))


def padded(m: FeatureMap) -> int:
    """Return how many numbers an image of a map takes."""
    C, H, W = m.shape
    return rounded(C) * H * W
