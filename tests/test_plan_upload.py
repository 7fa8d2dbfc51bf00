"""Image batches of plans on a GPU, without one: bytes to floats, staging buffers, and overlapping uploads."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import tiny
from backends import backend_for, plan_backend
from cuda_plans import TOLERANCE, distance, pair, program
from fake_cublas import FakeCublas
from seeded import network_input

from gpudarknet import Detector, cfg, load_network
from gpudarknet.backend import Backend
from gpudarknet.boxes import letterbox_size
from gpudarknet.errors import DataError, ImageError
from gpudarknet.plan.cuda import upload as upload_module
from gpudarknet.plan.cuda.program import DetectedRows
from gpudarknet.plan.cuda.upload import Uploader

W, H = 12, 8
NET = f"[net]\nwidth={W}\nheight={H}\nchannels={{channels}}\n"
CONVOLUTION = "[convolutional]\nfilters={filters}\nsize=3\nstride={stride}\npad=1\nactivation=leaky\n"
POOL = "[maxpool]\nsize=2\nstride=2\n"
STARTS = {  # how a network begins -> whether its first convolution reads the input as it comes
    "convolution": (3, CONVOLUTION.format(filters=8, stride=1), True),
    "stride": (3, CONVOLUTION.format(filters=5, stride=2), True),
    "pooled": (3, CONVOLUTION.format(filters=16, stride=1) + POOL, True),
    "activated later": (3, CONVOLUTION.format(filters=8, stride=1) + "[activation]\nactivation=tanh\n", True),
    "gray": (1, CONVOLUTION.format(filters=4, stride=1), True),
    "pool": (3, POOL, False),
    "read twice": (3, CONVOLUTION.format(filters=3, stride=1) + "[sam]\nfrom=-1\n[route]\nlayers=-1,0\n", True),
}
END = "[convolutional]\nfilters=6\nsize=1\nactivation=linear\n"


def bytes_of(channels, *sizes, seed=1):
    """Images of some (width, height), with every byte value."""
    rng = np.random.default_rng(seed)
    made = [rng.integers(0, 256, (h, w, channels), dtype=np.uint8) for w, h in sizes]
    made[0].reshape(-1)[:256] = np.arange(256)[: made[0].size]
    return made


SIZES = {
    "as the network": [(W, H)] * 3,
    "one size": [(17, 21)] * 3,
    "many sizes": [(W, H), (7, 5), (7, 5), (1, 1), (40, 11), (W, H)],
}


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("start", STARTS)
def test_bytes_give_what_floats_give(device, tmp_path, start, sizes, letterbox):
    channels, body, direct = STARTS[start]
    config, images = cfg.parse(NET.format(channels=channels) + body + END), bytes_of(channels, *SIZES[sizes])
    _, net = pair(config, device, tmp_path, 2)
    fitted = [letterbox_size(p.shape[1], p.shape[0], W, H) if letterbox else (W, H) for p in images]
    floats = np.stack([upload_module.resize.network_input.reference(plan_backend(), p, W, H, *new)
                       for p, new in zip(images, fitted, strict=True)])  # fmt: skip
    for precision in ("fp32", "fp16"):
        run = program(net, len(images), precision, poison=device.name == "host-cuda")
        assert (run.input_stage.step is not None) == direct
        batch = Uploader(device).upload(images, fitted)
        assert len(batch) == len(images)
        (got,), (again,) = run.run(batch), run.run(batch)
        (want,) = run.run(device.asarray(floats))
        got, again, want = map(device.to_numpy, (got, again, want))
        np.testing.assert_array_equal(got, again)
        if precision == "fp32" and device.name == "host-cuda":  # a GPU joins products and sums where C++ here may not
            np.testing.assert_array_equal(got, want)
        assert distance([got], [want]) < TOLERANCE[precision]


def test_an_input_on_the_device_is_read_where_it_is(emulator):
    """The first convolution reads it, or else the launch that lays it out: nothing copies it, and results stay there."""
    given, cupy = [], backend_for("cuda")

    def launch(kernel, threads, *args, block=256, shared=0):
        given.append((kernel, getattr(args[0], "data", None) and args[0].data.ptr))
        cupy.launch(kernel, threads, *args, block=block, shared=shared)

    be = replace(cupy, launch=launch)
    for start, kernel in (("convolution", "direct.convolve_float32"), ("pool", "nhwc.from_nchw")):
        net = load_network(cfg.parse(NET.format(channels=3) + STARTS[start][1] + END), backend=be)
        x = be.asarray(network_input(net, 1))
        net.predict(x)
        given.clear()
        with emulator.counting() as done:
            (y,) = net.predict(x)
        assert (kernel, x.data.ptr) in given and isinstance(y, be.xp.ndarray)
        assert not [name for name in done if name.startswith("bytes")] and not done["waits"]
        assert done["graph launches"] == 1 and done["launches"] == 2  # the input, and the result


# --- detectors ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def detectors(tmp_path, device):
    """Return the tiny detector on the device, and on NumPy."""
    tiny.files(tmp_path)
    return [Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], be) for be in (device, "numpy")]


def same(got, want):
    assert [[d.label for d in one] for one in got] == [[d.label for d in one] for one in want]
    for one, other in zip(got, want, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.confidence == pytest.approx(b.confidence, abs=1e-5) and a.box == pytest.approx(b.box, abs=1e-3)


def shown():
    """Seven images with different detections, of three sizes."""
    plain = tiny.image()
    return [plain, plain[:, ::-1], np.zeros((45, 17, 3), np.uint8), plain[::-1], np.full((96, 40, 3), (255, 0, 0), np.uint8),
            plain, plain[:, ::-1]]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 7, 8])
def test_a_stream_gives_each_image_its_own_in_order(detectors, batch):
    there, here = detectors
    want = [here.detect(one) for one in shown()]
    same(list(there.detect_stream(iter(shown()), batch=batch)), want)
    same(there.detect_batch((one for one in shown()), batch=batch), want)
    same(there.detect_batch(shown()), want)
    assert list(there.detect_stream([])) == []


def test_a_detector_has_a_precision(tmp_path, device):
    tiny.files(tmp_path)
    files = tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], device
    want, *others = (Detector(*files, precision=precision) for precision in ("fp32", "tf32", "fp16"))
    for other in others:
        for a, b in zip(other.detect(tiny.image()), want.detect(tiny.image()), strict=True):
            assert a.label == b.label and a.confidence == pytest.approx(b.confidence, abs=2e-2)
    assert {key[2] for key in others[-1].network.program_cache.programs} == {"fp16"}
    with pytest.raises(DataError) as error:
        Detector(*files, precision="int8").detect(tiny.image())
    assert str(error.value) == "predict: unknown precision 'int8'; choose one of fp32, tf32, fp16, bf16"


def test_an_unreadable_image_fails_after_the_results_before(detectors):
    for detector in detectors:
        stream = detector.detect_stream([tiny.image(), "no.png"], batch=1)
        assert len(next(stream)) == 3
        with pytest.raises(ImageError):
            next(stream)


# --- streams: what waits for what is held by test_cuda_launching.py -----------------------------------------------------------


def test_two_buffers_alternate(emulator):
    up = Uploader(backend_for("cuda"))
    with emulator.counting() as done:
        first = up.upload(bytes_of(3, (4, 2)), [(W, H)])
        second = up.upload(bytes_of(3, (4, 2)), [(W, H)])  # while the first may be at work: other memory
    assert second.buffer is not first.buffer
    assert done["bytes host to device"] == 48 and not done["waits"]
    used = first.buffer
    del first
    with emulator.counting() as done:
        third = up.upload(bytes_of(3, (2, 2)), [(W, H)])
    assert third.buffer is used  # it may be overwritten when it has been sent and read
    assert done["bytes host to device"] == 12 and done["waits"] == 1  # for pinned memory; the rest waits on the device
    del second
    large = up.upload(bytes_of(3, (9, 9)), [(W, H)])
    assert large.buffer.host.size == 256 and up.free == []


def test_images_in_a_cycle_of_references_give_their_memory_back_whole(emulator):
    """The collector ends all that is in the cycle: CuPy's events must not be among it, as the next batch needs them."""
    up = Uploader(backend_for("cuda"))
    cycle = [up.upload(bytes_of(3, (4, 2)), [(W, H)])]
    cycle.append(cycle)
    del cycle
    gc.collect()
    (buffer,) = up.free
    again = up.upload(bytes_of(3, (4, 2), seed=2), [(W, H)])
    assert again.buffer is buffer
    np.testing.assert_array_equal(again.runs[0][0].get(), bytes_of(3, (4, 2), seed=2))
    again.buffer.upload_done.synchronize()


