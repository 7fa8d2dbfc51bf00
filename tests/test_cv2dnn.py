"""gpudarknet.cv2dnn against recorded results of OpenCV 4.14 for the same scripts (tests/opencv4.py, tests/opencv4.json)."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import cv2
import numpy as np
import opencv4
import pytest

import gpudarknet.cv2dnn as dnn
from gpudarknet.backend import why_no_cupy
from gpudarknet.cv2dnn.replacement import CLASSES, FUNCTIONS, OPENCV
from gpudarknet.errors import CfgError, DarknetError, DataError, ImageError

RECORD = json.loads(opencv4.RECORD.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write the scripts' networks to files."""
    folder = tmp_path_factory.mktemp("opencv4")
    opencv4.write(folder)
    return folder


@pytest.fixture
def net(folder):
    return dnn.readNetFromDarknet(str(folder / "tiny.cfg"), str(folder / "tiny.weights"))


def blob(w=96, h=64):
    return dnn.blobFromImage(opencv4.scene(), 1 / 255.0, (w, h), swapRB=True)


@pytest.mark.parametrize("script", opencv4.SCRIPTS, ids=lambda script: script.__name__)
def test_script(script, folder):
    ours, theirs = script(dnn, folder), RECORD[script.__name__]
    assert {k: v for k, v in ours.items() if k not in ("detections", "reorg", "probabilities")} == {
        k: v for k, v in theirs.items() if k not in ("detections", "reorg", "probabilities")
    }
    for key in {"reorg", "probabilities"} & set(ours):  # OpenCV's batch norm has 1e-6 where Darknet has 1e-5
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
    assert len(ours["detections"]) == len(theirs["detections"]) > 0
    for detection, other in zip(ours["detections"], theirs["detections"], strict=True):
        assert same(detection, other), f"\nours   {detection}\nOpenCV {other}"


def same(a, b):
    (a_class, a_score, a_box), (b_class, b_score, b_box) = a, b
    return a_class == b_class and abs(a_score - b_score) < 1e-4 and np.allclose(a_box, b_box, rtol=0, atol=2)


@pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromDarknet"), reason="OpenCV 5 has no Darknet importer to compare with"
)
@pytest.mark.parametrize("name", opencv4.CFGS)
def test_every_layer_equals_opencv4(name, folder):
    paths = str(folder / f"{name}.cfg"), str(folder / f"{name}.weights")
    ours, theirs = dnn.readNetFromDarknet(*paths), cv2.dnn.readNetFromDarknet(*paths)
    assert ours.getLayerNames() == theirs.getLayerNames()
    config = ours._network.config.net  # OpenCV 4 cannot run [scale_channels] at another size, nor on a batch
    x = np.random.default_rng(3).random((1, 3, config.height, config.width), np.float32)
    for net in (ours, theirs):
        net.setInput(x)
    pairs = zip(ours.forward(ours.getLayerNames()), theirs.forward(ours.getLayerNames()), strict=True)
    for layer, (a, b) in zip(ours.getLayerNames(), pairs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3 * b.std() + 1e-6, err_msg=layer)


