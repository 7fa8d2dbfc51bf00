"""`cluster.Detect` on batches of every kind, by itself and in pipelines of Ray Data: the rows are those of `detect_stream`."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cluster, image
from gpudarknet.cluster import batches
from gpudarknet.cluster.runtime import connect
from gpudarknet.errors import BackendError, DataError

pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")
parquet = pytest.importorskip("pyarrow.parquet")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CFG, WEIGHTS, NAMES = (f"{ROOT}/cfg/digits.{suffix}" for suffix in ("cfg", "weights", "names"))
OPTIONS = {"names": NAMES, "thresh": 0.05, "backend": "numpy"}
DETECT = {"cfg": CFG, "weights": WEIGHTS, **OPTIONS}
FOUND = ["width", "height", "objects", "error"]


def write_images(folder, count):
    """Write images of noise, in which the network finds something at a low threshold; return their paths."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        image.write(folder / f"{k:03}.png", rng.integers(0, 255, (40 + k % 7, 50, 3), dtype=np.uint8))
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("ray_data") / "photos", 12)


@pytest.fixture(scope="module")
def detector():
    return gd.Detector(CFG, WEIGHTS, NAMES, backend="numpy")


@pytest.fixture(scope="module")
def expected(detector, paths):
    """The objects of each image, by its path."""
    found = [objects.summary() for objects in detector.detect_stream(paths, OPTIONS["thresh"])]
    assert sum(map(len, found)) > len(paths)
    return dict(zip(paths, found, strict=True))


def contents(paths):
    return [Path(path).read_bytes() for path in paths]


