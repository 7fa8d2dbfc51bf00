"""The table of docs/plan.md is what `python -m bench.plan_counters` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import plan_counters
from bench.gpu_check.networks import compile_plan, config, without_weights
from bench.seeded import fill
from gpudarknet.plan import cuda
from gpudarknet.plan.cuda import dry_run

DOCS = Path(__file__).resolve().parent.parent / "docs" / "plan.md"


def test_counters_are_those_of_the_printed_plan():
    net = without_weights(config("yolov3-tiny"), dry_run.backend(), 96, 64)
    fill(net)
    program = cuda.Program(compile_plan(net, 2), net.backend, "fp16")
    got, text = plan_counters.count(program), program.describe(plan_counters.CARD)
    in_graph, outside = len(program.launches), got.launches - len(program.launches)
    assert f"{in_graph} launches in the graph: " in text and f"{outside} launches outside the graph: " in text
    assert f"a batch of 2, {got.images_s:,.0f} images/s" in text and f"arena {got.arena / 2**20:.1f}," in text


@pytest.mark.parametrize("network", ["yolov3-tiny", "yolov4-tiny"])
def test_the_table_in_the_docs(network):
    heads, line, *rows = plan_counters.table([network]).splitlines()
    text = DOCS.read_text(encoding="utf-8")
    block = text.partition(plan_counters.BEGIN + "\n\n")[2].partition("\n" + plan_counters.END)[0].splitlines()
    assert block[:2] == [heads, line] and len(block) == 2 + 3 * len(plan_counters.NETWORKS)
    assert [row for row in block if row.startswith(f"| {network} |")] == rows, "run `python -m bench.plan_counters`"


def test_rows_of_one_network_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(plan_counters, "BATCHES", (1,))
    plan_counters.main(["yolov3-tiny"])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    assert cells[:2] == ["yolov3-tiny", "1"] and len(cells) == len(plan_counters.HEADS)
    assert int(cells[3]) < int(cells[2])  # fewer launches with the implicit GEMM
