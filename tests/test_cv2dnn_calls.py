"""gpudarknet.cv2dnn against OpenCV 4.14, call by call (tests/opencv4_calls.py, tests/opencv4_calls.json)."""

from __future__ import annotations

import json
import warnings

import numpy as np
import opencv4
import opencv4_calls
import pytest

from gpudarknet import cv2dnn

RECORD = json.loads(opencv4_calls.RECORD.read_text())


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Write the networks of the calls to files."""
    folder = tmp_path_factory.mktemp("networks")
    opencv4.write(folder)
    return folder


def same(ours, theirs) -> bool:
    """Return whether two answers agree: numbers within 0.1 %, and an exception in the class that OpenCV's callers catch."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if not isinstance(ours, dict):
        return ours == theirs
    if ours.keys() != theirs.keys():
        return False
    if "raises" in ours:
        return theirs["raises"][0] in ours["raises"]
    if "values" in ours:  # OpenCV's batch norm has 1e-6 where Darknet's has 1e-5
        a, b = np.array(ours["values"]), np.array(theirs["values"])
        return ours["array"] == theirs["array"] and np.allclose(a, b, rtol=2e-3, atol=2e-3 * b[0], equal_nan=True)
    if "float" in ours:
        return bool(np.isclose(ours["float"], theirs["float"], rtol=1e-3, atol=1e-6))
    return all(same(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("call", opencv4_calls.CALLS)
def test_call(call, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2dnn.constants, "why_no_cupy", lambda: "the calls were recorded without a GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about keys of the cfg and missing GPUs
        ours = opencv4_calls.answer(call, cv2dnn, networks, tmp_path)
    theirs = RECORD[call]
    if call not in opencv4_calls.DIFFERENCES:
        assert same(ours, theirs), f"\nours   {ours}\nOpenCV {theirs}"
        return
    assert not same(ours, theirs)
    assert (
        "error" if isinstance(ours, dict) and "error" in ours.get("raises", ()) else "other"
    ) == opencv4_calls.DIFFERENCES[call]


def test_every_difference_is_a_call():
    assert set(opencv4_calls.DIFFERENCES) <= set(opencv4_calls.CALLS) == set(RECORD) - {"opencv"}
