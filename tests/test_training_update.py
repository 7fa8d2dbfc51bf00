"""The update of all weights on the device, against ops/optimizers.py and train/loss_scale.py; and planted faults."""

from __future__ import annotations

import math
from typing import NamedTuple

import host_cuda
import numpy as np
import pytest
from backends import Poisoned, backend_for
from host_cuda import KernelError

from gpudarknet.plan.cuda.training import update
from gpudarknet.plan.cuda.training.update import FAILED, FINITE, GROWTH_TRACKER, SKIPPED, Segment
from gpudarknet.train.loss_scale import MIN_SCALE, LossScale

# offset, size: others' weights are before, between and after; more blocks than one, and parts of blocks
SEGMENTS = [
    Segment(3, 2500, rate=0.5, decay=0.3),
    Segment(2503, 1),
    Segment(2510, 1024, grad_clip=0.7),
    Segment(3534, 300, active=False, decay=0.3),
    Segment(3840, 1100, decay=0.2, clip=0.9),
]
SIZE, RATE, FACTOR, SCALE = 4950, 0.05, 0.9, 8.0
BETA1, BETA2, EPS, T = 0.9, 0.999, 1e-6, 7


def buffers(count: int) -> list[np.ndarray]:
    drawn = np.random.default_rng(0).normal(0, 1, (count, SIZE)).astype(np.float32)
    return [*drawn]


class State:
    """Arrays of an update on a backend."""

    def __init__(self, be, adam: bool, grads=None, status=update.STATUS):
        names = ("w", "momentum", "grads", "m", "v")
        self.before = dict(zip(names, buffers(5), strict=True))
        self.before["v"] = abs(self.before["v"])
        if grads is not None:
            self.before["grads"] = grads
        self.be, self.on = be, {name: be.asarray(a.copy()) for name, a in self.before.items()}
        self.rates = be.asarray(np.array([RATE, 1 - BETA1**T, 1 - BETA2**T] if adam else [RATE], np.float32))
        self.scale, self.status = be.asarray(np.array([SCALE], np.float32)), be.asarray(np.array(status, np.int32))

    def result(self, name: str) -> np.ndarray:
        return self.be.to_numpy(self.on[name]).astype(np.float64)


def run(be, adam: bool, **options) -> State:
    state = State(be, adam, **options)
    on, (rows, blocks) = state.on, update.descriptors(SEGMENTS)
    common = (on["grads"], state.rates, state.scale, state.status, be.asarray(rows), blocks)
    if adam:
        call = update.adam(on["w"], on["momentum"], on["m"], on["v"], *common, BETA1, BETA2, EPS)
    else:
        call = update.sgd(on["w"], on["momentum"], *common, FACTOR)
    call.run(be.launch)
    return state


def expected(adam: bool) -> dict[str, np.ndarray]:
    """As train/step.py and ops/optimizers.py do it, element by element in float64."""
    a = {
        name: values.astype(np.float64)
        for name, values in zip(("w", "momentum", "grads", "m", "v"), buffers(5), strict=True)
    }
    a["v"] = abs(a["v"])
    for s in SEGMENTS:
        for i in range(s.offset, s.offset + s.size):
            a["momentum"][i] += a["grads"][i] / SCALE
            if not s.active:
                continue
            step = min(max(a["momentum"][i], -s.grad_clip), s.grad_clip) - s.decay * a["w"][i]
            if adam:
                a["m"][i] = BETA1 * a["m"][i] + (1 - BETA1) * step
                a["v"][i] = BETA2 * a["v"][i] + (1 - BETA2) * step**2
                corrected = a["m"][i] / (1 - BETA1**T), a["v"][i] / (1 - BETA2**T)
                a["w"][i] += RATE * s.rate * corrected[0] / (math.sqrt(corrected[1]) + EPS)
            else:
                a["w"][i] += RATE * s.rate * step
            a["momentum"][i] = 0 if adam else step * FACTOR
            if s.clip:
                a["w"][i] = min(max(a["w"][i], -s.clip), s.clip)
    return a