def test_sublayers_of_a_convolution_compose(net):
    net.setInput(blob())
    raw, normal, active = net.forward(["conv_8", "bn_8", "mish_9"])
    mean, variance, scale, bias = (b.reshape(-1, 1, 1) for b in net.getLayer("bn_8").blobs)
    np.testing.assert_allclose(normal, (raw - mean) / np.sqrt(variance + 1e-5) * scale + bias, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(active, normal * np.tanh(np.log1p(np.exp(normal))), rtol=1e-4, atol=1e-5)
    conv, permuted = net.forward(["conv_12", "permute_13"])
    assert (permuted == conv.transpose(0, 2, 3, 1)).all()


def test_arguments_of_forward(net):
    net.setInput(blob())
    last = net.forward()
    assert last.shape == (1152, 9) and last.dtype == np.float32
    assert (net.forward("yolo_19") == last).all()
    assert [y.shape for y in net.forward(("yolo_13", "yolo_19"))] == [(288, 9), (1152, 9)]
    assert (net.forward(outBlobNames=["yolo_19"])[0] == last).all()
    assert net.forward(outputName="yolo_13").shape == (288, 9)


def test_layers_and_costs(net):
    assert (net.getLayerId("conv_0"), net.getLayerId("_input"), net.getLayerId("none")) == (1, 0, -1)
    assert net.getLayer(1).name == "conv_0" and net.getLayer("yolo_19").type == "Region"
    assert net.getLayersCount("Region") == 2 and "Resize" in net.getLayerTypes() and not net.empty()
    assert net.getLayer("yolo_19").blobs[0].tolist() == [[10, 14, 23, 27, 37, 58]]
    assert net.getFLOPS((2, 3, 64, 96)) == 2 * net.getFLOPS([(1, 3, 64, 96)])
    net.setInput(blob())
    net.forward()
    total, ticks = net.getPerfProfile()
    assert total > 0 and len(ticks) == len(net.getLayerNames()) and (ticks[:-1] == 0).all()
    net.forward("conv_0")
    assert (net.getPerfProfile()[1] > 0).sum() > 10
    net.enableFusion(False)
    net.enableWinograd(True)
    net.setInputsNames(["data"])
    assert '"conv_0" -> "bn_0"' in net.dump()


def test_set_input_scales_and_subtracts(net):
    whole = cv2.dnn.blobFromImage(opencv4.scene(), 1, (96, 64), swapRB=True)
    net.setInput(whole.astype(np.uint8), scalefactor=1 / 255, mean=(1, 2, 3))
    ours = net.forward()
    net.setInput((whole - np.reshape([1, 2, 3], (3, 1, 1))).astype(np.float32) / 255)
    np.testing.assert_allclose(ours, net.forward(), rtol=1e-4, atol=1e-4)


def test_a_weighted_shortcut_with_two_sources_is_darknets(tmp_path):
    text = (
        "[net]\nwidth=3\nheight=2\nchannels=1\n"
        + "[convolutional]\nfilters=1\nsize=1\nactivation=linear\n" * 3
        + "[shortcut]\nfrom=-2,-3\nweights_type=per_feature\nweights_normalization=relu\nactivation=linear\n"
    )
    values = np.array([0, 2, 0, 3, 0, 5, 1, 2, 3], "<f4")  # bias, kernel three times; three factors
    weights = np.array([0, 2, 5, 0, 0], "<i4").tobytes() + values.tobytes()
    net = dnn.readNetFromDarknet(np.frombuffer(text.encode(), np.uint8), np.frombuffer(weights, np.uint8))
    net.setInput(np.ones((1, 1, 2, 3), np.float32))
    np.testing.assert_allclose(net.forward("shortcut_3"), (30 * 1 + 6 * 2 + 2 * 3) / 6, rtol=1e-4)


def test_models_say_what_is_missing(folder):
    model = dnn.DetectionModel(str(folder / "csp.cfg"), str(folder / "csp.weights"))
    with pytest.raises(DataError) as e:
        model.detect(opencv4.scene())
    message = "predict: the input size is not set; call setInputParams(size=(width, height)) first"
    assert str(e.value) == message
    model.setInputParams(1 / 255, (64, 96), (0, 0, 0), True, False)
    with pytest.raises(ImageError) as empty:
        model.detect(None)
    assert str(empty.value) == "predict: the image is empty; did imread find the file?"
    assert model.detect(opencv4.scene(), 1.0) == ((), (), ())
    assert model.getNmsAcrossClasses() is False


def test_errors(net, tmp_path, folder):
    with pytest.raises(DataError) as e:
        net.forward()
    assert str(e.value) == "forward: no input; call setInput(blob) first"
    net.setInput(np.zeros((1, 1, 64, 96), np.float32))
    with pytest.raises(DataError) as e:
        net.forward()
    assert str(e.value) == (
        "forward: the input has shape (1, 1, 64, 96); this network expects (N, 3, H, W), as returned by blobFromImage"
    )
    with pytest.raises(DataError) as e:
        net.forward("yolo_99")
    assert str(e.value) == "forward: no layer 'yolo_99'; getLayerNames() lists all"
    with pytest.raises(DataError) as e:
        net.getLayer(99)
    assert str(e.value) == "getLayer: no layer 99; ids range from 0 to 40"
    with pytest.raises(DataError) as e:
        dnn.readNet(str(folder / "tiny.weights"))
    assert str(e.value) == f"readNet: {folder / 'tiny.weights'} needs a cfg too: readNet(weights, cfg)"
    with pytest.raises(DataError) as e:
        net.getParam(1.5)
    message = "getParam: layer must be an integer, not float; or layerName must be a string or a path, not float"
    assert str(e.value) == message
    with pytest.raises(CfgError):
        dnn.readNetFromDarknet(str(tmp_path / "none.cfg"))


def test_a_connected_layer_fixes_the_size():
    text = "[net]\nwidth=6\nheight=4\nchannels=1\n[connected]\noutput=3\nactivation=leaky\n"
    net = dnn.readNetFromDarknet(text.encode())
    net.setInput(np.ones((2, 1, 4, 6), np.float32))
    assert net.getLayerNames() == ("fullyConnected_0", "leaky_1") and net.forward().shape == (2, 3)
    net.setInput(np.ones((1, 1, 4, 8), np.float32))
    with pytest.raises(CfgError) as e:
        net.forward()
    assert str(e.value) == "cfg:5: [connected] (layer 0) has weights for one input size; it cannot take 8 x 4"


def test_cuda_target_without_a_gpu_stays_on_the_cpu(net):
    if why_no_cupy() is None:
        net.setPreferableTarget(dnn.DNN_TARGET_CUDA)
        assert net._network.backend.name == "cupy"
        net.setInput(blob())
        assert net.forward().shape == (1152, 9)
        return
    with pytest.warns(RuntimeWarning, match="'cupy' cannot run here: .*; the network stays on the CPU"):
        net.setPreferableBackend(dnn.DNN_BACKEND_CUDA)
    assert net._network.backend.name == "numpy"


def test_the_inference_engine_is_openvino(net, monkeypatch):
    net.setInput(blob())
    expected = net.forward()
    net.setPreferableBackend(dnn.DNN_BACKEND_INFERENCE_ENGINE)
    net.setPreferableTarget(dnn.DNN_TARGET_CPU)
    assert net._network.backend.name == "openvino"
    assert dnn.getAvailableTargets(dnn.DNN_BACKEND_INFERENCE_ENGINE).tolist() == [dnn.DNN_TARGET_CPU]
    net.setInput(blob())
    np.testing.assert_allclose(net.forward(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert net._network.program().engine.startswith("openvino ")
    net.setPreferableBackend(dnn.DNN_BACKEND_OPENCV)
    assert net._network.backend.name == "numpy"
    monkeypatch.setenv("GPUDARKNET_BACKEND", "onnxruntime")
    net.setPreferableBackend(dnn.DNN_BACKEND_OPENCV)
    assert net._network.backend.name == "onnxruntime"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert len(dnn.getAvailableTargets(dnn.DNN_BACKEND_INFERENCE_ENGINE)) == 0
    with pytest.warns(RuntimeWarning, match=r"onnx is not installed; pip install .*; the network stays on the CPU"):
        net.setPreferableBackend(dnn.DNN_BACKEND_INFERENCE_ENGINE)


def test_the_fp16_target_uses_half_precision(net, monkeypatch):
    precisions = []
    predict = type(net._network).predict

    def record(self, x, **options):
        precisions.append(options["precision"])
        return predict(self, x, **options)

    monkeypatch.setattr(type(net._network), "predict", record)
    net.setInput(blob())
    net.forward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning without a GPU is tested above
        net.setPreferableTarget(dnn.DNN_TARGET_CUDA_FP16)
    net.forward()
    assert precisions == ["fp32", "fp16"]


def test_errors_are_caught_by_except_cv2_error(net, tmp_path):
    with pytest.raises(cv2.error) as e:
        dnn.readNetFromDarknet(str(tmp_path / "none.cfg"))
    assert isinstance(e.value, CfgError) and type(e.value).__name__ == "CfgError"
    assert (e.value.func, e.value.code, e.value.err, e.value.msg) == (
        "readNetFromDarknet",
        -2,
        str(e.value),
        str(e.value),
    )
    assert type(pickle.loads(pickle.dumps(e.value))) is CfgError
    with pytest.raises(cv2.error) as e:
        net.setInput("photo.png")
    assert isinstance(e.value, TypeError) and isinstance(e.value, DarknetError)
    assert str(e.value) == "must be an array of numbers, not str" and e.value.code == -5
    with pytest.raises(cv2.error, match="missing 1 required positional argument: 'fusion'"):
        net.enableFusion()


@pytest.fixture
def installed(monkeypatch):
    """Undo what `install` changes after the test."""
    for module, prefix, names in ((cv2.dnn, "", CLASSES + FUNCTIONS), (cv2, "dnn_", CLASSES)):
        for name in names:
            monkeypatch.setattr(module, prefix + name, getattr(module, prefix + name, None), raising=False)
    dnn.install()
    dnn.install()  # a second time changes nothing


@pytest.mark.usefixtures("installed")
def test_install_replaces_what_an_unchanged_script_uses(folder, tmp_path):
    net = cv2.dnn.readNet(str(folder / "csp.weights"), str(folder / "csp.cfg"))
    assert isinstance(net, dnn.Net) and isinstance(net, cv2.dnn.Net) and isinstance(net, cv2.dnn_Net)
    assert isinstance(cv2.dnn_DetectionModel(net), cv2.dnn.Model) and isinstance(net.getLayer(0), cv2.dnn_Layer)
    assert (
        cv2.dnn.Net().empty()
        and cv2.dnn.readNetFromDarknet(str(folder / "csp.cfg")).getLayerNames() == net.getLayerNames()
    )
    with pytest.raises(cv2.error):  # other formats go to OpenCV's reader
        cv2.dnn.readNet(str(folder / "none.onnx"))


@pytest.mark.usefixtures("installed")
def test_after_install_opencv_still_runs_its_own_networks(folder, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = str(tmp_path / "relu.onnx")
    maps = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 6]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", maps[:1], maps[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    net = cv2.dnn.readNet(path)
    assert type(net) is OPENCV["Net"] and isinstance(net, cv2.dnn.Net)
    for model in (cv2.dnn.Model(net), cv2.dnn.Model(path), cv2.dnn.ClassificationModel(network=net)):
        assert type(model) in OPENCV.values() and isinstance(model, cv2.dnn.Model)
        model.setInputParams(size=(6, 4))
        assert model.predict(opencv4.scene())[0].shape == (1, 3, 4, 6)


def test_other_names_are_opencvs():
    assert dnn.NMSBoxes is cv2.dnn.NMSBoxes and dnn.DNN_TARGET_CUDA == 6


def test_a_model_can_be_subclassed(folder):
    class Detector(dnn.DetectionModel):
        def __init__(self, name):
            super().__init__(str(folder / f"{name}.cfg"), str(folder / f"{name}.weights"))
            self.setInputParams(1 / 255, (96, 64), swapRB=True)

    assert len(Detector("tiny").detect(opencv4.scene())) == 3


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"]
)
def test_networks_and_models_can_be_copied(net, duplicate):
    model = dnn.DetectionModel(net)
    model.setInputParams(1 / 255, (96, 64), swapRB=True)
    net.setInput(blob())
    names = net.getLayerNames()
    before, other_net, other_model = net.forward(names), duplicate(net), duplicate(model)
    found = model.detect(opencv4.scene(), 0.5)
    net.setParam("conv_0", 0, net.getParam("conv_0") * 0)
    for ours, theirs in zip(other_net.forward(names), before, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(other_model.detect(opencv4.scene(), 0.5), found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_importing_all_names_gives_opencvs_too():
    names = {}
    exec("from gpudarknet.cv2dnn import *", names)
    assert names["blobFromImage"] is cv2.dnn.blobFromImage
    assert names["Net"] is dnn.Net
    assert {name for name in dir(cv2.dnn) if not name.startswith("_")} <= set(dir(dnn))
