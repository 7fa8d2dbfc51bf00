"""The file format: what is written is read back, and what is no result is refused with its line."""

from __future__ import annotations

import json

import pytest
from bench_cases import CPU, GPU, GPU_RECORDS, RECORDS, result

from gpudarknet.bench import records
from gpudarknet.errors import DataError


def test_what_is_written_is_read_back(tmp_path):
    records.write(tmp_path / "a.jsonl", RECORDS)
    assert records.read(tmp_path / "a.jsonl") == RECORDS
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == len(RECORDS)


def test_unknown_kinds_and_fields_are_left_alone(tmp_path):
    text = json.dumps({"record": "of the future"}) + "\n" + json.dumps(CPU | {"colour": "blue"})
    assert [r["colour"] for r in records.parse(text, "a.jsonl")] == ["blue"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\nhello", "a.jsonl:2: is not a JSON object; give a file that `gpudarknet bench` wrote"),
        ("[1]", "a.jsonl:1: is not a JSON object; give a file that `gpudarknet bench` wrote"),
        ('{"record": "layer", "device": "x"}', "a.jsonl:1: the layer record has no 'network'; run the benchmark again"),
        (json.dumps(CPU | {"schema": 2}), "a.jsonl:1: schema 2; this version reads 1, update gpudarknet"),
    ],
)
def test_what_is_no_record_is_refused_with_its_line(text, message):
    with pytest.raises(DataError) as e:
        list(records.parse(text, "a.jsonl"))
    assert str(e.value) == message


def test_a_missing_file_is_an_error_in_one_line(tmp_path):
    with pytest.raises(DataError) as e:
        records.read(tmp_path / "none.jsonl")
    assert (
        str(e.value) == f"{tmp_path}/none.jsonl: No such file or directory; give a file that `gpudarknet bench` wrote"
    )


def test_of_gpus_takes_the_latest_file_of_each_gpu_and_no_cpu(tmp_path):
    old = [GPU | {"date": "2024-01-01T00:00:00Z"}, result(GPU, 1.0)]
    records.write(tmp_path / "z.jsonl", [CPU, *old])
    records.write(tmp_path / "2025-12-31.jsonl", [*RECORDS, *GPU_RECORDS])
    assert records.of_gpus(tmp_path) == GPU_RECORDS


def test_results_of_this_project_can_be_read():
    for path in records.folder().glob("*.jsonl"):
        assert records.machines(records.read(path)), path.name