def test_the_next_batch_goes_up_while_one_is_computed(emulator, tmp_path, monkeypatch):
    be = backend_for("cuda")
    monkeypatch.setattr(upload_module, "_uploaders", {})
    tiny.files(tmp_path)
    detector = Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], be)
    net, steps = detector.network, []
    detect, read, copied = net.detect, DetectedRows.read, Uploader._copy
    monkeypatch.setattr(net, "detect", lambda *args: steps.append("compute") or detect(*args))
    monkeypatch.setattr(DetectedRows, "read", lambda rows: steps.append("results") or read(rows))
    monkeypatch.setattr(Uploader, "_copy", lambda *args: steps.append("upload") or copied(*args))
    images = detector.detect_stream(iter(shown()[:5]), batch=2)
    next(images)
    assert steps == ["upload", "compute", "upload", "results"]
    list(images)
    assert steps[4:] == ["compute", "upload", "results", "compute", "results"]
    (uploader,) = upload_module._uploaders.values()
    assert len(uploader.free) <= 2


def test_detection_uploads_only_to_the_networks_device(emulator, tmp_path, monkeypatch):
    be = backend_for("cuda")
    monkeypatch.setattr(upload_module, "_uploaders", {})
    tiny.files(tmp_path)
    with be.use_device(1):
        detector = Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], be)
    detector.detect(shown()[0])
    assert [device for _, device in upload_module._uploaders] == [1]


def test_an_uploader_belongs_to_a_device(monkeypatch):
    monkeypatch.setattr(upload_module, "_uploaders", {})
    be = plan_backend()
    assert upload_module.uploader(be) is upload_module.uploader(be)
    other = Backend("host-cuda", np, be.launch, FakeCublas().open, "cuda")
    assert upload_module.uploader(other) is not upload_module.uploader(be)