def check(be, adam: bool) -> None:
    state, want = run(be, adam), expected(adam)
    for name in want:
        np.testing.assert_allclose(state.result(name), want[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_update(kernels, adam):
    check(kernels, adam)


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_nothing_changes_if_a_gradient_is_not_finite(kernels, adam):
    state = run(kernels, adam, status=(0, 5, 0, 0))
    for name, before in state.before.items():
        np.testing.assert_array_equal(state.result(name), before)
    assert kernels.to_numpy(state.status).tolist() == [0, 5, 0, 0]


def check_finite(be, grads, costs=None) -> bool:
    status = be.asarray(np.array(update.STATUS, np.int32))
    update.check_finite(be.asarray(grads), None if costs is None else be.asarray(costs), status).run(be.launch)
    assert be.to_numpy(status)[1:].tolist() == [0, 0, 0]
    return bool(be.to_numpy(status)[FINITE])


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_are_found(kernels, wrong):
    grads, costs = np.full(3001, 3e38, np.float32), np.ones(3, np.float32)  # their sum would be infinite
    assert check_finite(kernels, grads) and check_finite(kernels, grads, costs)
    for place in (0, 1023, 1024, 3000):
        changed = grads.copy()
        changed[place] = wrong
        assert not check_finite(kernels, changed, costs)
    costs[2] = wrong
    assert not check_finite(kernels, grads, costs)


def check_loss_scale(be, dynamic: bool, overflows: str, start: float = 4.0) -> None:
    """Follow a scale through steps, o where gradients overflow, against the class that defines it."""
    interval, want = 3, LossScale(start, dynamic)
    scale, status = be.asarray(np.array([start], np.float32)), be.asarray(np.array(update.STATUS, np.int32))
    for step in overflows:
        if step == "o":
            status[FINITE] = 0
            failed = not want.backoff()
        else:
            want.growth_tracker += dynamic
            failed = False
            if want.growth_tracker == interval:
                want.value, want.growth_tracker = want.value * 2, 0
        update.adjust_loss_scale(scale, status, dynamic, interval, MIN_SCALE).run(be.launch)
        got = be.to_numpy(status).tolist()
        assert be.to_numpy(scale)[0] == want.value
        assert (got[FINITE], got[GROWTH_TRACKER], got[SKIPPED]) == (1, want.growth_tracker, step == "o")
        assert bool(got[FAILED]) == failed
        if failed:
            return


@pytest.mark.parametrize("overflows", ["........", "..o.o....o...", "ooo", "o....ooooo"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_loss_scale(kernels, dynamic, overflows):
    check_loss_scale(kernels, dynamic, overflows)


class Fault(NamedTuple):
    """A piece of the source, and what replaces it."""

    right: str
    wrong: str


FAULTS = {
    "blocks of another segment": Fault("(int)blockIdx.x)", "(int)blockIdx.x + 1)"),
    "elements of the next segment": Fault("min(begin + SEGMENT_BLOCK, segment.size)", "begin + SEGMENT_BLOCK"),
    "an inactive segment that moves": Fault("int first_block, offset, size, active;", "int first_block, offset, active, size;"),
    "no clipping of gradients": Fault("return v > limit ? limit", "return v > 2 * limit ? limit"),
    "decay of the rate": Fault("float rate, decay, grad_clip, clip;", "float decay, rate, grad_clip, clip;"),
    "a scale that is not removed": Fault("scale = loss_scale[0];\n    for (int i = own.first; i < own.end; i += blockDim.x) {\n"
                                         "        float step = momentum[i] + grads[i] / scale;\n        if (s.active) {\n"
                                         "            step = clip(step, s.grad_clip) - s.decay * w[i];\n            float",
                                         "scale = 1;\n    for (int i = own.first; i < own.end; i += blockDim.x) {\n"
                                         "        float step = momentum[i] + grads[i] / scale;\n        if (s.active) {\n"
                                         "            step = clip(step, s.grad_clip) - s.decay * w[i];\n            float"),
    "momentum that does not decay": Fault("step *= factor;", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught(name):
    fault = FAULTS[name]
    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler

    def edit(text: str) -> str:
        assert text.count(fault.right) == 1, f"{text.count(fault.right)} times in the kernels: {fault.right}"
        return text.replace(fault.right, fault.wrong)

    with pytest.raises((AssertionError, KernelError)) as caught:
        check(Poisoned("host-cuda", np, host_cuda.launcher(edit)), adam=False)
    assert "in the kernels" not in str(caught.value), caught.value
