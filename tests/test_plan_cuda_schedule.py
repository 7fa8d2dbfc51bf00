"""Schedules of plans on a GPU: fused gemms and im2col, the arena, and that results do not depend on them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from backends import backend_for, plan_backend
from cuda_plans import ALL_KINDS, NEIGHBOURS, NETWORKS, TOLERANCE, distance, pair, program, thin
from seeded import network_input

from gpudarknet import cfg, load_network
from gpudarknet.backend import Backend
from gpudarknet.backend import cuda as source
from gpudarknet.plan.compile import compile
from gpudarknet.plan.cuda import algorithms, dry_run
from gpudarknet.plan.cuda.canonicalize import canonicalize
from gpudarknet.plan.cuda.convolution import TILE_VECTOR
from gpudarknet.plan.cuda.schedule import Schedule, make_schedule, padded_size
from gpudarknet.plan.steps import Convolve, Copy, YoloHead

pytestmark = pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")  # resnet50 adds maps of different size


def plan_of(config, batch=1, width=None, height=None):
    net = load_network(config, backend="numpy", width=width, height=height)
    return canonicalize(compile(net.nodes, net.weights, net.heads, net.net.input, batch), net.backend)


def touched(schedule: Schedule, plan) -> dict:
    """At which steps each block of the arena is accessed, from the first write to the last read, derived from what runs."""
    accesses: dict = {plan.input: [-1]}
    writers = {reader: writer for writer, reader in schedule.im2col_consumers.items()}
    at = {step: i for i, step in enumerate(schedule.steps)}
    for step in schedule.steps:
        group = schedule.fused_gemms.get(step, (step,))
        when = at[group[-1]]  # what goes fuse_gemms is done with the last
        joins = {m.storage for m in step.reads[1:]}
        for m in {
            step.y.storage,
            *joins,
            *(() if step in writers else (step.xs[0].storage,)),
            *(x.storage for x in step.xs[1:]),
        }:
            accesses.setdefault(m, []).append(when)
        for owner, name in schedule.arena.workspaces:
            if owner is step:
                accesses.setdefault((owner, name), []).append(when)
                if name == "im2col" and step in writers:
                    before = schedule.fused_gemms.get(writers[step], (writers[step],))
                    accesses[owner, name].append(at[before[-1]])
    for m in plan.outputs:
        accesses[m.storage].append(len(schedule.steps))
    return accesses


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_live_ranges_do_not_overlap_in_the_arena(name, precision):
    plan = plan_of(thin(name), 2)
    schedule = make_schedule(plan, 2, precision)
    when = touched(schedule, plan)
    assert when.keys() == schedule.arena.offsets.keys()
    size = {
        key: schedule.arena.workspaces[key] if key in schedule.arena.workspaces else 2 * padded_size(key, plan.input)
        for key in when
    }
    for a, b in combinations(when, 2):
        if max(min(when[a]), min(when[b])) <= min(max(when[a]), max(when[b])):
            (first, end), other = (
                (schedule.arena.offsets[a], schedule.arena.offsets[a] + size[a]),
                schedule.arena.offsets[b],
            )
            assert end <= other or other + size[b] <= first
    assert max(schedule.arena.offsets[key] + size[key] for key in when) <= schedule.arena.size
    assert all(offset % 64 == 0 for offset in schedule.arena.offsets.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_whatever_can_be_fused_is(name):
    plan = plan_of(thin(name))
    schedule = make_schedule(plan, 1, "fp16")
    writers = {step.y: step for step in schedule.steps}
    groups = set(schedule.fused_gemms.values())
    assert groups or name not in ("yolov4", "yolov4-csp", "yolov7-tiny")  # they split a map for two convolutions
    for group in groups:
        assert {(step.xs[0], step.size) for step in group} == {(group[0].xs[0], 1)}
        first = schedule.steps.index(group[0])
        assert tuple(schedule.steps[first : first + len(group)]) == group
    for step, algorithm in schedule.algorithms.items():
        producer, writer = schedule.im2col_producers.get(step), writers.get(step.xs[0])
        if producer is not None:
            assert algorithm == "im2col_gemm" and producer.y in (step.xs[0], step.xs[0].base)
        elif algorithm == "im2col_gemm" and isinstance(writer, (Convolve, Copy)):  # it cannot, or writes another's
            assert writer in schedule.im2col_consumers or schedule.algorithms.get(writer) == "direct"
    assert not any(isinstance(step, YoloHead) for step in schedule.steps)
    made = {plan.input}
    for step in schedule.steps:
        assert all(m.storage in made for m in step.reads)
        made.add(step.y.storage)
    plain = make_schedule(plan, 1, "fp16", fuse_gemms=False, fuse_im2col=False)
    assert not (plain.fused_gemms or plain.im2col_consumers or plain.dead_stores)
    assert set(plain.steps) == set(schedule.steps)


@pytest.mark.parametrize("name", ["yolov3", "yolov4-csp", "yolov7-tiny", "resnet50-sort"])
@pytest.mark.parametrize(("precision", "batch"), [("fp32", 3), ("fp16", 1)])
def test_results_do_not_depend_on_fusion(name, precision, batch, tmp_path):
    """im2col everywhere, so that fp32's tolerance covers fused im2col; each option on and off."""
    reference, net = pair(thin(name), plan_backend(), tmp_path, 5, width=32, height=64)
    x = network_input(net, 5, batch)
    want = reference.predict(x, engine="reference")
    steps = compile(net.nodes, net.weights, net.heads, net.net.input, batch).steps
    options: dict = dict(packed_weights={}, poison=True)
    options["choices"] = {step.key(batch): "im2col_gemm" for step in steps if isinstance(step, Convolve)}
    for fuse_gemms in (True, False):
        results = []
        for fuse_im2col in (True, False):
            run = program(net, batch, precision, fuse_gemms=fuse_gemms, fuse_im2col=fuse_im2col, **options)
            assert bool(run.schedule.im2col_consumers) == fuse_im2col
            assert fuse_gemms or not run.schedule.fused_gemms
            results.append(run.run(x))
            assert distance(results[-1], want) < TOLERANCE[precision]
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)  # the same values, written by another launch


