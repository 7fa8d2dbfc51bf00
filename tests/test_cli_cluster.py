"""`detector test -cluster`: what is refused, what is printed, exit codes, and that running it again resumes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny

from gpudarknet import cluster
from gpudarknet.cli import main
from gpudarknet.cli.cluster import Progress

ROOT = Path(__file__).parent.parent
TEST = ["detector", "test", "tiny.data", "tiny.cfg", "tiny.weights"]
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed; pip install '.[ray]'")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a folder with a tiny detector and pics/: 0.png to 5.png, each with 3 objects, and 6.png, which is no image."""
    tiny.files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    (tmp_path / "pics").mkdir()
    for k in range(6):
        (tmp_path / f"pics/{k}.png").write_bytes((tmp_path / "tiny.png").read_bytes())
    (tmp_path / "pics/6.png").write_text("no image")
    return tmp_path


def rows(out: str) -> list[dict]:
    return [json.loads(line) for part in sorted(Path(out).glob("part-*")) for line in part.read_text().splitlines()]


# Without Ray


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pics -cluster local", "-cluster: needs -out_dir FOLDER, for the results"),
        ("-cluster local -out_dir found", "-cluster: needs a source, such as a folder of images"),
        ("pics -form jsonl", "-form: needs -cluster; `-cluster local` uses this machine"),
        ("pics -shard 256 -out_dir found", "-shard: needs -cluster; `-cluster local` uses this machine"),
        (
            "pics -cluster local -out_dir found -workers 0",
            "detector test: -workers needs an integer of at least 1, got '0'",
        ),
        (
            "pics -cluster local -out_dir found -csv a.csv",
            "-csv and -cluster: exclude each other; `gpudarknet cluster merge FOLDER FILE` writes CSV or COCO's results of a"
            " complete job",
        ),
        (
            "pics -cluster local -out_dir found -save_labels",
            "-save_labels and -cluster: exclude each other; -form labels writes label files into -out_dir",
        ),
        (
            "pics -cluster local -out_dir found -i 0",
            "-i and -cluster: exclude each other; Ray gives each worker its GPU; see -gpus_per_worker",
        ),
    ],
)
def test_flags_that_do_not_go_together(words, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*TEST, *words.split()]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n") and not Path("found").exists()


