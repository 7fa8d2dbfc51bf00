"""The training curve: its CSV file and the chart, read as a picture is: axes, limits, labels, number of points."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpudarknet import image
from gpudarknet.errors import TrainError
from gpudarknet.train.history import MAX_POINTS, History, thinned, writable


def curve(count, first=1, score_every=0):
    """Return rows whose loss falls from 1000 to 1."""
    rows = []
    for k in range(count):
        loss = 1000.0 ** (1 - k / max(count - 1, 1))
        score = 0.5 * k / count if score_every and (first + k) % score_every == 0 else ""
        rows.append((first + k, loss * (1.3 if k % 2 else 0.8), loss, 1e-3, score))
    return rows


def axes(history):
    """Return the axes of a chart: of the loss and, if there is a score, of the score."""
    pytest.importorskip("matplotlib")
    return history.figure().axes


def test_a_log_scale_shows_every_loss_and_the_score_has_its_own_axis(tmp_path):
    history = History(tmp_path / "chart_x.png", 2000, "mAP@0.50", rows=curve(1000, score_every=100))
    left, right = axes(history)
    assert left.get_yscale() == "log" and right.get_yscale() == "linear"
    bottom, top = left.get_ylim()
    assert bottom < 0.8 and 1300 < top < 3000
    assert right.get_ylim() == (0, 100) and right.get_ylabel() == "mAP@0.50, %"
    assert list(right.get_lines()[0].get_ydata()) == pytest.approx([5 * k - 0.05 for k in range(1, 11)])
    assert left.get_title() == ("x: iteration 1000 of 2000, average loss 1, mAP@0.50 50.0 %, best 50.0 % at 1000")
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "loss of an iteration", "average loss", "mAP@0.50",
    ]  # fmt: skip


def test_scores_that_are_no_parts_of_1_are_shown_as_they_are(tmp_path):
    rows = [(k, 1.0, 1.0, 1e-3, -37.25 + k) for k in range(1, 4)]
    _, right = axes(History(tmp_path / "chart_x.png", 9, "minus loss", rows=rows))
    assert right.get_ylabel() == "minus loss" and list(right.get_lines()[0].get_ydata()) == [-36.25, -35.25, -34.25]
    assert History(tmp_path / "chart_x.png", 9, "minus loss", rows=rows).title() == (
        "x: iteration 3 of 9, average loss 1, minus loss -34.25, best -34.25 at 3"
    )


def test_max_chart_loss_is_the_upper_limit(tmp_path):
    (left,) = axes(History(tmp_path / "c.png", 1000, max_loss=20, rows=curve(1000)))
    assert left.get_ylim()[1] == 20 and left.get_ylim()[0] < 0.8
    (left,) = axes(History(tmp_path / "c.png", 1000, max_loss=0.5, rows=curve(5)))
    assert left.get_ylim() == (pytest.approx(0.05), 0.5)
    assert [text.get_text() for text in left.texts] == ["no loss in this range"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "title"),
    [
        ([], "x"),
        ([(7, 5.0, 5.0, 0.1, "")], "x: iteration 7 of 9, average loss 5"),
        ([(1, 5.0, 5.0, 0.1, 0.25)], "x: iteration 1 of 9, average loss 5, mAP 25.0 %, best 25.0 % at 1"),
        ([("1", "5", "5", "0.1", ""), (2, 4.0, 4.9, 0.1, 0.0)],
         "x: iteration 2 of 9, average loss 4.9, mAP 0.0 %, best 0.0 % at 2"),
        ([(k, 0.0, 0.0, 0.0, "") for k in range(1, 5)], "x: iteration 4 of 9, average loss 0"),
        ([(k, NAN, NAN, 0.0, NAN) for k in range(1, 5)], "x: iteration 4 of 9, average loss nan"),
        ([(k, 2.0, 2.0, 0.0, "") for k in range(1, 500)], "x: iteration 499 of 9, average loss 2"),
        ([(k, math.inf, 3.0, 0.0, "") for k in range(1, 5)], "x: iteration 4 of 9, average loss 3"),
    ],
)  # fmt: skip
def test_any_curve_gives_a_picture(tmp_path, rows, title):
    history = History(tmp_path / "chart_x.png", 9, rows=rows)
    left = axes(history)[0]
    assert left.get_title() == title
    bottom, top = left.get_ylim()
    first, last = left.get_xlim()
    assert 0 < bottom < top < math.inf and first < last
    shown = [row for row in rows if 0 < float(row[2]) < math.inf]
    assert all(bottom < float(row[2]) < top and first <= int(row[0]) <= last for row in shown)
    history.draw()
    assert image.read(tmp_path / "chart_x.png").shape == (600, 1000, 3)


def test_a_long_curve_is_thinned_and_keeps_its_spikes(tmp_path):
    rows = curve(100_000, score_every=5000)
    rows[54321] = (54322, 5000.0, 1.5, 1e-3, "")
    left, right = axes(History(tmp_path / "c.png", rows=rows))
    x, y = left.get_lines()[0].get_data()
    assert len(x) == MAX_POINTS and (np.diff(x) > 0).all() and y.max() == 5000
    assert x[y.argmax()] == 54322 and len(right.get_lines()[0].get_xdata()) == 20
    x, y = thinned(np.arange(3), np.array([1.0, NAN, 3.0]))
    assert len(x) == 3


def test_a_resumed_curve_drops_later_and_broken_rows(tmp_path):
    history = History(tmp_path / "chart_x.png", rows=curve(6, score_every=2))
    history.write()
    text = (tmp_path / "chart_x.csv").read_text()
    (tmp_path / "chart_x.csv").write_text(text + "7,nonsense,1,1,\n8,1\n\0,,,,\n4.5,1,1,1,\n3,1,1\n")
    resumed = History(tmp_path / "chart_x.png")
    resumed.read(4)
    assert [row[0] for row in resumed.rows] == ["1", "2", "3", "4"]
    assert resumed.best == pytest.approx(0.25) and History(tmp_path / "none.png").best == -math.inf
    resumed.set_score(3, 0.9)
    resumed.set_score(4, None)
    assert resumed.best == pytest.approx(0.25)
    resumed.set_score(4, 0.9)
    assert resumed.best == pytest.approx(0.9)


def test_where_a_chart_can_be_written(tmp_path):
    assert writable(tmp_path / "chart") == tmp_path / "chart.png"
    for name, problem in (
        ("chart.txt", "a chart cannot be written as .txt; use .png, .jpg, .jpeg, .pdf, .svg"),
        ("none/c.png", "cannot be written (No such file or directory); use a file in an existing folder"),
        ("d.png", "cannot be written (Is a directory); use a file in an existing folder"),
    ):
        (tmp_path / "d.png").mkdir(exist_ok=True)
        with pytest.raises(TrainError) as e:
            writable(tmp_path / name)
        assert str(e.value) == f"{tmp_path / name}: {problem}"
    assert [path.name for path in tmp_path.iterdir()] == ["d.png"]
    for name in ("Chart.PNG", "c.jpeg", "c.svg"):
        assert writable(tmp_path / name) == tmp_path / name


def test_a_chart_replaces_no_other_table(tmp_path):
    """Its CSV file, which nobody has named, may be something else."""
    table = tmp_path / "results.csv"
    table.write_text("image,label\n0.png,cat\n")
    with pytest.raises(TrainError) as e:
        writable(tmp_path / "results.png")
    assert (
        str(e.value) == f"{table}: is not a training curve, which would replace it; choose another name for the chart"
    )
    assert table.read_text() == "image,label\n0.png,cat\n"
    table.unlink()
    History(tmp_path / "results.png", rows=curve(3)).write()
    assert writable(tmp_path / "results.png") == tmp_path / "results.png"
