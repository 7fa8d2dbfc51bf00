"""The compiled training step on NumPy: its gradients are those of the reference engine, with and without Numba."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from cuda_plans import thin

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.backend import threads
from gpudarknet.bench import seeded
from gpudarknet.cli import main
from gpudarknet.errors import TrainError
from gpudarknet.graph import build
from gpudarknet.plan.cpu.training import fused, winograd
from gpudarknet.plan.training import compile_training
from gpudarknet.train.parameters import PairwiseSum

TOLERANCE = 2e-4  # of the largest difference, relative to the largest gradient of an array
KINKED = (
    5e-2  # of the norm of the difference, where a rounding error may change the side of leaky's kink, or the maximum
)

HEAD = """
[convolutional]
filters=14
size=1
activation=linear

[yolo]
mask=0,1
anchors=4,5, 9,8
classes=2
num=2
"""
NET = "[net]\nwidth={}\nheight={}\nchannels={}\nbatch={}\nsubdivisions={}\nlearning_rate=0.001\nmax_batches=100\n"


def conv(filters=8, size=3, more="pad=1\n", activation="mish", norm=1):
    """Return a [convolutional] section."""
    return f"[convolutional]\nbatch_normalize={norm}\nfilters={filters}\nsize={size}\nactivation={activation}\n{more}\n"


def trainer_of(config, engine, N, poison=True):
    """Return a trainer on seeded weights, whose programs fill their arena with NaN before each run, and a batch."""
    net = gd.load_network(config, backend="numpy", batch=N)
    seeded.fill(net)
    trainer = gd.Trainer(net, seed=5, engine=engine)
    if poison and engine == "plan":
        make = trainer.engine.program

        def poisoned(*args):
            program = make(*args)
            program.poison = True
            return program

        trainer.engine.program = poisoned
    rng = np.random.default_rng(3)
    x = rng.random((N, *net.net.input), dtype=np.float32)
    truth = np.zeros((N, 4, 6), np.float32)
    truth[:, :, :2], truth[:, :, 2:4] = rng.uniform(0.1, 0.9, (N, 4, 2)), rng.uniform(0.1, 0.6, (N, 4, 2))
    return trainer, x, truth.reshape(N, -1)


def gradients(config, engine, N, steps=1):
    """Return the gradients of the last of some steps, by layer and name, and the running statistics, and the costs."""
    trainer, x, truth = trainer_of(config, engine, N)
    costs = [trainer.step(x, truth) for _ in range(steps)]
    found = {(i, k): g.copy() for i, own in enumerate(trainer.engine.views) for k, g in own.items()}
    running = {(i, k): w[k].copy() for i, w in enumerate(trainer.net.weights) for k in ("mean", "variance") if k in w}
    return found, running, costs


def agree(config, N, kinked=False):
    """Compare the plan's gradients, running statistics and costs with the reference engine's."""
    (got, got_running, got_costs), (want, want_running, want_costs) = (
        gradients(config, engine, N) for engine in ("plan", "reference")
    )
    assert got.keys() == want.keys() and got_costs == pytest.approx(want_costs, rel=1e-5)
    for key, value in want.items():
        difference = got[key] - value
        if kinked:
            assert np.linalg.norm(difference) <= KINKED * max(np.linalg.norm(value), 1e-6), key
        else:
            assert np.abs(difference).max() <= TOLERANCE * max(np.abs(value).max(), 1e-6), key
    for key, value in want_running.items():
        np.testing.assert_allclose(got_running[key], value, rtol=1e-5, atol=1e-6 * np.abs(value).max())


@pytest.fixture(params=["numpy", "numba"])
def passes(request, monkeypatch):
    """Run a test without Numba, and with it."""
    if request.param == "numpy":
        monkeypatch.setattr(fused, "available", lambda: False)
    else:
        pytest.importorskip("numba")


def smooth(config):
    """Replace activations with a kink by swish, so that rounding errors cannot change a derivative."""
    layers = [
        dataclasses.replace(layer, activation="swish")
        if getattr(layer, "activation", "") in ("leaky", "relu")
        else layer
        for layer in config.layers
    ]
    return dataclasses.replace(config, layers=tuple(layers))


@pytest.mark.parametrize(
    "name", ["yolov2-tiny", "yolov2", "yolov3-tiny", "yolov3", "yolov4-tiny", "yolov4", "yolov7-tiny", "digits"]
)
def test_shipped_networks(name):
    config = cfg.read(gd.io.resources.bundled_cfg(name)) if name == "digits" else thin(name)
    net = dataclasses.replace(config.net, width=96, height=64, batch=4, subdivisions=1)
    config = dataclasses.replace(config, net=net)
    if name != "yolov4":  # deep enough for one value on the other side of a kink to change many gradients
        agree(config, 4, kinked=True)
    deep = name in ("yolov2", "yolov3", "yolov4", "digits")  # or with SORT: maxima and roots have kinks, too
    agree(smooth(config), 3, kinked=deep)


@pytest.mark.parametrize("N", [1, 3, 16])
@pytest.mark.parametrize(
    ("channels", "width", "height", "layers"),
    [
        (3, 37, 22, conv(16)),
        (19, 30, 21, conv(32)),
        (32, 13, 11, conv(48)),
        (17, 6, 5, conv(40)),
        (24, 31, 14, conv(32, 1, "")),
        (6, 17, 12, conv(10, 5, "padding=1\n")),
        (8, 23, 16, conv(6, 3, "pad=1\nstride=2\n")),
        (8, 24, 17, conv(36, 3, "stride=2\n")),
        (5, 20, 15, conv(7, 4, "stride=3\npadding=2\n")),
        (5, 20, 15, conv(7, 3, "stride_x=2\nstride_y=1\npad=1\n")),
        (5, 20, 15, conv(7, 3, "dilation=2\npad=1\n")),
        (6, 12, 9, conv(8, 3, "pad=1\ngroups=2\n")),
        (3, 12, 9, conv(4, 3, "pad=1\nantialiasing=1\nstride=2\n")),
        (1, 1, 1, conv(4, 1, "")),
    ],
)
def test_convolutions(channels, width, height, layers, N, passes):
    text = NET.format(width, height, channels, N, 1) + layers + conv(12, 3) + HEAD
    agree(cfg.parse(text), N)


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize(
    "activation",
    [
        "linear",
        "logistic",
        "loggy",
        "elu",
        "selu",
        "gelu",
        "tanh",
        "swish",
        "mish",
        "hard_mish",
        "normalize_channels_softmax",
    ],
)
def test_activations(activation, norm, passes):
    agree(cfg.parse(NET.format(14, 11, 3, 4, 1) + conv(9, activation=activation, norm=norm) + conv(5) + HEAD), 4)


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize(
    "activation", ["leaky", "revleaky", "relu", "relie", "relu6", "ramp", "hardtan", "lhtan", "plse", "stair"]
)
def test_activations_with_kinks(activation, norm, passes):
    agree(cfg.parse(NET.format(14, 11, 3, 4, 1) + conv(9, activation=activation, norm=norm) + conv(5) + HEAD), 4, True)


POOLS = ["size=2\nstride=2\n", "size=2\nstride=1\n", "size=3\nstride=2\n", "size=5\nstride=1\n", "size=3\nstride=1\npadding=4\n",
         "size=3\nstride_x=1\nstride_y=2\n", "size=2\nstride=3\n"]  # fmt: skip
GRAPHS = {
    "shortcut": conv() + conv() + "[shortcut]\nfrom=-2\nactivation=linear\n",
    "shortcut of three": conv() + conv() + conv() + "[shortcut]\nfrom=-2,-3\nactivation=swish\n",
    "shortcut read again": conv() + conv() + "[shortcut]\nfrom=-2\nactivation=linear\n" + conv(4) + "[route]\nlayers=-1,-2,-4\n",
    "a map added to itself": conv() + "[shortcut]\nfrom=-1\nactivation=linear\n",
    "sort": conv() + conv() + "[sort_shortcut]\nfrom=-2\nactivation=linear\neps=0.1\n",
    "sort with a slope": conv() + conv() + "[sort_shortcut]\nfrom=-2\nactivation=swish\neps=0.1\nslope=0.1\n",
    "sort of unequal maps": conv() + conv(4) + "[sort_shortcut]\nfrom=-2\nactivation=linear\neps=0.1\n",
    "route of an input twice": conv() + "[route]\nlayers=-1,-1\n",
    "route of halves": conv() + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n" + conv(6) + "[route]\nlayers=-1,-3\n",
    "a half that nothing else reads": conv() + "[route]\nlayers=-1\ngroups=2\n",
    "route of a route": conv() + conv(4) + "[route]\nlayers=-1,-2\n" + conv(6) + "[route]\nlayers=-1,-2,-4\n",
    "upsample": conv(8, 3, "pad=1\nstride=2\n") + "[upsample]\nstride=2\nscale=0.5\n" + conv(4),
    "upsample into a route": conv() + conv(6, 3, "pad=1\nstride=2\n") + "[upsample]\nstride=2\n[route]\nlayers=-1,-3\n",
    "a map that nothing reads": conv() + conv(4) + "[route]\nlayers=-2\n",
    "shared weights": conv(3) + conv(3, more="pad=1\nshare_index=-1\n") + conv(3, more="pad=1\nshare_index=0\n"),
    "onlyforward": conv() + conv(8, more="pad=1\nonlyforward=1\n") + "[shortcut]\nfrom=-2\nactivation=linear\n",
    "stopbackward": conv() + conv(6, more="pad=1\nstopbackward=1\n") + conv(5),
    "squeeze": conv() + "[avgpool]\n" + conv(8, 1, "", "logistic", 0) + "[scale_channels]\nfrom=-3\n",
    "sam": conv() + conv(8, 1, "", "logistic", 0) + "[sam]\nfrom=-2\n",
    "reorg": conv() + "[reorg]\nstride=2\n",
    "batchnorm": conv(8, norm=0) + "[batchnorm]\n[activation]\nactivation=swish\n",
    "dropout": conv() + "[dropout]\nprobability=0.4\n" + conv(5),
    **{f"maxpool {pool.split()}": conv() + f"[maxpool]\n{pool}" + conv(5) for pool in POOLS},
    "maxpool of a part": conv() + "[route]\nlayers=-1\ngroups=2\n[maxpool]\nsize=2\nstride=2\n" + conv(5),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")
def test_graphs(name, passes):
    agree(cfg.parse(NET.format(16, 12, 3, 4, 1) + GRAPHS[name] + HEAD), 4)


def test_a_winograd_gradient_of_several_chunks(passes, monkeypatch):
    text = NET.format(40, 36, 16, 3, 1) + conv(16) + conv(24) + HEAD
    for size in (1, 1 << 13, 1 << 30):
        monkeypatch.setattr(winograd, "CHUNK_SIZE", size)
        agree(cfg.parse(text), 3)


def test_frozen_layers_run_as_at_inference():
    """Also from an iteration on, with another program; gradients that no program writes are zero."""
    text = (
        NET.format(16, 12, 3, 4, 1) + conv() + "[maxpool]\nsize=2\nstride=2\n" + conv(6, more="pad=1\nstopbackward=2\n")
    )
    trainer, x, truth = trainer_of(cfg.parse(text + conv(5) + HEAD), "plan", 4)
    before = trainer.net.weights[0]["mean"].copy()
    for _ in range(3):
        trainer.step(x, truth)
        frozen = trainer.iteration <= 2
        assert (trainer.engine.views[0]["kernel"] == 0).all() == frozen
        assert (trainer.net.weights[0]["mean"] == before).all() == frozen


def test_the_bits_do_not_depend_on_the_number_of_threads(passes):
    text = (
        NET.format(40, 36, 3, 8, 2)
        + conv(16, 3, "pad=1\nstride=2\n")
        + conv(32)
        + "[maxpool]\nsize=2\n"
        + conv(64)
        + HEAD
    )
    found = []
    try:
        for count in (1, 2, 3, 5):
            threads.set_num_threads(count)
            trainer, x, truth = trainer_of(cfg.parse(text), "plan", 8)
            costs = [trainer.step(x, truth) for _ in range(2)]
            found.append((costs, trainer.parameters.weights.tobytes(), trainer.momentum_vector.tobytes()))
        trainer.engine.programs.clear()
        threads.set_num_threads(2)
        assert trainer.step(x, truth) > 0
    finally:
        threads._requested = None
        threads.thread_pool().resize(threads.worker_count()[0])
    assert found[1:] == found[:-1]


def test_a_program_follows_set_num_threads():
    text = NET.format(16, 12, 3, 4, 1) + conv() + HEAD
    trainer, x, truth = trainer_of(cfg.parse(text), "plan", 4)
    try:
        trainer.step(x, truth)
        threads.set_num_threads(3)
        trainer.step(x, truth)
        (program,) = trainer.engine.programs.values()
        assert program.workers == 3
    finally:
        threads._requested = None
        threads.thread_pool().resize(threads.worker_count()[0])


def tree(numbers):
    """Return how PairwiseSum must add numbered vectors: halves of aligned powers of two first, what remains from the end."""
    if len(numbers) == 1:
        return str(numbers[0])
    half = 1 << (len(numbers) - 1).bit_length() - 1
    return f"({tree(numbers[:half])}+{tree(numbers[half:])})"


@pytest.mark.parametrize("count", range(1, 20))
def test_the_tree_of_sums(count):
    def add(a, b):
        a[0] = f"({a[0]}+{b[0]})"

    sums = PairwiseSum(add)
    for n in range(count):
        sums.push(np.array([str(n)], object))
    assert sums.total()[0] == tree(list(range(count)))


@pytest.mark.parametrize("engine", ["plan", "reference"])
def test_parts_are_added_in_a_tree(engine):
    """So that whoever computes a part, and any aligned block of parts, gets the bits of one process."""
    text = NET.format(16, 12, 3, 12, 6) + conv() + HEAD
    trainer, x, truth = trainer_of(cfg.parse(text), engine, 12)
    parts = []
    compute, update, found = trainer.compute_gradients, trainer.update, []

    def record(*args):
        cost = compute(*args)
        parts.append(trainer.engine.gradients.copy())
        return cost

    trainer.compute_gradients = record
    trainer.update = lambda gradients, N: (found.append(gradients.copy()), update(gradients, N))
    trainer.step(x, truth)
    a, b, c, d, e, f = parts
    assert (found[0] == ((a + b) + (c + d)) + (e + f)).all()


def test_random_sizes_share_one_arena_and_programs_are_bounded(monkeypatch):
    text = NET.format(32, 32, 3, 4, 1) + conv() + conv(6, 3, "pad=1\nstride=2\n") + HEAD
    trainer, x, _ = trainer_of(cfg.parse(text), "plan", 4)
    monkeypatch.setattr("gpudarknet.train.engines.CAPACITY", 3)
    truth = np.zeros((4, 24), np.float32)
    arenas = set()
    for size in (64, 32, 48, 96, 32, 64, 48, 32):
        trainer.net.resize(size, size)
        trainer.step(np.zeros((4, 3, size, size), np.float32), truth)
        assert len(trainer.engine.programs) <= 3
        arenas.add(id(trainer.engine.arena))
        assert all(program.arena is trainer.engine.arena for program in trainer.engine.programs.values())
    assert len(arenas) <= 2  # 96 needed a larger one


def test_a_step_allocates_little():
    """The losses and the addition of their deltas do; everything else is recorded with its memory."""
    text = NET.format(64, 64, 3, 8, 1) + conv(32, activation="leaky") + conv(32, 3, "pad=1\nstride=2\n") + HEAD
    trainer, x, truth = trainer_of(cfg.parse(text), "plan", 8, poison=False)
    for _ in range(2):
        trainer.step(x, truth)
    tracemalloc.start()
    trainer.step(x, truth)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6 < 4 * trainer.engine.arena.size


def test_gradients_need_less_memory_than_maps():
    """A map's gradient takes the place of those that are no longer needed."""
    nodes = build(cfg.read(gd.io.resources.bundled_cfg("yolov4")))
    net = gd.load_network(thin("yolov4"), backend="numpy")
    plan = compile_training(net.nodes, net.weights, net.net.input, 1)
    maps = sum(int(np.prod(s.y.shape)) for s in plan.forward)
    assert plan.peak_live <= plan.arena_size < 1.1 * maps and len(nodes) == len(net.nodes)


