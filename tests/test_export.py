"""ONNX files run by ONNX Runtime, OpenVINO and OpenCV against our own outputs: every layer, every activation."""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import multiprocessing
import os
import subprocess
import sys
import warnings

import cv2
import numpy as np
import opencv4
import pytest
from layer_cases import DARKNET_SECTIONS

import gpudarknet as gd
from gpudarknet import cfg, cli
from gpudarknet.errors import CfgError, DataError
from gpudarknet.export import fastest, metadata, onnx_model, write_onnx
from gpudarknet.export.activations import ACTIVATIONS
from gpudarknet.export.graph import Graph
from gpudarknet.export.lower import lower
from gpudarknet.export.model import import_onnx
from gpudarknet.export.program import OpenVinoProgram, import_openvino, why_no_bf16
from gpudarknet.io import resources
from gpudarknet.layers import SECTIONS, Layer
from gpudarknet.ops import activation
from gpudarknet.plan.tuning import save_tuning

onnxruntime = pytest.importorskip("onnxruntime", reason='needs ONNX Runtime: pip install "gpudarknet[test]"')
pytest.importorskip("openvino", reason='needs OpenVINO: pip install "gpudarknet[test]"')
pytest.importorskip("onnx", reason='needs onnx: pip install "gpudarknet[onnx]"')

NET = "[net]\nwidth={}\nheight={}\nchannels={}\n"
CONV = "[convolutional]\nfilters={}\nsize={}\nstride={}\npad=1\nactivation={}\n"
BN = "batch_normalize=1\n"
SHIPPED = ["yolov2-tiny", "yolov3-tiny", "yolov4-tiny", "yolov7-tiny", "darknet19", "resnet50-sort"]


def network(text, seed=5):
    """Build a network with weights that keep its maps near 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes that differ intentionally
        net = gd.load_network(cfg.parse(text), backend="numpy")
    rng = np.random.default_rng(seed)
    for own in net.weights:
        for name, a in own.items():
            spread = 1.1 / np.sqrt(np.prod(a.shape[1:])) if name.endswith("kernel") else 0.2
            a[...] = rng.normal(1.0 if name in ("scale", "weight") else 0.0, spread, a.shape)
            if name == "variance":
                a[...] = rng.uniform(0.6, 1.4, a.shape)
    return net


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})


def images(net, count=1):
    return np.random.default_rng(1).random((count, *net.net.input), np.float32)


def agree(net, count=1, tolerance=1e-4):
    """Compare the outputs of ONNX Runtime and OpenVINO with the reference engine's, relative to the largest value."""
    x = images(net, count)
    model = onnx_model(net, batch=count)
    openvino = OpenVinoProgram(net.nodes, net.weights, net.heads, net.net.input, count)
    for results in run(model, x), openvino.run(x):
        for ours, theirs in zip(net.predict(x, engine="reference"), results, strict=True):
            assert ours.shape == theirs.shape and theirs.dtype == np.float32
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.abs(ours).max())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network(name):
    text = resources.find(name, ".cfg").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ResNet's unequal shortcuts
        net = gd.load_network(cfg.parse(text, name), backend="numpy", width=64, height=96)
    rng = np.random.default_rng(3)
    for own in net.weights:
        for key, a in own.items():
            if key in ("mean", "bias"):
                a[...] = rng.normal(0, 0.1, a.shape)
            elif key == "variance":
                a[...] = rng.uniform(0.6, 1.4, a.shape)
    agree(net)


