"""Weights as .safetensors: out and in, and what can be wrong with a file."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cfg, cli
from gpudarknet.errors import WeightsError, WeightsWarning
from gpudarknet.weights import safetensors

TEXT = """[net]
width=6
height=4
channels=3
[convolutional]
filters=5
size=3
pad=1
batch_normalize=1
activation=leaky
[connected]
output=2
"""


@pytest.fixture
def net():
    return gd.load_network(cfg.parse(TEXT), backend="numpy", seed=3)


def same(a, b):
    return all((x[k] == y[k]).all() and set(x) == set(y) for x, y in zip(a.weights, b.weights, strict=True) for k in x)


def test_round_trip(net, tmp_path):
    net.seen = 64000
    net.save_weights(tmp_path / "x.safetensors")
    back = gd.load_network(cfg.parse(TEXT), tmp_path / "x.safetensors", backend="numpy", seed=4)
    assert same(net, back) and back.seen == 64000
    data = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["0.kernel"]["shape"] == [5, 3, 3, 3] and header["__metadata__"] == {"format": "np", "seen": "64000"}
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0


def test_the_library_reads_it(net, tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="compares with the package safetensors")
    net.save_weights(tmp_path / "x.safetensors")
    loaded = library.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded["1.kernel"], net.weights[1]["kernel"])
    half = {name: a.astype(np.float16) for name, a in loaded.items()}
    library.save_file(half, tmp_path / "half.safetensors")
    back = gd.load_network(cfg.parse(TEXT), tmp_path / "half.safetensors", backend="numpy")
    np.testing.assert_allclose(back.weights[1]["kernel"], net.weights[1]["kernel"], rtol=1e-3)


def test_the_command_there_and_back(net, tmp_path, capsys):
    (tmp_path / "x.cfg").write_text(TEXT)
    net.save_weights(tmp_path / "x.weights")
    first, second, third = (str(tmp_path / f"{name}") for name in ("x.weights", "y.safetensors", "z.weights"))
    assert cli.main(["export", str(tmp_path / "x.cfg"), first, second]) == 0
    assert cli.main(["export", str(tmp_path / "x.cfg"), second, third]) == 0
    assert (tmp_path / "x.weights").read_bytes() == (tmp_path / "z.weights").read_bytes()
    assert capsys.readouterr().out.startswith(f"{second}: weights after 0 images, 0.0 MB\n")


def test_a_partial_file_warns(net, tmp_path):
    net.save_weights(tmp_path / "part.safetensors", upto=1)
    with pytest.warns(WeightsWarning) as seen:
        back = gd.load_network(cfg.parse(TEXT), tmp_path / "part.safetensors", backend="numpy", seed=9)
    assert str(seen[0].message) == (
        f"{tmp_path / 'part.safetensors'}: has no 1.bias and 1 other arrays of this cfg; they keep their initial values"
    )
    assert (back.weights[0]["kernel"] == net.weights[0]["kernel"]).all()
    assert not (back.weights[1]["kernel"] == net.weights[1]["kernel"]).all()
    whole = gd.load_network(cfg.parse(TEXT), tmp_path / "part.safetensors", backend="numpy", upto=1)
    assert whole.seen == 0


def broken(tmp_path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize(
    "header, body, error",
    [
        (b"[]", b"", "is not a .safetensors file, or is truncated; download or write it again"),
        (b"not json", b"", "is not a .safetensors file, or is truncated; download or write it again"),
        (
            {"0.bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
            b"0" * 16,
            "0.bias has shape (4,), the cfg needs (5,); the file belongs to another cfg",
        ),
        (
            {"0.bias": {"dtype": "I64", "shape": [5], "data_offsets": [0, 40]}},
            b"0" * 40,
            "0.bias is not described as one of F16, F32, F64; write it again",
        ),
        (
            {"0.bias": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}},
            b"0" * 16,
            "ends inside 0.bias; the file is truncated, download or write it again",
        ),
    ],
)
def test_broken_files(tmp_path, header, body, error):
    path = broken(tmp_path, header, body)
    with pytest.raises(WeightsError) as e:
        gd.load_network(cfg.parse(TEXT), path, backend="numpy")
    assert str(e.value) == f"{path}: {error}"


def test_a_missing_file(tmp_path):
    with pytest.raises(WeightsError) as e:
        safetensors.content(tmp_path / "none.safetensors")
    expected = f"{tmp_path / 'none.safetensors'}: cannot be read (No such file or directory); check the path"
    assert str(e.value) == expected
