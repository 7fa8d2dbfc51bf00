"""Fuse steps into the epilogue of the step before."""

from __future__ import annotations

from collections.abc import Sequence

from .steps import Activate, Add, Convolve, Copy, EpilogueOp, FeatureMap, MaxPool, Multiply, SortShortcut, Step

MONOTONIC = frozenset(
    {"leaky", "revleaky", "relu", "relu6", "relie", "ramp", "logistic", "loggy", "tanh", "hardtan", "elu", "selu"}
)  # non-decreasing activations: they commute with max-pooling


def fuse(steps: Sequence[Step], outputs: Sequence[FeatureMap]) -> list[Step]:
    """Move adds, products and activations into the epilogue of the convolution that writes their input; return what remains.

    They are moved if nothing else reads that input. A step that combines two maps is fused into the later of their producers,
    so that the other map is already written.
    """
    fused: list[Step] = []
    readers: dict[FeatureMap, int] = {}
    for m in [*outputs, *(m for s in steps for m in s.reads)]:
        for base in m.bases():
            readers[base] = readers.get(base, 0) + 1
    last_write: dict[FeatureMap, int] = {}  # storage -> the last step that writes into it
    for step in steps:
        if (conv := fusible_maxpool(step, fused, readers)) is not None:
            conv.pooled, conv.y, conv.layers = True, step.y, conv.layers + step.layers
            last_write[step.y.storage] = fused.index(conv)
            continue
        candidates: list[tuple[Step, list[EpilogueOp]]] = []
        for x, epilogue in commuted_operands(step):
            producer = next((i for i, s in enumerate(fused) if s.y is x), None)
            others = [op.other for op in epilogue if not isinstance(op, Activate)]
            if (
                producer is not None
                and isinstance(fused[producer], Convolve)
                and not getattr(fused[producer], "pooled", False)
                and x.base is None
                and readers[x] == 1
                and all(last_write.get(other.storage, -1) < producer for other in others)
            ):
                candidates.append((fused[producer], epilogue))
        if candidates:
            target, epilogue = candidates[0]
            target.epilogue += epilogue
            target.y, target.layers = step.y, target.layers + step.layers
            last_write[step.y.storage] = fused.index(target)
        else:
            fused.append(step)
            last_write[step.y.storage] = len(fused) - 1
    return fused


def fusible_maxpool(step: Step, steps: Sequence[Step], readers: dict[FeatureMap, int]) -> Convolve | None:
    """Return the convolution that can do this max-pool itself.

    It can with 2 x 2 blocks of a map of even size that nothing else reads, and at most monotonic activations in between.
    """
    if not isinstance(step, MaxPool) or (step.size, step.strides, step.padding // 2) != (2, (2, 2), 0):
        return None
    (x,) = step.xs
    producer = next((s for s in steps if s.y is x), None)
    if not isinstance(producer, Convolve) or producer.pooled or producer.size == 1 or producer.groups > 1:
        return None
    monotonic = all(isinstance(op, Activate) and op.kind in MONOTONIC for op in producer.epilogue)
    even = (2 * step.y.shape[1], 2 * step.y.shape[2]) == x.shape[1:]
    return producer if monotonic and even and readers[x] == 1 and x.base is None else None


def commuted_operands(step: Step) -> list[tuple[FeatureMap, list[EpilogueOp]]]:
    """Return a copy's input and epilogue, and if the first operation is commutative, the same with its operands exchanged."""
    if not isinstance(step, Copy) or not step.epilogue:
        return []
    (x,), (first, *rest) = step.xs, step.epilogue
    orders = [(x, list(step.epilogue))]
    if isinstance(first, Add):
        orders.append((first.other, [Add(x), *rest]))
    elif isinstance(first, SortShortcut):
        orders.append((first.other, [SortShortcut(x, first.eps, first.slope), *rest]))
    elif isinstance(first, Multiply) and first.other.shape == x.shape:
        orders.append((first.other, [Multiply(x), *rest]))
    return orders