@pytest.mark.parametrize("adam", [0, 1])
def test_updates_by_numba_are_those_of_the_optimizers(adam, monkeypatch):
    pytest.importorskip("numba")
    text = NET.format(16, 12, 3, 4, 1).replace("learning_rate=0.001", f"learning_rate=0.1\nadam={adam}\ndecay=0.01")
    found = []
    for with_numba in (True, False):
        monkeypatch.setattr(fused, "available", lambda kept=with_numba: kept)
        trainer, _, _ = trainer_of(cfg.parse(text + conv(more="pad=1\nclip=0.1\n") + HEAD), "plan", 4)
        rng = np.random.default_rng(1)
        for trainer.iteration in (1, 2, 3):
            trainer.update(rng.standard_normal(trainer.parameters.size, np.float32), 4)
        found.append([*trainer.state_dict().items()])
    for (name, a), (_, b) in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_unknown_engine_is_an_error():
    net = gd.load_network(cfg.parse(NET.format(16, 12, 3, 4, 1) + conv() + HEAD), backend="numpy")
    with pytest.raises(TrainError, match="unknown engine 'fast'; choose plan or reference"):
        gd.Trainer(net, engine="fast")


def test_the_command_prints_the_plan(capsys):
    assert main(["plan", "digits", "-train"]) == 0
    out = capsys.readouterr().out
    assert "batchnorm leaky" in out and "arena 25.7 MiB for 16 images" in out and "fallback layers: none" in out
    assert main(["plan", "digits", "-train", "-batch", "2"]) == 0
    assert "for 2 images" in capsys.readouterr().out
    assert main(["plan", "digits", "-train", "-tune"]) == 2
    assert "-train shows the plan of a CPU; omit" in capsys.readouterr().err
