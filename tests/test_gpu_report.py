"""README.md's GPU table is what `gpudarknet bench report` makes of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpudarknet.bench import gpu_report, records
from gpudarknet.cli import main
from gpudarknet.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
START = {"case": "start", "part": "A", "date": "2026-12-01T08:00:00+00:00", "commit": "abcdef0123456789", "dirty": False,
         "backend": "cupy", "small": False, "only": "", "device": "Fake GPU", "driver": "600.1"}  # fmt: skip
END = {"case": "end", "part": "A", "passed": True, "interrupted": False, "summary": "all of 3 cases passed"}
README = f"# A\n\n{gpu_report.BEGIN}\n\nold\n\n{gpu_report.END}\n\n## B\n"


def timed(engine, batch=1, graph=1234.5, precision="fp16", **more):
    name = f"yolov4-tiny/416/{precision}/batch-{batch}/{engine}"
    fields = {"network": "yolov4-tiny", "size": 416, "precision": precision, "batch": batch, "engine": engine}
    rates = {"images_s": graph / 2, "graph_images_s": graph, "latency_ms": 1.5}
    return {"case": name, "part": "A", "outcome": "passed", **fields, **rates, **more}


ROWS = [START, timed("ours"), timed("ours", 64, 20000.0), timed("implicit-gemm", 64, 30000.0),
        timed("torch-graph", graph=823.0, torch="2.11.0"), END]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps({"record": "gpu-check", **row}) + "\n" for row in rows))
    return path


def test_the_readme_matches_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split(gpu_report.BEGIN + "\n\n")[1].split("\n" + gpu_report.END)[0]
    committed = filter(gpu_report.is_result, sorted((ROOT / "bench/results").glob("*.jsonl")))
    assert block == gpu_report.block(gpu_report.read(list(committed)))
    assert text.count(gpu_report.BEGIN) == text.count(gpu_report.END) == 1


def test_without_results_it_says_so():
    assert gpu_report.block([]).startswith("**No GPU results have been committed yet")


def test_the_command_writes_the_table(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", ROWS)
    rows = START, timed("ours", precision="tf32"), END
    b = write(tmp_path / "b.jsonl", [row | {"part": "B"} for row in rows])
    (tmp_path / "README.md").write_text(README)
    assert main(["bench", "report", str(a), str(b), "-readme", str(tmp_path / "README.md")]) == 0
    assert "wrote the GPU table from" in capsys.readouterr().out
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# A\n\n{gpu_report.BEGIN}\n\nFake GPU, driver 600.1, commit abcdef012345, 2026-12-01: ")
    assert text.endswith(f"\n\n{gpu_report.END}\n\n## B\n") and "old" not in text and "PyTorch 2.11.0" in text
    assert [line for line in text.splitlines() if line.startswith("| yolo")] == [
        "| yolov4-tiny | 416 x 416 | fp16 | 1 | 1,230 | – | 823 | 1.50 | 617 | 1.50 |",
        "| yolov4-tiny | 416 x 416 | fp16 | 64 | 20,000 | 30,000 | – | – | 10,000 | 1.50 |",
        "| yolov4-tiny | 416 x 416 | tf32 | 1 | 1,230 | – | – | – | 617 | 1.50 |",
    ]
    again = text
    assert main(["bench", "report", str(a), str(b), "-readme", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == again


def test_a_rerun_replaces_the_first_row(tmp_path):
    again = [START | {"only": "yolov4-tiny/416", "date": "2026-12-02T08:00:00+00:00"}, timed("ours", graph=2000.0), END]
    (device,) = gpu_report.read([write(tmp_path / "a.jsonl", ROWS + again)])
    cells = gpu_report.table_rows(device)
    assert (
        [row[4] for row in cells] == ["2,000", "20,000"]
        and [row[5] for row in cells] == ["–", "30,000"]
        and cells[0][6] == "823"
    )
    whole = [START | {"commit": "0123"}, timed("ours", graph=3000.0), END]
    (device,) = gpu_report.read([write(tmp_path / "a.jsonl", ROWS + whole)])
    assert [row[4] for row in gpu_report.table_rows(device)] == ["3,000"]  # a new run, of another commit


def test_a_rerun_that_passes_replaces_a_failure(tmp_path):
    bad = timed("ours") | {"outcome": "failed", "failed": ["values are not finite"]}
    again = [START | {"only": bad["case"]}, timed("ours"), END]
    assert gpu_report.read([write(tmp_path / "a.jsonl", [START, bad, END, *again])])


def test_two_devices_give_two_tables(tmp_path):
    other = [START | {"device": "Other GPU"}, timed("ours"), END]
    text = gpu_report.block(gpu_report.read([write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", other)]))
    assert text.count("| network |") == 2 and "PyTorch was not installed" in text


def test_a_killed_run_is_marked_incomplete(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[:-1])
    path.write_text(path.read_text() + '{"record": "gpu-check", "case": "mem')  # a partial line
    (device,) = gpu_report.read([path])
    assert len(gpu_report.table_rows(device)) == 2
    assert gpu_report.caption(device).endswith("The run of part A is incomplete.")


FAILED = timed("ours") | {"outcome": "failed", "failed": ["values are not finite"]}


@pytest.mark.parametrize(("rows", "message"), [
    ([START | {"emulated": True}, END],
     "PATH:1: measured on an emulated device; run `make gpu-check` again on a GPU"),
    ([START, FAILED, END],
     "PATH: yolov4-tiny/416/fp16/batch-1/ours failed: values are not finite; fix it, then run `make gpu-check` again"),
    ([START | {"small": True}, END],
     "PATH: measured with --small; run `make gpu-check` again without it"),
    ([START | {"backend": "numpy"}, END], "PATH: measured on backend numpy; run `make gpu-check` again on a GPU"),
    ([timed("ours")], "PATH:1: comes before the start row; run `make gpu-check` again"),
    ([START, {"part": "A"}], "PATH:2: not a row of a GPU check; pass files written by `make gpu-check`"),
    ([START, END, START | {"part": "B", "commit": "0123"}, END | {"part": "B"}],
     "Fake GPU: results of several commits (0123, abcdef012345); pass those of one"),
])  # fmt: skip
def test_unpublishable_results_are_refused(tmp_path, rows, message, capsys):
    path = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "README.md").write_text(README)
    assert main(["bench", "report", str(path), "-readme", str(tmp_path / "README.md")]) == 2
    assert capsys.readouterr().err == f"error: {message.replace('PATH', str(path))}\n"
    assert (tmp_path / "README.md").read_text() == README


def test_invalid_files_are_refused(tmp_path):
    good, bad = write(tmp_path / "a.jsonl", ROWS), tmp_path / "b.jsonl"
    bad.write_text("{}\n{\n[]\n")
    with pytest.raises(DataError, match=r"b\.jsonl:1: not a row of a GPU check"):
        gpu_report.read([good, bad])
    bad.write_text(good.read_text() + "{\n")
    with pytest.raises(DataError, match=r"b\.jsonl:7: not JSON; run `make gpu-check` again$"):
        gpu_report.read([bad])
    with pytest.raises(DataError, match=r"c\.jsonl: cannot be read \(No such file or directory\); check"):
        gpu_report.read([tmp_path / "c.jsonl"])
    (tmp_path / "README.md").write_text("# Nothing\n")
    with pytest.raises(DataError, match=r"README\.md: has no line '<!-- GPU results: "):
        gpu_report.write(tmp_path / "README.md", gpu_report.read([good]))


def test_the_benchmarks_records_are_reported_one_file_at_a_time(tmp_path, capsys):
    path = ROOT / "bench/results/2026-11-23-amd-epyc-cpu.jsonl"
    assert main(["bench", "report", str(path), str(path)]) == 2
    assert capsys.readouterr().err == (
        f"error: bench report: unexpected {path}; pass one file written by `gpudarknet bench`\n"
    )


def test_the_benchmark_ignores_results_of_gpu_checks(tmp_path):
    write(tmp_path / "2026-12-01-fake-gpu-check-a.jsonl", ROWS)
    (tmp_path / "2026-12-01-fake-gpu-check-b.jsonl").write_text("{half")
    assert records.gpu_records(tmp_path) == []
    assert [path.name[-7:] for path in tmp_path.glob("*.jsonl") if gpu_report.is_result(path)] == ["a.jsonl"]