def objects(values):
    """Return an object array, as Ray Data has images of several sizes."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


# Batches


BATCHES = {
    "paths": lambda paths: {"path": paths},
    "NumPy, paths": lambda paths: {"path": np.array(paths), "id": np.arange(len(paths))},
    "NumPy, contents": lambda paths: {"bytes": objects(contents(paths)), "path": objects(paths)},
    "NumPy, images": lambda paths: {"image": objects([image.read(path) for path in paths]), "path": objects(paths)},
    "pyarrow, paths": lambda paths: pa.table({"path": paths}),
    "pyarrow, contents": lambda paths: pa.table({"path": paths, "bytes": contents(paths)}),
    "pyarrow, Hugging Face": lambda paths: pa.table(
        {"image": [{"bytes": x, "path": "x.png"} for x in contents(paths)]}
    ),
    "pyarrow, Hugging Face, paths": lambda paths: pa.table({"image": [{"bytes": None, "path": x} for x in paths]}),
    "pandas, contents": lambda paths: pd.DataFrame({"bytes": contents(paths), "id": range(len(paths))}),
    "pandas, paths": lambda paths: pd.DataFrame({"path": paths}),
    "WebDataset": lambda paths: {"__key__": paths, "png": contents(paths), "json": [{"a": 1}] * len(paths)},
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_of_any_kind_has_the_rows_of_detect_stream(kind, paths, detector, expected):
    found = cluster.Detect(**DETECT, batch=5)(BATCHES[kind](paths))
    assert found["objects"].to_pylist() == list(expected.values())
    sizes = [image.read(path).shape[:2] for path in paths]
    assert list(zip(found["height"].to_pylist(), found["width"].to_pylist(), strict=True)) == sizes
    assert found["error"].null_count == len(paths)
    assert found.schema.field("objects").type == batches.schema().field("objects").type


def test_images_of_one_size_are_an_array_of_four_axes(detector):
    images = np.random.default_rng(1).integers(0, 255, (3, 40, 50, 3), dtype=np.uint8)
    found = [one.summary() for one in detector.detect_batch(list(images), 0.05)]
    tensors = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)})
    for batch in ({"image": images}, tensors):
        assert cluster.Detect(**DETECT)(batch)["objects"].to_pylist() == found


def test_gray_images_and_alpha_are_converted(detector):
    rgb = np.random.default_rng(2).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    kinds = [rgb[..., 0], rgb[..., :1], np.dstack([rgb, rgb[..., :1]])]
    found = cluster.Detect(**DETECT)({"image": kinds})
    assert found["objects"].to_pylist() == [one.summary() for one in detector.detect_batch(kinds, 0.05)]


def test_other_columns_are_handed_on_and_images_only_if_asked(paths):
    batch = pa.table(
        {"bytes": contents(paths), "id": pa.array(range(len(paths)), pa.int16()), "tags": [["a"]] * len(paths)}
    )
    found = cluster.Detect(**DETECT)(batch)
    assert found.column_names == ["id", "tags", *FOUND]
    assert found.select(["id", "tags"]) == batch.select(["id", "tags"])
    assert cluster.Detect(**DETECT, keep=True)(batch)["bytes"] == batch["bytes"]
    vectors = np.arange(24.0).reshape(12, 2)
    found = cluster.Detect(**DETECT)({"path": paths, "vector": vectors})
    np.testing.assert_array_equal(found["vector"].combine_chunks().to_numpy_ndarray(), vectors)


def test_an_unreadable_image_is_a_row_with_an_error(paths, expected):
    first, second, cut = contents(paths[:3])
    batch = {
        "bytes": [b"<html>", None, first, cut[:-20], second, b""],
        "path": ["a.png", "b.png", *paths[:1], "d.png", *paths[1:2], None],
    }
    found = cluster.Detect(**DETECT)(batch)
    errors = found["error"].to_pylist()
    assert [error is None for error in errors] == [False, False, True, False, True, False]
    assert errors[0].startswith("a.png: is an HTML page") and errors[3].startswith("d.png: is truncated")
    assert found["objects"].to_pylist() == [[], [], expected[paths[0]], [], expected[paths[1]], []]
    assert found["width"].to_pylist() == [None, None, 50, None, 50, None]
    wrong = [np.zeros((9, 9, 2), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8), [[1]], 1.5]
    assert cluster.Detect(**DETECT)({"image": wrong})["error"].null_count == 0


@pytest.mark.parametrize(
    "batch",
    [{}, {"bytes": []}, {"image": np.zeros((0, 9, 9, 3), np.uint8)}, pa.table({"bytes": pa.array([], pa.binary())})],
    ids=str,
)
def test_an_empty_batch_has_the_columns(batch):
    found = cluster.Detect(**DETECT)(batch)
    assert (found.num_rows, found.column_names) == (0, FOUND)
    assert found.schema.field("objects").type == batches.schema().field("objects").type


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (["a.png"], {}, "batch: a list is not a batch; pass a dict of arrays, a pyarrow.Table or a pandas.DataFrame"),
        (
            {"id": [1], "url": ["a"]},
            {},
            "batch: has no column that may have the images (its columns: id, url); name one of them with column=",
        ),
        (
            {"image": [1], "jpg": ["a"]},
            {},
            "batch: has several columns that may have the images (its columns: image, jpg); name one of them with column=",
        ),
        ({"path": ["a"]}, {"column": "x"}, "batch: has no column x (its columns: path); name one of them with column="),
        (
            {"path": ["a"], "width": [1]},
            {},
            "batch: has width already, which Detect adds; rename or drop what it has",
        ),
    ],
)  # fmt: skip
def test_errors_of_batches(batch, options, message):
    with pytest.raises(DataError) as error:
        cluster.Detect(**DETECT, **options)(batch)
    assert str(error.value) == message


def test_a_column_that_pyarrow_cannot_hold_is_an_error():
    with pytest.raises(
        DataError, match=r"^batch: column x is nothing that pyarrow can hold \(.*\); pass batch_format="
    ):
        cluster.Detect(**DETECT)({"path": ["a"], "x": [np.zeros((2, 2))]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresh": 7}, "thresh 7: must be 0 to 1, for example 0.25"),
        ({"max_det": 0}, "max_det 0: must be an integer of at least 1, or None for all"),
        ({"batch": 0}, "batch 0: must be an integer of at least 1"),
    ],
)
def test_numbers_are_checked_before_a_worker_has_them(options, message):
    with pytest.raises(DataError) as error:
        cluster.Detect(**DETECT | options)
    assert str(error.value) == message


def test_a_column_may_be_named(paths, expected):
    batch = {"file": paths, "jpg": ["not this"] * len(paths)}
    found = cluster.Detect(**DETECT, column="file")(batch)
    assert found.column_names == ["file", "jpg", *FOUND]
    assert found["objects"].to_pylist() == list(expected.values())


# Pickles, processes and threads


def test_a_process_loads_a_detector_once(paths, monkeypatch):
    loaded = []
    monkeypatch.setattr(batches, "Detector", lambda *a, **k: loaded.append(a) or gd.Detector(*a, **k))
    detect = cluster.Detect(**DETECT)
    data = pickle.dumps(detect)
    assert len(data) < 2000 and not loaded
    for _ in range(3):
        pickle.loads(data)({"path": paths[:1]})
    detect({"path": paths[:1]})
    assert len(loaded) == 1
    cluster.Detect(**DETECT)({"path": paths[:1]})  # the files may have changed
    assert len(loaded) == 2


def test_a_loaded_network_needs_no_files(paths, expected):
    network = gd.load_network(CFG, WEIGHTS, "numpy")
    detect = cluster.Detect(network, **OPTIONS | {"names": Path(NAMES).read_text().split()})
    found = pickle.loads(pickle.dumps(detect))({"path": paths})
    assert found["objects"].to_pylist() == list(expected.values())


def test_threads_of_a_process_take_turns(paths, expected):
    detect = cluster.Detect(**DETECT)
    parts = [paths[k : k + 4] for k in range(0, len(paths), 4)]
    with ThreadPoolExecutor(3) as executor:
        found = list(executor.map(detect, [{"path": part} for part in parts]))
    assert [row for one in found for row in one["objects"].to_pylist()] == list(expected.values())


def test_the_number_of_threads_is_set_in_the_process_that_detects(paths):
    code = (
        "import sys, pickle, gpudarknet as gd\n"
        "detect = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "assert not {'ray', 'pyarrow', 'fsspec', 'pandas'} & set(sys.modules), sys.modules\n"
        "assert detect({'path': sys.argv[2:]}).num_rows == 2\n"
        "print(gd.get_num_threads())"
    )
    data = pickle.dumps(cluster.Detect(**DETECT, threads=3)).hex()
    done = subprocess.run([sys.executable, "-c", code, data, *paths[:2]], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("3\n", "")
    with pytest.raises(BackendError, match="0 is not a number of threads"):
        cluster.Detect(**DETECT, threads=0)({"path": paths})


# Pipelines


PAUSE = """
def pause(batch):
    import time
    time.sleep(0.5)
    return batch

