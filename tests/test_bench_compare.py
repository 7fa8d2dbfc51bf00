"""Comparison of two runs: a change counts if it is beyond noise."""

from __future__ import annotations

import pytest
from bench_cases import CPU, GPU_RECORDS, result

from gpudarknet.bench import compare, records
from gpudarknet.cli import main


@pytest.mark.parametrize(
    ("fps", "noise", "verdict"),
    [
        (10.0, 0.1, "same"),
        (11.5, 0.1, "same"),  # 9..11 and 10.35..12.65 overlap
        (12.5, 0.1, "faster"),  # 11.25 is above 11
        (8.0, 0.1, "slower"),
        (10.2, 0.001, "same"),  # significant, but small
    ],
)
def test_a_change_counts_if_ranges_are_disjoint_and_it_is_not_tiny(fps, noise, verdict):
    before = result(CPU, 10.0, noise=min(noise, 0.1))
    assert compare.change(before, result(CPU, fps, noise=noise)).verdict == verdict


def test_rows_are_matched_by_network_size_engine_and_threads():
    before = [CPU, result(CPU, 10.0), result(CPU, 5.0, "torch"), result(CPU, 7.0, network="old")]
    after = [CPU, result(CPU, 20.0), result(CPU, 5.1, "torch"), result(CPU, 3.0, network="new")]
    grid = compare.compare(before, after)
    assert {(cells[0], cells[1]): cells[-1] for cells in grid.cells} == {
        ("net 416", "plan"): "faster", ("net 416", "torch"): "same", ("new 416", "plan"): "new", ("old 416", "plan"): "gone",
    }  # fmt: skip
    assert grid.notes == [
        "1 faster, 0 slower, 1 same: p10–p90 overlap, or the medians differ by less than 3%",
        "before: busy: fake",
        "after: busy: fake",
    ]


def test_different_devices_are_named():
    notes = compare.compare([CPU, result(CPU, 1.0)], GPU_RECORDS).notes
    assert "Different devices: Fake CPU before, Fake GPU after." in notes


def test_the_command_prints_the_table(tmp_path, capsys):
    for name, fps in (("a", 10.0), ("b", 20.0)):
        records.write(tmp_path / f"{name}.jsonl", [CPU, result(CPU, fps)])
    assert main(["bench", "compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "2.000   faster" in shown and "1 faster, 0 slower, 0 same" in shown