first = NET.format(12, 8, 3) + CONV.format(8, 3, 1, "leaky") + BN
LAYERS = {
    "activation": first + "[activation]\nactivation=hardtan\n",
    "avgpool": first + "[avgpool]\n",
    "batchnorm": first + "[batchnorm]\n",
    "connected": first + "[connected]\noutput=7\nactivation=tanh\nbatch_normalize=1\n[connected]\noutput=3\n",
    "convolutional": NET.format(13, 9, 4)
    + "[convolutional]\nfilters=6\nsize=3\nstride_x=2\nstride_y=1\npad=1\ngroups=2\nactivation=mish\n"
    + "[convolutional]\nfilters=6\nsize=3\npad=1\ndilation=3\nactivation=swish\nbatch_normalize=1\n"
    + "[convolutional]\nfilters=6\nsize=2\nstride=2\npadding=1\nactivation=relu6\n",
    "antialiasing": NET.format(14, 10, 3)
    + "[convolutional]\nfilters=5\nsize=3\nstride=2\npad=1\nactivation=leaky\nantialiasing=1\n"
    + "[maxpool]\nsize=2\nstride=2\nantialiasing=2\n",
    "xnor": first + "[convolutional]\nfilters=5\nsize=3\npad=1\nxnor=1\nactivation=leaky\nbatch_normalize=1\n"
    + "[convolutional]\nfilters=4\nsize=1\nbinary=1\nactivation=linear\n",
    "share_index": first + CONV.format(8, 3, 1, "relu") + CONV.format(8, 3, 1, "tanh") + "share_index=1\n",
    "crop": NET.format(12, 8, 3) + "[crop]\ncrop_width=7\ncrop_height=6\n",
    "dropout": first + "[dropout]\nprobability=.5\n[empty]\n",
    "implicit": first + "[implicit]\nfilters=3\natoms=2\n",
    "local": first + "[local]\nfilters=4\nsize=3\nstride=2\npad=1\nactivation=leaky\n",
    "local_avgpool": first + "[local_avgpool]\nsize=3\nstride=2\n",
    "maxpool": first + "[maxpool]\nsize=2\nstride=1\n"
    + "[maxpool]\nsize=5\nstride=1\n[maxpool]\nsize=3\nstride_x=2\nstride_y=1\n",
    "maxpool odd": NET.format(13, 9, 3) + "[maxpool]\nsize=2\nstride=2\n[maxpool]\nsize=3\nstride=2\npadding=0\n",
    "maxpool_depth": first + "[maxpool]\nmaxpool_depth=1\nout_channels=3\n",
    "maxpool_zero_nonmax": first + "[maxpool]\nsize=3\nstride=1\nmaxpool_zero_nonmax=1\n",
    "normalization": first + "[normalization]\nsize=4\nalpha=0.3\n",
    "reorg": first + "[reorg]\nstride=2\n[reorg]\nstride=2\nreverse=1\n",
    "reorg3d": NET.format(12, 8, 3) + CONV.format(16, 1, 1, "linear") + "[reorg3d]\nstride=2\n[reorg3d]\nstride=2\nreverse=1\n",
    "route": first + CONV.format(4, 1, 1, "relu") + "[route]\nlayers=-1,0\ngroups=2\ngroup_id=1\n[route]\nlayers=-1,-2\n",
    "sam": first + CONV.format(8, 1, 1, "logistic") + "[sam]\nfrom=-2\nactivation=leaky\n",
    "scale_channels": first + "[avgpool]\n" + CONV.format(8, 1, 1, "logistic") + "[scale_channels]\nfrom=0\nactivation=swish\n",
    "shortcut": first + CONV.format(6, 1, 1, "linear") + CONV.format(6, 3, 2, "relu")
    + "[shortcut]\nfrom=-2,-3\nactivation=leaky\n",
    "shortcut unequal": first + CONV.format(10, 1, 1, "linear") + "[shortcut]\nfrom=0\nactivation=linear\n",
    "shortcut per_channel": first + CONV.format(8, 1, 1, "linear") + CONV.format(8, 1, 1, "linear")
    + "[shortcut]\nfrom=-2,-3\nweights_type=per_channel\nweights_normalization=softmax\nactivation=mish\n",
    "shortcut per_feature": first + CONV.format(8, 1, 1, "linear")
    + "[shortcut]\nfrom=-2\nweights_type=per_feature\nweights_normalization=relu\nactivation=linear\n",
    "softmax": first + "[softmax]\ngroups=2\ntemperature=3\n[cost]\n",
    "sort_shortcut": first + CONV.format(8, 1, 1, "linear") + "[sort_shortcut]\nfrom=-2\nactivation=relu\n",
    "sort_shortcut unequal": first + CONV.format(10, 1, 1, "linear") + "[sort_shortcut]\nfrom=-2\nslope=0.2\neps=0.01\n",
    "upsample": first + "[upsample]\nstride=2\nscale=0.5\n[upsample]\nstride=-2\n",
    "yolo": first + CONV.format(21, 1, 1, "linear")
    + "[yolo]\nmask=0,1,2\nanchors=3,4,5,6,7,8\nclasses=2\nnum=3\nscale_x_y=1.1\n",
    "yolo new_coords": first + CONV.format(14, 1, 1, "logistic")
    + "[yolo]\nmask=1,2\nanchors=3,4,5,6,7,8\nclasses=2\nnum=3\nscale_x_y=2\nnew_coords=1\n",
    "Gaussian_yolo": first + CONV.format(22, 1, 1, "linear")
    + "[Gaussian_yolo]\nmask=0,1\nanchors=3,4,5,6\nclasses=2\nnum=2\nscale_x_y=1.2\nyolo_point=left_top\n",
    "region": first + CONV.format(16, 1, 1, "linear") + "[region]\nanchors=1,2,3,4\nclasses=3\nnum=2\nsoftmax=1\n",
    "detection": first
    + "[connected]\noutput=32\nactivation=linear\n[detection]\nclasses=3\ncoords=4\nside=2\nnum=1\nsoftmax=1\nsqrt=1\n",
}  # fmt: skip


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_a_layer(text):
    agree(network(text), count=2)


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_opencv_runs_a_layer(text, tmp_path):
    net = network(text)
    write_onnx(net, tmp_path / "net.onnx")
    read = cv2.dnn.readNetFromONNX(str(tmp_path / "net.onnx"))
    x = images(net)
    read.setInput(x)
    outputs = read.forward(read.getUnconnectedOutLayersNames())
    for ours, theirs in zip(net.predict(x, engine="reference"), outputs, strict=True):
        np.testing.assert_allclose(theirs.ravel(), ours.ravel(), rtol=0, atol=1e-4 * np.abs(ours).max())


