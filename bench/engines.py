"""The engines to compare: ours, and other frameworks if installed. Each opens a network, which is then timed.

Opening covers everything done once: reading, compiling, a first call. Only the network itself is timed: from an input in
memory (on a GPU: in device memory) to the outputs of its heads, without image decoding and without box decoding.
An engine that cannot run raises Unavailable with a sentence for the report.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpudarknet import load_network
from gpudarknet.errors import DarknetError
from gpudarknet.network import Network

from . import seeded, torch_network
from .timing import Sample, measure


class Unavailable(Exception):
    """The engine cannot run this network here; the message says why."""


@dataclass(frozen=True)
class Job:
    """One network on one engine. kind: "cpu" or "gpu"."""

    engine: str
    cfg: str
    weights: str
    width: int
    height: int
    batch: int = 1
    precision: str = "fp32"
    threads: int = 1
    kind: str = "cpu"

    def network(self, backend: str = "numpy") -> Network:
        """Load the network."""
        return load_network(self.cfg, self.weights, backend, self.batch, self.width, self.height)


@dataclass(frozen=True)
class Session:
    """An opened engine: `sample(seconds, min_calls)` times calls; version and note go into the report, and `fields()` so far."""

    sample: Callable[[float, int], Sample]
    version: str = ""
    note: str = ""
    fields: Callable[[], dict[str, Any]] = dict


def session_of(call: Callable[[], object], version: str = "", note: str = "") -> Session:
    """Return a session for a function that runs the network once."""
    return Session(lambda seconds, min_calls: measure(call, seconds, min_calls), version, note)


def ours(job: Job) -> Session:
    """Open one of our engines: "plan", "reference", or "openvino-backend", which is `predict` with backend="openvino"."""
    from gpudarknet import __version__

    if job.engine == "openvino-backend":
        network = job.network("openvino")
        x = seeded.network_input(network, job.batch)
        return session_of(lambda: network.predict(x, precision=job.precision), __version__, "OpenVINO")  # type: ignore[arg-type]
    if job.precision != "fp32" and (job.kind == "cpu" or job.engine == "reference"):
        raise Unavailable(
            f"{'NumPy' if job.kind == 'cpu' else 'the reference engine'} computes in fp32 only, not in {job.precision}"
        )
    network = job.network("cupy" if job.kind == "gpu" else "numpy")
    if job.kind == "gpu" and job.engine == "plan" and network.backend.cublas is None:
        raise Unavailable("the plan needs cuBLAS to run on this GPU")
    x = network.backend.asarray(seeded.network_input(network, job.batch))
    synchronize = synchronizer(network)

    def call() -> None:
        network.predict(x, job.engine, job.precision)  # type: ignore[arg-type]
        synchronize()

    return session_of(call, __version__)


def synchronizer(network: Network) -> Callable[[], None]:
    """Return a function that waits for the network's device to synchronize all work."""
    if network.backend.name == "cupy":
        sync: Callable[[], None] = network.backend.xp.cuda.Device().synchronize
        return sync
    return lambda: None


def import_framework(name: str, package: str) -> Any:
    """Import another framework. Raises Unavailable, naming the package that provides it."""
    try:
        return importlib.import_module(name)
    except ImportError as e:
        if e.name == name:
            raise Unavailable(f"not installed; pip install {package}") from None
        raise Unavailable(f"does not import: {e}") from None


def require_cpu_fp32(job: Job) -> None:
    """Raise Unavailable unless the job is on the CPU in fp32."""
    if job.kind != "cpu" or job.precision != "fp32":
        raise Unavailable("compared in fp32 on the CPU only")


def export_onnx(job: Job, folder: str) -> str:
    """Export the network as ONNX and return the file's path. Raises Unavailable."""
    import_framework("onnx", "onnx")
    from gpudarknet.export import write_onnx

    path = Path(folder) / "network.onnx"
    write_onnx(job.network(), path, job.batch)
    return str(path)


def opencv(job: Job) -> Session:
    """Open OpenCV's DNN module, with its own Darknet reader (OpenCV 4) or from our ONNX export."""
    require_cpu_fp32(job)
    cv2 = import_framework("cv2", "opencv-python")
    cv2.setNumThreads(job.threads)
    reads = hasattr(cv2.dnn, "readNetFromDarknet")
    with tempfile.TemporaryDirectory() as folder:
        try:
            if reads:
                net = cv2.dnn.readNetFromDarknet(resized_cfg(job, folder), job.weights)
            else:
                net = cv2.dnn.readNetFromONNX(export_onnx(job, folder))
        except cv2.error as e:
            raise Unavailable(f"OpenCV {cv2.__version__} does not read it: {last_line(e)}") from None
        except Unavailable as e:
            raise Unavailable(f"OpenCV {cv2.__version__} no longer reads Darknet files, and {e}") from None
    x, names = seeded.network_input(job.network(), job.batch), net.getUnconnectedOutLayersNames()

    def call() -> None:
        net.setInput(x)
        net.forward(names)

    return session_of(call, cv2.__version__, "" if reads else "from ONNX")


def resized_cfg(job: Job, folder: str) -> str:
    """Write the cfg with this job's input size, for programs that read it themselves; return its path."""
    text = Path(job.cfg).read_text(encoding="utf-8")
    for key, value in (("width", job.width), ("height", job.height), ("batch", job.batch), ("subdivisions", 1)):
        text = re.sub(rf"^\s*{key}\s*=.*$", f"{key}={value}", text, count=1, flags=re.MULTILINE)
    path = Path(folder) / "sized.cfg"
    path.write_text(text, encoding="utf-8")
    return str(path)


