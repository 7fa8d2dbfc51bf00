"""The .weights file, whole, partial, old and broken."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from seeded import write_weights

import gpudarknet as gd
from gpudarknet import cfg
from gpudarknet.errors import WeightsError, WeightsWarning

TEXT = """[net]
width=6
height=4
channels=3
[convolutional]
filters=2
size=3
pad=1
batch_normalize=1
activation=leaky
[connected]
output=5
batch_normalize=1
activation=linear
[batchnorm]
[implicit]
filters=5
[shortcut]
from=-2
weights_type=per_channel
weights_normalization=softmax
"""
ORDER = [
    (0, "bias", 2), (0, "scale", 2), (0, "mean", 2), (0, "variance", 2), (0, "kernel", 54),
    (1, "bias", 5), (1, "kernel", 240), (1, "scale", 5), (1, "mean", 5), (1, "variance", 5),
    (2, "bias", 5), (2, "scale", 5), (2, "mean", 5), (2, "variance", 5),
    (3, "weight", 5),
    (4, "weight", 10),
]  # fmt: skip
TOTAL = sum(n for _, _, n in ORDER)


def load(path: Path | None = None, text: str = TEXT, **options: object) -> gd.Network:
    return gd.load_network(cfg.parse(text), path, backend="numpy", **options)


def header(major: int = 0, minor: int = 2, wide: bool = True, seen: int = 640) -> bytes:
    return struct.pack("<iiiQ" if wide else "<iiiI", major, minor, 5, seen)


def values(count: int = TOTAL) -> np.ndarray:
    return np.arange(1, count + 1, dtype="<f4")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.weights"
    path.write_bytes(header() + values().tobytes())
    return path


def test_arrays_stand_in_darknets_order(path: Path) -> None:
    net, at = load(path), 1
    assert net.seen == 640
    for index, name, count in ORDER:
        a = net.weights[index][name]
        assert (a.size, a.flat[0], a.flat[-1]) == (count, at, at + count - 1), f"layer {index} {name}"
        at += count


def test_saving_gives_the_file_back(path: Path, tmp_path: Path) -> None:
    load(path).save_weights(tmp_path / "y.weights")
    assert (tmp_path / "y.weights").read_bytes() == path.read_bytes()


def test_saving_the_first_layers(path: Path, tmp_path: Path) -> None:
    load(path).save_weights(tmp_path / "y.conv.2", upto=2)
    assert (tmp_path / "y.conv.2").read_bytes() == header() + values(62 + 260).tobytes()


def test_old_header_counts_images_with_32_bits(tmp_path: Path) -> None:
    old = tmp_path / "old.weights"
    old.write_bytes(header(0, 1, wide=False) + values().tobytes())
    net = load(old)
    assert (net.seen, net.weights[0]["bias"][0], net.weights[4]["weight"].flat[-1]) == (640, 1, TOTAL)


def test_transposed_file(tmp_path: Path) -> None:
    old = tmp_path / "old.weights"
    old.write_bytes(header(1001) + values().tobytes())
    kernel = load(old).weights[1]["kernel"]  # (5, 48), in the file (48, 5)
    assert kernel[0, 1] - kernel[0, 0] == 5
    assert kernel[1, 0] - kernel[0, 0] == 1


def test_flipped_kernel(path: Path) -> None:
    kernel = load(path, TEXT.replace("size=3\n", "size=3\nflipped=1\n", 1)).weights[0]["kernel"].reshape(2, 27)
    assert (kernel[0, 1] - kernel[0, 0], kernel[1, 0] - kernel[0, 0]) == (2, 1)


def test_partial_file_names_the_layer_where_it_ends(tmp_path: Path) -> None:
    part = tmp_path / "x.conv.2"
    part.write_bytes(header() + values(62 + 260).tobytes())
    with pytest.warns(WeightsWarning) as caught:
        net = load(part)
    assert str(caught[0].message) == f"{part}: ends before layer 2; layers 2 to 4 keep their initial values"
    assert net.weights[2]["scale"].tolist() == [1] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(part, upto=2)  # asked for


def test_upto_reads_only_so_many_layers(path: Path) -> None:
    net = load(path, upto=1)
    assert net.weights[0]["kernel"].flat[0] == 9
    assert net.weights[1]["scale"].tolist() == [1] * 5


def test_values_left_over_are_a_warning(path: Path) -> None:
    path.write_bytes(header() + values(TOTAL + 7).tobytes())
    with pytest.warns(WeightsWarning) as caught:
        load(path)
    assert str(caught[0].message) == (f"{path}: 7 values remain after the last layer; is it the file of another cfg?")


def test_dontload_reads_nothing_from_the_file_but_is_saved(tmp_path: Path) -> None:
    text = TEXT.replace("filters=2\n", "filters=2\ndontload=1\n", 1)
    short = tmp_path / "short.weights"
    short.write_bytes(header() + values(TOTAL - 62).tobytes())
    net = load(short, text)
    assert net.weights[1]["bias"][0] == 1
    net.save_weights(tmp_path / "whole.weights")
    assert (tmp_path / "whole.weights").stat().st_size == 20 + 4 * TOTAL


def test_dontloadscales_skips_the_batch_norm_arrays(tmp_path: Path) -> None:
    text = TEXT.replace("filters=2\n", "filters=2\ndontloadscales=1\n", 1)
    short = tmp_path / "short.weights"
    short.write_bytes(header() + values(TOTAL - 6).tobytes())
    net = load(short, text)
    assert net.weights[0]["kernel"].flat[0] == 3
    assert net.weights[0]["scale"].tolist() == [1, 1]


def test_shared_weights_are_one_array_and_are_not_in_the_file(tmp_path: Path) -> None:
    text = "[net]\nwidth=6\nheight=4\nchannels=3\n" + "[convolutional]\nfilters=3\nsize=3\npad=1\n" * 2
    text = text + "share_index=-1\n"
    net = load(text=text)
    assert net.weights[1]["kernel"] is net.weights[0]["kernel"]
    written = write_weights(net, tmp_path / "s.weights", 1)
    assert written.stat().st_size == 20 + 4 * (3 + 81)
    load(written, text)


BROKEN = {
    b"": "has 0 bytes, too short for a header; download it again",
    b"12345": "has 5 bytes, too short for a header; download it again",
    header()[:14]: "ends inside its header; download it again",
    b"[net]\nwidth=416\nheight=416\n": "is not a .weights file (it would be version 1952804443.1769409117); check the path",
    header() + values(20).tobytes(): (
        "ends inside layer 0: kernel (2, 3, 3, 3) needs 54 values, 12 remain; the file is truncated or belongs to another cfg"
    ),
    header() + values(100).tobytes(): (
        "ends inside layer 1: kernel (5, 48) needs 240 values, 33 remain; the file is truncated or belongs to another cfg"
    ),
}


@pytest.mark.parametrize("data", BROKEN)
def test_broken_files(data: bytes, tmp_path: Path) -> None:
    broken = tmp_path / "b.weights"
    broken.write_bytes(data)
    with pytest.raises(WeightsError) as e:
        load(broken)
    assert str(e.value) == f"{broken}: {BROKEN[data]}"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as e:
        load(tmp_path / "no.weights")
    assert str(e.value) == f"{tmp_path / 'no.weights'}: cannot be read (No such file or directory); check the path"


def test_saving_where_it_cannot_be_leaves_nothing(path: Path, tmp_path: Path) -> None:
    net = load(path)
    with pytest.raises(WeightsError, match="cannot be written"):
        net.save_weights(tmp_path / "none" / "x.weights")
    before = sorted(p.name for p in tmp_path.iterdir())

    del net.weights[4]["weight"]  # fails in the middle of writing
    with pytest.raises(KeyError):
        net.save_weights(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert path.stat().st_size == 20 + 4 * TOTAL