STATEFUL = {"rnn", "crnn", "gru", "lstm", "conv_lstm", "history"}


def test_layers_without_a_lowering():
    """New layers may lack one; of Darknet's, only [cost], which is not an output and which no layer reads."""
    default, stateful = lower.dispatch(Layer), lower.dispatch(SECTIONS["rnn"])
    assert {cls.section for cls in SECTIONS.values() if lower.dispatch(cls) is stateful} == STATEFUL
    missing = {cls.section for cls in SECTIONS.values() if lower.dispatch(cls) is default}
    assert missing & DARKNET_SECTIONS == {"cost"}


def test_every_activation_has_a_lowering():
    assert set(ACTIVATIONS) == set(activation.FUNCTIONS) | set(activation.NORMALIZERS)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_activation(kind):
    net = network(NET.format(6, 4, 3) + CONV.format(5, 1, 1, kind))
    net.weights[0]["kernel"] *= 8  # reach the bends at -4, 4 and 6
    net.weights[0]["bias"] -= 3
    agree(net)


@pytest.mark.parametrize("name", ["yolo", "yolo new_coords", "Gaussian_yolo", "region", "detection"])
def test_boxes_equal_detections(name):
    net = network(LAYERS[name])
    x = images(net, 2)
    boxes, scores = run(onnx_model(net, batch=None, boxes=True), x)
    thresh = float(np.median(scores))
    rows = net.decode(net.predict(x, engine="reference"), thresh)
    above = (scores > thresh).any(axis=2)
    if name.endswith("yolo") or "new" in name:  # their detections also need objectness above the threshold
        assert len(rows) >= above.sum()
        rows = rows[rows[:, 6:].any(axis=1)]
    assert len(rows) == above.sum()
    np.testing.assert_allclose(rows[:, 2:6], boxes[above], rtol=1e-4, atol=1e-4)
    kept = scores[above]
    np.testing.assert_allclose(rows[:, 6:], np.where(kept > thresh, kept, 0), rtol=1e-4, atol=1e-5)


def test_several_heads_and_a_dynamic_batch():
    net = network(opencv4.CFGS["tiny"])
    model = onnx_model(net, batch=None)
    assert [o.name for o in model.graph.output] == ["layer_13", "layer_19"]
    for count in (1, 3):
        x = images(net, count)
        for ours, theirs in zip(net.predict(x, engine="reference"), run(model, x), strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())
    boxes, scores = run(onnx_model(net, boxes=True), images(net))
    assert boxes.shape == (1, 1440, 4) and scores.shape == (1, 1440, 4)


@pytest.mark.parametrize("name", opencv4.CFGS)
def test_half_precision(name):
    net = network(opencv4.CFGS[name])
    x = images(net)
    model = onnx_model(net, half=True)
    assert len(model.SerializeToString()) < 0.8 * len(onnx_model(net).SerializeToString())
    for ours, theirs in zip(net.predict(x, engine="reference"), run(model, x), strict=True):
        assert theirs.dtype == np.float32
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-2 * np.abs(ours).max())  # float16 has 11 bits


