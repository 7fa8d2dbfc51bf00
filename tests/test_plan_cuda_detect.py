"""Boxes decoded inside the CUDA graph are those that the heads' layers decode from the outputs, bit for bit."""

from __future__ import annotations

import gc

import cuda_plans
import numpy as np
import pytest
import seeded
from planted import plant

from gpudarknet import Detector, backend, cfg, load_network
from gpudarknet.plan.cuda import detect, program

START = (
    "[net]\nwidth=32\nheight=24\nchannels=3\n[convolutional]\nfilters=8\nsize=3\nstride=4\npad=1\nactivation=leaky\n"
)


def head(section, filters, keys, start=""):
    """A convolution and a head, of the first layer's output."""
    lines = "\n".join(keys.split())
    return f"{start}[convolutional]\nfilters={filters}\nsize=1\nactivation=linear\n[{section}]\n{lines}\n"


YOLO = "mask=1,2 anchors=4,6,8,8,12,16 classes=3 num=3 "
SCALED = head("yolo", 16, YOLO + "scale_x_y=1.2", "[route]\nlayers=0\n[maxpool]\nsize=2\nstride=2\n")
REGION = "anchors=1,2,2,1,3,3 classes=4 coords={} num=3 "
GAUSSIAN = "mask=0,2 anchors=4,6,8,8,12,16 classes=2 num=3 yolo_point="
CELLS = "[connected]\noutput={}\nactivation=linear\n[detection]\nclasses=3\ncoords=4\nside=3\nnum=2\n"
NETWORKS = {
    "yolo": head("yolo", 16, YOLO),
    "yolo, two heads of different sizes": head("yolo", 16, YOLO) + SCALED,
    "yolo, new_coords": head("yolo", 16, YOLO + "new_coords=1 scale_x_y=2"),
    "Gaussian_yolo": head("Gaussian_yolo", 22, GAUSSIAN + "center"),
    "Gaussian_yolo, a corner": head("Gaussian_yolo", 22, GAUSSIAN + "left_top scale_x_y=1.1"),
    "Gaussian_yolo, the other": head("Gaussian_yolo", 22, GAUSSIAN + "right_bottom"),
    "region": head("region", 27, REGION.format(4)),
    "region, softmax": head("region", 33, REGION.format(6) + "softmax=1"),
    "detection": CELLS.format(9 * 13),
    "detection, sqrt": CELLS.format(9 * 13) + "sqrt=1\nsoftmax=1\n",
    "detection of a map": "[maxpool]\nsize=2\nstride=2\n[convolutional]\nfilters=9\nsize=1\nactivation=logistic\n"
    "[detection]\nclasses=2\ncoords=4\nside=3\nnum=2\n",
}  # fmt: skip
THRESHOLDS = (0.5, 0.1, -np.inf, 2.0)


def network(text, be, tmp_path, name="detect.cfg"):
    config = cfg.parse(START + text, name)
    return load_network(
        config, seeded.write_weights(load_network(config, backend="numpy"), tmp_path / "w.weights", 3), be
    )


def inputs(net, batch, seed=0):
    return net.input(np.random.default_rng(seed).random((batch, *net.net.input), dtype=np.float32))


def assert_same(got, want, exact=True):
    assert got.dtype == want.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_array_equal(got, want) if exact else np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_those_of_the_layers(device, tmp_path, name, precision):
    """CuPy's mean of a [Gaussian_yolo] box's uncertainties may add in another order."""
    net = network(NETWORKS[name], device, tmp_path)
    exact, counts = device.name == "host-cuda" or "Gaussian" not in name, []
    for batch in (1, 3):
        x = inputs(net, batch)
        outputs = net.predict(x, precision=precision)
        for thresh in THRESHOLDS:
            pending = net.detect(x, thresh, precision)
            assert isinstance(pending, program.DetectedRows)
            assert_same(pending.read(), want := net.decode(outputs, thresh), exact)
            assert pending.read() is pending.read()
            counts.append(len(want))
    assert counts[3] == counts[7] == 0 < counts[5] and counts[4] < counts[6], counts