"""


@pytest.fixture(scope="module")
def ray():
    pytest.importorskip("ray.data")
    with connect("local", cpus=4, memory=50 << 20) as runtime:
        yield runtime.ray


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # of its own defaults
def test_a_pipeline_has_the_rows_of_detect_stream(ray, paths, expected, tmp_path):
    from ray.data.checkpoint import CheckpointConfig

    photos = ray.data.read_binary_files(os.path.dirname(paths[0]), include_paths=True)
    actors = ray.data.ActorPoolStrategy(size=1)
    found = photos.map_batches(cluster.Detect, fn_constructor_kwargs=DETECT, batch_size=5, compute=actors)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig("path", str(tmp_path / "checkpoint"))
    found.write_parquet(str(tmp_path / "found"))
    context.checkpoint_config = None
    assert not (tmp_path / "checkpoint").exists()  # deleted at success, by default
    rows = parquet.read_table(tmp_path / "found")
    assert rows.column_names == ["path", *FOUND]
    assert dict(zip(rows["path"].to_pylist(), rows["objects"].to_pylist(), strict=True)) == expected
    images = ray.data.read_images(os.path.dirname(paths[0]), include_paths=True)
    for batch_format in ("numpy", "pyarrow", "pandas"):  # images of several sizes
        found = images.map_batches(cluster.Detect(**DETECT), batch_size=12, batch_format=batch_format)
        assert {row["path"]: row["objects"] for row in found.take_all()} == expected


@pytest.mark.slow
def test_a_pipeline_that_is_killed_and_run_again_has_every_image_once(detector, tmp_path):
    """The example of docs/ray-data.md, on 60 images, slowed down to be killed in the middle."""
    paths = write_images(tmp_path / "photos", 60)
    Path(paths[7]).write_text("not an image")
    for name, file in (("yolov4-tiny.cfg", CFG), ("yolov4-tiny.weights", WEIGHTS), ("coco.names", NAMES)):
        (tmp_path / name).symlink_to(file)
    page = Path(ROOT, "docs/ray-data.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"<!-- run by tests/test_cluster_ray_data.py -->\n```python\n(.*?)```", page, re.DOTALL)
    for words, others in {
        "/tmp/found.checkpoint": str(tmp_path / "checkpoint"),
        "ray.init(": 'ray.init("local", num_cpus=4, object_store_memory=100 << 20, ',
        '"coco.names"}': '"coco.names", "thresh": 0.05, "backend": "numpy"}',
        '"photos", ': '"photos", override_num_blocks=20, ',
        "batch_size=64": "batch_size=4",
        "max_size=8": "max_size=1",
        "found.write_parquet": 'found.map_batches(pause, batch_format="pyarrow").write_parquet',
    }.items():
        assert words in script
        script = script.replace(words, others)
    out, names = tmp_path / "found", [os.path.relpath(path, tmp_path) for path in paths]

    def start():
        environment = {**os.environ, "PYTHONPATH": ROOT}
        with open(tmp_path / "log", "ab") as log:
            command = [sys.executable, "-c", PAUSE + script]
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)

    def written():
        return [path for file in out.glob("*.parquet") for path in parquet.read_table(file)["path"].to_pylist()]

    process = start()
    while len(list(out.glob("*.parquet"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < len(os.listdir(out)) and process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    for _ in range(2):  # the rest, then nothing
        assert start().wait() == 0, (tmp_path / "log").read_text()
        assert sorted(written()) == names
    assert list(tmp_path.glob("checkpoint/*.parquet")) and not list(tmp_path.glob("checkpoint/*.pending.parquet"))
    rows = {row["path"]: row for row in parquet.read_table(out).to_pylist()}
    assert rows[names[7]]["error"].startswith(f"{names[7]}: is not an image")
    found = [objects.summary() for objects in detector.detect_stream(paths[:7] + paths[8:], 0.05)]
    assert [rows[name]["objects"] for name in names if name != names[7]] == found