def onnxruntime(job: Job) -> Session:
    """Open ONNX Runtime on our ONNX export."""
    require_cpu_fp32(job)
    ort = import_framework("onnxruntime", "onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    with tempfile.TemporaryDirectory() as folder:
        session = ort.InferenceSession(export_onnx(job, folder), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: seeded.network_input(job.network(), job.batch)}
    return session_of(lambda: session.run(None, feed), ort.__version__)


def openvino(job: Job) -> Session:
    """Open OpenVINO on our ONNX export; in bf16 too, if the CPU computes in it."""
    if job.kind != "cpu":
        raise Unavailable("compared on the CPU only")
    from gpudarknet.export.program import no_telemetry

    with no_telemetry():
        ov = import_framework("openvino", "openvino")
    core = ov.Core()
    if job.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("this CPU does not compute in bf16")
    options = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(job.precision, job.precision), "PERFORMANCE_HINT": "LATENCY",
               "INFERENCE_NUM_THREADS": job.threads}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        request = core.compile_model(core.read_model(export_onnx(job, folder)), "CPU", options).create_infer_request()
    x = seeded.network_input(job.network(), job.batch)
    return session_of(lambda: request.infer({0: x}, share_inputs=True), ov.__version__.partition("-")[0])


def torch(job: Job) -> Session:
    """Open PyTorch on a module built from our layers, on the CPU or a GPU."""
    torch = import_framework("torch", "torch")
    if job.kind == "gpu" and not torch.cuda.is_available():
        raise Unavailable("this build of PyTorch sees no GPU")
    torch.set_num_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = job.precision == "tf32"
    device, dtype = "cuda" if job.kind == "gpu" else "cpu", torch.float16 if job.precision == "fp16" else torch.float32
    network = job.network()
    try:
        forward = torch_network.build(network, torch, device, dtype)
    except NotImplementedError as e:
        raise Unavailable(str(e)) from None
    x = torch_network.tensor(torch, seeded.network_input(network, job.batch)).to(device, dtype)

    def call() -> None:
        with torch.inference_mode():
            forward(x)
        if job.kind == "gpu":
            torch.cuda.synchronize()

    return session_of(call, torch.__version__, "eager")


UNSUPPORTED_IN_2018 = re.compile(
    r"activation\s*=\s*(mish|swish|hard_mish)|groups\s*=\s*[2-9]|\[sort_shortcut\]|weights_type"
)


def darknet(job: Job) -> Session:
    """Open Debian's `darknet` (the original program as of 2018): its `speed` command with its own random weights.

    Wall-clock time is what the program prints; CPU time is what its process used after printing the layers.
    """
    require_cpu_fp32(job)
    program = shutil.which("darknet")
    if program is None:
        raise Unavailable("no `darknet` on the PATH; Debian and Ubuntu have it: apt install darknet")
    if job.batch != 1:
        raise Unavailable("its speed command runs one image at a time")
    if unsupported := UNSUPPORTED_IN_2018.search(Path(job.cfg).read_text(encoding="utf-8")):
        raise Unavailable(f"the program of 2018 does not know {unsupported[0]}")
    layers = len(job.network().nodes)

    def sample(seconds: float, min_calls: int) -> Sample:
        timings = Sample()
        while len(timings.wall) < min_calls or sum(timings.wall) < seconds:
            timings.add(darknet_once(program, job, layers))
        return timings

    return Session(sample, "2018 (Debian)", "its own speed command and random weights")


def darknet_once(program: str, job: Job, layers: int) -> Sample:
    """Run `darknet speed` on one image. Raises Unavailable if it prints no time."""
    loaded, last = 0.0, ""
    with tempfile.TemporaryDirectory() as folder:
        command, pipe = [program, "speed", resized_cfg(job, folder), "1"], subprocess.PIPE
        with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stderr is not None and process.stdout is not None
            for text in process.stderr:
                last = text.strip() or last
                if re.match(rf"\s*{layers - 1} ", text):
                    loaded = cpu_seconds(process.pid)
            printed, before = process.stdout.read(), os.times()
            process.wait()
            after = os.times()
    time = re.search(r"Speed: ([\d.]+) sec/eval", printed)
    if time is None:
        raise Unavailable(f"`darknet speed` printed no time: {last or 'nothing'} (exit code {process.returncode})")
    whole = after.children_user + after.children_system - before.children_user - before.children_system
    return Sample([float(time.group(1))], [max(whole - loaded, 0.0)])


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a running process, 0 without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def last_line(error: Exception) -> str:
    """Return the last line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]


ENGINES: dict[str, Callable[[Job], Session]] = {
    "plan": ours,
    "reference": ours,
    "openvino-backend": ours,
    "openvino": openvino,
    "opencv": opencv,
    "onnxruntime": onnxruntime,
    "torch": torch,
    "darknet": darknet,
}
OURS = ("plan", "reference")  # also on a GPU, and layer by layer
BF16 = ("openvino-backend", "openvino")  # engines that also compute in bf16


def start(job: Job) -> Session:
    """Open an engine and run it once. Raises Unavailable if the engine itself cannot."""
    try:
        session = ENGINES[job.engine](job)
        session.sample(0.0, 1)
        return session
    except DarknetError as e:
        raise Unavailable(last_line(e)) from None
    except MemoryError:
        raise Unavailable("out of memory") from None
    except (RuntimeError, ValueError, TypeError, NotImplementedError, OSError) as e:
        if ENGINES[job.engine] is ours:
            raise
        raise Unavailable(last_line(e)) from None
