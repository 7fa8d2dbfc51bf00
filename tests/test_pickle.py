"""Networks and detectors in pickles, deep copies and worker processes."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
import tiny
from backends import plan_backend

import gpudarknet as gd
from gpudarknet import backend, cfg
from gpudarknet.errors import BackendError, DarknetError
from gpudarknet.train import Trainer

NET = "[net]\nwidth=12\nheight=8\nchannels=3\n"
CONV = "[convolutional]\nfilters=8\nsize=3\npad=1\nactivation=leaky\n"
CFGS = {
    "share_index": NET + CONV + CONV + CONV + "share_index=1\n",
    "sort_shortcut": NET + CONV + CONV + "batch_normalize=1\n[sort_shortcut]\nfrom=-2\nactivation=relu\n",
    "recurrent": "[net]\ninputs=5\n[lstm]\noutput=4\n[gru]\noutput=3\n",
    "trained": NET + CONV + "batch_normalize=1\n[avgpool]\n[softmax]\n",
}
copies = pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, *(lambda a, p=p: pickle.loads(pickle.dumps(a, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1))],
    ids=["deepcopy", *(f"protocol {p}" for p in range(2, pickle.HIGHEST_PROTOCOL + 1))],
)


def network(name: str) -> gd.Network:
    return gd.load_network(cfg.parse(CFGS[name]), backend="numpy", seed=3)


def images(net: gd.Network) -> np.ndarray:
    return np.random.default_rng(1).random((1, *net.net.input), np.float32)


def labels(detector: gd.Detector) -> list[tuple[str, float]]:
    """Detect in another process."""
    return [(d.label, d.confidence) for d in detector.detect(tiny.image())]


@pytest.fixture
def detector(tmp_path: Path) -> gd.Detector:
    tiny.files(tmp_path)
    paths = (tmp_path / f"tiny.{suffix}" for suffix in ("cfg", "weights", "names"))
    return gd.Detector(*paths, backend="numpy", letterbox=True, batch=2, width=128, height=64)


@copies
@pytest.mark.parametrize("name", CFGS)
def test_a_network_predicts_the_same(name: str, copied) -> None:
    net = network(name)
    net.seen = 7
    x = images(net)
    net.predict(x)  # a program, and the state of recurrent layers
    other = copied(net)
    assert (other.config, other.nodes, other.heads, other.seen) == (net.config, net.nodes, net.heads, 7)
    assert other.backend == net.backend and not other.program_cache.programs
    for _ in range(2):
        for ours, theirs in zip(net.predict(x), other.predict(x), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@copies
def test_a_copy_is_independent(copied) -> None:
    net = network("share_index")
    x = images(net)
    before = net.predict(x)[0]
    other = copied(net)
    assert other.weights[2] is other.weights[1]
    other.weights[2]["bias"] += 1
    other.resize(24, 16)
    np.testing.assert_array_equal(net.predict(x)[0], before)
    assert net.net.input == (3, 8, 12) and other.net.input == (3, 16, 24)


@copies
def test_a_detector_keeps_its_settings(detector: gd.Detector, copied) -> None:
    other = copied(detector)
    assert (other.names, other.letterbox, other.precision) == (("cat", "dog"), True, "fp32")
    assert (other.network.batch, other.network.width, other.network.height) == (2, 128, 64)
    assert labels(other) == labels(detector) != []


def test_a_pickle_has_the_size_of_the_weights(detector: gd.Detector) -> None:
    net = gd.load_network("cfg/digits.cfg", backend="numpy")
    net.predict(images(net))
    weights = sum(a.nbytes for own in net.weights for a in own.values())
    assert weights < len(pickle.dumps(net)) < weights + 20000


def test_a_network_in_training() -> None:
    net = network("trained")
    x, truth = images(net), np.eye(8, dtype=np.float32)[:1]
    Trainer(net).step(x, truth)
    other = pickle.loads(pickle.dumps(net))
    assert other.seen == net.seen == 1
    Trainer(net).step(x, truth)
    Trainer(other).step(x, truth)
    np.testing.assert_array_equal(other.weights[0]["kernel"], net.weights[0]["kernel"])


def test_buffers_that_cannot_be_written_are_copied() -> None:
    net = network("trained")
    buffers = list[pickle.PickleBuffer]()
    data = pickle.dumps(net, 5, buffer_callback=buffers.append)
    frozen = [bytes(buffer) for buffer in buffers]
    other = pickle.loads(data, buffers=frozen)
    Trainer(other).step(images(net), np.eye(8, dtype=np.float32)[:1])
    assert (other.weights[0]["kernel"] != net.weights[0]["kernel"]).any()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_detector_in_worker_processes(method: str, detector: gd.Detector) -> None:
    expected = labels(detector)
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        assert pool.submit(labels, detector).result() == expected


def test_joblib_shares_weights_as_files_that_cannot_be_written(detector: gd.Detector) -> None:
    parallel = joblib.Parallel(n_jobs=2, max_nbytes=1)
    assert parallel(joblib.delayed(labels)(detector) for _ in range(3)) == [labels(detector)] * 3


def test_a_shallow_copy_shares_weights_only() -> None:
    net = network("trained")
    x = images(net)
    before = net.predict(x)[0]
    other = copy.copy(net)
    assert other.weights[0]["kernel"] is net.weights[0]["kernel"]
    other.weights[0]["kernel"] = other.weights[0]["kernel"] + 1
    assert (other.predict(x)[0] != before).any()
    np.testing.assert_array_equal(net.predict(x)[0], before)


def test_a_backend_is_pickled_by_name() -> None:
    for name in ("numpy", "onnxruntime", "openvino", "fastest"):
        be = backend.get(name)
        assert pickle.loads(pickle.dumps(be)) == be and copy.deepcopy(be) is be
    with pytest.raises(BackendError) as e:
        pickle.dumps(plan_backend())
    assert str(e.value) == "backend 'host-cuda': cannot be pickled; only those that backend.get returns can be"


def test_a_pickle_from_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "why_no_cupy", lambda: None)
    monkeypatch.setattr(backend, "_cupy", lambda: backend.Backend("cupy", np))
    data = pickle.dumps(backend.get("cupy"))
    monkeypatch.setattr(backend, "why_no_cupy", lambda: "there is no NVIDIA driver")
    monkeypatch.delenv("GPUDARKNET_BACKEND", raising=False)
    with pytest.raises(BackendError) as e:
        pickle.loads(data)
    assert str(e.value) == (
        "backend: 'cupy' cannot run here: there is no NVIDIA driver; or set GPUDARKNET_BACKEND=numpy to unpickle it there"
    )
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    assert pickle.loads(data) == backend.get("numpy")


@pytest.mark.parametrize("kind", DarknetError.__subclasses__())
def test_errors_cross_processes(kind: type[DarknetError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a.cfg:1: wrong")))
    assert type(error) is kind and str(error) == "a.cfg:1: wrong"


@pytest.mark.cuda
def test_a_network_on_a_gpu() -> None:
    net = gd.load_network(cfg.parse(CFGS["sort_shortcut"]), backend="cupy", seed=3)
    x = images(net)
    expected = net.backend.to_numpy(net.predict(x)[0])
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert (other.backend, other.device) == (net.backend, net.device)
        np.testing.assert_array_equal(other.backend.to_numpy(other.predict(x)[0]), expected)
        assert other.engine.startswith("cupy ")
    other = gd.Network.__new__(gd.Network)
    other.__setstate__(net.__getstate__() | {"device": 99})  # from a machine with more of them
    assert other.device == net.device
