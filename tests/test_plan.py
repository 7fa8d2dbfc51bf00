"""The plan on NumPy agrees with the reference engine: shipped networks, small ones for every step, and its own rules."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from cuda_plans import thin

import gpudarknet
from gpudarknet import cfg
from gpudarknet.bench import seeded
from gpudarknet.errors import DataError
from gpudarknet.io.resources import bundled_cfg
from gpudarknet.plan import Program, compile
from gpudarknet.plan.cpu.algorithms import ALGORITHMS
from gpudarknet.plan.cpu.program import Program as CpuProgram
from gpudarknet.plan.steps import Convolve, Copy, LayerCall, MaxPool

# Winograd's F(4x4) has 3 times the rounding of a plain gemm; a residual network adds up what its layers leave.
TOLERANCE = 1e-4  # of the largest difference, relative to the output's standard deviation


def network(text, width=None, height=None):
    """Load a cfg given as text, with seeded weights."""
    net = gpudarknet.load_network(cfg.parse(text), backend="numpy", width=width, height=height)
    seeded.fill(net)
    return net


def images(net, batch):
    return np.random.default_rng(7).random((batch, *net.net.input), dtype=np.float32)


def plan_of(net, batch=1):
    return compile(net.nodes, net.weights, net.heads, net.net.input, batch)


def agree(net, batch, choices=None):
    """Compare a program with a poisoned arena to the reference engine, in two runs; return its plan."""
    x, plan = images(net, batch), plan_of(net, batch)
    program = Program(plan, choices, poison=True)
    wanted = net.predict(x, engine="reference")
    for _ in range(2):
        for got, want in zip(program.run(x), wanted, strict=True):
            assert got.shape == want.shape and got.dtype == np.float32
            assert np.abs(got - want).max() <= TOLERANCE * max(want.std(), 1e-6)
    return plan


@pytest.mark.parametrize(("width", "height", "batch"), [(96, 64, 1), (64, 128, 3)])
@pytest.mark.parametrize(
    "name", ["yolov2-tiny", "yolov2", "yolov3-tiny", "yolov3", "yolov4-tiny", "yolov4", "yolov7-tiny"]
)
def test_shipped_networks_agree_with_the_reference(name, width, height, batch):
    net = gpudarknet.load_network(thin(name), backend="numpy", width=width, height=height)
    seeded.fill(net)
    agree(net, batch)


NET = "[net]\nchannels={}\nwidth={}\nheight={}\n"
CONV = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize={}\nstride={}\npad=1\nactivation={}\n"
BARE = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize={}\nactivation=mish\n{}"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("channels", "filters", "width", "height", "size", "more"),
    [
        (3, 16, 37, 22, 3, "pad=1\n"),
        (19, 32, 60, 41, 3, "pad=1\n"),
        (32, 48, 13, 11, 3, "pad=1\n"),
        (24, 32, 31, 14, 1, ""),
        (6, 10, 17, 12, 5, "padding=1\n"),
        (8, 6, 23, 16, 3, "pad=1\nstride=2\n"),
        (8, 6, 23, 16, 3, "pad=1\nstride_x=3\nstride_y=2\n"),
        (8, 6, 23, 16, 3, "pad=1\ndilation=2\n"),
        (8, 12, 23, 16, 3, "pad=1\ngroups=4\n"),
        (12, 12, 23, 16, 3, "pad=1\nstride=2\ngroups=12\n"),
        (8, 6, 23, 16, 3, ""),
    ],
)
def test_every_algorithm_agrees(batch, channels, filters, width, height, size, more):
    net = network(NET.format(channels, width, height) + BARE.format(filters, size, more))
    plan = plan_of(net, batch)
    (step,) = plan.steps
    names = [name for name, algorithm in ALGORITHMS.items() if algorithm.supports(step)]
    assert names
    for name in names:
        agree(net, batch, {step.key(batch): name})


@pytest.mark.parametrize("algorithm", ["im2col_gemm", "winograd_f2", "winograd_f4"])
@pytest.mark.parametrize(("width", "height"), [(40, 24), (44, 26), (12, 10)])
def test_a_maxpool_is_fused_into_a_convolution(algorithm, width, height):
    net = network(NET.format(5, width, height) + CONV.format(32, 3, 1, "leaky") + "[maxpool]\nsize=2\nstride=2\n")
    plan = plan_of(net)
    (step,) = plan.steps
    assert isinstance(step, Convolve) and step.pooled and step.layers == (0, 1)
    agree(net, 1, {step.key(1): algorithm})


def test_a_maxpool_after_a_decreasing_activation_of_odd_size_or_of_a_map_read_twice_is_not_fused():
    pool = "[maxpool]\nsize=2\nstride=2\n"
    mish = network(NET.format(3, 16, 12) + CONV.format(4, 3, 1, "mish") + pool)
    odd = network(NET.format(3, 17, 12) + CONV.format(4, 3, 1, "leaky") + pool)
    twice = network(NET.format(3, 16, 12) + CONV.format(4, 3, 1, "leaky") + pool + "[reorg3d]\nstride=2\n"
                    + "[route]\nlayers=0\n[maxpool]\nsize=3\nstride=1\n")  # fmt: skip
    for net in (mish, odd, twice):
        assert sum(isinstance(s, MaxPool) for s in agree(net, 1).steps) >= 1


@pytest.mark.parametrize(
    "activation", ["linear", "leaky", "relu", "logistic", "swish", "mish", "tanh", "relu6", "hard_mish"]
)
def test_every_activation_agrees(activation):
    agree(network(NET.format(3, 22, 14) + CONV.format(5, 3, 1, activation)), 2)


def residual(kind, more="", activation="linear"):
    first = NET.format(3, 26, 14) + CONV.format(16, 3, 1, "leaky")
    return first + CONV.format(16, 3, 1, "leaky") + f"[{kind}]\nfrom=-2\n{more}activation={activation}\n"


@pytest.mark.parametrize(
    "text",
    [
        residual("shortcut"),
        residual("shortcut", activation="leaky"),
        residual("sort_shortcut"),
        residual("sort_shortcut", "slope=0.1\neps=0.01\n"),
        residual("sam"),
    ],
)
def test_a_sum_is_fused_into_the_later_producer(text):
    plan = agree(network(text), 3)
    assert [s.layers for s in plan.steps] == [(0,), (1, 2)]


def test_a_map_with_other_readers_is_stored():
    text = residual("shortcut") + "[route]\nlayers=-2,-1\n"
    plan = agree(network(text), 2)
    assert [s.layers for s in plan.steps] == [(0,), (1,), (2,)] and not plan.copies


def test_squeeze_and_excitation_agrees():
    text = NET.format(3, 26, 14) + CONV.format(8, 3, 1, "swish") + "[avgpool]\n" + CONV.format(8, 1, 1, "logistic")
    plan = agree(network(text + "[scale_channels]\nfrom=0\nactivation=leaky\n"), 3)
    assert [type(s) for s in plan.steps] == [Convolve, LayerCall, Convolve, Copy]


CONCATS = (
    NET.format(3, 26, 14)
    + CONV.format(8, 3, 1, "leaky")  # 0
    + CONV.format(6, 3, 1, "leaky")  # 1
    + "[route]\nlayers=0\ngroups=2\ngroup_id=1\n"  # 2: channels 4 to 7 of layer 0
    + CONV.format(5, 1, 1, "leaky")  # 3
    + "[route]\nlayers=-1,1\n"  # 4: both are written in place
    + "[route]\nlayers=4,0\n"  # 5: a nested route
    + "[route]\nlayers=2,5\n"  # 6: a slice of a map, and a route that becomes part of another
    + CONV.format(7, 3, 2, "leaky")
)


def test_routes_are_written_in_place():
    plan = agree(network(CONCATS), 3)
    assert [s.layers for s in plan.copies] == [(6,)]  # only the slice of layer 0, which is part of another map


@pytest.mark.parametrize("section", ["[upsample]\nstride=3\nscale=0.5\n", "[maxpool]\nsize=5\nstride=1\n", "[dropout]\n",
                                     "[maxpool]\nsize=3\nstride=2\npadding=1\n", "[activation]\nactivation=mish\n",
                                     "[local_avgpool]\nsize=2\nstride=2\n", "[reorg]\nstride=2\n"])  # fmt: skip
def test_other_steps_agree(section):
    agree(network(NET.format(3, 26, 14) + CONV.format(4, 3, 1, "leaky") + section), 3)


def test_a_recurrent_layer_keeps_its_state_between_calls():
    text = "[net]\ninputs=7\n[rnn]\noutput=5\nhidden=4\nactivation=tanh\n[connected]\noutput=3\n"
    net, x = network(text), np.random.default_rng(0).random((1, 7, 1, 1), dtype=np.float32)
    planned = [net.predict(x)[0] for _ in range(3)]
    for own in net.weights:
        own.pop("state", None)
    wanted = [net.predict(x, engine="reference")[0] for _ in range(3)]
    np.testing.assert_allclose(planned, wanted, rtol=1e-6)
    assert np.abs(planned[0] - planned[1]).max() > 1e-3


def test_the_caller_owns_results_and_threads_may_mix_batches():
    net = network(NET.format(3, 26, 14) + CONV.format(8, 3, 1, "leaky"))
    x = images(net, 3)
    (first,) = net.predict(x[:1])
    kept = first.copy()
    (all_three,) = net.predict(x)
    np.testing.assert_array_equal(first, kept)
    outputs = {}
    threads = [threading.Thread(target=lambda k=k: outputs.update({k: net.predict(x[k : k + 1])[0]})) for k in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    for k in range(3):
        np.testing.assert_allclose(outputs[k][0], all_three[k], rtol=1e-4, atol=1e-5)


def test_the_program_cache_is_bounded_shares_weights_and_is_cleared_by_training():
    net = network(NET.format(3, 26, 14) + CONV.format(8, 3, 1, "leaky"))
    for batch in range(1, 8):
        net.predict(images(net, batch))
    assert len(net.program_cache.programs) == 4
    before = net.predict(images(net, 1))[0]
    net.weights[0]["kernel"] *= 2
    net.program_cache.clear()
    assert not np.allclose(net.predict(images(net, 1))[0], before)
    net.forward(images(net, 1), gpudarknet.layers.ForwardContext(train=True), lambda *a: None)
    assert not net.program_cache.programs and not net.program_cache.packed_weights


def test_nothing_is_allocated_in_the_steady_state():
    net = network(CONCATS, width=104, height=72)
    program, x = CpuProgram(plan_of(net)), images(net, 1)
    for _ in range(2):
        out = program.run(x)
    tracemalloc.start()
    program.run(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(a.nbytes for a in out) + 100_000  # the results, and views


def test_the_printed_plan():
    plan = plan_of(network(CONCATS))
    text = plan.describe()
    assert "8 layers" not in text and "1 copies" in text and "in place" in text
    assert text.splitlines()[1].split()[:5] == ["0", "convolve", "3", "x", "3"]
    assert f"{plan.flops / 1e9:.3f} GFLOP per image" in text


def test_errors():
    net = network(NET.format(3, 26, 14) + CONV.format(8, 3, 1, "leaky"))
    with pytest.raises(DataError) as e:
        net.predict(images(net, 1), engine="fast")
    assert str(e.value) == "predict: unknown engine 'fast'; choose plan or reference"
    with pytest.raises(DataError) as e:
        net.predict(images(net, 1), precision="fp8")
    assert str(e.value) == "predict: unknown precision 'fp8'; choose one of fp32, tf32, fp16, bf16"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_predicts():
    code = """
import os, sys, numpy as np, gpudarknet
net = gpudarknet.load_network("yolov3-tiny.cfg", backend="numpy", width=96, height=64)
x = np.zeros((1, 3, 64, 96), np.float32)
net.predict(x)
child = os.fork()
net.predict(x)
if not child:
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=bundled_cfg("yolov3-tiny").parent, timeout=100,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))  # fmt: skip
    assert done.returncode == 7
