"""The file format: records are read back as written, and invalid ones are refused with their line."""

from __future__ import annotations

import json

import pytest
from bench_cases import CPU, GPU, GPU_RECORDS, RECORDS, result

from gpudarknet.bench import records
from gpudarknet.errors import DataError


def test_records_are_read_back_as_written(tmp_path):
    records.write(tmp_path / "a.jsonl", RECORDS)
    assert records.read(tmp_path / "a.jsonl") == RECORDS
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == len(RECORDS)


def test_unknown_kinds_and_fields_are_ignored(tmp_path):
    text = json.dumps({"record": "of the future"}) + "\n" + json.dumps(CPU | {"color": "blue"})
    assert [r["color"] for r in records.parse(text, "a.jsonl")] == ["blue"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\nhello", "a.jsonl:2: is not a JSON object; pass a file written by `gpudarknet bench`"),
        ("[1]", "a.jsonl:1: is not a JSON object; pass a file written by `gpudarknet bench`"),
        ('{"record": "layer", "device": "x"}', "a.jsonl:1: the layer record has no 'network'; run the benchmark again"),
        (json.dumps(CPU | {"schema": 2}), "a.jsonl:1: schema 2; this version reads 1, update gpudarknet"),
    ],
)
def test_an_invalid_record_is_refused_with_its_line(text, message):
    with pytest.raises(DataError) as e:
        list(records.parse(text, "a.jsonl"))
    assert str(e.value) == message


def test_a_missing_file_gives_a_one_line_error(tmp_path):
    with pytest.raises(DataError) as e:
        records.read(tmp_path / "none.jsonl")
    assert str(e.value) == f"{tmp_path}/none.jsonl: cannot be read (No such file or directory); check the path"


def test_gpu_records_are_the_latest_of_each_gpu_and_no_cpu(tmp_path):
    old = [GPU | {"date": "2024-01-01T00:00:00Z"}, result(GPU, 1.0)]
    records.write(tmp_path / "z.jsonl", [CPU, *old])
    records.write(tmp_path / "2025-12-31.jsonl", [*RECORDS, *GPU_RECORDS])
    assert records.gpu_records(tmp_path) == GPU_RECORDS


def test_committed_results_can_be_read():
    for path in records.folder().glob("*.jsonl"):
        assert records.machines(records.read(path)), path.name