READ_TWICE = """[net]
width=12
height=10
channels=5
[convolutional]
filters=16
size=1
activation=leaky
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[shortcut]
from=-2
[convolutional]
filters=8
size=3
stride=2
pad=1
activation=relu
"""


def test_a_map_that_others_read_is_stored_too(tmp_path):
    """Layer 1 adds the very map whose patches it reads; layer 3 alone reads layer 2's."""
    plan = plan_of(cfg.parse(READ_TWICE), 2)
    schedule = make_schedule(plan, 2, "fp16")
    by_layer = {step.layers[0]: step for step in schedule.steps}
    assert schedule.im2col_consumers == {by_layer[0]: by_layer[1], by_layer[1]: by_layer[3]}
    assert schedule.dead_stores == {by_layer[1]}
    reference, net = pair(cfg.parse(READ_TWICE), plan_backend(), tmp_path)
    x = network_input(net, 1, 2)
    want = reference.predict(x, engine="reference")
    run = program(net, 2, "fp16", poison=True)
    assert distance(run.run(x), want) < TOLERANCE["fp16"]
    lines = run.describe().splitlines()
    assert lines[1].endswith("gemm; writes the im2col of layer 1")
    assert lines[2].endswith("im2col by layer 0, gemm; writes only the im2col of layer 3")
    assert lines[3].endswith("im2col by layer 2, gemm")
    assert len(run.launches) == 3 * 2  # gemms and epilogues


SIBLINGS = """[net]
width=12
height=10
channels=3
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[convolutional]
filters={0}
size=1
activation=mish
[route]
layers=-2
[convolutional]
filters={1}
size=1
activation=leaky
[convolutional]
filters=8
size={2}
pad=1
activation=relu
[route]
layers=3
[convolutional]
filters=5
size=1
activation=elu
[route]
layers=3
[convolutional]
filters=7
size=1
[route]
layers=8,6,4,1
"""


@pytest.mark.parametrize("filters", [(16, 8), (5, 8), (6, 5)], ids=str)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_siblings(filters, size, precision, tmp_path):
    """Two convolutions of a map, one of them into a larger map; then two or three of the second's output."""
    config = cfg.parse(SIBLINGS.format(*filters, size))
    reference, net = pair(config, plan_backend(), tmp_path)
    for batch in (1, 3):
        x = network_input(net, 1, batch)
        want = reference.predict(x, engine="reference")
        run = program(net, batch, precision, poison=True)
        groups = {tuple(step.layers[0] for step in group) for group in run.schedule.fused_gemms.values()}
        assert groups == {(1, 3), (4, 6, 8) if size == 1 else (6, 8)}
        assert distance(run.run(x), want) < TOLERANCE[precision]
        alone = program(net, batch, precision, fuse_gemms=False, poison=True)
        assert len(alone.launches) > len(run.launches)
        assert distance(run.run(x), alone.run(x)) < TOLERANCE[precision]
        assert "gemm fused with layer" in run.describe()


