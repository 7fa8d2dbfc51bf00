"""What layers, losses, training and plans compute with CuPy's arrays and the kernels is what NumPy computes."""

from __future__ import annotations

import numpy as np
import pytest
import seeded
from backends import backend_for
from layer_cases import CASES, draw_weights, has_state

from gpudarknet import cfg, load_network
from gpudarknet.backend import Backend
from gpudarknet.io import resources
from gpudarknet.layers import SECTIONS, ForwardContext
from gpudarknet.train import Trainer

NUMPY = Backend("numpy", np, executor="cpu")


@pytest.fixture(params=["cuda"])
def cuda(request):
    """CuPy, on a GPU or an emulated one."""
    return backend_for(request.param)


def forward_and_back(be, section, inputs, keys, train):
    """Run a layer on seeded arrays; return its output, its inputs' and its weights' gradients, as NumPy."""
    rng = np.random.default_rng(0)
    layer = SECTIONS[section](**keys)
    steps = 2 if has_state(layer) else 1
    w = {name: be.asarray(a, np.float32) for name, a in draw_weights(layer, inputs, rng).items()}
    xs = [be.asarray(rng.normal(0, 1, (2 * steps, *shape)), np.float32) for shape in inputs]
    chance = ForwardContext(train=train, rng=np.random.default_rng(7), steps=steps, progress=0.9)
    y, back = layer.forward(be, w, *xs, ctx=chance)
    grad = {}
    dxs = back(be.asarray(rng.normal(0, 1, y.shape), np.float32), grad)
    return [be.to_numpy(a) for a in (y, *(dx for dx in dxs if dx is not None), *grad.values())]