@pytest.mark.parametrize("name", ["out", "coco", "crops", "table", "ext_output"])
def test_results_that_a_job_does_not_have(name, capsys):
    value = [] if name in ("table", "ext_output") else ["x"]
    assert main([*TEST, "pics", "-cluster", "local", "-out_dir", "found", f"-{name}", *value]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: -{name} and -cluster: exclude each other; `gpudarknet cluster merge"
    )


@pytest.mark.parametrize("command", [TEST, ["detect", "yolov4", "yolov4"]])  # whose weights would be downloaded
def test_without_ray_nothing_is_loaded_or_written(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("gpudarknet.cli.inputs.weights_file", lambda name: pytest.fail("read"))
    assert main([*command, "pics", "-cluster", "local", "-out_dir", "found"]) == 2
    assert capsys.readouterr() == ("", "error: cluster: Ray is not installed; pip install 'gpudarknet[ray]'\n")
    assert not Path("found").exists()


@pytest.mark.parametrize("command", [TEST, ["detect", "tiny.cfg", "tiny.weights"]])
def test_flags_are_those_of_a_job(command, monkeypatch, capsys):
    calls = []

    def detect(*args, **options):
        calls.append((args, options))
        return cluster.Summary(images=2, objects=1, shards=1, out="found")

    monkeypatch.setattr("gpudarknet.cli.cluster.import_ray", lambda: None)
    monkeypatch.setattr(cluster, "detect", detect)
    words = [*command, "pics", "-cluster", "10.0.0.1:6379", "-out_dir", "found"]
    assert main(words) == 0
    assert capsys.readouterr() == ("", "2 images, 1 object, 1 shard in found\n")
    given = {
        "shard": 9,
        "workers": 3,
        "threads": 2,
        "gpus_per_worker": 0.5,
        "retries": 1,
        "on_error": "raise",
        "batch": 4,
    }
    given |= {"nms": 0.3, "max_det": 7, "precision": "fp16", "backend": "numpy", "form": "labels", "thresh": 0.6}
    flags = [word for name, value in given.items() for word in (f"-{name}", str(value))]
    assert main([*words, "x.png", "-tiles", "-letter_box", "-recursive", *flags]) == 0
    (args, plain), (several, options) = calls
    assert args[0] == "pics" and several[0] == ["pics", "x.png"] and args[1] == "found"
    assert list(map(Path, args[2:4])) == [Path("tiny.cfg"), Path("tiny.weights")]
    assert plain["thresh"] == (0.25 if command is TEST else 0.24) and plain["max_det"] == 300
    given |= {"tiles": True, "letterbox": True, "recursive": True, "address": "10.0.0.1:6379"}
    assert {name: options[name] for name in options if name != "report"} == given


def test_progress():
    shown = []
    job = Progress(9, lambda *values: shown.append(values))
    one = cluster.Summary(images=4, objects=3, shards=1, resumed=1, seconds=1)
    job.report(one)
    job.report(cluster.Summary(images=8, objects=7, errors=1, shards=2, resumed=1, deaths=1, seconds=2, out="found"))
    assert shown == [
        (0, 9, "starting Ray"), (4, 9, "1 shard"), (8, 9, "2 shards, 2.0 images/s, 1 death")
    ]  # fmt: skip
    line = "8 images, 7 objects, 1 error (see the rows), 2 shards (1 resumed) in found, 2.0 images/s, 1 worker died"
    assert job.line() == line


# With Ray


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine, which jobs in this process join with -cluster auto."""
    ray = pytest.importorskip("ray")
    from gpudarknet.cluster.runtime import import_ray

    import_ray()
    ray.init(
        "local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 << 20,
        logging_level=40,
    )
    yield ray
    ray.shutdown()


def without_rate(err: str) -> str:
    return re.sub(r", [\d.]+ images/s", ", R images/s", err)


def test_a_job_and_the_same_again(ray, capsys):
    words = [*TEST, "pics", "-cluster", "auto", "-out_dir", "found", "-shard", "3", "-workers", "1"]
    assert main(words) == 2
    line = "7 images, 18 objects, 1 error (see the rows), 3 shards in found, R images/s\n"
    out, err = capsys.readouterr()
    assert (out, without_rate(err)) == ("", line)
    assert [row["image"] for row in rows("found")] == [f"pics/{k}.png" for k in range(7)]
    assert main(words) == 2
    line = "7 images, 18 objects, 1 error (see the rows), 3 shards (3 resumed) in found\n"
    assert capsys.readouterr() == ("", line)
    assert main([*words, "-thresh", "0.5"]) == 2
    assert "belongs to another job: options.thresh is 0.25 there, 0.5 here" in capsys.readouterr().err
    for flags in (["-csv", "run.csv"], ["-coco", "run.json"]):
        assert main([*TEST, "pics", *flags]) == 2
        suffix = Path(flags[1]).suffix
        assert main(["cluster", "merge", "found", f"job{suffix}"]) == 0
        assert Path(f"job{suffix}").read_text() == Path(flags[1]).read_text()


@pytest.fixture
def server(folder):
    """A server of the folder's files on 127.0.0.1; it answers while `answers` is set."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            answers.wait(60)
            super().do_GET()

        def log_message(self, *args):
            pass

    answers = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    answers.set()
    server.shutdown()
    server.server_close()


def test_urls_of_this_machine(ray, server, capsys):
    address, answers = server
    answers.set()
    words = [*TEST, f"{address}/tiny.png", "-cluster", "auto", "-workers", "1", "-out_dir"]
    assert main([*words, "refused"]) == 2 and "allow" in rows("refused")[0]["error"].lower()
    assert main([*words, "found", "-allow_private"]) == 0 and len(rows("found")[0]["objects"]) == 3


@pytest.mark.slow
@needs_ray
def test_a_process_that_is_interrupted_and_its_output(server):
    """The whole output of a process: after Ctrl-C, one note; of the same command again, one line; nothing of Ray's."""
    address, answers = server
    Path("list.txt").write_text(f"tiny.png\n{address}/tiny.png\npics/6.png\n")
    command = [sys.executable, "-m", "gpudarknet", *TEST, "list.txt", "-cluster", "local", "-out_dir", "found"]
    command += ["-shard", "1", "-workers", "1", "-allow_private"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while not Path("found/part-00000000.jsonl").exists():  # the worker waits for the second image then
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, out) == (130, "")
    assert re.fullmatch(r"note: stopped after [01] shards?; the same command resumes\n", err)
    assert sorted(path.name for path in Path("found").iterdir()) == ["manifest.json", "part-00000000.jsonl"]
    answers.set()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    line = "3 images, 6 objects, 1 error (see the rows), 3 shards (1 resumed) in found, R images/s\n"
    assert (done.returncode, done.stdout, without_rate(done.stderr)) == (2, "", line)