@pytest.mark.parametrize("boxes", [False, True], ids=["raw", "boxes"])
@pytest.mark.parametrize("name", ["tiny", "csp", "v2", "classes"])
def test_opencv_runs_it(name, boxes, tmp_path):
    net = network(opencv4.CFGS[name])
    if name == "classes" and boxes:
        with pytest.raises(CfgError) as e:
            onnx_model(net, boxes=True)
        assert str(e.value) == "line 34: [softmax] (layer 5) outputs no boxes; export it without -boxes"
        return
    write_onnx(net, tmp_path / "net.onnx", boxes=boxes)
    read = cv2.dnn.readNetFromONNX(str(tmp_path / "net.onnx"))
    x = images(net)
    read.setInput(x)
    expected = run(onnx_model(net, boxes=boxes), x)
    outputs = read.forward(["boxes", "scores"] if boxes else read.getUnconnectedOutLayersNames())
    for ours, theirs in zip(expected, outputs, strict=True):
        np.testing.assert_allclose(theirs.ravel(), ours.ravel(), rtol=0, atol=1e-3 * np.abs(ours).max())


def test_a_layer_that_keeps_state_is_refused():
    with pytest.raises(CfgError) as e:
        onnx_model(network(NET.format(3, 2, 1) + "[rnn]\noutput=4\nhidden=5\n"))
    assert str(e.value) == "line 5: [rnn] (layer 0) cannot be exported: it keeps state between images"


def test_a_layer_without_a_lowering_is_refused():
    cost = network(LAYERS["softmax"]).nodes[2]
    with pytest.raises(CfgError) as e:
        lower(cost.layer, Graph(), {}, cost, "x")
    assert str(e.value) == (
        f"line {cost.line}: [cost] (layer 2) has no ONNX lowering; add one in gpudarknet/export/lower.py"
    )


RUNTIMES = pytest.mark.parametrize("name", ["onnxruntime", "openvino", "fastest"])
RECURRENT = "[net]\ninputs=5\n[connected]\noutput=3\n[lstm]\noutput=4\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a detector's files; without measurements of engines."""
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "cache"))
    opencv4.write(tmp_path)
    return tmp_path / "tiny.cfg", tmp_path / "tiny.weights"


@RUNTIMES
def test_as_an_executor(name, files):
    net, plain = (gd.load_network(*files, backend=backend) for backend in (name, "numpy"))
    for count in (1, 3):
        x = images(net, count)
        for ours, theirs in zip(plain.predict(x), net.predict(x), strict=True):
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())
    net.weights[0]["bias"] += 1
    before = net.predict(x)[0]
    net.program_cache.clear()
    assert not np.allclose(net.predict(x)[0], before)
    detections = gd.Detector(*files, backend=name).detect(np.ascontiguousarray(opencv4.scene()), thresh=0.7)
    same = gd.Detector(*files, backend="numpy").detect(np.ascontiguousarray(opencv4.scene()), thresh=0.7)
    assert [d.label for d in detections] == [d.label for d in same] and detections


@RUNTIMES
def test_outputs_belong_to_the_caller(name, files):
    net = gd.load_network(*files, backend=name)
    x = images(net)
    x.flags.writeable = False
    first = net.predict(x)
    kept = [y.copy() for y in first]
    net.predict(1 - x)
    for y, copied in zip(first, kept, strict=True):
        np.testing.assert_array_equal(y, copied)
        y += 1