ALL = dict(CASES)
WEIGHTED = dict(from_=(0,), weights_type="per_channel", weights_normalization="softmax")
ALL |= {"shortcut weighted": (((3, 4, 5), (2, 4, 5)), WEIGHTED)}
ALL |= {
    f"convolutional {kind}": (((3, 5, 6),), dict(filters=4, size=3, pad=1, **{kind: 1})) for kind in ("binary", "xnor")
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_layer(cuda, name, train):
    case = (name.split()[0], *ALL[name], train)
    for got, want in zip(forward_and_back(cuda, *case), forward_and_back(NUMPY, *case), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)  # the order of float32 sums, twice


INPUT = "[net]\nwidth=6\nheight=4\nchannels=3\n"
HEADS = {
    "yolo": "[convolutional]\nfilters=14\nactivation=linear\n[yolo]\nmask=0,2\nanchors=1,2, 3,4, 5,6\nnum=3\nclasses=2\n",
    "Gaussian_yolo": "[convolutional]\nfilters=22\nactivation=linear\n[Gaussian_yolo]\nmask=0,2\n"
    "anchors=1,2, 3,4, 5,6\nnum=3\nclasses=2\nyolo_point=left_top\nscale_x_y=1.1\n",
    "region": "[convolutional]\nfilters=14\nactivation=linear\n[region]\nanchors=1,2, 3,4\nnum=2\nclasses=2\nsoftmax=1\n",
    "detection": "[connected]\noutput=108\nactivation=linear\n[detection]\nclasses=2\ncoords=4\nside=3\nnum=2\nsoftmax=1\n",
    "softmax": "[connected]\noutput=8\n[softmax]\ngroups=2\n",
    "cost": "[connected]\noutput=8\n[softmax]\n[cost]\ntype=sse\n",
    "contrastive": "[convolutional]\nfilters=14\nactivation=linear\n[yolo]\nmask=0,2\nanchors=1,2, 3,4, 5,6\nnum=3\n"
    "classes=2\n[contrastive]\nclasses=2\nyolo_layer=-1\n",
}


def outputs(be, name):
    """Run a small network that ends in a head; return every layer's output, its boxes and every layer's deltas."""
    net = load_network(cfg.parse(INPUT + HEADS[name], name), backend=be)
    x = np.random.default_rng(1).random((2, 3, 4, 6), dtype=np.float32)
    result = net.trace(x)
    if all(hasattr(net.nodes[head].layer, "decode") for head in net.heads):
        result.append(net.decode(net.predict(x), 0.1))
    deltas = []

    def keep(index, y, backward):
        deltas.extend(be.to_numpy(d) for d in backward(be.zeros(y.shape) + 1, {}) if d is not None)

    net.forward(net.input(x), ForwardContext(train=True), keep)
    return result + deltas


@pytest.mark.parametrize("name", HEADS)
def test_head(cuda, name):
    for got, want in zip(outputs(cuda, name), outputs(NUMPY, name), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_every_section_has_a_case():
    assert {kind.section for kind in SECTIONS.values()} - {name.split()[0] for name in ALL} <= set(HEADS)


BODY = "[convolutional]\nfilters=8\nsize=3\nstride=2\npad=1\nbatch_normalize=1\nactivation=mish\n"
TRAINED = {
    "yolo": BODY + HEADS["yolo"].replace("[yolo]\n", "[yolo]\niou_loss=ciou\n"),
    "Gaussian_yolo": BODY + HEADS["Gaussian_yolo"],
    "region": BODY + HEADS["region"],
    "classifier": BODY + "[convolutional]\nfilters=5\n[avgpool]\n[softmax]\n[cost]\n",
}


def trained(be, name, adam=0, precision="fp32"):
    """Train for three steps; return the costs and every weight."""
    head = f"[net]\nwidth=12\nheight=8\nchannels=3\nbatch=2\nlearning_rate=0.001\nadam={adam}\nmax_batches=9\n"
    net = load_network(cfg.parse(head + TRAINED[name], name), backend=be)
    trainer = Trainer(net, precision=precision)
    rng = np.random.default_rng(2)
    truth = np.zeros((2, 200, 6), np.float32)
    truth[:, 0] = (0.5, 0.4, 0.3, 0.6, 1, 0)  # center x, y, width, height, class, track
    if name == "classifier":
        truth = np.eye(5, dtype=np.float32)[1:3]
    costs = [np.float64(trainer.step(rng.random((2, 3, 8, 12), dtype=np.float32), truth)) for _ in range(3)]
    return costs + [be.to_numpy(a) for own in net.weights for a in own.values()]


@pytest.mark.parametrize("adam", [0, 1])
@pytest.mark.parametrize("name", TRAINED)
def test_training(cuda, name, adam):
    # Three steps of float32 sums in another order; Adam divides by the root of squares, which are small at first.
    rtol, atol = (1e-2, 1e-4) if adam else (1e-4, 1e-5)
    for got, want in zip(trained(cuda, name, adam), trained(NUMPY, name, adam), strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


@pytest.mark.filterwarnings("ignore:.*on NumPy it is only emulated:gpudarknet.errors.TrainWarning")
@pytest.mark.parametrize("name", TRAINED)
def test_training_in_fp16(cuda, name):
    for got, want in zip(trained(cuda, name, 0, "fp16"), trained(NUMPY, name, 0, "fp16"), strict=True):
        np.testing.assert_allclose(got, want, rtol=5e-2, atol=5e-3)  # 11 bits, rounded in other places


def seeded_pair(cuda, name, width, height, tmp_path):
    """Return a shipped network with seeded weights on CuPy, the same on NumPy, and an input."""
    cfg_path = resources.bundled_cfg(name)
    blank = load_network(cfg_path, backend="numpy", width=width, height=height)
    weights = seeded.write_weights(blank, tmp_path / "seeded.weights", 3)
    nets = [load_network(cfg_path, weights, backend=be, width=width, height=height) for be in (cuda, NUMPY)]
    return *nets, seeded.network_input(blank, 3, batch=2)


@pytest.mark.filterwarnings("ignore::gpudarknet.errors.CfgWarning")  # resnet50's unequal shortcuts
@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov2-tiny", "resnet50-sort"])
def test_plan_is_captured_and_replayed(cuda, name, tmp_path):
    """The second run replays what the first one recorded, on new inputs; capture allows kernels and cuBLAS only."""
    net, reference, x = seeded_pair(cuda, name, 32, 64, tmp_path)
    for scale in (1, 0.5):
        x = x * np.float32(scale)
        got = [net.backend.to_numpy(y) for y in net.predict(net.backend.asarray(x))]
        for y, want in zip(got, reference.predict(x, engine="reference"), strict=True):
            np.testing.assert_allclose(y, want, rtol=0, atol=2e-5 * np.abs(want).max())
    (program,) = net.program_cache.programs.values()
    assert program.eager_reason is None and program.graph is not None


def test_plan_that_needs_a_layers_own_forward_runs_eagerly(cuda):
    heads = (
        2 * "[convolutional]\nfilters=6\n[region]\nclasses=1\n"
    )  # the second reads the first, which is no map with channels
    text = f"[net]\nwidth=6\nheight=4\nchannels=4\n{heads}"
    nets = [load_network(cfg.parse(text), backend=be) for be in (cuda, NUMPY)]
    x = np.random.default_rng(0).random((2, 4, 4, 6), dtype=np.float32)
    for got, want in zip(*(net.predict(x) for net in nets), strict=True):
        np.testing.assert_allclose(cuda.to_numpy(got), want, rtol=1e-5, atol=1e-6)
    (program,) = nets[0].program_cache.programs.values()
    assert program.eager_reason == "fallback layers: region"


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_plan_in_less_precision(cuda, precision, tmp_path):
    net, reference, x = seeded_pair(cuda, "yolov4-tiny", 64, 32, tmp_path)
    got = [net.backend.to_numpy(y) for y in net.predict(x, precision=precision)]
    for y, want in zip(got, reference.predict(x, engine="reference"), strict=True):
        assert np.linalg.norm(y - want) < 1e-2 * np.linalg.norm(want)


def test_products_of_float16_are_not_made_in_float32(emulator):
    """Training in fp16 and the reference engine give cuBLAS float16: no copies to float32, no arrays of pointers."""
    cuda, x = backend_for("cuda"), np.random.default_rng(3).random((2, 3, 8, 12), dtype=np.float32)
    head = "[net]\nwidth=12\nheight=8\nchannels=3\nbatch=2\nlearning_rate=0.001\nmax_batches=9\n"
    body = BODY + "[connected]\noutput=6\nactivation=leaky\n" + "[connected]\noutput=5\n[softmax]\n[cost]\n"
    net = load_network(cfg.parse(head + body), backend=cuda)
    trainer = Trainer(net, precision="fp16")
    half = net.input(x).astype(np.float16)
    for work in (
        lambda: trainer.step(x, np.eye(5, dtype=np.float32)[1:3]),
        lambda: net.forward(half, ForwardContext(), lambda *out: None),
    ):
        with emulator.counting() as done:
            work()
        assert done["gemms"] == done["gemms fp16"] > 2