def test_what_exceeds_the_workspace_is_not_fused(monkeypatch):
    plan = plan_of(cfg.parse(READ_TWICE), 2)
    monkeypatch.setattr(algorithms, "MAX_WORKSPACE", 2 * 2 * 30 * 16 * 9)  # of the smaller patches, in float16
    schedule = make_schedule(plan, 2, "fp16")
    assert [step.layers[0] for step in schedule.im2col_consumers] == [1]
    monkeypatch.setattr(algorithms, "MAX_WORKSPACE", 100)
    assert not make_schedule(plan, 2, "fp16").im2col_consumers
    assert not make_schedule(plan_of(cfg.parse(SIBLINGS.format(16, 8, 3))), 1).fused_gemms


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("filters", [16, 20])
def test_im2col_of_some_of_a_maps_channels(filters, precision, tmp_path):
    """Layer 3 reads half the channels of layer 1, whose map nobody else reads; layer 5 those of a map with two writers."""
    text = READ_TWICE.replace("[shortcut]\nfrom=-2\n", "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n")
    text = text.replace("filters=16\nsize=3", f"filters={filters}\nsize=3")
    text += "[route]\nlayers=-1,-1\ngroups=2\n[convolutional]\nfilters=6\nsize=3\npad=1\n"
    schedule = make_schedule(plan_of(cfg.parse(text)), 1, "fp16")
    assert [(a.layers[0], b.layers[0]) for a, b in schedule.im2col_consumers.items()] == [(0, 1), (1, 3)]
    assert {step.layers[0] for step in schedule.dead_stores} == {0, 1}
    reference, net = pair(cfg.parse(text), plan_backend(), tmp_path)
    x = network_input(net, 1, 2)
    want = reference.predict(x, engine="reference")
    assert distance(program(net, 2, precision, poison=True).run(x), want) < TOLERANCE[precision]


@pytest.mark.parametrize("name", ["yolov4-csp", "yolov4-tiny", "yolov2"])
@pytest.mark.parametrize("device", ["cuda"])
def test_programs_share_one_stream(name, device):
    """Graphs of several shapes, batches and precisions, replayed by turns: none touches what another has."""
    be = backend_for(device)
    nets = [load_network(thin(name), backend=be, width=W, height=H) for W, H in ((64, 32), (32, 96))]
    inputs = [network_input(net, 1, batch) for net, batch in zip(nets, (1, 2), strict=True)]
    programs = [(program(net, len(x), p), x) for net, x in zip(nets, inputs, strict=True) for p in ("fp32", "fp16")]
    first = [[be.to_numpy(y) for y in run.run(be.asarray(x))] for run, x in programs]
    assert len({id(run.stream_context) for run, _ in programs}) == 1
    assert all(run.graph is not None for run, _ in programs)
    for (run, x), want in reversed(list(zip(programs, first, strict=True))):
        for got, y in zip(run.run(be.asarray(x)), want, strict=True):
            np.testing.assert_array_equal(be.to_numpy(got), y)
    for (run, x), want in zip(programs, first, strict=True):
        alone = program(nets[run.plan.batch - 1], len(x), run.precision, graph=False, poison=True)
        for got, y in zip(alone.run(be.asarray(x)), want, strict=True):
            np.testing.assert_array_equal(be.to_numpy(got), y)


class Aligned:
    """A launcher that runs nothing, but checks what a CPU does not mind: accesses of 16 bytes need addresses of their own kind.

    Memory of a GPU begins at 256 bytes; so it is the place in the arena that counts.
    """

    def __init__(self):
        self.arena, self.vectorized = None, set()

    def __call__(self, kernel, threads, *args, block=256, shared=0):
        file, _, name = kernel.partition(".")
        wanted = source.parameters(file)[name]
        given = {p.name: a for p, a in zip(wanted, args, strict=True)}
        if not given.get("vectorized"):
            return
        self.vectorized.add(name)
        for p in wanted:
            a = given[p.name]
            if p.type == "T" and a is not None:
                step = 16 if not name.startswith("winograd") else TILE_VECTOR * a.itemsize
                assert (a.ctypes.data - self.arena.ctypes.data) % step == 0 or not self.inside(a), f"{kernel}: {p.name}"
        for ld in (value for key, value in given.items() if key.startswith("ld") and value):
            assert ld % (TILE_VECTOR if name.startswith("winograd") else 16 // self.arena.itemsize) == 0, kernel

    def inside(self, a):
        return 0 <= a.ctypes.data - self.arena.ctypes.data < self.arena.nbytes


ODD = {"every kind": ALL_KINDS, "neighbours": NEIGHBOURS, "siblings": SIBLINGS.format(6, 5, 1)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", [*NETWORKS, *ODD])
def test_vector_accesses_are_aligned(name, precision):
    check, (W, H) = Aligned(), NETWORKS.get(name, (None, None))
    config = cfg.parse(ODD[name]) if name in ODD else thin(name)
    cublas: Any = dry_run.NullObject()
    net = load_network(config, backend=Backend("host-cuda", np, check, cublas, "cuda"), width=W, height=H)
    for algorithm in ("im2col_gemm", "winograd_f2"):
        steps = compile(net.nodes, net.weights, net.heads, net.net.input, 3).steps
        choices = {step.key(3): algorithm for step in steps if isinstance(step, Convolve)}
        run = program(net, 3, precision, choices=choices)
        check.arena = run.arena
        for work in run.launches:
            work()
    assert check.vectorized or name == "neighbours"