@RUNTIMES
def test_threads_share_a_program(name, files):
    net = gd.load_network(*files, backend=name)
    inputs = [images(net) * k / 8 for k in range(8)]
    expected = [net.predict(x)[0] for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(expected, pool.map(lambda x: net.predict(x)[0], inputs), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@RUNTIMES
def test_another_input_size(name, files):
    net, plain = (gd.load_network(*files, backend=backend) for backend in (name, "numpy"))
    for width, height in ((96, 64), (160, 128)):
        for one in (net, plain):
            one.resize(width, height)
        x = images(net)
        for ours, theirs in zip(plain.predict(x), net.predict(x), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


def test_onnxruntime_uses_as_many_threads_as_the_user_sets(files, monkeypatch):
    monkeypatch.setenv("GPUDARKNET_THREADS", "3")
    net = gd.load_network(files[0], backend="onnxruntime")
    assert net.program().session.get_session_options().intra_op_num_threads == 3


def test_openvino_uses_as_many_threads_as_the_user_sets(files, monkeypatch):
    net = gd.load_network(files[0], backend="openvino")
    for threads in ("1", "2"):  # also after it was compiled
        monkeypatch.setenv("GPUDARKNET_THREADS", threads)
        assert net.program().compiled.get_property("INFERENCE_NUM_THREADS") == int(threads)


def test_openvino_computes_in_fp32_unless_asked(files):
    compiled = gd.load_network(files[0], backend="openvino").program().compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_openvino_reports_no_import(files):
    code = "import sys, gpudarknet.export.program as p; p.import_openvino(); print('openvino_telemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@RUNTIMES
def test_a_forked_process_compiles_anew(name, files):
    net = gd.load_network(*files, backend=name)
    x = images(net)
    expected = net.predict(x)[0]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        net.predict(x)
        net.program_cache.clear()  # destroys the program that it inherited
        sender.send(net.predict(x)[0])

    process = context.Process(target=child)
    process.start()
    try:
        assert receiver.poll(60)
        np.testing.assert_array_equal(receiver.recv(), expected)
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_network_that_an_engine_cannot_run(name):
    net = gd.load_network(cfg.parse(RECURRENT, "r.cfg"), backend=name)
    with pytest.raises(CfgError) as e:
        net.predict(images(net))
    assert str(e.value) == (
        f"r.cfg: {name}: line 5: [lstm] (layer 1) cannot be exported: it keeps state between images; use backend='numpy'"
    )
    assert net.trace(images(net))[1].shape == (1, 4, 1, 1)


def test_the_fastest_engine(files, monkeypatch):
    def engine(backend="fastest", text=opencv4.CFGS["tiny"], precision="fp32"):
        return gd.load_network(cfg.parse(text), backend=backend).program(1, precision).engine.split()[0]

    assert gd.backend.get("fastest").name == engine() == "openvino"
    assert engine(text=RECURRENT) == "numpy"
    net = gd.load_network(cfg.parse(opencv4.CFGS["tiny"]))
    for measured in ("onnxruntime", "numpy", "openvino"):
        key = fastest.key(net.nodes, net.net.input, 1)
        save_tuning(fastest.device_name(), {key: measured})
        assert engine() == measured and engine(text=RECURRENT) == "numpy"
    assert engine("auto") == "numpy"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else name)
    assert gd.backend.get("fastest").name == engine() == "numpy"


def test_the_fastest_engine_in_a_process_of_its_own(files):
    """Whatever it needs is imported, though `import gpudarknet` imports little."""
    code = "import sys, gpudarknet as gd; print(gd.load_network(sys.argv[1], backend='fastest').program().engine)"
    command = [sys.executable, "-c", code, files[0]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("openvino"), result.stderr


def test_bf16_is_computed_or_refused(files, monkeypatch):
    """Never replaced by fp32; other precisions are."""
    net = gd.load_network(*files, backend="openvino")
    x = images(net)
    if (why := why_no_bf16()) is None:
        y, expected = net.predict(x, precision="bf16")[0], net.predict(x)[0]
        assert y.dtype == np.float32 and 0 < np.abs(y - expected).max() < 0.1 * np.abs(expected).max()
    else:
        assert "has neither AMX nor AVX-512 BF16; use fp32" in why
    monkeypatch.setattr(OpenVinoProgram, "__init__", lambda *args: pytest.fail("compiled"))
    for executor in ("openvino", "fastest"):
        old = gd.backend._executors[executor]
        monkeypatch.setitem(gd.backend._executors, executor, dataclasses.replace(old, why_no_bf16=lambda: "no AMX"))
        with pytest.raises(gd.errors.BackendError) as e:
            gd.Detector(*files, backend=executor, precision="bf16")
        assert str(e.value) == "precision bf16: no AMX"
    for backend in ("numpy", "onnxruntime"):
        with pytest.raises(gd.errors.BackendError) as e:
            gd.load_network(*files, backend=backend).predict(x, precision="bf16")
        assert str(e.value) == f"precision bf16: the backend {backend} does not compute in it; use openvino"
        gd.load_network(*files, backend=backend).predict(x, precision="fp16")


def test_bf16_is_what_openvino_is_asked_for(files, monkeypatch):
    """Its own answer is fp32 on a CPU without bf16."""
    asked = []

    class Core(import_openvino().Core):
        def compile_model(self, model, device, options):
            asked.append(options["INFERENCE_PRECISION_HINT"])
            return super().compile_model(model, device, options)

    monkeypatch.setattr(import_openvino(), "Core", Core)
    net = gd.load_network(*files, backend="openvino")
    for precision in ("fp32", "bf16"):
        compiled = OpenVinoProgram(net.nodes, net.weights, net.heads, net.net.input, 1, precision)
        assert compiled.engine.endswith(f", {precision}") and compiled.run(images(net))[0].dtype == np.float32
    assert asked == ["f32", "bf16"]


INTERRUPTED = """
import os, signal, sys
import numpy as np
import gpudarknet as gd

networks = [gd.load_network(*sys.argv[1:], backend="openvino") for _ in range(3)]
for network in networks:
    network.predict(np.zeros((1, *network.net.input), np.float32))
del network
while networks:
    networks.pop(0)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_signal_after_openvino_was_used(files):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino")])
def test_a_missing_package_is_named(name, extra, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == name else wanted)
    with pytest.raises(gd.errors.BackendError) as e:
        gd.backend.get(name)
    assert str(e.value) == (
        f"backend: '{name}' cannot run here: {name} is not installed; pip install \"gpudarknet[{extra}]\""
    )


def test_without_onnx(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(gd.errors.BackendError) as e:
        import_onnx()
    assert str(e.value) == 'export: the package onnx is not installed; pip install "gpudarknet[onnx]"'


def test_the_command(tmp_path, capsys):
    opencv4.write(tmp_path)
    words = [str(tmp_path / "tiny.cfg"), str(tmp_path / "tiny.weights")]
    out = tmp_path / "tiny.onnx"
    assert cli.main(["export", *words, str(out), "-dynamic", "-boxes", "-width", "128"]) == 0
    assert capsys.readouterr().out == f"{out}: input N x 3 x 64 x 128 -> boxes, scores, 0.1 MB\n"
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.zeros((2, 3, 64, 128), np.float32)})[0].shape == (2, 1920, 4)
    assert cli.main(["export", *words, str(tmp_path / "tiny.pt")]) == 2
    expected = f"error: {tmp_path / 'tiny.pt'}: unknown format; use .onnx, .safetensors, .weights\n"
    assert capsys.readouterr().err == expected
    assert cli.main(["export", *words, str(out), "-batch", "0"]) == 2
    expected = "error: -batch 0: must be at least 1; -dynamic allows any batch size\n"
    assert capsys.readouterr().err == expected


def test_metadata(tmp_path, capsys):
    opencv4.write(tmp_path)
    (tmp_path / "tiny.names").write_text("cat\nit's a dog\nbird\nrat\nmore than needed\n")
    words = [str(tmp_path / "tiny.cfg"), str(tmp_path / "tiny.weights"), str(tmp_path / "tiny.onnx")]
    assert cli.main(["export", *words, "-names", str(tmp_path / "tiny.names")]) == 0
    props = (
        onnxruntime.InferenceSession(words[2], providers=["CPUExecutionProvider"]).get_modelmeta().custom_metadata_map
    )
    net = gd.load_network(words[0], backend="numpy")
    assert ast.literal_eval(props["names"]) == {0: "cat", 1: "it's a dog", 2: "bird", 3: "rat"}
    assert ast.literal_eval(props["imgsz"]) == [net.height, net.width] and props["task"] == "detect"
    assert (props["stride"], props["batch"], props["channels"]) == ("8", "1", "3")
    assert metadata(net, None)["names"] == "{0: 'class 0', 1: 'class 1', 2: 'class 2', 3: 'class 3'}"
    assert metadata(network(LAYERS["softmax"]), 1)["task"] == "classify"
    with pytest.raises(DataError, match=r"names: has 1 names, but .* has 4 classes"):
        onnx_model(net, names=["cat"])


def test_a_missing_folder(tmp_path):
    net = network(LAYERS["avgpool"])
    with pytest.raises(DataError) as e:
        write_onnx(net, tmp_path / "none" / "x.onnx")
    assert str(e.value) == (
        f"{tmp_path / 'none' / 'x.onnx'}: cannot be written (No such file or directory); check the folder and the disk"
    )