@pytest.mark.parametrize("count", [1, 3])
def test_more_boxes_than_the_buffer_holds(device, tmp_path, monkeypatch, count):
    """The batch runs again with a larger one, also if others are in flight."""
    monkeypatch.setattr(detect, "MIN_ROWS", 4)
    monkeypatch.setattr(detect, "ROWS_PER_IMAGE", 1)
    net = network(NETWORKS["yolo, two heads of different sizes"], device, tmp_path)
    xs = [inputs(net, 2, seed) for seed in range(count)]
    wanted = [net.decode(net.predict(x), 0.3) for x in xs]
    assert min(map(len, wanted)) > 8
    stage = net.program(2).detection
    assert stage.capacity == 4
    pending = [net.detect(x, 0.3) for x in xs]
    for rows, want in zip(pending, wanted, strict=True):
        assert_same(rows.read(), want)
    assert max(map(len, wanted)) <= stage.capacity < 2 * max(map(len, wanted))
    assert_same(net.detect(xs[0], 0.3).read(), wanted[0])
    assert len(stage.buffers) == len(stage.free)


def test_batches_in_flight_have_their_own_thresholds(device, tmp_path):
    net = network(NETWORKS["yolo"], device, tmp_path)
    x = inputs(net, 1)
    outputs = net.predict(x)
    pending = [(thresh, net.detect(x, thresh)) for thresh in (0.3, 0.3, 0.6, 0.1, 0.6)]
    for thresh, rows in reversed(pending):
        assert_same(rows.read(), net.decode(outputs, thresh))
    assert len(net.program(1).detection.buffers) == len(pending)


TREE = "a -1\nb -1\nc 0\nd 0\n"
FALLBACKS = {
    "[region] selects classes by tree, map or classfix": head("region", 27, REGION.format(4) + "classfix=-1"),
    "[region] is read by another layer": "[convolutional]\nfilters=8\n[region]\nclasses=3\n[convolutional]\nfilters=8\n"
    "[region]\nclasses=3\n",
    "the network has a recurrent state": "[crnn]\nhidden=4\noutput=4\npad=1\n" + head("yolo", 16, YOLO),
}  # fmt: skip


@pytest.mark.parametrize("why", FALLBACKS)
def test_heads_that_only_their_layers_decode_are_named(device, tmp_path, why):
    net = network(FALLBACKS[why], device, tmp_path)
    x = inputs(net, 2)
    text = net.program(2).describe()
    assert text.endswith(f"; boxes decoded by layers: {why}")
    net.program_cache.clear()
    pending = net.detect(x, 0.3)
    assert not isinstance(pending, program.DetectedRows)
    assert len(pending.read()) and pending.read().shape[1] == 6 + net.nodes[-1].layer.classes


def test_heads_of_different_class_counts_have_no_common_rows(device, tmp_path):
    other = head("yolo", 14, YOLO.replace("classes=3", "classes=2"), "[route]\nlayers=0\n")
    net = network(head("yolo", 16, YOLO) + other, device, tmp_path)
    assert net.program(1).detection == "the heads have different class counts"


def test_a_plan_without_heads_says_nothing_of_boxes(device, tmp_path):
    net = network("[softmax]\n", device, tmp_path)
    assert "boxes" not in net.program(1).describe()


def test_what_a_detection_costs(emulator):
    """One copy of the image, one graph, one copy of the boxes, one wait; and the kernel of the first layer, outside the graph."""
    net = load_network(cuda_plans.thin("yolov3"), backend=backend.get("cupy"), width=64, height=64)
    detector = Detector(net)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for _ in range(3):
        detector.detect(image, 0.6)
    with emulator.counting() as done:
        detector.detect(image, 0.6)
    copies = {name: count for name, count in done.items() if name.startswith("copies")}
    assert copies == {"copies host to device": 1, "copies device to host": 1}
    assert (done["graph launches"], done["waits"], done["launches"]) == (1, 1, 1)
    assert not (done["allocations"] or done["pinned allocations"] or done["captures"] or done["memsets"])
    with emulator.counting() as done:
        detector.detect(image, 0.7)
    assert done["copies host to device"] == 2 and not done["captures"]  # the threshold
    x = net.input(np.zeros((1, 3, 64, 64), np.float32))
    net.predict(x)
    with emulator.counting() as done:
        net.predict(x)
    assert (done["graph launches"], done["waits"], done["launches"]) == (1, 0, 1 + len(net.heads))
    assert not any(name.startswith("copies") for name in done)


