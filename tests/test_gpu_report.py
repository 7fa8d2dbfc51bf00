"""README.md's table of GPUs is what `gpudarknet bench report` makes of the results that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpudarknet.bench import gpu_report, records
from gpudarknet.cli import main
from gpudarknet.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
START = {"case": "start", "part": "A", "date": "2026-12-01T08:00:00+00:00", "commit": "abcdef0123456789", "changed": False,
         "backend": "cupy", "small": False, "only": "", "device": "Made-up GPU", "driver": "600.1"}  # fmt: skip
END = {"case": "end", "part": "A", "passed": True, "interrupted": False, "summary": "all of 3 cases passed"}
README = f"# A\n\n{gpu_report.BEGIN}\n\nold\n\n{gpu_report.END}\n\n## B\n"


def timed(engine, batch=1, graph=1234.5, precision="fp16", **more):
    name = f"yolov4-tiny/416/{precision}/batch-{batch}/{engine}"
    fields = {"network": "yolov4-tiny", "size": 416, "precision": precision, "batch": batch, "engine": engine}
    rates = {"images_s": graph / 2, "graph_images_s": graph, "latency_ms": 1.5}
    return {"case": name, "part": "A", "outcome": "passed", **fields, **rates, **more}


ROWS = [START, timed("ours"), timed("ours", 64, 20000.0), timed("torch-graph", graph=823.0, torch="2.11.0"), END]


def write(path, rows):
    path.write_text("".join(json.dumps({"record": "gpu-check", **row}) + "\n" for row in rows))
    return path


def test_the_readme_is_what_the_command_makes_of_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split(gpu_report.BEGIN + "\n\n")[1].split("\n" + gpu_report.END)[0]
    assert block == gpu_report.block(gpu_report.read(gpu_report.committed(ROOT / "bench/results")))
    assert text.count(gpu_report.BEGIN) == text.count(gpu_report.END) == 1


def test_without_results_it_says_that_none_are_committed():
    assert gpu_report.block([]).startswith("**No run on a GPU has been committed yet")


def test_the_command_writes_the_table(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", ROWS)
    rows = START, timed("ours", precision="tf32"), END
    b = write(tmp_path / "b.jsonl", [row | {"part": "B"} for row in rows])
    (tmp_path / "README.md").write_text(README)
    assert main(["bench", "report", str(a), str(b), "-readme", str(tmp_path / "README.md")]) == 0
    assert "its table of GPUs is that of" in capsys.readouterr().out
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"# A\n\n{gpu_report.BEGIN}\n\nMade-up GPU, driver 600.1, commit abcdef012345, 2026-12-01: ")
    assert text.endswith(f"\n\n{gpu_report.END}\n\n## B\n") and "old" not in text and "PyTorch 2.11.0" in text
    assert [line for line in text.splitlines() if line.startswith("| yolo")] == [
        "| yolov4-tiny | 416 x 416 | fp16 | 1 | 1,230 | 823 | 1.50 | 617 | 1.50 |",
        "| yolov4-tiny | 416 x 416 | fp16 | 64 | 20,000 | – | – | 10,000 | 1.50 |",
        "| yolov4-tiny | 416 x 416 | tf32 | 1 | 1,230 | – | – | 617 | 1.50 |",
    ]
    again = text
    assert main(["bench", "report", str(a), str(b), "-readme", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == again


def test_a_row_that_was_run_again_replaces_the_first(tmp_path):
    again = [START | {"only": "yolov4-tiny/416", "date": "2026-12-02T08:00:00+00:00"}, timed("ours", graph=2000.0), END]
    (device,) = gpu_report.read([write(tmp_path / "a.jsonl", ROWS + again)])
    cells = gpu_report.speeds(device)
    assert [row[4] for row in cells] == ["2,000", "20,000"] and cells[0][5] == "823"
    whole = [START | {"commit": "0123"}, timed("ours", graph=3000.0), END]
    (device,) = gpu_report.read([write(tmp_path / "a.jsonl", ROWS + whole)])
    assert [row[4] for row in gpu_report.speeds(device)] == ["3,000"]  # a new run, of another commit


def test_a_failed_row_that_passes_the_second_time_is_mended(tmp_path):
    bad = timed("ours") | {"outcome": "failed", "failed": ["numbers that are not finite"]}
    again = [START | {"only": bad["case"]}, timed("ours"), END]
    assert gpu_report.read([write(tmp_path / "a.jsonl", [START, bad, END, *again])])


def test_two_devices_have_two_tables(tmp_path):
    other = [START | {"device": "Other GPU"}, timed("ours"), END]
    text = gpu_report.block(gpu_report.read([write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", other)]))
    assert text.count("| network |") == 2 and "PyTorch was not there" in text


def test_a_run_that_was_killed_says_so(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[:-1])
    path.write_text(path.read_text() + '{"record": "gpu-check", "case": "mem')  # half a line
    (device,) = gpu_report.read([path])
    assert len(gpu_report.speeds(device)) == 2
    assert gpu_report.about(device).endswith("The run of part A was cut short.")


FAILED = timed("ours") | {"outcome": "failed", "failed": ["numbers that are not finite"]}


@pytest.mark.parametrize(("rows", "message"), [
    ([START | {"emulated": True}, END],
     "PATH:1: is of an emulated device, whose times say nothing; run `make gpu-check` again on a GPU"),
    ([START, FAILED, END],
     "PATH: yolov4-tiny/416/fp16/batch-1/ours failed: numbers that are not finite; mend it, then run `make gpu-check` again"),
    ([START | {"small": True}, END],
     "PATH: is of a small run, whose times say nothing; run `make gpu-check` again without --small"),
    ([START | {"backend": "numpy"}, END], "PATH: is of backend numpy, not of a GPU; run `make gpu-check` again on one"),
    ([timed("ours")], "PATH:1: comes before the row that says what the device is; run `make gpu-check` again"),
    ([START, {"part": "A"}], "PATH:2: is no row of a GPU check; give files that `make gpu-check` wrote"),
    ([START, END, START | {"part": "B", "commit": "0123"}, END | {"part": "B"}],
     "Made-up GPU: results of several commits (0123, abcdef012345); give those of one"),
])  # fmt: skip
def test_what_may_not_be_shown_is_refused(tmp_path, rows, message, capsys):
    path = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "README.md").write_text(README)
    assert main(["bench", "report", str(path), "-readme", str(tmp_path / "README.md")]) == 2
    assert capsys.readouterr().err == f"error: {message.replace('PATH', str(path))}\n"
    assert (tmp_path / "README.md").read_text() == README


def test_files_that_are_none(tmp_path):
    good, bad = write(tmp_path / "a.jsonl", ROWS), tmp_path / "b.jsonl"
    bad.write_text("{}\n{\n[]\n")
    with pytest.raises(DataError, match=r"b\.jsonl:1: is no row of a GPU check"):
        gpu_report.read([good, bad])
    bad.write_text(good.read_text() + "{\n")
    with pytest.raises(DataError, match=r"b\.jsonl:6: is not JSON; run `make gpu-check` again$"):
        gpu_report.read([bad])
    with pytest.raises(DataError, match=r"c\.jsonl: No such file or directory; give files that"):
        gpu_report.read([tmp_path / "c.jsonl"])
    (tmp_path / "README.md").write_text("# Nothing\n")
    with pytest.raises(DataError, match=r"README\.md: has no line '<!-- GPU results: "):
        gpu_report.write(tmp_path / "README.md", gpu_report.read([good]))


def test_records_of_the_benchmark_are_taken_one_at_a_time(tmp_path, capsys):
    path = ROOT / "bench/results/2026-11-23-amd-epyc-cpu.jsonl"
    assert main(["bench", "report", str(path), str(path)]) == 2
    assert capsys.readouterr().err == (
        f"error: bench report: {path} is too much: of files that `gpudarknet bench` wrote, it takes one\n"
    )


def test_a_gpu_check_among_the_results_does_not_disturb_the_benchmark(tmp_path):
    write(tmp_path / "2026-12-01-made-up-gpu-check-a.jsonl", ROWS)
    (tmp_path / "2026-12-01-made-up-gpu-check-b.jsonl").write_text("{half")
    assert records.of_gpus(tmp_path) == []
    assert [path.name[-7:] for path in gpu_report.committed(tmp_path)] == ["a.jsonl"]