# --- planted bugs ---------------------------------------------------------------------------------------------------------


def scenario(be, tmp_path, schedule):
    """Detect several batches at once with several thresholds and more boxes than there is room for; drop some unread."""
    import cuda_emulator

    cuda_emulator.configure(schedule=schedule)
    net = network(NETWORKS["yolo, two heads of different sizes"], be, tmp_path)
    numpy = load_network(net.config, tmp_path / "w.weights", "numpy")
    image = np.random.default_rng(1).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)
    detector, reference = Detector(net), Detector(numpy)
    for thresh in (0.6, 0.2, 0.6):
        wanted = [numpy.detect(reference.upload([image[k]]), thresh).read() for k in range(5)]
        pending = [net.detect(detector.upload([image[k]]), thresh) for k in range(5)]
        del pending[3]
        read = [rows.read() for rows in pending]
        net.detect(detector.upload([image[0]]), thresh).read()  # into the buffer of the last one
        for got, want in zip(read, wanted[:3] + wanted[4:], strict=True):
            assert got.shape == want.shape and np.allclose(got, want, atol=1e-4), thresh
    size = net.program(1).detection.rows.nbytes
    pending = [net.detect(detector.upload([image[0]]), 0.6) for _ in range(3)]
    del pending
    net.program_cache.clear()
    gc.collect()
    others = [
        be.xp.cuda.alloc_pinned_memory(size) for _ in range(8)
    ]  # to which the dropped program must not be copying
    for memory in others:
        np.frombuffer(memory, np.uint8)[:] = 7
    be.xp.cuda.Device().synchronize()
    assert all((np.frombuffer(memory, np.uint8) == 7).all() for memory in others)


BUGS = {
    "rows are read before they arrive": (detect, "self.done.synchronize()", "pass"),
    "too many boxes are ignored": (program, "while count > len(rows):", "while False:"),
    "the threshold stays": (detect, "if thresh != self.thresh:", "if self.thresh == 0:"),
    "the graph writes to the old buffer": (program, "self.detection_graph = None\n            if", "pass\n            if"),
    "a batch writes to a buffer that is not read yet": (
        detect,
        "self.free.pop() if self.free else self._new_buffer(stream)",
        "self.buffers[0] if self.buffers else self._new_buffer(stream)",
    ),
    "rows are not copied from the buffer": (program, "self._rows = rows.copy()", "self._rows = rows"),
    "pinned memory is freed while it is copied to": (program, 'getattr(stage, "buffers", None)', "None"),
    "the batch is not run again": (
        program,
        "larger = self._program.start_detection(self._stage, x, self._thresh, count)",
        "self._stage.reserve(count); larger = self._stage.download(self._program.stream_context.stream)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("schedule", [0, 1, 2])
def test_detections_are_numpys_in_any_order(emulator, tmp_path, monkeypatch, schedule):
    monkeypatch.setattr(detect, "MIN_ROWS", 4)
    monkeypatch.setattr(detect, "ROWS_PER_IMAGE", 1)
    scenario(backend.get("cupy"), tmp_path, schedule)
    emulator.configure(schedule=0)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_detected(emulator, tmp_path, monkeypatch, name):
    monkeypatch.setattr(detect, "MIN_ROWS", 4)
    monkeypatch.setattr(detect, "ROWS_PER_IMAGE", 1)
    detected = None
    with monkeypatch.context() as planted:
        plant(planted, *BUGS[name])
        for schedule in range(6):
            try:
                scenario(backend.get("cupy"), tmp_path, schedule)
            except Exception as e:
                detected = f"{type(e).__name__}: {e}"
            detected = emulator.reset() or detected
            if detected:
                break
    emulator.configure(schedule=0)
    gc.collect()
    emulator.reset()
    assert detected is not None
